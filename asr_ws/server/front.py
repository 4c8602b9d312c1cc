"""One port for everything: a connection's first request decides which library has it.

Rules:

- A connection is a session's (websockets) or one HTTP request's (aiohttp); neither is asked for a second request, so
  nothing that stands behind the first can be taken for something else.
- The head is held back until its end is there, for some seconds and `HEAD_BYTES` at most; else 408 and 431. So
  nobody occupies either library with a head that does not come, and the one decision is made in one place: what may
  be a handshake, a GET without a body of that path as the client wrote it, is the session's; all else, such as the
  path behind a scheme and a host, is HTTP's, which opens none. What is not HTTP/1.0 or 1.1 is for neither: 505.
- Whoever is still in his head when the server stops is told 503.
- A body is not read before somebody wants it: of most that are refused it need not be looked at.
- What stands behind the head goes to aiohttp a slice at a time, in turns with what sessions send: of chunks of
  one byte it would look through 40,000 at once, 0.1 s and more in which nobody else is served.
- After the response our side is closed, and what still comes is thrown away for a while. Closed with something unread,
  a connection is reset, and the response may be lost with it: of an upload that was refused early, for one.

Relied on, beside what the libraries document: a `ServerConnection` may learn of its transport later than it is made,
and aiohttp's server makes a protocol that takes a connection whose head has been read. ``tests/server/test_front.py``
is the guard of that; where it fails, ``--http-port`` needs neither.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, cast

from asr_ws.core.types import RefusalReason, Shed
from asr_ws.server.failures import Failure, Refused, failure
from asr_ws.server.intake import ENCRYPTED_AHEAD, Intake, Turns
from asr_ws.server.shapes import error_body

HEAD_BYTES: Final = 64 * 1024
END: Final = b"\r\n\r\n"
OTHER_VERSION: Final = re.compile(rb"[A-Z]+ [^ \r\n]+(?: HTTP/(?!1\.[01]\r)\d\.\d)?\r")  # of HTTP/0.9 there is none
BODY: Final = re.compile(rb"\r\n(?:content-length:(?![ \t]*0[ \t]*\r)|transfer-encoding:)", re.IGNORECASE)
SLICE_BYTES: Final = 64 * 1024  # of a body, looked at at once
CHUNKED_SLICE_BYTES: Final = 4096  # if it is of chunks: at worst 680 of one byte, some milliseconds
LINGER_S: Final = 10.0  # for what a peer still sends, and for the response to be read
QUIET_S: Final = 0.5  # without a byte: the peer, over TLS, sends no more

STOPPING: Final = Shed(RefusalReason.DRAINING, 1.0, 0.0, 0, 0)  # to who waits for nothing of the queue's

HandOff = Callable[[asyncio.Transport, bytes], None]  # takes the connection, and what was read of it


class Front:
    """Of a server's ports.

    Args:
        make_http: a protocol for one HTTP request.
        is_session: whether a request's target is where sessions are opened.
        on_refused: told the status of each head that came to nothing.
        timeout_s: for a head.
        turns: among whose others a connection is looked at.
    """

    def __init__(
        self,
        make_http: Callable[[], asyncio.BaseProtocol],
        is_session: Callable[[str], bool],
        on_refused: Callable[[HTTPStatus], None],
        timeout_s: float,
        turns: Turns,
    ) -> None:
        self._turns = turns
        self._make_http = make_http
        self._is_session = is_session
        self._on_refused = on_refused
        self._timeout_s = timeout_s
        self._pending = weakref.WeakSet[Head]()
        self._is_open = True

    def http_only(self) -> Head:
        """The protocol of a connection to a port where there are no sessions."""
        return self._head(self._to_http)

    def one_port(self, *args: Any, **kwargs: Any) -> OnePort:
        """The same where there are: what websockets wants for a connection."""
        return OnePort(self, self._turns, *args, **kwargs)

    def begin(self, session: OnePort, transport: asyncio.Transport) -> None:
        def hand_off(transport: asyncio.Transport, data: bytes) -> None:
            method, _, rest = data.partition(b" ")
            # A handshake is a GET without a body: of anything else websockets would close without a word.
            is_handshake = method == b"GET" and not BODY.search(data, 0, data.index(END))
            if is_handshake and self._is_session(rest.partition(b" ")[0].decode("latin-1")):
                session.take(transport, data)
            else:
                self._to_http(transport, data)

        head = self._head(hand_off)
        transport.set_protocol(head)
        head.connection_made(transport)

    def close(self) -> None:
        """Turn away who is still in his head, and who comes now: a handshake of TLS may only just have ended."""
        self._is_open = False
        for head in list(self._pending):
            head.refuse(HTTPStatus.SERVICE_UNAVAILABLE)

    def _head(self, hand_off: HandOff) -> Head:
        head = Head(hand_off, self._on_refused, self._timeout_s if self._is_open else None)
        self._pending.add(head)
        return head

    def _to_http(self, transport: asyncio.Transport, data: bytes) -> None:
        protocol = cast(asyncio.Protocol, self._make_http())
        slices = Slices(self._turns, transport, protocol)
        transport.set_protocol(slices)
        protocol.connection_made(cast(asyncio.Transport, Sliced(transport, slices)))
        end = data.index(END) + len(END)
        protocol.data_received(data[:end])  # by itself: what stands behind it must not spoil it
        slices.set_full(not slices.is_heard_out)  # a body is not looked at before somebody wants it
        slices.data_received(data[end:])


class OnePort(Intake):
    """A session's connection, which it becomes only once its head is there. Args: as `Intake`'s, behind ``front``."""

    def __init__(self, front: Front, turns: Turns, *args: Any, **kwargs: Any) -> None:
        super().__init__(turns, *args, **kwargs)
        self._front = front

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._front.begin(self, cast(asyncio.Transport, transport))

    def take(self, transport: asyncio.Transport, data: bytes) -> None:
        transport.set_protocol(self)
        super().connection_made(transport)
        self.data_received(data)


class Head(asyncio.Protocol):
    """A connection until its first request's head is there. Args: timeout_s: None: it is not waited for."""

    def __init__(self, hand_off: HandOff, on_refused: Callable[[HTTPStatus], None], timeout_s: float | None) -> None:
        self._hand_off = hand_off
        self._on_refused = on_refused
        self._timeout_s = timeout_s
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None  # None: it has been handed off, or is closed
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._timeout_s is None:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self.refuse, HTTPStatus.REQUEST_TIMEOUT)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        looked_at = max(0, len(self._data) - len(END) + 1)
        self._data += data
        if not looked_at:  # RFC 9112, 2.2: empty lines before a request are to be ignored
            del self._data[: len(self._data) - len(self._data.lstrip(b"\r\n"))]
        end = self._data.find(END, looked_at)
        if (len(self._data) if end < 0 else end) > HEAD_BYTES:
            self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif end >= 0 and OTHER_VERSION.match(self._data):
            self.refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        elif end >= 0:
            transport = self._leave()
            self._hand_off(transport, bytes(self._data))

    def eof_received(self) -> None:
        """Half a head is no request: asyncio closes."""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._leave()

    def refuse(self, status: HTTPStatus) -> None:
        """In the shape of every error; whose peer does not read is not waited for. 503: the server stops."""
        if self._transport is None:
            return
        transport = self._leave()
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            said = failure(Refused(STOPPING))
        else:
            said = Failure(status, error_body(status, status.phrase.lower().replace(" ", "_"), status.phrase))
        transport.write(said.response)
        Polite(transport, self).close()
        self._on_refused(status)

    def _leave(self) -> asyncio.Transport:
        assert self._transport is not None
        transport, self._transport = self._transport, None
        if self._timer is not None:
            self._timer.cancel()
        return transport


class Polite:
    """A transport whose closing waits for the peer's; ``protocol`` is told of the end."""

    __slots__ = ("_has_left", "_protocol", "_transport", "peer_has_left")

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._has_left = False
        self.peer_has_left = False  # to be set once its end has come

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._has_left or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        self._has_left = True
        leaving = _Leaving(self._transport, self._protocol)
        self._transport.set_protocol(leaving)
        if self.peer_has_left:
            self._transport.close()
        elif self._transport.can_write_eof():
            try:
                self._transport.write_eof()
            except OSError:  # who has reset the connection reads no answer
                self._transport.abort()
                return
        elif getattr(self._protocol, "is_heard_out", False):  # which who was handed the connection knows
            self._transport.close()
        else:  # TLS has no half of a connection, and who still sends may not be told by a reset
            leaving.close_when_quiet()
        self._transport.resume_reading()

    def give_up(self) -> None:
        """Who has gone gets no answer any more, if it has not begun to leave."""
        if not self.is_closing():
            self._transport.abort()


class Slices(asyncio.Protocol):
    """Of what a request's peer sends, for ``protocol``; what has come when it is answered is thrown away."""

    def __init__(self, turns: Turns, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        self.looked_s = turns.entry_s
        self._turns = turns
        self._transport = transport
        self._protocol = protocol
        self._unread = bytearray()
        self._is_waiting = False  # for its turn
        self._is_full = False  # of what nobody has taken yet
        self._is_over = False
        if (limit := getattr(transport, "set_read_buffer_limits", None)) is not None:
            limit(ENCRYPTED_AHEAD)

    @property
    def is_heard_out(self) -> bool:
        return not self._unread and getattr(self._protocol, "is_heard_out", True)

    def data_received(self, data: bytes) -> None:
        if not self._is_over:
            self._unread += data
            self.regulate()

    def eof_received(self) -> bool | None:
        """Over TLS there may be something unread, but of who closes that nothing is left."""
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def set_full(self, is_full: bool) -> None:
        self._is_full = is_full
        self.regulate()

    def drop(self) -> None:
        self._is_over = True
        self._unread.clear()

    def regulate(self) -> None:
        """Read on when nothing is left, and wait for a turn when something is; neither while it is full."""
        if self._is_over:
            return
        if not self._transport.is_closing():
            if self._unread or self._is_full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
        if self._unread and not self._is_full and not self._is_waiting:
            self._is_waiting = True
            self._turns.enter(self)

    def look(self) -> None:
        """At one slice; who reads the body takes it before there is a next one."""
        asyncio.get_running_loop().call_soon(self._go_on)
        if not self._unread or self._is_full:
            return
        is_chunked = getattr(self._protocol, "is_chunked", True)
        data = bytes(self._unread[: CHUNKED_SLICE_BYTES if is_chunked else SLICE_BYTES])
        del self._unread[: len(data)]
        try:
            self._protocol.data_received(data)
        except BaseException:
            self._transport.abort()
            raise

    def _go_on(self) -> None:
        self._is_waiting = False
        self.regulate()


class Sliced(Polite):
    """The transport as aiohttp sees it."""

    __slots__ = ("_slices",)

    def __init__(self, transport: asyncio.Transport, slices: Slices) -> None:
        super().__init__(transport, slices)
        self._slices = slices

    def pause_reading(self) -> None:
        self._slices.set_full(True)

    def resume_reading(self) -> None:
        self._slices.set_full(False)

    def close(self) -> None:
        super().close()
        self._slices.drop()


class _Leaving(asyncio.Protocol):
    """Of a connection whose last word has been said."""

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(LINGER_S, transport.abort)
        self._quiet: asyncio.TimerHandle | None = None

    def close_when_quiet(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = self._loop.call_later(QUIET_S, self._transport.close)

    def data_received(self, data: bytes) -> None:
        """It has been read, which is all."""
        if self._quiet is not None and not self._transport.is_closing():
            self.close_when_quiet()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        if self._quiet is not None:
            self._quiet.cancel()
        self._protocol.connection_lost(exc)
