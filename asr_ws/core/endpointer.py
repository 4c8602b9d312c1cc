"""Where an utterance begins and ends.

Two-threshold hysteresis after Silero's VADIterator: a window at ``threshold`` or above starts speech, one at
``threshold - 0.15`` or above continues it. An utterance runs from its pre-roll (never into the utterance before it)
to a short tail after its last speech, or to the commit, cut or end if that comes first.

    QUIET ──speech──► STARTING ──min_speech──► SPEAKING ──silence──► QUIET
              ◄──silence──┘                        └──max_utterance──► cut; the rest is STARTING again

Windows lie at absolute multiples of 512 samples, whatever was committed or cut between, and nothing depends on how
the stream was chunked. Manual mode runs no detector: utterances follow one another without a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from asr_ws.core.audio import SampleBuffer
from asr_ws.core.types import SAMPLE_RATE, Detector, EndpointReason, Samples

FRAME = 512  # samples, 32 ms: the only window Silero takes at 16 kHz
HYSTERESIS = 0.15  # Silero's own distance between starting and continuing speech
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
        self._buffer = SampleBuffer()
        self._state = _State.QUIET
        self._window_end = 0  # detection has come this far
        self._released = 0  # everything before belongs to an earlier utterance, or was dropped
        self._start = 0  # of the utterance being heard; means nothing while QUIET
        self._last_speech = 0
        self._spoken = 0  # samples of speech since the onset
        self._probabilities: list[float] = []  # of the windows since the onset

    @property
    def heard(self) -> tuple[int, int] | None:
        """Start and end so far of the utterance being heard, once it has had its Onset."""
        return (self._start, self._buffer.end) if self._state is _State.SPEAKING else None

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
            windows = self._buffer.view(self._window_end, self._window_end + n_windows * FRAME)
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
        self._released = self._buffer.end
        self._state = _State.QUIET
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
        threshold = rules.threshold if self._state is _State.QUIET else rules.threshold - HYSTERESIS
        if probability >= threshold:
            if self._state is _State.QUIET:
                self._state = _State.STARTING
                self._start = max(self._window_end - FRAME - rules.prefix, self._released)
                self._spoken = 0
                self._probabilities.clear()
            self._spoken += FRAME
            self._last_speech = self._window_end
        if self._state is _State.QUIET:
            return
        self._probabilities.append(probability)
        self._promote(events)
        if self._window_end - self._last_speech >= rules.silence:
            if self._state is _State.SPEAKING:
                self._emit(self._last_speech + self._tail, EndpointReason.SILENCE, events)
            self._state = _State.QUIET
        elif self._window_end + FRAME > self._start + rules.max_utterance:
            self._cut(events)

    def _promote(self, events: list[EndpointEvent], *, at_once: bool = False) -> None:
        if self._state is _State.STARTING and (at_once or self._spoken >= self._rules.min_speech):
            self._state = _State.SPEAKING
            events.append(Onset(self._start))

    def _cut(self, events: list[EndpointEvent]) -> None:
        """The next window would make the utterance too long: cut where it is least like speech.

        The latest of equals, so that the utterance is as long as it may be; never in its first half, so that
        cuts of short utterances do not fall into their own pre-roll.
        """
        self._promote(events, at_once=True)
        recent = self._probabilities[-(min(CUT_SEARCH, self._rules.max_utterance // 2) // FRAME) :]
        n_after = recent[::-1].index(min(recent))
        cut = self._window_end - n_after * FRAME
        speech = [p >= self._rules.threshold - HYSTERESIS for p in self._probabilities]
        if any(speech[len(speech) - n_after :]):
            self._emit(cut, EndpointReason.MAX_LENGTH, events)
            # What follows was speech by the lower threshold, so it goes on as speech.
            self._state = _State.STARTING
            self._start = cut
            self._probabilities = self._probabilities[len(speech) - n_after :]
            self._spoken = FRAME * sum(speech[len(speech) - n_after :])
            self._promote(events)
        else:
            self._emit(min(cut, self._last_speech + self._tail), EndpointReason.MAX_LENGTH, events)

    def _close(self, reason: EndpointReason) -> list[EndpointEvent]:
        events: list[EndpointEvent] = []
        if self._state is not _State.QUIET:
            self._promote(events, at_once=True)
            end = self._buffer.end
            self._emit(end if self._rules.manual else min(end, self._last_speech + self._tail), reason, events)
            self._forget()
        return events

    def _emit(self, end: int, reason: EndpointReason, events: list[EndpointEvent]) -> None:
        events.append(Endpoint(self._start, end, self._buffer.view(self._start, end), reason))
        self._released = end
        self._state = _State.QUIET

    @property
    def _tail(self) -> int:
        return min(TAIL, self._rules.silence)

    def _forget(self) -> None:
        """Keep what is being heard, the pre-roll of what may come, and the window not yet full."""
        if self._state is not _State.QUIET:
            keep = self._start
        elif self._rules.manual:
            keep = self._released
        else:
            keep = min(self._window_end, max(self._window_end - self._rules.prefix, self._released))
        self._buffer.discard_before(keep)
