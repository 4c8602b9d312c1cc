"""A whole file to a running server, over HTTP. Nothing of it is decoded here: the server knows more formats.

    for event in transcribe_file("speech.m4a"):
        if isinstance(event, Delta):
            print(event.text)

A request that had no answer costs the server some work and changes nothing there, so it is made again: after the
server's own hint where it refuses, after a while where the connection is lost. It begins at the file's beginning then,
and what was told is not told again: a file is cut at the same places each time.

Blocking, on the standard library alone. Every wait has its end; the constants say which.
"""

from __future__ import annotations

import http.client
import io
import os
import random
import secrets
import selectors
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from socket import socket as Socket
from typing import Any, BinaryIO, Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from asr_ws import messages
from asr_ws.client.address import (
    ADDRESS_HINTS,
    DEFAULT_URL,
    NO_SERVER,
    OTHER_TOKEN_HINT,
    PROXY_HINT,
    TOKEN_HINT,
    Unreachable,
    no_address,
    not_reached,
    session_url,
)
from asr_ws.client.http_frames import EventStream, Form, form
from asr_ws.client.session import MAX_DELAY_S, reconnect_delay_s, start_message
from asr_ws.client.sources import check_file
from asr_ws.errors import ClientError

PATH = "/v1/audio/transcriptions"
MODEL = "whisper-1"  # OpenAI's field, without which some servers refuse; one that has a single model takes any name
PIECE_BYTES = 64 * 1024  # that are read, and sent, at a time
MAX_REFUSAL_BYTES = 64 * 1024  # of an answer that is no text
CONNECT_S = 10.0
SEND_S = 60.0  # in which the server takes nothing
ANSWER_S = 120.0  # from the file's last byte to the answer: its turn in the queue, and a decode
SILENT_S = 60.0  # within an answer, in which a comment comes every 15 s
TIMES_AGAIN = 4  # that a lost connection is made again, for one file
NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
CUT = "the connection ended in the middle of an answer"
GATEWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)

ResponseFormat = Literal["json", "text", "verbose_json", "srt", "vtt"]


@dataclass(frozen=True, slots=True)
class Sending:
    """The file is on its way; from 0 again when the request is made again."""

    sent_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The server takes no more for now; it is asked again.

    Attributes:
        reason: its word, such as ``queue_full``.
        delay_s: until then.
        estimated_wait_ms: until it expects to have room.
    """

    reason: str
    delay_s: float
    estimated_wait_ms: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is gone, and is made again.

    Attributes:
        attempt: 1, 2, ... for this file.
        delay_s: until then.
    """

    reason: str
    attempt: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """A stretch of the file is done.

    Attributes:
        text: that it adds, without blanks around it; may be empty.
        seconds: of audio that are done so far, where the server tells.
        duration_s: of the whole file, where it is known.
        event: as it was sent.
    """

    text: str
    seconds: float | None
    duration_s: float | None
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Other:
    """What a newer server may say besides. ``event``: as it was sent."""

    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """All of it, and the last.

    Attributes:
        result: the file in the format that was asked for; None: that is ``text``.
        event: as it was sent.
    """

    text: str
    result: Any
    event: dict[str, Any]


Event = Sending | Refused | Lost | Delta | Other | Done


class RequestLost(ClientError):
    """The connection ended before the answer did."""

    code = "connection_lost"


class RequestFailed(ClientError):
    """The server refused the file, or could not finish it; ``code`` is its word."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        self.code = code
        super().__init__(f"{code}: {message}" if code else message, hint)


class _Progress(msgspec.Struct):
    seconds: float
    duration: float | None = None


class _Complaint(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _Said(msgspec.Struct):
    """All of an event, or of an answer that is none, that counts here."""

    type: str = ""
    delta: str = ""
    text: str = ""
    progress: _Progress | None = None
    result: Any = None
    error: _Complaint | None = None
    retry_after_ms: float | None = None
    estimated_wait_ms: float = 0


def transcribe_file(
    path: str | Path,
    url: str = DEFAULT_URL,
    *,
    token: str | None = None,
    language: str | None = None,
    response_format: ResponseFormat = "json",
    model: str = MODEL,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Event, None, None]:
    """Send a file; what becomes of it, up to `Done`. Refused, it is sent again for as long as its caller listens.

    Args:
        url: the server's, as for `asr_ws.client.connect`.
        sleep: takes seconds.
    Raises:
        RequestFailed: the server says no, for good.
        RequestLost: the connection was lost, and lost again.
        Unreachable: no server is there.
        ClientError: the file, or the address, is none.
    """
    path = Path(path)
    check_file(path)
    start = start_message(token, {"language": language})  # which knows what is a token
    address, user = upload_url(url)
    fields = {"model": model, "response_format": response_format, "stream": "true"}
    if start.language is not None:
        fields["language"] = start.language
    framed = form(fields, path.name, secrets.token_hex(16))
    n_told = n_lost = 0
    has_asked = False
    again: Refused | Lost
    while True:
        n_heard = 0
        try:
            with closing(_ask(path, address, user, start.token, framed)) as events:
                for event in events:
                    if isinstance(event, Delta):
                        n_heard += 1
                        if n_heard <= n_told:
                            continue
                        n_told = n_heard
                    if isinstance(event, Refused):
                        again = event
                        break
                    yield event
                    if isinstance(event, Done):
                        return
        except (RequestLost, Unreachable) as lost:
            n_lost += 1
            if n_lost > TIMES_AGAIN or (isinstance(lost, Unreachable) and not has_asked):
                raise
            again = Lost(lost.message, n_lost, reconnect_delay_s(n_lost, 0.0, random.random()))
        has_asked = True
        yield again
        sleep(again.delay_s)


def upload_url(url: str) -> tuple[str, str]:
    """Where files go, of a server whose sessions are at ``url``, or below it; see `session_url`."""
    shown, user = session_url(url)
    parts = urlsplit(shown)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise no_address(shown)
    path = parts.path.removesuffix(messages.PATH).removesuffix(PATH).rstrip("/") + PATH
    path, query = (quote(part, safe="/%:@!$&'()*+,;=~?") for part in (path, parts.query))
    return parts._replace(scheme=scheme, path=path, query=query, fragment="").geturl(), user


# ---------------------------------------------------------------- one request


def _ask(
    path: Path, url: str, user: str, token: str | None, framed: Form
) -> Generator[Sending | Refused | Delta | Other | Done, None, None]:
    """Raises: RequestLost, Unreachable, RequestFailed, ClientError."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ClientError(f"{path}: cannot be read: {error.strerror}") from error
    connection, target, headers = _route(url)
    with file, closing(connection):
        _connect(connection, url)
        size_bytes = os.fstat(file.fileno()).st_size
        headers |= {
            "Content-Type": framed.content_type,
            "Content-Length": str(len(framed.head) + size_bytes + len(framed.tail)),
            "Accept": "text/event-stream",
            "Connection": "close",
        }
        if user:  # a proxy's, and there is one header for both
            headers["Authorization"] = _basic(*user.removesuffix("@").partition(":")[::2])
        elif token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection.putrequest("POST", target)
        for name, value in headers.items():
            connection.putheader(name, value)
        socket = connection.sock
        with _breaking(url):
            connection.endheaders()
            early = yield from _send(socket, file, size_bytes, framed)
            socket.settimeout(ANSWER_S)
            response = http.client.HTTPResponse(socket, method="POST")
            if early:
                response.fp = io.BufferedReader(_Resumed(early, response.fp))
            with closing(response):
                response.begin()
                if response.status != HTTPStatus.OK:
                    yield _refusal(url, response, user, token)
                    return
                if early:
                    raise ClientError(f"{url} has an answer before it has the file", NO_SERVER)
                socket.settimeout(SILENT_S)
                yield from _events(response)


@contextmanager
def _breaking(url: str) -> Iterator[None]:
    """What it means where a connection does that, or carries something else."""
    try:
        yield
    except TimeoutError as error:
        raise RequestLost("the server is silent") from error
    except http.client.RemoteDisconnected as error:
        message = "the server ended the connection without an answer"
        raise RequestLost(message, "is its HTTP on this port? see its --http-port") from error
    except http.client.IncompleteRead as error:
        raise RequestLost(CUT) from error
    except http.client.HTTPException as error:
        hint = "it may want TLS: https:// or wss://" if url.startswith("http:") else NO_SERVER
        raise ClientError(f"{url} does not answer as HTTP does: {error!r}", hint) from error
    except OSError as error:
        raise RequestLost(str(error)) from error


def _route(url: str) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """By the proxy that the environment names for it, or none. Returns: also what to ask for, and headers for that."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    target = parts._replace(scheme="", netloc="").geturl()
    kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
    proxy = _proxy(parts.scheme, f"{parts.hostname}:{port}")
    if proxy is None:
        return kind(parts.hostname, port, timeout=CONNECT_S), target, {}
    if proxy.scheme != "http" or not proxy.hostname:
        what = f"no way to {url} by {proxy.scheme}://{proxy.netloc.rpartition('@')[2]}"
        raise ClientError(f"{what}: files go by http:// proxies only", PROXY_HINT)
    known = {}
    if proxy.username is not None:
        known["Proxy-Authorization"] = _basic(proxy.username, proxy.password or "")
    connection = kind(proxy.hostname, proxy.port or 80, timeout=CONNECT_S)
    if not is_tls:
        return connection, url, known
    connection.set_tunnel(parts.hostname, port, known)
    return connection, target, {}


def _proxy(scheme: str, host: str) -> SplitResult | None:
    proxies = getproxies()
    named = next((proxies[each] for each in (scheme, "all", "socks") if proxies.get(each)), None)
    if named is None or proxy_bypass(host):
        return None
    return urlsplit(named if "://" in named else f"http://{named}")


def _basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()


def _connect(connection: http.client.HTTPConnection, url: str) -> None:
    host = urlsplit(url).hostname
    by = "" if connection.host == host else f" by the proxy {connection.host}:{connection.port}"
    what = f"no answer at {url}{by}"
    try:
        connection.connect()
    except TimeoutError as error:
        hint = PROXY_HINT if by else "something listens there, which may be no asr_ws server"
        raise Unreachable(f"{what} within {CONNECT_S:g} s", hint) from error
    except OSError as error:
        failure = not_reached(what, error)
        if by and isinstance(failure, Unreachable):
            failure.hint = PROXY_HINT
        raise failure from error
    except http.client.HTTPException as error:  # the proxy's
        raise Unreachable(f"{what}: {error!r}", PROXY_HINT) from error
    except ValueError as error:  # a name that none can have
        raise no_address(url) from error


def _send(socket: Socket, file: BinaryIO, size_bytes: int, framed: Form) -> Generator[Sending, None, bytes]:
    """Send the body, until the server answers: a refusal need not wait for it, and nobody reads the rest.

    Returns: the beginning of that answer, or nothing; also where the connection broke: what came before is read yet.
    """
    socket.setblocking(False)
    with selectors.DefaultSelector() as waits:
        waits.register(socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
        n_sent = -len(framed.head)
        yield Sending(0, size_bytes)
        for piece in _pieces(file, size_bytes, framed):
            rest = memoryview(piece)
            while rest:
                ready = waits.select(SEND_S)
                if not ready:
                    raise RequestLost(f"the server takes nothing for {SEND_S:g} s")
                [(_, what)] = ready
                try:
                    if what & selectors.EVENT_READ:
                        with suppress(*NOT_NOW):  # TLS has words of its own
                            return socket.recv(PIECE_BYTES)
                    if what & selectors.EVENT_WRITE:
                        with suppress(*NOT_NOW):
                            rest = rest[socket.send(rest) :]
                except OSError:
                    return b""
            n_sent += len(piece)
            yield Sending(min(max(n_sent, 0), size_bytes), size_bytes)
    return b""


def _pieces(file: BinaryIO, size_bytes: int, framed: Form) -> Iterator[bytes]:
    """Exactly so many bytes of the file as were announced, though it grow meanwhile."""
    yield framed.head
    left = size_bytes
    while left:
        try:
            piece = file.read(min(PIECE_BYTES, left))
        except OSError as error:
            raise ClientError(f"{file.name}: cannot be read: {error.strerror}") from error
        if not piece:
            raise ClientError(f"{file.name}: it became shorter while it was sent")
        left -= len(piece)
        yield piece
    yield framed.tail


class _Resumed(io.RawIOBase):
    """A stream of which the beginning was read elsewhere."""

    def __init__(self, early: bytes, rest: io.BufferedReader) -> None:
        self._early = early
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._early:
            return self._rest.readinto1(buffer)
        taken, self._early = self._early[: len(buffer)], self._early[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self._rest.close()
        super().close()


# ---------------------------------------------------------------- its answer


def _refusal(url: str, response: http.client.HTTPResponse, user: str, token: str | None) -> Refused:
    """Returns: it may be asked again. Raises: RequestFailed, Unreachable, ClientError: that would not help."""
    body = b""
    with suppress(OSError, http.client.HTTPException):  # its status says enough
        body = response.read(MAX_REFUSAL_BYTES)
    try:
        said = msgspec.json.decode(body, type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = _Said()
    status, headers = response.status, response.headers
    code = (said.error and said.error.code) or ""
    may_ask = status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    after_ms = _number(headers.get("retry-after-ms"), said.retry_after_ms)
    if after_ms is None:
        after_ms = _number(headers.get("Retry-After"), None, unit=1000)
    if may_ask and after_ms is not None and headers.get("x-should-retry") != "false":
        return _again(code or f"HTTP {status}", after_ms, said.estimated_wait_ms)
    if status == HTTPStatus.UNAUTHORIZED and headers.get("WWW-Authenticate", "").startswith("Bearer"):
        hint = TOKEN_HINT if token is None else OTHER_TOKEN_HINT
        if user and token is not None:
            hint = "the user and password in the address leave no room for the token: try it without --http"
        raise RequestFailed(code, said.error.message if said.error else f"no answer at {url}: HTTP {status}", hint)
    if said.error is not None:
        raise RequestFailed(code, said.error.message or f"HTTP {status}")
    if leads_to := headers.get("Location"):
        raise ClientError(f"{url} leads to {leads_to}", "give the address it leads to")
    is_text = response.headers.get("Content-Type", "").startswith("text/plain")
    words = ": " + body.decode(errors="replace").partition("\n")[0] if is_text else ""
    hint = ADDRESS_HINTS.get(status, "is this an asr_ws server, and its HTTP on this port? see --http-port")
    kind = Unreachable if status in GATEWAY else ClientError
    raise kind(f"no answer at {url}: HTTP {status}{words}", hint)


def _again(code: str, after_ms: float, estimated_wait_ms: float) -> Refused:
    delay_s = messages.retry_wait_s(code, after_ms / 1000, estimated_wait_ms / 1000)
    return Refused(code, min(max(delay_s, 0.0), MAX_DELAY_S), round(estimated_wait_ms))


def _number(text: str | None, otherwise: float | None, *, unit: float = 1) -> float | None:
    return float(text) * unit if text is not None and text.isdecimal() else otherwise


def _events(response: http.client.HTTPResponse) -> Iterator[Refused | Delta | Other | Done]:
    kind = response.headers.get_content_type()
    if kind != "text/event-stream":
        raise ClientError(f"the server answers with {kind}, not with events", NO_SERVER)
    stream = EventStream()
    while received := response.read1(PIECE_BYTES):
        for data in stream.feed(received):
            event = _event(data)
            yield event
            if isinstance(event, Done | Refused):
                return
    raise RequestLost(CUT)


def _event(data: str) -> Refused | Delta | Other | Done:
    try:
        event = msgspec.json.decode(data, type=dict[str, Any])
        said = msgspec.convert(event, _Said)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ClientError(f"an event that is none: {error}", NO_SERVER) from error
    if said.error is not None and said.retry_after_ms is not None:  # such as of a server that restarts
        return _again(said.error.code or "", said.retry_after_ms, said.estimated_wait_ms)
    if said.error is not None:
        raise RequestFailed(said.error.code or "", said.error.message)
    match said.type:
        case "transcript.text.delta":
            told = said.progress
            seconds, duration_s = (told.seconds, told.duration) if told is not None else (None, None)
            return Delta(said.delta.strip(), seconds, duration_s, event)
        case "transcript.text.done":
            return Done(said.text, said.result, event)
        case _:
            return Other(event)
