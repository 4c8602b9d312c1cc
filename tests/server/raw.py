"""Clients that keep no rules: bytes over a socket, and what comes back."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from asr_ws import messages
from asr_ws.server.app import App
from benchmarks.wire import CLOSE, Frame

MASK = b"\x11\x22\x33\x44"
HANDSHAKE = (
    f"GET {messages.PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A client's frame, as wrong as it is wanted."""
    return bytes(Frame(opcode, payload, fin, rsv, MASK if masked else None))


def head(opcode: int, n_bytes: int) -> bytes:
    """Of a frame that is so long, and does not come."""
    return bytes(Frame(opcode, mask=MASK, claims=n_bytes))


class Raw:
    """One TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes, n_bytes: int = 0) -> None:
        """In pieces of so many bytes, each its own packet as far as that can be had; 0: whole. The peer may be gone."""
        with suppress(ConnectionError):
            for start in range(0, len(data), n_bytes or len(data) or 1):
                self.writer.write(data[start : start + (n_bytes or len(data))])
                await self.writer.drain()
                await asyncio.sleep(0)

    async def upgrade(self, *headers: str) -> str:
        """Returns: the status line."""
        await self.send((HANDSHAKE + "".join(f"{header}\r\n" for header in headers) + "\r\n").encode())
        return (await self.reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0].decode()

    async def next(self) -> tuple[int, bytes]:
        """The server's next frame: opcode and payload. Raises: IncompleteReadError, ConnectionError: it has closed."""
        first, length = await self.reader.readexactly(2)
        if length == 126:
            (length,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0xF, await self.reader.readexactly(length)

    async def close_code(self) -> int:
        """Read to the end. 1005: a close without a code; 1006: none at all."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                opcode, payload = await self.next()
                if opcode == CLOSE:
                    return int.from_bytes(payload[:2], "big") if payload else 1005
        return 1006

    async def rest(self) -> bytes:
        """Everything until it closes."""
        with suppress(ConnectionError):
            return await self.reader.read()
        return b""


@asynccontextmanager
async def raw(app: App, tls: ssl.SSLContext | None = None, *, port: int = 0) -> AsyncIterator[Raw]:
    """Args: port: 0: that of sessions."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port or app.listener.port, ssl=tls)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()  # whatever it has still to send


async def request(app: App, head: str) -> tuple[int, dict[str, str], str]:
    """Status, headers with lower-case names, and body of one HTTP exchange; 0: closed without a response."""
    if "\nHost:" not in head:
        head += "\r\nHost: localhost"
    async with raw(app) as socket:
        await socket.send(f"{head}\r\n\r\n".encode("utf-8", "surrogateescape"))
        answer, _, body = (await socket.rest()).decode("latin-1").partition("\r\n\r\n")
    status, *lines = answer.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]) if answer else 0, headers, body
