"""The client without ``async``: the same session, its loop in a thread of its own.

with connect("ws://127.0.0.1:8765/v1/stream", language="en") as session:
    for event in session.stream("speech.wav"):
        if isinstance(event, Final):
            print(event.text)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from concurrent.futures import CancelledError, wait
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from asr_ws import messages
from asr_ws.client import session as asynchronous
from asr_ws.client.address import DEFAULT_URL
from asr_ws.client.events import Event
from asr_ws.client.session import LEAVE_S, LEFT, RECONNECTS, RING_S
from asr_ws.client.sources import AudioSource
from asr_ws.errors import ClientError

TURN_S = 0.5  # of waiting for what another thread does, at a time: Windows lets no Ctrl-C through meanwhile

T = TypeVar("T")


@contextmanager
def connect(
    url: str = DEFAULT_URL,
    *,
    token: str | None = None,
    ring_s: float = RING_S,
    reconnects: int = RECONNECTS,
    **start_fields: Any,
) -> Iterator[Session]:
    """As `asr_ws.client.connect`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_turn, args=[loop], name="asr_ws client", daemon=True)
    try:
        thread.start()
        opened = asynchronous.connect(url, token=token, ring_s=ring_s, reconnects=reconnects, **start_fields)
        session = Session(_run(loop, opened.__aenter__()), loop)
        try:
            yield session
        finally:
            _run(loop, opened.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        while thread.is_alive():
            thread.join(TURN_S)


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Until it is stopped; its end is no other thread's, whom Ctrl-C may reach meanwhile."""
    is_stopped = False
    while not is_stopped:
        with suppress(SystemExit, KeyboardInterrupt):  # a source's: the loop lets them out, and goes on for who waits
            loop.run_forever()
            is_stopped = True
    loop.run_until_complete(_finish(loop))
    loop.close()


async def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """What other threads wait for ends first: a generator that runs cannot be closed."""
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=LEAVE_S)
    await loop.shutdown_asyncgens()


def _run(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Raises: ClientError: the block was left, by another thread maybe."""
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError as error:  # the loop is closed
        coroutine.close()
        raise ClientError(*LEFT) from error
    try:
        # Not for ever at a time: a loop that ends forgets what came last.
        while not wait([future], timeout=TURN_S).done:
            if loop.is_closed():
                coroutine.close()
                raise ClientError(*LEFT)
        return future.result()
    except CancelledError as error:
        raise ClientError(*LEFT) from error
    except BaseException:  # Ctrl-C, while it waits
        future.cancel()
        raise


class Session:
    """As `asr_ws.client.Session`. Make it with `connect`; another thread may send while this one reads."""

    def __init__(self, session: asynchronous.Session, loop: asyncio.AbstractEventLoop) -> None:
        self._session = session
        self._loop = loop

    @property
    def ready(self) -> messages.Ready:
        return self._session.ready

    @property
    def behind_s(self) -> float:
        return self._session.behind_s

    def send(self, data: bytes) -> None:
        _run(self._loop, self._session.send(data))

    def commit(self, id: str | None = None) -> None:
        _run(self._loop, self._session.commit(id))

    def cancel(self, utterance: str | None = None) -> None:
        _run(self._loop, self._session.cancel(utterance))

    def end(self) -> None:
        _run(self._loop, self._session.end())

    def close(self) -> None:
        _run(self._loop, self._session.close())

    def events(self) -> Iterator[Event]:
        return self._each(self._session.events())

    def stream(self, source: AudioSource, *, realtime: bool = False) -> Iterator[Event]:
        return self._each(self._session.stream(source, realtime=realtime))

    def _each(self, events: AsyncGenerator[Event, None]) -> Iterator[Event]:
        one_at_a_time = asyncio.Lock()  # what Ctrl-C has cancelled is not over at once

        async def following() -> Event | None:
            async with one_at_a_time:
                return await anext(events, None)

        async def closing() -> None:
            async with one_at_a_time:
                await events.aclose()

        try:
            while (event := _run(self._loop, following())) is not None:
                yield event
        finally:
            if not self._loop.is_closed():  # which closes what is open
                _run(self._loop, closing())
