"""A server in a process of its own, as its users run it, watched from outside."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import click
import psutil

from asr_ws.errors import ServerFailed
from asr_ws.testing.served import ServerProcess
from benchmarks.common import within

READY_LIMIT_S: Final = 120.0  # a load, after some that failed
STATS_LIMIT_S: Final = 10.0
POLL_S: Final = 0.1
TRACEBACK: Final = "traceback"  # counted with the log's events: something that nobody caught
STACKS: Final = "stacks"  # likewise: its event loop stood still for seconds
LIBRARY_ERROR: Final = "library.logged error"  # likewise, where asyncio or websockets caught it


@dataclass(frozen=True, slots=True)
class Sample:
    """How much the server has at one moment; ``n_fds`` are handles on Windows."""

    at_s: float  # of the loop's clock
    rss_mb: float
    n_fds: int
    n_threads: int
    n_workers: int


class Served(ServerProcess):
    """One life of a server.

    Attributes:
        log: how often each event was logged, TRACEBACK, STACKS, and LIBRARY_ERROR.
        clients: by address, the sessions that were opened.
        of_jobs: the lines of its log that are about them.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process)
        self.log: Counter[str] = Counter()
        self.clients: Counter[str] = Counter()
        self.of_jobs: list[dict[str, Any]] = []
        self._facts = psutil.Process(process.pid)

    @classmethod
    async def start(
        cls,
        *arguments: str,
        program: Sequence[str] = ("asr_ws", "serve"),
        tree: Path | None = None,
    ) -> Self:
        """As `ServerProcess.start`. Raises: click.ClickException: it does not listen."""
        try:
            return await super().start("--log-format", "json", *arguments, program=program, tree=tree)
        except ServerFailed as error:
            raise click.ClickException(str(error)) from error

    async def stats(self) -> dict[str, Any]:
        """``/v1/stats``. Raises: OSError: it does not answer."""

        def fetch() -> dict[str, Any]:
            with urllib.request.urlopen(f"{self.url}/v1/stats", timeout=STATS_LIMIT_S) as answer:
                stats: dict[str, Any] = json.load(answer)
                return stats

        return await asyncio.to_thread(fetch)

    async def until(self, **values: object) -> dict[str, Any]:
        """As `stats_with`, of this one."""
        return await stats_with(lambda: self, **values)

    def sample(self) -> Sample:
        """Raises: psutil.NoSuchProcess: it has ended."""
        with self._facts.oneshot():
            n_fds = count_fds(self._facts)
            rss_mb, n_threads = self._facts.memory_info().rss / 1e6, self._facts.num_threads()
        alive = 0
        for child in self._facts.children():
            with suppress(psutil.NoSuchProcess):
                alive += child.status() != psutil.STATUS_ZOMBIE
        return Sample(asyncio.get_running_loop().time(), rss_mb, n_fds, n_threads, alive)

    def _hear(self, line: bytes) -> None:
        super()._hear(line)
        if line.startswith(b"Traceback (most recent call last)"):
            self.log[TRACEBACK] += 1
        elif line.startswith(b"Timeout ("):
            self.log[STACKS] += 1
        elif line.startswith(b"{"):
            with suppress(ValueError):  # cut by what else is written there
                said = json.loads(line)
                self.log[str(said.get("event"))] += 1
                self.of_jobs += [said] if str(said.get("event")).startswith("job") else []
                self.clients.update([said["client"]] if said.get("event") == "session.opened" else [])
                self.log[LIBRARY_ERROR] += (said.get("event"), said.get("level")) == ("library.logged", "error")


def count_fds(process: psutil.Process) -> int:
    """Open file descriptors; handles on Windows."""
    count: int = getattr(process, "num_handles" if sys.platform == "win32" else "num_fds")()
    return count


def is_running(pid: int) -> bool:
    """A zombie is gone: who inherited it only has not asked yet."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def send_signal(pid: int, name: str) -> None:
    """``SEGV``, ``KILL`` or ``STOP``, on Windows as near to it as can be. Raises: ProcessLookupError: it is gone."""
    try:
        match name:
            case "STOP":
                psutil.Process(pid).suspend()
            case "KILL":
                psutil.Process(pid).kill()
            case _:
                os.kill(pid, signal.Signals[f"SIG{name}"])
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(pid) from error


async def stats_with(server: Callable[[], Served], **values: object) -> dict[str, Any]:
    """The first stats that have these values. Raises: click.ClickException: they never do.

    Args:
        server: the one that there is by then; it may end, and be replaced.
    """
    async with within(READY_LIMIT_S, f"the server's {values}"):
        while True:
            with suppress(OSError):
                if values.items() <= (stats := await server().stats()).items():
                    return stats
            await asyncio.sleep(POLL_S)
