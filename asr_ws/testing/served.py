"""A server in a process of its own, as its users run it: started, waited for, and stopped by a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Self

from asr_ws.config import without_settings
from asr_ws.errors import ServerFailed
from asr_ws.testing import marks
from asr_ws.worker.system import end_with

LISTEN_LIMIT_S: Final = 60.0
LOAD_LIMIT_S: Final = 600.0
STOP_LIMIT_S: Final = 20.0  # the server's grace time, 10 s, and what comes after it
MAX_LINE_BYTES: Final = 2**20  # of its log
LISTENING, READY = "listening on ", "  ready "
TAIL: Final = 20  # lines of the log that are kept
TAIL_CHARACTERS: Final = 8000  # of them that are told


def state_dir() -> str:
    """A folder that is not there, for servers without jobs: those of the user's own server are not theirs to do."""
    return str(Path(tempfile.gettempdir()) / f"asr_ws-benchmark-{os.getpid()}")


def ending_with_us() -> Callable[[], None] | None:
    """``preexec_fn`` of a process that is not to be left over where we are killed: on Linux, elsewhere it is."""
    return partial(end_with, os.getpid()) if sys.platform == "linux" else None


def as_ctrl_c() -> None:
    """SIGTERM, and that the terminal has gone, end this process as Ctrl-C does: with what it started."""
    of_ctrl_c = signal.getsignal(signal.SIGINT)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # which nohup says of the latter
            # A shell has what it starts in the background ignore Ctrl-C.
            signal.signal(number, of_ctrl_c if callable(of_ctrl_c) else signal.default_int_handler)


class ServerProcess:
    """One life of a server.

    Attributes:
        url: its plain address.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.url = ""
        self._process = process
        self._ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._readers: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls,
        *arguments: str,
        program: Sequence[str] = ("asr_ws", "serve"),
        tree: Path | None = None,
    ) -> Self:
        """``asr-ws serve`` with these arguments and no other settings, on a free port.

        Args:
            program: another module that takes the same arguments.
            tree: the checkout that it is started in; None: this folder's.
        Raises:
            ServerFailed: it does not listen.
        """
        command = (sys.executable, "-m", *program, "--port", "0", "--state-dir", state_dir(), *arguments)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=pipe,
            stderr=pipe,
            limit=MAX_LINE_BYTES,
            cwd=tree,
            env=without_settings(os.environ),
            preexec_fn=ending_with_us(),
        )
        server = cls(process)
        assert process.stdout is not None
        server._readers.append(asyncio.create_task(server._read_log(), name="the server's log"))
        first = "nothing"
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(LISTEN_LIMIT_S):
                    first = (await process.stdout.readline()).decode()
                    if not first:  # it ends; killed now, it could not be asked for its exit code
                        await server.wait()
        finally:
            if not first.startswith(LISTENING):
                await server.kill()
        if not first.startswith(LISTENING):
            raise server._failed("the server does not listen" + (f": it said {first!r}" if first else ""))
        server.url = first.removeprefix(LISTENING).strip()
        server._readers.append(asyncio.create_task(server._read_out(), name="the server's output"))
        return server

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """Until it ends. Returns: its exit code."""
        return await self._process.wait()

    async def wait_ready(self) -> str:
        """Until it can decode. Returns: on what and by which arithmetic, such as ``cpu, float32``.

        Raises: ServerFailed: it ends, or takes too long.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LOAD_LIMIT_S):
                return await asyncio.shield(self._ready)
        raise self._failed(f"the server is not ready after {LOAD_LIMIT_S:g} s")

    async def stop(self) -> int | None:
        """By SIGTERM. Returns: its exit code; None: it had to be killed."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                return await self.wait()
        except TimeoutError:
            return None
        finally:
            await self.kill()

    async def kill(self) -> None:
        """If it still runs; and what is left of it is cleared away."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self.wait()
        await asyncio.gather(*self._readers)
        marks.forget(self.pid)

    @property
    def log_tail(self) -> str:
        """Its last lines."""
        return "\n".join(self._tail)[-TAIL_CHARACTERS:]

    def _hear(self, line: bytes) -> None:
        """Each line of its log, as it comes."""
        self._tail.append(line.decode(errors="replace").rstrip())

    def _failed(self, message: str) -> ServerFailed:
        return ServerFailed(message, self.log_tail)

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._hear(line)

    async def _read_out(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if (text := line.decode()).startswith(READY) and not self._ready.done():
                self._ready.set_result(text.removeprefix(READY).strip())
        if not self._ready.done():
            await asyncio.gather(self._readers[0])
            self._ready.set_exception(self._failed("the server ended before it was ready"))
            self._ready.exception()  # whether anybody asks or not
