"""Files that are read again when they change: tokens, and certificates.

Their content is compared, every second: times of change are coarse, and a mounted secret changes by a link above it.
It is believed when two looks agree, since it may be half written, and of two files one may come first; and it is used
if a third, after it was made something of, agrees too, since OpenSSL reads certificates by itself. What cannot be used
is said, and the last good one stays in force.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from asr_ws.errors import UsageError

LOOK_EVERY_S: Final = 1.0
SLOW_S: Final = 10.0  # for a look, when it is said
MAX_FILE_BYTES: Final = 1 << 20
AT_ONCE: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # not waiting for a pipe's other end

T = TypeVar("T")
R = TypeVar("R")
Contents = Sequence[bytes]


class Reloaded(Generic[T]):
    """Args:
        files: that belong together.
        make: what they say, of their contents. Raises UsageError: they cannot be used.
    Attributes:
        value: what it made of them at first.
    Raises:
        UsageError: a file cannot be read, or not be used.
    """

    def __init__(self, files: Sequence[Path], make: Callable[[Contents], T]) -> None:
        self._files = files
        self._make = make
        self._believed: Contents | str = [read(file) for file in files]
        self._before: Contents | str = self._believed  # found by the look before
        self.value = make(self._believed)

    async def run(self, use: Callable[[T], None]) -> None:
        """Until cancelled; ``use`` is called with what the changed files say."""
        loop = asyncio.get_running_loop()
        log = structlog.get_logger().bind(files=[str(file) for file in self._files])
        in_force = "the last good one"
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            slow = loop.call_later(SLOW_S, partial(log.error, "file.not_answering", after_s=SLOW_S, in_force=in_force))
            try:
                if (made := await _aside(self._look)) is not None:
                    use(made)
                    log.info("file.reloaded")
            except UsageError as error:
                log.error("file.not_reloaded", message=error.message, hint=error.hint, in_force=in_force)
            except Exception:
                # The boundary of a look: whatever is wrong with a file, the server goes on with the last good one.
                log.exception("file.not_reloaded")
            finally:
                slow.cancel()

    def _look(self) -> T | None:
        """Returns: what the files say, if that is new. Raises: what `_make` does, once."""
        found = self._contents()
        agrees, self._before = found == self._before, found
        if not agrees or found == self._believed:
            return None
        made: T | None = None
        wrong: Exception | None = None
        try:
            if isinstance(found, str):
                raise UsageError(found)
            made = self._make(found)
        except Exception as error:  # raised below, if it is of these contents
            wrong = error
        self._before = self._contents()
        if self._before != found:
            return None
        self._believed = found
        if wrong is not None:
            raise wrong
        return made

    def _contents(self) -> Contents | str:
        """Or why there are none."""
        try:
            return [read(file) for file in self._files]
        except UsageError as error:
            return error.message


async def _aside(work: Callable[[], R]) -> R:
    """In a thread that no end waits for, since a disk may not answer for ever."""
    done = Future[R]()
    done.set_running_or_notify_cancel()  # so that a cancelled wait leaves it alone

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="files", daemon=True).start()
    return await asyncio.wrap_future(done)


def read(file: Path) -> bytes:
    """All of a regular file. Raises: UsageError: it is none, cannot be read, or is too long to be what it should be."""
    try:
        fd = os.open(file, os.O_RDONLY | AT_ONCE)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise UsageError(f"{file} is no regular file")
        with open(fd, "rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1) or b""  # None: it has nothing to say now, such as a device
    except (OSError, ValueError) as error:  # a NUL in its name
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read {file}: {reason}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{file} is longer than {MAX_FILE_BYTES >> 10} KiB")
    return content
