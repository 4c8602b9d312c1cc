from __future__ import annotations

import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from asr_ws.client.address import ADDRESS_HINTS, OTHER_TOKEN_HINT, TOKEN_HINT, Unreachable
from asr_ws.client.http_get import MAX_BYTES, Answer, Unauthorized, get
from asr_ws.client.http_route import RequestLost
from asr_ws.errors import ClientError
from tests.client.plain import serving
from tests.server.running import HANG_S

TEXT = "text/plain"
CLOSED_S = 60.0  # by then it is, however slow the machine


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@contextmanager
def raw(script: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does that with its one connection. The client is to go away for it to end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with suppress(OSError), peer:
                script(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(CLOSED_S)
        assert not thread.is_alive()


def says_nothing(peer: socket.socket) -> None:
    while peer.recv(1 << 16):
        pass


def never_ends(peer: socket.socket) -> None:
    """Each byte comes soon after the one before."""
    peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    gone = threading.Event()
    while not gone.wait(0.02):
        peer.sendall(b".")


@pytest.mark.parametrize("address", ["{}", "{}/", "{}/v1/stream", "{}/readyz", "ws:{}", "ws:{}/v1/stream"])
def test_the_address_may_be_that_of_the_server_or_of_its_sessions(address: str) -> None:
    with serving({"/readyz": (200, TEXT, "ready\n")}) as server:
        url = address.format(server.url).replace("ws:http:", "ws:")
        assert get(url, "/readyz", timeout_s=HANG_S) == Answer(f"{server.url}/readyz", 200, "ready\n")


def test_behind_a_proxy_its_path_and_its_user_are_kept() -> None:
    with serving({"/asr/readyz": (200, TEXT, "ready\n")}) as server:
        url = server.url.replace("//", "//me:pw@") + "/asr/"
        assert get(url, "/readyz", token="secret", timeout_s=HANG_S).text == "ready\n"
    assert server.heard == [("/asr/readyz", "Basic " + b64encode(b"me:pw").decode())]


def test_a_token_goes_along_and_one_that_is_none_does_not() -> None:
    with serving({"/v1/stats": (200, "application/json", "{}")}) as server:
        get(server.url, "/v1/stats", token="secret\n", timeout_s=HANG_S)
        with pytest.raises(ClientError, match="a token has no spaces"):
            get(server.url, "/v1/stats", token="two words", timeout_s=HANG_S)
    assert server.heard == [("/v1/stats", "Bearer secret")]


@pytest.mark.parametrize(("token", "hint"), [(None, TOKEN_HINT), ("wrong", OTHER_TOKEN_HINT)])
def test_a_token_that_is_missing_or_wrong_is_told_apart(token: str | None, hint: str) -> None:
    with serving({"/v1/stats": (401, "application/json", "{}")}) as server:
        server.headers["WWW-Authenticate"] = "Bearer"
        with pytest.raises(Unauthorized) as caught:
            get(server.url, "/v1/stats", token=token, timeout_s=HANG_S)
    assert caught.value.hint == hint


def test_another_status_is_an_answer_only_where_it_is_asked_for() -> None:
    with serving({"/readyz": (503, TEXT, "draining\n")}) as server:
        answer = get(server.url, "/readyz", timeout_s=HANG_S, also=[503])
        assert (answer.status, answer.text) == (503, "draining\n")
        with pytest.raises(Unreachable, match="HTTP 503: draining"):
            get(server.url, "/readyz", timeout_s=HANG_S)
        server.headers["Location"] = "https://elsewhere/"
        with pytest.raises(ClientError, match="leads to https://elsewhere/"):
            get(server.url, "/readyz", timeout_s=HANG_S)


def test_no_terminal_is_commanded_by_an_answer_and_no_end_of_it_is_waited_for() -> None:
    with serving({"/readyz": (503, TEXT, f"\x1b]0;PWNED\x1b\\{'x' * 100_000}\n")}) as server:
        with pytest.raises(Unreachable) as caught:
            get(server.url, "/readyz", timeout_s=HANG_S)
        words = caught.value.message.partition("HTTP 503: ")[2]
        assert words == "\ufffd]0;PWNED\ufffd\\" + "x" * 189 + "…"
        server.headers["Location"] = "https://elsewhere/\x1b[2J"
        with pytest.raises(ClientError, match=f"leads to https://elsewhere/{chr(0xFFFD)}"):
            get(server.url, "/readyz", timeout_s=HANG_S)


def test_a_proxy_that_can_be_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", "http://a b:3128")
    with pytest.raises(ClientError, match=r"^no way to http://example\.com/readyz by http://a b:3128: "):
        get("http://example.com", "/readyz", timeout_s=HANG_S)


@pytest.mark.parametrize("script", [says_nothing, never_ends])
def test_the_wait_has_an_end_and_so_has_the_connection(script: Callable[[socket.socket], None]) -> None:
    with raw(script) as url, pytest.raises(Unreachable) as caught:
        get(url, "/readyz", timeout_s=0.3)
    assert caught.value.message == f"no answer at {url}/readyz: none within 0.3 s"


def hangs_up(peer: socket.socket) -> None:
    """In order: what is left unread resets a connection."""
    peer.recv(1 << 16)


def test_a_connection_that_breaks_is_lost() -> None:
    with raw(lambda peer: None) as url, pytest.raises(RequestLost):
        get(url, "/readyz", timeout_s=HANG_S)


@pytest.mark.parametrize("kind", ["Content-Length: 1000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n3e8\r\n"])
def test_an_answer_that_is_cut_off_is_none(kind: str) -> None:
    def cuts_off(peer: socket.socket) -> None:
        peer.recv(1 << 16)
        peer.sendall(f"HTTP/1.1 200 OK\r\n{kind}half".encode())

    with raw(cuts_off) as url, pytest.raises(RequestLost, match="in the middle of an answer"):
        get(url, "/readyz", timeout_s=HANG_S)


def test_an_answer_that_does_not_end_soon_enough_is_none() -> None:
    with serving({"/readyz": (200, TEXT, "x" * MAX_BYTES)}) as server, pytest.raises(ClientError, match="more than"):
        get(server.url, "/readyz", timeout_s=HANG_S)


def test_an_end_without_an_answer_has_a_hint() -> None:
    with raw(hangs_up) as url, pytest.raises(RequestLost) as caught:
        get(url, "/readyz", timeout_s=HANG_S)
    assert caught.value.hint == "is its HTTP on this port? see its --http-port; or does it want https://?"


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("HTTP has a port of its own: http://localhost:9000\n", "give that address"),
        ("404 page not found\n", ADDRESS_HINTS[404]),
    ],
)
def test_what_is_not_found_has_a_hint_by_who_says_so(said: str, hint: str) -> None:
    with serving({"/readyz": (404, TEXT, said)}) as server, pytest.raises(ClientError) as caught:
        get(server.url, "/readyz", timeout_s=HANG_S)
    assert caught.value.message == f"no answer at {server.url}/readyz: HTTP 404: {said.strip()}"
    assert caught.value.hint == hint
