"""A server that runs, and sessions with it: raw, so that they may break rules, and recorded, so that they are judged.

A refusal is a legitimate answer: an utterance that a busy server refuses is offered again, after the server's hint,
while its events are being read. What nobody answers within ``patience_s`` is broken.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from math import inf
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from asr_ws.client.address import no_address, session_url
from asr_ws.errors import ClientError
from asr_ws.messages import PATH, PROTOCOL, retry_wait_s
from asr_ws.testing.conformance.table import Broken, NotTested, expect

Event = dict[str, Any]  # as it came: whether it is one of the protocol's is for the promises to say

START: Final[Event] = {"type": "start", "partials": False}
WHAT: Final = "is it an asr-ws.v1 server?"
CLOSE_TIMEOUT_S: Final = 2.0
REFUSALS: Final = ("busy", "retry")
COUNTS: Final = {"finals": "final", "busy": "busy", "retries": "retry", "dropped": "dropped", "errors": "error"}
GIVEN_UP: Final = ("hold_expired", "evicted", "not_held")  # the reasons for `dropped` that are the server's


class Session:
    """One connection.

    Attributes:
        events: what came, in order; ``texts`` is the same as it was on the wire.
        close_code: how the server closed it; None: it did not, or not yet.
        has_ended: `end` was sent.
        condemned: a promise was found broken here, so that the others need not say it again.
    """

    def __init__(self, socket: ClientConnection, patience_s: float) -> None:
        self.socket = socket
        self.events: list[Event] = []
        self.texts: list[str | bytes] = []
        self.close_code: int | None = None
        self.has_ended = self.condemned = False
        self._patience_s = patience_s
        self._due: dict[str, float] = {}  # when a refused utterance is to be offered again, by id

    async def send(self, *messages: Event | str | bytes) -> None:
        for message in messages:
            with suppress(ConnectionClosed):  # which is seen when the events are read
                await self.socket.send(json.dumps(message) if isinstance(message, dict) else message)

    async def next(self) -> Event:
        """The next event; meanwhile what was refused is offered again.

        Raises: ConnectionClosed; TimeoutError: patience is over.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        while True:
            due = min(self._due.values(), default=inf)
            try:
                async with asyncio.timeout_at(min(due, deadline)):
                    text = await self.socket.recv()
                break
            except TimeoutError:
                if loop.time() >= deadline:
                    raise
                for id in [id for id, at in self._due.items() if at <= loop.time()]:
                    del self._due[id]
                    await self.send({"type": "retry", "utterance": id})
            except ConnectionClosed as closed:
                self.close_code = closed.rcvd.code if closed.rcvd else 1006
                raise
        self.texts.append(text)
        self.events.append(parse(text))
        self._note(self.events[-1], loop.time())
        return self.events[-1]

    async def until(self, *types: str) -> Event:
        """Read on to the next event of one of these types, or of any."""
        expected = " or ".join(types) or "an event"
        while True:
            try:
                event = await self.next()
            except ConnectionClosed:
                raise Broken(expected, f"close {self.close_code} after {self.last}") from None
            except TimeoutError:
                raise Broken(expected, f"nothing for {self._patience_s:g} s after {self.last}") from None
            if not types or event.get("type") in types:
                return event

    async def rest(self) -> int:
        """Read to the close. Returns: its code."""
        try:
            while True:
                await self.next()
        except TimeoutError:
            raise Broken("a close", f"nothing for {self._patience_s:g} s after {self.last}") from None
        except ConnectionClosed:
            assert self.close_code is not None
            return self.close_code

    async def end(self, *late: Event | bytes) -> int:
        """`end`, and read to the close. Args: late: what is sent behind it. Returns: the close code."""
        self.has_ended = True
        await self.send({"type": "end"}, *late)
        return await self.rest()

    def all(self, *types: str) -> list[Event]:
        return [event for event in self.events if event.get("type") in types]

    @property
    def last(self) -> str:
        return json.dumps(self.events[-1]) if self.events else "nothing"

    @property
    def done(self) -> Event:
        """Raises: NotTested: there is none, which is another promise's."""
        if not (found := self.all("done")):
            raise NotTested("no done came: see end")
        return found[-1]

    @property
    def ranges_ms(self) -> list[tuple[int, int]]:
        """Where the audio of the finals lies, in order.

        Raises: NotTested: the server was too busy for one of them; Broken: there is none at all.
        """
        if given_up := [event for event in self.all("dropped") if event["reason"] in GIVEN_UP]:
            raise NotTested(f"too busy: {json.dumps(given_up[0])}")
        finals = self.all("final")
        expect(bool(finals), "a final", f"close {self.close_code} after {self.last}")
        return sorted({(final["audio_start_ms"], final["audio_end_ms"]) for final in finals})

    def _note(self, event: Event, now: float) -> None:
        """Plan when to offer again what was refused and is held; forget it when its fate is told."""
        id = event.get("utterance")
        if not isinstance(id, str) or event.get("type") == "error":
            return
        self._due.pop(id, None)
        if event.get("type") in REFUSALS and event.get("held_ms"):
            hint_s, wait_s = event["retry_after_ms"] / 1000, event["estimated_wait_ms"] / 1000
            self._due[id] = now + retry_wait_s(event["reason"], hint_s, wait_s)


def parse(text: str | bytes) -> Event:
    """What is no JSON object is an event without fields."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    return parsed if isinstance(parsed, dict) else {}


@dataclass(slots=True)
class Server:
    """The server to be judged.

    Attributes:
        url: of its sessions; ``http`` is where it answers plain GETs; ``user`` is what is not shown of them:
            ``USER:PASSWORD@``, or nothing.
        patience_s: for any one answer.
        allow_faults: its worker may be broken, as docs/howto/break-it.md has it.
        ready: what it said of itself first.
        heard: every session that was opened, for the promises that hold for all of them.
    """

    url: str
    http: str
    user: str = ""
    token: str | None = None
    patience_s: float = 30.0
    allow_faults: bool = False
    ready: Event = field(default_factory=dict)
    heard: list[Session] = field(default_factory=list)
    _scenes: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, url: str, **options: Any) -> Server:
        """Raises: ClientError: that is no address of one."""
        shown, user = session_url(url)
        parts = urlsplit(shown)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise no_address(url)
        plain = parts._replace(scheme=parts.scheme.replace("ws", "http"), path=parts.path.removesuffix(PATH), query="")
        return cls(shown, plain.geturl().rstrip("/"), user, **options)

    @property
    def address(self) -> str:
        """With the user."""
        return self.url.replace("//", f"//{self.user}", 1)

    async def greet(self) -> None:
        """See who is there.

        Raises: ClientError: nobody, or nobody who speaks to us.
        """
        try:
            async with self.session() as session:
                first = session.events[0]
        except (LookupError, TypeError) as error:  # of what came in place of an event
            raise ClientError(f"{self.url} says nothing that is known: {error!r}", WHAT) from error
        except (OSError, WebSocketException, ValueError) as error:
            hint = "is the server running, and are its sessions there? asr-ws serve"
            raise ClientError(f"no session at {self.url}: {error or type(error).__name__}", hint) from error
        except Broken as broken:
            raise ClientError(f"{self.url} says nothing: {broken.came}", WHAT) from broken
        except NotTested as full:
            raise ClientError(f"no session at {self.url}: {full}", "try again later") from full
        if first.get("code") == "unauthorized":
            hint = "name a file with a token that it knows: --token-file FILE"
            raise ClientError(f"{self.url} lets nobody in without a token that it knows", hint)
        self.ready = first if first.get("type") == "ready" else {}
        self.heard.clear()

    def limit(self, name: str, default: int) -> int:
        """One of ``ready.limits``; the protocol's own where the server did not say."""
        limits = self.ready.get("limits", {})
        return int(limits.get(name, default))

    @property
    def last(self) -> Event:
        """The last event of the last session."""
        return self.heard[-1].events[-1] if self.heard else {}

    @asynccontextmanager
    async def session(self, start: Event | None = START, **options: Any) -> AsyncIterator[Session]:
        """An open session, its first event read.

        Raises: NotTested: the server is full, or wants the token that only a ``start`` brings; Broken: it says nothing.
        """
        if start is None and self.token is not None:
            raise NotTested("with a token a session begins with `start`")
        session = await self._open(start, options)
        self.heard.append(session)
        try:
            yield session
        finally:
            await session.socket.close()

    async def _open(self, start: Event | None, options: dict[str, Any]) -> Session:
        """Again and again, after the server's hint, where it has as many sessions as it takes."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience_s
        while True:
            hint_s = 1.0
            try:
                session = await self.connect(**options)
                try:
                    if start is not None:
                        await session.send(start if self.token is None else {**start, "token": self.token})
                    first = await session.until()
                except Broken:
                    await session.socket.close()
                    raise
                if first.get("type") != "busy":
                    return session
                await session.socket.close()
                hint_s = first["retry_after_ms"] / 1000
            except InvalidStatus as refused:
                if refused.response.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                    raise
            if loop.time() + hint_s > deadline:
                raise NotTested("the server takes no more sessions")
            await asyncio.sleep(hint_s)

    async def connect(self, **options: Any) -> Session:
        """A connection of which nothing was read yet, to be closed by who asked; `heard` does not have it."""
        times: Event = {"open_timeout": self.patience_s, "close_timeout": CLOSE_TIMEOUT_S}
        options = {**times, "subprotocols": [PROTOCOL], "compression": None, "max_size": None, **options}
        return Session(await connect(self.address, max_queue=None, **options), self.patience_s)

    async def once(self, scene: Callable[[Server], Awaitable[Any]]) -> Any:
        """What several promises look at is played once."""
        if scene not in self._scenes:
            self._scenes[scene] = await scene(self)
        return self._scenes[scene]

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of a plain GET; 0 and why, where there is no answer."""
        request = Request(self.http + path)
        if self.user:
            request.add_header("Authorization", f"Basic {b64encode(unquote(self.user[:-1]).encode()).decode()}")
        elif self.token is not None:
            request.add_header("Authorization", f"Bearer {self.token}")

        def fetch() -> tuple[int, str]:
            try:
                with urlopen(request, timeout=self.patience_s) as answer:
                    return answer.status, answer.read().decode(errors="replace")
            except HTTPError as error:
                with error:
                    return error.code, error.read().decode(errors="replace")
            except (OSError, HTTPException) as error:
                return 0, str(error)

        return await asyncio.to_thread(fetch)
