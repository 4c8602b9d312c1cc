"""One plain GET to a running server, with an end to it whatever the server, a name or a proxy does."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPResponse
from queue import Empty, SimpleQueue
from socket import SHUT_RDWR
from socket import socket as Socket

from asr_ws.client.address import NO_SERVER, OTHER_TOKEN_HINT, TOKEN_HINT, Unreachable, checked_token
from asr_ws.client.http_route import CUT, RequestLost, authorization, breaking, connect, http_url, no_answer, route
from asr_ws.errors import ClientError

MAX_BYTES = 4 << 20  # of an answer: /metrics has a hundredth


class Unauthorized(ClientError):
    """The server wants a token, or another one."""

    code = "unauthorized"


@dataclass(frozen=True, slots=True)
class Answer:
    """``url``: where it was asked for."""

    url: str
    status: int
    text: str


def get(url: str, path: str, *, token: str | None = None, timeout_s: float, also: Collection[int] = ()) -> Answer:
    """
    Args:
        url: the server's, as for `asr_ws.client.connect`.
        timeout_s: for all of it, the look-up of the name included.
        also: statuses that are an answer, beside 200.
    Raises:
        Unreachable, RequestLost: there is no answer now.
        Unauthorized, ClientError: nor will there be one.
    """
    address, user = http_url(url, path)
    connection, target, headers = route(address, 2 * timeout_s)  # the end of a thread that nobody waits for
    headers |= authorization(user, checked_token(token)) | {"Connection": "close"}
    told: SimpleQueue[tuple[HTTPResponse, bytes] | Exception] = SimpleQueue()
    connected: list[Socket] = []

    def ask() -> None:
        try:
            with closing(connection):
                connect(connection, address)
                connected.append(connection.sock)  # which it forgets at the answer's beginning
                with breaking(address):
                    connection.request("GET", target, headers=headers)
                    response = connection.getresponse()
                    body = response.read(MAX_BYTES)
                    if len(body) == MAX_BYTES:
                        raise ClientError(f"{address} answers with more than this server has to say", NO_SERVER)
                    if response.length:  # which is what is left: with an amount, nothing is said of that
                        raise RequestLost(CUT)
                    told.put((response, body))
        except Exception as error:
            told.put(error)

    # In a thread of its own: a socket's timeout begins anew with each byte, and the look-up of a name knows none.
    threading.Thread(target=ask, name="asr_ws get", daemon=True).start()
    try:
        answer = told.get(timeout=timeout_s)
    except Empty:
        with suppress(OSError):  # it is closed
            for socket in connected:
                socket.shutdown(SHUT_RDWR)  # however many bytes still come
        hint = "it is stuck, or no asr_ws server" + "; or does it want http://?" * address.startswith("https:")
        raise Unreachable(f"no answer at {address}: none within {timeout_s:g} s", hint) from None
    if isinstance(answer, Exception):
        raise answer
    response, body = answer
    if response.status == HTTPStatus.UNAUTHORIZED and response.headers.get("WWW-Authenticate", "").startswith("Bearer"):
        raise Unauthorized(f"no answer at {address}: HTTP 401", TOKEN_HINT if token is None else OTHER_TOKEN_HINT)
    if response.status not in (HTTPStatus.OK, *also):
        raise no_answer(address, response.status, response.headers, body)
    return Answer(address, response.status, body.decode(errors="replace"))
