"""What a session has recorded, over all of its connections: the audio, the commits, and what became of it. Pure.

Utterances have ids of the recording's own, u1, u2 ..., since with each connection a server counts from 1 again. One
whose connection ended before its outcome is *interrupted*: what is heard again where it lies is the same utterance,
with the same id and the next attempt.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import pairwise
from typing import Literal

import msgspec

from asr_ws import messages
from asr_ws.client.events import Event, Gap
from asr_ws.client.ring import AudioRing, Range, Ranges

NEAR_MS = 20  # an utterance that is heard again may begin that much earlier: times are rounded, windows lie otherwise
SCRAP_MS = 100  # less than a syllable

DropReason = Literal["cancelled", "hold_expired", "evicted", "not_held"]


class Fate(Enum):
    DECODED = auto()
    REFUSED = auto()
    SILENCE = auto()


@dataclass(frozen=True, slots=True)
class Mark:
    """A commit: the utterance ends at that frame."""

    at: int
    id: str | None


@dataclass(slots=True, eq=False)
class Told:
    """An utterance without outcome, as its user knows it.

    Attributes:
        start, end: frames of the recording; the end is infinite until it is known.
        attempt: the last one, over all connections.
        is_admitted: whether that attempt has no outcome yet.
        stable: the text that was said not to change.
    """

    id: str
    start: int
    end: float = math.inf
    attempt: int = 0
    is_admitted: bool = False
    stable: str = ""
    commit: str | None = None
    is_cancelled: bool = False
    drop_reason: DropReason | None = None  # the server's, where it dropped it


@dataclass(slots=True)
class Recording:
    """Args:
    ring: its positions are the recording's.
    rate: frames a second.
    """

    ring: AudioRing
    rate: int
    marks: list[Mark] = field(default_factory=list)
    is_ending: bool = False  # no more audio will come
    n_connections: int = 0
    is_started: bool = False  # its user knows the settings in force
    interrupted: list[Told] = field(default_factory=list)  # in the order of the audio
    service: messages.State | None = None  # as it was told last
    _n_utterances: int = 0
    _n_frames: Counter[Fate] = field(default_factory=Counter)
    _n_events: Counter[type] = field(default_factory=Counter)
    _seq: int = 0

    def to_ms(self, position: float) -> int:
        return round(position * 1000 / self.rate)

    def to_frames(self, ms: float) -> int:
        return round(ms * self.rate / 1000)

    def settle(self, start: float, end: float, fate: Fate) -> None:
        self._n_frames[fate] += self.ring.settle(int(start), int(min(end, self.ring.end)))

    def settle_scraps(self) -> None:
        """What is left between outcomes, by rounding or by a detector that began anew, is no word."""
        spoken = Ranges()
        for told in self.interrupted:
            spoken.add(told.start, int(told.end))
        for start, end in self.ring.unsettled(0, self.ring.end):
            if end < self.ring.end and end - start < self.to_frames(SCRAP_MS):
                for scrap in spoken.gaps(start, end):
                    self.settle(*scrap, Fate.SILENCE)

    def tell_state(self, state: messages.State_) -> list[Event]:
        """The service's, after another connection was made."""
        if self.service is None or self.service.state == state:
            return []
        self.service = messages.State(state=state, partials=self.service.partials)
        return [self.service]

    def commit(self, id: str | None) -> None:
        self.marks.append(Mark(self.ring.end, id))

    @property
    def told_until(self) -> int:
        """Before that all has its outcome: nothing is told of there, nor sent."""
        start, _ = next(iter(self.ring.unsettled(0, self.ring.end)), (self.ring.end, 0))
        return start - self.to_frames(NEAR_MS)

    def forget_marks(self) -> int:
        """Those before all that has no outcome. Returns: how many they were."""
        n_old = bisect_left(self.marks, self.told_until, key=lambda mark: mark.at)
        del self.marks[:n_old]
        return n_old

    # ---------------------------------------------------------------- utterances

    def begin(self, start: int) -> Told:
        """The utterance that begins there: one that was interrupted, or a new one."""
        near = self.to_frames(NEAR_MS)
        for told in self.interrupted:
            if told.start - near <= start < told.end:
                self.interrupted.remove(told)
                return told
        self._n_utterances += 1
        return Told(f"u{self._n_utterances}", start)

    def interrupt(self, told: Told) -> None:
        """It will be heard again. It ends at the latest where there is silence already, or the next one: where, is not
        known of one that was being heard.
        """
        near = self.to_frames(NEAR_MS)
        end = min(told.end, self.ring.end)
        told.end = next((b for a, b in self.ring.unsettled(told.start, int(end)) if b - a > near), end)
        self.interrupted = sorted([*self.interrupted, told], key=lambda each: each.start)
        for before, after in pairwise(self.interrupted):
            before.end = min(before.end, after.start)

    def absorb(self) -> list[Event]:
        """What was interrupted, and of which all audio has an outcome by now, was not heard as an utterance again."""
        near = self.to_frames(NEAR_MS)
        return [
            self._drop(told, "cancelled" if told.is_cancelled else "not_held", is_empty=True)
            for told in self.interrupted
            if sum(end - start for start, end in self.ring.unsettled(told.start, int(told.end)))
            <= max(0, min(near, told.end - told.start - 1))
        ]

    def cancel(self, utterance: str | None, *, sent: Range = (0, 0)) -> list[Event]:
        """Nothing of it will be sent again.

        Args:
            sent: what lies there was sent, and is the server's to tell of, as long as the connection lasts.
        """
        events: list[Event] = []
        for told in [told for told in self.interrupted if utterance in (None, told.id)]:
            told.is_cancelled = sent[0] <= told.start < sent[1]
            if not told.is_cancelled:
                events.append(self._drop(told, "cancelled"))
            elif utterance is None:
                told.end = min(told.end, sent[1])
        if utterance is None:
            self.settle(sent[1], self.ring.end, Fate.SILENCE)
        return events

    def drop_cancelled(self) -> list[Event]:
        """The connection is gone that should have told of them."""
        return [self._drop(told, "cancelled") for told in self.interrupted if told.is_cancelled]

    def lose(self, start: int, end: int, reason: DropReason = "evicted") -> list[Event]:
        """That audio is given up: utterances that lie there are dropped, the rest is a gap."""
        lost = self._interrupted_in(start, end)
        events: list[Event] = [self._drop(told, told.drop_reason or reason) for told in lost]
        for told in self.interrupted:
            if start <= told.start < end:
                told.start = end
        for since, until in self.ring.unsettled(start, end):
            self.settle(since, until, Fate.REFUSED)
            events.append(Gap(self.to_ms(since), self.to_ms(until)))
        return events

    def _interrupted_in(self, start: float, end: float) -> list[Told]:
        return [told for told in self.interrupted if start <= told.start and told.end <= end]

    def _drop(self, told: Told, reason: DropReason, *, is_empty: bool = False) -> Event:
        self.interrupted = [each for each in self.interrupted if each is not told]
        if not is_empty:
            self.settle(told.start, told.end, Fate.REFUSED)
        start_ms, end_ms = self.to_ms(told.start), self.to_ms(min(told.end, self.ring.end))
        return messages.Dropped(
            utterance=told.id,
            reason=reason,
            audio_start_ms=end_ms if is_empty else start_ms,
            audio_end_ms=end_ms,
        )

    # ---------------------------------------------------------------- what its user is told

    def number(self, event: Event) -> Event:
        """Count an event, and number it through, over all connections."""
        if isinstance(event, messages.Done):
            event = self._account(event)
        self._n_events[type(event)] += 1
        if isinstance(event, messages.Unknown):
            if "seq" in event.fields:
                self._seq += 1
                event = messages.Unknown(event.type, {**event.fields, "seq": self._seq})
        elif isinstance(event, messages.ServerEvent) and not isinstance(event, messages.Ready):
            self._seq += 1
            event = msgspec.structs.replace(event, seq=self._seq)
        return event

    def _account(self, done: messages.Done) -> messages.Done:
        """The ledger of all that was recorded: the server's own, if all of it went to one connection."""
        if self.n_connections == 1 and abs(done.received_ms - self.to_ms(self.ring.end)) <= 1:
            return done
        n_decoded, n_refused = self._n_frames[Fate.DECODED], self._n_frames[Fate.REFUSED]
        # Rounded as sums, which grow: else three halves could be more than the whole.
        received, told, decoded = (self.to_ms(n) for n in (self.ring.end, n_decoded + n_refused, n_decoded))
        lost = min(max(done.lost_ms, 0), received - told)
        kinds = messages.Final, messages.Busy, messages.Retry, messages.Dropped, messages.Error
        counts = dict(
            zip(("finals", "busy", "retries", "dropped", "errors"), (self._n_events[k] for k in kinds), strict=True)
        )
        return messages.Done(
            received_ms=received,
            decoded_ms=decoded,
            silence_ms=received - told - lost,
            refused_ms=told - decoded,
            lost_ms=lost,
            **counts,
        )
