"""Who is let in, and what those are told who are not: at the handshake by HTTP, after it in band.

A browser's script cannot see why a handshake failed, and cannot send a header with it. So a token may also come in the
first message, `start`, and until then there is no session: who has not said who he is takes nobody's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from http import HTTPStatus
from typing import Final

from websockets.asyncio.server import ServerConnection

from asr_ws import messages
from asr_ws.config import is_loopback
from asr_ws.core.access import AccessRefusal, Client, Network, Origins, Token, Tokens, bearer, client_of, is_proxy
from asr_ws.errors import ProtocolError
from asr_ws.metrics import Metrics
from asr_ws.server.answer import Answer

TOKEN_TIMEOUT_S: Final = 10.0  # for `start`, where a token is needed
OTHER_TOKEN_HINT: Final = "ask whoever runs the server for another one"
TOKEN_HINT: Final = "send it as `token` in the first message, `start`, or in the header Authorization: Bearer"
MAX_LOGGED: Final = 200  # characters of what a stranger sent
REFUSALS: Final = {
    AccessRefusal.ORIGIN: Answer(
        HTTPStatus.FORBIDDEN,
        "web pages of this origin may not use the server; its --allow-origin says which may\n",
    ),
    AccessRefusal.UNAUTHORIZED: Answer(
        HTTPStatus.UNAUTHORIZED,
        "no valid token; send one in the header Authorization: Bearer\n",
        (("WWW-Authenticate", "Bearer"),),
    ),
}


class Guard(Enum):
    """What of a request is looked at before it is answered."""

    NOTHING = auto()
    NUMBERS = auto()  # the token, if the numbers are not for everybody
    PAGE = auto()  # the page's origin
    API = auto()  # the page's origin and the token
    SESSION = auto()  # the page's origin; who bears no token in a header may still say it in `start`


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, whichever library read it.

    Args:
        peer: address of the socket's other end.
        headers: all values of a header, in order.
    """

    peer: str
    headers: Callable[[str], Sequence[str]]

    @classmethod
    def of_session(cls, socket: ServerConnection) -> Asked:
        assert socket.request is not None
        return cls(str((socket.remote_address or ("unknown",))[0]), socket.request.headers.get_all)

    @property
    def bearer(self) -> str | None:
        """More than one header is none that is valid."""
        sent = self.headers("Authorization")
        return bearer(sent[0]) if len(sent) == 1 else "" if sent else None


class Reception:
    """Args:
    tokens: None: nobody needs one.
    proxies: whose X-Forwarded-For is believed.
    open_stats: whether the numbers are for everybody.
    """

    def __init__(
        self,
        origins: Origins,
        tokens: Tokens | None,
        proxies: tuple[Network, ...],
        metrics: Metrics,
        *,
        open_stats: bool = False,
    ) -> None:
        self.tokens = tokens
        self._origins = origins
        self._proxies = proxies
        self._open_stats = open_stats
        self._metrics = metrics

    def use_ports(self, *ports: int) -> None:
        """Of this server, if there are several: a page of the one may use what is at the other."""
        self._origins = replace(self._origins, own_ports=frozenset(ports))

    def client(self, asked: Asked) -> Client:
        return client_of(asked.peer, asked.headers("X-Forwarded-For"), self._proxies)

    def is_shared(self, address: str) -> bool:
        """Whether many come from it: a proxy's, or this machine's own."""
        return is_loopback(address) or is_proxy(address, self._proxies)

    def token(self, asked: Asked) -> Token | None:
        """The valid one that it bears in its header."""
        return self._valid(asked.bearer)

    def refusal(self, guard: Guard, asked: Asked, client: Client) -> AccessRefusal | None:
        """Why this is not to be had, if it is not; `REFUSALS` has the words."""
        if guard in (Guard.PAGE, Guard.API, Guard.SESSION) and not self.admits_page(asked):
            self.count(AccessRefusal.ORIGIN, client, origin=", ".join(asked.headers("Origin"))[:MAX_LOGGED])
            return AccessRefusal.ORIGIN
        needed = {
            Guard.NOTHING: False,
            Guard.PAGE: False,
            Guard.NUMBERS: not self._open_stats,
            Guard.API: True,
            Guard.SESSION: asked.bearer is not None,
        }
        if self.tokens is None or not needed[guard] or self.token(asked) is not None:
            return None
        self.count(AccessRefusal.UNAUTHORIZED, client)
        return AccessRefusal.UNAUTHORIZED

    def admits_page(self, asked: Asked) -> bool:
        """Whether it comes from no page, or from one that may use the server."""
        hosts = asked.headers("Host")
        return self._origins.admit(asked.headers("Origin"), hosts[0] if len(hosts) == 1 else None)

    async def identify(self, socket: ServerConnection, client: Client) -> tuple[Token, str]:
        """Wait for a `start` with a valid token.

        Returns:
            The token, and the message, for the session.
        Raises:
            ProtocolError: ``unauthorized``; ``too_large``.
            ConnectionClosed
        """
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT_S):
                first = await socket.recv()
            token = self._introduced(first)
        except TimeoutError:
            error = _unauthorized(f"no token came within {TOKEN_TIMEOUT_S:g} s")
        except ProtocolError as raised:
            error = raised
        else:
            assert isinstance(first, str)
            return token, first
        self.count(AccessRefusal.UNAUTHORIZED, client)
        raise error

    def _introduced(self, first: str | bytes) -> Token:
        if isinstance(first, bytes):
            raise _unauthorized("audio came before the token")
        try:
            message = messages.decode_message(first)
        except ProtocolError as error:
            if error.close_code is not None:
                raise
            if (token := self._valid(messages.token_of(first))) is not None:
                return token  # what is wrong with the rest, the session says
            raise _unauthorized(f"the first message is none: {error.message}") from error
        if not isinstance(message, messages.Start) or message.token is None:
            raise _unauthorized("the first message must be `start`, with a token")
        if (token := self._valid(message.token)) is None:
            raise _unauthorized("this token is not valid", OTHER_TOKEN_HINT)
        return token

    def _valid(self, candidate: str | None) -> Token | None:
        return None if candidate is None or self.tokens is None else self.tokens.find(candidate)

    def count(self, reason: AccessRefusal, client: Client, **facts: str) -> None:
        """It was refused; the log says so in one line a second, with the last one's address and facts."""
        self._metrics.access_refused[reason] += 1
        self._metrics.last_refused = {"last": client.address, **facts}


def _unauthorized(message: str, hint: str = TOKEN_HINT) -> ProtocolError:
    return ProtocolError("unauthorized", message, hint, close_code=1008)


def revoked() -> ProtocolError:
    """What a session is told whose token has been taken out of the file."""
    return _unauthorized("this token is not valid any more", OTHER_TOKEN_HINT)
