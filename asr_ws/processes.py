"""A child process as the server sees it: its pipes, its last words, its end. The worker is one; each upload has one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Self

from asr_ws.worker import system

EXIT_GRACE_S = 1.0  # from being told to end to being killed
LAST_WORDS_BYTES = 8192  # of standard error: a stack dump
READ_BYTES = 65_536  # a pipe's buffer
FLOOD_PAUSE_S = 0.01  # after a full buffer: what a process prints may cost it time, and the server none to speak of


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """asyncio's own, which also tells of the end of the process by itself: `asyncio.subprocess.Process.wait` waits for
    its pipes too, which another process may hold, or a reader may have left full.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=READ_BYTES, loop=loop)
        self.exited: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()  # our ends of the pipes
        self.abandoned = False
        self._open = {0, 1, 2}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.abandoned:
            transport.close()  # which kills it; nobody is told of its end
            self.exited.get_loop().call_later(EXIT_GRACE_S, transport.get_extra_info("subprocess").poll)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        super().pipe_connection_lost(fd, exc)
        self._open.discard(fd)
        if not self._open and not self.closed.done():
            self.closed.set_result(None)

    def process_exited(self) -> None:
        super().process_exited()
        if not self.exited.done():
            self.exited.set_result(None)


class ChildProcess:
    """Made by `start`."""

    def __init__(self, transport: asyncio.SubprocessTransport, protocol: _Protocol) -> None:
        assert protocol.stdin is not None
        assert protocol.stdout is not None
        assert protocol.stderr is not None
        loop = asyncio.get_running_loop()
        self.pid = transport.get_pid()
        self.stdin, self.stdout = protocol.stdin, protocol.stdout
        self._transport = transport
        self._stderr = protocol.stderr
        self._exited, self._closed = protocol.exited, protocol.closed
        self._last_bytes = bytearray()
        self._kill: asyncio.TimerHandle | None = None
        self._listening = loop.create_task(self._listen(), name=f"process {self.pid} stderr")

    @classmethod
    async def start(cls, module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Self:
        """To be called in the thread that lives as long as the server: on Linux the process ends with that.

        Args:
            module: a package of ours, whose ``__main__`` takes the server's process id before the arguments.
            environment: what is added to this process's own, which wins.
        Raises:
            OSError, RuntimeError: no memory, no file descriptors, no threads.
        """
        loop = asyncio.get_running_loop()
        protocol = _Protocol(loop)
        try:
            transport, _ = await loop.subprocess_exec(
                lambda: protocol,
                sys.executable,
                "-P",  # the current folder must not shadow modules
                *("-m", module, str(os.getpid()), *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**(environment or {}), **os.environ},
                cwd=_folder(),
                **system.spawn_options(),
            )
        except BaseException:
            protocol.abandoned = True  # where asyncio cannot watch it, it runs all the same
            raise
        return cls(transport, protocol)

    @property
    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        return self._last_bytes.decode("utf-8", "replace").replace("\r\n", "\n").strip()

    def close(self) -> None:
        """Ask it to end, by ending its input; kill it if it does not."""
        self.stdin.close()
        self._kill_soon()

    def abort(self) -> None:
        """End it with a dump of its stacks, by SIGABRT; kill it if that does not. Windows has no such signal."""
        self._send_signal(signal.SIGABRT if sys.platform != "win32" else signal.SIGTERM)
        self._kill_soon()

    @property
    def has_ended(self) -> bool:
        return self._exited.done()

    async def ended(self) -> int:
        """Wait until it has, for as long as the system takes. Returns: its exit status."""
        await asyncio.wait([self._exited])  # which leaves it what it is, where the waiting is cancelled
        with contextlib.suppress(TimeoutError):  # whoever inherited its standard error may hold it open
            async with asyncio.timeout(EXIT_GRACE_S):
                await asyncio.shield(self._listening)
        exit_status = self._transport.get_returncode()
        assert exit_status is not None
        return exit_status

    async def kill(self) -> None:
        """At once; waits a little for its end, but not for ever: the system may be unable to end it."""
        if self._kill is not None:
            self._kill.cancel()
        try:
            if not self._exited.done():
                self._kill_now()
                await asyncio.wait([self._exited], timeout=EXIT_GRACE_S)
        finally:
            self._listening.cancel()
            if self.stdin.transport.get_write_buffer_size():
                self.stdin.transport.abort()  # which would wait for what has not been read
            self._transport.close()  # the pipes too, whoever else holds their other ends
        await asyncio.wait([self._closed], timeout=EXIT_GRACE_S)

    def _kill_soon(self) -> None:
        if self._kill is None:
            self._kill = asyncio.get_running_loop().call_later(EXIT_GRACE_S, self._kill_now)

    def _kill_now(self) -> None:
        self._send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def _send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it ended just now
            if sys.platform == "win32":
                self._transport.send_signal(number)
            elif self._transport.get_returncode() is None:
                # Not by the transport: before Python 3.13 that reaps a process that is just dying, and its exit status
                # is lost. But a thread of asyncio's may have reaped it already, and its pid be another's.
                if sys.platform != "darwin":
                    os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                os.kill(self.pid, number)

    async def _listen(self) -> None:
        while chunk := await self._stderr.read(READ_BYTES):
            self._last_bytes += chunk
            del self._last_bytes[:-LAST_WORDS_BYTES]
            if len(chunk) >= READ_BYTES // 2:
                await asyncio.sleep(FLOOD_PAUSE_S)


def _folder() -> str:
    """The server's own, which a relative PYTHONPATH means; one that is always there, where that has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return os.path.abspath(os.sep)
