"""Sessions over real sockets, with a really spawned, scripted worker."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asr_ws import messages
from asr_ws.core import session as session_module
from asr_ws.server import app as app_module
from asr_ws.server import connection
from asr_ws.testing.recognizer import Gate, scripted_worker
from asr_ws.worker.supervisor import WorkerSpec
from tests.server.running import MANUAL, PATIENT_MS, SECOND, Client, get, serving, stats


async def test_one_exchange_from_ready_to_done(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": "say hello"}, SECOND, {"type": "commit", "id": "c1"}, {"type": "end"})
        assert await client.rest() == 1000
    assert client.types() == ["ready", "started", "speech_started", "accepted", "final", "done"]
    ready, _, _, accepted, final, done = client.events
    assert ready["limits"] == {
        "queue_capacity": 3,
        "max_wait_ms": PATIENT_MS,
        "max_utterance_ms": 30000,
        "max_message_bytes": 262144,
        "max_sessions": 64,
        "hold_ms": 60000,
    }
    assert (ready["state"], ready["languages"], "seq" in ready) == ("ready", ["en"], False)
    assert {key: accepted[key] for key in ("utterance", "commit", "position", "endpoint")} == {
        "utterance": "u1",
        "commit": "c1",
        "position": 0,
        "endpoint": "commit",
    }
    assert (final["text"], final["audio_start_ms"], final["audio_end_ms"]) == ("hello", 0, 1000)
    assert {key: done[key] for key in done if key.endswith("_ms")} == {
        "received_ms": 1000,
        "decoded_ms": 1000,
        "silence_ms": 0,
        "refused_ms": 0,
        "lost_ms": 0,
    }
    assert [event["seq"] for event in client.events[1:]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("n_bytes", [1, 3, 4096, 65536])
async def test_chunking_changes_nothing(scripted: WorkerSpec, n_bytes: int) -> None:
    audio = SECOND[:3200]
    async with serving(scripted) as app, Client(app) as client:
        await client.send(MANUAL, *(audio[start : start + n_bytes] for start in range(0, len(audio), n_bytes)))
        await client.send({"type": "end"})
        assert await client.rest() == 1000
    assert client.types() == ["ready", "started", "speech_started", "accepted", "final", "done"]
    assert client.events[4]["text"] == "country 1600"


async def test_audio_without_start_is_taken_with_the_defaults(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, Client(app) as client:
        await client.send(SECOND, {"type": "end"})
        assert await client.rest() == 1000
    assert client.types() == ["ready", "done"], "the detector hears nothing in silence"
    assert client.events[-1]["silence_ms"] == 1000


async def test_subprotocol_is_offered_and_not_required(scripted: WorkerSpec) -> None:
    async with serving(scripted, ready=False) as app:
        async with Client(app, subprotocols=["other", messages.PROTOCOL]) as client:
            assert client.socket.subprotocol == messages.PROTOCOL
        async with Client(app) as client:
            assert client.socket.subprotocol is None
            assert (await client.next())["type"] == "ready"


async def test_ping_is_answered_while_a_decode_runs(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
        decode = await gate.entered()
        await client.send({"type": "ping", "id": 7})
        assert (await client.until("pong"))["id"] == 7
        assert "final" not in client.types()
        gate.release(decode)
        await client.until("final")


async def test_full_queue_refuses_with_an_honest_hint_and_the_retry_by_id_succeeds(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted, queue_capacity=1) as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": gate.script})
        for _ in range(3):
            await client.send(SECOND, {"type": "commit"})
        busy = await client.until("busy")
        assert (busy["utterance"], busy["status"], busy["reason"]) == ("u3", 503, "queue_full")
        assert 500 <= busy["retry_after_ms"] <= 1500
        assert (busy["queue_depth"], busy["queue_capacity"], busy["held_ms"]) == (1, 1, 60000)
        seen = await stats(app)
        assert (seen["queue_depth"], seen["in_flight_tasks"], seen["busy"]) == (1, 1, 1)
        await client.send({"type": "retry", "utterance": "u3"})  # at once: too early
        assert (await client.until("busy"))["reason"] == "retry_early"
        for _ in range(2):
            await gate.open()
            await client.until("final")
        await asyncio.sleep(busy["retry_after_ms"] / 1000)  # what the server asked for
        await client.send({"type": "retry", "utterance": "u3"})
        assert (await client.until("accepted"))["attempt"] == 2
        await gate.open()
        assert (await client.until("final"))["utterance"] == "u3"
        assert (await stats(app))["max_concurrent_decodes"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_worker_death_is_replayed_silently(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with serving(scripted) as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": f"crash-once {tmp_path / 'crashed'}"}, SECOND, {"type": "commit"})
        await client.until("final")
        states = [event["state"] for event in client.events if event["type"] == "state"]
        assert states == ["restarting", "ready"]
        assert "retry" not in client.types()
        assert (await stats(app))["worker_restart_count"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_utterance_that_kills_the_worker_twice_is_poison_and_its_neighbour_is_served(
    scripted: WorkerSpec,
) -> None:
    async with serving(scripted) as app, Client(app) as bad, Client(app) as good:
        await bad.send({**MANUAL, "prompt": "crash SEGV"}, SECOND, {"type": "commit"})
        await bad.until("accepted")
        await good.send({**MANUAL, "prompt": "say fine"}, SECOND, {"type": "commit"})
        error = await bad.until("error")
        assert (error["code"], error["fatal"], error["utterance"]) == ("poison_audio", False, "u1")
        assert (await good.until("final"))["text"] == "fine"


async def test_session_over_the_limit_is_told_in_band(scripted: WorkerSpec) -> None:
    async with serving(scripted, max_sessions=1) as app, Client(app) as first:
        await first.next()
        async with Client(app) as second:
            assert await second.rest() == 1013
        [busy] = second.events
        assert (busy["type"], busy["utterance"], busy["attempt"], busy["reason"]) == ("busy", None, 0, "max_sessions")
        assert "seq" not in busy
        await first.send({"type": "end"})
        await first.rest()
        async with Client(app) as third:
            assert (await third.next())["type"] == "ready"


BAD: list[tuple[list[dict[str, Any] | bytes | str], str, bool, int]] = [
    (["{"], "bad_message", False, 1000),
    (["[1]"], "bad_message", False, 1000),
    ([{"type": "start", "sample_rte": 8000}], "bad_message", False, 1000),
    ([{"type": "start", "max_wait_ms": PATIENT_MS + 1}], "bad_message", False, 1000),
    (["nonsense"] * 3, "bad_message", True, 1008),
    (['{"type":"start","endpointing":{"threshold":NaN}}'], "bad_message", False, 1000),
    (['{"type":"start","endpointing":{"threshold":1e999}}'], "bad_message", False, 1000),
    (['{"type":"start","max_wait_ms":' + "9" * 5000 + "}"], "bad_message", False, 1000),
    (["[" * 16_000], "bad_message", False, 1000),
    (['{"type":"start","audio":' + '{"audio":' * 1500], "bad_message", False, 1000),
    (['{"type":"\\ud800"}'], "bad_message", False, 1000),
    (['{"type":"retry","utterance":"\\ud800"}'], "bad_message", False, 1000),
    (['{"type":"retry","utterance":"\\u0000\\u001b[31m"}'], "unknown_utterance", False, 1000),
    ([MANUAL, MANUAL], "unexpected_message", False, 1000),
    ([{"type": "start", "audio": {"sample_rate": 4000}}], "unsupported_format", True, 1008),
    ([{"type": "start", "audio": {"encoding": "opus"}}], "unsupported_format", True, 1008),
    ([{"type": "start", "language": "tlh"}], "unsupported_language", True, 1008),
    ([{"type": "start", "task": "translate"}], "unsupported_language", True, 1008),
    ([json.dumps({"type": "ping", "id": "x" * 17000})], "too_large", True, 1009),
    ([{"type": "commit"}], "nothing_to_commit", False, 1000),
    ([{"type": "retry", "utterance": "u9"}], "unknown_utterance", False, 1000),
    ([MANUAL, b"odd"], "truncated_pcm", False, 1000),
    ([b"RIFF\x24\x00\x00\x00WAVEfmt "], "audio_format_suspect", False, 1000),
    *(
        ([{"type": "start", "audio": {"encoding": "pcm_f32le"}}, np.array([0, bad, 0], "<f4").tobytes()], *told)
        for bad, *told in ((np.nan, "invalid_samples", False, 1000), (-np.inf, "invalid_samples", False, 1000))
    ),
    ([np.sin(np.arange(16_000) / 9).astype("<f4").tobytes()], "audio_format_suspect", False, 1000),
]


@pytest.mark.parametrize(("sent", "code", "fatal", "close_code"), BAD)
async def test_bad_input_gets_its_error_and_ends_at_most_its_own_session(
    scripted: WorkerSpec, sent: list[dict[str, Any] | bytes | str], code: str, fatal: bool, close_code: int
) -> None:
    async with serving(scripted) as app, Client(app) as neighbour:
        await neighbour.send({**MANUAL, "prompt": "say unharmed"}, SECOND)
        async with Client(app) as client:
            await client.send(*sent)
            if not fatal:
                await client.send({"type": "end"})
            assert await client.rest() == close_code
        error = [event for event in client.events if event["type"] == "error"][-1]
        assert (error["code"], error["fatal"]) == (code, fatal)
        assert error["message"]
        assert error["hint"]
        await neighbour.send({"type": "end"})
        assert await neighbour.rest() == 1000
        assert [event["text"] for event in neighbour.events if event["type"] == "final"] == ["unharmed"]


async def test_fatal_error_leaves_accepted_utterances_their_outcome(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
        decode = await gate.entered()
        await client.send("{", "{", "{")
        await client.until("error", fatal=True)
        gate.release(decode)
        assert await client.rest() == 1008
    assert client.types()[-2:] == ["error", "final"]


async def test_frame_over_the_limit_closes_with_1009(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, Client(app) as client:
        await client.send(bytes(messages.MAX_BINARY_BYTES + 1))
        assert await client.rest() == 1009


async def test_idle_session_is_ended_and_a_ping_keeps_it(scripted: WorkerSpec) -> None:
    async with serving(scripted, idle_timeout_s=0.3) as app, Client(app) as client:
        for n in range(3):
            await client.send({"type": "ping", "id": n})
            await client.until("pong")
        assert await client.rest() == 1008
        assert client.events[-1]["code"] == "idle"


async def test_after_a_standstill_what_had_come_meanwhile_is_read_before_a_session_is_idle(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(scripted, idle_timeout_s=60) as app, Client(app) as client:
        await client.next()
        loop = asyncio.get_running_loop()
        time = loop.time
        monkeypatch.setattr(loop, "time", lambda: time() + 61)  # in the turn that sees the ping, the timer is due
        await client.send({"type": "ping", "id": 1})
        await client.until("pong")
        await client.send({"type": "end"})
        assert await client.rest() == 1000


async def test_disconnect_frees_the_slots_of_what_waits(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": gate.script})
        for _ in range(3):
            await client.send(SECOND, {"type": "commit"})
        decode = await gate.entered()
        await client.until("accepted", utterance="u3")
        assert app.dispatcher.queue.depth == 2
        client.socket.transport.abort()
        await app.listener.wait_empty()
        assert app.dispatcher.queue.depth == 0
        gate.release(decode)
        async with Client(app) as other:
            await other.send({**MANUAL, "prompt": "say next"}, SECOND, {"type": "end"})
            assert await other.rest() == 1000
        assert [event["text"] for event in other.events if event["type"] == "final"] == ["next"]


async def test_client_that_does_not_read_is_cut_off(scripted: WorkerSpec) -> None:
    """By the time that an event takes to be written: meanwhile nothing more is read of it, so that no outbox grows."""
    async with serving(scripted) as app:
        app.listener._limits = replace(app.listener._limits, write_timeout_s=0.5)
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", app.listener.port))
        client = Client(app, sock=narrow, ping_interval=None)
        await client.__aenter__()
        await client.next()
        client.socket.transport.pause_reading()
        message = json.dumps({"type": "retry", "utterance": "x" * 8000})  # its error names it twice

        async def talk() -> None:
            while True:
                await client.send(message)

        talking = asyncio.create_task(talk(), name="talk")
        await app.listener.wait_empty()
        talking.cancel()
        await asyncio.wait([talking])
        client.socket.transport.abort()


async def test_drain_finishes_what_is_admitted_then_closes_with_1012(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app, Client(app) as client, Client(app) as idle:
        await idle.next()
        await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
        decode = await gate.entered()
        await client.until("accepted")
        draining = asyncio.create_task(app.drain())
        assert (await client.until("state"))["state"] == "draining"
        assert (await get(app, "/readyz"))[0] == 503
        gate.release(decode)
        await draining
        assert await client.rest() == 1012
        assert await idle.rest() == 1012
        assert client.types()[-1] == "final"


async def test_what_the_grace_time_is_too_short_for_is_told_so(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "GRACE_S", 0.0)
    async with Gate() as gate, serving(scripted) as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "end"})
        await gate.entered()
        await client.until("accepted")
        await app.drain()
        assert await client.rest() == 1000
    assert client.types()[-3:] == ["state", "dropped", "done"]
    assert client.events[-2]["reason"] == "not_held"
    assert client.events[-1]["lost_ms"] == 0


async def test_audio_of_a_client_that_is_gone_is_not_taken(scripted: WorkerSpec) -> None:
    """Once, what lay in the buffers was taken at its pace, and held its session's slot for 40 s."""
    async with serving(scripted, ingest_speed=1.0) as app, Client(app) as client:
        await client.send({"type": "start", "audio": {"sample_rate": 8000}}, *[bytes(256 * 1024)] * 4)
        await client.until("started")
        client.socket.transport.abort()
        async with asyncio.timeout(10):
            await app.listener.wait_empty()


async def test_our_own_bug_ends_its_session_with_1011_and_no_other(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Gate() as gate, serving(scripted) as app, Client(app) as client, Client(app) as other:
        await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
        decode = await gate.entered()
        final = session_module._final
        monkeypatch.setattr(session_module, "_final", None)
        gate.release(decode)
        assert await client.rest() == 1011
        assert client.events[-1]["code"] == "internal"
        await other.send({**MANUAL, "prompt": "say fine"}, SECOND, {"type": "end"})
        monkeypatch.setattr(session_module, "_final", final)
        assert await other.rest() == 1000


async def test_sessions_are_told_starting_then_ready(tmp_path: Path) -> None:
    async with Gate() as gate, serving(scripted_worker(tmp_path, load=gate.script), ready=False) as app:
        load = await gate.entered()
        async with Client(app) as client:
            assert (await client.next())["state"] == "starting"
            assert await get(app, "/readyz") == (503, "starting\n")
            assert (await get(app, "/livez"))[0] == 200
            await client.send(MANUAL, SECOND, {"type": "commit"})
            assert (await client.until("busy"))["reason"] == "starting"
            gate.release(load)
            assert await client.until("state") == {"type": "state", "state": "ready", "partials": "paused", "seq": 4}
            assert await get(app, "/readyz") == (200, "ready\n")


async def test_plain_gets(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        status, page = await get(app, "/")
        assert status == 200
        assert 'src="page/page.js"' in page, "relative: a proxy may have a prefix"
        assert await get(app, "/livez") == await get(app, "/healthz") == (200, "alive\n")
        assert (await get(app, "/nowhere"))[0] == 404
        assert (await get(app, "/livez", "OPTIONS"))[0] == 405
        assert (await get(app, messages.PATH))[0] == 426
        seen = await stats(app)
        assert {"state", "model", "uptime_s", "worker_pid", "p95_wait_ms", "decode_fail_rate"} <= seen.keys()
        assert (seen["state"], seen["sessions"], seen["worker_pid"]) == ("ready", 0, app.supervisor.pid)


async def test_flooding_client_is_paced_and_not_killed_by_the_keepalive(
    scripted: WorkerSpec,
) -> None:
    """A sender that we hold back ourselves cannot see our pings: it must not be closed for that."""
    limits = connection.ConnectionLimits(0, 8.0, ping_interval_s=0.05, ping_timeout_s=0.05)
    async with serving(scripted) as app:
        app.listener._limits = limits
        async with Client(app) as client:
            await client.send(*[SECOND] * 14, {"type": "end"})  # 10 s at once, the rest in half a second
            assert await client.rest() == 1000
            assert client.events[-1]["received_ms"] == 14_000
