"""Clients of all kinds, and whether each of them was told what the protocol promises.

Those that stay until the end are judged by `asr_ws.testing.conservation`; the others go without a word, as clients do.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket as sockets
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from asr_ws import messages
from asr_ws.client import ConnectionLost, SessionRefused
from asr_ws.errors import ClientError
from asr_ws.testing.bare import BareSession, Event, connect
from asr_ws.testing.conservation import Conservation, Place
from benchmarks.common import PCM_BYTES_PER_S, narrow_socket

SESSION_LIMIT_S: Final = 180.0  # more than MAX_UTTERANCES, offered again PATIENCE times, may take
PATIENCE: Final = 12  # attempts; the protocol has no bound, and at five times the load somebody is always unlucky
VANISH_LIMIT_S: Final = 20.0  # for the moment to come at which to go
LOOK_EVERY_S: Final = 0.02  # whether it has come
NEVER_READ_S: Final = 12.0  # longer than the server lets events wait
RECONNECT_S: Final = 0.5
FRAME_BYTES: Final = PCM_BYTES_PER_S // 5
PAUSE: Final = bytes(PCM_BYTES_PER_S)  # a second of it ends an utterance
MAX_UTTERANCES: Final = 4  # of a session
REFUSES: Final = (1012, 1013)  # the closes of a server that stops, and that has no room for a session
FATAL: Final = 1008  # the close after an error that is

# What sessions do, and how many of a hundred. All but the first are faults of the client's.
STAYS, CANCELS = "stay", "cancel"
VANISHES, VANISHES_QUEUED, VANISHES_DECODING, NEVER_READS = (
    "vanish",
    "vanish-queued",
    "vanish-decoding",
    "never-read",
)
WAYS: Final[Mapping[str, int]] = {
    STAYS: 69,
    CANCELS: 10,
    VANISHES: 7,
    VANISHES_QUEUED: 6,
    VANISHES_DECODING: 6,
    NEVER_READS: 2,
}


@dataclass(slots=True)
class Account:
    """What became of all the sessions that stayed."""

    utterances: int = 0
    finals: int = 0
    lost_outcomes: int = 0
    lost_ms: int = 0
    sessions: Counter[str] = field(default_factory=Counter)  # by what they were to do
    faults: Counter[str] = field(default_factory=Counter)  # of theirs, that came about
    closes: Counter[int] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    unreachable: int = 0  # sessions that there was no server for
    breaches: list[str] = field(default_factory=list)

    def settle(self, law: Conservation, code: int, *, allowed: Sequence[int] = (1000,)) -> None:
        """A session that stayed has closed. Args: allowed: the codes that it may close with."""
        law.close(code)
        self.utterances += len(law.utterances)
        self.finals += sum(told.place is Place.DECODED for told in law.utterances.values())
        self.lost_outcomes += len(law.unsettled)
        self.lost_ms += abs(law.done.lost_ms) if law.done is not None else 0
        self.closes[code] += 1
        self.breaches += law.breaches
        if code not in allowed:
            self.breaches.append(f"closed {code}, with {len(law.unsettled)} utterances that have no outcome")

    def compare(self, law: Conservation, done: messages.Done, n_bytes: int, n_commits: int) -> None:
        """What the server says that it was told with what it was told. Args: n_commits: in manual mode."""
        sent_ms = n_bytes * 1000 // PCM_BYTES_PER_S
        self.lost_ms += abs(sent_ms - done.received_ms)
        if n_commits > len(law.utterances):
            self.breaches.append(f"{n_commits} commits came to {len(law.utterances)} utterances")


class Crowd:
    """Args:
    url: where the server is at the moment; it changes when the server had to be started again.
    pcm, cuts: of speech; each cut is one utterance.
    slow: a prompt for a decode that takes a while, and what tells whether that has begun.
    """

    def __init__(
        self,
        url: Callable[[], str],
        pcm: bytes,
        cuts: Sequence[slice],
        slow: Callable[[], tuple[str, Callable[[], bool]]],
    ) -> None:
        self.account = Account()
        self._slow = slow
        self._url = url
        self._pcm = pcm
        self._cuts = cuts
        self._said: dict[BareSession, tuple[int, int]] = {}  # to whom: bytes of audio, commits

    async def user(self, rng: random.Random, ways: Mapping[str, int], rate: float, stop_at: float) -> None:
        """One session after the other until ``stop_at`` of the loop's clock.

        Args:
            rate: utterances a second, on average, if the server keeps up; more than MAX_UTTERANCES behind, it does not
                make up for what it missed.
        """
        loop = asyncio.get_running_loop()
        next_at = loop.time() + rng.expovariate(rate)

        async def turn() -> None:
            nonlocal next_at
            await asyncio.sleep(min(next_at, stop_at) - loop.time())
            next_at = max(next_at, loop.time() - MAX_UTTERANCES / rate) + rng.expovariate(rate)

        while next_at < stop_at and loop.time() < stop_at:
            await self.session(rng, rng.choices([*ways], [*ways.values()])[0], turn)

    async def session(self, rng: random.Random, way: str, turn: Callable[[], Awaitable[None]]) -> None:
        """One session, whatever becomes of it."""
        self.account.sessions[way] += 1
        try:
            if way in (STAYS, CANCELS):
                await self.stay(rng, turn, cancels=way == CANCELS)
            else:
                await turn()
                await self.vanish(rng, way)
        except SessionRefused as refused:
            self.account.refusals["max_sessions"] += 1
            await asyncio.sleep(refused.retry_after_s)
        except (ClientError, OSError, InvalidHandshake, ConnectionClosed):  # no server there, for the moment
            self.account.unreachable += 1
            await asyncio.sleep(RECONNECT_S)

    async def stay(self, rng: random.Random, turn: Callable[[], Awaitable[None]], *, cancels: bool) -> None:
        """Speak, now and then cancel, offer again what was refused or give it up, and wait for all outcomes."""
        manual = rng.random() < 0.5
        start = {
            "partials": rng.random() < 0.7,
            "words": rng.random() < 0.3,
            "endpointing": {"mode": "manual" if manual else "server", "silence_ms": rng.choice([300, 600])},
        }
        cuts = rng.choices(self._cuts, k=rng.randint(1, MAX_UTTERANCES))
        cancel_after = rng.randrange(len(cuts)) if cancels else None

        async def speak(session: BareSession) -> None:
            for n, cut in enumerate(cuts):
                await turn()
                await self.utter(session, cut, manual=manual)
                if n == cancel_after:
                    await session.cancel()
                    self.account.faults[CANCELS] += 1
            await session.end()

        await self.hear_out(speak, start, patience=rng.choice((0, PATIENCE)))

    async def commit_one(self, rng: random.Random, prompt: str) -> list[Event]:
        """One utterance of a session with this prompt. Returns: what it was told."""
        cut = rng.choice(self._cuts)

        async def speak(session: BareSession) -> None:
            await self.utter(session, cut, manual=True)
            await session.end()

        heard: list[Event] = []
        start = {"prompt": prompt, "partials": False, "endpointing": {"mode": "manual"}}
        await self.hear_out(speak, start, heard=heard.append)
        return heard

    async def hear_out(
        self,
        speak: Callable[[BareSession], Awaitable[None]],
        start: Mapping[str, Any],
        *,
        patience: float = math.inf,
        allowed: Sequence[int] = (1000,),
        heard: Callable[[Event], None] = lambda event: None,
    ) -> Conservation:
        """A session that is judged, from its beginning to its close.

        Args:
            patience: attempts until what is refused is cancelled; before, it is offered again as the hints say.
            allowed: as of `Account.settle`.
        Raises:
            ClientError: there was none.
        """
        law, code = Conservation(), 1006
        async with connect(self._url(), **start) as session:
            speaking = asyncio.ensure_future(_while_connected(speak(session)))
            try:
                async with asyncio.timeout(SESSION_LIMIT_S):
                    async for event in session.events():
                        law.receive(event)
                        heard(event)
                        if isinstance(event, messages.Busy | messages.Retry):
                            self.account.refusals[event.reason] += 1
                            if event.held_ms and event.attempt > patience:
                                # All may have been told already, `done` too: it is read on, also where it is closed.
                                await _while_connected(session.cancel(event.utterance))
                code = 1000 if law.done is not None else FATAL
            except ConnectionLost as lost:
                code = lost.close_code
            except ClientError as error:  # what the server said is none of its events
                law.breaches.append(f"the client cannot go on: {error}")
            except TimeoutError:
                law.breaches.append(f"no end within {SESSION_LIMIT_S:g} s: {law.utterances}")
            finally:
                speaking.cancel()
                await asyncio.wait([speaking])
                n_bytes, n_commits = self._said.pop(session, (0, 0))
        self.account.settle(law, code, allowed=allowed)
        if law.done is not None:
            self.account.compare(law, law.done, n_bytes, n_commits)
        return law

    async def utter(self, session: BareSession, cut: slice, *, manual: bool) -> None:
        """At once, in manual mode; else in real time, so that there are partials."""
        n_bytes, n_commits = self._said.get(session, (0, 0))
        audio = self._pcm[cut] + (b"" if manual else PAUSE)
        self._said[session] = n_bytes + len(audio), n_commits + manual
        if manual:
            await session.send(audio)
            await session.commit()
            return
        for start in range(0, len(audio), FRAME_BYTES):
            await session.send(audio[start : start + FRAME_BYTES])
            await asyncio.sleep(FRAME_BYTES / PCM_BYTES_PER_S)

    async def vanish(self, rng: random.Random, way: str) -> None:
        """Speak, and be gone without a close: amid an utterance, while one waits or is being decoded, or unread."""
        prompt, begun = self._slow() if way == VANISHES_DECODING else (None, lambda: False)
        manual = messages.Endpointing(mode="manual")
        start = messages.Start(prompt=prompt, partials=prompt is None, endpointing=manual)
        options: dict[str, Any] = {"compression": None, "ping_interval": None}
        if way == NEVER_READS:
            options |= {"sock": await narrow_socket(self._url()), "max_queue": 1}
        async with open_socket(_session_url(self._url()), **options) as socket:
            await socket.send(messages.encode(start))
            cuts = rng.choices(self._cuts, k=2)
            try:
                if way == NEVER_READS:
                    await _never_read(socket)
                elif way == VANISHES:
                    await socket.send(self._pcm[cuts[0]])
                elif way == VANISHES_QUEUED:
                    await self._wait_until(socket, cuts, _waits)
                else:
                    await self._wait_until(socket, cuts[:1], lambda event: begun())
                self.account.faults[way] += 1
            except TimeoutError:  # the moment did not come
                pass
            except ConnectionClosed as closed:
                if closed.rcvd is not None and closed.rcvd.code in REFUSES:
                    raise SessionRefused(closed.rcvd.reason, RECONNECT_S) from closed
                self.account.breaches.append(f"a session that did nothing wrong was closed: {closed}")
            finally:
                _reset(socket)

    async def _wait_until(
        self, socket: ClientConnection, cuts: Sequence[slice], moment: Callable[[Event | None], bool]
    ) -> None:
        """Speak these, again and again, until the moment has come.

        Args:
            moment: whether this event tells of it; None: there was none for a while.
        Raises:
            TimeoutError: it does not.
        """
        n_open = 0
        async with asyncio.timeout(VANISH_LIMIT_S):
            while True:
                if n_open <= 0:
                    n_open = len(cuts)
                    for cut in cuts:
                        await socket.send(self._pcm[cut])
                        await socket.send(messages.encode(messages.Commit()))
                event = None
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        event = messages.decode_event(await socket.recv())
                if moment(event):
                    return
                match event:
                    case messages.Busy(utterance=None):
                        raise SessionRefused(event.reason, event.retry_after_ms / 1000)
                    case messages.Busy() | messages.Retry():
                        await asyncio.sleep(event.retry_after_ms / 1000)
                        await socket.send(messages.encode(messages.RetryUtterance(str(event.utterance))))
                    case messages.Final() | messages.Error() | messages.Dropped():
                        n_open -= 1


def _waits(event: Event | None) -> bool:
    return isinstance(event, messages.Accepted) and event.position > 0


async def _while_connected(speaking: Awaitable[None]) -> None:
    """What a session says; when its connection is lost, the one that reads tells."""
    with suppress(ConnectionLost):
        await speaking


async def _never_read(socket: ClientConnection) -> None:
    """While the server has ever more to say, until it has enough of that, or for long enough."""
    with suppress(TimeoutError, ConnectionClosed):
        async with asyncio.timeout(NEVER_READ_S):
            while True:
                await socket.send(messages.encode(messages.Ping(id="x" * 128)))


def _session_url(url: str) -> str:
    return url.replace("http", "ws", 1) + messages.PATH


def _reset(socket: ClientConnection) -> None:
    """Gone by a TCP reset, not by an end."""
    if (raw := socket.transport.get_extra_info("socket")) is not None:
        linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        with suppress(OSError):  # the server was first
            raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, linger)
    socket.transport.abort()
