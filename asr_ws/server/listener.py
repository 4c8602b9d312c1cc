"""The port: WebSocket sessions at /v1/stream, and a few plain GETs answered before the handshake.

Sessions over the limit are refused in band (`busy`, then close 1013), because a browser cannot see why a handshake
failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Self

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from asr_ws import messages
from asr_ws.core.session import Session, refusal_fields
from asr_ws.core.types import RefusalReason, SessionId
from asr_ws.errors import UsageError
from asr_ws.server.connection import Connection, ConnectionLimits
from asr_ws.server.dispatcher import Dispatcher
from asr_ws.server.tally import Tally

FRAMES_AHEAD = 4  # read from the socket before we look at them; beyond it TCP holds the client back
HANDSHAKE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0  # for all of them together, when the server stops

Page = Callable[[], tuple[HTTPStatus, str, str]]  # status, content type, body


class Listener:
    """Args:
    make_session: a new session for an id.
    pages: what a plain GET of a path answers.
    origins: of the pages that may open sessions, others get 403; None among them: no page. None: any.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        dispatcher: Dispatcher,
        make_session: Callable[[SessionId], Session],
        pages: dict[str, Page],
        max_sessions: int,
        limits: ConnectionLimits,
        origins: Sequence[re.Pattern[str] | None] | None = None,
    ) -> None:
        self._host, self._asked_port = host, port
        self._dispatcher = dispatcher
        self._make_session = make_session
        self._pages = pages
        self._max_sessions = max_sessions
        self._limits = limits
        self._origins = origins
        self._log = structlog.get_logger()
        self._server: Server | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self.n_sessions = 0
        self.tally = Tally()
        self.requests: Counter[tuple[str, int]] = Counter()  # by route and status; routes that we have, or "other"

    async def __aenter__(self) -> Self:
        try:
            self._server = await self._listen()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            message = f"cannot listen on {self._host}:{self._asked_port}: {reason}"
            raise UsageError(message, "choose another host or port") from error
        return self

    async def _listen(self) -> Server:
        return await serve(
            self._handle,
            self._host,
            self._asked_port,
            compression=None,  # 13 instead of 45-64 KiB a connection, and no decompression bombs
            max_size=messages.MAX_BINARY_BYTES,
            max_queue=FRAMES_AHEAD,
            ping_interval=None,  # see server.connection
            open_timeout=HANDSHAKE_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            process_request=self._answer,
            process_response=self._count,
            origins=self._origins,
            select_subprotocol=_select_subprotocol,
            server_header=None,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what is still open with 1012: the clients come back to the next server."""
        assert self._server is not None
        self._server.close(code=1012, reason="the server stops")
        with contextlib.suppress(TimeoutError):  # who answers no close, or is still in a handshake, is left behind
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._server.wait_closed()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = next(iter(self._server.sockets)).getsockname()[1]
        return port

    @property
    def url(self) -> str:
        host = self._host if ":" not in self._host else f"[{self._host}]"
        return f"http://{host}:{self.port}"

    async def wait_empty(self) -> None:
        """Until no session is open."""
        await self._empty.wait()

    async def _handle(self, socket: ServerConnection) -> None:
        draining = self._dispatcher.queue.draining
        if draining or self.n_sessions >= self._max_sessions:
            await self._refuse(socket, RefusalReason.DRAINING if draining else RefusalReason.MAX_SESSIONS)
            return
        self.n_sessions += 1
        self._empty.clear()
        try:
            session = self._make_session(SessionId(f"s-{secrets.token_hex(4)}"))
            with self.tally.counting(session):
                await Connection(socket, session, self._dispatcher, self._limits).serve()
        finally:
            self.n_sessions -= 1
            if not self.n_sessions:
                self._empty.set()

    async def _refuse(self, socket: ServerConnection, reason: RefusalReason) -> None:
        shed = self._dispatcher.shed(reason, now=asyncio.get_running_loop().time())
        busy = messages.Busy(utterance=None, attempt=0, commit=None, retryable=True, held_ms=0, **refusal_fields(shed))
        try:
            async with asyncio.timeout(self._limits.write_timeout_s):
                await socket.send(messages.encode(busy))
                await socket.close(1013, reason.value)
        except (ConnectionClosed, TimeoutError):
            socket.transport.abort()

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == messages.PATH:
            return None  # the handshake goes on
        if request.method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", f"{path} takes GET\n")
        if (page := self._pages.get(path)) is None:
            return _response(
                HTTPStatus.NOT_FOUND, "text/plain", f"nothing at {path}; sessions are at {messages.PATH}\n"
            )
        return _response(*page(), with_body=request.method != "HEAD")

    def _count(self, _: ServerConnection, request: Request, response: Response) -> None:
        path = request.path.partition("?")[0]
        route = path if path in self._pages or path == messages.PATH else "other"
        self.requests[route, response.status_code] += 1


def _response(status: HTTPStatus, content_type: str, body: str, *, with_body: bool = True) -> Response:
    content = body.encode()
    headers = Headers(
        {
            "Content-Type": f"{content_type}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
        }
    )
    return Response(status.value, status.phrase, headers, content if with_body else b"")


def _select_subprotocol(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Ours if offered; a client that offers none, or only others, is served all the same."""
    return next((name for name in offered if name == messages.PROTOCOL), None)
