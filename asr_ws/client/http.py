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
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from socket import socket as Socket
from typing import Any, BinaryIO, Literal

import msgspec

from asr_ws import messages
from asr_ws.client.address import DEFAULT_URL, NO_SERVER, OTHER_TOKEN_HINT, TOKEN_HINT, Unreachable
from asr_ws.client.http_frames import EventStream, Form, form
from asr_ws.client.http_route import CUT, authorization, breaking, connect, http_url, no_answer, route
from asr_ws.client.http_route import RequestLost as RequestLost  # what a caller catches is named here
from asr_ws.client.session import MAX_DELAY_S, reconnect_delay_s, start_message
from asr_ws.client.sources import check_file
from asr_ws.errors import ClientError

PATH = "/v1/audio/transcriptions"
MODEL = "whisper-1"  # OpenAI's field, without which some servers refuse; one that has a single model takes any name
PIECE_BYTES = 64 * 1024  # that are read, and sent, at a time
MAX_REFUSAL_BYTES = 64 * 1024  # of an answer that is no text
SEND_S = 60.0  # in which the server takes nothing
ANSWER_S = 120.0  # from the file's last byte to the answer: its turn in the queue, and a decode
SILENT_S = 60.0  # within an answer, in which a comment comes every 15 s
TIMES_AGAIN = 4  # that a lost connection is made again, for one file
NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

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
    address, user = http_url(url, PATH)
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


# ---------------------------------------------------------------- one request


def _ask(
    path: Path, url: str, user: str, token: str | None, framed: Form
) -> Generator[Sending | Refused | Delta | Other | Done, None, None]:
    """Raises: RequestLost, Unreachable, RequestFailed, ClientError."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ClientError(f"{path}: cannot be read: {error.strerror}") from error
    connection, target, headers = route(url)
    with file, closing(connection):
        connect(connection, url)
        size_bytes = os.fstat(file.fileno()).st_size
        headers |= authorization(user, token) | {
            "Content-Type": framed.content_type,
            "Content-Length": str(len(framed.head) + size_bytes + len(framed.tail)),
            "Accept": "text/event-stream",
            "Connection": "close",
        }
        connection.putrequest("POST", target)
        for name, value in headers.items():
            connection.putheader(name, value)
        socket = connection.sock
        with breaking(url):
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
    raise no_answer(url, status, headers, body)


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
