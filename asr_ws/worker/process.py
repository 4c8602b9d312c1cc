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


class WorkerProcess:
    """Made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self._process = process
        self._stderr = bytearray()
        self._listening = asyncio.create_task(self._listen(), name=f"worker {process.pid} stderr")
        self._exit = asyncio.create_task(process.wait(), name=f"worker {process.pid} exit")
        self._exit.add_done_callback(lambda _: asyncio.get_running_loop().call_later(LAST_REPLIES_S, self._end_replies))
        self._kill: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, arguments: Sequence[str], leash: system.Leash) -> WorkerProcess:
        """To be called in the thread that lives as long as the server: on Linux the worker ends with that.

        Args: arguments: of `asr_ws.worker.child`.
        Raises: OSError: no memory, no file descriptors.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the current folder must not shadow modules
            *("-m", "asr_ws.worker.child", *arguments, "--server-pid", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**CALM_THREADS, **os.environ},
            **system.spawn_options(),
        )
        worker = cls(process)
        with contextlib.suppress(OSError):  # it then ends by the end of its input only
            leash.hold(process.pid)
        return worker

    def send(self, request: ipc.DecodeRequest) -> None:
        """Never waits, also where the process does not read: the one request in flight bounds what is buffered."""
        assert self._process.stdin is not None
        self._process.stdin.write(ipc.frame(request))

    async def receive(self) -> ipc.Reply | None:
        """The next reply; None: the process has closed its end. Raises: ValueError: what it sends is no reply."""
        stdout = self._process.stdout
        assert stdout is not None
        try:
            n_bytes = ipc.frame_length(await stdout.readexactly(ipc.LENGTH.size))
            reply: ipc.Reply = ipc.decode_reply(await stdout.readexactly(n_bytes))  # its errors are ValueErrors too
            return reply
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    @property
    def resident_bytes(self) -> int | None:
        """Memory in use; None: it is gone."""
        try:
            resident: int = psutil.Process(self.pid).memory_info().rss
            return resident
        except psutil.Error:
            return None

    @property
    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        return self._stderr.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Ask it to end, by ending its input; kill it if it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._kill_soon()

    def abort(self) -> None:
        """End it with a dump of its stacks, by SIGABRT; kill it if that does not. Windows has no such signal."""
        self._send_signal(signal.SIGABRT if sys.platform != "win32" else signal.SIGTERM)
        self._kill_soon()

    async def ended(self) -> int:
        """Wait until it has. Returns: its exit status."""
        exit_status = await self._exit
        self._forget_kill()
        with contextlib.suppress(TimeoutError):  # whoever inherited its standard error may hold it open
            async with asyncio.timeout(EXIT_GRACE_S):
                await asyncio.shield(self._listening)
        self._let_go()
        return exit_status

    async def kill(self) -> None:
        """At once, and wait for its end."""
        self._forget_kill()
        if self._process.returncode is None:
            self._kill_now()
            await self._exit
        self._let_go()

    def _let_go(self) -> None:
        self._listening.cancel()
        # The pipes, where another process holds their other ends; asyncio gives no public way to this.
        self._process._transport.close()  # type: ignore[attr-defined]

    def _end_replies(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.at_eof():
            self._process.stdout.feed_eof()

    def _kill_soon(self) -> None:
        # Not at once: `Popen.kill` reaps a process that is just dying, and asyncio then reports 255 for it.
        if self._kill is None:
            self._kill = asyncio.get_running_loop().call_later(EXIT_GRACE_S, self._kill_now)

    def _kill_now(self) -> None:
        self._send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def _send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            self._process.send_signal(number)

    def _forget_kill(self) -> None:
        if self._kill is not None:
            self._kill.cancel()

    async def _listen(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while chunk := await stderr.read(READ_BYTES):
            self._stderr += chunk
            del self._stderr[:-LAST_WORDS_BYTES]
            if len(chunk) >= READ_BYTES // 2:
                await asyncio.sleep(FLOOD_PAUSE_S)
