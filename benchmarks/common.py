"""What several benchmarks need: recordings, the machine, percentiles, limits, and the report's last line.

Every benchmark is a command, ``python -m benchmarks.NAME``. It prints a table for people, and as its last line one JSON
object: ``benchmark``, ``machine``, ``settings``, the figures, and ``passed``: whether they keep the target, or null
where there is none. Exit code 1: the target was missed. Progress goes to standard error, on a terminal only.
"""

from __future__ import annotations

import asyncio
import csv
import json
import math
import os
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.resources import as_file, files
from itertools import takewhile
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click
import numpy as np
import soundfile
from rich.console import Console
from rich.progress import Progress

from asr_ws import config, messages
from asr_ws.client import Event, Session, connect
from asr_ws.config import Settings

if TYPE_CHECKING:
    from asr_ws.core.types import DecodeOptions, Hypothesis, Samples
    from asr_ws.server.app import App

NO_SPEECH: Final = "none"
PCM_BYTES_PER_S: Final = 2 * 16_000  # of what sessions take unless told otherwise
SCRIPTED: Final = "scripted"  # the name of no model
LOAD_LIMIT_S: Final = 300.0
DECODE_LIMIT_S: Final = 120.0  # a decode that hangs
VERSIONS_OF: Final = ("asr-ws", "faster-whisper", "ctranslate2", "onnxruntime", "numpy", "websockets")

_E = TypeVar("_E", bound=Event)


@dataclass(frozen=True, slots=True)
class Recording:
    file: Path
    language: str  # a code, or NO_SPEECH
    said: str


@contextmanager
def speech_folder(folder: Path | None) -> Iterator[Path]:
    """The folder itself, or the bundled recordings where there is none."""
    if folder is not None:
        yield folder
    else:
        with as_file(files("asr_ws") / "assets" / "speech") as bundled:
            yield bundled


def read_manifest(folder: Path) -> list[Recording]:
    """Raises: click.ClickException: no manifest, a column missing, or a file that is not there."""
    try:
        with (folder / "manifest.tsv").open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        recordings = [Recording(folder / row["file"], row["language"], row["transcript"]) for row in rows]
    except (OSError, KeyError) as error:
        raise click.ClickException(f"{folder / 'manifest.tsv'}: {error!r}") from error
    if missing := [each.file.name for each in recordings if not each.file.is_file()]:
        raise click.ClickException(f"{folder} lacks {', '.join(missing)}")
    return recordings


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that at least ``percent`` of them do not exceed (nearest rank): one that was measured.

    Raises: ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Spread:
    """How values lie, in their own unit."""

    n: int
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises: ValueError: no values."""
        p50, p95, p99 = (percentile(values, percent) for percent in (50, 95, 99))
        return cls(len(values), p50, p95, p99, max(values))

    def figures(self, digits: int = 3) -> dict[str, float]:
        """For the report."""
        return {name: round(getattr(self, name), digits) for name in ("n", "p50", "p95", "p99", "max")}


@asynccontextmanager
async def within(limit_s: float, what: str) -> AsyncIterator[None]:
    """Raises: click.ClickException: it took longer."""
    try:
        async with asyncio.timeout(limit_s) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():  # some other limit, inside
            raise
        raise click.ClickException(f"waited {limit_s:g} s for {what}") from error


async def until(events: AsyncIterator[Event], kind: type[_E]) -> _E:
    """The next event of this kind. Raises: click.ClickException: the session ended before."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise click.ClickException(f"the session ended without {kind.__name__}")


def progress(*, still: bool = False) -> Progress:
    """Bars on standard error, gone when done; nothing where that is no terminal.

    Args:
        still: drawn only by ``refresh``, for where the drawing thread would take time from what is measured.
    """
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal, auto_refresh=not still)


def settings_of(**flags: object) -> Settings:
    """The defaults on a free port, changed as these flags say; no environment and no file. Raises: ConfigError."""
    return config.load({"port": 0, **flags}, {}, None).settings


def numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...]:
    """A click callback: positive numbers with commas between them, as ``0.5,2``; nothing for nothing."""
    try:
        found = tuple(float(each) for each in text.split(",")) if text else ()
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.5,2") from error
    if any(each <= 0 for each in found):
        raise click.BadParameter(f"{text!r}: more than 0")
    return found


def speech_pcm() -> bytes:
    """The bundled recordings one after the other: 55 s of pcm_s16le, 16 kHz mono."""
    with speech_folder(None) as folder:
        return b"".join(soundfile.read(each.file, dtype="int16")[0].astype("<i2") for each in read_manifest(folder))


Cores = frozenset[int]


def split_cores() -> tuple[Cores, Cores]:
    """One core for what is measured, and the others for the rest; none at all where that cannot be had."""
    if sys.platform == "linux" and len(cores := sorted(os.sched_getaffinity(0))) > 1:
        return Cores(cores[:1]), Cores(cores[1:])
    return Cores(), Cores()


def pin(cores: Cores) -> None:
    """Keep this thread, and what it starts from now on, to these cores; none: leave it."""
    if sys.platform == "linux" and cores:
        os.sched_setaffinity(0, cores)


def _waited_s() -> float | None:
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:  # another platform
        return None


@dataclass(slots=True)
class CoreUse:
    """What this thread had of its core since this was made.

    Other programs on the machine spoil a timing: `waited_share` shows how much.
    """

    _began: float = field(default_factory=time.perf_counter)
    _used_s: float = field(default_factory=time.thread_time)
    _waited_s: float | None = field(default_factory=_waited_s)

    @property
    def used_s(self) -> float:
        return time.thread_time() - self._used_s

    @property
    def used_share(self) -> float:
        return self.used_s / (time.perf_counter() - self._began)

    @property
    def waited_share(self) -> float | None:
        """Of the time, in which it was ready to run and something else had the core; only Linux tells."""
        now_s = _waited_s()
        if now_s is None or self._waited_s is None:
            return None
        return (now_s - self._waited_s) / (time.perf_counter() - self._began)


@contextmanager
def other_process(cores: Cores) -> Iterator[ProcessPoolExecutor]:
    """One more process, for what must not run in the one that is measured; what it is to call is sent by name."""
    with ProcessPoolExecutor(1, get_context("spawn"), pin, (cores,)) as pool:
        yield pool


@asynccontextmanager
async def sessions(url: str, n: int, *, partials: bool = False, **start_fields: Any) -> AsyncIterator[list[Session]]:
    """That many open sessions. Raises: ClientError: see `asr_ws.client.connect`."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connect(url, partials=partials, **start_fields)) for _ in range(n)]


# ---------------------------------------------------------------- offered load, in the clients' process


@dataclass(frozen=True, slots=True)
class Offer:
    """An utterance that is to be offered."""

    at_s: float  # from the beginning of the run
    cut: slice  # of `speech_pcm`

    @property
    def audio_s(self) -> float:
        n_bytes: int = self.cut.stop - self.cut.start
        return n_bytes / PCM_BYTES_PER_S


def offers(rate: float, cuts: Sequence[slice], rng: random.Random) -> Iterator[Offer]:
    """``rate`` utterances a second without end, at the moments of a Poisson process, each any of ``cuts``."""
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate)
        yield Offer(at_s, rng.choice(cuts))


def lasting(seconds: float, all_offers: Iterable[Offer]) -> Iterator[Offer]:
    """Those of the first so many seconds."""
    return takewhile(lambda each: each.at_s < seconds, all_offers)


def dealt(all_offers: Iterable[Offer], n_sessions: int, rng: random.Random) -> list[list[Offer]]:
    """Each offer to any of the sessions, whatever that is doing."""
    plans: list[list[Offer]] = [[] for _ in range(n_sessions)]
    for each in all_offers:
        rng.choice(plans).append(each)
    return plans


@dataclass(slots=True)
class Talk:
    """What one session said and was told, and when, in its loop's seconds."""

    committed: dict[str, float] = field(default_factory=dict)  # by the commit's id
    heard: list[tuple[float, Event]] = field(default_factory=list)

    async def listen(self, session: Session, events: AsyncIterator[Event], *, once: bool) -> None:
        """Until ``events`` end.

        Args:
            once: what is refused is cancelled, so that each utterance is offered once; else the client offers it again.
        """
        loop = asyncio.get_running_loop()
        async for event in events:
            self.heard.append((loop.time(), event))
            if once and isinstance(event, messages.Busy | messages.Retry):
                await session.cancel(event.utterance)


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of utterances. ``refusals`` counts `busy`, by reason, those of later attempts included."""

    offered: int
    finals: int
    refusals: dict[str, int]

    @classmethod
    def of(cls, talks: Iterable[Talk]) -> Tally:
        events = [event for talk in talks for _, event in talk.heard]
        return cls(
            sum(isinstance(each, messages.Accepted | messages.Busy) and each.attempt == 1 for each in events),
            sum(isinstance(each, messages.Final) for each in events),
            dict(Counter(each.reason for each in events if isinstance(each, messages.Busy))),
        )

    def figures(self) -> dict[str, object]:
        """For the report."""
        return {"offered": self.offered, "finals": self.finals, "refusals": self.refusals}


async def offer_all(
    url: str, plans: Sequence[Sequence[Offer]], *, once: bool, patience_s: float, **start_fields: Any
) -> list[Talk]:
    """A session in manual mode for each plan: every utterance at once and at its time, whatever became of the others.

    Args:
        once: as of `Talk.listen`.
        patience_s: how long outcomes are waited for after the last offer.
    """
    pcm = speech_pcm()
    loop = asyncio.get_running_loop()
    talks = [Talk() for _ in plans]
    async with sessions(url, len(plans), partials=True, endpointing={"mode": "manual"}, **start_fields) as opened:
        began = loop.time()

        async def say(session: Session, plan: Sequence[Offer], talk: Talk) -> None:
            for n, each in enumerate(plan):
                await asyncio.sleep(began + each.at_s - loop.time())
                await session.send(pcm[each.cut])
                talk.committed[f"{n}"] = loop.time()
                await session.commit(f"{n}")
            await session.end()

        last_s = max((each.at_s for plan in plans for each in plan), default=0.0)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(began + last_s + patience_s), asyncio.TaskGroup() as tasks:
                for session, plan, talk in zip(opened, plans, talks, strict=True):
                    tasks.create_task(talk.listen(session, session.events(), once=once))
                    tasks.create_task(say(session, plan, talk))
    return talks


# ---------------------------------------------------------------- offered load, in the server's process


def start_of(model: str, decode_s: float = 0.1) -> dict[str, Any]:
    """What a session's `start` has to say to this model: nothing, but to SCRIPTED how long its decodes take."""
    return {"prompt": f"sleep {decode_s}"} if model == SCRIPTED else {}


@asynccontextmanager
async def serving(settings: Settings, *, fair: bool = True) -> AsyncIterator[App]:
    """A server that is ready; the model SCRIPTED is a worker that does what prompts say. Raises: click.ClickException:
    it did not get ready.
    """
    from asr_ws.server.app import running, worker_spec
    from asr_ws.testing.recognizer import scripted_worker

    with TemporaryDirectory() as folder:
        spec = scripted_worker(Path(folder)) if settings.model.model == SCRIPTED else worker_spec(settings)
        async with running(settings, spec, fair=fair) as app:
            async with within(LOAD_LIMIT_S, f"{settings.model.model} to be loaded"):
                await app.dispatcher.wait_ready()
            yield app


def spoken_cuts() -> list[slice]:
    """The utterances of the bundled speech: 1.5 to 5 s each, as the server's own endpointer finds them."""
    from asr_ws.core.endpointer import Endpoint, Endpointer, EndpointRules
    from asr_ws.detector import SileroModel

    rules = EndpointRules(silence=4800, prefix=4800, min_speech=2400, max_utterance=96_000, threshold=0.5)
    endpointer = Endpointer(rules, SileroModel().detector())
    samples = np.frombuffer(speech_pcm(), "<i2").astype(np.float32) / np.float32(32768)
    found = endpointer.feed(samples) + endpointer.finish()
    return [slice(2 * each.start_sample, 2 * each.end_sample) for each in found if isinstance(each, Endpoint)]


DecodeKind = Literal["final", "partial", "speculation"]


@dataclass(frozen=True, slots=True)
class Decode:
    """One decode of a server's; seconds of its loop."""

    kind: DecodeKind
    began: float
    ended: float
    accepted_at: float | None = None  # of a final
    promoted_at: float | None = None  # of a speculation that became the final while it ran

    @property
    def took_s(self) -> float:
        return self.ended - self.began


@contextmanager
def watched(app: App) -> Iterator[list[Decode]]:
    """What the server's worker decodes from now on, as it comes to its end."""
    decodes: list[Decode] = []
    dispatcher, worker, loop = app.dispatcher, app.dispatcher.worker, asyncio.get_running_loop()

    class Watched:
        async def decode(self, samples: Samples, options: DecodeOptions) -> Hypothesis:
            ticket, began = dispatcher.queue.in_flight, loop.time()
            hypothesis = await worker.decode(samples, options)
            if ticket is not None:
                decodes.append(Decode("final", began, loop.time(), accepted_at=ticket.accepted_at))
            else:
                kind: DecodeKind = "partial" if options.partial else "speculation"
                promoted = dispatcher.queue.in_flight
                promoted_at = promoted.accepted_at if promoted is not None else None
                decodes.append(Decode(kind, began, loop.time(), promoted_at=promoted_at))
            return hypothesis

    dispatcher.worker = Watched()
    try:
        yield decodes
    finally:
        dispatcher.worker = worker


def _worker_times_s(pid: int | None) -> tuple[float, float] | None:
    """Seconds in which the worker's threads ran, and in which they were ready to."""
    try:
        texts = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    except OSError:  # it is gone, or a thread of it
        return None
    times = [[int(each) / 1e9 for each in text.split()[:2]] for text in texts]
    return (sum(ran for ran, _ in times), sum(waited for _, waited in times)) if times else None


class WorkerCores:
    """Of the time in which a server's worker had work, how much it had no core, since this was made.

    Other programs on the machine make decodes slow: `waited_share` shows how much of a timing is theirs.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._before = _worker_times_s(app.supervisor.pid)

    @property
    def waited_share(self) -> float | None:
        """Only Linux tells."""
        now = _worker_times_s(self._app.supervisor.pid)
        if now is None or self._before is None:
            return None
        ran_s, waited_s = (after - before for after, before in zip(now, self._before, strict=True))
        return round(waited_s / (ran_s + waited_s), 3) if ran_s + waited_s > 0 else None


async def mean_decode_s(app: App, clients: Executor, cuts: Sequence[slice], **start_fields: Any) -> float:
    """What one of these utterances takes an idle server's worker: one over it is the capacity."""
    warm_up = cuts[:1]
    with watched(app) as decodes:
        run = partial(_decode_each, app.url, [*warm_up, *cuts], start_fields)
        await asyncio.get_running_loop().run_in_executor(clients, run)
    return mean(each.took_s for each in decodes[len(warm_up) :])


def _decode_each(url: str, cuts: Sequence[slice], start_fields: Mapping[str, Any]) -> None:
    async def run() -> None:
        pcm = speech_pcm()
        async with sessions(url, 1, endpointing={"mode": "manual"}, **start_fields) as (session,):
            events = session.events()
            for cut in cuts:
                await session.send(pcm[cut])
                await session.commit()
                async with within(DECODE_LIMIT_S, "a decode"):
                    await until(events, messages.Final)

    asyncio.run(run())


# ---------------------------------------------------------------- the report


def report(
    benchmark: str, *, settings: Mapping[str, object], figures: Mapping[str, object], passed: bool | None
) -> int:
    """Print the last line. Returns: the exit code."""
    line = {"benchmark": benchmark, "machine": machine(), "settings": settings, **figures, "passed": passed}
    click.echo(json.dumps(line))
    return 1 if passed is False else 0


def machine() -> dict[str, object]:
    """The machine and what runs on it, so that a number can be read later."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        **{package: version(package) for package in VERSIONS_OF},
    }


def _cpu_model() -> str:
    try:
        if sys.platform == "linux":
            lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, StopIteration, subprocess.CalledProcessError):  # such as ARM boards, which name no model there
        pass
    return platform.processor() or platform.machine()
