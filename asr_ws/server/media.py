"""An uploaded file -> samples, by a media process that lives as long as its request; see `asr_ws.media`.

Rules:
- Nothing here waits without a limit for the process, nor for ever holds up the loop: it is asyncio's pipes throughout.
- A pipe that is full is the backpressure, both ways: of an upload by `Media.write`, of the audio by not reading on.
- Whatever becomes of the process is a `MediaError` of this one file.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import numpy as np
import structlog

from asr_ws.core.types import Samples
from asr_ws.errors import MediaError
from asr_ws.media import wire
from asr_ws.media.wire import Opened, Reason, Refused
from asr_ws.processes import ChildProcess
from asr_ws.worker.system import Cause, Leash, cause_of

# numpy's linear algebra, which nobody calls, else starts a thread a core and takes memory for each.
NO_THREADS: Final = {"OPENBLAS_NUM_THREADS": "1"}
DECODER = "asr_ws.media.decoder:decode"
SAMPLE_BYTES = 4  # float32

FORMATS = "send wav, flac, ogg, mp3, m4a or webm"
HINTS = {
    Reason.UNSUPPORTED_MEDIA: FORMATS,
    Reason.NO_AUDIO: FORMATS,
    Reason.UNDECODABLE_MEDIA: "does it play elsewhere? convert it to wav or flac",
    Reason.NO_SPACE: "try again later",
}
CRASHED, HUNG = "media_crashed", "media_hung"

REFILL_S = 0.2  # once one is taken: behind a burst of requests, of which most are refused
KEEP_S = 120.0

_leash = Leash()


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Of one file.

    Attributes:
        max_bytes: of the file.
        max_audio_s: of what it holds.
        cpu_s: to decode all of it.
        memory_bytes: address space, of which Python and FFmpeg take 250 MB before the first byte.
        stall_s: without a byte while one is waited for.
    """

    max_bytes: int
    max_audio_s: float
    cpu_s: float
    memory_bytes: int
    stall_s: float


async def _start(limits: MediaLimits, file: Path | None, decoder: str) -> ChildProcess:
    """Raises: OSError, RuntimeError."""
    arguments = {
        "--max-bytes": limits.max_bytes,
        "--max-audio-s": limits.max_audio_s,
        "--cpu-s": limits.cpu_s,
        "--memory-bytes": limits.memory_bytes,
        "--decoder": decoder,
    }
    flags = [str(each) for argument in arguments.items() for each in argument]
    if file is not None:
        flags.append(f"--file={file}")  # whose name may begin with a hyphen
    await asyncio.sleep(0)  # to start a process takes some milliseconds: whoever is to be refused hears it before
    process = await ChildProcess.start("asr_ws.media", flags, NO_THREADS)
    try:
        _leash.hold(process.pid)
    except OSError as error:
        structlog.get_logger().warning("media.not_leashed", pid=process.pid, error=str(error))
    return process


class SpareProcess:
    """A process that has been started before its file is there: to start one takes longer than to decode most files.

    There is one while files come, and for `KEEP_S` after the last.
    """

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits
        self._process: ChildProcess | None = None
        self._taken = asyncio.Event()

    def take(self) -> ChildProcess | None:
        """For one file. None: there is none now."""
        self._taken.set()
        if self._process is None or self._process.has_ended:
            return None
        process, self._process = self._process, None
        return process

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._taken.wait()
                self._taken.clear()
                await asyncio.sleep(REFILL_S)
                if self._process is not None and self._process.has_ended:
                    await self._end()
                with suppress(OSError, RuntimeError):  # there is no process now: there may be one with the next file
                    self._process = self._process or await _start(self._limits, None, DECODER)
                with suppress(TimeoutError):
                    async with asyncio.timeout(KEEP_S):
                        await self._taken.wait()
                if not self._taken.is_set():
                    await self._end()
        finally:
            await self._end()

    async def _end(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            await process.kill()


class Media:
    """One file's process, within ``async with``, which starts it, and kills it whatever it does.

    Either the file's bytes go through `write` and `end`, or it is read from the disk; then `open`, then `read`.

    Args:
        file: None: it comes by `write`.
        decoder: ``module:function``, an `asr_ws.media.child.Decoder`.
        spare: whose process it may be, where it comes by `write`; made with the same limits.
    """

    def __init__(
        self,
        limits: MediaLimits,
        file: Path | None = None,
        *,
        decoder: str = DECODER,
        spare: SpareProcess | None = None,
    ) -> None:
        self._limits = limits
        self._file = file
        self._decoder = decoder
        self._spare = spare
        self._pcm = bytearray()
        self._log = structlog.get_logger()

    async def __aenter__(self) -> Self:
        """To be called in the server's main thread. Raises: OSError, RuntimeError: the system has no process for it."""
        process = None if self._spare is None or self._file is not None else self._spare.take()
        self._process = process or await _start(self._limits, self._file, self._decoder)
        if self._file is not None:
            self._process.stdin.close()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._process.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def write(self, chunk: bytes) -> None:
        """The file's next bytes; waits while the process has not taken those before.

        Raises: MediaError: it has ended, or takes none.
        """
        try:
            async with self._watched():
                self._process.stdin.write(chunk)
                await self._process.stdin.drain()
        except ConnectionError:
            opened = await self.open()  # which says why
            raise AssertionError(f"{opened} before the end of the file") from None

    def end(self) -> None:
        """The file is complete."""
        self._process.stdin.close()

    async def open(self) -> Opened:
        """What the file is; to be called once. Raises: MediaError: there is no audio in it."""
        try:
            async with self._watched():
                line = await self._process.stdout.readline()
            if not line.endswith(b"\n"):
                raise await self._crashed()
            header = wire.decode(line)
        except (ValueError, msgspec.MsgspecError) as error:  # too long a line, or none of ours
            await self._process.kill()
            raise self._died(Cause.GARBLED, "the decoder has gone mad") from error
        match header:
            case Opened():
                return header
            case Refused(error=reason, message=message):
                raise MediaError(reason.value, message, HINTS.get(reason, ""))

    async def read(self, n_samples: int) -> Samples:
        """The next samples, shape (n_samples,); fewer at the audio's end, then (0,). A cancelled one loses none.

        Raises: MediaError: there are no more, though there should be.
        """
        wanted = n_samples * SAMPLE_BYTES
        while (missing := wanted - len(self._pcm)) > 0:
            async with self._watched():
                chunk = await self._process.stdout.read(missing)
            if not chunk:
                await self._ended_well()
                break
            self._pcm += chunk
        taken = bytes(self._pcm[:wanted])
        del self._pcm[:wanted]
        return np.frombuffer(taken, "<f4").astype(np.float32, copy=False)

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """For one thing that the process does. Raises: MediaError: it does not."""
        try:
            async with asyncio.timeout(self._limits.stall_s):
                yield
        except TimeoutError:
            await self._process.kill()
            message = f"the decoder did nothing for {self._limits.stall_s:g} s and was ended"
            raise self._died(Cause.HUNG, message, code=HUNG) from None

    async def _ended_well(self) -> None:
        async with self._watched():
            exit_status = await self._process.ended()
        if exit_status == wire.EXIT_TOO_LONG:
            raise MediaError(Reason.TOO_LONG.value, f"the file holds more than {self._limits.max_audio_s:g} s of audio")
        if exit_status != 0:
            raise await self._crashed()

    async def _crashed(self) -> MediaError:
        async with self._watched():
            exit_status = await self._process.ended()
        cause = cause_of(exit_status)
        if exit_status == wire.EXIT_OUT_OF_MEMORY:
            why = f"took more than {self._limits.memory_bytes // 2**20} MiB of memory"
        elif sys.platform != "win32" and exit_status == -signal.SIGXCPU:
            why = f"took more than {self._limits.cpu_s:g} s of processor time"
        elif cause is Cause.EXITED:
            why = f"ended the decoder with status {exit_status}"
        else:
            why = f"crashed the decoder ({cause.value})"
        return self._died(cause, f"the file {why}", exit_status)

    def _died(self, cause: Cause, message: str, exit_status: int | None = None, *, code: str = CRASHED) -> MediaError:
        self._log.warning(
            "media.died",
            pid=self._process.pid,
            cause=cause.value,
            exit_status=exit_status,
            stderr=self._process.last_words,
        )
        return MediaError(code, message, HINTS[Reason.UNDECODABLE_MEDIA])
