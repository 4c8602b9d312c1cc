"""A peer's virtual environment, and its server in processes of its own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from asr_ws.config import without_settings
from benchmarks.peers.catalogue import Peer
from benchmarks.served import POLL_S

INSTALL_LIMIT_S: Final = 1800.0
START_LIMIT_S: Final = 120.0
BUSY_SHARE: Final = 0.5  # of a core, by which a process is at work
MARK: Final = "installed.json"  # what pip was told, once it has done it
LIBRARIES: Final = ("faster-whisper", "ctranslate2", "torch")


class CannotRun(Exception):
    """With the reason, for the report."""


def install(peer: Peer, folder: Path, show: Callable[[str], None]) -> Path:
    """A virtual environment of its own, unless it is there. Returns: it. Raises: CannotRun."""
    place = folder / peer.environment
    mark = place / MARK
    wanted = json.dumps(peer.packages)
    if mark.exists() and mark.read_text("utf-8") == wanted:
        if peer.package == "asr-ws":  # the code may have changed since
            show("asr-ws from this clone")
            for anew in ((), ("--force-reinstall", "--no-deps")):  # what it needs now, and itself
                _run([python_of(place), "-m", "pip", "install", "--quiet", *anew, *peer.packages])
        return place
    show(f"{peer.environment} with pip")
    _run([sys.executable, "-m", "venv", str(place)])
    _run([python_of(place), "-m", "pip", "install", "--quiet", "--no-cache-dir", *peer.packages])
    mark.write_text(wanted, "utf-8")
    return place


def _run(command: Sequence[str]) -> str:
    """Returns: what it printed. Raises: CannotRun."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT_S).stdout
    except subprocess.TimeoutExpired as error:
        raise CannotRun(f"not installed within {INSTALL_LIMIT_S:g} s") from error
    except subprocess.CalledProcessError as error:
        told = [line for line in error.stderr.splitlines() if "error" in line.lower()] or [
            f"pip ended {error.returncode}"
        ]
        raise CannotRun(f"not installed: {told[0].strip()[:200]}") from error


def bin_of(place: Path) -> Path:
    return place / ("Scripts" if sys.platform == "win32" else "bin")


def python_of(place: Path) -> str:
    return str(bin_of(place) / "python")


def versions_of(peer: Peer, place: Path) -> dict[str, str]:
    """Raises: CannotRun: pip does not run there."""
    listed = _run([python_of(place), "-m", "pip", "list", "--format", "json"])
    found = {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(listed)}
    return {name: found[name.lower()] for name in (peer.package, *LIBRARIES) if name.lower() in found}


def size_mb(place: Path) -> int:
    """All files below it, each once."""
    return round(sum(file.lstat().st_size for file in place.rglob("*") if not file.is_dir()) / 1e6)


class Server:
    """One life of it. Whatever it started dies with it."""

    def __init__(self, peer: Peer, place: Path, model: Path, log: Path) -> None:
        port, port2 = _free_ports(2)
        values = {"bin": bin_of(place), "folder": place, "model": model, "port": port, "port2": port2}
        self.address = peer.address.format(**values)
        self.log = log
        for name, text in peer.files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text, "utf-8")
        own = {"HF_HUB_OFFLINE": "1", **{name: value.format(**values) for name, value in peer.variables.items()}}
        self._port = port
        with log.open("wb") as out:
            self._process = psutil.Popen(
                [each.format(**values) for each in peer.command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**without_settings(os.environ), **own},
                start_new_session=True,
            )
        self._seen: dict[int, psutil.Process] = {}

    async def listens(self) -> None:
        """Raises: CannotRun: it does not, within START_LIMIT_S, or ended."""
        began = time.monotonic()
        host = "localhost" if "localhost" in self.address else "127.0.0.1"
        while time.monotonic() < began + START_LIMIT_S:
            if not self.is_alive:
                raise CannotRun(f"ended when it was started: {self.last_words()}")
            with suppress(OSError):
                _, writer = await asyncio.open_connection(host, self._port)
                writer.close()
                return
            await asyncio.sleep(POLL_S)
        raise CannotRun(f"does not listen within {START_LIMIT_S:g} s: {self.last_words()}")

    def last_words(self) -> str:
        lines = self.log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        return lines[-1][:200]

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """It and what it started that still runs."""
        try:
            found = [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            found = []
        self._seen |= {each.pid: each for each in found}
        return [each for each in self._seen.values() if _runs(each)]

    def rss_mb(self) -> int:
        """Of all of them."""
        total = 0
        for each in self.processes():
            with suppress(psutil.NoSuchProcess):
                total += each.memory_info().rss
        return round(total / 1e6)

    async def decoding(self, watch_s: float = 0.05) -> psutil.Process | None:
        """The process that is at work now; None: none is."""
        before = {each.pid: _used_s(each) for each in self.processes()}
        await asyncio.sleep(watch_s)
        used = [(_used_s(each) - before.get(each.pid, 0.0), each.pid, each) for each in self.processes()]
        most_s, _, process = max(used, default=(0.0, 0, None))
        return process if most_s >= BUSY_SHARE * watch_s else None

    def kill(self) -> None:
        for each in self.processes():
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(list(self._seen.values()), timeout=10)


class Others:
    """What programs that have nothing to do with it take of the machine, since this was made."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began = time.monotonic()
        self._before_s = self._used_s()

    @property
    def cores(self) -> float:
        """How many of them on average."""
        return round((self._used_s() - self._before_s) / (time.monotonic() - self._began), 2)

    def _used_s(self) -> float:
        times = psutil.cpu_times()
        ours = [psutil.Process(), *self._server.processes()]
        return float(sum(times) - times.idle - getattr(times, "iowait", 0.0)) - sum(map(_used_s, ours))


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _used_s(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
