"""A WebSocket that takes what its peer sends a little at a time, and nothing more while the peer does not read.

asyncio hands over up to 256 KiB at once, and websockets looks through all of it: 37,000 frames of one byte, 0.4 s in
which nobody else is served. And it answers each ping, into a buffer without end if the peer does not read. What comes
behind a request before it is answered, an end of file too, it takes for a bug of its own, with a traceback.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from websockets.asyncio.server import ServerConnection

SLICE_BYTES: Final = 4096  # looked through in a turn of the loop: at worst 600 frames, some milliseconds


class Intake(ServerConnection):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._source = cast(asyncio.Transport, transport)
        self._unread = bytearray()
        self._is_full = False  # of what websockets has read, and we have not taken yet
        self._turn: asyncio.Handle | None = None
        super().connection_made(cast(asyncio.Transport, _Tap(self._source, self)))

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if self._turn is None:
            self._feed()

    def eof_received(self) -> None:
        if self._is_answering:  # over TLS only: plain, we do not read meanwhile
            self._source.abort()
        else:
            super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unread.clear()
        self._is_full = True  # nothing is to be looked at any more

    def pause_writing(self) -> None:
        super().pause_writing()
        self._regulate()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._regulate()

    def set_full(self, is_full: bool) -> None:
        """Websockets has enough for now, or wants more."""
        self._is_full = is_full
        self._regulate()

    def _feed(self) -> None:
        self._turn = None
        n_left = SLICE_BYTES
        while n_left > 0 and self._unread and not self._is_held and not self._is_answering:
            data = bytes(self._unread[: self._n_next(n_left)])
            del self._unread[: len(data)]
            n_left -= len(data)
            super().data_received(data)
        self._regulate()

    def _n_next(self, most: int) -> int:
        """Of a request's head a line at once, so that nothing behind its end is looked at."""
        n_line = self._unread.find(b"\n", 0, most) + 1 if self.request is None else 0
        return n_line or most

    @property
    def _is_held(self) -> bool:
        return self._is_full or self.paused

    @property
    def _is_answering(self) -> bool:
        """The request is here, the response not yet: some turns of the loop."""
        return self.request is not None and self.response is None

    def _regulate(self) -> None:
        """Read on when nothing is left, and look on when something is; neither while it is held."""
        waits = bool(self._unread) or self._is_answering
        if self._is_held or waits:
            self._source.pause_reading()
        else:
            self._source.resume_reading()
        if waits and not self._is_held and self._turn is None:
            self._turn = self.loop.call_soon(self._feed)


class _Tap:
    """The transport as websockets sees it: who opens and closes it is told, the rest goes through."""

    __slots__ = ("_intake", "_transport")

    def __init__(self, transport: asyncio.Transport, intake: Intake) -> None:
        self._transport = transport
        self._intake = intake

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write_eof(self) -> None:
        """Websockets throws away from now on what comes, and waits for the end: which must be read, full or not."""
        self._transport.write_eof()
        self._intake.set_full(False)

    def pause_reading(self) -> None:
        self._intake.set_full(True)

    def resume_reading(self) -> None:
        self._intake.set_full(False)
