"""The audio of one recording: what is still kept of it, and what of it has its outcome. No clock, no socket.

Positions are sample frames from the recording's first one, ranges are ``[start, end)``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

Range = tuple[int, int]

SMALL_BYTES = 4096  # smaller pieces than that are joined, or each would cost more than it holds


class Ranges:
    """Disjoint ranges in order."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        apart = [each for each in self._ranges if each[1] < start or each[0] > end]
        touched = [each for each in self._ranges if not (each[1] < start or each[0] > end)]
        merged = min([start, *(each[0] for each in touched)]), max([end, *(each[1] for each in touched)])
        self._ranges = sorted([*apart, merged])

    def gaps(self, start: int, end: int) -> list[Range]:
        """What of ``[start, end)`` is in none of them."""
        gaps = []
        for since, until in self._ranges:
            if since >= end:
                break
            if since > start:
                gaps.append((start, since))
            start = max(start, until)
        return [*gaps, (start, end)] if start < end else gaps


class AudioRing:
    """Args:
    capacity: frames, of which older ones make room for newer ones.
    frame_bytes: of one sample frame, all channels.
    """

    def __init__(self, capacity: int, frame_bytes: int) -> None:
        self.capacity = capacity
        self.frame_bytes = frame_bytes
        self.end = 0  # of what was appended
        self.rest = b""  # the beginning of a frame of which the end has not come
        self._chunks: list[bytes] = []  # one after the other without holes
        self._starts: list[int] = []  # of each
        self._settled = Ranges()

    @property
    def start(self) -> int:
        """The oldest frame that is kept."""
        return self._starts[0] if self._starts else self.end

    def append(self, data: bytes) -> None:
        """Bytes that were cut anywhere."""
        data = self.rest + data
        n_frames = len(data) // self.frame_bytes
        self.rest = data[n_frames * self.frame_bytes :]
        if not n_frames:
            return
        data = data[: n_frames * self.frame_bytes]
        if self._chunks and len(self._chunks[-1]) < SMALL_BYTES:
            self._chunks[-1] += data
        else:
            self._chunks.append(data)
            self._starts.append(self.end)
        self.end += n_frames
        n_old = bisect_right(self._starts, self.end - self.capacity, 1) - 1  # the last one stays in any case
        del self._chunks[:n_old], self._starts[:n_old]

    def settle(self, start: int, end: int) -> int:
        """This has its outcome: it is not to be sent again. Returns: how much of it had none before."""
        n_new = sum(until - since for since, until in self._settled.gaps(start, end))
        self._settled.add(start, end)
        return n_new

    def unsettled(self, start: int, end: int) -> list[Range]:
        """What of it has none."""
        return self._settled.gaps(start, end)

    def read(self, start: int, end: int) -> bytes:
        """What is kept of it.

        Args:
            start: of what is kept.
        """
        first = max(bisect_right(self._starts, start) - 1, 0)
        last = bisect_right(self._starts, end - 1)
        data = b"".join(self._chunks[first:last])
        at = (self._starts[first] if self._starts else 0) * self.frame_bytes
        return data[start * self.frame_bytes - at : end * self.frame_bytes - at]
