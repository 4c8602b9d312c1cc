"""Where every frame of a session's audio went, counted where its fate is decided.

Input sample frames at the declared rate, so that no resampling can hide a loss. Utterances are claimed in order;
what lies between two of them is silence; an utterance's frames are booked by its outcome. ``lost`` is what nobody
booked: anything but 0 is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from asr_ws.core.types import SAMPLE_RATE


@dataclass(slots=True)
class Ledger:
    """Frames, all of them; `as_ms` rounds so that the parts add up."""

    sample_rate: int
    received: int = 0
    decoded: int = 0
    silence: int = 0
    refused: int = 0
    _claimed: int = 0  # frames before this one are silence, or belong to an utterance
    _invalid: list[tuple[int, int]] = field(default_factory=list)  # booked as refused on arrival

    def receive(self, n_frames: int, *, invalid: bool = False) -> None:
        if invalid:
            self.refused += n_frames
            start = self.received
            if self._invalid and self._invalid[-1][1] == start:  # a stream of them is one span, however long
                start = self._invalid.pop()[0]
            self._invalid.append((start, self.received + n_frames))
        self.received += n_frames

    def claim(self, start_sample: int, end_sample: int) -> int:
        """An utterance takes these samples (16 kHz). Returns: its frames, to be booked by its outcome."""
        self.pass_over(start_sample)
        return self._claim(self._frame(end_sample))

    def pass_over(self, sample: int) -> None:
        """No utterance will take what lies before this sample (16 kHz) and is not claimed yet: it was silence."""
        self.silence += self._claim(self._frame(sample))

    def finish(self) -> None:
        """No more audio, no more utterances: the rest was silence."""
        self.silence += self._claim(self.received)

    @property
    def lost(self) -> int:
        return self.received - self.decoded - self.silence - self.refused

    def as_ms(self) -> dict[str, int]:
        ends = [0, self.decoded, self.silence, self.refused, self.lost]
        total, marks = 0, []
        for n_frames in ends:
            total += n_frames
            marks.append(round(total * 1000 / self.sample_rate))
        parts = [after - before for before, after in pairwise(marks)]
        names = ("decoded_ms", "silence_ms", "refused_ms", "lost_ms")
        return {"received_ms": marks[-1], **dict(zip(names, parts, strict=True))}

    def _frame(self, sample: int) -> int:
        return min(self.received, (sample * self.sample_rate + SAMPLE_RATE // 2) // SAMPLE_RATE)

    def _claim(self, end: int) -> int:
        """Claim up to this frame. Returns: how many of these frames are valid."""
        start, self._claimed = self._claimed, max(self._claimed, end)
        invalid = sum(max(0, min(self._claimed, b) - max(start, a)) for a, b in self._invalid)
        self._invalid = [span for span in self._invalid if span[1] > self._claimed]
        return self._claimed - start - invalid
