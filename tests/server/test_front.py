"""The hand-off: which library has a connection, and what becomes of those that neither has.

It is the guard of what `asr_ws.server.front` relies on in websockets and aiohttp: ``tests/test_lowest_versions.py``
runs it on the lowest versions that we take.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from asr_ws.server import front, http, listener
from asr_ws.server.answer import HEADERS
from asr_ws.server.form import BodyLimits
from asr_ws.server.front import CHUNKED_SLICE_BYTES, END, HEAD_BYTES, SLICE_BYTES, Front, Head, Polite
from asr_ws.server.http import Route, Visit
from asr_ws.server.intake import Turns
from asr_ws.worker.supervisor import WorkerSpec
from benchmarks.wire import CLOSE, TEXT
from tests.server.asking import form
from tests.server.raw import frame
from tests.server.reach import FORM, GET, HOST, STREAM, UPGRADE, Ports, Reach, body, head, post, status

REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
FOR_EVER_S = 1e6


# ---------------------------------------------------------------- the head, without a socket


class Wire(asyncio.Transport):
    """Says what was done to it. Unrealistic: nothing is ever lost on it, unless `lose` is called."""

    def __init__(self, *, halves: bool = True) -> None:
        super().__init__()
        self.halves = halves  # whether it can be closed by halves, as TLS cannot
        self.done: list[str] = []
        self.written = b""
        self.protocol: Any = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return self.halves

    def write_eof(self) -> None:
        self.done.append("eof")

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.done or "abort" in self.done

    def resume_reading(self) -> None:
        self.done.append("read on")

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def lose(self) -> None:
        self.protocol.connection_lost(None)


class Ward:
    """A head on a wire, and what came of it."""

    def __init__(self, timeout_s: float | None = FOR_EVER_S) -> None:
        self.handed: list[bytes] = []
        self.refused: list[HTTPStatus] = []
        self.told = asyncio.Event()
        self.wire = Wire()
        self.head = Head(lambda _, data: self.handed.append(data), self._refuse, timeout_s)
        self.head.connection_made(self.wire)

    def _refuse(self, status: HTTPStatus) -> None:
        self.refused.append(status)
        self.told.set()

    def feed(self, data: bytes, n_bytes: int = 0) -> None:
        for start in range(0, len(data), n_bytes or len(data) or 1):
            self.head.data_received(data[start : start + (n_bytes or len(data))])


@pytest.mark.parametrize("before", [b"", b"\r\n", b"\r\n\r\n\r\n", b"\n\n"])
@pytest.mark.parametrize("n_bytes", [0, 1, 2, 3, 5])
async def test_head_is_handed_off_once_it_is_whole_however_it_is_cut(before: bytes, n_bytes: int) -> None:
    ward = Ward()
    ward.feed(before + REQUEST[:-1], n_bytes)
    assert ward.handed == []
    ward.feed(REQUEST[-1:])
    assert (ward.handed, ward.refused, ward.wire.done) == ([REQUEST], [], [])
    ward.feed(b"what comes now is the other's")
    assert ward.handed == [REQUEST]


async def test_what_came_with_the_head_is_handed_off_with_it() -> None:
    ward = Ward()
    ward.feed(REQUEST + b"body" + REQUEST)
    assert ward.handed == [REQUEST + b"body" + REQUEST]


def of_bytes(n: int) -> bytes:
    return b"GET / HTTP/1.1\r\nX: ".ljust(n, b"x") + END


@pytest.mark.parametrize("n_bytes", [0, 1000, HEAD_BYTES])
async def test_a_head_may_have_so_many_bytes_and_no_more(n_bytes: int) -> None:
    fits, too_large, endless = Ward(), Ward(), Ward()
    fits.feed(of_bytes(HEAD_BYTES), n_bytes)
    too_large.feed(of_bytes(HEAD_BYTES + 1), n_bytes)
    endless.feed(b"x" * (HEAD_BYTES + 1), n_bytes)
    assert (len(fits.handed), fits.refused) == (1, [])
    assert (too_large.handed, too_large.refused) == ([], [431])
    assert (endless.handed, endless.refused) == ([], [431])


async def test_what_comes_behind_a_head_does_not_make_it_larger() -> None:
    ward = Ward()
    ward.feed(REQUEST + bytes(2 * HEAD_BYTES))
    assert (len(ward.handed), ward.refused) == (1, [])


async def test_empty_lines_without_end_take_no_memory_and_end_with_the_time() -> None:
    ward = Ward(timeout_s=0.01)
    for _ in range(100):
        ward.feed(b"\r\n" * HEAD_BYTES)
    assert len(ward.head._data) <= 3
    await ward.told.wait()
    assert ward.refused == [408]


async def test_a_head_that_does_not_come_is_refused_in_the_shape_of_every_error() -> None:
    ward = Ward(timeout_s=0.01)
    ward.feed(REQUEST[:-1])
    await ward.told.wait()
    answer, _, content = ward.wire.written.partition(END)
    assert answer.split(b"\r\n") == [
        b"HTTP/1.1 408 Request Timeout",
        *(f"{name}: {value}".encode() for name, value in HEADERS.items()),
        b"Content-Type: application/json; charset=utf-8",
        b"Content-Length: 117",
        b"Connection: close",
    ]
    assert content == (
        b'{"error": {"message": "Request Timeout", "type": "invalid_request_error", "param": null, '
        b'"code": "request_timeout"}}\n'
    )
    assert (ward.wire.done, ward.handed) == (["eof", "read on"], [])
    ward.feed(REQUEST[-1:])
    assert ward.handed == []


@pytest.mark.parametrize(
    ("line", "is_known"),
    [
        ("GET / HTTP/1.1", True),
        ("GET / HTTP/1.0", True),
        ("GET /x", False),
        ("GET / HTTP/0.9", False),
        ("GET / HTTP/1.2", False),
        ("GET / HTTP/2.0", False),
        ("PRI * HTTP/2.0", False),
        ("garbage", True),  # of which aiohttp says what is wrong
        ("GET / HTTP/2", True),
        ("GET / HTTP/1.10", True),
        ("\x16\x03\x01\x02", True),
    ],
)
async def test_another_version_is_for_neither_library(line: str, is_known: bool) -> None:
    ward = Ward()
    ward.feed(head(line, "Host: x"))
    assert (len(ward.handed), ward.refused) == ((1, []) if is_known else (0, [505]))


async def test_who_goes_in_his_head_is_forgotten() -> None:
    ward = Ward()
    ward.feed(REQUEST[:-1])
    ward.head.eof_received()
    ward.head.connection_lost(None)
    ward.feed(REQUEST[-1:])
    ward.head.refuse(HTTPStatus.SERVICE_UNAVAILABLE)
    assert (ward.handed, ward.refused, ward.wire.written) == ([], [], b"")
    assert ward.head._timer is not None
    assert ward.head._timer.cancelled()


async def test_who_was_handed_off_is_not_timed_any_more() -> None:
    ward = Ward()
    ward.feed(REQUEST)
    assert ward.head._timer is not None
    assert ward.head._timer.cancelled()


async def test_who_is_in_his_head_when_it_closes_is_told_and_who_comes_then() -> None:
    refused: list[HTTPStatus] = []
    door = Front(asyncio.Protocol, lambda _: False, refused.append, FOR_EVER_S, Turns())
    wires = [Wire() for _ in range(3)]
    heads = [door.http_only() for _ in range(2)]
    for each, wire in zip(heads, wires, strict=False):
        each.connection_made(wire)
    heads[0].data_received(REQUEST)
    door.close()
    late = door.http_only()
    late.connection_made(wires[2])
    assert refused == [503, 503]
    assert [wire.written[:12] for wire in wires] == [b"", b"HTTP/1.1 503", b"HTTP/1.1 503"]
    answer, _, content = wires[1].written.partition(END)
    assert set(answer.split(b"\r\n")) >= {b"Retry-After: 1", b"retry-after-ms: 1000", b"x-should-retry: true"}
    assert json.loads(content) == {
        "error": {"message": "the server is stopping", "type": "server_error", "param": None, "code": "draining"},
        "retry_after_ms": 1000,
        "estimated_wait_ms": 0,
        "queue_depth": 0,
    }


async def test_heads_that_are_over_are_not_kept() -> None:
    door = Front(asyncio.Protocol, lambda _: False, lambda _: None, FOR_EVER_S, Turns())
    for _ in range(10):
        over = door.http_only()
        over.connection_made(Wire())
        over.data_received(REQUEST)
    del over
    gc.collect()
    assert len(door._pending) == 0


# ---------------------------------------------------------------- leaving, without a socket


class Told(asyncio.Protocol):
    n_lost = 0
    is_heard_out = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.n_lost += 1


def leave(wire: Wire, *, peer_has_left: bool = False, is_heard_out: bool = False) -> Told:
    told = Told()
    told.is_heard_out = is_heard_out
    polite = Polite(wire, told)
    polite.peer_has_left = peer_has_left
    polite.close()
    polite.close()
    assert polite.is_closing()
    return told


async def test_who_still_sends_is_read_until_he_closes_too() -> None:
    wire = Wire()
    told = leave(wire)
    wire.protocol.data_received(bytes(1000))
    assert (wire.done, told.n_lost) == (["eof", "read on"], 0)
    assert wire.protocol.eof_received() is None, "asyncio closes"
    wire.lose()
    assert told.n_lost == 1


async def test_who_has_reset_the_connection_is_left_at_once() -> None:
    """Regression: a traceback, and reading stayed paused for LINGER_S."""

    class Reset(Wire):
        def write_eof(self) -> None:
            raise OSError(errno.ENOTCONN, "not connected")

    wire = Reset()
    leave(wire)
    assert wire.done == ["abort"]


async def test_whose_peer_has_left_leaves_at_once() -> None:
    wire = Wire()
    leave(wire, peer_has_left=True)
    assert wire.done == ["close", "read on"]


async def test_who_does_not_close_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "LINGER_S", 0.01)
    for wire in (Wire(), Wire(halves=False)):
        leave(wire)
        while "abort" not in wire.done:
            wire.protocol.data_received(b"x")
            await asyncio.sleep(0)


async def test_over_tls_who_was_heard_out_is_not_waited_for() -> None:
    wire = Wire(halves=False)
    leave(wire, is_heard_out=True)
    assert wire.done == ["close", "read on"]


async def test_over_tls_who_still_sends_is_read_until_he_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(halves=False)
    leave(wire)
    for _ in range(3):
        waited = wire.protocol._quiet
        wire.protocol.data_received(b"x")
        assert waited.cancelled()
    assert wire.done == ["read on"]
    monkeypatch.setattr(front, "QUIET_S", 0.0)
    wire.protocol.data_received(b"x")
    while not wire.is_closing():
        await asyncio.sleep(0)
    assert wire.done == ["read on", "close"]


async def test_nothing_is_left_of_who_has_left() -> None:
    wires = [Wire(), Wire(halves=False)]
    for wire in wires:
        leave(wire)
        wire.lose()
    assert [wire.done for wire in wires] == [["eof", "read on"], ["read on"]]
    timers = [timer for wire in wires for timer in (wire.protocol._timer, wire.protocol._quiet) if timer is not None]
    assert [timer.cancelled() for timer in timers] == [True] * 3


# ---------------------------------------------------------------- on sockets: both libraries


@pytest.fixture
def serving(ports: Ports, scripted: WorkerSpec, tmp_path: Path) -> Callable[..., Any]:
    return partial(ports.serving, scripted, tmp_path)


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Any:
    """Of what strangers do neither library has a word to say, nor asyncio."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


SESSION = frame(TEXT, b'{"type":"start"}') + frame(TEXT, b'{"type":"end"}')


@pytest.mark.parametrize("n_bytes", [0, 1, 7])
async def test_sessions_and_requests_are_served_however_they_are_cut(serving: Callable[..., Any], n_bytes: int) -> None:
    async with serving() as reach:
        async with reach.sessions() as socket:
            await socket.send(STREAM + SESSION, n_bytes)
            assert (await socket.reader.readuntil(END)).startswith(b"HTTP/1.1 101 ")
            events = [(await socket.next())[1] for _ in range(3)]
            assert [event.partition(b",")[0] for event in events] == [
                b'{"type":"ready"',
                b'{"type":"started"',
                b'{"type":"done"',
            ]
            assert await socket.next() == (CLOSE, b"\x03\xe8")
        answer = await reach.exchange(GET, n_bytes)
        assert (status(answer), body(answer)) == (200, b"alive\n")
        answer = await reach.exchange(post("/v1/jobs", form(b"RIFF")), n_bytes)
        assert status(answer) == 202


async def test_a_body_may_come_with_its_head_or_after_it(serving: Callable[..., Any]) -> None:
    request = post("/v1/jobs", form(bytes(300_000)))
    end = request.index(END) + len(END)
    async with serving() as reach, AsyncExitStack() as stack:
        for cut in (end, end - 1, end + 1, end + 1000):
            socket = await stack.enter_async_context(reach.http())
            await socket.send(request[:cut])
            for _ in range(100):
                await asyncio.sleep(0)
            await socket.send(request[cut:])
            assert status(await socket.rest()) == 202


async def test_who_would_speak_http_2_if_he_could_has_his_body_read(serving: Callable[..., Any]) -> None:
    """As Java's client says of each request without TLS."""
    wishes = (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    )
    async with serving() as reach:
        assert status(await reach.exchange(post("/v1/jobs", form(b"RIFF"), *wishes))) == 202


async def test_an_upgrade_of_a_page_is_none_whatever_stands_behind_it(serving: Callable[..., Any]) -> None:
    """Regression: with aiohttp before 3.14.4 the answer was lost, and a traceback logged."""
    async with serving() as reach:
        for behind in (b"", SESSION, b"\0" * 1000, GET):
            answer = await reach.exchange(head("GET /livez HTTP/1.1", HOST, *UPGRADE) + behind)
            assert (status(answer), answer.count(b"HTTP/1.")) == (200, 1)


async def test_what_stands_behind_a_request_is_neither_kept_nor_looked_at(serving: Callable[..., Any]) -> None:
    may_answer = asyncio.Event()

    async def later(visit: Visit, _: str) -> web.StreamResponse:
        await may_answer.wait()
        return visit.respond(200, "{}")

    async with serving() as reach, answering(reach, later), reach.http() as socket:
        await socket.send(ANSWER)
        await socket.send(GET * 50_000)
        may_answer.set()
        assert (await socket.rest()).count(b"HTTP/1.1 ") == 1
        assert reach.app.listener.http.requests == {("/v1/answer", 200): 1}


async def test_requests_and_sessions_at_once_are_each_their_own(serving: Callable[..., Any]) -> None:
    async with serving() as reach:
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(reach.exchange(GET)) for _ in range(20)]
            events = [tasks.create_task(first_event(reach)) for _ in range(20)]
        assert {status(answer.result()) for answer in answers} == {200}
        assert {event.result() for event in events} == {"ready"}


async def first_event(reach: Reach) -> str:
    async with reach.client() as client:
        type: str = (await client.next())["type"]
        return type


# ---------------------------------------------------------------- on sockets: those that are slow, or large


async def test_slow_heads_are_cut_off_and_counted(serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_TIMEOUT_S", 1.0)
    async with serving() as reach, AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(reach.http()) for _ in range(len(GET))]
        for at, socket in enumerate(slow):
            await socket.send(GET[:at])
        assert {status(await socket.rest()) for socket in slow} == {408}
        assert reach.app.listener.http.requests["other", 408] == len(slow)
        assert status(await reach.exchange(GET)) == 200


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/audio/transcriptions"])
async def test_slow_bodies_are_cut_off(serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    for module in ("jobs", "transcriptions"):
        monkeypatch.setattr(f"asr_ws.server.{module}.BodyLimits", partial(BodyLimits, grace_s=0.1))
    request = post(path, form(bytes(1000)))
    async with serving(ready=True) as reach, reach.http() as socket:
        await socket.send(request[:-100])
        answer = await socket.rest()
        assert (status(answer), b'"code": "slow_body"' in answer) == (408, True)
        assert reach.app.listener.http.requests == {(path, 408): 1}


async def test_large_heads_are_refused_though_more_of_them_comes(serving: Callable[..., Any]) -> None:
    async with serving() as reach:
        answer = await reach.exchange(head("GET /livez HTTP/1.1", HOST, "X: " + "x" * 1_000_000))
        assert status(answer) == 431
        assert reach.app.listener.http.requests == {("other", 431): 1}


async def test_who_uploads_what_is_refused_is_told_so(serving: Callable[..., Any]) -> None:
    """Regression: over TLS the connection was reset in the middle of his sending, and the refusal lost with it."""
    n_bytes = 5_000_000
    async with serving(max_upload_mb=1) as reach:
        for path, wanted in (("/v1/jobs", 413), ("/v1/nothing", 404), ("/v1/models", 405), ("/", 405)):
            async with reach.http() as socket:
                await socket.send(post(path, form(bytes(n_bytes))))
                assert status(await socket.rest()) == wanted, path


async def test_what_else_is_expected_than_to_go_on_is_refused_at_once(serving: Callable[..., Any]) -> None:
    """Regression: it was ignored, and the body waited for, which that client does not send."""
    async with serving() as reach:
        answer = await reach.exchange(post("/v1/jobs", b"", "Expect: something-else"))
    assert (status(answer), b'"code": "expectation_failed"' in answer) == (417, True)


async def test_a_body_that_is_none_is_refused_at_once(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the library told nobody who waited for it, and the client had 408 after a while."""
    monkeypatch.setattr(front, "QUIET_S", 0.01)
    broken = (b"zz\r\n", b"-1\r\n", b"0x5\r\n", b"f" * 20 + b"\r\n", b"5\r\nabcdeXX", b" 5\r\nabcde\r\n", b"\r\n")
    chunked = head("POST /v1/jobs HTTP/1.1", HOST, FORM, "Transfer-Encoding: chunked")
    async with serving() as reach, AsyncExitStack() as stack:
        for chunk in broken:
            for together in (chunked + chunk, chunked + b"4\r\n--x\r\n\r\n" + chunk):
                socket = await stack.enter_async_context(reach.http())
                await socket.send(together)
                answer = await socket.rest()
                assert (status(answer), b'"code": "bad_multipart"' in answer) == (400, True), chunk


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_body_is_looked_at_a_slice_at_a_time(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, is_chunked: bool
) -> None:
    """Regression: of chunks of one byte 40,000 were looked through at once, 0.3 s in which nobody else was served."""
    looked_at: list[int] = []
    receive = web.RequestHandler.data_received

    def look(connection: Any, data: bytes) -> None:
        looked_at.append(len(data))
        receive(connection, data)

    content = form(bytes(300_000))
    encoding = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(content)}"
    start = head("POST /v1/jobs HTTP/1.1", HOST, FORM, encoding)
    sent = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n" if is_chunked else content
    async with serving() as reach, reach.http() as socket:
        monkeypatch.setattr(web.RequestHandler, "data_received", look)
        await socket.send(start + sent)
        assert status(await socket.rest()) == 202
        assert sum(looked_at) == len(start + sent)
        assert max(looked_at) <= (CHUNKED_SLICE_BYTES if is_chunked else SLICE_BYTES)


async def test_what_comes_after_an_early_answer_is_not_looked_at(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    receive = http._Connection.data_received
    monkeypatch.setattr(
        http._Connection, "data_received", lambda self, data: (looked_at.append(len(data)), receive(self, data))
    )
    chunked = head("POST /v1/nothing HTTP/1.1", HOST, FORM, "Transfer-Encoding: chunked")
    async with serving() as reach, reach.http() as socket:
        await socket.send(chunked + b"1\r\nx\r\n" * 100_000)
        assert status(await socket.rest()) == 404
    assert sum(looked_at) <= len(chunked) + 4 * CHUNKED_SLICE_BYTES


# ---------------------------------------------------------------- on sockets: those that do not read


@asynccontextmanager
async def answering(reach: Reach, handler: Callable[[Visit, str], Any]) -> AsyncIterator[None]:
    """At GET /v1/answer."""
    reach.app.listener.http._routes += (Route("GET", "/v1/answer", handler),)
    yield


ANSWER = head("GET /v1/answer HTTP/1.1", HOST)
LARGE = "x" * 8_000_000


@pytest.mark.parametrize("is_whole", [True, False])
async def test_who_does_not_read_his_answer_is_cut_off(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, is_whole: bool
) -> None:
    monkeypatch.setattr(http, "STUCK_S", 0.2)
    monkeypatch.setattr(front, "LINGER_S", 0.2)

    async def stream(visit: Visit, _: str) -> web.StreamResponse:
        response = await visit.stream("text/event-stream")
        while True:
            await response.write(bytes(10_000))

    async def whole(visit: Visit, _: str) -> web.StreamResponse:
        return visit.respond(200, LARGE)

    async with serving() as reach, answering(reach, whole if is_whole else stream), reach.http() as socket:
        socket.writer.transport.pause_reading()
        await socket.send(ANSWER)
        while not reach.n_connections():
            await asyncio.sleep(0)
        while reach.n_connections() or not reach.app.listener.http.requests:
            await asyncio.sleep(0.01)
        assert reach.app.listener.http.requests["/v1/answer", 200 if is_whole else 499] == 1


async def test_who_reads_his_answer_slowly_has_all_of_it(serving: Callable[..., Any]) -> None:
    """Regression: a large one had to be read within LINGER_S, and was cut off then in mid-word."""

    async def whole(visit: Visit, _: str) -> web.StreamResponse:
        return visit.respond(200, LARGE)

    async with serving() as reach, answering(reach, whole), reach.http() as socket:
        await socket.send(ANSWER)
        answer, n_looks = bytearray(await socket.reader.read(1000)), 0
        [connection] = reach.app.listener.http._server.connections
        while piece := await socket.reader.read(200_000):
            answer += piece
            if connection.transport is not None and not connection.transport.is_closing():
                connection._end_if_stuck(connection.transport.get_write_buffer_size() + 1)  # since it looked last
                n_looks += 1
        assert len(body(bytes(answer))) == len(LARGE) + len("\n")
        assert n_looks > 10, "it left before most was read"


# ---------------------------------------------------------------- on sockets: those that go


async def test_who_has_closed_his_side_has_his_answer_if_it_comes_soon(serving: Callable[..., Any]) -> None:
    async with serving() as reach, reach.http() as socket:
        await socket.send(GET)
        if socket.writer.can_write_eof():
            socket.writer.write_eof()
        assert status(await socket.rest()) == 200


async def test_who_closes_his_side_within_the_body_is_told_that_it_is_none(serving: Callable[..., Any]) -> None:
    upload = post("/v1/jobs", form(bytes(100_000)))
    async with serving() as reach, reach.http() as socket:
        await socket.send(upload[:-1])
        if socket.writer.can_write_eof():
            socket.writer.write_eof()
            answer = await socket.rest()
            assert (status(answer), b'"code": "bad_multipart"' in answer) == (400, True)


async def test_who_asks_for_a_session_with_a_body_has_an_answer(serving: Callable[..., Any]) -> None:
    """Regression: websockets closes without a word."""
    async with serving() as reach:
        for body in (
            "Content-Length: 5",
            "content-length:00",
            "Content-Length: +5",
            "Content-Length:",
            "Transfer-Encoding: chunked",
        ):
            request = head("GET /v1/stream HTTP/1.1", HOST, *UPGRADE, body)
            assert status(await reach.exchange(request)) in (400, 426)


async def test_every_connection_leaves_the_count(serving: Callable[..., Any]) -> None:
    upload = post("/v1/jobs", form(bytes(100_000)))
    async with serving(ready=True) as reach:
        for _ in range(3):
            for request in (b"", GET[:5], GET, upload, upload[:5000], STREAM, STREAM + SESSION, b"garbage\r\n\r\n"):
                async with reach.sessions() as socket:
                    await socket.send(request)
                async with reach.http() as socket:
                    await socket.send(request)
                    socket.writer.transport.abort()
        while reach.n_connections() or reach.app.listener.http._server.connections:
            await asyncio.sleep(0)
        assert status(await reach.exchange(GET)) == 200


async def test_handlers_of_who_has_gone_end_without_a_word(serving: Callable[..., Any]) -> None:
    upload = post("/v1/jobs", form(bytes(100_000)))
    async with serving() as reach:
        async with reach.http() as socket:
            await socket.send(upload[:50_000])
            while not reach.app.listener.http._handling:
                await asyncio.sleep(0)
        while not reach.app.listener.http.requests:
            await asyncio.sleep(0)
        # Without TLS he may have closed his side alone, and be told that this is no body.
        assert reach.app.listener.http.requests == {("/v1/jobs", 499 if reach.tls else 400): 1}


# ---------------------------------------------------------------- the end


async def test_server_stops_though_heads_uploads_and_answers_are_not_over(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python 3.12 on `wait_closed` waits for connections that were handed off, too: here for ever."""
    monkeypatch.setattr(listener, "STOP_TIMEOUT_S", FOR_EVER_S)

    async def stream(visit: Visit, _: str) -> web.StreamResponse:
        response = await visit.stream("text/event-stream")
        await response.write(b"data: 1\n\n")
        await asyncio.get_running_loop().create_future()
        return response

    upload = post("/v1/jobs", form(bytes(100_000)))
    async with AsyncExitStack() as clients:
        async with serving() as reach, answering(reach, stream):
            sockets = []
            for request in (GET[:-1], upload[:5000], ANSWER):
                socket = await clients.enter_async_context(reach.http())
                await socket.send(request)
                sockets.append(socket)
            session = await clients.enter_async_context(reach.sessions())
            await session.send(STREAM)
            await session.reader.readuntil(END)
            await sockets[-1].reader.readuntil(b"data: 1\n\n\r\n")
            while len(reach.app.listener.http._handling) < 2:
                await asyncio.sleep(0)
            rests = [asyncio.create_task(read_and_close(socket)) for socket in sockets]
            closed = asyncio.create_task(close_code_and_close(session))
        head_answer, upload_answer, stream_rest = [await rest for rest in rests]
        assert status(head_answer) == 503
        assert status(upload_answer) == 503
        assert stream_rest == b"", "not as if that were all"
        assert await closed == 1012


async def read_and_close(socket: Any) -> bytes:
    answer: bytes = await socket.rest()
    socket.writer.close()
    return answer


async def close_code_and_close(socket: Any) -> int:
    code: int = await socket.close_code()
    await socket.send(frame(CLOSE, b"\x03\xf4"))
    socket.writer.close()
    return code


# ---------------------------------------------------------------- what aiohttp is relied on for


async def test_answers_tell_no_versions_and_never_keep_a_connection(
    serving: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiohttp")

    async def bug(visit: Visit, _: str) -> web.StreamResponse:
        raise RuntimeError("of the handler")

    keep = "Connection: keep-alive"
    lines = ("GET /livez HTTP/1.1", "GET /livez HTTP/1.0", "GET /nothing HTTP/1.1", "GET /v1/models HTTP/1.1")
    requests = [*(head(line, HOST, keep) for line in lines), head("OPTIONS /v1/jobs HTTP/1.1", HOST, keep)]
    requests += [head("GET /v1/jobs/x HTTP/1.1", HOST, keep), head("POST /v1/jobs HTTP/1.1", HOST, keep)]
    requests += [head("no request", HOST, keep), head("GET /v1/answer HTTP/1.1", HOST, keep)]
    async with serving() as reach, answering(reach, bug):
        for request in requests:
            answer, _, _ = (await reach.exchange(request)).partition(END)
            headers = dict(line.lower().split(b": ", 1) for line in answer.split(b"\r\n")[1:])
            assert headers[b"server"] == b"asr-ws", request
            assert headers.get(b"connection", b"close") == b"close"
            assert headers[b"date"].endswith(b" gmt")
            assert headers[b"x-content-type-options"] == b"nosniff"
    assert caplog.records == []


async def test_head_has_the_headers_of_get_and_no_body(serving: Callable[..., Any]) -> None:
    async with serving() as reach:
        for path in ("/", "/livez", "/v1/stats", "/nothing"):
            of_get = await reach.exchange(head(f"GET {path} HTTP/1.1", HOST))
            of_head = await reach.exchange(head(f"HEAD {path} HTTP/1.1", HOST))
            assert (status(of_head), body(of_head)) == (status(of_get), b"")
            assert names(of_head) == names(of_get)


def names(answer: bytes) -> list[bytes]:
    return [line.partition(b":")[0] for line in answer.partition(END)[0].split(b"\r\n")[1:]]


async def test_our_own_bug_is_told_as_one_and_logged_once(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from structlog.testing import capture_logs

    async def bug(visit: Visit, _: str) -> web.StreamResponse:
        raise RuntimeError("of the handler")

    async with serving() as reach, answering(reach, bug):
        with capture_logs() as logs:
            answer = await reach.exchange(ANSWER)
        assert (status(answer), b"of the handler" in answer) == (500, False)
        assert [log["event"] for log in logs] == ["http.failed"]
        assert reach.app.listener.http.requests == {("/v1/answer", 500): 1}


async def test_what_the_first_request_was_is_all_that_is_counted(serving: Callable[..., Any]) -> None:
    async with serving() as reach:
        await reach.exchange(post("/v1/jobs", b"", "X: 1") + GET)
        await reach.exchange(head("GET /v1/jobs/abc HTTP/1.1", HOST))
        await reach.exchange(head("GET /strange HTTP/1.1", HOST))
        assert reach.app.listener.http.requests == {
            ("/v1/jobs", 400): 1,
            ("/v1/jobs/{job_id}", 404): 1,
            ("other", 404): 1,
        }
