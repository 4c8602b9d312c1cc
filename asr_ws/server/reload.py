"""Files that are read again when they change: tokens, and certificates.

Their content is compared, every second: times of change are coarse, and a mounted secret changes by a link above it.
What cannot be used is said, and the last good one stays in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from asr_ws.errors import UsageError

LOOK_EVERY_S: Final = 1.0


class Reloaded:
    """Args:
    files: that belong together.
    use: called with them changed. Raises UsageError: they cannot be used.
    """

    def __init__(self, files: Sequence[Path], use: Callable[[], None]) -> None:
        self._files = files
        self._use = use
        self._seen = self._contents()

    async def run(self) -> None:
        """Until cancelled."""
        log = structlog.get_logger()
        names = [str(file) for file in self._files]
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if (contents := await asyncio.to_thread(self._contents)) == self._seen:
                continue
            self._seen = contents
            try:
                self._use()
                log.info("file.reloaded", files=names)
            except UsageError as error:
                log.error("file.not_reloaded", files=names, message=error.message, hint=error.hint)

    def _contents(self) -> list[bytes | None]:
        return [_read(file) for file in self._files]


def _read(file: Path) -> bytes | None:
    with suppress(OSError):
        return file.read_bytes() if file.is_file() else None  # a pipe would keep this thread, and the end, waiting
    return None
