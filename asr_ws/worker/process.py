"""One worker process as its supervisor sees it: its pipes, its last words, its memory, and how it is ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

import psutil

from asr_ws.worker import ipc, system

EXIT_GRACE_S = 1.0  # from being told to end to being killed
LAST_REPLIES_S = 0.05  # from its end to that of its replies, where another process has inherited the pipe
LAST_WORDS_BYTES = 8192  # of standard error: a stack dump
READ_BYTES = 65_536  # a pipe's buffer
FLOOD_PAUSE_S = 0.01  # after a full buffer: what a process prints may cost it time, and the server none to speak of

# The threads of a decode sleep while they wait for each other. OpenMP's own default is to spin a while: where another
# process wants a core (this server, say), against the one that they wait for, and a decode takes several times as long.
# `python -m benchmarks.contention` shows it.
CALM_THREADS: Final = {"OMP_WAIT_POLICY": "passive"}


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """asyncio's own, which also tells of the end of the process by itself: `asyncio.subprocess.Process.wait` waits for
    its pipes too, which another process may hold, or a reader may have left full.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=READ_BYTES, loop=loop)
        self.exited: asyncio.Future[None] = loop.create_future()
        self.abandoned = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.abandoned:
            transport.close()  # which kills it; nobody is told of its end
            self.exited.get_loop().call_later(EXIT_GRACE_S, transport.get_extra_info("subprocess").poll)

    def process_exited(self) -> None:
        super().process_exited()
        if not self.exited.done():
            self.exited.set_result(None)


class WorkerProcess:
    """Made by `start`."""

    def __init__(self, transport: asyncio.SubprocessTransport, protocol: _Protocol) -> None:
        assert protocol.stdin is not None
        assert protocol.stdout is not None
        assert protocol.stderr is not None
        loop = asyncio.get_running_loop()
        self.pid = transport.get_pid()
        self._transport = transport
        self._stdin, self._stdout, self._stderr = protocol.stdin, protocol.stdout, protocol.stderr
        self._exited = protocol.exited
        self._exited.add_done_callback(lambda _: loop.call_later(LAST_REPLIES_S, self._end_replies))
        self._last_bytes = bytearray()
        self._kill: asyncio.TimerHandle | None = None
        self._listening = loop.create_task(self._listen(), name=f"worker {self.pid} stderr")

    @classmethod
    async def start(cls, arguments: Sequence[str]) -> WorkerProcess:
        """To be called in the thread that lives as long as the server: on Linux the worker ends with that.

        Args: arguments: of `asr_ws.worker`, behind the server's process id.
        Raises: OSError, RuntimeError: no memory, no file descriptors, no threads.
        """
        loop = asyncio.get_running_loop()
        protocol = _Protocol(loop)
        try:
            transport, _ = await loop.subprocess_exec(
                lambda: protocol,
                sys.executable,
                "-P",  # the current folder must not shadow modules
                *("-m", "asr_ws.worker", str(os.getpid()), *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**CALM_THREADS, **os.environ},
                cwd=_folder(),
                **system.spawn_options(),
            )
        except BaseException:
            protocol.abandoned = True  # where asyncio cannot watch it, it runs all the same
            raise
        return cls(transport, protocol)

    def send(self, request: ipc.DecodeRequest) -> None:
        """Never waits, also where the process does not read: the one request in flight bounds what is buffered."""
        self._stdin.write(ipc.frame(request))

    async def receive(self) -> ipc.Reply | None:
        """The next reply; None: the process has ended, or closed its end. Raises: ipc.Garbled: that is no reply."""
        try:
            n_bytes = ipc.frame_length(await self._stdout.readexactly(ipc.LENGTH.size))
            return ipc.decode_reply(await self._stdout.readexactly(n_bytes))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    @property
    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        return self._last_bytes.decode("utf-8", "replace").replace("\r\n", "\n").strip()

    def close(self) -> None:
        """Ask it to end, by ending its input; kill it if it does not."""
        self._stdin.close()
        self._kill_soon()

    def abort(self) -> None:
        """End it with a dump of its stacks, by SIGABRT; kill it if that does not. Windows has no such signal."""
        self._send_signal(signal.SIGABRT if sys.platform != "win32" else signal.SIGTERM)
        self._kill_soon()

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
        if not self._exited.done():
            self._kill_now()
            await asyncio.wait([self._exited], timeout=EXIT_GRACE_S)
        self._listening.cancel()
        self._transport.close()  # the pipes too, whoever else holds their other ends

    def _end_replies(self) -> None:
        if (replies := self._transport.get_pipe_transport(1)) is not None:
            replies.close()

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


def resident_bytes(pid: int) -> int | None:
    """Memory that a process uses; None: it cannot be told, or the process is gone."""
    try:
        resident: int = psutil.Process(pid).memory_info().rss
        return resident
    except (psutil.Error, OSError):  # out of file descriptors, which is no reason to end
        return None
