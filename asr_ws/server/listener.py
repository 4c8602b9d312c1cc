"""The port: WebSocket sessions at /v1/stream, and everything else by HTTP (`asr_ws.server.http`), there or on another.

Who is too many is told in band (`busy`, then close 1013), because a browser cannot see why a handshake failed. When too
many are being told that already, the handshake itself is refused; when there are too many connections, each is closed
as it comes (`asr_ws.server.door`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self, cast

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from asr_ws import messages
from asr_ws.core.access import AccessRefusal, Client, Token, owner
from asr_ws.core.session import Session, refusal_fields
from asr_ws.core.types import RefusalReason, SessionId
from asr_ws.errors import ProtocolError, UsageError
from asr_ws.server.answer import HEADERS, Answer
from asr_ws.server.connection import Connection, ConnectionLimits
from asr_ws.server.dispatcher import Dispatcher
from asr_ws.server.door import Door
from asr_ws.server.front import Front
from asr_ws.server.http import Http, name_asked_for
from asr_ws.server.intake import Intake, Turns
from asr_ws.server.reception import REFUSALS, Asked, Guard, Reception, revoked
from asr_ws.server.tally import Tally

FRAMES_AHEAD = 4  # read from the socket before we look at them; beyond it TCP holds the client back
HANDSHAKE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0  # for all of them together, when the server stops
ACCEPTED_AT_ONCE = 16  # connections in a turn of the loop: some milliseconds
BACKLOG = 1024  # that the system takes before we do: one more would try again after a second
REFUSALS_AT_ONCE = 32  # that are told in band; who is one more, and would be refused too, is told by HTTP
UNKNOWN_OF_ADDRESS = 32  # who may yet say who they are, or are being told that they may not come in
TURN_AWAY_TIMEOUT_S = 2.0  # to take that, and go
TOO_MANY: Final = {
    AccessRefusal.UNIDENTIFIED: "too many connections of this address that have said no token yet\n",
    AccessRefusal.HANDSHAKES: "too many sessions\n",
}
RETRY_AFTER: Final = (("Retry-After", "1"),)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How many sessions there may be: in all, of one address that is not this machine's, of one token; 0: all."""

    in_all: int
    per_address: int = 0
    per_token: int = 0


@dataclass(frozen=True, slots=True)
class _Full:
    """No room for a session: why, and which limit of the caller's own it is, whatever others do."""

    reason: RefusalReason = RefusalReason.MAX_SESSIONS
    own: AccessRefusal | None = None


class Listener:
    """Args:
    http_port: None: the same.
    make_session: a new session for an id.
    http: what is no session.
    tls: None: plain.
    """

    def __init__(
        self,
        host: str,
        port: int,
        http_port: int | None = None,
        *,
        dispatcher: Dispatcher,
        make_session: Callable[[SessionId], Session],
        http: Http,
        reception: Reception,
        tally: Tally,
        max_sessions: SessionLimits,
        limits: ConnectionLimits,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._host, self._asked_port, self._asked_http_port = host, port, http_port
        self._dispatcher = dispatcher
        self._make_session = make_session
        self.http = http
        self._reception = reception
        self._max_sessions = max_sessions
        self._limits = limits
        self._tls = tls
        self._log = structlog.get_logger()
        self.servers: list[Server] = []
        self._http_servers: list[asyncio.Server] = []
        self._turns = Turns()
        self._front = Front(
            http.protocol,
            self._is_session,
            partial(http.count, ""),
            HANDSHAKE_TIMEOUT_S,
            self._turns,
        )
        self._open: dict[Connection, Token | None] = {}
        self._sessions: Counter[Hashable] = Counter()  # by address, and by token
        self._beside: Counter[Hashable] = Counter()  # connections that are no sessions, by address
        self._empty = asyncio.Event()
        self._empty.set()
        self.tally = tally

    @property
    def n_sessions(self) -> int:
        return len(self._open)

    async def __aenter__(self) -> Self:
        limits = self._max_sessions
        door = Door(
            limits.in_all,
            encrypted=self._tls is not None,
            is_shared=self._reception.is_shared,
            on_turned_away=self._note_turned_away,
        )
        for_sessions = await self._bind(door, self._asked_port)
        for_http: list[socket.socket] = []
        if self._asked_http_port is not None:
            try:
                for_http = await self._bind(door, self._asked_http_port)
            except UsageError:
                for listening in for_sessions:
                    listening.close()
                raise
        self.servers = [await self._serve(listening) for listening in for_sessions]
        self._http_servers = [await self._serve_http(listening) for listening in for_http]
        if self.has_two_ports:
            self._reception.use_ports(self.port, self.http_port)
        if door.max_connections < limits.in_all or door.max_per_address < limits.per_address:
            hint = "allow the process more open files, or lower --max-sessions"
            self._log.warning("server.few_descriptors", max_connections=door.max_connections, hint=hint)
        return self

    async def _bind(self, door: Door, port: int) -> list[socket.socket]:
        """Raises: UsageError."""
        try:
            return await door.open(self._host, port)
        except (OSError, UnicodeError) as error:  # that name is none
            number = getattr(error, "errno", None)
            reason = os.strerror(number) if number and number > 0 else str(error)
            raise UsageError(
                f"cannot listen on {self._host}:{port}: {reason}", "choose another host or port"
            ) from error

    async def _serve(self, listening: socket.socket) -> Server:
        make_connection = self._front.one_port if self._asked_http_port is None else partial(Intake, self._turns)
        server = await serve(
            self._handle,
            sock=listening,
            backlog=ACCEPTED_AT_ONCE,
            ssl=self._tls,
            create_connection=cast(type[ServerConnection], make_connection),
            compression=None,  # 13 instead of 45-64 KiB a connection, and no decompression bombs
            max_size=messages.MAX_BINARY_BYTES,
            max_queue=FRAMES_AHEAD,
            ping_interval=None,  # see server.connection
            open_timeout=HANDSHAKE_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            process_request=self._answer,
            process_response=self._count,
            select_subprotocol=_select_subprotocol,
            server_header=None,
        )
        listening.listen(BACKLOG)  # asyncio has one number for this and for a turn
        return server

    async def _serve_http(self, listening: socket.socket) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            self._front.http_only, sock=listening, backlog=ACCEPTED_AT_ONCE, ssl=self._tls
        )
        listening.listen(BACKLOG)
        return server

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what is still open with 1012: the clients come back to the next server."""
        for server in self.servers:
            server.close(code=1012, reason="the server stops")
        for http_server in self._http_servers:
            http_server.close()
        self._front.close()
        with contextlib.suppress(TimeoutError):  # who answers no close, or is still in a handshake, is left behind
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.http.aclose()
                for server in self.servers:
                    await server.wait_closed()
                for http_server in self._http_servers:
                    await http_server.wait_closed()

    @property
    def port(self) -> int:
        return _port_of(self.servers[0])

    @property
    def has_two_ports(self) -> bool:
        return self._asked_http_port is not None

    @property
    def http_port(self) -> int:
        """The same, unless HTTP has one of its own."""
        return _port_of(*self._http_servers, self.servers[0])

    @property
    def url(self) -> str:
        """Where HTTP is answered."""
        return self.url_at(self._host)

    def url_at(self, host: str) -> str:
        """The same by that name of this machine."""
        return f"http{self._address_at(host, self.http_port)}"

    def sessions_at(self, host: str) -> str:
        """Where sessions are opened, by that name of this machine."""
        return f"ws{self._address_at(host, self.port)}{messages.PATH}"

    def _address_at(self, host: str, port: int) -> str:
        return f"{'s' * bool(self._tls)}://{f'[{host}]' if ':' in host else host}:{port}"

    async def wait_empty(self) -> None:
        """Until no session is open, and no request is being answered."""
        await self._empty.wait()
        await self.http.wait_empty()

    def end_revoked(self) -> None:
        """End the sessions whose token is valid no more."""
        tokens = self._reception.tokens
        for connection, token in list(self._open.items()):
            if tokens is not None and (token is None or token not in tokens):
                connection.fail(revoked())

    # ------------------------------------------------------------ sessions

    async def _handle(self, socket: ServerConnection) -> None:
        """One connection whose handshake is done."""
        assert socket.request is not None
        asked = Asked.of_session(socket)
        client, token = self._reception.client(asked), self._reception.token(asked)
        for kept in (socket.request, socket.response):  # for nobody, and 3 KiB of each session; the token is among them
            if kept is not None:
                kept.headers.clear()
        with _counted(self._beside, owner(client.address)):
            if (let_in := await self._let_in(socket, client, token)) is None:
                return
        token, start = let_in
        session = self._make_session(SessionId(f"s-{secrets.token_hex(4)}"))
        who = {"client": client.address, **({"token": token.name} if token is not None else {})}
        connection = Connection(socket, session, self._dispatcher, self._limits, who)
        self._open[connection] = token
        self._empty.clear()
        try:
            with _counted(self._sessions, owner(client.address), token), self.tally.counting(session):
                await connection.serve(start)
        finally:
            del self._open[connection]
            if not self._open:
                self._empty.set()

    async def _let_in(
        self, socket: ServerConnection, client: Client, token: Token | None
    ) -> tuple[Token | None, str | None] | None:
        """Returns: the token, and the first message, if it was read for that; None: who it is was turned away."""
        start = None
        try:
            if token is None and self._reception.tokens is not None:
                token, start = await self._reception.identify(socket, client)
        except ProtocolError as error:
            told = messages.Error(code=error.code, message=error.message, hint=error.hint, fatal=True)
            await self._turn_away(socket, told, error.close_code or 1008, error.code)
            return None
        except ConnectionClosed:
            return None
        if (full := self._full(client, token)) is not None:
            if full.own is not None:  # else it is told with the refusals of utterances
                self._reception.count(full.own, client)
            await self._turn_away(socket, self._busy(full), 1013, full.own or full.reason)
            return None
        return token, start

    def _full(self, client: Client, token: Token | None) -> _Full | None:
        """Why there is no room for one more session, if there is none."""
        limits = self._max_sessions
        per_address = limits.per_address or (limits.in_all if client.is_this_machine else max(1, limits.in_all // 2))
        if self._dispatcher.queue.draining:
            return _Full(RefusalReason.DRAINING)
        if self.n_sessions >= limits.in_all:
            return _Full()
        if self._sessions[owner(client.address)] >= per_address:
            return _Full(own=AccessRefusal.PER_ADDRESS)
        if token is not None and self._sessions[token] >= (limits.per_token or limits.in_all):
            return _Full(own=AccessRefusal.PER_TOKEN)
        return None

    def _busy(self, full: _Full) -> messages.Busy:
        shed = self._dispatcher.shed(full.reason, now=asyncio.get_running_loop().time())
        status = {"status": HTTPStatus.TOO_MANY_REQUESTS.value} if full.own is not None else {}
        fields = refusal_fields(shed) | status
        return messages.Busy(utterance=None, attempt=0, commit=None, retryable=True, held_ms=0, **fields)

    async def _turn_away(self, socket: ServerConnection, event: messages.ServerEvent, code: int, reason: str) -> None:
        """Instead of a session: one event, and the close."""
        try:
            async with asyncio.timeout(TURN_AWAY_TIMEOUT_S):
                await socket.send(messages.encode(event))
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(socket.close(code, reason), name="turned away")
                    with contextlib.suppress(ConnectionClosed):
                        while True:  # the peer's close may stand behind messages
                            await socket.recv()
        except (ConnectionClosed, TimeoutError):
            socket.transport.abort()

    # ------------------------------------------------------------ HTTP

    def _is_session(self, target: str) -> bool:
        return self.http.path_of(target) == messages.PATH

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """None: the handshake goes on."""
        if not self._is_session(request.path):
            where = self.url_at(name_asked_for(request.headers.get_all("Host")))
            return _response(Answer(HTTPStatus.NOT_FOUND, f"{messages.HTTP_ELSEWHERE}{where}\n"))
        asked = Asked.of_session(connection)
        client = self._reception.client(asked)
        if (refusal := self._reception.refusal(Guard.SESSION, asked, client)) is not None:
            return _response(REFUSALS[refusal])
        if (too_many := self._too_many(client, self._reception.token(asked))) is None:
            return None
        self._reception.count(too_many, client)
        return _response(Answer(HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY[too_many], RETRY_AFTER))

    def _too_many(self, client: Client, token: Token | None) -> AccessRefusal | None:
        """Why there is no time to tell him in band what he may not, or to wait for who he is, if there is none."""
        is_unknown = self._reception.tokens is not None and token is None
        is_one_party = not self._reception.is_shared(client.address)
        if is_unknown and is_one_party and self._beside[owner(client.address)] >= UNKNOWN_OF_ADDRESS:
            return AccessRefusal.UNIDENTIFIED
        if self._beside.total() >= REFUSALS_AT_ONCE and self._full(client, token) is not None:
            return AccessRefusal.HANDSHAKES
        return None

    def _count(self, _: ServerConnection, request: Request, response: Response) -> None:
        self.http.count(self.http.path_of(request.path), response.status_code)

    def _note_turned_away(self, address: str) -> None:
        self.http.count("", HTTPStatus.SERVICE_UNAVAILABLE)
        self._reception.count(AccessRefusal.CONNECTIONS, Client(address))


@contextlib.contextmanager
def _counted(counter: Counter[Hashable], *keys: Hashable) -> Iterator[None]:
    """Meanwhile, and nothing is left of who has gone."""
    counter.update(keys)
    try:
        yield
    finally:
        counter.subtract(keys)
        for key in keys:
            if not counter[key]:
                del counter[key]


def _response(answer: Answer) -> Response:
    assert isinstance(answer.body, str)
    content = answer.body.encode()
    own = {"Content-Type": f"{answer.content_type}; charset=utf-8", "Content-Length": str(len(content))}
    headers = Headers({**own, **HEADERS, "Connection": "close", **dict(answer.headers)})
    return Response(answer.status.value, answer.status.phrase, headers, content)


def _port_of(*servers: Server | asyncio.Server) -> int:
    """Of the first."""
    port: int = next(iter(servers[0].sockets)).getsockname()[1]
    return port


def _select_subprotocol(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Ours if offered; a client that offers none, or only others, is served all the same."""
    return next((name for name in offered if name == messages.PROTOCOL), None)
