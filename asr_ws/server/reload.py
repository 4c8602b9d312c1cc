"""Files that are read again when they change: tokens, and certificates.

Their content is compared, every second: times of change are coarse, and a mounted secret changes by a link above it.
It is believed when two looks agree, since it may be half written, and of two files one may come first. What cannot be
used is said, and the last good one stays in force.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from asr_ws.errors import UsageError

LOOK_EVERY_S: Final = 1.0
MAX_FILE_BYTES: Final = 1 << 20
AT_ONCE: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # not waiting for a pipe's other end

T = TypeVar("T")
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
        self.value = make(self._believed)

    async def run(self, use: Callable[[T], None]) -> None:
        """Until cancelled; ``use`` is called with what the changed files say."""
        log = structlog.get_logger().bind(files=[str(file) for file in self._files])
        before = self._believed
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                found = await asyncio.to_thread(self._look)
                agrees, before = found == before, found
                if not agrees or found == self._believed:
                    continue
                self._believed = found
                if isinstance(found, str):
                    raise UsageError(found)
                use(await asyncio.to_thread(self._make, found))
                log.info("file.reloaded")
            except UsageError as error:
                log.error("file.not_reloaded", message=error.message, hint=error.hint, in_force="the last good one")
            except Exception:
                # The boundary of a look: whatever is wrong with a file, the server goes on with the last good one.
                log.exception("file.not_reloaded")

    def _look(self) -> Contents | str:
        """Returns: the contents, or why there are none."""
        try:
            return [read(file) for file in self._files]
        except UsageError as error:
            return error.message


def read(file: Path) -> bytes:
    """All of a regular file. Raises: UsageError: it is none, cannot be read, or is too long to be what it should be."""
    try:
        fd = os.open(file, os.O_RDONLY | AT_ONCE)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise UsageError(f"{file} is no regular file")
        with open(fd, "rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # a NUL in its name
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read {file}: {reason}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{file} is longer than {MAX_FILE_BYTES >> 10} KiB")
    return content
