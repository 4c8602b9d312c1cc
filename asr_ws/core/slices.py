"""Long audio cut at its pauses into slices, each decoded on its own behind what is spoken live.

Rules:

- Utterances end as a session's do that asked for nothing else. What is silence between them need not be decoded.
- Consecutive utterances go into one slice, from the first one's start to the last one's end, as long as that is no
  longer than `MAX_SLICE` and no gap in it is longer than `MAX_GAP`: a decode of 1 s costs half of one of 11 s, and
  the model hears what was said before.
- Nothing depends on how the audio was cut. A slice is there as soon as it is known that nothing more can join it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from asr_ws.core.audio import SampleBuffer
from asr_ws.core.endpointer import CUT_SEARCH, FRAME, Endpoint, Endpointer, EndpointEvent, EndpointRules
from asr_ws.core.files import MAX_SLICE
from asr_ws.core.types import SAMPLE_RATE, Detector, Samples

RULES = EndpointRules(  # the protocol's defaults
    silence=SAMPLE_RATE * 600 // 1000,
    prefix=SAMPLE_RATE * 300 // 1000,
    min_speech=SAMPLE_RATE * 150 // 1000,
    max_utterance=MAX_SLICE,
    threshold=0.5,
)
MAX_GAP = SAMPLE_RATE * 2  # samples: Whisper invents words in longer silence (3-5 s of it give "You")


@dataclass(frozen=True, slots=True)
class Slice:
    """``samples`` are exactly ``start_sample..end_sample``."""

    start_sample: int
    end_sample: int
    samples: Samples = field(compare=False, repr=False)


class Slicer:
    """Cuts one file's audio. It holds the slice that is not complete and an utterance more, some 35 s at most.

    Args:
        detector: the file's own.
    """

    def __init__(self, detector: Detector) -> None:
        self._endpointer = Endpointer(RULES, detector)
        self._buffer = SampleBuffer()
        self._open: tuple[int, int] | None = None  # the slice so far that the next utterance may join

    @property
    def end(self) -> int:
        """So many samples have come."""
        return self._buffer.end

    def feed(self, samples: Samples) -> list[Slice]:
        """Advance; the slices do not depend on how the audio was cut.

        Args:
            samples: shape (n,), n >= 0, mono, 16 kHz, in [-1, 1].
        Returns:
            Slices that are complete now, oldest first, without overlap; usually empty.
        """
        self._buffer.append(samples)
        slices = self._pack(self._endpointer.feed(samples))
        if not self._joins(*self._earliest):
            slices += self._close()
        self._buffer.discard_before(self._endpointer.undecided if self._open is None else self._open[0])
        return slices

    def finish(self) -> list[Slice]:
        """The file is over. Returns: the slices that are left, two at most."""
        return self._pack(self._endpointer.finish()) + self._close()

    def _pack(self, events: Iterable[EndpointEvent]) -> list[Slice]:
        slices: list[Slice] = []
        for event in events:
            if isinstance(event, Endpoint):
                if not self._joins(event.start_sample, event.end_sample):
                    slices += self._close()
                start = event.start_sample if self._open is None else self._open[0]
                self._open = (start, event.end_sample)
        return slices

    def _joins(self, start: int, end: int) -> bool:
        """Whether an utterance from ``start`` to ``end`` goes into the open slice, if there is one."""
        return self._open is None or (start - self._open[1] <= MAX_GAP and end - self._open[0] <= MAX_SLICE)

    @property
    def _earliest(self) -> tuple[int, int]:
        """The next utterance starts and ends no earlier than this."""
        if (spoken := self._endpointer.spoken) is None:
            return self._endpointer.undecided, self._endpointer.undecided
        # It may yet be cut behind what is heard now, but not before this.
        cut = spoken.start_sample + RULES.max_utterance - CUT_SEARCH - FRAME
        return spoken.start_sample, min(spoken.end_sample, cut)

    def _close(self) -> list[Slice]:
        if self._open is None:
            return []
        (start, end), self._open = self._open, None
        return [Slice(start, end, self._buffer.copy(start, end))]
