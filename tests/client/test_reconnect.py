"""The session on real sockets, where connections and servers end; the rules are tested in test_connection.py."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import soundfile
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.protocol import State

from asr_ws import messages
from asr_ws.client import (
    ConnectionLost,
    Event,
    Gap,
    Reconnected,
    Reconnecting,
    Session,
    SessionFailed,
    SessionRefused,
    Unreachable,
    connect,
    session,
    sync,
    transcribe,
    wire,
)
from asr_ws.client import connection as rules
from asr_ws.client.wire import Wire
from asr_ws.errors import ClientError
from asr_ws.server import reception
from asr_ws.testing.conservation import Conservation
from asr_ws.testing.proxy import Proxy
from asr_ws.testing.recognizer import Gate
from asr_ws.worker.supervisor import WorkerSpec
from tests.client import recorded
from tests.server.running import SECOND, serving, stats

MANUAL: dict[str, Any] = {"endpointing": {"mode": "manual"}}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_DELAY_S", 0.01)


async def until(events: AsyncIterator[Event], kind: type) -> Any:
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__}")


def url_of(server: Server) -> str:
    return f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


def judged(events: list[Event]) -> Conservation:
    law = Conservation()
    for event in events:
        if not isinstance(event, Reconnecting | Reconnected | Gap):
            law.receive(event)
    law.close(1000)
    return law


async def test_a_cut_is_seen_by_nobody_who_does_not_look(scripted: WorkerSpec) -> None:
    async with (
        Gate() as gate,
        serving(scripted) as app,
        Proxy(app.url).listening() as proxy,
        connect(proxy.url, prompt=gate.script, **MANUAL) as session,
    ):
        seen: list[Event] = []

        async def read() -> None:
            async for event in session.events():
                seen.append(event)

        reading = asyncio.create_task(read())
        for n in range(3):
            await session.send(SECOND)
            await session.commit(f"c{n}")
        while sum(isinstance(event, messages.Accepted) for event in seen) < 3:
            await asyncio.sleep(0)
        proxy.cut()
        while not any(isinstance(event, Reconnected) for event in seen):
            await asyncio.sleep(0)
        await session.send(SECOND)
        for _ in range(4):  # the first one's decode before the cut too
            await gate.open()
        closing = asyncio.create_task(session.close())
        opener = asyncio.create_task(gate.open())
        await closing
        await reading
        opener.cancel()
    assert judged(seen).breaches == []
    finals = [event for event in seen if isinstance(event, messages.Final)]
    assert [(each.utterance, each.audio_start_ms, each.audio_end_ms) for each in finals] == [
        (f"u{n + 1}", n * 1000, n * 1000 + 1000) for n in range(4)
    ]
    commits = [(event.utterance, event.commit) for event in seen if isinstance(event, messages.Accepted)]
    assert commits[-4:] == [("u1", "c0"), ("u2", "c1"), ("u3", "c2"), ("u4", None)]
    done = seen[-1]
    assert isinstance(done, messages.Done)
    assert (done.received_ms, done.decoded_ms, done.lost_ms, done.finals) == (4000, 4000, 0, 4)


async def test_a_session_outlives_its_server(scripted: WorkerSpec) -> None:
    seen: list[Event] = []

    async def stream() -> None:
        async with connect(proxy.url, prompt="say here", **MANUAL) as session:
            async for event in session.stream(said()):
                seen.append(event)

    is_down, goes_on = asyncio.Event(), asyncio.Event()

    async def said() -> AsyncIterator[bytes]:
        yield SECOND
        is_down.set()
        await goes_on.wait()
        yield SECOND

    async with Proxy().listening() as proxy:
        async with serving(scripted) as app:
            proxy.point_to(app.url)
            streaming = asyncio.create_task(stream())
            await is_down.wait()
        while not any(isinstance(event, Reconnecting) and event.attempt > 1 for event in seen):
            await asyncio.sleep(0)
        goes_on.set()
        async with serving(scripted) as app:
            proxy.point_to(app.url)
            await streaming
    assert judged(seen).breaches == []
    [final] = [event for event in seen if isinstance(event, messages.Final)]
    assert (final.utterance, final.audio_start_ms, final.audio_end_ms) == ("u1", 0, 2000)
    assert [type(event) for event in seen if isinstance(event, messages.Ready | messages.Started)] == [
        messages.Ready,
        messages.Started,
    ]


async def test_without_reconnects_the_connections_end_is_the_sessions(scripted: WorkerSpec) -> None:
    seen: list[Event] = []
    async with (
        Gate() as gate,
        serving(scripted) as app,
        Proxy(app.url).listening() as proxy,
        connect(proxy.url, reconnects=0, prompt=gate.script, **MANUAL) as session,
    ):
        await session.send(SECOND)
        await session.commit()
        await session.send(SECOND)
        with pytest.raises(ConnectionLost) as lost:
            async for event in session.events():
                seen.append(event)
                if isinstance(event, messages.Accepted):
                    proxy.cut()
        assert lost.value.close_code == 1006
        with pytest.raises(ConnectionLost):
            await session.send(SECOND)
        with pytest.raises(ConnectionLost):
            await session.close()
    told = [event for event in seen if isinstance(event, messages.Retry | messages.Dropped | Gap)]
    assert [type(event) for event in told[:2]] == [messages.Retry, messages.Dropped]
    spans = [(each.audio_start_ms, each.audio_end_ms) for each in told[1:]]  # type: ignore[union-attr]
    assert (spans[0], spans[-1][1]) == ((0, 1000), 2000)


async def test_it_gives_up_after_so_many_tries_and_says_what_was_lost(scripted: WorkerSpec) -> None:
    seen: list[Event] = []
    async with Proxy().listening() as proxy:
        async with serving(scripted, ready=False) as app:
            proxy.point_to(app.url)
            opened = connect(proxy.url, reconnects=3, **MANUAL)
            session = await opened.__aenter__()
            await session.send(SECOND)
        with pytest.raises((ConnectionLost, Unreachable)):
            async for event in session.events():
                seen.append(event)
        await opened.__aexit__(None, None, None)
    assert [event.attempt for event in seen if isinstance(event, Reconnecting)] == [1, 2, 3]
    assert isinstance(seen[-1], messages.Dropped | Gap)
    assert seen[-1].audio_end_ms == 1000


async def test_what_was_said_before_the_end_is_heard_though_a_frame_could_not_be_sent(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a fatal error would be a lost connection, and a final would be decoded again."""
    send = Wire.send

    async def broken(self: Wire, data: bytes | messages.ClientMessage) -> None:
        if isinstance(data, bytes):
            raise ConnectionLost(None)
        await send(self, data)

    monkeypatch.setattr(Wire, "send", broken)
    async with serving(scripted, ready=False) as app, connect(app.url, language="tlh") as session:
        with pytest.raises(SessionFailed, match="unsupported_language"):
            async for _ in session.stream(SECOND):
                pass


async def test_a_refusal_is_heard_though_start_could_not_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its hint was not waited for."""
    send = Wire.send

    async def late(self: Wire, data: bytes | messages.ClientMessage) -> None:
        await self._socket.wait_closed()
        await send(self, data)

    async def refuse(socket: ServerConnection) -> None:
        await socket.send(messages.encode(recorded.busy(None, attempt=0, retry_after_ms=1500)))
        await socket.close(1013, "max_sessions")

    monkeypatch.setattr(Wire, "send", late)
    async with serve(refuse, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(SessionRefused) as refused:
            await wire.open_wire(url, messages.Start(), introduce=True)
    assert (refused.value.retry_after_s, refused.value.code) == (1.5, "session_refused")


async def test_a_server_that_says_nothing_any_more_is_left(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "SILENT_S", 0.3)
    monkeypatch.setattr(rules, "PING_S", 0.1)
    monkeypatch.setattr(wire, "CLOSE_S", 1e6)  # for the answer to a close, which it does not give either
    async with (
        serving(scripted) as app,
        Proxy(app.url).listening() as proxy,
        connect(proxy.url, prompt="say still here", **MANUAL) as session,
    ):
        events = session.events()
        await session.send(SECOND)
        await until(events, messages.SpeechStarted)
        end_stall = proxy.stall()
        told = await until(events, Reconnecting)
        assert told.reason == "no answer"
        await until(events, Reconnected)
        end_stall()
        await session.close()
        final = await until(events, messages.Final)
    assert (final.text, final.audio_end_ms) == ("still here", 1000)


async def test_a_server_that_only_says_ready_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: each connection had lived long enough to end the row, while its answer was waited for."""
    monkeypatch.setattr(rules, "SILENT_S", 0.1)
    monkeypatch.setattr(session, "STABLE_S", 0.05)

    async def serve_one(socket: ServerConnection) -> None:
        await socket.send(messages.encode(recorded.READY))
        async for _ in socket:
            pass

    attempts = []
    async with serve(serve_one, "127.0.0.1", 0) as server, connect(url_of(server), reconnects=2) as opened:
        with pytest.raises(ConnectionLost, match="no answer"):
            async for event in opened.stream(SECOND):
                if isinstance(event, Reconnecting):
                    attempts.append(event.attempt)
                    assert attempts == sorted(set(attempts))
    assert attempts == [1, 2]


def test_a_row_may_be_of_any_length() -> None:
    """Regression: an OverflowError."""
    assert [session.reconnect_delay_s(n, 0.0, 1.0) for n in (1025, 10**400)] == [30.0, 30.0]


async def test_what_is_too_much_for_an_event_ends_the_session() -> None:
    """Regression: it took the memory that it liked to."""

    async def serve_one(socket: ServerConnection) -> None:
        await socket.send(messages.encode(recorded.READY))
        await socket.send("x" * (wire.MAX_EVENT_BYTES + 1))
        socket.transport.pause_reading()  # it does not answer the close
        await left.wait()
        socket.transport.abort()

    left = asyncio.Event()
    # Pings end what answers no close.
    async with serve(serve_one, "127.0.0.1", 0, ping_interval=0.1, ping_timeout=0.1) as server:
        async with connect(url_of(server)) as opened:
            with pytest.raises(ClientError, match="an event of more than 1048576 bytes"):
                [event async for event in opened.events()]
        left.set()


async def test_a_server_that_begins_utterances_without_end_is_none() -> None:
    """Regression: to leave it took a minute."""

    async def serve_one(socket: ServerConnection) -> None:
        await socket.send(messages.encode(recorded.READY))
        for n in range(session.MAX_OPEN + 1):
            await socket.send(messages.encode(recorded.speech(f"u{n}", 10)))
        await socket.wait_closed()

    async with serve(serve_one, "127.0.0.1", 0) as server, connect(url_of(server)) as opened:
        with pytest.raises(ClientError, match="more than 1000 utterances have no outcome"):
            [event async for event in opened.events()]


async def test_close_flushes_and_what_was_said_can_still_be_read(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, connect(app.url, prompt="say flushed", **MANUAL) as session:
        await session.send(SECOND)
        await session.close()
        await session.close()
        types = [type(event) async for event in session.events()]
        with pytest.raises(ClientError, match="the session is over"):
            await session.send(SECOND)
    assert types[-2:] == [messages.Final, messages.Done]


async def test_leaving_the_block_ends_what_waits(scripted: WorkerSpec) -> None:
    """Once, a task that read the events waited for ever."""
    async with Gate() as gate, serving(scripted) as app:
        async with connect(app.url, prompt=gate.script, **MANUAL) as session:
            seen: list[Event] = []

            async def read() -> None:
                async for event in session.events():
                    seen.append(event)

            reading = asyncio.create_task(read())
            await session.send(SECOND)
            await session.commit()
            while not any(isinstance(event, messages.Accepted) for event in seen):
                await asyncio.sleep(0)
        with pytest.raises(ClientError, match="its block was left"):
            await reading
        with pytest.raises(ClientError, match="its block was left"):
            await session.close()
    assert [type(event) for event in seen[-2:]] == [messages.Retry, messages.Dropped]


async def test_one_line_in_a_running_loop_says_what_to_do_instead() -> None:
    with pytest.raises(ClientError, match="an event loop is running here"):
        transcribe(SECOND, "http://127.0.0.1:9")


async def test_the_account_is_of_all_that_was_said_though_it_was_cancelled_before_it_was_sent(
    scripted: WorkerSpec,
) -> None:
    async with serving(scripted) as app, connect(app.url, **MANUAL) as session:
        await session.send(SECOND * 5)
        await session.cancel()
        await session.close()
        events = [event async for event in session.events()]
    assert judged(events).breaches == []
    done = events[-1]
    assert isinstance(done, messages.Done)
    assert (done.received_ms, done.errors, done.lost_ms) == (5000, 0, 0)


async def test_a_second_source_is_told(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, connect(app.url, prompt="say one", **MANUAL) as session:
        assert [event async for event in session.stream(SECOND)]
        with pytest.raises(ClientError, match="no second source"):
            [event async for event in session.stream(SECOND)]


async def test_a_second_source_is_told_while_the_first_one_is_sent(scripted: WorkerSpec) -> None:
    """Regression: both were sent, and the end of the one ended the other."""
    source = Closing()
    async with serving(scripted) as app, connect(app.url, **MANUAL) as session:
        events = session.stream(source.waiting())
        await until(events, messages.SpeechStarted)
        with pytest.raises(ClientError, match="no second source"):
            [event async for event in session.stream(SECOND)]
        assert not source.is_closed.is_set()
        await events.aclose()
        assert source.is_closed.is_set()


async def test_after_end_no_more_audio_is_taken(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app, connect(app.url, prompt=gate.script, **MANUAL) as session:
        await session.send(SECOND)
        await session.end()
        with pytest.raises(ClientError, match="it was ended"):
            await session.send(SECOND)
        with pytest.raises(ClientError, match="it was ended"):
            await session.commit()


async def test_end_is_the_end_of_a_source_that_is_streamed(scripted: WorkerSpec) -> None:
    """Also where the server cannot be told yet, and the source has more: it was sent on until then."""
    has_ended = asyncio.Event()

    async def said() -> AsyncIterator[bytes]:
        yield SECOND
        await has_ended.wait()
        yield SECOND

    async with (
        serving(scripted) as app,
        Proxy(app.url).listening() as proxy,
        connect(proxy.url, **MANUAL) as session,
    ):
        events = session.stream(said())
        await until(events, messages.SpeechStarted)
        end_stall = proxy.stall()
        await session.end()
        has_ended.set()
        for _ in range(100):  # turns of the loop, in which it could be sent
            await asyncio.sleep(0)
        end_stall()
        done = await until(events, messages.Done)
    assert (done.received_ms, done.decoded_ms) == (1000, 1000)


async def test_events_that_nobody_reads_end_the_session_and_not_the_memory(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MAX_UNREAD", 10)
    async with serving(scripted) as app, connect(app.url, **MANUAL) as opened:
        with pytest.raises(ClientError, match="10 events were not read"):
            for _ in range(1000):
                await opened.send(SECOND[:3200])
                await opened.commit()


async def test_send_waits_when_the_ring_is_full_of_what_is_not_sent(scripted: WorkerSpec) -> None:
    async with (
        serving(scripted) as app,
        Proxy(app.url).listening() as proxy,
        connect(proxy.url, ring_s=10, prompt="say all of it", **MANUAL) as session,
    ):
        proxy.stall()
        sending = asyncio.create_task(session.send(SECOND * 30))
        while session.behind_s < 8:
            await asyncio.sleep(0)
        proxy.cut()
        await sending
        await session.close()
        events = [event async for event in session.events()]
    assert not [event for event in events if isinstance(event, Gap | messages.Dropped)]
    done = events[-1]
    assert isinstance(done, messages.Done)
    assert (done.received_ms, done.decoded_ms) == (30_000, 30_000)


async def test_a_ring_may_be_small(scripted: WorkerSpec) -> None:
    """Once, `send` waited for room that such a ring never had."""
    async with serving(scripted) as app, connect(app.url, ring_s=1, prompt="say small", **MANUAL) as session:
        await session.send(SECOND * 3)
        await session.close()
        final = await until(session.events(), messages.Final)
    assert (final.text, final.audio_end_ms) == ("small", 3000)


async def test_what_has_its_outcome_does_not_fill_the_ring(scripted: WorkerSpec) -> None:
    """Regression: while the connection was away, all that was ever said counted as not sent."""
    async with (
        serving(scripted) as app,
        Proxy(app.url).listening() as proxy,
        connect(proxy.url, ring_s=6, prompt="say so", **MANUAL) as session,
    ):
        events = session.events()
        for _ in range(4):
            await session.send(SECOND * 2)
            await session.commit()
            await until(events, messages.Final)
        proxy.point_to("http://127.0.0.1:9")
        proxy.cut()
        await until(events, Reconnecting)
        assert session.behind_s == 0
        await session.send(SECOND)
        assert session.behind_s == 1


async def test_what_is_dropped_without_another_try_is_told_and_the_session_goes_on() -> None:
    """Regression: it ended there, without `done` and without an error."""

    async def serve_one(socket: ServerConnection) -> None:
        await socket.send(messages.encode(recorded.READY))
        n_frames = 0
        async for frame in socket:
            if isinstance(frame, bytes):
                n_frames += len(frame) // 2
                if n_frames == len(frame) // 2:
                    for event in (
                        recorded.speech("u1", 0),
                        recorded.busy("u1", held_ms=0, retryable=False),
                        recorded.dropped("u1", 0, 50, "not_held"),
                    ):
                        await socket.send(messages.encode(event))
                continue
            match messages.decode_message(frame):
                case messages.Start():
                    await socket.send(messages.encode(recorded.STARTED))
                case messages.Ping(id=id):
                    await socket.send(messages.encode(messages.Pong(id=id)))
                case messages.End():
                    await socket.send(messages.encode(messages.Done(n_frames // 16, 0, 0, 50, 0, 0, 1, 0, 1, 0)))
                    return

    async with serve(serve_one, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with connect(f"http://127.0.0.1:{port}", reconnects=0) as session:
            events = [event async for event in session.stream(SECOND * 2)]
    [dropped] = [event for event in events if isinstance(event, messages.Dropped)]
    assert (dropped.reason, dropped.audio_end_ms) == ("not_held", 50)
    assert isinstance(events[-1], messages.Done)
    assert events[-1].received_ms == 2000


@pytest.mark.parametrize("id", ["9" * 400, "NaN", "[" * 100_000])
async def test_what_is_no_event_ends_the_session_with_an_error_of_the_clients(id: str) -> None:
    async def serve_one(socket: ServerConnection) -> None:
        await socket.send(messages.encode(recorded.READY))
        await socket.recv()
        await socket.send(f'{{"type":"pong","id":{id}}}')
        await socket.wait_closed()

    async with serve(serve_one, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with connect(f"http://127.0.0.1:{port}") as session:
            await session.send(SECOND)
            with pytest.raises(ClientError, match="is this an asr_ws server"):
                [event async for event in session.events()]


class Closing:
    """A source that has more than anybody takes, and says when it was closed."""

    def __init__(self) -> None:
        self.is_closed = threading.Event()

    def blocking(self) -> Iterator[bytes]:
        try:
            while True:
                yield SECOND
        finally:
            self.is_closed.set()

    def __iter__(self) -> Iterator[bytes]:
        return self.blocking()

    async def waiting(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield SECOND
        finally:
            self.is_closed.set()


SOURCES: dict[str, Callable[[Closing], Any]] = {
    "generator": Closing.blocking,
    "iterable": lambda source: source,
    "async": Closing.waiting,
}


@pytest.mark.parametrize("kind", SOURCES)
async def test_a_source_is_closed_when_the_session_fails(scripted: WorkerSpec, kind: str) -> None:
    source = Closing()
    held = SOURCES[kind](source)
    async with (
        serving(scripted) as app,
        Proxy(app.url).listening() as proxy,
        connect(proxy.url, reconnects=0, **MANUAL) as session,
    ):
        events = session.stream(held)
        await until(events, messages.SpeechStarted)
        proxy.cut()
        with pytest.raises(ConnectionLost):
            [event async for event in events]
        await asyncio.to_thread(source.is_closed.wait, 5)
        assert source.is_closed.is_set()


@pytest.mark.parametrize("kind", SOURCES)
async def test_a_source_is_closed_when_its_user_ends_it(scripted: WorkerSpec, kind: str) -> None:
    source = Closing()
    held = SOURCES[kind](source)
    async with serving(scripted) as app, connect(app.url, **MANUAL) as session:
        events = session.stream(held)
        await until(events, messages.SpeechStarted)
        await session.end()
        await until(events, messages.Done)
        await asyncio.to_thread(source.is_closed.wait, 5)
        assert source.is_closed.is_set()


@pytest.mark.parametrize("kind", SOURCES)
async def test_a_source_is_closed_with_the_block(scripted: WorkerSpec, kind: str) -> None:
    """Also where its user still holds the events."""
    source = Closing()
    held = SOURCES[kind](source)
    async with serving(scripted) as app:
        async with connect(app.url, **MANUAL) as session:
            events = session.stream(held)
            await until(events, messages.SpeechStarted)
        await asyncio.to_thread(source.is_closed.wait, 5)
        assert source.is_closed.is_set()
        await events.aclose()


async def test_a_source_that_was_cancelled_ends_the_session(scripted: WorkerSpec) -> None:
    async def said() -> AsyncIterator[bytes]:
        yield SECOND
        raise asyncio.CancelledError

    async with serving(scripted) as app, connect(app.url, **MANUAL) as session:
        with pytest.raises(ClientError, match="the source was cancelled"):
            [event async for event in session.stream(said())]


def exiting(error: BaseException) -> Iterator[bytes]:
    yield SECOND
    raise error


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), BaseException("neither")])
async def test_whatever_a_source_raises_ends_the_session(scripted: WorkerSpec, error: BaseException) -> None:
    """Regression: of what is no `Exception` the events told nothing, for ever."""
    async with serving(scripted) as app, connect(app.url, **MANUAL) as session:
        with pytest.raises(type(error)) as caught:
            [event async for event in session.stream(exiting(error))]
    assert caught.value is error


async def test_a_source_that_does_not_end_does_not_hold_the_block(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LEAVE_S", 0.1)
    left, is_closed = asyncio.Event(), asyncio.Event()

    async def said() -> AsyncIterator[bytes]:
        try:
            while True:
                yield SECOND
        finally:
            await left.wait()
            is_closed.set()

    async with serving(scripted) as app:
        async with connect(app.url, **MANUAL) as opened:
            events = opened.stream(said())
            await until(events, messages.SpeechStarted)
        left.set()
        await is_closed.wait()
        await events.aclose()


@pytest.mark.parametrize("options", [{"ring_s": 0.5}, {"ring_s": float("nan")}, {"reconnects": -1}])
async def test_options_that_are_none_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(ClientError, match="ring_s is"):
        async with connect("http://127.0.0.1:9", **options):
            pass


async def test_a_server_that_says_nothing_at_all_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "OPEN_S", 0.1)
    async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as mute:
        port = mute.sockets[0].getsockname()[1]
        with pytest.raises(Unreachable, match="no answer within"):
            async with connect(f"http://127.0.0.1:{port}"):
                pass


async def test_a_source_that_fails_is_the_last_of_it(scripted: WorkerSpec) -> None:
    """Regression: while its user was slow to read, an utterance was dropped and then final."""

    async def said() -> AsyncIterator[bytes]:
        yield SECOND
        await committed.wait()
        raise OSError("unplugged")

    committed = asyncio.Event()
    async with Gate() as gate, serving(scripted) as app, connect(app.url, prompt=gate.script, **MANUAL) as session:
        seen: list[Event] = []
        with pytest.raises(OSError, match="unplugged"):
            async for event in session.stream(said()):
                seen.append(event)
                if isinstance(event, messages.SpeechStarted):
                    await session.commit()
                if isinstance(event, messages.Accepted):
                    committed.set()
                    await gate.open()
                    while not (await stats(app))["finals"]:  # a slow reader: what the server says meanwhile ...
                        pass
                    with pytest.raises(OSError, match="unplugged"):  # ... and behind it is not for him
                        await session.close()
    outcomes = [event for event in seen if isinstance(event, messages.Final | messages.Dropped)]
    assert len(outcomes) == 1


async def test_a_token_that_was_wanted_in_start_does_not_fix_the_format(
    scripted: WorkerSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`start` is sent before it is known what will be streamed."""
    token = "client-token-of-enough-letters"
    (tmp_path / "tokens").write_text(token, "utf-8")
    monkeypatch.setattr(reception.Asked, "bearer", None)
    soundfile.write(tmp_path / "high.wav", [0.0] * 48_000, 48_000, subtype="PCM_16")
    async with (
        serving(scripted, auth_token_file=str(tmp_path / "tokens")) as app,
        connect(app.url, token=token, **MANUAL) as session,
    ):
        events = [event async for event in session.stream(tmp_path / "high.wav")]
    assert [event.audio.sample_rate for event in events if isinstance(event, messages.Started)] == [48_000]
    assert isinstance(events[-1], messages.Done)
    assert events[-1].decoded_ms == 1000


async def test_a_second_source_of_another_format_is_told(scripted: WorkerSpec, tmp_path: Any) -> None:
    soundfile.write(tmp_path / "high.wav", [0.0] * 48_000, 48_000)
    async with serving(scripted) as app, connect(app.url, **MANUAL) as session:
        await session.send(SECOND)
        with pytest.raises(ClientError, match="audio of another format"):
            async for _ in session.stream(tmp_path / "high.wav"):
                pass


# ---------------------------------------------------------------- without async


async def test_the_synchronous_twin_streams(scripted: WorkerSpec) -> None:
    def stream(url: str) -> list[Event]:
        with sync.connect(url, prompt="say twin", **MANUAL) as session:
            assert session.ready.model == "base"
            return list(session.stream(iter([SECOND, SECOND])))

    async with serving(scripted) as app:
        events = await asyncio.to_thread(stream, app.url)
    assert judged(events).breaches == []
    assert [event.text for event in events if isinstance(event, messages.Final)] == ["twin"]


async def test_the_synchronous_twin_does_all_else(scripted: WorkerSpec) -> None:
    def talk(url: str) -> list[str]:
        with sync.connect(url, prompt="say twin", **MANUAL) as session:
            session.send(SECOND)
            session.commit("c1")
            session.send(SECOND)
            for event in session.events():
                if isinstance(event, messages.SpeechStarted) and event.utterance == "u2":
                    break
            session.cancel()
            session.close()
            assert session.behind_s == 0
            return [type(event).__name__ for event in session.events()]

    async with serving(scripted) as app:
        rest = await asyncio.to_thread(talk, app.url)
    assert rest[-2:] == ["Dropped", "Done"]


async def test_the_synchronous_twin_raises_what_the_other_one_does(scripted: WorkerSpec) -> None:
    def fail(url: str) -> None:
        with sync.connect(url, language="tlh") as session:
            for _ in session.stream(SECOND):
                pass

    async with serving(scripted, ready=False) as app:
        with pytest.raises(SessionFailed, match="unsupported_language"):
            await asyncio.to_thread(fail, app.url)
    with pytest.raises(Unreachable):
        await asyncio.to_thread(fail, "http://127.0.0.1:9")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_the_synchronous_twin_raises_whatever_a_source_does(scripted: WorkerSpec, error: BaseException) -> None:
    """Regression: its loop ended by it, and what waited there waited for ever."""

    def fail(url: str) -> None:
        with pytest.raises(type(error)), sync.connect(url, **MANUAL) as session:
            list(session.stream(exiting(error)))

    async with serving(scripted) as app:
        await asyncio.to_thread(fail, app.url)


async def test_the_synchronous_twin_is_over_with_its_block(scripted: WorkerSpec) -> None:
    """Once, a thread that read the events waited for ever."""

    def leave(url: str) -> list[BaseException]:
        ends: list[BaseException] = []

        def read() -> None:
            with pytest.raises(ClientError) as caught:
                list(events)
            ends.append(caught.value)

        with sync.connect(url) as session:
            events = session.events()
            assert isinstance(next(events), messages.Ready)
            reader = threading.Thread(target=read)
            reader.start()
        reader.join()
        with pytest.raises(ClientError) as caught:
            session.send(SECOND)
        return [*ends, caught.value]

    async with serving(scripted) as app:
        ends = await asyncio.to_thread(leave, app.url)
    assert [str(each).partition(" (")[0] for each in ends] == ["the session is over: its block was left"] * 2


async def test_the_synchronous_twin_ends_in_order_at_ctrl_c(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, a RuntimeError came of closing the events while they were still waited for."""
    waited = sync.wait
    presses = iter([KeyboardInterrupt()])

    def interrupted(futures: Any, timeout: float) -> Any:
        done = waited(futures, timeout=0.05)
        if not done.done and (press := next(presses, None)):
            raise press
        return done

    async def said() -> AsyncIterator[bytes]:
        yield SECOND
        await asyncio.Event().wait()

    def talk(url: str) -> None:
        with pytest.raises(KeyboardInterrupt), sync.connect(url) as session:
            for _ in session.stream(said()):
                monkeypatch.setattr(sync, "wait", interrupted)

    async with serving(scripted) as app:
        await asyncio.to_thread(talk, app.url)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_presses", [1, 2, 3, 4])
async def test_the_synchronous_twin_leaves_nothing_however_often_ctrl_c_is_pressed(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch, n_presses: int
) -> None:
    """Once, the second one left the loop's thread, and the loop open."""
    waited, made = concurrent.futures.wait, asyncio.new_event_loop
    presses = iter([KeyboardInterrupt()] * n_presses)
    loops: list[asyncio.AbstractEventLoop] = []

    def interrupted(futures: Any, timeout: float) -> Any:
        if press := next(presses, None):
            raise press
        return waited(futures, timeout)

    def make() -> asyncio.AbstractEventLoop:
        loops.append(made())
        return loops[-1]

    def talk(url: str) -> None:
        monkeypatch.setattr(asyncio, "new_event_loop", make)
        with pytest.raises(KeyboardInterrupt), sync.connect(url) as session:
            session.send(SECOND)
            monkeypatch.setattr(sync, "wait", interrupted)
            session.close()
        for thread in threading.enumerate():
            if thread.name == "asr_ws client":
                thread.join(10)

    async with serving(scripted) as app:
        await asyncio.to_thread(talk, app.url)
    assert [loop.is_closed() for loop in loops] == [True]


async def test_a_block_that_is_left_at_once_leaves_no_connection(scripted: WorkerSpec) -> None:
    """Regression: the task that was to close it was cancelled before it had begun."""
    async with serving(scripted) as app:
        async with connect(app.url):
            pass
        while (await stats(app))["sessions"]:
            pass


async def test_a_session_that_is_cancelled_while_it_ends_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that does not answer the close."""
    sockets: list[ClientConnection] = []

    async def noted(*args: Any, **options: Any) -> Any:
        sockets.append(await open_socket(*args, **options))
        return sockets[-1]

    async def serve_one(socket: ServerConnection) -> None:
        await socket.send(messages.encode(recorded.READY))
        socket.transport.pause_reading()
        await left.wait()
        socket.transport.abort()

    async def talk(url: str) -> None:
        async with connect(url):
            pass

    left = asyncio.Event()
    monkeypatch.setattr(wire, "open_socket", noted)
    async with serve(serve_one, "127.0.0.1", 0) as server:
        talking = asyncio.create_task(talk(f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"))
        while not (sockets and sockets[0].state is State.CLOSING):
            await asyncio.sleep(0)
        ours = [talking, *(task for task in asyncio.all_tasks() if task.get_name() == "asr_ws session")]
        for task in ours:  # as `asyncio.run` does at Ctrl-C
            task.cancel()
        await asyncio.wait(ours)
        assert sockets[0].transport.is_closing()
        left.set()


async def test_what_a_broken_client_meets_ends_the_session_with_its_error(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, event: Event, *, now: float) -> list[Event]:
        raise AssertionError("ours")

    monkeypatch.setattr(rules.Connection, "receive", broken)
    async with serving(scripted, ready=False) as app, connect(app.url) as opened:
        with pytest.raises(AssertionError, match="ours"):
            await opened.close()
    assert isinstance(opened, Session)
