"""Clients that mean harm, or have lost their way: each costs its own session at most."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import cast

import pytest
from websockets.server import ServerProtocol

from asr_ws import log, messages
from asr_ws.server import door, listener
from asr_ws.server.app import App
from asr_ws.server.connection import WRITE_TIMEOUT_S
from asr_ws.server.intake import SLICE_BYTES, Intake
from asr_ws.worker.supervisor import WorkerSpec
from benchmarks.wire import BINARY, PING, TEXT
from tests.server.raw import Raw, frame, raw, request
from tests.server.running import MANUAL, SECOND, Client, serving

END = {"type": "end"}
N_PINGS = 50


async def exchange_pings(client: Client) -> None:
    for id in range(N_PINGS):
        await client.send({"type": "ping", "id": id})
        assert (await client.until("pong"))["id"] == id


async def flood(socket: Raw, data: bytes) -> None:
    """For ever, as fast as it is taken."""
    with suppress(ConnectionError):
        while True:
            await socket.send(data)


def unsent_bytes(app: App) -> list[int]:
    """Of each connection, what is written and lies in the server still."""
    return [each.transport.get_write_buffer_size() for s in app.listener.servers for each in s.all_connections]


# ---------------------------------------------------------------- those that send


async def test_pings_of_who_does_not_read_are_not_answered_into_memory(scripted: WorkerSpec) -> None:
    pings = frame(PING, bytes(125)) * 2000  # a quarter of a megabyte, and as much to be answered
    async with serving(scripted, ready=False) as app, raw(app) as hostile, Client(app) as neighbour:
        assert "101" in await hostile.upgrade()
        hostile.writer.transport.pause_reading()
        flooding = asyncio.create_task(flood(hostile, pings))
        for _ in range(10):
            await exchange_pings(neighbour)
            assert max(unsent_bytes(app)) < 64 * 1024
        assert not flooding.done()
        flooding.cancel()


async def test_frames_of_one_byte_are_looked_at_a_few_at_a_time(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    receive = ServerProtocol.receive_data
    monkeypatch.setattr(
        ServerProtocol, "receive_data", lambda self, data: (looked_at.append(len(data)), receive(self, data))[1]
    )
    async with serving(scripted, ready=False) as app, raw(app) as hostile, Client(app) as neighbour:
        await hostile.upgrade()
        flooding = asyncio.create_task(flood(hostile, frame(BINARY, b"x") * 3000))
        await exchange_pings(neighbour)
        flooding.cancel()
    assert max(looked_at) == SLICE_BYTES


async def test_tls_records_of_one_byte_are_decrypted_a_few_at_a_time(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[int] = []
    receive = Intake.data_received
    monkeypatch.setattr(Intake, "data_received", lambda self, data: (received.append(len(data)), receive(self, data)))
    async with serving(scripted, ready=False, tls_self_signed=True, state_dir=str(tmp_path)) as app:
        assert app.certificate is not None
        tls = ssl.create_default_context(cafile=app.certificate.cert)
        async with raw(app, tls) as hostile:
            await hostile.upgrade()
            (intake,) = (cast(Intake, each) for server in app.listener.servers for each in server.all_connections)
            async with Client(app, ssl=tls) as neighbour:
                intake.set_full(True)
                for byte in frame(BINARY, bytes(60_000)):
                    hostile.writer.write(bytes([byte]))
                await exchange_pings(neighbour)
                intake.set_full(False)
                while sum(received) < 60_000:
                    await exchange_pings(neighbour)
    assert max(received) < 500, "as many records"


async def test_what_is_looked_at_in_slices_is_what_was_sent(scripted: WorkerSpec) -> None:
    """Large frames, small ones, and the last before the end of the connection."""
    async with serving(scripted) as app, Client(app) as client:
        await client.send(MANUAL, *(SECOND[:n] for n in (1, 31_999, 4096, 2, 27_902)), 3 * SECOND, END)
        assert await client.rest() == 1000
        assert [event["text"] for event in client.events if event["type"] == "final"] == ["country 80000"]
    assert client.events[-1]["received_ms"] == 5000


@pytest.mark.parametrize("message", ['{"type":"ping"}', "x", '{"type":"commit"}'])
async def test_floods_of_messages_cost_their_session_at_most(scripted: WorkerSpec, message: str) -> None:
    async with serving(scripted) as app, raw(app) as hostile, Client(app) as neighbour:
        await hostile.upgrade()
        flooding = asyncio.create_task(flood(hostile, frame(TEXT, message.encode()) * 1000))
        await neighbour.send(MANUAL)
        await exchange_pings(neighbour)
        await neighbour.send(SECOND, END)
        assert await neighbour.rest() == 1000
        assert neighbour.events[-1]["finals"] == 1
        flooding.cancel()


async def test_session_that_failed_ends_with_its_client_whatever_it_had_sent_behind(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed for CLOSE_TIMEOUT_S: nobody read on to the end of file, because of frames that nobody would take."""
    monkeypatch.setattr(listener, "CLOSE_TIMEOUT_S", 1e6)
    async with serving(scripted, ready=False) as app, raw(app) as socket:
        await socket.upgrade()
        await socket.send(frame(TEXT, b"\xff") + 7 * frame(TEXT, b'{"type":"ping"}'))
        assert await socket.close_code() == 1007
        socket.writer.close()
        async with asyncio.timeout(WRITE_TIMEOUT_S / 2):  # by then the connection is cut off otherwise
            await app.listener.wait_empty()


async def test_utterance_without_end_is_cut_and_no_sample_is_lost_or_doubled(scripted: WorkerSpec) -> None:
    start = {"type": "start", "endpointing": {"mode": "manual", "max_utterance_ms": 1000}}
    async with serving(scripted, queue_capacity=100) as app, Client(app) as client:
        for message in (start, *itertools.repeat(SECOND[:3200], 205), END):
            await client.send(message)
        assert await client.rest() == 1000
    finals = [event for event in client.events if event["type"] == "final"]
    refused = [event for event in client.events if event["type"] == "dropped"]
    spans = sorted((event["audio_start_ms"], event["audio_end_ms"]) for event in finals + refused)
    assert spans == [(at, min(at + 1000, 20_500)) for at in range(0, 20_500, 1000)]
    assert client.events[-1]["lost_ms"] == 0
    assert {event["endpoint"] for event in client.events if event["type"] == "accepted"} <= {"max_length", "end"}


# ---------------------------------------------------------------- those that do not send


SLOW = b"HTTP/1.1 408 Request Timeout"
LIVEZ, NOTHING = "GET /livez HTTP/1.1", "GET /nothing HTTP/1.1"


@pytest.mark.parametrize("encrypted", [False, True])
async def test_handshakes_that_never_end_are_ended(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_TIMEOUT_S", 2.0)  # for the neighbour too, who comes first
    options = {"tls_self_signed": encrypted, "state_dir": str(tmp_path)}
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" if encrypted else b"GET /v1/stream HTTP/1.1\r\nHost: x\r\n"
    async with serving(scripted, ready=False, **options) as app, AsyncExitStack() as stack:
        trusts = ssl.create_default_context(cafile=app.certificate.cert) if app.certificate is not None else None
        async with Client(app, ssl=trusts) as neighbour:
            slow = [await stack.enter_async_context(raw(app)) for _ in range(50)]
            for at, socket in enumerate(slow):
                await socket.send(hello[: at or 1])
            await exchange_pings(neighbour)
            answers = [await socket.rest() for socket in slow]
            assert {answer.partition(b"\r")[0] for answer in answers} == {b"" if encrypted else SLOW}
            await exchange_pings(neighbour)


async def test_half_open_connection_is_ended_by_the_keepalive(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing comes any more, no pong, no FIN: the raw client answers no pings."""
    monkeypatch.setattr("asr_ws.server.app.ConnectionLimits", lambda idle_s, speed: IMPATIENT)
    monkeypatch.setattr(listener, "CLOSE_TIMEOUT_S", 0.1)
    async with serving(scripted, ready=False) as app, raw(app) as dead, Client(app) as neighbour:
        await dead.upgrade()
        assert await dead.close_code() == 1011
        await exchange_pings(neighbour)
        while app.listener.n_sessions > 1:
            await exchange_pings(neighbour)


IMPATIENT = listener.ConnectionLimits(0, 1000.0, ping_interval_s=0.05, ping_timeout_s=1.0)


# ---------------------------------------------------------------- those that are too many


async def test_flood_of_connections_is_answered_and_leaves_room(scripted: WorkerSpec) -> None:
    """Sessions, then `busy`, then 503, then 503 before a word was read; descriptors stay free all the while."""
    async with serving(scripted, max_sessions=8) as app, Client(app) as neighbour, AsyncExitStack() as stack:
        cap = 2 * 8 + door.CONNECTIONS_BESIDE
        await neighbour.next()
        silent = [await stack.enter_async_context(raw(app)) for _ in range(400)]
        for socket in silent[cap - 1 :]:  # one is the neighbour
            answer = await socket.rest()
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nretry-after-ms: 1000\r\n" in answer
            assert b'"message": "there are too many connections"' in answer
        await exchange_pings(neighbour)
        await neighbour.send(MANUAL, SECOND, END)
        assert await neighbour.rest() == 1000
        assert neighbour.events[-1]["finals"] == 1
    assert app.listener.http.requests["other", 503] == 400 - (cap - 1)


async def test_sessions_too_many_are_told_in_band_and_then_at_the_handshake(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "REFUSALS_AT_ONCE", 3)
    async with serving(scripted, ready=False, max_sessions=1) as app, Client(app), AsyncExitStack() as stack:
        refused = [await stack.enter_async_context(raw(app)) for _ in range(3)]
        for socket in refused:
            assert "101" in await socket.upgrade()
            opcode, event = await socket.next()
            assert (opcode, b'"max_sessions"' in event) == (TEXT, True)
        # They do not answer the close, so they are still being told.
        status, headers, body = await request(app, RAW_HANDSHAKE)
        assert (status, headers["retry-after"], body) == (503, "1", "too many sessions\n")
        assert (await request(app, "GET /livez HTTP/1.1"))[0] == 200


RAW_HANDSHAKE = (
    f"GET {messages.PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13"
)


async def test_connections_that_have_ended_make_room(scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "CONNECTIONS_BESIDE", 2)
    async with serving(scripted, ready=False, max_sessions=1) as app:
        for _ in range(20):
            assert (await request(app, "GET /livez HTTP/1.1"))[0] == 200
            async with Client(app) as client:
                await client.next()
                client.socket.transport.abort()
            await app.listener.wait_empty()


@pytest.mark.parametrize("behind", [b"", frame(PING), b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("head", [f"{LIVEZ}\r\nHost: x", f"{NOTHING}\r\nHost: x", RAW_HANDSHAKE])
@pytest.mark.parametrize("n_bytes", [0, 1])
async def test_what_comes_behind_a_request_waits_for_its_response(
    scripted: WorkerSpec, capfd: pytest.CaptureFixture[str], head: str, behind: bytes, n_bytes: int
) -> None:
    """The end of file too: websockets answered nobody who had closed his side, with a traceback in the log."""
    log.configure()
    async with serving(scripted, ready=False) as app, raw(app) as socket:
        await socket.send(f"{head}\r\n\r\n".encode() + behind, n_bytes)
        with suppress(OSError):
            socket.writer.write_eof()
        answer = await socket.rest()
    log.close()
    wanted = {LIVEZ: b"200", NOTHING: b"404"}.get(head.partition("\r")[0], b"101")
    assert answer.split()[1] == wanted
    assert "library.logged" not in capfd.readouterr().err
