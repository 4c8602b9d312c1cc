"""A server, and how it is reached: on one port or two, plain or by TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr_ws.server.app import App
from asr_ws.server.self_signed import self_signed
from asr_ws.worker.supervisor import WorkerSpec
from tests.server import asking
from tests.server.raw import Raw, raw
from tests.server.running import Client, serving

CRLF = "\r\n"
HOST = "Host: localhost"
UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version: 13",
)
FORM = f"Content-Type: {asking.FORM['Content-Type']}"


def head(line: str, *headers: str) -> bytes:
    return (CRLF.join((line, *headers)) + 2 * CRLF).encode("latin-1")


def post(path: str, body: bytes, *headers: str) -> bytes:
    return head(f"POST {path} HTTP/1.1", HOST, FORM, f"Content-Length: {len(body)}", *headers) + body


GET = head("GET /livez HTTP/1.1", HOST)
STREAM = head("GET /v1/stream HTTP/1.1", HOST, *UPGRADE)


@dataclass(frozen=True)
class Ports:
    has_two: bool
    is_encrypted: bool

    def __str__(self) -> str:
        return f"{'two ports' if self.has_two else 'one port'}-{'TLS' if self.is_encrypted else 'plain'}"

    @asynccontextmanager
    async def serving(self, scripted: WorkerSpec, folder: Path, **changes: Any) -> AsyncIterator[Reach]:
        tls = ssl.create_default_context(cafile=self_signed(folder).cert) if self.is_encrypted else None
        options = {
            "http_port": 0 if self.has_two else -1,
            "tls_self_signed": self.is_encrypted,
            "state_dir": str(folder),
        }
        async with serving(scripted, **{"ready": False, **options, **changes}) as app:
            yield Reach(app, tls)


@dataclass(frozen=True)
class Reach:
    app: App
    tls: ssl.SSLContext | None

    def http(self) -> AbstractAsyncContextManager[Raw]:
        return raw(self.app, self.tls, port=self.app.listener.http_port)

    def sessions(self) -> AbstractAsyncContextManager[Raw]:
        return raw(self.app, self.tls)

    def client(self, **options: Any) -> Client:
        return Client(self.app, ssl=self.tls, **options)

    async def exchange(self, request: bytes, n_bytes: int = 0) -> bytes:
        """By HTTP, in pieces of so many bytes. Returns: all that came until it was closed."""
        async with self.http() as socket:
            await socket.send(request, n_bytes)
            return await socket.rest()

    def n_connections(self) -> int:
        """Of those that the door has counted."""
        listening: Any = self.app.listener.servers[0].sockets[0]
        return len(listening._sock._door._inside)


def status(answer: bytes) -> int:
    """0: there was none."""
    return int(answer.split()[1]) if answer else 0


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]
