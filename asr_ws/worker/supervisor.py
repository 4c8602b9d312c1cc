"""Keeps one worker process alive, and hands it one decode at a time.

    STARTING ──Loaded──► READY ──its end──► RESTARTING ──Loaded──► READY
        └── ended before Loaded, three times in a row, or for good ──► UNAVAILABLE ──(keeps trying)──► READY

Each death is followed by a new start after a backoff of 0, 0.5, 1, 2 ... 30 s, +-20 %, by the number of deaths in a
row without a completed client decode between them. A failure that trying again cannot help is not retried: it is
said. The process is spawned, never forked, and talked to over its own pipes (`asr_ws.worker.ipc`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from asr_ws.core.types import DecodeOptions, Hypothesis, Samples, Segment, ServiceState
from asr_ws.errors import DecodeFailed, WorkerDied
from asr_ws.worker import ipc

MAX_BACKOFF_S = 30.0
EXIT_GRACE_S = 1.0  # from closing its end to being gone
FAILED_STARTS_UNTIL_UNAVAILABLE = 3
LOAD_BASE_S, LOAD_BYTES_PER_S = 1.0, 200e6  # the guess before the first load has been seen

# The threads of a decode sleep while they wait for each other. OpenMP's own default is to spin a while: where another
# process wants a core (this server, say), against the one that they wait for, and a decode takes several times as long.
# `python -m benchmarks.contention` shows it.
CALM_THREADS = {"OMP_WAIT_POLICY": "passive"}

# Exit statuses of native deaths: signals' names on POSIX, NTSTATUS (unsigned) on Windows.
SIGNAL_CAUSES = {"SIGKILL": "killed", "SIGILL": "illegal_instruction"}  # killed: possibly out of memory
NTSTATUS_CAUSES = {
    0xC0000005: "segv",
    0xC0000409: "abrt",
    0xC0000374: "heap_corruption",
    0xC00000FD: "stack_overflow",
    0xC000001D: "illegal_instruction",
    0xC0000135: "missing_dll",
}
PERMANENT_CAUSES = ("illegal_instruction", "missing_dll")


def cause_of(returncode: int) -> str:
    """An enum-like word for how a process ended, on any platform."""
    if returncode >= 0:
        return NTSTATUS_CAUSES.get(returncode, f"exit_{returncode}")
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        return f"signal_{-returncode}"
    return SIGNAL_CAUSES.get(name, name.removeprefix("SIG").lower())


def backoff_s(n_deaths: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds to wait before the next start after ``n_deaths`` >= 1 in a row."""
    if n_deaths <= 1:
        return 0.0
    return min(MAX_BACKOFF_S, 2.0 ** min(n_deaths - 3, 10)) * uniform(0.8, 1.2)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """How to start the child; ``recognizer`` is ``module:factory`` (tests name a scripted one)."""

    model: Path
    device: str = "auto"
    compute_type: str = "default"
    cpu_threads: int = 0
    encoder_window: str = "auto"
    recognizer: str = "asr_ws.worker.recognizer:FasterWhisperRecognizer"


@dataclass(slots=True)
class _Call:
    id: int
    result: asyncio.Future[Hypothesis]
    segments: list[Segment]


@dataclass(slots=True)
class _Life:
    """One process, from its start to its end."""

    began: float
    process: asyncio.subprocess.Process | None = None
    device: str | None = None
    loaded: ipc.Loaded | None = None
    failure: ipc.LoadFailed | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None


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
        self.n_restarts = 0
        self.last_failure = ""  # why the latest life ended
        self.max_concurrent_decodes = 0
        self._spec = spec
        self._on_state = on_state
        self._on_self_test = on_self_test
        self._device = spec.device
        self._log = structlog.get_logger()
        self._life: _Life | None = None
        self._call: _Call | None = None
        self._n_calls = 0
        self._n_concurrent = 0
        self._n_deaths = 0  # in a row, without a completed client decode between them
        self._n_failed_starts = 0  # in a row
        self._load_s: float | None = None  # spawn to READY, the last time

    @property
    def pid(self) -> int | None:
        return self._life.pid if self._life else None

    @property
    def expected_load_s(self) -> float:
        """From spawn to READY."""
        if self._load_s is not None:
            return self._load_s
        with contextlib.suppress(OSError):
            return LOAD_BASE_S + (self._spec.model / "model.bin").stat().st_size / LOAD_BYTES_PER_S
        return LOAD_BASE_S

    async def run(self) -> None:
        """Keep a worker alive until cancelled, or until trying again cannot help; the worker does not outlive it."""
        self._enter(ServiceState.STARTING, self.expected_load_s)
        while True:
            delay_s = self._bury(*await self._live())
            if delay_s is None:
                return  # for good: an operator has to change something
            await asyncio.sleep(delay_s)

    async def _live(self) -> tuple[_Life, str]:
        """One process, from its start to its end. Returns: with the cause of its end."""
        life = self._life = _Life(time.monotonic())
        try:
            life.process = await self._spawn()
        except OSError as error:  # no memory, no file descriptors: as passing as any other failed start
            life.failure = ipc.LoadFailed(f"the process could not be started: {error}", retryable=True)
            self._life = None
            return life, "not_started"
        try:
            await self._read(life, life.process)
            return life, cause_of(await _exit_status(life.process))
        finally:
            if life.process.returncode is None:
                life.process.kill()
                await life.process.wait()
            self._life = None

    async def decode(self, samples: Samples, options: DecodeOptions) -> Hypothesis:
        """Decode now. The caller is the only one, and calls only while READY.

        Raises:
            WorkerDied: the process ended under it; the state has changed already.
            DecodeFailed: this decode raised, the worker lives.
        """
        self._n_concurrent += 1
        self.max_concurrent_decodes = max(self.max_concurrent_decodes, self._n_concurrent)
        try:
            assert self._call is None, "strictly one decode at a time"
            assert self._life is not None
            assert self._life.process is not None
            stdin = self._life.process.stdin
            assert stdin is not None
            self._n_calls += 1
            call = self._call = _Call(self._n_calls, asyncio.get_running_loop().create_future(), [])
            stdin.write(ipc.frame(ipc.DecodeRequest(call.id, samples.astype("<f4", copy=False).tobytes(), options)))
            with contextlib.suppress(ConnectionError):  # its end is seen, and told, by the reader
                await stdin.drain()
            return await call.result
        finally:
            self._n_concurrent -= 1
            self._call = None

    async def _spawn(self) -> asyncio.subprocess.Process:
        spec = self._spec
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the current folder must not shadow modules
            *("-m", "asr_ws.worker.child", str(spec.model)),
            *("--device", self._device),
            *("--compute-type", spec.compute_type),
            *("--cpu-threads", str(spec.cpu_threads)),
            *("--encoder-window", spec.encoder_window),
            *("--recognizer", spec.recognizer),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**CALM_THREADS, **os.environ},
        )

    async def _read(self, life: _Life, process: asyncio.subprocess.Process) -> None:
        """Until the process closes its end, or breaks the framing."""
        stdout = process.stdout
        assert stdout is not None
        try:
            while True:
                n_bytes = ipc.frame_length(await stdout.readexactly(ipc.LENGTH.size))
                self._receive(life, ipc.decode_reply(await stdout.readexactly(n_bytes)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except ValueError as error:  # msgspec's errors are ValueErrors too
            self._log.error("worker.garbled", pid=process.pid, error=str(error))

    def _receive(self, life: _Life, reply: ipc.Reply) -> None:
        call = self._call
        match reply:
            case ipc.Loading(device=device):
                life.device = device
            case ipc.Loaded():
                life.loaded = self.loaded = reply
                self._load_s = time.monotonic() - life.began
                self._n_failed_starts = 0
                self._on_self_test(reply.self_test_audio_s, reply.self_test_decode_s)
                self._log.info(
                    "worker.ready",
                    pid=life.pid,
                    device=reply.device,
                    compute_type=reply.compute_type,
                    load_s=round(reply.load_s, 2),
                    self_test_decode_s=round(reply.self_test_decode_s, 2),
                )
                self._enter(ServiceState.READY, 0.0)
            case ipc.LoadFailed():
                life.failure = reply
            case ipc.SegmentDecoded():
                if call and call.id == reply.request:
                    call.segments.append(reply.segment)
            case ipc.DecodeDone():
                self._n_deaths = 0
                if call and call.id == reply.request and not call.result.done():
                    call.result.set_result(_hypothesis(call.segments, reply))
            case ipc.DecodeError():
                if call and call.id == reply.request and not call.result.done():
                    call.result.set_exception(DecodeFailed(reply.message))

    def _bury(self, life: _Life, cause: str) -> float | None:
        """Account for a death. Returns: seconds until the next start, or None: never."""
        self._n_deaths += 1
        self.last_failure = life.failure.message if life.failure else cause
        permanent = cause in PERMANENT_CAUSES or (life.failure is not None and not life.failure.retryable)
        if life.loaded is None:
            self._n_failed_starts += 1
            if self._device == "auto" and life.device == "cuda":
                self._device, permanent = "cpu", False
                self._log.warning("worker.cuda_refused", cause=cause, hint="CUDA failed its self-test: using the CPU")
        delay_s = backoff_s(self._n_deaths)
        unavailable = permanent or self._n_failed_starts >= FAILED_STARTS_UNTIL_UNAVAILABLE
        (self._log.error if permanent else self._log.warning)(
            "worker.died",
            pid=life.pid,
            cause=cause,
            loaded=life.loaded is not None,
            decoding=self._call is not None,
            error=self.last_failure,
            restart_in_s=None if permanent else round(delay_s, 2),
        )
        state = ServiceState.UNAVAILABLE if unavailable else ServiceState.RESTARTING
        if self.loaded is None and not unavailable:
            state = ServiceState.STARTING
        if not permanent:
            self.n_restarts += 1
        self._enter(state, delay_s + self.expected_load_s)
        if self._call is not None and not self._call.result.done():
            self._call.result.set_exception(WorkerDied(cause))
        return None if permanent else delay_s

    def _enter(self, state: ServiceState, ready_in_s: float) -> None:
        self.state = state
        self._on_state(state, ready_in_s)


async def _exit_status(process: asyncio.subprocess.Process) -> int:
    """Of a process that has closed its end, and so is ending; if it does not, it is killed.

    Not killed at once: `Popen.kill` reaps a process that is just dying, and asyncio then reports 255 for it.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(EXIT_GRACE_S):
            return await process.wait()
    with contextlib.suppress(ProcessLookupError):  # it ended just now
        process.kill()
    return await process.wait()


def _hypothesis(segments: list[Segment], done: ipc.DecodeDone) -> Hypothesis:
    return Hypothesis(
        text="".join(segment.text for segment in segments),
        language=done.language,
        language_probability=done.language_probability,
        segments=tuple(segments),
        filtered=done.filtered,
        decode_s=done.decode_s,
    )
