"""A relay from a client to a live server: it hears what the client says, and makes things hard for it.

Nothing but what the protocol allows: each session is told an event and fields of a newer server, and its first
utterance that the server accepts is refused, until the client offers it again. With ``cuts`` the first connection that
has an utterance accepted is cut in place of that, and the next one refused.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from asr_ws.messages import PATH, PROTOCOL, AudioFormat, AudioInForce
from asr_ws.testing.conformance.live import COUNTS, Event, parse

HINT_MS: Final = 1000
LOAD_MS: Final = 1500  # what is left to wait for, for an utterance that is refused because a model loads
GO_S: Final = 1.0  # for what a client has said last, when nothing more is to be heard
HOLD_S: Final = 5.0  # after `end` and the hint, as the protocol has it
NEWS: Final[Event] = {"type": "news_of_a_newer_server", "items": [{"n": 1}]}
NEW_FIELD: Final = {"field_of_a_newer_server": {"n": 1}}
OPEN: Final[dict[str, Any]] = {"max_size": None, "ping_interval": None}  # who is slow is not gone
UNSAYABLE: Final = (None, 1005, 1006)  # close codes that no frame has


@dataclass(slots=True, eq=False)
class Said:
    """``what`` is a client's frame, or an event that it was told; ``at`` is the loop's time."""

    at: float
    by_client: bool
    what: str | bytes | Event


@dataclass(slots=True)
class Heard:
    """One connection of the client.

    Attributes:
        offered: the subprotocols that it asked for.
        said: all of it, in order.
        left_with: the client's close code, where it was the client who ended the connection; 1006: without a word.
        owed_ms: of a connection that was cut: the audio that had been accepted.
        refused_at: the session itself was refused then, with a hint of `HINT_MS`.
        condemned: a promise was found broken here, so that the others need not say it again.
    """

    opened_at: float
    offered: list[str]
    said: list[Said] = field(default_factory=list)
    left_with: int | None = None
    owed_ms: tuple[int, int] | None = None
    refused_at: float | None = None
    condemned: bool = False

    @property
    def texts(self) -> list[str]:
        return [each.what for each in self.said if isinstance(each.what, str)]

    @property
    def types(self) -> list[str]:
        """What the client sent: the types of its messages, and ``audio``."""
        sent = (each.what for each in self.said if each.by_client)
        return ["audio" if isinstance(what, bytes) else str(parse(str(what)).get("type")) for what in sent]

    @property
    def told(self) -> list[Event]:
        return [each.what for each in self.said if isinstance(each.what, dict)]

    @property
    def audio(self) -> bytes:
        return b"".join(each.what for each in self.said if isinstance(each.what, bytes))

    @property
    def format(self) -> AudioFormat:
        """In force."""
        started = (event["audio"] for event in self.told if event["type"] == "started")
        audio = msgspec.convert(next(started, {}), AudioInForce)  # of a newer server too
        return AudioFormat(audio.encoding, audio.sample_rate, audio.channels)


class Refusal:
    """Of the first utterance that is accepted: what the server says of it is kept back until it is offered again.

    Attributes:
        is_open: until it is offered again, or given up.
    """

    def __init__(self) -> None:
        self.is_open = False
        self.settled = asyncio.Event()
        self._accepted: Event = {}
        self._kept: list[Event] = []
        self._is_given_up = False
        self._counts: Counter[str] = Counter()  # of what the client is told, more than the server told
        self._refused_ms = 0

    def receive(self, event: Event) -> list[Event]:
        """What the client is told in place of the server's event."""
        type = event["type"]
        if type == "accepted" and not self._accepted:
            self._accepted, self.is_open = event, True
            self._keep(event)
            self._counts["busy"] += 1
            told = {name: event[name] for name in ("seq", "utterance", "attempt", "commit")}
            return [_busy("restarting", LOAD_MS, held_ms=60_000, **told)]
        if type == "done":
            return [self._corrected(event)]
        if not self._accepted or event.get("utterance") != self._accepted["utterance"]:
            return [event]
        if not (self.is_open or self._is_given_up):
            return [_later(event)]
        self._keep(event)
        return []

    def offer(self, id: object) -> list[Event] | None:
        """A `retry`: what the client is told. None: it is of another utterance."""
        if not self.is_open or id != self._accepted["utterance"]:
            return None
        self.is_open = False
        self.settled.set()
        for event in self._kept:
            self._counts[event["type"]] += 1
        return self._kept

    def give_up(self, reason: str) -> list[Event]:
        self.is_open, self._is_given_up = False, True
        self.settled.set()
        self._counts["dropped"] += 1
        about = {name: self._accepted[name] for name in ("utterance", "audio_start_ms", "audio_end_ms")}
        return [{"type": "dropped", "seq": 0, "reason": reason, **about}]

    def is_of(self, id: object) -> bool:
        """Whether a `cancel` of this id, or of all, gives it up."""
        return self.is_open and id in (None, self._accepted["utterance"])

    def _keep(self, event: Event) -> None:
        self._kept.append(_later(event))
        self._counts[event["type"]] -= 1
        if event["type"] == "final":
            self._refused_ms = event["audio_end_ms"] - event["audio_start_ms"]

    def _corrected(self, done: Event) -> Event:
        moved_ms = self._refused_ms if self._is_given_up else 0
        done = {**done, "decoded_ms": done["decoded_ms"] - moved_ms, "refused_ms": done["refused_ms"] + moved_ms}
        return done | {name: done[name] + self._counts[type] for name, type in COUNTS.items()}


def _busy(reason: str, wait_ms: int, *, held_ms: int, **fields: Any) -> Event:
    """Args: fields: of the utterance; none: the session's."""
    queue = {"queue_depth": 3, "queue_capacity": 3, "retry_after_ms": HINT_MS, "estimated_wait_ms": wait_ms}
    told = {"type": "busy", "utterance": None, "attempt": 0, "commit": None, "status": 503, "reason": reason, **queue}
    return told | {"retryable": True, "held_ms": held_ms} | fields


def _later(event: Event) -> Event:
    """There was an attempt before, of which the server does not know."""
    return {**event, "attempt": event["attempt"] + 1} if "attempt" in event else event


class Relay:
    """Attributes:
    url: its own address.
    sessions: what was heard, in the order of the connections.
    """

    def __init__(self, server_url: str, *, cuts: bool) -> None:
        self.url = ""
        self.sessions: list[Heard] = []
        self._server_url = server_url
        self._cuts = cuts
        self._refuses = False  # the next session

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[WebSocketServer]:
        """On loopback; at the end clients that go are waited for, a moment. Raises: OSError: the port is taken."""

        def select(_: ServerConnection, offered: Any) -> Subprotocol | None:
            return Subprotocol(PROTOCOL) if PROTOCOL in offered else None

        async with serve(self._accept, "127.0.0.1", port, select_subprotocol=select, **OPEN) as server:
            self.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}{PATH}"
            try:
                yield server
            finally:
                if going := [asyncio.ensure_future(client.wait_closed()) for client in server.connections]:
                    await asyncio.wait(going, timeout=GO_S)

    async def _accept(self, client: ServerConnection) -> None:
        assert client.request is not None
        asked = client.request.headers
        offered = ",".join(asked.get_all("Sec-WebSocket-Protocol")).replace(" ", "")
        heard = Heard(asyncio.get_running_loop().time(), offered.split(",") if offered else [])
        self.sessions.append(heard)
        if self._refuses:
            self._refuses = False
            heard.refused_at = heard.opened_at
            with suppress(ConnectionClosed):
                await client.send(json.dumps(_busy("max_sessions", HINT_MS, held_ms=0)))
            await client.close(1013, "max_sessions: try again later")
            return
        headers = [("Authorization", value) for value in asked.get_all("Authorization")]
        options: dict[str, Any] = {"subprotocols": [PROTOCOL], "additional_headers": headers, "compression": None}
        try:
            async with connect(self._server_url, **options, **OPEN) as server:
                await _Passage(self, heard, client, server).run()
        except (OSError, InvalidHandshake) as error:
            await client.close(1011, f"the server behind it: {error}"[:100])

    def claim_cut(self) -> bool:
        """Of a connection whose utterance was accepted. Only the first one gets it; the next one is refused."""
        cuts, self._cuts = self._cuts, False
        self._refuses |= cuts
        return cuts


class _Passage:
    """Of one connection, both ways."""

    def __init__(self, relay: Relay, heard: Heard, client: ServerConnection, server: ClientConnection) -> None:
        self._relay = relay
        self._heard = heard
        self._client = client
        self._server = server
        self._refusal = Refusal()
        self._n_told = 0  # with a number
        self._is_over = False  # for the client; not by its doing
        self._telling = asyncio.Lock()  # two tell it things, which are to be numbered as they go

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear(), name="hear")
            tasks.create_task(self._tell_all(), name="tell")

    async def _hear(self) -> None:
        with suppress(ConnectionClosed):
            async for what in self._client:
                self._heard.said.append(Said(asyncio.get_running_loop().time(), True, what))
                if await self._passes(parse(what) if isinstance(what, str) else {}):
                    await self._server.send(what)
        if not self._is_over and self._client.protocol.close_rcvd_then_sent is not False:
            self._heard.left_with = self._client.close_code
        self._refusal.settled.set()
        await self._server.close()

    async def _passes(self, message: Event) -> bool:
        """Whether it is for the server too."""
        id = message.get("utterance")
        if message.get("type") == "retry" and (answer := self._refusal.offer(id)) is not None:
            await self._tell(answer)
            return False
        if message.get("type") == "cancel" and self._refusal.is_of(id):
            await self._tell(self._refusal.give_up("cancelled"))
        return True

    async def _tell_all(self) -> None:
        with suppress(ConnectionClosed):
            async for text in self._server:
                event = parse(text)
                if event["type"] == "accepted" and self._relay.claim_cut():
                    self._heard.owed_ms = event["audio_start_ms"], event["audio_end_ms"]
                    self._is_over = True
                    self._client.transport.abort()
                    return
                if event["type"] == "done" and self._refusal.is_open:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._refusal.settled.wait(), LOAD_MS / 1000 + HOLD_S)
                    if self._refusal.is_open:
                        await self._tell(self._refusal.give_up("hold_expired"))
                await self._tell(self._refusal.receive(event))
                if event["type"] == "ready":
                    await self._tell([{**NEWS, "seq": 0}])
        self._is_over = True
        if self._server.close_code in UNSAYABLE:
            self._client.transport.abort()
        else:
            await self._client.close(self._server.close_code or 1000, self._server.close_reason or "")

    async def _tell(self, events: list[Event]) -> None:
        async with self._telling:
            for event in events:
                if "seq" in event:
                    self._n_told += 1
                    event = {**event, "seq": self._n_told}
                said = Said(asyncio.get_running_loop().time(), False, event)
                self._heard.said.append(said)  # before the answer to it
                try:
                    await self._client.send(json.dumps({**event, **NEW_FIELD}))
                except ConnectionClosed:  # `_hear` sees that too
                    self._heard.said.remove(said)
