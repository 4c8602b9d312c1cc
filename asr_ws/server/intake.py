"""A WebSocket that takes what its peer sends a little at a time, and nothing more while the peer does not read.

asyncio hands over up to 256 KiB at once, and websockets looks through all of it: 37,000 frames of one byte, 0.4 s in
which nobody else is served. And it answers each ping, into a buffer without end if the peer does not read. What comes
behind a request before it is answered, an end of file too, it takes for a bug of its own, with a traceback.

Relied on, beside what websockets documents: what comes enters by asyncio's callbacks; what goes out, and the holding of
a peer whose messages are not taken, goes by the transport that `connection_made` was given.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, cast

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

SLICE_BYTES: Final = 4096  # looked through at once: 100 ms of audio; at worst 680 pings, some milliseconds
TURN_S: Final = 0.002  # before the loop sees to other things
ENTRY_S: Final = 0.005  # that who has just come is taken to have had: else those that come anew each time go first
ENCRYPTED_AHEAD: Final = 1024  # bytes that asyncio's TLS takes while we read nothing, to be decrypted at once then


class Looked(Protocol):
    """Whose bytes are looked at in turns."""

    looked_s: float  # spent on it so far

    def look(self) -> None:
        """At some of them."""

    def regulate(self) -> None:
        """Enter again, if there are more."""


class Turns:
    """Of a server's connections: next is whose bytes have taken least time so far, so that floods wait behind speech.

    That is the time of looking through them, pongs included; what a session makes of its messages is not in it. Who
    comes after a pause is not repaid for it: he starts where the one stands who was looked at last (start-time fair
    queueing).

    Args: clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: list[tuple[float, int, Looked]] = []
        self._number = itertools.count()  # of those who had equally much, the first
        self._last_s = 0.0  # of who was looked at last
        self._is_called = False
        self._until = math.inf  # the end of `take_now` in this turn of the loop, once it has begun

    @property
    def entry_s(self) -> float:
        return self._last_s + ENTRY_S

    def enter(self, looked: Looked) -> None:
        looked.looked_s = max(looked.looked_s, self._last_s)
        heapq.heappush(self._waiting, (looked.looked_s, next(self._number), looked))
        self._call()

    def take_now(self, looked: Looked) -> bool:
        """Look at it at once, where nobody waits and this turn of the loop has time left. Returns: whether it was.

        As good as entering, for who sends a frame now and then, and cheaper: nothing is held back for it.
        """
        now = self._clock()
        if self._waiting or now >= self._until:
            return False
        if self._until == math.inf:
            self._until = now + TURN_S
            asyncio.get_running_loop().call_soon(self._renew)
        looked.looked_s = self._last_s = max(looked.looked_s, self._last_s)
        try:
            looked.look()
        finally:
            looked.looked_s += self._clock() - now
        return True

    def _renew(self) -> None:
        self._until = math.inf

    def _call(self) -> None:
        if self._waiting and not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._is_called = False
        until = self._clock() + TURN_S
        try:
            while self._waiting and (began := self._clock()) < until:
                self._last_s, _, looked = heapq.heappop(self._waiting)
                try:
                    looked.look()
                finally:
                    looked.looked_s += self._clock() - began
                    looked.regulate()
        finally:
            self._call()


class Intake(ServerConnection):
    """Args: turns: among whose others it is looked at. The rest is websockets'."""

    def __init__(self, turns: Turns, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.looked_s = turns.entry_s
        self._turns = turns
        self._unread = bytearray()
        self._behind: list[Callable[[], None]] = []  # it: the end of file (over TLS; plain, we pause), and the loss
        self._is_waiting = False  # for its turn
        self._is_full = False  # of what websockets has read, and we have not taken yet
        self._is_stuck = False  # with what its peer does not read
        self._is_dropped = False  # nobody wants to know more of it

    @property
    def remote_address(self) -> Any:
        """Also of who has gone, which asyncio's TLS forgets."""
        return self._peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._peer = transport.get_extra_info("peername")
        self._source = cast(asyncio.Transport, transport)
        self._tap = _Tap(self._source, self)
        if (limit := getattr(transport, "set_read_buffer_limits", None)) is not None:
            limit(ENCRYPTED_AHEAD)
        super().connection_made(cast(asyncio.Transport, self._tap))

    async def handshake(self, *args: Any, **kwargs: Any) -> None:
        await super().handshake(*args, **kwargs)
        self.regulate()  # what came behind the request

    def data_received(self, data: bytes) -> None:
        if self._is_dropped:
            return
        is_first = not self._unread and not self._behind and self.response is not None
        self._unread += data
        if not (is_first and len(data) <= SLICE_BYTES and not self._is_held and self._turns.take_now(self)):
            self.regulate()

    def eof_received(self) -> None:
        self._behind.append(super().eof_received)
        self.regulate()

    def connection_lost(self, exc: Exception | None) -> None:
        self._behind.append(partial(super().connection_lost, exc))
        if exc is not None or self.state is not State.OPEN:  # else it said its end over TLS, where we cannot pause
            self.drop()
        self.regulate()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._is_stuck = True
        self.regulate()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_stuck = False
        self.regulate()

    def set_full(self, is_full: bool) -> None:
        """Websockets has enough for now, or wants more; of no account once all is dropped but the end."""
        self._is_full = is_full and not self._is_dropped
        self.regulate()

    def drop(self) -> None:
        """Nothing that came, and was not looked at, is wanted any more."""
        self._is_dropped = True
        self._unread.clear()
        self.set_full(False)

    def regulate(self) -> None:
        """Read on when nothing is left, and wait for a turn when something is; neither while it is held."""
        has_more = bool(self._unread or self._behind)
        if not self._source.is_closing():
            if has_more or self._is_held:
                self._source.pause_reading()
            else:
                self._source.resume_reading()
        if has_more and not self._is_held and not self._is_waiting:
            self._is_waiting = True
            self._turns.enter(self)

    def look(self) -> None:
        """At a slice of what came, or at what is behind it; its turn has come."""
        self._is_waiting = False
        if self._is_held:
            return
        if self._unread:
            data = bytes(self._unread[: self._n_next()])
            del self._unread[: len(data)]
            self._tap.hold()
            try:
                super().data_received(data)
            finally:
                self._tap.release()
        elif self._behind:
            self._behind.pop(0)()

    def _n_next(self) -> int:
        """Of a request's head a line at once, so that nothing behind its end is looked at."""
        n_line = self._unread.find(b"\n", 0, SLICE_BYTES) + 1 if self.request is None else 0
        return n_line or SLICE_BYTES

    @property
    def _is_held(self) -> bool:
        is_answering = self.request is not None and self.response is None and not self._is_dropped
        is_stuck = self._is_stuck and not self._source.is_closing()
        return self._is_full or is_stuck or is_answering


class _Tap:
    """The transport as websockets sees it: who opens and closes it is told, the rest goes through.

    What it writes for a slice is written at once, and nothing any more when the peer has gone: asyncio would warn each
    time.
    """

    __slots__ = ("_held", "_intake", "_transport")

    def __init__(self, transport: asyncio.Transport, intake: Intake) -> None:
        self._transport = transport
        self._intake = intake
        self._held: list[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def hold(self) -> None:
        self._held = []

    def release(self) -> None:
        held, self._held = self._held, None
        if held:
            self.write(b"".join(held))

    def write(self, data: bytes) -> None:
        if self._held is not None:
            self._held.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def write_eof(self) -> None:
        """Websockets throws away from now on what comes, and waits for the end: which must be read, full or not."""
        self.release()
        self._intake.drop()
        self._transport.write_eof()

    def close(self) -> None:
        """As `write_eof`, over TLS: where a second close makes asyncio forget what an abort would need."""
        self.release()
        if not self._transport.is_closing():
            self._intake.drop()
            self._transport.close()

    def abort(self) -> None:
        self._held = None
        self._transport.abort()
        self._intake.drop()

    def pause_reading(self) -> None:
        self._intake.set_full(True)

    def resume_reading(self) -> None:
        self._intake.set_full(False)
