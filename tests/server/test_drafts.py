"""Partials and speculative finals over real sockets, with a really spawned, scripted worker.

In manual mode half a second of audio is enough for a partial; speculation needs the real detector, and speech.
"""

from __future__ import annotations

import numpy as np
import pytest

from asr_ws.core.endpointer import Endpointer, EndpointRules
from asr_ws.core.types import ms
from asr_ws.detector import SileroModel
from asr_ws.testing.recognizer import Gate
from asr_ws.worker.supervisor import WorkerSpec
from tests.conftest import read_speech
from tests.server.running import MANUAL, SECOND, Client, serving, stats

SPEECH = (read_speech("jfk.wav") * 32767).astype("<i2").tobytes()
FIRST_WORDS = SPEECH[: 2 * 16_000 * 24 // 10]  # "And so, my fellow Americans"
PAUSE = bytes(2 * 16_000)


async def test_partial_comes_while_the_utterance_is_heard_and_the_final_replaces_it(scripted: WorkerSpec) -> None:
    async with serving(scripted, partials="on") as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": "say hello"}, SECOND)
        partial = await client.until("partial")
        assert (partial["utterance"], partial["stable"], partial["unstable"]) == ("u1", "", "hello")
        await client.send({"type": "end"})
        assert await client.rest() == 1000
        seen = await stats(app)
    assert client.events[1]["partials"] is True
    assert client.types()[:4] == ["ready", "started", "speech_started", "partial"]
    assert client.types()[-3:] == ["accepted", "final", "done"]
    assert seen["partials"] >= client.types().count("partial") > 0
    assert seen["finals"] == 1


@pytest.mark.parametrize(("setting", "asked"), [("off", True), ("on", False)])
async def test_no_partials_where_the_server_or_the_client_wants_none(
    scripted: WorkerSpec, setting: str, asked: bool
) -> None:
    async with serving(scripted, partials=setting) as app, Client(app) as client:
        await client.send({**MANUAL, "partials": asked}, SECOND, {"type": "ping"})
        await client.until("pong")
        await client.send(SECOND, {"type": "commit"}, {"type": "end"})
        assert await client.rest() == 1000
        assert (await stats(app))["partials"] == 0
    assert client.events[1]["partials"] is False
    assert "partial" not in client.types()


async def test_final_waits_for_a_running_partial_which_then_is_discarded(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted, partials="on") as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": gate.script}, SECOND)
        decode = await gate.entered()
        seen = await stats(app)
        assert (seen["in_flight_tasks"], seen["decoding"]) == (1, "partial")
        await client.send({"type": "commit"})
        accepted = await client.until("accepted")
        assert accepted["position"] == 1
        assert accepted["estimated_wait_ms"] > 0
        gate.release(decode)
        decode = await gate.entered()
        assert (await stats(app))["decoding"] == "final"
        gate.release(decode)
        await client.until("final")
        assert (await stats(app))["decoding"] is None
        await client.send({"type": "end"})
        assert await client.rest() == 1000
        assert (await stats(app))["max_concurrent_decodes"] == 1
    assert "partial" not in client.types()


@pytest.mark.parametrize("script", ["raise-partial odd", "crash-partial SEGV"])
async def test_partial_that_fails_or_kills_costs_no_final(scripted: WorkerSpec, script: str) -> None:
    async with serving(scripted, partials="on") as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": script}, SECOND)
        if script.startswith("crash"):
            await client.until("state", state="restarting")
            await client.until("state", state="ready")
        await client.send(SECOND, {"type": "commit"}, {"type": "end"})
        assert await client.rest() == 1000
        seen = await stats(app)
    final, done = client.events[-2:]
    assert (final["type"], final["text"], final["attempt"]) == ("final", "country 32000", 1)
    assert (done["finals"], done["lost_ms"]) == (1, 0)
    assert seen["worker_restart_count"] == script.startswith("crash")
    assert "partial" not in client.types()


@pytest.mark.parametrize("speculation", ["on", "off"])
async def test_endpoint_finds_the_final_that_was_decoded_in_the_silence(scripted: WorkerSpec, speculation: str) -> None:
    heard = Endpointer(EndpointRules(14_400, 4800, 2400, 480_000, 0.5), SileroModel().detector())
    heard.feed(np.frombuffer(FIRST_WORDS + PAUSE[:16_000], "<i2") / np.float32(32768))
    assert heard.spoken is not None
    assert heard.spoken.complete
    complete_ms = ms(heard.spoken.end_sample)
    async with serving(scripted, partials="on", speculation=speculation) as app, Client(app) as client:
        await client.send({"type": "start", "endpointing": {"silence_ms": 900}}, FIRST_WORDS)
        await client.send(PAUSE[:16_000])  # half a second: more than the tail, less than the silence
        await client.until("partial", audio_end_ms=complete_ms)
        await client.send(PAUSE)
        accepted = await client.until("accepted")
        await client.until("final")
        await client.send({"type": "end"})
        assert await client.rest() == 1000
        seen = await stats(app)
    assert accepted["audio_end_ms"] == complete_ms
    assert seen["finals_speculated"] == (speculation == "on")
    if speculation == "on":
        assert (accepted["position"], accepted["estimated_final_ms"]) == (0, 0)
