"""The composition root: builds the server from its settings, runs it, and stops it in order.

Start: listen, then load the model (clients are told `starting` meanwhile). Stop, on SIGINT or SIGTERM: admit nothing
more, let what is admitted finish within the grace time, close the sessions with 1012, end the worker. A second signal
skips the waiting. So does a worker that cannot be kept alive, with ``--on-crash-loop exit``.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import structlog

from asr_ws import __version__, log, messages, models
from asr_ws.config import Admission, Settings
from asr_ws.core.access import Tokens
from asr_ws.core.admission import EXPECTED_AUDIO_S, AdmissionQueue, all_are_reached
from asr_ws.core.drafts import Drafts
from asr_ws.core.holds import Holds
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.session import HOLD_S, Service, Session
from asr_ws.core.types import RefusalReason, ServiceState, SessionId
from asr_ws.detector import SileroModel
from asr_ws.metrics import Metrics
from asr_ws.resampler import AvResampler
from asr_ws.server import entrance, tls
from asr_ws.server.connection import ConnectionLimits
from asr_ws.server.dispatcher import Dispatcher
from asr_ws.server.exposition import Exposition
from asr_ws.server.files import Files
from asr_ws.server.http import Http
from asr_ws.server.jobs import Jobs
from asr_ws.server.listener import Listener, SessionLimits
from asr_ws.server.media import MediaLimits, SpareProcess
from asr_ws.server.memory import give_back
from asr_ws.server.notify import ServiceManager
from asr_ws.server.pages import Pages
from asr_ws.server.tally import Tally
from asr_ws.server.transcriptions import Transcriptions
from asr_ws.server.watch import Watch
from asr_ws.worker.ipc import Loaded
from asr_ws.worker.supervisor import Supervisor, WorkerSpec

GRACE_S = 10.0  # for what is admitted, once the server is told to stop
INTERRUPTED = 1  # exit code where a visitor was not let finish
CRASH_LOOP = 70  # exit code where the worker cannot be kept alive: sysexits.h, EX_SOFTWARE
LAST_WORDS_S = 1.0  # for what was given up to be told
MAX_UTTERANCE_MS = 30_000  # Whisper's window
MAX_AUDIO_S = 4 * 3600  # of a file
MEDIA_CPU_S = 600.0
MEDIA_MEMORY_BYTES = 1_500_000_000
MEDIA_STALL_S = 30.0  # also on a busy machine, on which it goes last


@dataclass(frozen=True, slots=True)
class App:
    """A running server's parts."""

    settings: Settings
    dispatcher: Dispatcher
    supervisor: Supervisor
    metrics: Metrics
    listener: Listener
    jobs: Jobs
    spare: SpareProcess
    certificate: tls.Certificate | None = None
    reloads: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)  # of files that change

    @property
    def url(self) -> str:
        """Where sessions are opened, from this machine."""
        return self.listener.sessions_at(entrance.hosts(self.settings.listen.host)[0])

    async def drain(self) -> None:
        """Admit nothing more; each session closes once what it admitted is told: waits for that, at most GRACE_S."""
        self.dispatcher.drain()
        now = asyncio.get_running_loop().time()
        self.listener.http.refuse_uploads(partial(self.dispatcher.shed, RefusalReason.DRAINING, now=now))
        try:
            async with asyncio.timeout(GRACE_S):
                await self.listener.wait_empty()
        except TimeoutError:
            await self.give_up()

    async def give_up(self) -> None:
        """Tell what is still admitted that it will not be finished."""
        self.dispatcher.give_up()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self.listener.wait_empty()


def build(settings: Settings, spec: WorkerSpec, *, fair: bool = True) -> App:
    """Wire the parts together; nothing runs yet.

    Args:
        fair: False admits without fair share, for comparison.
    Raises:
        ModelError: the model folder is not usable.
        UsageError: tokens or certificate are not.
    """
    listen, admission, session = settings.listen, settings.admission, settings.session
    metrics = Metrics()
    name = settings.model.model.encode(errors="backslashreplace").decode()  # of a folder: any bytes but a slash
    final_time, partial_time = ServiceTime(), ServiceTime()
    partials, speculation = settings.texts.partials == "on", settings.texts.speculation == "on"
    drafts = Drafts(final_time, partial_time, partials=partials, speculation=speculation)
    queue = AdmissionQueue(admission.queue_capacity, final_time, fair=fair)
    dispatcher = Dispatcher(queue, Holds(), drafts, metrics)

    def prime(audio_s: float, decode_s: float) -> None:
        for service_time in (final_time, partial_time):
            service_time.prime(audio_s, decode_s)

    supervisor = Supervisor(spec, on_state=dispatcher.worker_changed, on_self_test=prime)
    dispatcher.worker = supervisor
    service = Service(
        version=__version__,
        model=name,
        languages=models.languages(spec.model),
        limits=messages.Limits(
            queue_capacity=admission.queue_capacity,
            max_wait_ms=admission.max_wait_ms,
            max_utterance_ms=MAX_UTTERANCE_MS,
            max_message_bytes=messages.MAX_BINARY_BYTES,
            max_sessions=session.max_sessions,
            hold_ms=round(HOLD_S * 1000),
        ),
        partials=partials,
        speculation=speculation,
    )
    silero = SileroModel()

    def make_session(id: SessionId) -> Session:
        return Session(id, service, dispatcher, silero.detector, AvResampler)

    exposition = Exposition(dispatcher, supervisor, metrics)
    pages = Pages(name, dispatcher, supervisor, metrics, exposition.page)
    tokens = entrance.tokens(settings)
    reception = entrance.reception(settings, metrics, tokens.value if tokens is not None else None)
    certificate = entrance.certificate(settings)
    encryption = entrance.encryption(certificate)
    tally = Tally()
    files = Files(dispatcher, silero.detector, tally, admission.max_wait_ms / 1000)
    media = MediaLimits(
        max_bytes=settings.files.max_upload_mb * 1_000_000,
        max_audio_s=MAX_AUDIO_S,
        cpu_s=MEDIA_CPU_S,
        memory_bytes=MEDIA_MEMORY_BYTES,
        stall_s=MEDIA_STALL_S,
    )
    spare = SpareProcess(media)
    model_created = int(spec.model.stat().st_mtime)
    transcriptions = Transcriptions(files, media, spare, name, service.languages, model_created)
    jobs = Jobs(
        entrance.state_dir(settings) / "jobs",
        files,
        dispatcher,
        media,
        service.languages,
        capacity=settings.files.max_jobs,
        ttl_s=settings.files.job_ttl_s,
        now=time.time,
        root_path=listen.root_path,
    )
    pages.jobs = exposition.jobs = jobs
    has_two_ports = listen.http_port == 0 or listen.http_port not in (-1, listen.port)
    http = Http(
        pages.by_path(),
        [*transcriptions.routes(), *jobs.routes()],
        reception,
        listen.root_path,
        (lambda name: listener.sessions_at(name)) if has_two_ports else None,
    )
    listener = pages.listener = exposition.listener = Listener(
        listen.host,
        listen.port,
        listen.http_port if has_two_ports else None,
        dispatcher=dispatcher,
        make_session=make_session,
        http=http,
        reception=reception,
        tally=tally,
        max_sessions=SessionLimits(
            session.max_sessions, settings.access.max_sessions_per_address, settings.access.max_sessions_per_token
        ),
        limits=ConnectionLimits(session.idle_timeout_s, session.ingest_speed),
        tls=encryption.value if encryption is not None else None,
    )
    app = App(settings, dispatcher, supervisor, metrics, listener, jobs, spare, certificate)

    def use_tokens(valid: Tokens) -> None:
        reception.tokens = valid
        listener.end_revoked()

    if tokens is not None:
        app.reloads.append(partial(tokens.run, use_tokens))
    if encryption is not None:
        app.reloads.append(partial(encryption.run, encryption.value.renew))
    return app


@contextlib.asynccontextmanager
async def running(settings: Settings, spec: WorkerSpec | None = None, *, fair: bool = True) -> AsyncIterator[App]:
    """A server that accepts connections; its model may still be loading. Leaving stops it at once.

    Args:
        spec: the worker to run, where it is not the one that the settings name.
        fair: as of `build`.
    Raises:
        UsageError: the address cannot be listened on; tokens or certificate are not usable.
    """
    app = build(settings, spec or worker_spec(settings), fair=fair)
    error: Exception | None = None  # of the caller's block: kept out of the group, which would wrap it
    async with app.listener, asyncio.TaskGroup() as tasks:
        running_tasks = [
            tasks.create_task(app.supervisor.run(), name="supervisor"),
            tasks.create_task(app.dispatcher.run(), name="dispatcher"),
            tasks.create_task(app.jobs.run(), name="jobs"),
            tasks.create_task(app.spare.run(), name="spare media process"),
            tasks.create_task(Watch(app.metrics).run(), name="watch"),
            tasks.create_task(give_back(), name="memory"),
            *(tasks.create_task(reload(), name="reload") for reload in app.reloads),
        ]
        gc.freeze()  # what is loaded by now stays: each full collection would stall the loop to look through it
        try:
            yield app
        except Exception as raised:
            error = raised
        finally:
            gc.unfreeze()
            app.dispatcher.drain()
            for task in running_tasks:
                task.cancel()
    if error is not None:
        raise error


def worker_spec(settings: Settings) -> WorkerSpec:
    """Raises: ModelError: the model is not there, or not usable."""
    model = settings.model
    spec = WorkerSpec(
        models.resolve(model.model),
        model.device,
        model.compute_type,
        model.cpu_threads,
        model.encoder_window,
        max_bytes=settings.worker.worker_memory_mb * 1_000_000 or None,
    )
    if settings.worker.fault_injection:
        return replace(spec, recognizer="asr_ws.testing.faults:FaultyRecognizer")
    return spec


Visitor = Callable[[App], Awaitable[int | None]]


def run(settings: Settings, spec: WorkerSpec | None = None, *, visitor: Visitor | None = None) -> int:
    """Serve until told to stop. The process is to end then: a signal that comes after the first ones is ignored.

    Args:
        spec: as of `running`.
        visitor: runs beside the server; an exit code from it stops the server too.
    Returns:
        The process's exit code.
    Raises:
        UsageError: the address cannot be listened on; tokens or certificate are not usable.
        ModelError: the model is not there, or not usable.
    """
    log.configure(settings.log.log_format, settings.log.log_level)
    if sys.platform != "win32":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who started us may ignore it: no exit status would be known
    return asyncio.run(_serve(settings, spec, visitor))


async def _serve(settings: Settings, spec: WorkerSpec | None, visitor: Visitor | None) -> int:
    logger = structlog.get_logger()
    signals: asyncio.Queue[str] = asyncio.Queue()
    if settings.worker.fault_injection:
        from asr_ws.testing import marks  # only then is anything of it needed here

        marks.forget(os.getpid())  # those of an earlier server with this process id, as in a container
        atexit.register(marks.forget, os.getpid())
    with _signals_into(signals), contextlib.closing(ServiceManager(os.environ)) as manager:
        async with running(settings, spec) as app:
            logger.info("server.listening", url=app.listener.url, model=settings.model.model)
            if settings.worker.fault_injection:
                logger.warning("faults.enabled", hint="every client can break the worker: not for service")
            for warning in entrance.warnings(settings):
                logger.warning("access.warned", hint=warning)
            announce(app)
            reports = asyncio.create_task(manager.run(app.dispatcher, partial(_status, app)), name="reports")
            loaded = asyncio.create_task(announce_loaded(app), name="announcement")
            told = asyncio.create_task(signals.get(), name="signal")
            visit = asyncio.create_task(_visit(visitor, app), name="visitor")
            lost = asyncio.create_task(_lost(app), name="crash loop")
            await asyncio.wait([told, visit, lost], return_when=asyncio.FIRST_COMPLETED)
            if visit.done() and visit.result() is None:  # it was here, and leaves the server running
                await asyncio.wait([told, lost], return_when=asyncio.FIRST_COMPLETED)
            crash_loop = lost.done()  # not what the drain may yet see
            if crash_loop:
                logger.error("worker.given_up", hint="--on-crash-loop exit", exit_code=CRASH_LOOP)
            logger.info("server.draining", **({"signal": told.result()} if told.done() else {}))
            manager.stopping()
            told.cancel()  # else it would have the second signal
            drained = asyncio.create_task(app.drain(), name="drain")
            again = asyncio.create_task(signals.get(), name="second signal")
            if not crash_loop:  # else there is nothing to wait for
                await asyncio.wait([drained, again], return_when=asyncio.FIRST_COMPLETED)
            if not drained.done():
                await app.give_up()
            for task in (loaded, drained, again, lost, reports):
                task.cancel()
            exit_code = (visit.result() or 0) if visit.done() else INTERRUPTED
            if crash_loop:
                exit_code = CRASH_LOOP
            visit.cancel()
    logger.info("server.stopped")
    return exit_code


def _status(app: App) -> str:
    """A line for who asks the service manager."""
    state, loaded = app.dispatcher.queue.state, app.supervisor.loaded
    if state is ServiceState.READY and loaded is not None:
        return f"{state}: {app.settings.model.model}, {loaded.device}, {loaded.compute_type}, at {app.listener.url}"
    return f"{state}, at {app.listener.url}" + f": {app.supervisor.last_failure}" * bool(app.supervisor.last_failure)


async def _lost(app: App) -> None:
    """Until the worker cannot be kept alive, and the server is not to stay without."""
    await app.dispatcher.wait_for(ServiceState.UNAVAILABLE)
    if app.settings.worker.on_crash_loop == "stay":
        await asyncio.get_running_loop().create_future()  # for ever


async def _visit(visitor: Visitor | None, app: App) -> int | None:
    return await visitor(app) if visitor is not None else None


@contextlib.contextmanager
def _signals_into(queue: asyncio.Queue[str]) -> Iterator[None]:
    """SIGINT and SIGTERM as queue items; works where ``add_signal_handler`` does not exist (Windows)."""
    loop = asyncio.get_running_loop()
    received = False

    def receive(number: int, _: object) -> None:
        nonlocal received
        received = True
        loop.call_soon_threadsafe(queue.put_nowait, signal.Signals(number).name)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():  # the process ends now: another signal must not change how
            signal.signal(number, signal.SIG_IGN if received else handler)


def announce(app: App) -> None:
    """Tell a person, on standard output, what runs and where. The first line is for programs. Nobody has to read it."""
    settings, hosts = app.settings, entrance.hosts(app.settings.listen.host)
    url = app.listener.url_at(hosts[0])
    out = log.Writer(sys.stdout)
    out.put(f"listening on {app.listener.url}")
    own = [app.certificate] if app.certificate is not None and app.certificate.fingerprint else []
    for what, where in (
        *(("page", f"{app.listener.url_at(host)}/") for host in hosts),
        *(("sessions", app.listener.sessions_at(host)) for host in hosts),
        ("files", f"{url}/v1/audio/transcriptions  {url}/v1/jobs"),
        ("numbers", f"{url}/v1/stats  {url}/metrics"),
        ("health", f"{url}/readyz  {url}/livez  {url}/healthz"),
        (
            "model",
            f"{settings.model.model}, device {settings.model.device}, compute type {settings.model.compute_type}",
        ),
        ("queue", f"{settings.admission.queue_capacity} may wait, {settings.admission.max_wait_ms} ms at most"),
        *(("SHA-256", f"{each.fingerprint} of {each.cert}") for each in own),
        *(("WARNING", warning) for warning in entrance.warnings(settings)),
        *([("FAULTS", "every client can break the worker: --fault-injection")] * settings.worker.fault_injection),
    ):
        out.put(f"  {what:<9} {where}")
    out.close(log.FLUSH_S)


async def announce_loaded(app: App) -> None:
    """And, once the model is there, what it really runs on; by then nobody may read any more, who is not waited for."""
    if await app.dispatcher.wait_loaded() and (loaded := app.supervisor.loaded):
        out = log.Writer(sys.stdout)
        out.put(f"  ready     {loaded.device}, {loaded.compute_type}")
        if late := too_slow(app.settings.admission, loaded):
            out.put(f"  WARNING   {late}")
            structlog.get_logger().warning("queue.not_reached", hint=late)
        out.close(0.0)


def too_slow(admission: Admission, loaded: Loaded) -> str:
    """Whether a full queue holds more than is decoded in time, going by the self-test; empty: it does not."""
    expected = ServiceTime()
    expected.prime(loaded.self_test_audio_s, loaded.self_test_decode_s)
    decode_s = expected.estimate(EXPECTED_AUDIO_S)
    if all_are_reached(admission.queue_capacity, decode_s, admission.max_wait_ms / 1000):
        return ""
    queue = f"{admission.queue_capacity} may wait, {admission.max_wait_ms} ms at most"
    return f"a decode takes some {decode_s:.1f} s, and {queue}: some will wait in vain. asr-ws doctor says more"
