"""HTTP: which route a request is for, who may have it, and how it is answered.

The library reads requests and writes responses; routes, refusals and errors are here, as data. One connection is one
request (`asr_ws.server.front`), so every response closes. A handler is cancelled when its client goes away.

What a page or a health check asks for is answered with plain text, as it always was; everything of the API with JSON,
errors in OpenAI's one shape.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from http import HTTPStatus
from typing import Final, cast

import structlog
from aiohttp import StreamReader, web

from asr_ws import messages
from asr_ws.core.access import owner
from asr_ws.core.types import SessionId, Shed
from asr_ws.errors import AsrError
from asr_ws.server.answer import HEADERS, POLICY, Answer, Page
from asr_ws.server.failures import Refused, failure
from asr_ws.server.front import STOPPING, Polite
from asr_ws.server.reception import REFUSALS, Asked, Guard, Reception
from asr_ws.server.shapes import error_body

EOF_GRACE_S: Final = 1.0
STUCK_S: Final = 10.0  # for who does not read his answer
WHOLE_BYTES: Final = 64 * 1024  # of an answer, written at once: more, not everybody has read within that
STOP_TIMEOUT_S: Final = 0.5  # and as much once they are cancelled: `App.drain` has waited already
MAX_TOLD: Final = 100  # characters of a path that is none
GONE: Final = 499  # nginx' status of who did not wait for the answer: for the count alone
CORS_HEADERS: Final = {
    "Access-Control-Expose-Headers": "Location, Retry-After, retry-after-ms, x-should-retry",
    "Vary": "Origin",
}
ABSOLUTE: Final = re.compile("^https?://[^/?#]*(?=/)", re.IGNORECASE)  # RFC 9112, 3.2.2: a server must take it
CONTINUE: Final = "100-continue"
NUMBERS: Final = ("/metrics", "/v1/stats")
HOST: Final = re.compile(r"(?:\[([\da-f:.]{2,45})\]|([\w.-]{1,253}))(?::\d{1,5})?", re.ASCII | re.IGNORECASE)
PARAMETER: Final = re.compile(r"[\w-]{1,64}", re.ASCII)
JSON: Final = "application/json"
NONE: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of the API.

    Args:
        caller: whose requests share a session's part of the queue: a token's bearer, else an address.
        is_known: by a token; else nobody needs one.
        headers: further ones that its response is to have.
    """

    request: web.BaseRequest
    caller: SessionId
    is_known: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    async def want_body(self) -> None:
        """To be called before it is read: some clients wait for that, and what is refused need not be looked at."""
        if (transport := cast(Polite | None, self.request.transport)) is not None:
            transport.resume_reading()
        if self.request.headers.get("Expect", "").lower() == CONTINUE:
            await self.request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.request.writer.output_size = 0  # aiohttp's own handler does so: the response is still to begin

    def respond(
        self, status: int, body: str | bytes = "", content_type: str = JSON, headers: Mapping[str, str] = NONE
    ) -> web.Response:
        kind = {"Content-Type": f"{content_type}; charset=utf-8"} if body else {}
        every = {**HEADERS, **self.headers, **kind, **headers}
        content = (body if isinstance(body, bytes) else body.encode()) + b"\n" * (content_type == JSON and bool(body))
        whole = io.BytesIO(content) if len(content) > WHOLE_BYTES else content or None  # a file's is written bit by bit
        return web.Response(status=status, body=whole, headers=every)

    async def stream(self, content_type: str) -> web.StreamResponse:
        """Its head is sent; the rest is to be written."""
        every = {**HEADERS, **self.headers, "Content-Type": content_type}
        response = web.StreamResponse(headers=every)
        response.force_close()  # later is too late
        await response.prepare(self.request)
        return response

    def fail(self, status: int, code: str, message: str, *, headers: Mapping[str, str] = NONE) -> web.Response:
        return self.respond(status, json.dumps(error_body(status, code, message)), headers=headers)


Handler = Callable[[Visit, str], Awaitable[web.StreamResponse]]  # the path's parameter, or nothing


@dataclass(frozen=True, slots=True)
class Route:
    """``path`` may end in one ``{parameter}``."""

    method: str
    path: str
    handler: Handler

    def matches(self, path: str) -> str | None:
        """Returns: the parameter, or nothing where there is none; None: it is another path."""
        start, brace, _ = self.path.partition("{")
        parameter = path.removeprefix(start)
        if not path.startswith(start) or not (PARAMETER.fullmatch(parameter) if brace else parameter == ""):
            return None
        return parameter


class Http:
    """Args:
    pages: what a plain GET of a path answers.
    routes: the API.
    root_path: what a proxy may leave before each path.
    sessions_at: where sessions are opened, by that name of this machine, if they are not opened on this port.
    """

    def __init__(
        self,
        pages: Mapping[str, Page],
        routes: Iterable[Route],
        reception: Reception,
        root_path: str = "",
        sessions_at: Callable[[str], str] | None = None,
    ) -> None:
        self._pages = pages
        self._routes = tuple(routes)
        self._reception = reception
        self.requests = Counter[tuple[str, int]]()  # by route and status; routes that we have, or "other"
        self._root_path = root_path
        self._sessions_at = sessions_at
        self.log = structlog.get_logger()
        self._handling = set[asyncio.Task[object]]()
        self._is_closing = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._server = web.Server(self._handle, handler_cancellation=True)

    def protocol(self) -> asyncio.BaseProtocol:
        """Of a connection whose first request is read."""
        return _Connection(self, self._server)

    async def wait_empty(self) -> None:
        """Until no request of the API is being answered."""
        await self._empty.wait()

    def refuse_uploads(self, shed: Callable[[], Shed]) -> None:
        """Tell so to whose body is not there yet: when it is, nobody is left who would take it."""
        for connection in self._server.connections:
            cast(_Connection, connection).break_off(lambda: Refused(shed()))

    async def aclose(self) -> None:
        """End what is still being answered; whose answer has not begun is told that there will be none."""
        self._is_closing = True
        for task in self._handling:
            task.cancel()
        await self._server.shutdown(STOP_TIMEOUT_S)

    def path_of(self, target: str) -> str:
        """The path as routes have it: proxies leave their prefix, or take it away."""
        path = target.partition("?")[0]
        return path.removeprefix(self._root_path) if path.startswith(f"{self._root_path}/") else path

    # ------------------------------------------------------------ one request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        target = ABSOLUTE.sub("", request.raw_path)
        path = self.path_of(target)
        found = self._find(path)
        status = GONE
        try:
            response = await (self._api(request, found) if found else self._plain(request, target, path))
            status = response.status
        except Exception:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            raise
        finally:
            self._count(path, found, status)
        response.force_close()
        return response

    def count(self, path: str, status: int) -> None:
        """An answer that was given elsewhere."""
        self._count(path, self._find(path), status)

    def _find(self, path: str) -> list[tuple[Route, str]]:
        """Its routes, one a method, each with the path's parameter."""
        return [(route, name) for route in self._routes if (name := route.matches(path)) is not None]

    def _count(self, path: str, found: list[tuple[Route, str]], status: int) -> None:
        """By its route; those that we have not are all the same."""
        other = path if path in self._pages or path == messages.PATH else "other"
        self.requests[found[0][0].path if found else other, int(status)] += 1

    async def _plain(self, request: web.BaseRequest, target: str, path: str) -> web.Response:
        asked = _asked(request)
        guard = Guard.NUMBERS if path in NUMBERS else Guard.NOTHING
        refusal = self._reception.refusal(guard, asked, self._reception.client(asked))
        answer = REFUSALS[refusal] if refusal is not None else self._page(request, target, path)
        if answer.status is HTTPStatus.NOT_FOUND and (path.startswith("/v1/") or request.method == "POST"):
            close = get_close_matches(path[:MAX_TOLD], [route.path for route in self._routes], 1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            return Visit(request, SessionId("")).fail(
                answer.status, "not_found", f"there is no {path[:MAX_TOLD]}{meant}"
            )
        return _plain_response(answer, asked)

    def _page(self, request: web.BaseRequest, target: str, path: str) -> Answer:
        name = name_asked_for(request.headers.getall("Host", ()))
        if path == messages.PATH:
            where = f"at {self._sessions_at(name)}" if self._sessions_at is not None else "opened here by a GET"
            return Answer(HTTPStatus.UPGRADE_REQUIRED, f"sessions are {where}\n", (("Upgrade", "websocket"),))
        if path not in self._pages and path != self._root_path:
            return Answer(HTTPStatus.NOT_FOUND, f"nothing here; sessions are at {messages.PATH}\n")
        if request.method not in ("GET", "HEAD"):
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED, "GET only\n", (("Allow", "GET, HEAD"),))
        if path == self._root_path:  # its links are relative
            return Answer(HTTPStatus.PERMANENT_REDIRECT, "", (("Location", target.replace(path, f"{path}/", 1)),))
        status, content_type, body = self._pages[path]()
        policy = [] if path != "/" or self._sessions_at is None else [_policy(self._sessions_at(name))]
        return Answer(status, body, (*policy,), content_type)

    async def _api(self, request: web.BaseRequest, found: list[tuple[Route, str]]) -> web.StreamResponse:
        asked = _asked(request)
        client, token = self._reception.client(asked), self._reception.token(asked)
        caller = SessionId(f"http {token.digest.hex() if token else owner(client.address)}")
        cors = _cors_headers(asked) if self._reception.admits_page(asked) else NONE
        visit = Visit(request, caller, token is not None, cors)
        by_method = {route.method: (route, name) for route, name in found}
        if "GET" in by_method:
            by_method["HEAD"] = by_method["GET"]  # whose body the library leaves out
        is_preflight = request.method == "OPTIONS"
        if (refusal := self._reception.refusal(Guard.PAGE if is_preflight else Guard.API, asked, client)) is not None:
            answer = REFUSALS[refusal]
            return visit.fail(answer.status, refusal, str(answer.body).strip(), headers=dict(answer.headers))
        allowed = ", ".join(sorted({*by_method, "OPTIONS"}))
        if is_preflight:
            wanted = ", ".join(asked.headers("Access-Control-Request-Headers"))
            may = {"Access-Control-Allow-Methods": allowed, "Access-Control-Allow-Headers": wanted}
            return visit.respond(HTTPStatus.NO_CONTENT, headers={**may, "Access-Control-Max-Age": "600"})
        if (asked_for := by_method.get(request.method)) is None:
            message = f"{request.method} is not for this path: {allowed}"
            return visit.fail(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", message, headers={"Allow": allowed})
        if (expected := request.headers.get("Expect", CONTINUE).lower()) != CONTINUE:
            message = f"nothing but {CONTINUE} can be expected, not {expected[:40]!r}"
            return visit.fail(HTTPStatus.EXPECTATION_FAILED, "expectation_failed", message)
        task = asyncio.current_task()
        assert task is not None
        self._handling.add(task)
        self._empty.clear()
        try:
            route, name = asked_for
            return await route.handler(visit, name)
        except (AsrError, Refused) as error:
            said = failure(error)
        except asyncio.CancelledError:
            if not self._is_closing or request.transport is None or request.writer.output_size:
                raise
            task.uncancel()
            said = failure(Refused(STOPPING))
        finally:
            self._handling.discard(task)
            if not self._handling:
                self._empty.set()
        return visit.respond(said.status, json.dumps(said.body), headers=said.headers)


class _Connection(web.RequestHandler):
    """One request's, as the library has it, but for what it says of what is wrong."""

    __slots__ = ("_body", "_http", "_is_followed", "_stuck", "is_chunked")

    def __init__(self, http: Http, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=cast(logging.Logger, None),  # as `web.Server` would pass it: there is none
            auto_decompress=False,  # nothing is inflated: a body that is compressed is refused
            keepalive_timeout=STUCK_S,
            lingering_time=0,  # `front` sees to that
        )
        self._http = http
        self._stuck: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None
        self._is_followed = False
        self.is_chunked = True  # as far as is known

    @property
    def is_heard_out(self) -> bool:
        """Whether the peer has sent its request, and nothing behind it."""
        return self._body is not None and self._body.is_eof() and not self._is_followed

    def data_received(self, data: bytes) -> None:
        """Of one request: at what stands behind it nobody looks.

        What cannot be the body's end is told to who waits for it: the library does so only once he has answered.
        """
        if self._body is not None and self._body.is_eof():
            self._is_followed = self._is_followed or bool(data)
            return
        n_before = len(self._messages)
        super().data_received(data)
        if self._body is None:
            if self._messages:
                message, self._body = self._messages[0]
                self.is_chunked = getattr(message, "chunked", True)  # which what is no request has not
        elif len(self._messages) > n_before:
            self.break_off(lambda: ValueError("it is not encoded as its head says"))

    def break_off(self, why: Callable[[], Exception]) -> None:
        """Tell so to who reads the body, if it is not complete."""
        if self._body is not None and not self._body.is_eof():
            error = why()
            self._body.set_exception(error)
            # Who has just been woken, and goes on waiting, does not look: once more, when he has.
            asyncio.get_running_loop().call_soon(self._body.set_exception, error)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()

    def _watch(self) -> None:
        if (transport := self.transport) is not None:
            n_unread = transport.get_write_buffer_size()
            self._stuck = asyncio.get_running_loop().call_later(STUCK_S, self._end_if_stuck, n_unread)

    def _end_if_stuck(self, n_before: int) -> None:
        """Who reads, however slowly, gets all of it."""
        if (transport := self.transport) is not None:
            if transport.get_write_buffer_size() < n_before:
                self._watch()
            else:
                transport.abort()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Who closes his side may still read an answer, if it comes soon; else he has gone, and it is of no use."""
        transport = cast(Polite | None, self.transport)
        if transport is None or not transport.can_write_eof():
            return None
        transport.peer_has_left = True
        self.break_off(lambda: ValueError("it ends before its end"))
        asyncio.get_running_loop().call_later(EOF_GRACE_S, transport.give_up)
        return True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Instead of a traceback for whatever a stranger sends as HTTP."""
        visit = Visit(request, SessionId(""))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._http.log.error("http.failed", exc_info=exc)
            response = visit.fail(status, "internal", "a bug of the server's; its log says more")
        else:
            self._http.count("", status)
            said = (message or "").strip().partition("\n")[0]
            response = visit.fail(status, "bad_request", f"this is no HTTP request as it should be: {said}")
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun")
        response.force_close()
        return response


def _asked(request: web.BaseRequest) -> Asked:
    peer = (request.get_extra_info("peername") or ("unknown",))[0]
    return Asked(str(peer), lambda name: request.headers.getall(name, ()))


def name_asked_for(hosts: Sequence[str]) -> str:
    """This machine's, as the client calls it. Args: hosts: the ``Host`` headers."""
    match = HOST.fullmatch("".join(hosts))
    return (match[1] or match[2]) if match is not None else "localhost"


def _policy(sessions: str) -> tuple[str, str]:
    """Of a page that opens sessions there; the policy's language has no words for an address of IPv6."""
    address = re.sub(r"\[.*\]", "*", sessions.removesuffix(messages.PATH))
    return "Content-Security-Policy", f"{POLICY}; connect-src 'self' {address}"


def _cors_headers(asked: Asked) -> dict[str, str]:
    return (
        {**CORS_HEADERS, "Access-Control-Allow-Origin": origin} if (origin := "".join(asked.headers("Origin"))) else {}
    )


def _plain_response(answer: Answer, asked: Asked) -> web.Response:
    encoding = {}
    if isinstance(answer.body, str):
        content = answer.body.encode()
    elif "gzip" in (each.strip() for each in ",".join(asked.headers("Accept-Encoding")).split(",")):
        content, encoding = answer.body.gzipped, {"Content-Encoding": "gzip"}
    else:
        content = answer.body.plain
    own = {"Content-Type": f"{answer.content_type}; charset=utf-8", **encoding, **dict(answer.headers)}
    return web.Response(status=answer.status, body=content, headers=HEADERS | own)
