"""Where every frame of a session's audio went, counted where its fate is decided.

Input sample frames at the declared rate, so that no resampling can hide a loss. Utterances are claimed in order;
what lies between two of them is silence; an utterance's frames are booked by its outcome; invalid frames are refused
on arrival and belong to neither. ``lost`` is what nobody booked: anything but 0 is a bug.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from asr_ws.core.types import SAMPLE_RATE

_MARKS_PER_S = 100  # so finely is it known where invalid frames lie, and so much does a hostile stream cost


@dataclass(slots=True)
class Ledger:
    """Frames, all of them; `as_ms` rounds so that the parts add up."""

    sample_rate: int
    received: int = 0
    decoded: int = 0
    silence: int = 0
    refused: int = 0
    _claimed: int = 0  # frames before this one are silence, or belong to an utterance
    _invalid: int = 0
    _marks: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])  # frames received, invalid ones of them

    def receive(self, n_frames: int, n_invalid: int = 0) -> None:
        if n_invalid:
            self._mark()
        self.received += n_frames
        self.refused += n_invalid
        self._invalid += n_invalid
        if n_invalid:
            self._mark()

    def claim(self, start_sample: int, end_sample: int) -> int:
        """An utterance takes these samples (16 kHz). Returns: its valid frames, to be booked by its outcome."""
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
        total, marks = 0, [0]
        for n_frames in (self.decoded, self.silence, self.refused, self.lost):
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
        n_invalid = self._invalid_before(self._claimed) - self._invalid_before(start)
        while len(self._marks) > 1 and self._marks[1][0] <= self._claimed:
            del self._marks[0]
        return self._claimed - start - n_invalid

    def _mark(self) -> None:
        """Remember how many are invalid up to here; of marks that lie close together the last."""
        if len(self._marks) > 2 and (self.received - self._marks[-2][0]) * _MARKS_PER_S < self.sample_rate:
            del self._marks[-1]
        self._marks.append((self.received, self._invalid))

    def _invalid_before(self, frame: int) -> int:
        """Between two marks evenly: whatever the position, the differences add up."""
        for (a, before), (b, after) in pairwise([*self._marks, (self.received, self._invalid)]):
            if frame < b:
                return before + (after - before) * max(0, frame - a) // (b - a)
        return self._invalid
