"""One session with a server: audio in, typed events out.

    async with connect("ws://127.0.0.1:8765/v1/stream", language="en") as session:
        async for event in session.stream("speech.wav"):
            if isinstance(event, Final):
                print(event.text)

Utterances that the server refuses or could not finish are offered again by id, after the server's own hint, while the
events are being read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI
from websockets.http11 import Response
from websockets.typing import Subprotocol

from asr_ws import messages
from asr_ws.client.sources import AudioSource, open_source
from asr_ws.errors import ClientError, ProtocolError

DEFAULT_URL = f"ws://127.0.0.1:8765{messages.PATH}"
AHEAD_S = 0.5  # audio that a source which can wait sends unacknowledged: too little for two utterances to end in
GREETING_S = 0.5  # without `ready`: the server may wait for a token
LAST_WORD_S = 2.0  # for the close behind a refusal, which has the limit's name
TOKEN_HINT = "give it a token: --token-file FILE, or ASR_WS_TOKEN; in Python connect(url, token=...)"
OTHER_TOKEN_HINT = "the token that was given is none of the server's: ask whoever runs it"
OTHER_NAME = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH
NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")  # OpenSSL's reasons for a plain answer
HOLD_MARGIN_S = 0.5  # a retry is sent this long before the server's hold ends, at the latest

ACKNOWLEDGEMENT, GREETING = "asr_ws.client", "asr_ws.client greeting"  # ids of pings whose pongs are not the user's

Event = messages.ServerEvent | messages.Unknown


class SessionRefused(ClientError):
    """The server takes no more sessions now; ``retry_after_s`` is its hint."""

    code = "session_refused"

    def __init__(self, reason: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"the server refused the session: {reason}", f"try again in {retry_after_s:.1f} s")


class ConnectionLost(ClientError):
    """The connection ended before the session did."""

    code = "connection_lost"

    def __init__(self, closed: ConnectionClosed) -> None:
        self.close_code = closed.rcvd.code if closed.rcvd else 1006
        reason = closed.rcvd.reason if closed.rcvd else "no close frame"
        super().__init__(f"the connection ended with {self.close_code} {reason}".rstrip())


def retry_delay_s(refusal: messages.Busy | messages.Retry) -> float:
    """How long to wait before offering it again: the hint, or the load that is awaited, within the hold."""
    retry_after_s = refusal.retry_after_ms / 1000
    wait_s = messages.retry_wait_s(refusal.reason, retry_after_s, refusal.estimated_wait_ms / 1000)
    return min(wait_s, max(refusal.held_ms / 1000 - HOLD_MARGIN_S, retry_after_s))


@asynccontextmanager
async def connect(url: str = DEFAULT_URL, *, token: str | None = None, **start_fields: Any) -> AsyncIterator[Session]:
    """Open a session; leaving the block closes it.

    Args:
        url: ``ws://HOST:PORT/v1/stream``; also the server's plain address.
        token: where the server wants one; sent in a header too, unless the address has a proxy's user and password.
        start_fields: those of the protocol's ``start``: language, task, audio, endpointing, words, ...
    Raises:
        ClientError: no server there, a token that it does not take, a refused session (`SessionRefused`), or a field
            that is not one.
    """
    token = token.strip() if token is not None else None  # the end of the line that it was read from
    start = _start(token, start_fields)
    url, user = _session_url(url)
    bearer = f"Bearer {token}" if token is not None and not user else None
    try:
        socket = await open_socket(
            url.replace("//", f"//{user}", 1),
            subprotocols=[Subprotocol(messages.PROTOCOL)],
            additional_headers={"Authorization": bearer} if bearer is not None else None,
            compression=None,
            max_size=None,
            max_queue=64,
        )
    except InvalidStatus as refused:
        raise _not_let_in(url, refused.response, token) from refused
    except InvalidURI as error:
        raise _no_address(url) from error
    except InvalidHandshake as error:
        maybe_tls = isinstance(error, InvalidMessage) and url.startswith("ws:")
        hint = "it may want TLS: https:// or wss://" if maybe_tls else f"sessions are at {DEFAULT_URL} or alike"
        raise ClientError(f"no session at {url}: {error}", hint) from error
    except ssl.SSLCertVerificationError as error:
        raise ClientError(f"no session at {url}: {error.verify_message}", _trust_hint(error)) from error
    except (OSError, TimeoutError) as error:
        hint = "is the server running? asr-ws serve"
        if getattr(error, "reason", None) in NO_TLS:
            hint = "it may speak no TLS: http:// or ws://"
        elif isinstance(error, ConnectionResetError):
            hint = "it may have too many connections, or speak no TLS"
        raise ClientError(f"no session at {url}: {str(error) or 'the connection was cut off'}", hint) from error
    sent = socket.request.headers.get("Authorization") if socket.request is not None else None
    session = Session(socket, start)
    try:
        if token is not None and sent is None:  # taken away by a redirect to another host
            raise ClientError(f"{url} leads elsewhere, where the token is not for", "give the address it leads to")
        await session.wait_ready(introduced=sent == bearer)
        yield session
    finally:
        await session.close()


# What else an answer to the handshake says of the address, by its status.
ADDRESS_HINTS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "the proxy in front wants a user and a password: https://USER:PASSWORD@example.com/asr/",
    HTTPStatus.SERVICE_UNAVAILABLE: "the proxy in front has no room, or no server: try again later",
    HTTPStatus.NOT_FOUND: "behind a proxy its prefix belongs to the address, such as https://example.com/asr/",
    HTTPStatus.BAD_GATEWAY: "the proxy answers, the server behind it does not",
    HTTPStatus.GATEWAY_TIMEOUT: "the proxy answers, the server behind it does not",
}


def _not_let_in(url: str, response: Response, token: str | None) -> ClientError:
    """What an answer to the handshake means that is none of a WebSocket server."""
    said = bytes(response.body or b"").decode(errors="replace").partition("\n")[0]
    is_text = response.headers.get("Content-Type", "").startswith("text/plain")
    message = f"no session at {url}: HTTP {response.status_code}" + (f": {said}" if said and is_text else "")
    match response.status_code:
        case HTTPStatus.UNAUTHORIZED if response.headers.get("WWW-Authenticate", "").startswith("Bearer"):
            return ClientError(message, TOKEN_HINT if token is None else OTHER_TOKEN_HINT)
        case HTTPStatus.SERVICE_UNAVAILABLE if (after := response.headers.get("Retry-After", "")).isdecimal():
            return SessionRefused((said if is_text else "") or response.reason_phrase, float(after))
        case status:
            return ClientError(message, ADDRESS_HINTS.get(status, f"sessions are at {DEFAULT_URL} or alike"))


def _trust_hint(error: ssl.SSLCertVerificationError) -> str:
    if (trusted := os.environ.get("SSL_CERT_FILE")) and not os.path.isfile(trusted):
        return f"SSL_CERT_FILE names {trusted}, which is no file"
    if error.verify_code in OTHER_NAME:
        return "call it by a name or an address that its certificate is for"
    return "if its certificate is one of its own, name that file: SSL_CERT_FILE=self-signed.pem"


def _session_url(url: str) -> tuple[str, str]:
    """The server's plain address will do, also with a proxy's path: http is ws here, and the sessions are below it.

    Returns: the address to show, and what is not to be shown: ``USER:PASSWORD@``, or nothing.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise _no_address(url) from error
    user, at, host = parts.netloc.rpartition("@")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    is_plain = scheme != parts.scheme or parts.path in ("", "/")
    path = parts.path.removesuffix(messages.PATH).rstrip("/") + messages.PATH if is_plain else parts.path
    return parts._replace(scheme=scheme, netloc=host, path=path).geturl(), user + at


def _no_address(url: str) -> ClientError:
    return ClientError(f"{url} is no address of a server", f"such as http://127.0.0.1:8765 or {DEFAULT_URL}")


def _start(token: str | None, fields: dict[str, Any]) -> messages.Start:
    if token == "":
        raise ClientError("the token is empty", TOKEN_HINT)
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise ClientError(
            "a token has no spaces, and letters of ASCII only", "the token alone: no name behind it, no second line"
        )
    try:
        start = msgspec.convert({"type": "start", "token": token, **msgspec.to_builtins(fields)}, messages.Start)
        start.audio.check()
        return start
    except (msgspec.ValidationError, TypeError, ProtocolError) as error:
        raise ClientError(f"start fields: {error}", "see docs/reference/protocol.md") from error


class Session:
    """An open session. Make it with `connect`.

    Attributes:
        ready: what the server said of itself.
    """

    def __init__(self, socket: ClientConnection, start: messages.Start) -> None:
        self.ready: messages.Ready | None = None
        self._socket = socket
        self._start = start
        self._started = False
        self._is_asked = False  # whether it is there at all
        self._source_error: Exception | None = None
        self._early: list[Event] = []  # read while waiting for `ready`
        self._retries: dict[str, asyncio.Task[None]] = {}  # of the utterances refused and not yet settled, by id
        self._admitted: set[str] = set()  # utterances, of which the server has not told the outcome
        self._changed = asyncio.Event()  # one of these two
        self._acknowledged = asyncio.Event()

    async def wait_ready(self, *, introduced: bool) -> None:
        """Args: introduced: whether the server knows us, as far as it wants to, or waits for the token in `start`.

        Raises: SessionRefused, ConnectionLost; ClientError: the server told why not.
        """
        while self.ready is None:
            try:
                event = await self._receive(None if self._is_asked else GREETING_S if introduced else 0)
            except TimeoutError:
                self._is_asked = True
                with contextlib.suppress(ConnectionLost):  # what was said before it is read all the same
                    # A proxy may have taken the header away. One that waits for a token says so to anything else.
                    await (self._begin() if self._start.token is not None else self.ping(GREETING))
                continue
            if isinstance(event, messages.Error) and event.fatal:
                hint = TOKEN_HINT if event.code == "unauthorized" and self._start.token is None else event.hint
                raise ClientError(f"{event.code}: {event.message}", hint)
            self._early.append(event)

    async def send(self, data: bytes) -> None:
        """Audio in the declared format, at most 256 KiB, cut anywhere."""
        await self._begin()
        await self._write(data)

    async def commit(self, id: str | None = None) -> None:
        """The utterance ends here (push to talk); ``id`` comes back in its `accepted`, `busy` or error."""
        await self._begin()
        await self._send(messages.Commit(id=id))

    async def cancel(self, utterance: str | None = None) -> None:
        """Drop that utterance, or everything unfinished."""
        await self._begin()
        await self._send(messages.Cancel(utterance=utterance))

    async def ping(self, id: str | int | None = None) -> None:
        await self._send(messages.Ping(id=id))

    async def end(self) -> None:
        """No more audio; the events go on until `done`."""
        await self._begin()
        await self._send(messages.End())

    async def events(self) -> AsyncIterator[Event]:
        """Everything the server says, until `done` or a fatal error's close.

        Raises:
            ConnectionLost: the connection ended otherwise.
        """
        fatal = False
        while True:
            try:
                event = self._early.pop(0) if self._early else await self._receive()
            except ConnectionLost:
                if fatal:
                    return
                raise
            if isinstance(event, messages.Pong) and event.id in (ACKNOWLEDGEMENT, GREETING):
                if event.id == ACKNOWLEDGEMENT:
                    self._acknowledged.set()
                continue
            self._note(event)
            yield event
            fatal = fatal or (isinstance(event, messages.Error) and event.fatal)
            if isinstance(event, messages.Done):
                return

    async def stream(self, source: AudioSource, *, realtime: bool = False) -> AsyncIterator[Event]:
        """Send all of a source, then `end`; the events, until `done`.

        Args:
            source: see `asr_ws.client.sources.open_source`.
            realtime: send as a microphone would, not as fast as the server takes it.
        Raises:
            ClientError: the source is not readable, or the connection was lost.
        """
        opened = open_source(source, self._start.audio)
        if opened.audio is not None and not self._started:
            self._start.audio = opened.audio
        sender = asyncio.create_task(self._send_all(opened.chunks, realtime), name="asr_ws sender")
        try:
            async for event in self.events():
                yield event
        except ConnectionLost:
            if self._source_error is not None:
                raise self._source_error from None
            raise
        finally:
            sender.cancel()
            await asyncio.wait([sender])

    async def close(self) -> None:
        """Close the connection; what has no outcome yet is dropped. For the outcomes, `end` and read until `done`."""
        for task in self._retries.values():
            task.cancel()
        await self._socket.close()

    async def _send_all(self, chunks: AsyncIterator[bytes], realtime: bool) -> None:
        loop = asyncio.get_running_loop()
        began, sent_s, asked_s = loop.time(), 0.0, 0.0
        try:
            await self._begin()
            async for chunk in chunks:
                sent_s += len(chunk) / self._start.audio.bytes_per_s
                if realtime:
                    await asyncio.sleep(began + sent_s - loop.time())
                elif sent_s > asked_s + AHEAD_S:
                    asked_s = sent_s
                    await self._keep_close()
                for start in range(0, len(chunk), messages.MAX_BINARY_BYTES):
                    await self._write(chunk[start : start + messages.MAX_BINARY_BYTES])
            if not realtime:
                await self._keep_close()  # also because holds are short after `end`
            await self._send(messages.End())
        except ConnectionLost:
            return  # the reader sees it too, with what the server said before
        except Exception as error:  # the source's own: `stream` raises it, once the reader has been woken
            self._source_error = error
            await self._socket.close()

    async def _keep_close(self) -> None:
        """Wait until the server has seen all that was sent, and has no more of it to do than the one utterance that
        keeps its model busy: a source that can wait does not run ahead, or a server that comes to a standstill would
        have to hold more than it does.
        """
        self._acknowledged.clear()
        await self.ping(ACKNOWLEDGEMENT)
        await self._acknowledged.wait()
        while self._retries or len(self._admitted) > 1:
            self._changed.clear()
            await self._changed.wait()

    async def _begin(self) -> None:
        """`start`, once, before the first thing that needs it."""
        if not self._started:
            self._started = True
            await self._send(self._start)

    async def _send(self, message: messages.ClientMessage) -> None:
        await self._write(messages.encode(message))

    async def _write(self, data: str | bytes) -> None:
        try:
            await self._socket.send(data)
        except ConnectionClosed as error:
            raise ConnectionLost(error) from error

    async def _receive(self, timeout_s: float | None = None) -> Event:
        try:
            async with asyncio.timeout(timeout_s):
                received = await self._socket.recv()
            event = messages.decode_event(received)
        except ConnectionClosed as error:
            raise ConnectionLost(error) from error
        except ProtocolError as error:
            raise ClientError(str(error), "is this an asr_ws server?") from error
        if isinstance(event, messages.Ready):
            self.ready = event
        elif isinstance(event, messages.Busy) and event.utterance is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_S):
                    await self._socket.wait_closed()
            raise SessionRefused(self._socket.close_reason or event.reason, event.retry_after_ms / 1000)
        return event

    def _note(self, event: Event) -> None:
        """Plan the retry of what was refused and is held; forget what is settled."""
        match event:
            case (
                messages.Accepted(utterance=str(id))
                | messages.Busy(utterance=str(id))
                | messages.Retry(utterance=str(id))
                | messages.Final(utterance=str(id))
                | messages.Dropped(utterance=str(id))
                | messages.Error(utterance=str(id))
            ):
                self._admitted.discard(id)
                if isinstance(event, messages.Accepted):
                    self._admitted.add(id)
                if isinstance(event, messages.Accepted | messages.Dropped) and (task := self._retries.pop(id, None)):
                    task.cancel()
                if isinstance(event, messages.Busy | messages.Retry) and event.held_ms:
                    self._retries[id] = asyncio.create_task(self._retry(id, retry_delay_s(event)), name=f"retry {id}")
                self._changed.set()

    async def _retry(self, utterance: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            await self._send(messages.RetryUtterance(utterance=utterance))
        except ConnectionLost:
            return  # the reader sees it too


@dataclass(slots=True)
class Transcript:
    """What a source came to.

    Attributes:
        finals: in the order of the audio.
        unfinished: what ended otherwise (`Error`, `Dropped`): no text for it.
        done: the server's ledger.
    """

    finals: list[messages.Final] = field(default_factory=list)
    unfinished: list[messages.Error | messages.Dropped] = field(default_factory=list)
    done: messages.Done | None = None

    @property
    def text(self) -> str:
        return " ".join(final.text for final in self.finals if final.text)

    def receive(self, event: Event) -> None:
        match event:
            case messages.Final():
                self.finals.append(event)
                self.finals.sort(key=lambda final: final.audio_start_ms)
            case messages.Dropped() | messages.Error(code="decode_failed" | "poison_audio"):
                self.unfinished.append(event)
            case messages.Done():
                self.done = event


def collect(events: Iterable[Event]) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.receive(event)
    return transcript


def transcribe(
    source: AudioSource,
    url: str = DEFAULT_URL,
    *,
    realtime: bool = False,
    token: str | None = None,
    **start_fields: Any,
) -> Transcript:
    """Stream a source and wait for its text. Blocking; inside an event loop use `connect`.

    Raises:
        ClientError: see `connect` and `Session.stream`; or the server refused a field, or ended the session.
    """

    async def run() -> Transcript:
        transcript = Transcript()
        async with connect(url, token=token, **{"partials": False, **start_fields}) as session:
            async for event in session.stream(source, realtime=realtime):
                if isinstance(event, messages.Error) and (event.fatal or event.code == "bad_message"):
                    raise ClientError(f"{event.code}: {event.message}", event.hint)
                transcript.receive(event)
        return transcript

    return asyncio.run(run())
