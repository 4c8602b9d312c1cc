"""A server in a process of its own, as its users run it: started, watched from outside, and stopped by a signal."""

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

from asr_ws.testing import marks
from benchmarks.common import state_dir, within

LISTEN_LIMIT_S: Final = 60.0
READY_LIMIT_S: Final = 120.0  # a load, after some that failed
STOP_LIMIT_S: Final = 20.0  # the server's grace time, 10 s, and what comes after it
STATS_LIMIT_S: Final = 10.0
POLL_S: Final = 0.1
MAX_LINE_BYTES: Final = 2**20  # of its log
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


class Served:
    """One life of a server.

    Attributes:
        url: its plain address.
        log: how often each event was logged, TRACEBACK, STACKS, and LIBRARY_ERROR.
        clients: by address, the sessions that were opened.
        of_jobs: the lines of its log that are about them.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.url = ""
        self.log: Counter[str] = Counter()
        self.clients: Counter[str] = Counter()
        self.of_jobs: list[dict[str, Any]] = []
        self._process = process
        self._facts = psutil.Process(process.pid)
        self._readers: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls, *arguments: str, program: Sequence[str] = ("asr_ws", "serve"), tree: Path | None = None
    ) -> Self:
        """``asr-ws serve`` with these arguments, on a free port.

        Args:
            program: another module that takes the same arguments.
            tree: the checkout that it is started in; None: this folder's.
        Raises:
            click.ClickException: it does not listen.
        """
        own = ("--port", "0", "--log-format", "json", "--state-dir", state_dir())
        command = (sys.executable, "-m", *program, *own, *arguments)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stdout=pipe, stderr=pipe, limit=MAX_LINE_BYTES, cwd=tree
        )
        server = cls(process)
        assert process.stdout is not None
        server._readers.append(asyncio.create_task(server._read_log(), name="the server's log"))
        try:
            async with within(LISTEN_LIMIT_S, "the server to listen"):
                first = (await process.stdout.readline()).decode()
            if not first.startswith("listening on "):
                raise click.ClickException(f"the server does not listen: it said {first!r}")
        except BaseException:
            await server.kill()
            raise
        server.url = first.removeprefix("listening on ").strip()
        server._readers.append(asyncio.create_task(server._read_out(), name="the server's output"))
        return server

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """Until it ends. Returns: its exit code."""
        return await self._process.wait()

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

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
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

    async def _read_out(self) -> None:
        assert self._process.stdout is not None
        async for _ in self._process.stdout:
            pass


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
