"""A file over HTTP: what is sent, what is told, what is tried again; on real sockets, without waiting."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asr_ws.client import http
from asr_ws.client.address import OTHER_TOKEN_HINT, PROXY_HINT, TOKEN_HINT, Unreachable
from asr_ws.client.http import (
    CUT,
    MAX_DELAY_S,
    TIMES_AGAIN,
    Delta,
    Done,
    Event,
    Lost,
    Other,
    Refused,
    RequestFailed,
    RequestLost,
    Sending,
    transcribe_file,
)
from asr_ws.client.http_route import http_url
from asr_ws.errors import ClientError
from asr_ws.server import self_signed
from tests.client import uploads
from tests.client.uploads import Server, answers, breaks_off, chunk, delta, done, refuses, says, serving
from tests.server.running import HANG_S

AUDIO = bytes(range(256)) * 600  # more than two pieces
HELLO = [delta("Hello", 30.0), delta("there.", 60.0), done("Hello there.")]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of a developer's own."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "socks_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.m4a").write_bytes(AUDIO)
    return tmp_path / "a.m4a"


class Asked:
    """What came of a file, but for how far it was sent; ``slept``: seconds."""

    def __init__(self, file: Path, url: str, **options: Any) -> None:
        self.slept: list[float] = []
        self.sendings: list[Sending] = []
        self.events: list[Event] = []
        self.error: ClientError | None = None
        try:
            for event in transcribe_file(file, url, sleep=self.slept.append, **options):
                (self.sendings if isinstance(event, Sending) else self.events).append(event)  # type: ignore[arg-type]
        except ClientError as error:
            self.error = error

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Delta | Done)]


# ---------------------------------------------------------------- what is sent and told


def test_a_file_goes_out_whole_and_its_text_comes_as_it_is_done(server: Server, file: Path) -> None:
    server.scripts = [says(uploads.event(type="newer"), b": alive\n\n", *HELLO)]
    asked = Asked(file, server.url, language="en", token="secret")
    assert asked.error is None
    said = [json.loads(each.removeprefix(b"data: ")) for each in HELLO]
    assert asked.events == [
        Other({"type": "newer"}),
        Delta("Hello", 30.0, 60.0, said[0]),
        Delta("there.", 60.0, 60.0, said[1]),
        Done("Hello there.", None, said[2]),
    ]
    assert asked.sendings[0] == Sending(0, len(AUDIO))
    assert asked.sendings[-1] == Sending(len(AUDIO), len(AUDIO))
    assert [each.sent_bytes for each in asked.sendings] == sorted(each.sent_bytes for each in asked.sendings)
    [request] = server.heard
    assert request.line == "POST /v1/audio/transcriptions HTTP/1.1"
    assert request.headers["authorization"] == "Bearer secret"
    boundary = request.headers["content-type"].removeprefix("multipart/form-data; boundary=")
    fields = {"model": "whisper-1", "response_format": "json", "stream": "true", "language": "en"}
    framed = http.form(fields, "a.m4a", boundary)
    assert request.body == framed.head + AUDIO + framed.tail


@pytest.mark.parametrize("result", ["1\n00:00:00,000 --> 00:00:01,000\nHello\n\n", {"text": "Hello", "words": []}])
def test_the_format_that_was_asked_for_comes_last(server: Server, file: Path, result: object) -> None:
    server.scripts = [says(done("Hello", result=result))]
    [event] = Asked(file, server.url, response_format="srt").events
    assert isinstance(event, Done)
    assert (event.text, event.result) == ("Hello", result)


def test_an_answer_may_come_byte_by_byte(server: Server, file: Path) -> None:
    def drips(peer: socket.socket, server: Server) -> None:
        server.read(peer)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in uploads.STREAM + b"".join(chunk(bytes([byte])) for byte in b"".join(HELLO)):
            peer.sendall(bytes([byte]))

    server.scripts = [drips]
    asked = Asked(file, server.url)
    assert (asked.texts, asked.error) == (["Hello", "there.", "Hello there."], None)


def test_an_empty_file_is_the_servers_to_judge(server: Server, file: Path) -> None:
    file.write_bytes(b"")
    server.scripts = [answers("400 Bad Request", uploads.error("empty_file", "no audio"))]
    assert str(Asked(file, server.url).error) == "empty_file: no audio"


@pytest.mark.parametrize("name", ["missing.m4a", "."])
def test_what_is_no_file_is_said_before_a_server_is_asked(file: Path, name: str) -> None:
    error = Asked(file.parent / name, "http://127.0.0.1:1").error
    assert type(error) is ClientError
    assert error.message.startswith(f"{file.parent / name}: ")


def test_a_file_that_shrinks_meanwhile_is_said(server: Server, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.scripts = [breaks_off()]
    monkeypatch.setattr(http.os, "fstat", lambda fd: SimpleNamespace(st_size=len(AUDIO) + 1))
    assert str(Asked(file, server.url).error) == f"{file}: it became shorter while it was sent"


# ---------------------------------------------------------------- refusals


def test_a_refused_file_is_sent_again_after_the_servers_hint(server: Server, file: Path) -> None:
    server.scripts = [refuses("queue_full"), refuses("fair_share"), says(*HELLO)]
    asked = Asked(file, server.url)
    assert asked.events[:2] == [Refused("queue_full", 0.7, 1500), Refused("fair_share", 0.7, 1500)]
    assert (asked.slept, asked.texts) == ([0.7, 0.7], ["Hello", "there.", "Hello there."])
    assert [len(request.body) for request in server.heard] == [len(server.heard[0].body)] * 3


@pytest.mark.parametrize("reason", ["starting", "restarting", "unavailable"])
@pytest.mark.parametrize(("estimated_wait_ms", "delay_s"), [(300, 0.7), (4000, 4.0), (3_600_000, 10.0)])
def test_a_model_that_loads_is_waited_for(
    server: Server, file: Path, reason: str, estimated_wait_ms: int, delay_s: float
) -> None:
    server.scripts = [refuses(reason, estimated_wait_ms=estimated_wait_ms), says(*HELLO)]
    asked = Asked(file, server.url)
    assert (asked.events[0], asked.slept) == (Refused(reason, delay_s, estimated_wait_ms), [delay_s])


@pytest.mark.parametrize(
    ("headers", "delay_s"),
    [(["Retry-After: 2"], 2.0), (["Retry-After: 7200"], MAX_DELAY_S), (["Retry-After: 2", "retry-after-ms: 600"], 0.6)],
)
def test_a_proxys_hint_will_do(server: Server, file: Path, headers: list[str], delay_s: float) -> None:
    server.scripts = [answers("429 Too Many Requests", b"slowly", *headers), says(*HELLO)]
    asked = Asked(file, server.url)
    assert (asked.events[0], asked.slept) == (Refused("HTTP 429", delay_s, 0), [delay_s])


@pytest.mark.parametrize("reads", ["nothing", "some"])
@pytest.mark.parametrize("then", ["closes", "waits"])
def test_a_refusal_is_read_in_the_middle_of_50_mb(server: Server, file: Path, reads: str, then: str) -> None:
    def refuses_early(peer: socket.socket, server: Server) -> None:
        server.read_head(peer)
        if reads == "some":
            for _ in range(100):
                peer.recv(65536)
        body = {**uploads.error("queue_full"), **uploads.REFUSAL}
        peer.sendall(uploads.answer("503 Service Unavailable", body, "Connection: close"))
        if then == "waits":  # for the client to go
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(1):
                pass

    with file.open("r+b") as grown:
        grown.truncate(50 << 20)
    server.scripts = [refuses_early, says(*HELLO)]
    asked = Asked(file, server.url)
    assert (asked.events[0], asked.error) == (Refused("queue_full", 0.7, 1500), None)
    assert asked.texts == ["Hello", "there.", "Hello there."]
    assert len(asked.sendings) < 2 * (50 << 20) / http.PIECE_BYTES, "the first time not all of it was sent"


@pytest.mark.parametrize("status", [400, 403, 404, 413, 415, 422, 500, 507])
def test_any_other_answer_ends_it_with_the_servers_words(server: Server, file: Path, status: int) -> None:
    body = {"error": {"message": "it is too long", "type": "x", "code": "too_large", "param": None}}
    server.scripts = [answers(f"{status} No", body)]
    asked = Asked(file, server.url)
    assert isinstance(asked.error, RequestFailed)
    assert (asked.error.code, asked.error.message) == ("too_large", "too_large: it is too long")
    assert (asked.events, asked.slept) == ([], [])


def test_a_refusal_that_is_not_to_be_repeated_is_not(server: Server, file: Path) -> None:
    body = {**uploads.error("quota"), **uploads.REFUSAL}
    server.scripts = [answers("429 Too Many Requests", body, "x-should-retry: false")]
    assert str(Asked(file, server.url).error) == "quota: said so"


@pytest.mark.parametrize(
    ("user", "token", "hint"),
    [
        ("", None, TOKEN_HINT),
        ("", "wrong", OTHER_TOKEN_HINT),
        ("me:pw@", "good", "the user and password in the address leave no room for the token: try it without --http"),
    ],
)
def test_a_missing_token_is_said(server: Server, file: Path, user: str, token: str | None, hint: str) -> None:
    body = uploads.error("unauthorized", "no valid token")
    server.scripts = [answers("401 Unauthorized", body, "WWW-Authenticate: Bearer")]
    error = Asked(file, server.url.replace("//", f"//{user}"), token=token).error
    assert error is not None
    assert (error.message, error.hint) == ("unauthorized: no valid token", hint)


@pytest.mark.parametrize("token", ["", "two words", "new\nline", "ünlatin"])
def test_what_is_no_token_is_not_sent(file: Path, token: str) -> None:
    assert "token" in str(Asked(file, "http://127.0.0.1:1", token=token).error)


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (
            answers("404 Not Found", b"no such page\n", "Content-Type: text/plain"),
            ClientError,
            "HTTP 404: no such page",
        ),
        (answers("502 Bad Gateway", b"<html>"), Unreachable, "HTTP 502"),
        (answers("503 Service Unavailable"), Unreachable, "HTTP 503"),
        (answers("301 Moved", b"", "Location: https://elsewhere/"), ClientError, "leads to https://elsewhere/"),
        (answers("200 OK", b"{}", "Content-Type: application/json"), ClientError, "answers with application/json"),
        (says(b"data: [DONE]\n\n"), ClientError, "an event that is none"),
    ],
)
def test_another_kind_of_server_is_said(
    server: Server, file: Path, script: uploads.Script, kind: type, message: str
) -> None:
    server.scripts = [script]
    asked = Asked(file, server.url)
    assert type(asked.error) is kind
    assert message in str(asked.error)
    assert asked.slept == []


def test_a_server_that_speaks_no_http_is_said(server: Server, file: Path) -> None:
    def greets(peer: socket.socket, server: Server) -> None:
        peer.sendall(b"220 mail.example.com ESMTP\r\n")
        server.read(peer)

    server.scripts = [greets]
    asked = Asked(file, server.url)
    assert type(asked.error) is ClientError
    assert asked.error.message.startswith(f"{server.url}/v1/audio/transcriptions does not answer as HTTP does: ")


# ---------------------------------------------------------------- what breaks


def test_a_lost_connection_is_made_again_and_nothing_is_told_twice(server: Server, file: Path) -> None:
    server.scripts = [breaks_off(*HELLO[:1]), breaks_off(), breaks_off(*HELLO[:2]), says(*HELLO)]
    asked = Asked(file, server.url)
    assert (asked.texts, asked.error) == (["Hello", "there.", "Hello there."], None)
    lost = [event for event in asked.events if isinstance(event, Lost)]
    assert [(each.attempt, each.reason) for each in lost] == [
        (1, CUT),
        (2, "the server ended the connection without an answer"),
        (3, CUT),
    ]
    assert asked.slept == [each.delay_s for each in lost]
    assert [0.25 <= asked.slept[0] <= 0.5, 0.5 <= asked.slept[1] <= 1, 1 <= asked.slept[2] <= 2] == [True] * 3


def test_an_answer_without_its_last_event_is_a_lost_connection(server: Server, file: Path) -> None:
    server.scripts = [says(*HELLO[:2]), says(*HELLO)]
    asked = Asked(file, server.url)
    assert [event.reason for event in asked.events if isinstance(event, Lost)] == [CUT]
    assert asked.texts == ["Hello", "there.", "Hello there."]


def test_a_connection_that_is_lost_again_and_again_is_given_up(server: Server, file: Path) -> None:
    server.scripts = [breaks_off(*HELLO[:1])] * (TIMES_AGAIN + 1)
    asked = Asked(file, server.url)
    assert isinstance(asked.error, RequestLost)
    assert (asked.error.code, asked.error.message) == ("connection_lost", CUT)
    assert (asked.texts, len(asked.slept)) == (["Hello"], TIMES_AGAIN)


def test_a_reset_while_it_is_sent_is_a_lost_connection(server: Server, file: Path) -> None:
    def resets(peer: socket.socket, server: Server) -> None:
        server.read_head(peer)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with file.open("r+b") as grown:
        grown.truncate(50 << 20)
    server.scripts = [resets, says(*HELLO)]
    asked = Asked(file, server.url)
    assert [type(event) for event in asked.events] == [Lost, Delta, Delta, Done]


def test_a_failure_in_the_middle_ends_it(server: Server, file: Path) -> None:
    server.scripts = [says(HELLO[0], uploads.event(**uploads.error("decode_failed", "out of memory")))]
    asked = Asked(file, server.url)
    assert isinstance(asked.error, RequestFailed)
    assert (asked.error.code, str(asked.error)) == ("decode_failed", "decode_failed: out of memory")
    assert (asked.texts, asked.slept) == (["Hello"], [])


def test_a_server_that_stops_in_the_middle_is_asked_again_and_nothing_is_told_twice(server: Server, file: Path) -> None:
    stops = uploads.event(**uploads.error("draining", "it stops"), retry_after_ms=700, estimated_wait_ms=0)
    server.scripts = [says(HELLO[0], stops), says(*HELLO)]
    asked = Asked(file, server.url)
    assert [type(event) for event in asked.events] == [Delta, Refused, Delta, Done]
    assert (asked.texts, asked.slept) == (["Hello", "there.", "Hello there."], [0.7])


def test_a_server_that_takes_nothing_is_not_waited_for(
    server: Server, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()

    def reads_nothing(peer: socket.socket, server: Server) -> None:
        assert is_over.wait(HANG_S)

    monkeypatch.setattr(http, "SEND_S", 0.2)
    with file.open("r+b") as grown:
        grown.truncate(50 << 20)
    server.scripts = [reads_nothing, says(*HELLO)]
    told = list(transcribe_file(file, server.url, sleep=lambda _: is_over.set()))
    [lost] = [event for event in told if isinstance(event, Lost)]
    assert lost.reason == "the server takes nothing for 0.2 s"


@pytest.mark.parametrize(("limit", "head"), [("ANSWER_S", b""), ("SILENT_S", uploads.STREAM)])
def test_a_server_that_says_nothing_is_not_waited_for(
    server: Server, file: Path, limit: str, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stalls(peer: socket.socket, server: Server) -> None:
        server.read(peer)
        peer.sendall(head)
        peer.recv(1)  # until the client goes

    monkeypatch.setattr(http, limit, 0.2)
    server.scripts = [stalls, says(*HELLO)]
    asked = Asked(file, server.url)
    assert [event.reason for event in asked.events if isinstance(event, Lost)] == ["the server is silent"]
    assert asked.texts == ["Hello", "there.", "Hello there."]


def test_without_a_server_it_is_not_tried_again(file: Path, closed_port: int) -> None:
    asked = Asked(file, f"http://127.0.0.1:{closed_port}")
    assert isinstance(asked.error, Unreachable)
    assert asked.error.message.startswith(f"no answer at http://127.0.0.1:{closed_port}/v1/audio/transcriptions: ")
    assert (asked.error.hint, asked.slept) == ("is the server running? asr-ws serve", [])


def test_a_server_that_was_there_is_waited_for(server: Server, file: Path) -> None:
    server.scripts = [refuses("draining"), answers("502 Bad Gateway"), says(*HELLO)]
    asked = Asked(file, server.url)
    assert [type(event) for event in asked.events] == [Refused, Lost, Delta, Delta, Done]


# ---------------------------------------------------------------- addresses, TLS, proxies


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://h:1/v1/stream", ("http://h:1/v1/audio/transcriptions", "")),
        ("http://h", ("http://h/v1/audio/transcriptions", "")),
        ("https://h/asr/", ("https://h/asr/v1/audio/transcriptions", "")),
        ("wss://h/asr/v1/stream?key=1", ("https://h/asr/v1/audio/transcriptions?key=1", "")),
        ("https://me:p%40w@h:8/v1/audio/transcriptions", ("https://h:8/v1/audio/transcriptions", "me:p%40w@")),
        ("http://[::1]:8765", ("http://[::1]:8765/v1/audio/transcriptions", "")),
        ("http://h/été", ("http://h/%C3%A9t%C3%A9/v1/audio/transcriptions", "")),
    ],
)
def test_files_go_beside_the_sessions(url: str, expected: tuple[str, str]) -> None:
    assert http_url(url, http.PATH) == expected


@pytest.mark.parametrize("url", ["", "h:1", "ftp://h", "http://", "http://h:x"])
def test_what_is_no_address_is_said(url: str, file: Path) -> None:
    assert "is no address of a server" in str(Asked(file, url).error)


def test_a_proxys_user_is_in_the_header_instead_of_the_token(server: Server, file: Path) -> None:
    server.scripts = [says(*HELLO)]
    assert Asked(file, server.url.replace("//", "//me:p%40w@"), token="secret").error is None
    assert server.heard[0].headers["authorization"] == "Basic " + b64encode(b"me:p@w").decode()


def test_tls_by_a_certificate_of_its_own(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = self_signed.self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.cert, made.key)

    def refuses_early(peer: socket.socket, server: Server) -> None:
        server.read_head(peer)
        peer.sendall(uploads.answer("503 Service Unavailable", {**uploads.error("queue_full"), **uploads.REFUSAL}))
        while peer.recv(1 << 20):
            pass

    with serving(lambda peer: context.wrap_socket(peer, server_side=True)) as server:
        url = server.url.replace("http:", "wss:")
        error = Asked(file, url).error
        assert error is not None
        assert error.hint == "if its certificate is one of its own, name that file: SSL_CERT_FILE=self-signed.pem"
        monkeypatch.setenv("SSL_CERT_FILE", str(made.cert))
        with file.open("r+b") as grown:
            grown.truncate(5 << 20)
        server.scripts = [refuses_early, says(*HELLO)]
        asked = Asked(file, url)
    assert (asked.events[0], asked.error) == (Refused("queue_full", 0.7, 1500), None)
    assert asked.texts == ["Hello", "there.", "Hello there."]


def test_tls_to_a_server_without_is_said(server: Server, file: Path) -> None:
    server.scripts = [lambda peer, server: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")]
    error = Asked(file, server.url.replace("http:", "https:")).error
    assert error is not None
    assert error.hint == "it may speak no TLS: http:// or ws://"


def test_a_proxy_of_the_environment_is_asked_for_it(
    server: Server, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url.replace("//", "//me:pw@"))
    server.scripts = [says(*HELLO)]
    assert Asked(file, "ws://speech.example.com:81/v1/stream").error is None
    [request] = server.heard
    assert request.line == "POST http://speech.example.com:81/v1/audio/transcriptions HTTP/1.1"
    assert request.headers["host"] == "speech.example.com:81"
    assert request.headers["proxy-authorization"] == "Basic " + b64encode(b"me:pw").decode()


def test_a_proxy_is_asked_for_a_tunnel_where_there_is_tls(
    server: Server, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = []

    def forbids(peer: socket.socket, server: Server) -> None:
        asked_for.append(peer.recv(65536).partition(b"\r\n")[0])
        peer.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    monkeypatch.setenv("all_proxy", server.url.removeprefix("http://"))
    server.scripts = [forbids]
    asked = Asked(file, "https://speech.example.com")
    [line] = asked_for
    assert line.startswith(b"CONNECT speech.example.com:443 HTTP/1.")
    assert isinstance(asked.error, Unreachable)
    assert "Tunnel connection failed: 403 Forbidden" in asked.error.message
    assert asked.error.hint == PROXY_HINT


def test_a_host_that_needs_no_proxy_is_asked_itself(
    server: Server, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.scripts = [says(*HELLO)]
    assert Asked(file, server.url).error is None


def test_a_proxy_of_another_kind_is_not_gone_around(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5h://me:pw@127.0.0.1:1080")
    error = Asked(file, "http://h:1").error
    assert error is not None
    way = "no way to http://h:1/v1/audio/transcriptions by socks5h://127.0.0.1:1080"
    assert (error.message, error.hint) == (f"{way}: HTTP goes by http:// proxies only", PROXY_HINT)
