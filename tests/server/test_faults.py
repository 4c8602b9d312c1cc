"""What a client is told when the worker dies, hangs, grows or does not come, and when clients themselves vanish."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from asr_ws.core.types import ServiceState
from asr_ws.server.app import App
from asr_ws.testing import marks
from asr_ws.testing.recognizer import Gate, scripted_worker
from asr_ws.worker import supervisor
from asr_ws.worker.supervisor import Limits, WorkerSpec
from asr_ws.worker.system import Cause
from tests.server.running import MANUAL, SECOND, Client, get, serving, stats

IMPATIENT = Limits(decode_s=0.5, decode_estimates=0.0, first_decode_s=0.0, n_first_decodes=0)
COMMIT, END = {"type": "commit"}, {"type": "end"}


@asynccontextmanager
async def speaking(app: App, prompt: str, n: int = 1, **start: Any) -> AsyncIterator[Client]:
    """A session that has committed that many utterances, each a second long."""
    async with Client(app) as client:
        await client.send({**MANUAL, "prompt": prompt, **start}, *[SECOND, COMMIT] * n)
        yield client


@pytest.fixture(autouse=True)
def nothing_committed_once() -> None:
    marks.forget(os.getpid())


def told(client: Client, *types: str) -> list[dict[str, Any]]:
    return [event for event in client.events if event["type"] in types]


async def settled(app: App) -> None:
    """Until nothing is held of anybody."""
    while app.dispatcher.queue.depth or app.dispatcher.queue.in_flight or app.listener.n_sessions:
        await asyncio.sleep(0)


# ---------------------------------------------------------------- deaths


async def test_text_that_was_there_before_the_death_is_a_final_and_says_so(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, speaking(app, "late-crash ABRT") as client:
        await client.send(END)
        assert await client.rest() == 1000
        assert [(e["text"], e["recovered"], e["attempt"]) for e in told(client, "final")] == [
            ("country 16000", True, 1)
        ]
        await app.dispatcher.wait_ready()
        assert app.supervisor.restarts == {Cause.ABRT: 1}


async def test_half_a_text_is_decoded_again(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": "once a mid-crash ABRT"}, 3 * SECOND, END)
        assert await client.rest() == 1000
        assert [(e["text"], e["recovered"]) for e in told(client, "final")] == [("country 48000", False)]


async def test_hung_decode_is_handed_back_and_the_second_time_it_is_poison(scripted: WorkerSpec) -> None:
    """Those behind it keep their places, and are served by the next worker."""
    async with (
        serving(replace(scripted, limits=IMPATIENT)) as app,
        speaking(app, "hang") as client,
        speaking(app, "say mine", 2) as neighbour,
    ):
        hung = await client.until("retry")
        assert (hung["reason"], hung["status"], hung["attempt"], hung["retryable"]) == ("worker_hung", 503, 1, True)
        assert hung["held_ms"] > 0
        await neighbour.send(END)
        assert await neighbour.rest() == 1000
        assert [event["utterance"] for event in told(neighbour, "final")] == ["u1", "u2"]
        await asyncio.sleep(hung["retry_after_ms"] / 1000)
        await client.send({"type": "retry", "utterance": "u1"})
        poison = await client.until("error")
        assert (poison["code"], poison["utterance"], poison["fatal"]) == ("poison_audio", "u1", False)
        await client.send(END)
        assert await client.rest() == 1000
        assert (client.events[-1]["refused_ms"], client.events[-1]["lost_ms"]) == (1000, 0)
        await app.dispatcher.wait_ready()
        assert app.supervisor.restarts == {Cause.HUNG: 2}


async def test_poison_of_three_sessions_at_once_costs_their_neighbour_nothing(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "backoff_s", lambda n_deaths: 0.0)
    async with (
        serving(scripted, queue_capacity=20) as app,
        speaking(app, "crash SEGV") as one,
        speaking(app, "crash ABRT") as two,
        speaking(app, "crash SEGV") as three,
        speaking(app, "say mine") as neighbour,
    ):
        for client in (one, two, three, neighbour):
            await client.send(END)
        for client in (one, two, three):
            assert await client.rest() == 1000
            assert [event["code"] for event in told(client, "error")] == ["poison_audio"]
        assert await neighbour.rest() == 1000
        assert [event["text"] for event in told(neighbour, "final")] == ["mine"]
        await app.dispatcher.wait_ready()
        assert app.supervisor.n_restarts == 6, "two for each"


async def test_error_that_sticks_to_the_process_is_a_death_like_any_other(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, speaking(app, "once a cuda") as client:
        assert (await client.until("final"))["text"] == "country 16000"
        await app.dispatcher.wait_ready()
        assert app.supervisor.restarts == {Cause.CUDA: 1}


async def test_worker_that_has_grown_is_replaced_and_nobody_is_refused_for_it(scripted: WorkerSpec) -> None:
    async with (
        serving(replace(scripted, max_bytes=300_000_000)) as app,
        speaking(app, "leak 250", 3) as client,
    ):
        await client.send(END)
        assert await client.rest() == 1000
        assert len(told(client, "final")) == 3
        assert not told(client, "busy", "retry", "error")
        await app.dispatcher.wait_ready()
        assert app.supervisor.restarts.keys() == {Cause.GROWN}
        states = [event["state"] for event in told(client, "state")]
        assert states[:2] == ["restarting", "ready"]


# ---------------------------------------------------------------- workers that do not come


async def test_model_that_cannot_be_loaded_is_said_to_all_and_not_tried_again(tmp_path: Path) -> None:
    spec = scripted_worker(tmp_path, load="no such fault")  # a ValueError: no retry can help
    async with serving(spec, ready=False) as app:
        await app.dispatcher.wait_for(ServiceState.UNAVAILABLE)
        assert await get(app, "/readyz") == (503, "unavailable\n")
        assert (await get(app, "/livez"))[0] == 200
        async with speaking(app, "") as client:
            busy = await client.until("busy")
            assert (busy["reason"], busy["status"]) == ("unavailable", 503)
            assert 500 <= busy["retry_after_ms"] <= 1500
        assert app.supervisor.n_restarts == 0


async def test_starts_of_a_crash_loop_are_as_many_as_the_backoff_lets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[int] = []

    def backoff_s(n_deaths: int) -> float:
        delays.append(n_deaths)
        return 0.0 if n_deaths < 4 else 600.0

    monkeypatch.setattr(supervisor, "backoff_s", backoff_s)
    async with serving(scripted_worker(tmp_path, load="crash SEGV"), ready=False) as app:
        while app.supervisor.n_restarts < 4:
            await asyncio.sleep(0.01)
        assert delays == [1, 2, 3, 4]
        assert app.dispatcher.queue.state is ServiceState.UNAVAILABLE
        async with speaking(app, "") as client:
            busy = await client.until("busy")
            assert (busy["reason"], busy["estimated_wait_ms"] > 500_000) == ("unavailable", True), "an honest estimate"


async def test_slow_load_is_waited_for_and_clients_are_told_so(tmp_path: Path) -> None:
    async with Gate() as gate, serving(scripted_worker(tmp_path, load=gate.script), ready=False) as app:
        load = await gate.entered()
        async with speaking(app, "") as client:
            busy = await client.until("busy")
            assert (busy["reason"], busy["status"]) == ("starting", 503)
            assert await get(app, "/readyz") == (503, "starting\n")
            gate.release(load)
            await client.until("state", state="ready")
            await asyncio.sleep(busy["retry_after_ms"] / 1000)
            await client.send({"type": "retry", "utterance": "u1"})
            await client.until("final")
        await app.dispatcher.wait_ready()
        assert app.supervisor.n_restarts == 0


# ---------------------------------------------------------------- clients that vanish


async def test_client_that_vanishes_in_mid_utterance_leaves_nothing(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, Client(app) as client:
        await client.send(MANUAL, SECOND)
        await client.until("speech_started")
        client.socket.transport.abort()
        await settled(app)
        assert not app.dispatcher.drafts._heard


async def test_client_that_vanishes_while_it_waits_frees_its_place_at_once(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app, speaking(app, gate.script) as holder:
        decode = await gate.entered()
        async with speaking(app, "say never") as client:
            await client.until("accepted", position=1)
            assert app.dispatcher.queue.depth == 1
            client.socket.transport.abort()
            while app.dispatcher.queue.depth:
                await asyncio.sleep(0)
        gate.release(decode)
        await holder.until("final")
        assert (await stats(app))["finals"] == 1


async def test_client_that_vanishes_in_mid_decode_costs_the_worker_nothing(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app:
        pid = app.supervisor.pid
        async with speaking(app, gate.script) as client:
            decode = await gate.entered()
            client.socket.transport.abort()
        while app.listener.n_sessions:
            await asyncio.sleep(0)
        async with speaking(app, "say next") as other:
            await other.until("accepted", position=1)
            gate.release(decode)
            assert (await other.until("final"))["text"] == "next"
        assert app.supervisor.pid == pid


# ---------------------------------------------------------------- the machine


async def test_wall_clock_that_jumps_changes_nothing(scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour forth and back with each look at it."""
    began, looks = time.time(), count()
    monkeypatch.setattr(time, "time", lambda: began + 3600 * (-1) ** next(looks))
    async with Gate() as gate, serving(scripted) as app, speaking(app, gate.script, 2) as client:
        await gate.open()
        assert (await client.until("final"))["wait_ms"] < 3_000_000
        await gate.open()
        await client.send(END)
        assert await client.rest() == 1000
        assert len(told(client, "final")) == 2
        assert not told(client, "retry", "busy")
        assert client.events[-1]["lost_ms"] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_worker_that_is_killed_while_nobody_speaks_is_replaced(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, Client(app) as client:
        await client.next()
        assert app.supervisor.pid is not None
        os.kill(app.supervisor.pid, signal.SIGKILL)
        states = [(await client.until("state"))["state"] for _ in range(2)]
        assert states == ["restarting", "ready"]
