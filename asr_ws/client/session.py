"""A session with a server that outlives its connections: audio in, typed events out.

    async with connect("ws://127.0.0.1:8765/v1/stream", language="en") as session:
        async for event in session.stream("speech.wav"):
            if isinstance(event, Final):
                print(event.text)

What has no outcome yet is kept in a ring, and sent again when the server is back. Utterances that the server refuses,
or could not finish, are offered again after its own hint. Ids and times are the session's, over all its connections.

One task owns the connection: it writes what `Connection.next` gives, a second one reads. Neither ever waits for the
user, whose events wait here.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from typing import Final as Constant

import msgspec

from asr_ws import messages
from asr_ws.client.address import DEFAULT_URL, NO_SERVER, ConnectionLost, SessionRefused, Unreachable, checked_token
from asr_ws.client.connection import Connection
from asr_ws.client.events import Event, Reconnected, Reconnecting
from asr_ws.client.recording import Recording
from asr_ws.client.ring import AudioRing
from asr_ws.client.sources import AudioSource, Opened, open_source
from asr_ws.client.wire import CLOSE_S, Wire, open_wire
from asr_ws.errors import ClientError, ProtocolError

RING_S = 120.0  # of audio without an outcome
MIN_RING_S = 1.0  # twice what a source that can wait is ahead of the server
ROOM_S = 2.0  # of the ring, at most, are left for what comes next
RECONNECTS = 10  # in a row
FIRST_TRIES = 3  # as long as there was no session: after that its user had better know
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 30.0  # doubled each time
STABLE_S = 5.0  # a connection that was good for so long ends the row of failed ones
LEAVE_S = 2 * CLOSE_S  # for what is to be closed with the session, the user's source among it
SEND_S = 15.0  # that a frame may take: the connection is dead, whatever the operating system thinks
MAX_OPEN = 1000  # utterances without outcome: no server of this protocol has so many
MAX_UNREAD = 10_000  # events that wait for the user; a source that can wait is not read on beyond ...
FEW_UNREAD = 256  # ... these
NO_ANSWER: Constant = "no answer"
DROPPED: Constant = "the server dropped audio"
COMES_BACK: Constant = (1001, 1005, 1006, 1011, 1012, 1013, 1014)  # closes after which the server, or the next one, is
LEFT: Constant = ("the session is over: its block was left", "`close` first, for the outcome of all that was said")
TRANSIENT: Constant = ("internal", "slow_consumer", "idle")  # fatal errors that another connection need not have

MessageT = TypeVar("MessageT", messages.Start, messages.Commit)


class SessionFailed(ClientError):
    """The server ended the session by an error, of which an event told too; ``code`` is that error's."""

    def __init__(self, error: messages.Error) -> None:
        self.code = error.code
        super().__init__(f"{error.code}: {error.message}", error.hint)


def reconnect_delay_s(attempt: int, retry_after_s: float, spread: float) -> float:
    """Seconds before the n-th try (1, 2, ...) in a row. ``spread``: 0 to 1, lest all clients come at once."""
    delay_s = min(FIRST_DELAY_S * 2.0 ** min(attempt - 1, 100), MAX_DELAY_S)  # 2.0 ** 1024 is none
    return max(delay_s * (1 + spread) / 2, min(retry_after_s, MAX_DELAY_S))


@asynccontextmanager
async def connect(
    url: str = DEFAULT_URL,
    *,
    token: str | None = None,
    ring_s: float = RING_S,
    reconnects: int = RECONNECTS,
    **start_fields: Any,
) -> AsyncIterator[Session]:
    """Open a session; leaving the block ends it at once: `Session.close` first, for the outcome of all that was said.

    Args:
        url: ``ws://HOST:PORT/v1/stream``; also the server's plain address.
        token: where the server wants one; sent in a header too, unless the address has a proxy's user and password.
        ring_s: seconds of audio without an outcome that are kept, to be sent again.
        reconnects: how often in a row it is tried to connect again; 0: the end of the connection is the session's.
        start_fields: those of the protocol's ``start``: language, task, audio, endpointing, words, ...
    Raises:
        ClientError: no server there (`Unreachable`), a token that it does not take, a session that it refuses
            (`SessionRefused`), or a field that is not one.
    """
    if not (MIN_RING_S <= ring_s < math.inf and reconnects >= 0):
        raise ClientError(f"ring_s is {ring_s}, reconnects is {reconnects}", "seconds from 1 on, tries from 0 on")
    start = start_message(token, start_fields)
    for attempt in range(1, FIRST_TRIES + 1):
        try:
            wire = await open_wire(url, start)
            break
        except SessionRefused as refused:
            if attempt == FIRST_TRIES or not reconnects:
                raise
            await asyncio.sleep(reconnect_delay_s(1, refused.retry_after_s, random.random()))
    session = Session(url, start, wire, ring_s=ring_s, reconnects=reconnects)
    session._run_on(wire)
    try:
        yield session
    finally:
        try:
            await session._stop()
        finally:
            session._fail(ClientError(*LEFT))


def start_message(token: str | None, fields: dict[str, Any]) -> messages.Start:
    """Raises: ClientError: a field or a token that is none."""
    start = _message(messages.Start, {"token": token, **fields})
    start.token = checked_token(start.token)
    return start


def _message(kind: type[MessageT], fields: dict[str, Any]) -> MessageT:
    """Raises: ClientError: the server would not take it."""
    tag = kind.__struct_config__.tag
    try:
        message = msgspec.convert({"type": tag, **msgspec.to_builtins(fields)}, kind)
        messages.decode_message(messages.encode(message))
        if isinstance(message, messages.Start):
            message.audio.check()
    except (msgspec.ValidationError, ProtocolError, TypeError, UnicodeError, RecursionError) as error:
        raise ClientError(f"{tag} fields: {error}", "see docs/reference/protocol.md") from error
    return message


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=LEAVE_S)


class _Pulse:
    """Something has changed, for whoever waits at this moment."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def fire(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self) -> None:
        await self._next.wait()


class Session:
    """Make it with `connect`.

    Attributes:
        ready: what the server said of itself.
    """

    def __init__(self, url: str, start: messages.Start, wire: Wire, *, ring_s: float, reconnects: int) -> None:
        self.ready = wire.ready
        self._url = url
        self._start = start
        self._ring_s = ring_s
        self._reconnects = reconnects
        self._recording = self._record(start.audio)
        self._connection: Connection | None = None
        self._has_begun = wire.is_introduced  # `start` goes before the first thing that needs it
        self._attempt = 0
        self._n_again = 0  # connections in a row that were made for what the server had dropped ...
        self._again_until = 0  # ... before that frame of the recording
        self._unread: deque[Event] = deque()
        self._error: BaseException | None = None
        self._is_over = False
        self._changed = _Pulse()
        self._running: asyncio.Task[None]
        self._wire: Wire  # on which that one began
        self._sending: asyncio.Task[None] | None = None

    def _record(self, audio: messages.AudioFormat) -> Recording:
        frame_bytes = audio.bytes_per_s // audio.sample_rate
        return Recording(AudioRing(int(self._ring_s * audio.sample_rate), frame_bytes), audio.sample_rate)

    # ---------------------------------------------------------------- for its user

    @property
    def behind_s(self) -> float:
        """Seconds of audio that the server has not been sent: it is busy, slow, or away."""
        ring = self._recording.ring
        if self._connection is not None:
            return self._connection.unsent / self._recording.rate
        return sum(end - start for start, end in ring.unsettled(ring.start, ring.end)) / self._recording.rate

    async def send(self, data: bytes) -> None:
        """Audio in the declared format, any length, cut anywhere. Waits while the ring is full of what is not sent.

        Raises:
            ClientError: after `end`, or after the end of the session.
        """
        self._begin()
        for part in self._parts(data):
            self._recording.ring.append(part)
            self._changed.fire()
            while not self._is_over and self.behind_s + self._room_s > self._ring_s:
                await self._changed.wait()
        await asyncio.sleep(0)  # a loop that only sends is not alone

    async def commit(self, id: str | None = None) -> None:
        """The utterance ends here (push to talk); ``id`` comes back in its `accepted`, `busy` or error.

        Raises:
            ClientError: after `end`, or after the end of the session; an id that is not 1 to 128 characters of text.
        """
        commit = _message(messages.Commit, {"id": id})
        self._begin()
        self._recording.commit(commit.id)
        self._changed.fire()

    async def cancel(self, utterance: str | None = None) -> None:
        """Drop that utterance, or everything unfinished: what is being heard too. `Dropped` comes at once."""
        self._begin(is_audio=False)
        for event in (self._connection or self._recording).cancel(utterance):
            self._deliver(event)
        self._changed.fire()

    async def end(self) -> None:
        """No more audio; the events go on until `Done`."""
        self._begin(is_audio=False)
        self._recording.is_ending = True
        self._changed.fire()

    async def close(self) -> None:
        """`end`, and wait until every utterance has its outcome. What is unread then, `events` still has. How long that
        may take is for the caller to say: a server that lives, and has much to do, is waited for.

        Raises:
            ClientError: the session ended otherwise.
        """
        if not self._is_over:
            await self.end()
        while not self._is_over:
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    async def events(self) -> AsyncGenerator[Event, None]:
        """Everything there is to say, until `Done`; each event once, to one reader.

        Raises:
            SessionFailed: the server ended the session by an error; what was lost by it was told before.
            ConnectionLost: the connection ended, and could not be had again.
        """
        while True:
            while self._unread:
                yield self._recording.number(self._unread.popleft())
                self._changed.fire()
            if self._is_over:
                break
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    async def stream(self, source: AudioSource, *, realtime: bool = False) -> AsyncGenerator[Event, None]:
        """Send all of a source, then `end`; the events, until `Done`.

        Args:
            source: see `asr_ws.client.sources.open_source`.
            realtime: send as a microphone would, not as fast as the server takes it.
        Raises:
            ClientError: the source is not readable; see `events` too.
        """
        opened = open_source(source, self._start.audio)
        if self._is_over or self._recording.is_ending or self._sending is not None:
            raise ClientError("the session takes no second source", "connect once for each")
        await self._declare(opened.audio)
        self._sending = asyncio.create_task(self._send_all(opened, realtime), name="asr_ws sender")
        try:
            async for event in self.events():
                yield event
        finally:
            await _cancel(self._sending)

    # ---------------------------------------------------------------- audio

    def _begin(self, *, is_audio: bool = True) -> None:
        if self._is_over:
            raise self._error or ClientError("the session is over", "open another one")
        if is_audio and self._recording.is_ending:
            raise ClientError("the session takes no more audio: it was ended", "open another one")
        self._has_begun = True
        self._changed.fire()

    async def _declare(self, audio: messages.AudioFormat | None) -> None:
        """What the source holds is what is sent."""
        if audio is None or audio == self._start.audio:
            return
        if self._recording.ring.end or self._recording.marks:
            raise ClientError("the session has begun with audio of another format", "connect(url, audio=...)")
        self._start.audio = audio
        self._recording.rate = audio.sample_rate
        self._recording.ring = self._record(audio).ring
        if self._has_begun:  # by a token that was wanted in `start`
            await self._stop()
            self._recording.n_connections, self._recording.is_started = 0, False
            self._unread.clear()
            try:
                self._run_on(await open_wire(self._url, self._start, introduce=True))
            except ClientError as error:
                self._fail(error)

    @property
    def _room_s(self) -> float:
        """Of the ring, for what comes next."""
        return min(ROOM_S, self._ring_s / 2)

    def _parts(self, data: bytes) -> Iterator[bytes]:
        """So small that none of them drives out of the ring what is still wanted."""
        if not isinstance(data, bytes | bytearray | memoryview):
            kind = type(data).__name__
            raise ClientError(f"audio is bytes, not {kind}", "stream a whole array, or send its tobytes()")
        n_bytes = max(1, int(self._room_s / 2 * self._recording.rate)) * self._recording.ring.frame_bytes
        return (data[at : at + n_bytes] for at in range(0, len(data), n_bytes))

    async def _send_all(self, opened: Opened, realtime: bool) -> None:
        loop = asyncio.get_running_loop()
        began, sent_s = loop.time(), 0.0
        try:
            self._begin()
            async for chunk in opened.chunks:
                if self._is_over or self._recording.is_ending:  # nobody wants more of the source
                    return
                for part in self._parts(chunk):
                    self._recording.ring.append(part)
                    self._changed.fire()
                    sent_s += len(part) / self._start.audio.bytes_per_s
                    if realtime:
                        await asyncio.sleep(began + sent_s - loop.time())
                    elif not opened.is_live:
                        await self._room()
                if not chunk:
                    await asyncio.sleep(0)  # a source that never waits, nor has anything, is not alone
            if not realtime and not opened.is_live:
                await self._room()  # also because holds are short after `end`
            await self.end()
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            self._fail(ClientError("the source was cancelled"))
        except BaseException as error:  # the source's own, most of all, a `SystemExit` too: `events` raises it
            self._fail(error)
        finally:
            if isinstance(opened.chunks, AsyncGenerator):
                await opened.chunks.aclose()

    async def _room(self) -> None:
        """A source that can wait does not run ahead: neither of the server nor of its user."""
        while not self._is_over:
            if self._connection is not None and self._connection.has_room and len(self._unread) < FEW_UNREAD:
                return
            await self._changed.wait()

    # ---------------------------------------------------------------- its connections

    def _run_on(self, wire: Wire) -> None:
        self._wire = wire
        self._running = asyncio.create_task(self._run(wire), name="asr_ws session")

    async def _stop(self) -> None:
        try:
            await _cancel(self._running, *([self._sending] if self._sending is not None else []))
        finally:
            await self._wire.close()  # also when that task was cancelled before it had begun

    async def _run(self, wire: Wire) -> None:
        """All connections, one after the other."""
        try:
            while (lost := await self._converse(wire)) is not None:
                wire = await self._reconnect(lost)
        except Exception as error:  # whoever reads is told of it, also of one of ours, and it ends this session
            self._fail(error)
        else:
            self._end()

    async def _converse(self, wire: Wire) -> ClientError | None:
        """One connection, to its end.

        Returns: why there is to be another one; None: all is done.
        Raises: ClientError: the session is over.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.ready = wire.ready
        connection = Connection(self._recording, None if wire.is_introduced else self._start, now=began)
        self._connection = connection
        reading = asyncio.create_task(self._read(wire, connection), name="asr_ws reader")
        reading.add_done_callback(lambda _: self._changed.fire())
        try:
            await self._write(wire, connection, reading)
        except (ConnectionLost, SessionRefused) as lost:
            error, reason, good_until = connection.error, getattr(lost, "reason", ""), loop.time()
            if reason == NO_ANSWER:
                good_until = connection.good_until
                wire.abort()  # it would not answer the close either
            if error is not None and error.code not in TRANSIENT:
                raise SessionFailed(error) from lost
            if error is None and isinstance(lost, ConnectionLost) and lost.close_code not in COMES_BACK:
                raise
            if good_until - began >= STABLE_S and reason != DROPPED:
                self._attempt = 0
            return lost
        finally:
            reading.cancel()
            await wire.close()
            await asyncio.wait([reading])
        if connection.error is not None:
            raise SessionFailed(connection.error)
        assert connection.done is not None
        if not self._recording.is_ending:
            return ConnectionLost(None, "done before its time")
        if self._is_sent_again(connection):
            return ConnectionLost(None, DROPPED)
        self._deliver(connection.done)
        return None

    async def _read(self, wire: Wire, connection: Connection) -> None:
        """Until `done`, or an error after which there is nothing to be told.

        Raises: ClientError: it is no server of this protocol; what `Wire.receive` does.
        """
        loop = asyncio.get_running_loop()
        while connection.done is None and (connection.error is None or connection.error.fatal):
            for event in connection.receive(await wire.receive(), now=loop.time()):
                self._deliver(event)
            if len(connection.open) > MAX_OPEN:
                raise ClientError(f"more than {MAX_OPEN} utterances have no outcome", NO_SERVER)
            self._changed.fire()

    async def _write(self, wire: Wire, connection: Connection, reading: asyncio.Task[None]) -> None:
        """Until the reader is done. Raises: ConnectionLost; also for another one, to which goes what was dropped."""
        loop = asyncio.get_running_loop()
        while not reading.done():
            for event in connection.lose_what_is_gone():
                self._deliver(event)
            try:
                while self._has_begun and (frame := connection.next(now=loop.time())) is not None:
                    async with asyncio.timeout(SEND_S):
                        await wire.send(frame)
            except TimeoutError:
                raise ConnectionLost(None, NO_ANSWER) from None
            except ConnectionLost:
                break  # what the server said before is still to be read
            if connection.is_dead(now=loop.time()):
                raise ConnectionLost(None, NO_ANSWER)
            if self._is_owing(connection) and self._is_sent_again(connection):
                raise ConnectionLost(None, DROPPED)
            if not reading.done():
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(connection.due_at() if self._has_begun else None):
                        await self._changed.wait()
        await asyncio.wait([reading], timeout=SEND_S)
        if not reading.done():
            raise ConnectionLost(None, NO_ANSWER)
        reading.result()

    def _is_owing(self, connection: Connection) -> bool:
        """Whether what the server dropped is to be sent again now: when that interrupts nothing, or before the ring is
        full. While the session is ending, after all the rest.
        """
        owed = connection.owed_now()
        if not owed or self._recording.is_ending:
            return False
        ring = self._recording.ring
        return not connection.open or ring.end - owed[0][0] > ring.capacity / 2

    def _is_sent_again(self, connection: Connection) -> bool:
        """Whether there is to be another connection for it; as often as it would be tried to connect."""
        ring = self._recording.ring
        for since, end in connection.owed_now():
            start = max(since, min(end, ring.start))
            if start >= self._again_until:  # other audio than the last time
                self._n_again = 0
            is_lost = start == end or self._n_again == self._reconnects
            for event in self._recording.lose(since, end if is_lost else start):
                self._deliver(event)
            if not is_lost:
                self._again_until = max(self._again_until, end)
                self._attempt, self._n_again = self._n_again, self._n_again + 1
                return True
        return False

    async def _reconnect(self, lost: ClientError) -> Wire:
        """Raises: ClientError: ``lost``, or what came of the last try."""
        while True:
            self._attempt += 1
            if self._attempt > self._reconnects:
                raise lost
            delay_s = reconnect_delay_s(self._attempt, getattr(lost, "retry_after_s", 0.0), random.random())
            self._interrupt(delay_s)
            self._deliver(Reconnecting(self._attempt, delay_s, getattr(lost, "reason", lost.code)))
            await asyncio.sleep(delay_s)
            try:
                wire = await open_wire(self._url, self._start, introduce=self._has_begun)
            except (SessionRefused, Unreachable, ConnectionLost) as error:
                lost = error
            else:
                self._deliver(Reconnected())
                return wire

    def _interrupt(self, delay_s: float = 0.0) -> None:
        if self._connection is not None:
            for event in self._connection.interrupt(delay_s=delay_s):
                self._deliver(event)
        self._connection = None

    # ---------------------------------------------------------------- what its user is told

    def _deliver(self, event: Event) -> None:
        if self._is_over:  # all has been told
            return
        match self._unread and self._unread[-1], event:
            case messages.Partial(utterance=before), messages.Partial(utterance=same) if before == same:
                self._unread.pop()  # it is out of date
        self._unread.append(event)
        self._changed.fire()
        if len(self._unread) > MAX_UNREAD and self._error is None:
            raise ClientError(f"{MAX_UNREAD} events were not read", "read them in a task beside your sending")

    def _fail(self, error: BaseException) -> None:
        """It ends by that; nothing is left without an outcome."""
        if self._is_over:
            return
        self._error = error
        self._interrupt()
        self._unread.extend(self._recording.lose(0, self._recording.ring.end, "not_held"))
        self._end()

    def _end(self) -> None:
        self._is_over = True
        self._changed.fire()
