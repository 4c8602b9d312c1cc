"""What a service manager is told, as systemd would hear it: by datagrams to a socket of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from asr_ws.server.notify import ServiceManager
from tests.server.running import HANG_S
from tests.server.test_shutdown import server

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no sockets of that kind")
Facts = dict[str, str]


class Systemd:
    """Its end of the socket; unlike the real one it does nothing about what it hears."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    async def hears(self) -> Facts:
        datagram = await asyncio.get_running_loop().sock_recv(self.socket, 65_536)
        return dict(line.split("=", 1) for line in datagram.decode().split("\n"))

    async def hears_of(self, state: str) -> Facts:
        while not (facts := await self.hears())["STATUS"].startswith(state):
            pass
        return facts


@pytest.fixture
def address() -> Iterator[str]:
    with TemporaryDirectory() as folder:  # shorter than tmp_path: 108 bytes are the limit
        yield str(Path(folder) / "notify")


@pytest.fixture
def systemd(address: str) -> Iterator[Systemd]:
    systemd = Systemd(address)
    with systemd.socket:
        yield systemd


async def test_a_service_manager_is_told_of_each_state_and_of_the_end(
    tmp_path: Path, address: str, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    async with server(tmp_path, model="of a name\nin=two lines") as running:
        app = await running.listening()
        at = app.url.replace("ws", "http", 1).removesuffix("/v1/stream")
        assert await systemd.hears() == {"READY": "1", "STATUS": f"starting, at {at}", "WATCHDOG": "1"}
        status = f"ready: of a name in=two lines, cpu, default, at {at}"
        assert await systemd.hears_of("ready") == {"READY": "1", "STATUS": status, "WATCHDOG": "1"}
        os.kill(running.worker(), signal.SIGKILL)
        await systemd.hears_of("restarting")
        await systemd.hears_of("ready")
        running.process.send_signal(signal.SIGTERM)
        assert await systemd.hears() == {"STOPPING": "1", "STATUS": "draining"}
        assert await running.process.wait() == 0


async def test_the_watchdog_hears_from_the_loop_while_nothing_changes(
    tmp_path: Path, address: str, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    async with server(tmp_path):
        ready = await systemd.hears_of("ready")
        assert [await systemd.hears() for _ in range(3)] == [ready] * 3


def fill(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full, suppress(BlockingIOError):
        full.setblocking(False)
        while True:
            full.sendto(b"WATCHDOG=1", address)


@pytest.mark.parametrize("left", ["nobody", "a socket that is full"])
async def test_a_manager_that_does_not_listen_hurts_nobody(
    tmp_path: Path, address: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unread:
        if left != "nobody":
            unread.bind(address)
            fill(address)
        async with server(tmp_path) as running:
            await running.listening()
            await running.says("  ready ")
            running.process.send_signal(signal.SIGTERM)
            assert await running.process.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="addresses without a file")
async def test_an_abstract_address_and_no_child_that_knows_it() -> None:
    name = f"asr-ws-tests-{os.getpid()}"
    systemd = Systemd(f"\0{name}")
    environ = {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    manager = ServiceManager(environ)
    try:
        manager.stopping()
        async with asyncio.timeout(HANG_S):
            assert await systemd.hears() == {"STOPPING": "1", "STATUS": "draining"}
    finally:
        manager.close()
        systemd.socket.close()
    assert manager.every_s == 15
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "watchdog",
    [
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "9" * 400},
        {"WATCHDOG_USEC": "9" * 5000},
    ],
)
def test_a_watchdog_that_is_not_ours_or_none_is_not_fed(watchdog: dict[str, str]) -> None:
    assert ServiceManager({**watchdog}).every_s is None


def test_a_watchdog_of_no_time_does_not_keep_the_loop_busy() -> None:
    assert ServiceManager({"WATCHDOG_USEC": "1"}).every_s == 0.1
