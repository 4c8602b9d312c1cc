"""A TCP proxy that cuts connections, or lets nothing through: what networks do to sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit


class Proxy:
    """Attributes:
    target: host and port; new connections go there.
    url: its own address.
    n_accepted: connections that were made to it.
    """

    def __init__(self, url: str = "") -> None:
        self.target = ("", 0)
        self.url = ""
        self.n_accepted = 0
        self._pairs: set[tuple[Any, Any]] = set()  # of transports
        if url:
            self.point_to(url)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Proxy]:
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            self.url = "http://{}:{}".format(*server.sockets[0].getsockname())
            try:
                yield self
            finally:
                self.cut()

    def point_to(self, url: str) -> None:
        parts = urlsplit(url)
        self.target = (str(parts.hostname), int(parts.port or 80))

    def cut(self) -> None:
        """Every connection, without a word."""
        for pair in self._pairs:
            for transport in pair:
                transport.abort()

    def stall(self) -> Callable[[], None]:
        """Nothing passes on the connections that there are. Returns: what ends them."""
        pairs = set(self._pairs)
        for pair in pairs:
            for transport in pair:
                transport.pause_reading()

        def end() -> None:
            for pair in pairs:
                for transport in pair:
                    transport.abort()

        return end

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_accepted += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer.transport, far_writer.transport)
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pass(reader, far_writer))
                tasks.create_task(_pass(far_reader, writer))
        finally:
            self._pairs.discard(pair)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        writer.transport.abort()
    finally:
        writer.close()
