"""The one thread on which the server works with files and SQLite, so that a slow disk never holds up the event loop.

One, because SQLite and the folder have one writer anyway, and calls that follow each other need no lock. It is no
hidden room where utterances wait: nothing live passes through it, only uploads and jobs. Who comes by HTTP looks
whether it `is_full`, where `MAX_CALLS` wait, and uses `ask`, which waits no longer than `ASK_TIMEOUT_S`; whoever runs
the jobs, or cleans up after one of few uploads, uses `run`. Nor does the thread keep the process alive, since a disk
may not answer for ever.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import ParamSpec, TypeVar

import structlog

from asr_ws.errors import StorageError

P = ParamSpec("P")
T = TypeVar("T")

MAX_CALLS = 64  # that wait
ASK_TIMEOUT_S = 30.0  # longer than a disk takes to flush a large upload


class Disk:
    """Calls are made in the order of `run`, one at a time, from the start to `aclose`."""

    def __init__(self) -> None:
        self._calls = queue.SimpleQueue[Callable[[], None] | None]()
        self._closed = False
        self._ended = Future[None]()
        self._ended.set_running_or_notify_cancel()
        threading.Thread(target=self._serve, name="disk", daemon=True).start()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns or raises.

        Once called, it runs to its end, also if the awaiting task is cancelled before or meanwhile: then its result is
        dropped, and an error logged. So whoever is cancelled cleans up by a further call, which comes after that one:

            try:
                job = await disk.run(store.add, upload, ...)
            finally:
                await disk.run(upload.discard)  # does nothing to what was added

        Raises:
            StorageError: the disk is closed.
        """
        if self._closed:
            raise StorageError("storage_unavailable", "the server is stopping")
        done = Future[T]()
        done.set_running_or_notify_cancel()  # so that a cancelled wait leaves it alone
        self._calls.put(partial(_call, done, partial(function, *args, **kwargs)))
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            done.add_done_callback(_tell_error)
            raise

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for one of many, who does not wait for ever, and has looked whether it `is_full`.

        Raises:
            StorageError: also where this call took too long; it runs to its end all the same.
        """
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S) as deadline:
                return await self.run(function, *args, **kwargs)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise StorageError("storage_unavailable", f"the disk took more than {ASK_TIMEOUT_S:g} s") from None

    @property
    def is_full(self) -> bool:
        return self._calls.qsize() >= MAX_CALLS

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def aclose(self, timeout_s: float, last: Callable[[], object] = lambda: None) -> bool:
        """Take no more calls; await those that were made, and ``last``. Returns: whether that took no longer."""
        if not self._closed:
            self._closed = True
            done = Future[object]()
            done.add_done_callback(_tell_error)
            self._calls.put(partial(_call, done, last))
            self._calls.put(None)
        await asyncio.wait([asyncio.wrap_future(self._ended)], timeout=timeout_s)
        return self._ended.done()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
        self._ended.set_result(None)


def _call(done: Future[T], work: Callable[[], T]) -> None:
    try:
        result = work()
    except BaseException as error:  # whatever it is, who awaits it is told
        done.set_exception(error)
    else:
        done.set_result(result)


def _tell_error(done: Future[T]) -> None:
    """Of a call that nobody awaits any more."""
    if (error := done.exception()) is not None:
        structlog.get_logger().error("disk.call_failed", exc_info=error)
