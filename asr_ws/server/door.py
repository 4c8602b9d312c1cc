"""The listening sockets: how many connections there may be at all, whatever they are for.

A connection takes a descriptor and memory before it has said a word, also in the middle of a TLS handshake. So they are
counted where they are accepted. Those over the limit are closed at once (without TLS with a 503 first), and no address
may have all of them, but for those that many come from. The limit leaves half of the process's descriptors free, for
the worker's pipes and files.

Windows accepts past Python: there this limit does not hold, those of sessions and time do.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from asr_ws.core.access import owner
from asr_ws.core.types import RefusalReason, Shed
from asr_ws.server.failures import Refused, failure

NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # such as ::1 of localhost, without IPv6
CONNECTIONS_BESIDE: Final = 64  # handshakes, pages, and refusals that are being told, beside the sessions
TURNED_AWAY_AT_ONCE: Final = 32  # before the loop sees to other things
BUFFER_BYTES: Final = 64 * 1024  # of the system, for each way of a connection: 2 s of audio, and hundreds of events
DECRYPTED_BYTES: Final = 1024  # at once: asyncio's TLS would take 256 KiB, or ten thousand records
FULL_RESPONSE: Final = failure(Refused(Shed(RefusalReason.MAX_SESSIONS, 1.0, 0.0, 0, 0))).response


class Door:
    """Args:
    max_sessions: that are to find room.
    encrypted: whether a peer would read a plain answer as garbage.
    is_shared: whether many come from that address (a proxy's), which may then have all.
    on_turned_away: told the address of each that finds none.
    """

    def __init__(
        self,
        max_sessions: int,
        *,
        encrypted: bool,
        is_shared: Callable[[str], bool],
        on_turned_away: Callable[[str], None],
    ) -> None:
        wanted = 2 * max_sessions + CONNECTIONS_BESIDE
        self.max_connections = min(wanted, descriptors_for(2 * wanted) // 2)
        self.max_per_address = max(1, self.max_connections - self.max_connections // 2)
        self._response = b"" if encrypted else FULL_RESPONSE
        self._is_shared = is_shared
        self._on_turned_away = on_turned_away
        self._inside = weakref.WeakSet[_Guest]()

    async def open(self, host: str, port: int) -> list[socket.socket]:
        """Listening sockets on every address of the host, all on the same port. Raises: OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        opened: list[socket.socket] = []
        not_here: OSError | None = None
        for family, type, proto, _, address in dict.fromkeys(found):
            same_port = opened[0].getsockname()[1] if opened else port
            try:
                opened.append(self._bound(family, type, proto, (address[0], same_port, *address[2:])))
            except OSError as error:
                not_here = error
                if error.errno not in NOT_HERE:
                    break
        if not_here is not None and (not opened or not_here.errno not in NOT_HERE):
            for each in opened:
                each.close()
            raise not_here
        return opened

    def _bound(self, family: int, type: int, proto: int, address: tuple[Any, ...]) -> socket.socket:
        listening = _Listening(self, family, type, proto)
        try:
            if os.name == "posix":  # elsewhere it would let others listen here too
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                listening.setsockopt(socket.SOL_SOCKET, buffer, BUFFER_BYTES)  # else they grow to megabytes
            listening.bind(address)
        except OSError:
            listening.close()
            raise
        return listening

    def admit(self, connected: socket.socket, address: Any) -> socket.socket | None:
        """The same connection, counted; None: it is closed."""
        peer = owner(str(address[0]))
        most = self.max_connections if self._is_shared(str(address[0])) else self.max_per_address
        if len(self._inside) < self.max_connections and self._n_of(peer) < most:
            guest = _Guest(connected.family, connected.type, connected.proto, connected.detach())
            guest.enter(self._inside, peer)
            return guest
        with connected, suppress(OSError):
            connected.setblocking(False)
            connected.send(self._response)
            connected.shutdown(socket.SHUT_WR)
        self._on_turned_away(str(address[0]))
        return None

    def _n_of(self, peer: str) -> int:
        return sum(guest.peer == peer for guest in self._inside)


class _Listening(socket.socket):
    def __init__(self, door: Door, family: int, type: int, proto: int) -> None:
        super().__init__(family, type, proto)
        self._door = door

    def accept(self) -> tuple[socket.socket, Any]:
        for _ in range(TURNED_AWAY_AT_ONCE):
            connected, address = super().accept()
            if (guest := self._door.admit(connected, address)) is not None:
                return guest, address
        raise BlockingIOError  # as if nobody waited: the loop comes back for the others


class _Guest(socket.socket):
    """A connection that leaves the count when it is closed."""

    __slots__ = ("_inside", "peer")

    def enter(self, inside: weakref.WeakSet[_Guest], peer: str) -> None:
        self.peer, self._inside = peer, inside
        inside.add(self)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As asyncio's TLS reads."""
        return super().recv_into(buffer, min(nbytes or len(buffer), DECRYPTED_BYTES), flags)

    def close(self) -> None:
        self._inside.discard(self)
        super().close()


def descriptors_for(n: int) -> int:
    """Let this process have that many open, if the system allows. Returns: how many it may have."""
    if sys.platform == "win32":
        return n
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < n:
        wanted = n if hard == resource.RLIM_INFINITY else min(n, hard)
        with suppress(ValueError, OSError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return n if soft == resource.RLIM_INFINITY else soft
