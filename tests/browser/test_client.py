"""asr-client.js alone, under node, against live servers with scripted workers; no browser.

Each message that it sends and each event that it gets is checked by the protocol's JSON Schema (`JsClient`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asr_ws.messages import MAX_TEXT_BYTES
from asr_ws.testing.recognizer import Gate
from asr_ws.worker.supervisor import WorkerSpec
from tests.browser.driver import CallFailed, JsClient, js_client
from tests.server.running import MANUAL as PYTHON_MANUAL
from tests.server.running import PATIENT_MS, SECOND, Client, serving

MANUAL = {"endpointing": {"mode": "manual"}}
RATE = 16_000
TOKEN = "0123456789abcdef"


@pytest.fixture
def silence(tmp_path: Path) -> str:
    """Ten seconds of s16le."""
    file = tmp_path / "silence.pcm"
    file.write_bytes(10 * SECOND)
    return str(file)


@asynccontextmanager
async def gated(spec: WorkerSpec) -> AsyncIterator[tuple[Gate, JsClient]]:
    """A client of a server of its own, whose decodes wait at the gate."""
    async with (
        Gate() as gate,
        serving(spec) as app,
        js_client(app.url, start={**MANUAL, "prompt": gate.script}) as js,
    ):
        yield gate, js


async def test_one_exchange_from_open_to_text(scripted: WorkerSpec, silence: str) -> None:
    async with serving(scripted) as app, js_client(app.url, start={**MANUAL, "prompt": "say hello"}) as js:
        await js.call("open")
        await js.call("feed", silence, 0, RATE, 640)
        await js.call("commit", "c1")
        accepted = await js.until("accepted")
        result = await js.call("stop")
    assert (accepted["commit"], accepted["utterance"], accepted["audio_end_ms"]) == ("c1", "u1", 1000)
    assert (result["text"], [final["utterance"] for final in result["finals"]]) == ("hello", ["u1"])
    assert (result["done"]["received_ms"], result["done"]["decoded_ms"], result["done"]["lost_ms"]) == (1000, 1000, 0)
    assert sum(sent for sent in js.sent if isinstance(sent, int)) == 2 * RATE
    start, end = js.sent[0], js.sent[-1]
    assert start == {
        "type": "start",
        "client": "asr-client.js/0.1.0",
        **MANUAL,
        "prompt": "say hello",
        "audio": {"encoding": "pcm_s16le", "sample_rate": RATE, "channels": 1},
    }
    assert end == {"type": "end"}
    assert js.of("closed") == [{"error": None}]


async def test_samples_one_by_one_are_the_same(scripted: WorkerSpec, silence: str) -> None:
    async with serving(scripted) as app, js_client(app.url, start=MANUAL) as js:
        await js.call("open")
        await js.call("feed", silence, 0, 700, 1)
        result = await js.call("stop")
    assert (result["text"], result["done"]["lost_ms"]) == ("country 700", 0)


async def test_rate_that_the_audio_context_has_is_declared(scripted: WorkerSpec, silence: str) -> None:
    async with serving(scripted) as app, js_client(app.url, start=MANUAL) as js:
        await js.call("open", {"sampleRate": 48_000})
        await js.call("feed", silence, 0, 48_000, 4800)
        result = await js.call("stop")
    assert [final["audio_end_ms"] for final in result["finals"]] == [1000]


async def test_what_is_refused_is_offered_again_by_id_after_its_hint(scripted: WorkerSpec, silence: str) -> None:
    async with Gate() as gate, serving(scripted, queue_capacity=1) as app, Client(app) as first, Client(app) as second:
        for client in (first, second):
            await client.send({**PYTHON_MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
            await client.until("accepted")
        async with js_client(app.url, start={**MANUAL, "prompt": "say late"}) as js:
            await js.call("open")
            await js.call("feed", silence, 0, RATE, RATE)
            await js.call("commit")
            waiting = await js.until("waiting")
            assert (waiting["reason"], waiting["utterance"]) == ("queue_full", "u1")
            assert waiting["retry_after_ms"] <= waiting["delay_ms"] <= waiting["retry_after_ms"] + 250
            await js.until("retrying", utterance="u1")
            await gate.open()
            await gate.open()
            result = await js.call("stop")
    assert result["text"] == "late"
    assert {"type": "retry", "utterance": "u1"} in js.sent
    assert "retry_early" not in [busy["reason"] for busy in js.of("busy")]
    assert js.of("dropped", "error") == []


async def test_source_that_can_wait_is_held_back_while_the_server_is_busy(scripted: WorkerSpec, silence: str) -> None:
    """Else a file would be refused most of its utterances: a server holds two a session."""
    async with (
        Gate() as gate,
        serving(scripted) as app,
        js_client(app.url, start={**MANUAL, "prompt": gate.script}) as js,
    ):
        await js.call("open")
        for n in range(4):
            fed = js.begin("feed", silence, 0, RATE, RATE)
            await js.call("commit", f"c{n}")
            if n:
                await gate.open()
            await fed
        ended = js.begin("stop")
        await gate.open()
        result = await ended
    assert (len(result["finals"]), js.of("busy")) == (4, [])


async def test_restarted_server_gets_what_has_no_outcome_and_nothing_else(scripted: WorkerSpec, silence: str) -> None:
    """u1 has its text; u2 is being decoded, u3 heard, and the rest comes while nobody is there."""
    async with Gate() as gate, AsyncExitStack() as first:
        app = await first.enter_async_context(serving(scripted))
        async with js_client(app.url, start={**MANUAL, "prompt": gate.script}) as js:
            await js.call("open")
            for commit in ("c1", "c2"):
                await js.call("feed", silence, 0, RATE, RATE)
                await js.call("commit", commit)
                if commit == "c1":
                    await gate.open()
                    await js.until("final")
            await gate.entered()
            await js.call("feed", silence, 0, RATE // 2, RATE)
            await js.until("speech_started", utterance="u3")
            port = app.listener.port
            await first.aclose()
            lost = await js.until("reconnecting")
            await js.call("push", RATE // 2)
            async with serving(scripted, port=port):
                await js.until("reconnected")
                await js.until("accepted", commit="c2")
                await gate.open()
                ended = js.begin("stop")
                await gate.open()
                result = await ended
    assert (lost["code"], lost["interrupted"]) == (1012, ["u2"])
    assert [(dropped["utterance"], dropped["reason"]) for dropped in js.of("dropped")] == [("u3", "not_held")]
    ranges = [(final["audio_start_ms"], final["audio_end_ms"]) for final in result["finals"]]
    assert ranges == [(0, 1000), (1000, 2000), (2000, 3000)]
    assert [final["utterance"] for final in result["finals"]] == ["u1", "1:u1", "1:u2"]
    assert (result["done"]["received_ms"], result["done"]["lost_ms"]) == (2000, 0)
    assert js.of("gap", "error") == []


@pytest.mark.parametrize(
    ("start", "code"),
    [
        ({"language": "tlh"}, "unsupported_language"),
        ({"max_wait_ms": PATIENT_MS + 1}, "bad_message"),
        ({"endpointing": {"silence_ms": 5}}, "bad_message"),
        ({"prompt": "x" * (MAX_TEXT_BYTES + 1)}, "too_large"),
    ],
)
async def test_settings_that_the_server_does_not_take_end_it(
    scripted: WorkerSpec, start: dict[str, Any], code: str
) -> None:
    """Not all of them are fatal to the server, but with its defaults it would hear something else than was meant."""
    async with serving(scripted) as app, js_client(app.url, start=start) as js:
        js.checks_sent = False  # what is said is wrong, and meant to be
        with pytest.raises(CallFailed):
            await js.call("open")
            await js.call("stop")
        error = (await js.until("closed"))["error"]
    assert (error["code"], js.of("reconnecting")) == (code, [])


@pytest.mark.parametrize(("token", "code"), [(TOKEN, None), (TOKEN[1:], "unauthorized"), (None, "unauthorized")])
async def test_token_goes_into_the_first_message(
    scripted: WorkerSpec, tmp_path: Path, silence: str, token: str | None, code: str | None
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN} # alice\n")
    file.chmod(0o600)
    async with serving(scripted, auth_token_file=str(file)) as app, js_client(app.url, token=token, start=MANUAL) as js:
        opened = js.begin("open")
        if code is not None:
            with pytest.raises(CallFailed) as raised:
                await opened
            assert (raised.value.code, js.of("reconnecting")) == (code, [])
        else:
            await opened
            await js.call("feed", silence, 0, RATE, RATE)
            assert (await js.call("stop"))["text"] == f"country {RATE}"


async def test_full_server_is_asked_again_after_its_hint(scripted: WorkerSpec, silence: str) -> None:
    async with serving(scripted, max_sessions=1) as app, Client(app) as other, js_client(app.url, start=MANUAL) as js:
        await other.until("ready")
        opened = js.begin("open")
        asked = await js.until("reconnecting")
        assert (asked["code"], asked["reason"]) == (1013, "max_sessions")
        [busy] = js.of("busy")
        assert asked["delay_ms"] >= busy["retry_after_ms"]
        await other.socket.close()
        await opened
        await js.call("feed", silence, 0, RATE, RATE)
        assert (await js.call("stop"))["text"] == f"country {RATE}"


async def test_server_that_is_not_there_is_told_after_the_last_try() -> None:
    async with js_client("http://127.0.0.1:9/", maxReconnects=1) as js:
        with pytest.raises(CallFailed) as raised:
            await js.call("open")
        assert (raised.value.code, len(js.of("reconnecting"))) == ("unreachable", 1)
        assert js.of("closed")[0]["error"]["code"] == "unreachable"


async def test_cancelled_audio_is_never_sent_again(scripted: WorkerSpec, silence: str) -> None:
    async with gated(scripted) as (gate, js):
        await js.call("open")
        await js.call("feed", silence, 0, RATE, RATE)
        await js.call("commit")
        await js.until("accepted")
        await js.call("cancel")
        dropped = await js.until("dropped")
        await js.call("feed", silence, 0, RATE // 2, RATE)
        await gate.open()
        ended = js.begin("stop")
        await gate.open()
        result = await ended
    assert (dropped["reason"], dropped["utterance"]) == ("cancelled", "u1")
    assert [(f["audio_start_ms"], f["audio_end_ms"]) for f in result["finals"]] == [(1000, 1500)]
    assert js.of("error") == []
