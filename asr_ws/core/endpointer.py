"""Where an utterance begins and ends.

Two-threshold hysteresis after Silero's VADIterator: a window at ``threshold`` or above starts speech, one at
``threshold - 0.15`` or above continues it. An utterance runs from its pre-roll (never into the utterance before it)
to a short tail after its last speech, or to the commit, cut or end if that comes first.

    QUIET ──speech──► STARTING ──min_speech──► SPEAKING ──silence──► QUIET
              ◄──silence──┘                        └──max_utterance──► cut; the rest is STARTING again,
                                                                       or SPEAKING where no pause was found

Nothing is longer than ``max_utterance``: before its onset an utterance gives up its beginning instead, the pre-roll
first. Speech that a cut runs through goes on after it, by the lower threshold and without lasting ``min_speech`` anew.
Windows lie at absolute multiples of 512 samples, whatever was committed or cut between, and nothing depends on how
the stream was chunked. Manual mode runs no detector: utterances follow one another without a gap.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from itertools import takewhile

from asr_ws.core.audio import SampleBuffer
from asr_ws.core.types import SAMPLE_RATE, Detector, EndpointReason, Samples

FRAME = 512  # samples, 32 ms: the only window Silero takes at 16 kHz
HYSTERESIS = 0.15  # Silero's own distance between starting and continuing speech
LEAST_LOWER = 0.01  # Silero's own floor of the lower threshold: at 0 speech would never end
TAIL = SAMPLE_RATE * 200 // 1000  # samples kept after the last speech: word ends are softer than the detector
CUT_SEARCH = SAMPLE_RATE * 5  # samples before a forced cut among which the least speech-like window is sought


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """One session's choice; lengths in samples."""

    silence: int
    prefix: int
    min_speech: int
    max_utterance: int
    threshold: float
    manual: bool = False


@dataclass(frozen=True, slots=True)
class Onset:
    """Speech has lasted ``min_speech``: an utterance is being heard."""

    start_sample: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An utterance ended; ``samples`` are exactly ``start_sample..end_sample``."""

    start_sample: int
    end_sample: int
    samples: Samples
    reason: EndpointReason


EndpointEvent = Onset | Endpoint


@dataclass(frozen=True, slots=True)
class Spoken:
    """The utterance being heard, as far as it has come: ``start_sample..end_sample`` is what `commit` would end now."""

    start_sample: int
    end_sample: int
    speech: int  # samples from its first speech to its last
    pausing: bool  # the latest window is no speech
    complete: bool  # its tail is there: `end_sample` stays unless speech goes on


class _State(Enum):
    QUIET = auto()
    STARTING = auto()
    SPEAKING = auto()


class Endpointer:
    """Cuts one session's audio into utterances.

    Args:
        detector: the session's own, or None in manual mode.
    """

    def __init__(self, rules: EndpointRules, detector: Detector | None) -> None:
        assert rules.manual or detector is not None
        self._rules = rules
        self._detector = detector
        self._lower = max(rules.threshold - HYSTERESIS, LEAST_LOWER)
        self._tail = min(TAIL, rules.silence)
        # Its windows, and one that a commit cuts, always fit before the onset, also where both are 1 s.
        self._min_speech = min(rules.min_speech, rules.max_utterance - 2 * FRAME)
        self._buffer = SampleBuffer()
        self._state = _State.QUIET
        self._window_end = 0  # detection has come this far
        self._released = 0  # everything before belongs to an earlier utterance, or was dropped
        self._start = 0  # of the utterance being heard; means nothing while QUIET
        self._first_speech = 0
        self._last_speech = 0
        self._spoken = 0  # samples of speech since its beginning; while QUIET, more than 0 means cut off just now
        # Of the utterance's last windows, after which it may be cut.
        self._probabilities = deque[float](maxlen=min(CUT_SEARCH, rules.max_utterance // 2) // FRAME)

    @property
    def heard(self) -> tuple[int, int] | None:
        """Start and end so far of the utterance being heard, once it has had its Onset."""
        return (self._start, self._buffer.end) if self._state is _State.SPEAKING else None

    @property
    def spoken(self) -> Spoken | None:
        """The utterance being heard, once it has had its Onset."""
        if self._state is not _State.SPEAKING:
            return None
        if self._rules.manual:
            return Spoken(self._start, self._buffer.end, self._buffer.end - self._start, False, False)
        pause = self._window_end - self._last_speech
        return Spoken(
            self._start,
            self._commit_end,
            speech=self._last_speech - self._first_speech,
            pausing=pause > 0,
            complete=pause >= self._tail,
        )

    @property
    def end(self) -> int:
        """So many samples have come."""
        return self._buffer.end

    @property
    def tail(self) -> int:
        """So many samples after the last speech belong to an utterance that ends by silence."""
        return self._tail

    def copy(self, start: int, end: int) -> Samples:
        """Samples of the utterance being heard."""
        return self._buffer.copy(start, end)

    @property
    def undecided(self) -> int:
        """No utterance to come begins before this sample."""
        return self._buffer.start

    def feed(self, samples: Samples) -> list[EndpointEvent]:
        """Advance; the events do not depend on how the stream was cut.

        Args:
            samples: shape (n,), n >= 0, mono, 16 kHz, in [-1, 1].
        Returns:
            What began and ended inside ``samples``, oldest first; usually empty.
        """
        events: list[EndpointEvent] = []
        self._buffer.append(samples)
        if self._rules.manual:
            self._advance_manual(events)
        elif n_windows := (self._buffer.end - self._window_end) // FRAME:
            assert self._detector is not None
            windows = self._buffer.copy(self._window_end, self._window_end + n_windows * FRAME)
            for probability in self._detector.probabilities(windows.reshape(n_windows, FRAME)):
                self._window_end += FRAME
                self._advance(float(probability), events)
        self._forget()
        return events

    def commit(self) -> list[EndpointEvent]:
        """End the utterance here, however short; empty when nothing is being heard."""
        return self._close(EndpointReason.COMMIT)

    def finish(self) -> list[EndpointEvent]:
        """The stream is over: end what is being heard. Speech below ``min_speech`` stays silence."""
        return [] if self._state is _State.STARTING else self._close(EndpointReason.END)

    def drop(self) -> None:
        """Forget what is being heard and start anew at this sample."""
        if self._detector is not None:
            self._detector.reset()
        self._released = self._buffer.end
        self._state, self._spoken = _State.QUIET, 0
        self._forget()

    def _advance_manual(self, events: list[EndpointEvent]) -> None:
        while self._buffer.end > self._released:
            if self._state is _State.QUIET:
                self._state, self._start = _State.SPEAKING, self._released
                events.append(Onset(self._start))
            if self._buffer.end - self._start < self._rules.max_utterance:
                break
            self._emit(self._start + self._rules.max_utterance, EndpointReason.MAX_LENGTH, events)

    def _advance(self, probability: float, events: list[EndpointEvent]) -> None:
        """One window, which ends at ``_window_end``, through the state machine."""
        rules = self._rules
        if probability >= (self._lower if self._spoken else rules.threshold):
            if self._state is _State.QUIET:
                self._state = _State.STARTING
                self._first_speech = max(self._window_end - FRAME, self._released)
                self._start = max(self._first_speech - rules.prefix, self._released)
                self._probabilities.clear()
            self._spoken += min(FRAME, self._window_end - self._released)  # a commit or drop may have split the window
            self._last_speech = self._window_end
        elif self._state is _State.QUIET:
            self._spoken = 0
            return
        self._probabilities.append(probability)
        # No later than here the next window, or a commit inside it, must find room.
        earliest = self._window_end + FRAME - rules.max_utterance
        if self._state is _State.STARTING:
            self._start = max(self._start, earliest)
            self._promote(events)
        if self._window_end - self._last_speech >= rules.silence:
            if self._state is _State.SPEAKING:
                self._emit(self._last_speech + self._tail, EndpointReason.SILENCE, events)
            self._state, self._spoken = _State.QUIET, 0
        elif self._start < earliest:
            self._cut(events)

    def _promote(self, events: list[EndpointEvent], *, at_once: bool = False) -> None:
        if self._state is _State.STARTING and (at_once or self._spoken >= self._min_speech):
            self._state = _State.SPEAKING
            events.append(Onset(self._start))

    def _cut(self, events: list[EndpointEvent]) -> None:
        """The next window would make the utterance too long: cut where it is least like speech.

        The latest of equals, so that the utterance is as long as it may be; never in its first half, so that
        cuts of short utterances do not fall into their own pre-roll.
        """
        least = min(self._probabilities)
        rest = list(takewhile(least.__ne__, reversed(self._probabilities)))
        spoken = FRAME * sum(probability >= self._lower for probability in rest)
        cut = self._window_end - FRAME * len(rest)
        self._emit(min(cut, self._last_speech + self._tail), EndpointReason.MAX_LENGTH, events)
        self._spoken = spoken + (self._min_speech if least >= self._lower else 0)
        if spoken:
            self._state, self._start, self._first_speech = _State.STARTING, cut, cut
            self._promote(events)

    def _close(self, reason: EndpointReason) -> list[EndpointEvent]:
        events: list[EndpointEvent] = []
        if self._state is not _State.QUIET:
            self._promote(events, at_once=True)
            self._emit(self._commit_end, reason, events)
            self._forget()
        return events

    @property
    def _commit_end(self) -> int:
        end = self._buffer.end
        return end if self._rules.manual else min(end, self._last_speech + self._tail)

    def _emit(self, end: int, reason: EndpointReason, events: list[EndpointEvent]) -> None:
        events.append(Endpoint(self._start, end, self._buffer.copy(self._start, end), reason))
        self._released = end
        self._state, self._spoken = _State.QUIET, 0

    def _forget(self) -> None:
        """Keep what is being heard, the pre-roll of what may come, and the window not yet full."""
        if self._state is not _State.QUIET:
            keep = self._start
        elif self._rules.manual:
            keep = self._released
        else:
            keep = self._window_end - self._rules.prefix
        self._buffer.discard_before(keep)
