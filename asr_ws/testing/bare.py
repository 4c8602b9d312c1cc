"""One connection as it is: for load, for tests, and for whoever wants to see every event as the server sent it.

    async with connect(url, language="en") as session:
        async for event in session.stream(source):
            ...

Unlike `asr_ws.client` it remembers no audio, waits for nobody, and ends with its connection. What was refused is
offered again by its id, as long as the events are being read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asr_ws import messages
from asr_ws.client.address import DEFAULT_URL, ConnectionLost
from asr_ws.client.connection import retry_delay_s
from asr_ws.client.session import start_message
from asr_ws.client.sources import AudioSource, open_source
from asr_ws.client.wire import Wire, open_wire

Event = messages.ServerEvent | messages.Unknown


@asynccontextmanager
async def connect(
    url: str = DEFAULT_URL, *, token: str | None = None, **start_fields: Any
) -> AsyncIterator[BareSession]:
    """As `asr_ws.client.connect`, for one connection."""
    start = start_message(token, start_fields)
    session = BareSession(await open_wire(url, start), start)
    try:
        yield session
    finally:
        await session.close()


class BareSession:
    """Make it with `connect`."""

    def __init__(self, wire: Wire, start: messages.Start) -> None:
        self.ready = wire.ready
        self._wire = wire
        self._start = start
        self._retries: dict[str, asyncio.Task[None]] = {}  # of the utterances refused and not yet settled, by id

    async def send(self, data: bytes) -> None:
        """Audio in the declared format, at most 256 KiB, cut anywhere."""
        await self._begin()
        await self._wire.send(data)

    async def commit(self, id: str | None = None) -> None:
        await self._send(messages.Commit(id=id))

    async def cancel(self, utterance: str | None = None) -> None:
        await self._send(messages.Cancel(utterance=utterance))

    async def ping(self, id: str | int | None = None) -> None:
        await self._send(messages.Ping(id=id))

    async def end(self) -> None:
        await self._send(messages.End())

    async def events(self) -> AsyncIterator[Event]:
        """Everything the server says, until `done` or a fatal error's close.

        Raises:
            ConnectionLost: the connection ended otherwise.
        """
        fatal = False
        while True:
            try:
                event = await self._wire.receive()
            except ConnectionLost:
                if fatal:
                    return
                raise
            self._plan(event)
            yield event
            fatal = fatal or (isinstance(event, messages.Error) and event.fatal)
            if isinstance(event, messages.Done):
                return

    async def stream(self, source: AudioSource, *, realtime: bool = False) -> AsyncIterator[Event]:
        """Send all, then `end`, whatever the server says meanwhile; the events, until `done`."""
        sender = asyncio.create_task(
            self._send_all(open_source(source, self._start.audio).chunks, realtime), name="bare sender"
        )
        try:
            async for event in self.events():
                yield event
        finally:
            sender.cancel()
            await asyncio.wait([sender])

    async def close(self) -> None:
        """At once; what has no outcome yet is dropped."""
        for task in self._retries.values():
            task.cancel()
        await self._wire.close()

    async def _send_all(self, chunks: AsyncIterator[bytes], realtime: bool) -> None:
        loop = asyncio.get_running_loop()
        began, sent_s = loop.time(), 0.0
        with contextlib.suppress(ConnectionLost):  # the reader sees it too, with what the server said before
            async for chunk in chunks:
                sent_s += len(chunk) / self._start.audio.bytes_per_s
                if realtime:
                    await asyncio.sleep(began + sent_s - loop.time())
                await self.send(chunk)
            await self.end()

    async def _begin(self) -> None:
        """`start`, once, before the first thing that needs it."""
        if not self._wire.is_introduced:
            self._wire.is_introduced = True
            await self._wire.send(self._start)

    async def _send(self, message: messages.ClientMessage) -> None:
        await self._begin()
        await self._wire.send(message)

    def _plan(self, event: Event) -> None:
        """The retry of what was refused and is held."""
        match event:
            case messages.Accepted(utterance=id) | messages.Dropped(utterance=id):
                if task := self._retries.pop(id, None):
                    task.cancel()
            case messages.Busy(utterance=str(id)) | messages.Retry(utterance=str(id)) if event.held_ms:
                self._retries[id] = asyncio.create_task(self._retry(id, retry_delay_s(event, 0)), name=f"retry {id}")

    async def _retry(self, utterance: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        with contextlib.suppress(ConnectionLost):  # the reader sees it too
            await self._send(messages.RetryUtterance(utterance=utterance))
