"""Keeps one worker process alive, and hands it one decode at a time.

    STARTING ──Loaded──► READY ──its end──► RESTARTING ──Loaded──► READY
        └── ended before Loaded, three times in a row, or for good ──► UNAVAILABLE ──(keeps trying)──► READY

Rules:

- Each death is followed by a new start after a backoff of 0, 0.5, 1, 2 ... 30 s, +-20 %, by the number of deaths in a
  row without a completed decode between them. A failure that trying again cannot help is not retried, but said, where
  there was no READY yet: what has been ready once can be.
- **Limits.** A start may take `Limits.start_s`, or five times what the last one took, and after one that took too long
  twice as long as before. A decode may take ten times what is expected of it, 10 s at least, and 120 s as long as
  little is known of this machine. Shortly before, the process dumps its stacks, by itself; at the limit it gets
  SIGABRT, and a second later SIGKILL. That needs nothing of the process: also one that is stopped is ended. One that
  the system does not end makes it UNAVAILABLE, and is not replaced before it has.
- It is READY no longer from the moment at which its end is seen, or decided; the reason is found out afterwards.
- **Salvage.** What died, or hung, after it had handed over the utterance's last segment has decoded it.
- Between two decodes a process that has grown over its ceiling is replaced, which is no death.

The process is spawned, never forked, and talked to over its own pipes (`asr_ws.worker.ipc`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from asr_ws.core.types import DecodeOptions, Hypothesis, Samples, ServiceState
from asr_ws.errors import DecodeFailed, WorkerDied, WorkerHung
from asr_ws.worker import ipc
from asr_ws.worker.process import WorkerProcess, resident_bytes
from asr_ws.worker.system import Cause, Leash, cause_of

MAX_BACKOFF_S = 30.0
ENDING_LIMIT_S = 10.0  # from its end's being seen, or decided, which SIGKILL follows within a second
FAILED_STARTS_UNTIL_UNAVAILABLE = 3
LOAD_BASE_S, LOAD_BYTES_PER_S = 1.0, 200e6  # the guess before the first load has been seen
NOBODY_KNOWS_S = 3600.0  # until somebody has done something
# A ceiling where none is set: decodes take some memory beside the model, a leak takes it all.
CEILING_TIMES, CEILING_PLUS_BYTES = 2, 512 * 1024 * 1024
CEILING_HEADROOM = 1.25  # times what it takes once it is ready: the least that a ceiling must leave a decode
HINTS = {Cause.KILLED: "possibly out of memory", Cause.GROWN: "it had grown over its ceiling"}
PERMANENT_CAUSES = (Cause.ILLEGAL_INSTRUCTION, Cause.MISSING_DLL)
NOT_THE_DEVICES_DOING = (Cause.KILLED, Cause.SLOW_START, Cause.NOT_STARTED)


def backoff_s(n_deaths: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds to wait before the next start after ``n_deaths`` >= 1 in a row."""
    if n_deaths <= 1:
        return 0.0
    return min(MAX_BACKOFF_S, 2.0 ** min(n_deaths - 3, 10)) * uniform(0.8, 1.2)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the worker may take."""

    start_s: float = 60.0  # at least
    start_loads: float = 5.0  # ... and so many times the last load
    decode_s: float = 10.0  # at least: more than the longest wait, so that what hung is not replayed
    decode_estimates: float = 10.0  # ... and so many times what is expected of it
    first_decode_s: float = 120.0  # at least, of the first decodes
    n_first_decodes: int = 3
    dump_share: float = 0.7  # of a limit: when the stacks are dumped, on Windows

    def start(self, expected_s: float, n_slow_starts: int) -> float:
        return max(self.start_s, self.start_loads * expected_s) * 2.0 ** min(n_slow_starts, 10)

    def decode(self, expected_s: float, n_decodes: int) -> float:
        limit_s = max(self.decode_s, self.decode_estimates * expected_s)
        return max(limit_s, self.first_decode_s) if n_decodes < self.n_first_decodes else limit_s


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """How to start the child; ``recognizer`` is ``module:factory`` (tests name a scripted one).

    ``max_bytes``: its memory's ceiling; None: by what it takes once it is ready.
    """

    model: Path
    device: str = "auto"
    compute_type: str = "default"
    cpu_threads: int = 0
    encoder_window: str = "auto"
    recognizer: str = "asr_ws.worker.recognizer:FasterWhisperRecognizer"
    max_bytes: int | None = None
    limits: Limits = Limits()


@dataclass(slots=True)
class _Call:
    """The decode in flight."""

    id: int
    began_at: float
    result: asyncio.Future[Hypothesis]
    segments: list[ipc.SegmentDecoded] = field(default_factory=list)

    def salvage(self) -> bool:
        """Make do with the segments that are there, if they are all. Returns: whether it has its result."""
        if not self.result.done() and self.segments and (last := self.segments[-1]).last:
            decode_s = time.monotonic() - self.began_at
            done = ipc.DecodeDone(self.id, last.language, last.language_probability, None, decode_s)
            self.finish(done, recovered=True)
        return self.result.done()

    def finish(self, done: ipc.DecodeDone, *, recovered: bool = False) -> None:
        segments = tuple(decoded.segment for decoded in self.segments)
        self.result.set_result(
            Hypothesis(
                text="".join(segment.text for segment in segments),
                language=done.language,
                language_probability=done.language_probability,
                segments=segments,
                filtered=done.filtered,
                decode_s=done.decode_s,
                recovered=recovered,
            )
        )


@dataclass(slots=True)
class _Life:
    """One process, from its start to its end."""

    began_at: float
    process: WorkerProcess | None = None
    device: str | None = None
    loaded: ipc.Loaded | None = None
    failure: ipc.LoadFailed | None = None
    max_bytes: float = math.inf
    ended_for: Cause | None = None  # by us
    over: bool = False  # it decodes no more, whatever comes
    decoding: bool = False  # when it was over
    ending: asyncio.TimerHandle | None = None  # the limit of its end
    delay_s: float = 0.0  # from its end to the next start


class _Limit:
    """Calls back when it is over, unless it is cancelled before.

    Where this process itself stood still meanwhile (Ctrl-Z, a debugger), what it waits for may have come, or may have
    stood still too: it has as long again as the limit came late.
    """

    def __init__(self, limit_s: float, callback: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit_s = limit_s
        self._callback = callback
        self._due = self._loop.time() + limit_s
        self._timer = self._loop.call_at(self._due, self._is_due)

    def cancel(self) -> None:
        self._timer.cancel()

    def _is_due(self) -> None:
        late_s = min(self._loop.time() - self._due, self._limit_s)
        self._timer = self._loop.call_later(late_s, self._callback)


class Supervisor:
    """Args:
    on_state: called with the new state and the seconds until READY that are to be expected, before anything
        else learns of the change.
    on_self_test: called with the audio seconds and decode seconds of each passed self-test.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        on_state: Callable[[ServiceState, float], None],
        on_self_test: Callable[[float, float], None] = lambda audio_s, decode_s: None,
    ) -> None:
        self.state = ServiceState.STARTING
        self.loaded: ipc.Loaded | None = None  # of the latest life that came so far
        self.load_s: float | None = None  # from spawn to READY, the last time
        self.restarts: Counter[str] = Counter()  # by `Cause`
        self.last_failure = ""  # why the latest life ended
        self.max_concurrent_decodes = 0
        self._spec = replace(spec, model=spec.model.absolute())  # the current folder may not be there any more
        self._on_state = on_state
        self._on_self_test = on_self_test
        self._device = spec.device
        self._log = structlog.get_logger()
        self._leash = Leash()
        self._life: _Life | None = None
        self._call: _Call | None = None
        self._n_calls = 0
        self._n_decoded = 0
        self._n_concurrent = 0
        self._n_deaths = 0  # in a row, without a completed decode between them
        self._n_failed_starts = 0  # in a row
        self._n_slow_starts = 0  # in a row

    @property
    def pid(self) -> int | None:
        """Of the process that holds the model."""
        if self._life is not None and self._life.loaded is not None:
            return self._life.loaded.pid
        return self._process.pid if self._process else None

    @property
    def resident_bytes(self) -> int | None:
        """Memory of that process; None: there is none."""
        return None if self.pid is None else resident_bytes(self.pid)

    @property
    def causes(self) -> tuple[str, ...]:
        """Those by which `restarts` counts."""
        return tuple(Cause)

    @property
    def n_restarts(self) -> int:
        return self.restarts.total()

    @property
    def expected_load_s(self) -> float:
        """From spawn to READY."""
        if self.load_s is not None:
            return self.load_s
        with contextlib.suppress(OSError):
            return LOAD_BASE_S + (self._spec.model / "model.bin").stat().st_size / LOAD_BYTES_PER_S
        return LOAD_BASE_S

    @property
    def _process(self) -> WorkerProcess | None:
        return self._life.process if self._life else None

    async def run(self) -> None:
        """Keep a worker alive until cancelled, or until trying again cannot help; the worker does not outlive it."""
        self._enter(ServiceState.STARTING, self.expected_load_s)
        while True:
            life = self._life = _Life(time.monotonic())
            delay_s = self._bury(life, *await self._live(life))
            if delay_s is None:
                return  # for good: an operator has to change something
            await asyncio.sleep(delay_s)

    async def _live(self, life: _Life) -> tuple[Cause, int | None]:
        """One process, from its start to its end. Returns: its cause, and the exit status."""
        start_limit_s = self._spec.limits.start(self.expected_load_s, self._n_slow_starts)
        try:
            process = life.process = await self._spawn(start_limit_s)
        except (OSError, RuntimeError) as error:  # no memory, no threads: as passing as any other failed start
            life.failure = ipc.LoadFailed(f"the process could not be started: {error}", retryable=True)
            return Cause.NOT_STARTED, None
        if self.restarts:
            self._log.info("worker.respawned", pid=process.pid, n_restarts=self.n_restarts)
        limit = _Limit(start_limit_s, lambda: self._end(life, Cause.SLOW_START))
        try:
            try:
                while (reply := await process.receive()) is not None:
                    self._receive(life, reply)
                    if life.loaded is not None:
                        limit.cancel()
            except ipc.Garbled as error:
                self._log.error("worker.garbled", pid=process.pid, error=str(error))
                self._end(life, Cause.GARBLED)
            self._is_over(life)
            process.close()
            exit_status = await process.ended()
            return life.ended_for or cause_of(exit_status), exit_status
        finally:
            limit.cancel()
            if life.ending is not None:
                life.ending.cancel()
            await process.kill()

    async def decode(self, samples: Samples, options: DecodeOptions, expected_s: float) -> Hypothesis:
        """Decode now. The caller is the only one, and calls only while READY.

        Args:
            expected_s: what it will take, probably.
        Raises:
            WorkerDied: the process ended under it; the state has changed already. `WorkerHung`: it had to be ended.
            DecodeFailed: this decode raised, the worker lives.
        """
        self._n_concurrent += 1
        self.max_concurrent_decodes = max(self.max_concurrent_decodes, self._n_concurrent)
        life = self._life
        assert self._call is None, "strictly one decode at a time"
        assert life is not None
        assert life.process is not None
        self._n_calls += 1
        call = self._call = _Call(self._n_calls, time.monotonic(), asyncio.get_running_loop().create_future())
        limit_s = self._spec.limits.decode(expected_s, self._n_decoded)
        limit = _Limit(limit_s, lambda: self._hangs(life, call))
        try:
            payload = samples.astype("<f4", copy=False).tobytes()
            dump_after_s = self._spec.limits.dump_share * limit_s
            life.process.send(ipc.DecodeRequest(call.id, payload, options, dump_after_s))
            return await call.result
        finally:
            limit.cancel()
            self._n_concurrent -= 1
            self._call = None

    async def _spawn(self, start_limit_s: float) -> WorkerProcess:
        spec = self._spec
        arguments = {
            "--device": self._device,
            "--compute-type": spec.compute_type,
            "--cpu-threads": spec.cpu_threads,
            "--encoder-window": spec.encoder_window,
            "--recognizer": spec.recognizer,
            "--dump-after-s": spec.limits.dump_share * start_limit_s,
        }
        flags = [str(each) for argument in arguments.items() for each in argument]
        process = await WorkerProcess.launch([str(spec.model), *flags])
        try:
            self._leash.hold(process.pid)
        except OSError as error:
            hint = "should the server be killed, it ends by the end of its input only"
            self._log.warning("worker.not_leashed", pid=process.pid, error=str(error), hint=hint)
        return process

    def _receive(self, life: _Life, reply: ipc.Reply) -> None:
        match reply:
            case ipc.Loading(device=device):
                life.device = device
            case ipc.Loaded() if not life.over:
                self._ready(life, reply)
            case ipc.LoadFailed():
                life.failure = reply
            case ipc.SegmentDecoded() | ipc.DecodeDone() | ipc.DecodeError():
                if (call := self._call) is not None and call.id == reply.request and not call.result.done():
                    self._receive_of(call, reply)
                if isinstance(reply, ipc.DecodeDone):
                    self._n_deaths = 0
                    self._n_decoded += 1
                if not isinstance(reply, ipc.SegmentDecoded):
                    self._replace_if_grown(life)

    def _receive_of(self, call: _Call, reply: ipc.SegmentDecoded | ipc.DecodeDone | ipc.DecodeError) -> None:
        match reply:
            case ipc.SegmentDecoded():
                call.segments.append(reply)
            case ipc.DecodeDone():
                call.finish(reply)
            case ipc.DecodeError():
                call.result.set_exception(DecodeFailed(reply.message))

    def _ready(self, life: _Life, loaded: ipc.Loaded) -> None:
        life.loaded = self.loaded = loaded
        self.load_s = time.monotonic() - life.began_at
        self._n_failed_starts = self._n_slow_starts = 0
        resident = self.resident_bytes or 0
        life.max_bytes = CEILING_TIMES * resident + CEILING_PLUS_BYTES
        if self._spec.max_bytes is not None:
            if self._spec.max_bytes >= CEILING_HEADROOM * resident:
                life.max_bytes = self._spec.max_bytes
            else:
                facts = {"asked_bytes": self._spec.max_bytes, "resident_bytes": resident, "max_bytes": life.max_bytes}
                self._log.warning("worker.ceiling_ignored", hint="too little for this model", **facts)
        self._on_self_test(loaded.self_test_audio_s, loaded.self_test_decode_s)
        self._log.info(
            "worker.ready",
            pid=self.pid,
            device=loaded.device,
            compute_type=loaded.compute_type,
            load_s=round(self.load_s, 2),
            self_test_decode_s=round(loaded.self_test_decode_s, 2),
        )
        self._enter(ServiceState.READY, 0.0)

    def _replace_if_grown(self, life: _Life) -> None:
        if (resident := self.resident_bytes or 0) > life.max_bytes:
            self._log.info("worker.grown", pid=self.pid, resident_bytes=resident, max_bytes=life.max_bytes)
            self._end(life, Cause.GROWN)

    def _hangs(self, life: _Life, call: _Call) -> None:
        if not call.result.done():
            self._end(life, Cause.HUNG)

    def _end(self, life: _Life, cause: Cause) -> None:
        """End the process, for ``cause``; its death is seen where its replies are read."""
        if life.over:
            return
        assert life.process is not None
        life.ended_for = cause
        self._is_over(life)
        if cause is Cause.GROWN:
            life.process.close()
        else:
            life.process.abort()

    def _is_over(self, life: _Life) -> None:
        """From here on the worker is not ready, and what it was decoding has its end."""
        if life.over:
            return
        life.over = True
        if life.process is not None:
            life.ending = asyncio.get_running_loop().call_later(ENDING_LIMIT_S, self._does_not_end, life.process)
        call = self._call
        life.decoding = call is not None and not call.result.done()
        salvaged = life.decoding and call is not None and call.salvage()
        if life.ended_for is not Cause.GROWN:
            self._n_deaths = 1 if salvaged else self._n_deaths + 1
            life.delay_s = backoff_s(self._n_deaths)
        if life.loaded is not None:
            self._enter(ServiceState.RESTARTING, life.delay_s + self.expected_load_s)
        if call is not None and not call.result.done():
            call.result.set_exception(WorkerHung() if life.ended_for is Cause.HUNG else WorkerDied())

    def _does_not_end(self, process: WorkerProcess) -> None:
        """Without its end there is no other: there is one model at a time."""
        hint = "the system does not end it (a driver?): no other is started before it does"
        self._log.error("worker.not_ended", pid=process.pid, hint=hint)
        self.last_failure = "its process does not end"
        self._enter(ServiceState.UNAVAILABLE, NOBODY_KNOWS_S)

    def _bury(self, life: _Life, cause: Cause, exit_status: int | None) -> float | None:
        """Account for its end. Returns: seconds until the next start, or None: never."""
        self.last_failure = life.failure.message if life.failure else cause.value
        hopeless = cause in PERMANENT_CAUSES or (life.failure is not None and not life.failure.retryable)
        permanent = hopeless and self.loaded is None
        if life.loaded is None:
            self._is_over(life)
            self._n_failed_starts += 1
            self._n_slow_starts += cause is Cause.SLOW_START
            doubtful = self.loaded is None and cause not in NOT_THE_DEVICES_DOING
            if self._device == "auto" and life.device == "cuda" and doubtful:
                self._device, permanent = "cpu", False
                self._log.warning("worker.cuda_refused", cause=cause, hint="CUDA failed its self-test: using the CPU")
        facts = {"hint": HINTS[cause]} if cause in HINTS else {}
        if permanent:
            facts["hint"] = f"not tried again: put {self._spec.model} right, and start the server anew"
        if life.failure is not None:
            facts["error"] = life.failure.message
        (self._log.error if permanent else self._log.info if cause is Cause.GROWN else self._log.warning)(
            "worker.replaced" if cause is Cause.GROWN else "worker.died",
            pid=life.process.pid if life.process else None,
            cause=cause.value,
            exit_status=exit_status,
            loaded=life.loaded is not None,
            decoding=life.decoding,
            restart_in_s=None if permanent else round(life.delay_s, 2),
            **facts,
            stderr=life.process.last_words if life.process else "",
        )
        self._life = None
        if not permanent:
            self.restarts[cause] += 1
        if permanent or self._n_failed_starts >= FAILED_STARTS_UNTIL_UNAVAILABLE:
            self._enter(ServiceState.UNAVAILABLE, NOBODY_KNOWS_S if permanent else life.delay_s + self.expected_load_s)
        elif life.loaded is None or self.state is ServiceState.UNAVAILABLE:
            state = ServiceState.STARTING if self.loaded is None else ServiceState.RESTARTING
            self._enter(state, life.delay_s + self.expected_load_s)
        return None if permanent else life.delay_s

    def _enter(self, state: ServiceState, ready_in_s: float) -> None:
        if state is ServiceState.UNAVAILABLE and self.state is not state:
            self._log.error("worker.unavailable", error=self.last_failure)
        self.state = state
        self._on_state(state, ready_in_s)
