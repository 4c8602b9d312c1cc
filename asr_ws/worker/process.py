"""One worker process as its supervisor sees it: a child process that takes requests and replies to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Self

import psutil

from asr_ws.processes import ChildProcess
from asr_ws.worker import ipc

LAST_REPLIES_S = 0.05  # from its end to that of its replies, where another process has inherited the pipe

# What libraries are told that know it by their environment alone, where the user has not said otherwise.
ENVIRONMENT: Final = {
    # The threads of a decode sleep while they wait for each other. OpenMP's own default is to spin a while: where
    # another process wants a core (this server, say), against the one that they wait for, and a decode takes longer.
    # `python -m benchmarks.contention` shows by how much.
    "OMP_WAIT_POLICY": "passive",
    # oneDNN keeps what it has prepared for each shape that it saw, 1024 of them, and each length of audio has its own:
    # in sixty utterances tiny.en grew by more than twice as much as with this, and was no quicker.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}


class WorkerProcess(ChildProcess):
    """Made by `launch`."""

    def __init__(self, *made_of: Any) -> None:
        super().__init__(*made_of)
        loop = asyncio.get_running_loop()
        self._exited.add_done_callback(lambda _: loop.call_later(LAST_REPLIES_S, self._end_replies))

    @classmethod
    async def launch(cls, arguments: Sequence[str]) -> Self:
        """`start`, of `asr_ws.worker`."""
        return await cls.start("asr_ws.worker", arguments, ENVIRONMENT)

    def send(self, request: ipc.DecodeRequest) -> None:
        """Never waits, also where the process does not read: the one request in flight bounds what is buffered."""
        self.stdin.write(ipc.frame(request))

    async def receive(self) -> ipc.Reply | None:
        """The next reply; None: the process has ended, or closed its end. Raises: ipc.Garbled: that is no reply."""
        try:
            n_bytes = ipc.frame_length(await self.stdout.readexactly(ipc.LENGTH.size))
            return ipc.decode_reply(await self.stdout.readexactly(n_bytes))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def _end_replies(self) -> None:
        if (replies := self._transport.get_pipe_transport(1)) is not None:
            replies.close()


def resident_bytes(pid: int) -> int | None:
    """Memory that a process uses; None: it cannot be told, or the process is gone."""
    try:
        resident: int = psutil.Process(pid).memory_info().rss
        return resident
    except (psutil.Error, OSError):  # out of file descriptors, which is no reason to end
        return None
