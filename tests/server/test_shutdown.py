"""A server in a process of its own, told to stop: by signals, and by a worker that cannot be kept alive."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from asr_ws.server.app import App
from asr_ws.testing.recognizer import Gate, scripted_worker
from benchmarks.served import is_running
from tests.server.running import HANG_S, MANUAL, SECOND, Client

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

ENDS = ("final", "dropped", "error")
SERVER = """
import sys
from asr_ws.server.app import run
from asr_ws.testing.recognizer import scripted_worker
from pathlib import Path
from tests.server.running import settings
leave = None
exec("".join(sys.argv[4:]))
spec = scripted_worker(Path(sys.argv[1]), load=sys.argv[3])
sys.exit(run(settings(log_format="json", **eval(sys.argv[2])), spec, visitor=leave))
"""
VISITOR = """
import asyncio
from asr_ws.server import app as module
module.GRACE_S = 1000.0
async def leave(app):
    while not app.dispatcher.queue.in_flight:
        await asyncio.sleep(0.01)
    return 7
"""


class Server:
    """Its process; ``app`` is what a `Client` needs of an App."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def listening(self) -> App:
        assert self.process.stdout is not None
        url = (await self.process.stdout.readline()).decode().split()[-1]
        return cast(App, SimpleNamespace(url=url.replace("http", "ws", 1) + "/v1/stream"))

    async def says(self, line: str) -> None:
        assert self.process.stdout is not None
        while line not in (await self.process.stdout.readline()).decode():
            assert not self.process.stdout.at_eof()

    async def events(self) -> list[dict[str, Any]]:
        """Its log, to its end."""
        assert self.process.stderr is not None
        return [json.loads(line) for line in (await self.process.stderr.read()).splitlines()]

    def worker(self) -> int:
        [worker] = psutil.Process(self.process.pid).children()
        return worker.pid


@asynccontextmanager
async def server(folder: Path, load: str = "", *, visit: str = "", **changes: Any) -> AsyncIterator[Server]:
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVER,
        str(folder),
        repr(changes),
        load,
        visit,
        **pipes,  # type: ignore[arg-type]
    )
    try:
        async with asyncio.timeout(HANG_S):
            yield Server(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_what_is_admitted_is_finished_then_it_ends_with_0(tmp_path: Path, number: int) -> None:
    async with Gate() as gate, server(tmp_path) as running:
        app = await running.listening()
        async with Client(app) as client:
            await running.says("  ready ")
            await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"}, SECOND, {"type": "commit"})
            await client.until("accepted", position=1)
            await client.send(SECOND)
            await client.until("speech_started", utterance="u3")
            decode = await gate.entered()
            running.process.send_signal(number)
            await client.until("state", state="draining")
            gate.release(decode)
            await gate.open()
            assert await client.rest() == 1012
            told = [(event["type"], event["utterance"]) for event in client.events if event["type"] in ENDS]
            assert told == [("dropped", "u3"), ("final", "u1"), ("final", "u2")]
        assert await running.process.wait() == 0


async def test_second_signal_stops_at_once_and_still_every_utterance_has_its_outcome(tmp_path: Path) -> None:
    async with Gate() as gate, server(tmp_path) as running:
        app = await running.listening()
        async with Client(app) as client:
            await running.says("  ready ")
            await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"}, SECOND, {"type": "commit"})
            await gate.entered()  # and never let go
            worker = running.worker()
            running.process.send_signal(signal.SIGTERM)
            await client.until("state", state="draining")
            running.process.send_signal(signal.SIGTERM)
            assert await client.rest() == 1012
            told = [(event["type"], event["utterance"]) for event in client.events if event["type"] in ENDS]
            assert sorted(told) == [("dropped", "u1"), ("dropped", "u2")]
        assert await running.process.wait() == 0
        assert not is_running(worker)


async def test_first_signal_in_a_drain_that_none_began_stops_at_once(tmp_path: Path) -> None:
    """Regression: it was taken for the one that begins a drain."""
    async with Gate() as gate, server(tmp_path, visit=VISITOR) as running:
        app = await running.listening()
        await running.says("  ready ")
        async with Client(app) as client:
            await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
            await client.until("state", state="draining")
            running.process.send_signal(signal.SIGINT)
            assert await client.rest() == 1012
            assert [event["utterance"] for event in client.events if event["type"] == "dropped"] == ["u1"]
        assert await running.process.wait() == 7


async def test_faults_are_known_by_name_also_where_the_server_was_started_with_sigchld_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # which a child inherits
    try:
        async with server(tmp_path) as running:
            signal.signal(signal.SIGCHLD, before)
            app = await running.listening()
            async with Client(app) as client:
                await running.says("  ready ")
                os.kill(running.worker(), signal.SIGSEGV)
                await client.until("state", state="restarting")
                await client.until("state", state="ready")
            running.process.send_signal(signal.SIGTERM)
            died = [event["cause"] for event in await running.events() if event["event"] == "worker.died"]
            assert died == ["segv"]
            assert await running.process.wait() == 0
    finally:
        signal.signal(signal.SIGCHLD, before)


async def test_signal_that_comes_after_the_end_does_not_change_it(tmp_path: Path) -> None:
    """As of a parent that passes on what the whole terminal has had."""
    async with server(tmp_path) as running:
        await running.listening()
        running.process.send_signal(signal.SIGINT)
        while running.process.returncode is None:
            with suppress(ProcessLookupError):  # not by asyncio, which may reap it at this and lose its exit status
                os.kill(running.process.pid, signal.SIGTERM)
            await asyncio.sleep(0.005)
        assert running.process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="how much a pipe holds")
async def test_standard_output_that_nobody_reads_holds_nothing_up(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVER, str(tmp_path), "{}", ""), stdout=writing, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(HANG_S):
            assert process.stderr is not None
            while b"worker.ready" not in await process.stderr.readline():
                assert not process.stderr.at_eof()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        os.close(reading)
        os.close(writing)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_ctrl_c_reaches_the_whole_terminal_and_the_worker_still_finishes(tmp_path: Path) -> None:
    """As systemd and process groups do it too: the signal goes to the worker before the server."""
    async with Gate() as gate, server(tmp_path) as running:
        app = await running.listening()
        async with Client(app) as client:
            await running.says("  ready ")
            await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
            decode = await gate.entered()
            for number in (signal.SIGINT, signal.SIGTERM):
                psutil.Process(running.worker()).send_signal(number)
            running.process.send_signal(signal.SIGINT)
            await client.until("state", state="draining")
            gate.release(decode)
            assert await client.rest() == 1012
            assert "final" in client.types()
        assert await running.process.wait() == 0


async def test_crash_loop_ends_it_with_70_where_that_is_asked_for(tmp_path: Path) -> None:
    async with server(tmp_path, load="raise no memory", on_crash_loop="exit") as running:
        app = await running.listening()
        async with Client(app) as client:
            assert await client.rest() == 1012
            assert {"starting", "draining"} <= {e.get("state") for e in client.events}
        events = await running.events()
        assert await running.process.wait() == 70
        assert [event["cause"] for event in events if event["event"] == "worker.died"] == ["cannot_load"] * 3


async def test_crash_loop_is_stayed_through_otherwise(tmp_path: Path) -> None:
    async with server(tmp_path, load="raise no memory") as running:
        app = await running.listening()
        async with Client(app) as client:
            await client.until("state", state="unavailable")
            await client.send(MANUAL, SECOND, {"type": "commit"})
            busy = await client.until("busy")
            assert (busy["reason"], busy["status"]) == ("unavailable", 503)
            scripted_worker(tmp_path)  # the operator has done something
            await client.until("state", state="ready")
            await asyncio.sleep(busy["retry_after_ms"] / 1000)
            await client.send({"type": "retry", "utterance": "u1"})
            await client.until("final", utterance="u1")
        running.process.send_signal(signal.SIGTERM)
        assert await running.process.wait() == 0


async def test_port_is_free_at_once_when_the_server_is_killed(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        app = await running.listening()
        async with Client(app) as client:
            await running.says("  ready ")
            worker = running.worker()
            running.process.kill()
            assert await client.rest() == 1006
        port = int(app.url.rpartition(":")[2].partition("/")[0])
        async with server(tmp_path, port=port) as another:
            assert (await another.listening()).url == app.url
            await another.says("  ready ")
        while is_running(worker):
            await asyncio.sleep(0.01)
