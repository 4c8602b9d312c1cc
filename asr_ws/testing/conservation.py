"""Whether a session kept what the protocol promises, by its events alone: nothing is lost, nothing is told twice.

    law = Conservation()
    async for event in session.events():
        law.receive(event)
    law.close(1000)
    assert not law.breaches, law.breaches

Each attempt ends in exactly one outcome and each utterance in exactly one of `final`, `error` and `dropped`; attempts
and ``seq`` count up by one; there is no `partial` after `accepted`, and its ``stable`` only grows; `done` is the last
event, agrees with those before it, and has lost nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import pairwise
from typing import Final as Constant

import msgspec

from asr_ws.messages import (
    ENDS_UTTERANCE,
    Accepted,
    Busy,
    Done,
    Dropped,
    Error,
    Final,
    Partial,
    Ready,
    Retry,
    ServerEvent,
    SpeechStarted,
    State,
    Unknown,
)

TELLS_ALL: Constant = (1000, 1012)  # closes before which every utterance has had its outcome
TELLS_ADMITTED: Constant = (1008, 1009)  # ... every one that was admitted, after a fatal error but these
TELLS_NOTHING: Constant = ("unauthorized", "slow_consumer")


class Place(Enum):
    """Where an utterance is, as far as the client knows."""

    HEARD = auto()
    ADMITTED = auto()
    HELD = auto()
    REFUSED = auto()  # with held_ms 0: the very next event drops it
    DECODED = auto()
    GONE = auto()  # by an error, or dropped


SETTLED: Constant = (Place.DECODED, Place.GONE)
MAY_DROP: Constant = {
    "cancelled": (Place.HEARD, Place.ADMITTED, Place.HELD),
    "hold_expired": (Place.HELD,),
    "evicted": (Place.HELD,),
    "not_held": (Place.HEARD, Place.HELD, Place.REFUSED, Place.ADMITTED),  # admitted: given up at shutdown
}


@dataclass(slots=True)
class Told:
    """What a client knows of one utterance; ``span_ms`` is where its audio lies."""

    place: Place = Place.HEARD
    attempt: int = 0
    span_ms: tuple[int, int] = (0, 0)
    stable: str = ""


@dataclass(slots=True)
class Conservation:
    """The law, for one session. Give it every event in order, and then how the session closed.

    Attributes:
        breaches: a sentence for each rule that was broken; empty is what it should be.
        utterances: by id, in the order in which they were heard.
    """

    breaches: list[str] = field(default_factory=list)
    utterances: dict[str, Told] = field(default_factory=dict)
    done: Done | None = None
    _seq: int | None = None  # of the last event; None: nothing yet
    _dropped_next: str | None = None  # refused, and not held
    _draining: bool = False
    _finishes: bool = False  # after a fatal error
    _counts: Counter[type] = field(default_factory=Counter)
    _invalid_samples: bool = False  # their time is refused, inside of what is decoded too

    @property
    def unsettled(self) -> list[str]:
        """Utterances that have had no outcome yet."""
        return [id for id, told in self.utterances.items() if told.place not in SETTLED]

    def spans_ms(self, *places: Place) -> list[tuple[int, int]]:
        """Where the audio of what is there lies, in the order in which it was heard."""
        return [told.span_ms for told in self.utterances.values() if told.place in places]

    def receive(self, event: ServerEvent | Unknown) -> None:
        self._count(event)
        if self._dropped_next is not None:
            told_so = isinstance(event, Dropped) and event.utterance == self._dropped_next
            self._check(told_so, f"{self._dropped_next} was refused and not held, and then came {event}")
            self._dropped_next = None
        match event:
            case SpeechStarted():
                self._check(event.utterance not in self.utterances, f"a second beginning: {event}")
                self.utterances[event.utterance] = Told()
            case Partial():
                told = self._expect(event, Place.HEARD)
                self._check(event.stable.startswith(told.stable), f"stable was {told.stable!r}: {event}")
                told.stable = event.stable
            case Accepted():
                told = self._next_attempt(event)
                told.place = Place.ADMITTED
                told.span_ms = (event.audio_start_ms, event.audio_end_ms)
            case Busy(utterance=None):
                pass  # the session was refused: there is nothing to keep
            case Busy(reason="retry_early"):
                told = self._expect(event, Place.HELD)
                self._check(event.attempt == told.attempt, f"no new attempt, after {told.attempt}: {event}")
            case Busy():
                self._refuse(event, self._next_attempt(event))
            case Retry():
                self._refuse(event, self._end_attempt(event))
            case Final():
                told = self._end_attempt(event)
                span_ms = (event.audio_start_ms, event.audio_end_ms)
                self._check(told.span_ms == span_ms, f"accepted was {told.span_ms}: {event}")
                told.place = Place.DECODED
            case Error() if event.code in ENDS_UTTERANCE:
                self._expect(event, Place.ADMITTED).place = Place.GONE
            case Error(code="internal"):
                self.breaches.append(f"the server is broken: {event}")
            case Error(fatal=True):
                self._finishes = event.code not in TELLS_NOTHING
            case Error(code="invalid_samples"):
                self._invalid_samples = True
            case Dropped():
                told = self._expect(event, *MAY_DROP[event.reason])
                told.place = Place.GONE
                told.span_ms = (event.audio_start_ms, event.audio_end_ms)
            case State():
                self._draining = event.state == "draining"
            case Done():
                self.done = event
                self._audit(event)

    def close(self, code: int) -> None:
        """The connection ended with this code; 1006: with none."""
        self._check((self.done is not None) == (code == 1000), f"closed {code} with {self.done}")
        owed = self.unsettled if code in TELLS_ALL else []
        if self._finishes and code in TELLS_ADMITTED:
            owed = [id for id, told in self.utterances.items() if told.place is Place.ADMITTED]
        self._check(not owed, f"closed {code} without an outcome of {', '.join(owed)}")

    def _check(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.breaches.append(sentence)

    def _count(self, event: ServerEvent | Unknown) -> None:
        self._check(self.done is None, f"after done: {event}")
        seq = event.fields.get("seq") if isinstance(event, Unknown) else event.seq
        if self._seq is None:
            unnumbered = isinstance(event, Ready) or (isinstance(event, Busy) and event.utterance is None)
            self._check(unnumbered and seq is msgspec.UNSET, f"the first event is no ready: {event}")
            self._seq = 0
        else:
            self._seq += 1
            self._check(seq == self._seq, f"seq {seq}, not {self._seq}: {event}")
        self._counts[type(event)] += 1

    def _expect(self, event: Partial | Accepted | Busy | Retry | Final | Error | Dropped, *places: Place) -> Told:
        told = self.utterances.get(str(event.utterance))
        if told is None:
            self.breaches.append(f"of an utterance without a beginning: {event}")
            told = self.utterances[str(event.utterance)] = Told()
        elif told.place not in places:
            self.breaches.append(f"of an utterance that is {told.place.name.lower()}: {event}")
        return told

    def _next_attempt(self, event: Accepted | Busy) -> Told:
        told = self._expect(event, Place.HEARD, Place.HELD)
        told.attempt += 1
        self._check(event.attempt == told.attempt, f"attempt {event.attempt}, not {told.attempt}: {event}")
        return told

    def _end_attempt(self, event: Final | Retry) -> Told:
        told = self._expect(event, Place.ADMITTED)
        self._check(event.attempt == told.attempt, f"attempt {event.attempt}, not {told.attempt}: {event}")
        return told

    def _refuse(self, event: Busy | Retry, told: Told) -> None:
        self._check(500 <= event.retry_after_ms <= 1500, f"a hint out of its range: {event}")
        self._check(event.estimated_wait_ms >= 0, f"a wait below nothing: {event}")
        self._check(0 <= event.queue_depth <= event.queue_capacity, f"more waiting than may: {event}")
        self._check(event.retryable == (event.held_ms > 0), f"retryable is what is held: {event}")
        if self._draining or event.reason == "draining":
            self._check(event.held_ms == 0, f"held while draining: {event}")
        told.place = Place.HELD if event.held_ms else Place.REFUSED
        self._dropped_next = None if event.held_ms else event.utterance

    def _audit(self, done: Done) -> None:
        fates_ms = done.decoded_ms + done.silence_ms + done.refused_ms
        self._check(done.lost_ms == 0, f"audio was lost: {done}")
        self._check(done.received_ms == fates_ms + done.lost_ms, f"it does not add up: {done}")
        if not self._invalid_samples:
            for place, told_ms in ((Place.DECODED, done.decoded_ms), (Place.GONE, done.refused_ms)):
                span_ms = sum(end - start for start, end in self.spans_ms(place))
                rounded_ms = len(self.utterances) + 1
                fits = abs(told_ms - span_ms) <= rounded_ms
                self._check(fits, f"{span_ms} ms of utterances are {place.name.lower()}: {done}")
        spans_ms = sorted(self.spans_ms(*SETTLED))  # over connections, what a client sends again is heard later
        self._check(all(a[1] <= b[0] for a, b in pairwise(spans_ms)), f"audio was taken twice: {spans_ms}")
        told = (done.finals, done.busy, done.retries, done.dropped, done.errors)
        counted = tuple(self._counts[kind] for kind in (Final, Busy, Retry, Dropped, Error))
        self._check(told == counted, f"finals, busy, retries, dropped and errors were {counted}: {done}")
