"""A WebSocket that carries typed messages. It remembers nothing: see `asr_ws.client.session` for that."""

from __future__ import annotations

import asyncio
import contextlib

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
)
from websockets.frames import CloseCode
from websockets.typing import Subprotocol

from asr_ws import messages
from asr_ws.client.address import (
    NO_SERVER,
    PROXY_HINT,
    TOKEN_HINT,
    WHERE,
    ConnectionLost,
    SessionRefused,
    Unreachable,
    no_address,
    not_let_in,
    not_reached,
    session_url,
)
from asr_ws.client.events import OWN
from asr_ws.errors import ClientError, ProtocolError

GREETING_S = 0.5  # without `ready`: the server may wait for a token
LAST_WORD_S = 2.0  # for the close behind a refusal, which has the limit's name
OPEN_S = 10.0  # to `ready`
MAX_EVENT_BYTES = 1 << 20  # the longest `final` has a tenth; 64 of them may be waiting
CLOSE_S = 2.0  # for the other side's part of the close


async def open_wire(url: str, start: messages.Start, *, introduce: bool = False) -> Wire:
    """Connect, and wait for `ready`, OPEN_S at most.

    Args:
        url: see `asr_ws.client.connect`.
        start: its token goes into a header too; itself it is sent where a server wants the token in it, or
        introduce: at once.
    Raises:
        SessionRefused, ConnectionLost, Unreachable; ClientError: whatever would be the same the next time.
    """
    url, user = session_url(url)
    try:
        async with asyncio.timeout(OPEN_S):
            return await _open(url, user, start, introduce=introduce)
    except TimeoutError as error:
        hint = "something listens there, which may be no asr_ws server"
        raise Unreachable(f"no session at {url}: no answer within {OPEN_S:g} s", hint) from error


async def _open(url: str, user: str, start: messages.Start, *, introduce: bool) -> Wire:
    bearer = f"Bearer {start.token}" if start.token is not None and not user else None
    try:
        socket = await open_socket(
            url.replace("//", f"//{user}", 1),
            subprotocols=[Subprotocol(messages.PROTOCOL)],
            additional_headers={"Authorization": bearer} if bearer is not None else None,
            compression=None,
            max_size=MAX_EVENT_BYTES,
            max_queue=64,
            ping_interval=None,  # the session asks by itself, and a server that takes its time with audio is not gone
            close_timeout=CLOSE_S,
        )
    except InvalidStatus as refused:
        raise not_let_in(url, refused.response, start.token) from refused
    except InvalidURI as error:
        raise no_address(url) from error
    except InvalidHandshake as error:
        maybe_tls = isinstance(error, InvalidMessage) and url.startswith("ws:")
        raise Unreachable(
            f"no session at {url}: {error}", "it may want TLS: https:// or wss://" if maybe_tls else WHERE
        ) from error
    except OSError as error:
        raise not_reached(f"no session at {url}", error) from error
    except (InvalidProxy, ImportError) as error:  # the latter: of what a SOCKS proxy needs
        raise ClientError(f"no session at {url}: {error}", PROXY_HINT) from error
    except ValueError as error:  # no name of a host, in it or where it leads to
        raise ClientError(f"no session at {url}: {error}", WHERE) from error
    wire = Wire(socket)
    try:
        sent = socket.request.headers.get("Authorization") if socket.request is not None else None
        if start.token is not None and sent is None:  # taken away by a redirect to another host
            raise ClientError(f"{url} leads elsewhere, where the token is not for", "give the address it leads to")
        await wire.wait_ready(start, introduce=introduce, is_known=sent == bearer)
    except BaseException:
        await wire.close()
        raise
    return wire


class Wire:
    """Make it with `open_wire`.

    Attributes:
        ready: what the server said of itself.
        is_introduced: whether `start` was sent.
    """

    ready: messages.Ready

    def __init__(self, socket: ClientConnection) -> None:
        self.is_introduced = False
        self._socket = socket
        self._early: list[messages.ServerEvent | messages.Unknown] = []  # read while waiting for `ready`

    async def wait_ready(self, start: messages.Start, *, introduce: bool, is_known: bool) -> None:
        """Args: is_known: whether the server knows us, as far as it wants to, or waits for the token in `start`."""
        if introduce:
            await self._introduce(start)
        is_asked = introduce
        while True:
            try:
                event = await self._read(None if is_asked else GREETING_S if is_known else 0)
            except TimeoutError:
                is_asked = True
                # A proxy may have taken the header away. One that waits for a token says so to anything else.
                await self._introduce(start if start.token is not None else messages.Ping(id=f"{OWN}:greeting"))
                continue
            if isinstance(event, messages.Error) and event.fatal:
                hint = TOKEN_HINT if event.code == "unauthorized" and start.token is None else event.hint
                raise ClientError(f"{event.code}: {event.message}", hint)
            self._early.append(event)
            if isinstance(event, messages.Ready):
                self.ready = event
                return

    async def _introduce(self, message: messages.Start | messages.Ping) -> None:
        self.is_introduced |= isinstance(message, messages.Start)
        with contextlib.suppress(ConnectionLost):  # what was said before it, such as `busy`, is read all the same
            await self.send(message)

    async def send(self, data: bytes | messages.ClientMessage) -> None:
        """Raises: ConnectionLost."""
        try:
            await self._socket.send(data if isinstance(data, bytes) else messages.encode(data))
        except ConnectionClosed as error:
            raise ConnectionLost(error) from error

    async def receive(self) -> messages.ServerEvent | messages.Unknown:
        """Raises: SessionRefused, ConnectionLost; ClientError: it is no server of this protocol."""
        return self._early.pop(0) if self._early else await self._read()

    async def _read(self, timeout_s: float | None = None) -> messages.ServerEvent | messages.Unknown:
        try:
            async with asyncio.timeout(timeout_s):
                received = await self._socket.recv()
            event = messages.decode_event(received)
        except ConnectionClosed as error:
            if error.sent is not None and error.sent.code == CloseCode.MESSAGE_TOO_BIG and not error.rcvd_then_sent:
                raise ClientError(f"an event of more than {MAX_EVENT_BYTES} bytes", NO_SERVER) from error
            raise ConnectionLost(error) from error
        except ProtocolError as error:
            raise ClientError(str(error), NO_SERVER) from error
        if isinstance(event, messages.Busy) and event.utterance is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_S):
                    await self._socket.wait_closed()
            raise SessionRefused(self._socket.close_reason or event.reason, event.retry_after_ms / 1000)
        return event

    async def close(self) -> None:
        try:
            await self._socket.close()
        finally:  # also of what is cancelled meanwhile
            self.abort()

    def abort(self) -> None:
        self._socket.transport.abort()
