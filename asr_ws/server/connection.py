"""One websocket, one session: reads, paces, feeds the session, writes what it says. It never awaits a decode.

Three tasks: the reader (which owns the session's input), the writer (a bounded outbox, so that a client which does
not read costs nothing but itself), and the keepalive. The keepalive is our own, because a connection that we do not
read for pacing cannot see pongs, and must not be closed for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import structlog
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from asr_ws import messages
from asr_ws.core.endpointer import FRAME
from asr_ws.core.session import Session
from asr_ws.core.types import SAMPLE_RATE, Failed, Outcome, Partial, ServiceStatus
from asr_ws.errors import ProtocolError
from asr_ws.server.dispatcher import Dispatcher, Subscriber
from asr_ws.server.pacing import Pace

OUTBOX_EVENTS = 256  # more than a session can have outstanding; beyond it the client does not read
WRITE_TIMEOUT_S = 10.0
LAST_WORD_TIMEOUT_S = 1.0
PING_INTERVAL_S = 20.0  # below the idle cut of common proxies (60 s)
PING_TIMEOUT_S = 20.0
LAST_LOOK_S = 0.1  # before an idle session is ended
WINDOWS_PER_TURN = 8  # detector windows between two looks at other sessions: under 1 ms


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    idle_timeout_s: float  # 0: never
    ingest_speed: float  # audio seconds a second
    write_timeout_s: float = WRITE_TIMEOUT_S
    ping_interval_s: float = PING_INTERVAL_S
    ping_timeout_s: float = PING_TIMEOUT_S


class Connection:
    """Args: who: what the log says of the client."""

    def __init__(
        self,
        socket: ServerConnection,
        session: Session,
        dispatcher: Dispatcher,
        limits: ConnectionLimits,
        who: dict[str, str],
    ) -> None:
        self._socket = socket
        self._session = session
        self._dispatcher = dispatcher
        self._limits = limits
        self._who = who
        self._loop = asyncio.get_running_loop()
        self._log = structlog.get_logger().bind(session=session.id)
        self._outbox: list[str] = []
        self._overflowed = False
        self._writing: asyncio.Timeout | None = None  # of the event that is being written
        self._wake_writer = asyncio.Event()
        self._waits_from = math.inf  # the reader, for a message
        self._idle_timer: asyncio.TimerHandle | None = None
        self._n_taken = 0  # messages, and slices of audio
        self._pace = Pace(limits.ingest_speed, self._loop.time())

    async def serve(self, first: str | None = None) -> None:
        """From `ready` to the close; returns when the socket is closed.

        Args:
            first: a message that was read already.
        """
        began = time.monotonic()
        self._log.info("session.opened", **self._who)
        subscriber = Subscriber(self._receive_outcome, self._receive_partial, self._receive_status)
        self._dispatcher.attach(self._session.id, subscriber)
        if self._limits.idle_timeout_s:
            self._look_for_idleness()
        try:
            self._do(lambda: self._session.receive_open(self._dispatcher.status))
            if first is not None:
                self._do(partial(self._session.receive_text, first, now=self._loop.time()))
            async with asyncio.TaskGroup() as tasks:
                id = self._session.id
                running = [
                    tasks.create_task(self._read(), name=f"{id} reader"),
                    tasks.create_task(self._write(), name=f"{id} writer"),
                    tasks.create_task(self._keep_alive(), name=f"{id} keepalive"),
                ]
                await self._socket.wait_closed()
                for task in running:  # what was received and not yet looked at has nobody to be told to
                    task.cancel()
        finally:
            if self._idle_timer is not None:
                self._idle_timer.cancel()
            self._dispatcher.detach(self._session.id)
            self._session.receive_disconnect()
            self._log_closed(time.monotonic() - began)

    def fail(self, error: ProtocolError) -> None:
        """End the session with this error."""
        self._do(partial(self._session.receive_failure, error))

    # ------------------------------------------------------------ in

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._read_one()
                await asyncio.sleep(0)  # a client whose frames lie ready must not keep the loop to itself

    async def _read_one(self) -> None:
        self._waits_from = self._loop.time()
        message = await self._socket.recv()
        self._waits_from = math.inf
        self._n_taken += 1
        if isinstance(message, str):
            self._do(partial(self._session.receive_text, message, now=self._loop.time()))
        elif self._session.takes_audio:
            await self._read_audio(message)
        else:
            self._do(partial(self._session.receive_audio, message, now=self._loop.time()))

    def _look_for_idleness(self, *, is_last: bool = False) -> None:
        """One timer a session, that comes now and then: one for each message is a tenth of what a message costs."""
        now, timeout_s = self._loop.time(), self._limits.idle_timeout_s
        since = min(self._waits_from, now) if self._session.takes_audio else now  # else it only waits for its outcomes
        if now < since + timeout_s:
            self._idle_timer = self._loop.call_at(since + timeout_s, self._look_for_idleness)
        elif not is_last:
            # After a standstill of this process the timer comes in the turn that reads what had come: the reader
            # wakes in the next one, or later where it is much.
            self._idle_timer = self._loop.call_later(LAST_LOOK_S, partial(self._look_for_idleness, is_last=True))
        else:
            hint = "send audio, or a ping now and then"
            self.fail(ProtocolError("idle", f"no message came for {timeout_s:g} s", hint, close_code=1008))

    async def _read_audio(self, data: bytes) -> None:
        """In slices of a few detector windows, as fast as the pace allows."""
        for audio in self._slices(data):
            if not self._session.takes_audio:
                return
            if (delay_s := self._pace.delay(len(audio) / self._session.audio_bytes_per_s, self._loop.time())) > 0:
                await asyncio.sleep(delay_s)
            self._n_taken += 1
            self._do(partial(self._session.receive_audio, audio, now=self._loop.time()))
            if len(audio) < len(data):
                await asyncio.sleep(0)

    def _slices(self, data: bytes) -> Iterator[bytes]:
        n_bytes = max(1, self._session.audio_bytes_per_s * WINDOWS_PER_TURN * FRAME // SAMPLE_RATE)
        return (data[start : start + n_bytes] for start in range(0, len(data), n_bytes))

    def _receive_outcome(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            facts = {"utterance": outcome.utterance.id, "code": outcome.code, "message": outcome.message}
            self._log.warning("utterance.failed", **facts)
        self._do(partial(self._session.receive_outcome, outcome, now=self._loop.time()))

    def _receive_partial(self, text: Partial) -> None:
        self._do(partial(self._session.receive_partial, text))

    def _receive_status(self, status: ServiceStatus) -> None:
        self._do(partial(self._session.receive_status, status))

    def _do(self, receive: Callable[[], list[messages.ServerEvent]]) -> None:
        """Let the session receive something, and send what it says."""
        try:
            self._send(receive())
        except Exception as error:
            # The boundary of a session: our bug ends this session, with its traceback in the log.
            self._log.exception("session.failed")
            hint = "the server's log has the traceback; open a new session"
            internal = ProtocolError("internal", f"internal error: {type(error).__name__}", hint, close_code=1011)
            self._send(self._session.receive_failure(internal))

    # ------------------------------------------------------------ out

    def _send(self, events: Iterable[messages.ServerEvent]) -> None:
        """Into the outbox, as far as it has room: beyond it the client does not read, and is cut off."""
        self._outbox.extend(messages.encode(event) for event in events)
        if self._outbox or self._session.close is not None:  # most frames of audio are answered by nothing
            self._wake_writer.set()
        if len(self._outbox) > OUTBOX_EVENTS:
            del self._outbox[OUTBOX_EVENTS:]
            if self._writing is not None and not self._overflowed:
                self._writing.reschedule(self._loop.time())
            self._overflowed = True

    async def _write(self) -> None:
        """Events in order, then the close that the session asked for."""
        try:
            while True:
                await self._wake_writer.wait()
                self._wake_writer.clear()
                while self._outbox:
                    if self._overflowed:
                        raise TimeoutError
                    async with asyncio.timeout(self._limits.write_timeout_s) as self._writing:
                        await self._socket.send(self._outbox.pop(0))
                    self._writing = None
                if (close := self._session.close) is not None:
                    await self._socket.close(close.code, close.reason)
                    return
        except ConnectionClosed:
            return
        except TimeoutError:
            self._log.warning("session.not_reading", outbox=len(self._outbox))
            await self._cut_off()

    async def _cut_off(self) -> None:
        """A client that does not read is told so last, if it reads that much; its outcomes wait no longer."""
        hint = "read events as they come"
        error = ProtocolError("slow_consumer", "events are not being read", hint, close_code=1008)
        last = self._session.receive_failure(error)
        self._session.receive_disconnect()
        self._outbox.clear()
        try:
            async with asyncio.timeout(LAST_WORD_TIMEOUT_S):
                for event in last[:1]:
                    await self._socket.send(messages.encode(event))
                await self._socket.close(1008, error.code)
        except (TimeoutError, ConnectionClosed):
            self._socket.transport.abort()

    async def _keep_alive(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._limits.ping_interval_s)
                async with asyncio.timeout(self._limits.ping_timeout_s):
                    pong = await self._socket.ping()
                n_taken = self._n_taken
                while not await self._arrives(pong):
                    if self._n_taken == n_taken:
                        await self._socket.close(1011, "keepalive ping timeout")
                        return
                    n_taken = self._n_taken  # the pong may stand behind what we have not read yet
        except ConnectionClosed:
            return
        except TimeoutError:  # not even a ping can be written: it does not read, and sends what is to be answered
            self._socket.transport.abort()

    async def _arrives(self, pong: Awaitable[float]) -> bool:
        done, _ = await asyncio.wait([asyncio.ensure_future(pong)], timeout=self._limits.ping_timeout_s)
        return bool(done)

    # ------------------------------------------------------------

    def _log_closed(self, duration_s: float) -> None:
        ledger, counts = self._session.ledger, self._session.counts
        facts = {
            "duration_s": round(duration_s, 3),
            "audio_s": round(ledger.received / ledger.sample_rate, 3),
            "finals": counts["final"],
            "busy": counts["busy"],
            "retries": counts["retry"],
            "dropped": counts["dropped"],
            "errors": counts["error"],
            "close_code": code if (code := self._socket.close_code) is None else int(code),
        }
        self._log.info("session.closed", **facts)
        if ledger.lost:
            self._log.error("session.audio_lost", frames=ledger.lost, **facts)
