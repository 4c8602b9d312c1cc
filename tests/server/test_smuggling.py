"""Requests that are meant to be taken for other ones, or for two: each has one answer at most, and nothing behind it.

A proxy before us may cut a connection into requests elsewhere than we do. So we never look for a second one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr_ws import log
from asr_ws.server import front, listener
from asr_ws.worker.supervisor import WorkerSpec
from tests.server.asking import form
from tests.server.reach import CRLF, FORM, GET, HOST, STREAM, UPGRADE, Ports, Reach, head, post, status

JOB = post("/v1/jobs", form(b"RIFF"))  # would make a job, were it executed
CHUNKED = "Transfer-Encoding: chunked"
LIVEZ = "GET /livez HTTP/1.1"
JOBS = ("POST /v1/jobs HTTP/1.1", HOST, FORM)
END_OF_CHUNKS = b"0\r\n\r\n"

# What is sent, and the status of the one answer; 0: none. Behind each of them stands JOB.
TWO_LENGTHS = {
    "length and chunks": (head(*JOBS, "Content-Length: 5", CHUNKED) + END_OF_CHUNKS, 400),
    "chunks and length": (head(*JOBS, CHUNKED, "Content-Length: 5") + END_OF_CHUNKS, 400),
    "two lengths": (head(*JOBS, "Content-Length: 5", "Content-Length: 0") + b"abcde", 400),
    "one length twice": (head(LIVEZ, HOST, "Content-Length: 5", "Content-Length: 5") + b"abcde", 400),
    "a list of lengths": (head(LIVEZ, HOST, "Content-Length: 5, 5") + b"abcde", 400),
    "a sign": (head(LIVEZ, HOST, "Content-Length: +5") + b"abcde", 400),
    "less than nothing": (head(LIVEZ, HOST, "Content-Length: -5") + b"abcde", 400),
    "a length of hexadecimals": (head(LIVEZ, HOST, "Content-Length: 0x5") + b"abcde", 400),
    "a length of digits elsewhere": (head(LIVEZ, HOST, "Content-Length: \xb2") + b"ab", 400),
    "a length without end": (head(LIVEZ, HOST, f"Content-Length: {'9' * 30}"), 400),
    "a coding that is none": (head(LIVEZ, HOST, "Transfer-Encoding: xchunked") + END_OF_CHUNKS, 400),
    "chunks and then none": (head(LIVEZ, HOST, "Transfer-Encoding: chunked, identity") + END_OF_CHUNKS, 400),
    "chunks twice": (head(LIVEZ, HOST, CHUNKED, CHUNKED) + END_OF_CHUNKS, 400),
    "another header's chunks": (head(LIVEZ, HOST, CHUNKED, "Transfer-Encoding: identity") + END_OF_CHUNKS, 400),
    "a space before the colon": (head(LIVEZ, HOST, "Transfer-Encoding : chunked") + END_OF_CHUNKS, 400),
    "a tab in the coding": (head(LIVEZ, HOST, "Transfer-Encoding: \x0bchunked") + END_OF_CHUNKS, 400),
    "chunks of HTTP/1.0": (head("GET /livez HTTP/1.0", HOST, CHUNKED) + END_OF_CHUNKS, 200),
    "compressed, and then chunks": (head(LIVEZ, HOST, "Transfer-Encoding: gzip, chunked") + END_OF_CHUNKS, 200),
}
CHUNKS = {
    "no hexadecimals": (head(*JOBS, CHUNKED) + b"zz\r\n\r\n", 400),
    "less than nothing": (head(*JOBS, CHUNKED) + b"-1\r\n\r\n", 400),
    "more than there can be": (head(*JOBS, CHUNKED) + b"f" * 20 + b"\r\n", 400),
    "0x": (head(*JOBS, CHUNKED) + b"0x5\r\nabcde\r\n", 400),
    "longer than it says": (head(*JOBS, CHUNKED) + b"5\r\nabcdeXX", 400),
    "a line of its own": (head(*JOBS, CHUNKED) + b"5\nabcde\r\n", 400),
    "extensions and trailers": (head(LIVEZ, HOST, CHUNKED) + b"5;a=b\r\nabcde\r\n0;x\r\nX-T: 1\r\n\r\n", 200),
    "a trailer that is a length": (head(LIVEZ, HOST, CHUNKED) + b"0\r\nContent-Length: 9999\r\n\r\n", 200),
    "broken, for who reads no body": (head(LIVEZ, HOST, CHUNKED) + b"zz\r\n\r\n", 200),
}
LINES = {
    "a header that goes on": (head(LIVEZ, HOST, "X: a", " b"), 400),
    "a header that goes on at once": (head(LIVEZ, " X: a", HOST), 400),
    "LF after the request": (head("GET /livez HTTP/1.1\n" + HOST), 400),
    "LF after a header": (head(LIVEZ, HOST + "\nX: y"), 400),
    "LF at the end": (head(LIVEZ, HOST + "\n"), 400),
    "CR": (head(LIVEZ, HOST + "\rX: y"), 400),
    "NUL in a value": (head(LIVEZ, HOST, "X: a\0b"), 400),
    "NUL in a name": (head(LIVEZ, HOST, "X\0: a"), 400),
    "NUL in the path": (head("GET /livez\0 HTTP/1.1", HOST), 400),
    "no colon": (head(LIVEZ, HOST, "xyz"), 400),
    "no name": (head(LIVEZ, HOST, ": xyz"), 400),
    "a name with brackets": (head(LIVEZ, HOST, "(x): y"), 400),
    "a thousand headers": (head(LIVEZ, HOST, *["X: y"] * 1000), 400),
    "a long header": (head(LIVEZ, HOST, "X: " + "y" * 20_000), 400),
    "a long path": (head(f"GET /{'y' * 20_000} HTTP/1.1", HOST), 400),
    "no host": (head(LIVEZ), 400),
    "two hosts": (head(LIVEZ, HOST, HOST), 400),
    "bytes that are no text": (head(LIVEZ, HOST, "X: \xff\xfe"), 200),
    "a path that is no text": (head("GET /\xff\xfe HTTP/1.1", HOST), 400),
}
SECONDS = {
    "GET": (GET + GET, 200),
    "POST": (GET + JOB, 200),
    "an upgrade": (GET + STREAM, 200),
    "a hundred": (GET * 100, 200),
    "garbage": (GET + b"\0" * 1000, 200),
    "behind a body": (post("/v1/nothing", b"abc"), 404),
    "behind what is refused": (head("GET /nothing HTTP/1.1", HOST), 404),
    "keep-alive": (head(LIVEZ, HOST, "Connection: keep-alive", "Keep-Alive: timeout=1000"), 200),
}
UPGRADES = {
    "of a page": (head(LIVEZ, HOST, *UPGRADE), 200),
    "of a page, and frames": (head(LIVEZ, HOST, *UPGRADE) + b"\x81\x85abcdefghi", 200),
    "with a body": (head("POST /v1/nothing HTTP/1.1", HOST, *UPGRADE, "Content-Length: 5") + b"abcde", 404),
    "without a protocol": (head(LIVEZ, HOST, "Connection: upgrade", "Content-Length: 5") + b"abcde", 200),
    "to h2c": (head(LIVEZ, HOST, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA"), 200),
    "a job's": (head("POST /v1/jobs HTTP/1.1", HOST, *UPGRADE), 415),
}
TARGETS = {
    "of a proxy": (head("GET http://localhost/livez HTTP/1.1", HOST), 200),
    "of a proxy, in capitals": (head("GET HTTPS://elsewhere:1/asr/v1/models?x HTTP/1.1", HOST), 200),
    "of a proxy, without a path": (head("GET http://localhost HTTP/1.1", HOST), 404),
    "of a proxy, to another path": (head("GET http://localhost//livez HTTP/1.1", HOST), 404),
    "of a proxy, of another scheme": (head("GET ftp://localhost/livez HTTP/1.1", HOST), 404),
    "an authority": (head("GET localhost:80 HTTP/1.1", HOST), 400),
    "CONNECT": (head("CONNECT localhost:80 HTTP/1.1", HOST), 404),
    "CONNECT to a page": (head("CONNECT /livez HTTP/1.1", HOST), 405),
    "OPTIONS of all": (head("OPTIONS * HTTP/1.1", HOST), 404),
    "TRACE": (head("TRACE /livez HTTP/1.1", HOST), 405),
    "HTTP/0.9": (b"GET /livez\r\n\r\n", 505),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/2, pretended": (head("GET /livez HTTP/2.0", HOST), 505),
    "HTTP/1.2": (head("GET /livez HTTP/1.2", HOST), 505),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
}
NO_SESSIONS = {
    "/v1/stream/": 404,
    "/v1%2fstream": 404,
    "/v1/%73tream": 404,
    "//v1/stream": 404,
    "/V1/STREAM": 404,
    "/./v1/stream": 404,
    "/v1/../v1/stream": 404,
    "/v1/stream;x": 404,
    "/v1/stream%3fx": 404,
    "/v1/stream%00": 404,
    "/asr/asr/v1/stream": 404,
    "/asr//v1/stream": 404,
    "/asrv1/stream": 404,
    "/asr/../v1/stream": 404,
    "\\v1\\stream": 400,
    "v1/stream": 400,
}
PATHS = {path: (head(f"GET {path} HTTP/1.1", HOST, *UPGRADE), wanted) for path, wanted in NO_SESSIONS.items()}


@pytest.fixture(autouse=True)
def soon_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "QUIET_S", 0.02)  # which is waited for, over TLS, by each that is not heard out


async def test_a_session_of_a_proxy_is_none(ports: Ports, scripted: WorkerSpec, tmp_path: Path) -> None:
    async with ports.serving(scripted, tmp_path) as reach:
        answer = await reach.exchange(head("GET http://localhost/v1/stream HTTP/1.1", HOST, *UPGRADE))
        assert status(answer) == 426


@pytest.mark.parametrize(
    "table",
    [TWO_LENGTHS, CHUNKS, LINES, SECONDS, UPGRADES, TARGETS, PATHS],
    ids=["lengths", "chunks", "lines", "seconds", "upgrades", "targets", "paths"],
)
@pytest.mark.parametrize("n_bytes", [0, 13])
async def test_each_has_one_answer_and_nothing_behind_it_is_done(
    ports: Ports,
    scripted: WorkerSpec,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    table: dict[str, tuple[bytes, int]],
    n_bytes: int,
) -> None:
    log.configure()
    async with ports.serving(scripted, tmp_path, root_path="/asr") as reach:
        answers = {name: await reach.exchange(sent + JOB, n_bytes) for name, (sent, _) in table.items()}
        assert {name: status(answer) for name, answer in answers.items()} == {
            name: wanted for name, (_, wanted) in table.items()
        }
        assert {name: answer.count(b"HTTP/1.") for name, answer in answers.items()} == dict.fromkeys(table, 1)
        await nothing_else_was_done(reach, len(table))
    log.close()
    assert "library.logged" not in capfd.readouterr().err


async def nothing_else_was_done(reach: Reach, n_requests: int) -> None:
    """No session, no job, and not more requests than these."""
    requests = reach.app.listener.http.requests
    assert requests.total() == n_requests
    assert requests["/v1/jobs", 202] == requests["/v1/stream", 101] == 0
    assert reach.app.listener.n_sessions == 0
    assert sum(reach.app.jobs.counts.values()) == 0
    answer = await reach.exchange(GET)
    assert status(answer) == 200


# Where sessions are: by websockets, which says nothing to the worst of them.
SESSIONS = {
    "no upgrade": (head("GET /v1/stream HTTP/1.1", HOST), 426),
    "POST": (head("POST /v1/stream HTTP/1.1", HOST, *UPGRADE), 426),
    "HEAD": (head("HEAD /v1/stream HTTP/1.1", HOST), 426),
    "CONNECT": (head("CONNECT /v1/stream HTTP/1.1", HOST), 426),
    "HTTP/1.0": (head("GET /v1/stream HTTP/1.0", HOST, *UPGRADE), 505),
    "a length": (head("GET /v1/stream HTTP/1.1", HOST, *UPGRADE, "Content-Length: 5") + b"abcde", 426),
    "chunks": (head("GET /v1/stream HTTP/1.1", HOST, *UPGRADE, CHUNKED) + END_OF_CHUNKS, 426),
    "NUL": (head("GET /v1/stream HTTP/1.1", HOST, *UPGRADE, "X: \0"), 0),
    "a header that goes on": (head("GET /v1/stream HTTP/1.1", HOST, *UPGRADE, "X: a", " b"), 0),
    "a thousand headers": (head("GET /v1/stream HTTP/1.1", HOST, *UPGRADE, *["X: y"] * 1000), 431),
    "a long header": (head("GET /v1/stream HTTP/1.1", HOST, *UPGRADE, "X: " + "y" * 20_000), 431),
    "a long path": (head(f"GET /v1/stream?{'y' * 20_000} HTTP/1.1", HOST, *UPGRADE), 414),
    "two keys": (head("GET /v1/stream HTTP/1.1", HOST, *UPGRADE, UPGRADE[2]), 400),
    "another version": (head("GET /v1/stream HTTP/1.1", HOST, *UPGRADE[:3], "Sec-WebSocket-Version: 12"), 400),
    "too short a key": (
        head("GET /v1/stream HTTP/1.1", HOST, *UPGRADE[:2], "Sec-WebSocket-Key: AA==", UPGRADE[3]),
        400,
    ),
    "a path behind": (head("GET /v1/stream /livez HTTP/1.1", HOST, *UPGRADE), 0),
    "LF": (head("GET /v1/stream HTTP/1.1\n" + HOST, *UPGRADE), 0),
}


# Where there is nothing but sessions, websockets answers them, or not.
OF_WEBSOCKETS = {"POST": 405, "HEAD": 405, "CONNECT": 405, "a length": 0, "chunks": 0}


async def test_what_is_no_handshake_opens_no_session_and_no_request_behind_it_is_done(
    ports: Ports, scripted: WorkerSpec, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log.configure()
    async with ports.serving(scripted, tmp_path) as reach:
        answers = {}
        for name, (sent, _) in SESSIONS.items():
            async with reach.sessions() as socket:
                await socket.send(sent + JOB)
                answers[name] = await socket.rest()
        assert {name: status(answer) for name, answer in answers.items()} == {
            name: OF_WEBSOCKETS.get(name, wanted) if ports.has_two else wanted for name, (_, wanted) in SESSIONS.items()
        }
        assert max(answer.count(b"HTTP/1.1 ") for answer in answers.values()) == 1
        assert sum(reach.app.jobs.counts.values()) == reach.app.listener.n_sessions == 0
        assert {route for route, _ in reach.app.listener.http.requests} == {"/v1/stream"}
    log.close()
    assert "library.logged" not in capfd.readouterr().err


async def test_a_request_behind_a_handshake_is_no_request_but_wrong_frames(
    ports: Ports, scripted: WorkerSpec, tmp_path: Path
) -> None:
    async with ports.serving(scripted, tmp_path) as reach, reach.sessions() as socket:
        await socket.send(STREAM + JOB)
        await socket.reader.readuntil(b"\r\n\r\n")
        assert await socket.close_code() == 1002
        assert reach.app.listener.http.requests == {("/v1/stream", 101): 1}


# ---------------------------------------------------------------- whatever else there may be

BASES = (GET, STREAM, JOB, STREAM + JOB, GET + STREAM, head(*JOBS, CHUNKED) + b"5\r\nabcde\r\n" + END_OF_CHUNKS)
PIECES = (
    *(CRLF.encode() * n for n in (1, 2)),
    *(b"\n", b"\r", b"\0", b" ", b"\t", b":", b"/", b"?", b"HTTP/1.1", b"HTTP/1.0", b"\xff", b"%2f", b"0", b"5"),
    *(line.encode() + b"\r\n" for line in (HOST, *UPGRADE, CHUNKED, "Content-Length: 5", "Content-Length: 99999999")),
    b"Expect: 100-continue\r\n",
    JOB,
)
edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.sampled_from(PIECES) | st.binary(max_size=8)), max_size=6
)


def edited(base: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """At each place so many bytes are something else."""
    for at, n_bytes, piece in changes:
        start = round(at * len(base))
        base = base[:start] + piece + base[start + n_bytes :]
    return base


def exchange(port: int, tls: ssl.SSLContext | None, data: bytes, cut: int) -> bytes:
    """In two pieces, and no more; all that comes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain, suppress(ConnectionError):
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected = tls.wrap_socket(plain, server_hostname="127.0.0.1") if tls is not None else plain
        with connected:
            connected.sendall(data[:cut])
            connected.sendall(data[cut:])
            if tls is None:
                connected.shutdown(socket.SHUT_WR)
            while piece := connected.recv(65536):
                answer += piece
    return answer


async def test_whatever_is_sent_the_next_honest_request_is_answered(
    ports: Ports, scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_TIMEOUT_S", 0.05)  # over TLS nobody can close his side alone
    monkeypatch.setattr("asr_ws.server.reception.TOKEN_TIMEOUT_S", 0.05)
    (tokens := tmp_path / "tokens").write_text("a-token-of-enough-letters\n", "utf-8")
    async with ports.serving(scripted, tmp_path, auth_token_file=str(tokens)) as reach:
        both = reach.app.listener.port, reach.app.listener.http_port

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.sampled_from(BASES), edits, st.integers(0, 200), st.sampled_from(both))
        def fuzz(base: bytes, changes: list[tuple[float, int, bytes]], cut: int, port: int) -> None:
            answer = exchange(port, reach.tls, edited(base, changes), cut)
            heads = re.findall(rb"HTTP/1\.[01] (?!100)\d{3} ", answer)  # what is told of the request may be like one
            assert len(heads) <= 1
            assert exchange(both[1], reach.tls, GET, 0).startswith(b"HTTP/1.1 200 ")

        await asyncio.to_thread(fuzz)
        assert sum(reach.app.jobs.counts.values()) == 0, "nobody had a token"
        while reach.n_connections():
            await asyncio.sleep(0.01)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
