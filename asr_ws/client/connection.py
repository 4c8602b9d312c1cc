"""One connection's part of a recording: what to send, and what its events mean there. No socket, no clock.

Audio waits in the recording's ring and not in the socket, so that it is not lost with the connection. A connection that
follows another one sends only what has no outcome, so its audio is pieces of the recording: between two of them an
utterance is ended by a `commit`, or words would be joined that were not said together.

``now`` is monotonic seconds. What `next` gives is sent in that order; what `receive` gives is for the user.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from asr_ws import messages
from asr_ws.client.events import CONNECTION_LOST, OWN, Event
from asr_ws.client.recording import Fate, Recording, Told
from asr_ws.client.ring import Range, Ranges

PING_S = 5.0  # at most from one to the next, and ...
PING_AUDIO_S = 0.5  # ... so much audio
WINDOW_S = 1.0  # of audio that the server has not said to have taken, beside the way there and back, twice
SILENT_S = 15.0  # without an answer the connection is dead, whatever the operating system thinks
STUCK_S = 60.0  # without what is due, such as the answer to a ping, whatever else it says
AHEAD_S = 0.5  # of audio that the server has not taken, from a source that can wait
FRAME_S = 0.1  # of older audio; live audio goes as it comes
MAX_HELD = 2  # refused utterances that a server keeps for a session: one more would drive out the oldest
HOLD_MARGIN_S = 0.5  # a retry is sent this long before the server's hold ends, at the latest
JITTER_S = 0.25  # upon the server's hint, which has its own
WINDOW_MS = 32  # of the speech detector

Of = (
    messages.SpeechStarted
    | messages.Partial
    | messages.Accepted
    | messages.Final
    | messages.Busy
    | messages.Retry
    | messages.Dropped
    | messages.Error
)
EventT = TypeVar("EventT", bound=Of)
PartT = TypeVar("PartT", messages.FinalSegment, messages.FinalWord)


def retry_delay_s(refusal: messages.Busy | messages.Retry, jitter_s: float) -> float:
    """Seconds to wait before it is offered again: the hint, or the load that is awaited, within the hold."""
    retry_after_s = refusal.retry_after_ms / 1000
    wait_s = messages.retry_wait_s(refusal.reason, retry_after_s, refusal.estimated_wait_ms / 1000) + jitter_s
    return min(wait_s, max(refusal.held_ms / 1000 - HOLD_MARGIN_S, retry_after_s))


def _hearing_ms(rules: messages.EndpointingInForce) -> int:
    """After so much audio without `speech_started` nobody spoke: its windows may come one by one, pauses between."""
    n_windows = math.ceil(rules.min_speech_ms / WINDOW_MS)
    return rules.prefix_ms + rules.min_speech_ms + n_windows * rules.silence_ms


@dataclass(frozen=True, slots=True)
class _Piece:
    """Attributes:
    at: where it begins in the connection's audio, in frames.
    since: where that is in the recording.
    """

    at: int
    since: int


@dataclass(frozen=True, slots=True)
class _Ping:
    id: str
    now: float
    n_sent: int
    cursor: int


@dataclass(slots=True)
class _Entry:
    """An utterance that has no outcome yet."""

    told: Told
    n_attempts_before: int  # by the connections before
    is_refused: bool = False
    refused_for_good_at: float = math.inf  # nothing is held of it: `dropped` is due
    retry_at: float = math.inf


class Connection:
    """Args:
    recording: shared with the connections before and after.
    start: sent first, if given; else it has been.
    """

    def __init__(
        self,
        recording: Recording,
        start: messages.Start | None,
        *,
        now: float,
        rng: random.Random | None = None,
    ) -> None:
        self.error: messages.Error | None = None  # that ends it
        self.done: messages.Done | None = None
        self.owed = Ranges()  # of utterances that were dropped, and not at our wish
        recording.n_connections += 1
        self._recording = recording
        self._rng = rng or random.Random()
        self._outbox: deque[messages.ClientMessage] = deque([start] if start is not None else [])
        self._pieces: list[_Piece] = []
        self._n_sent = self._n_acknowledged = 0  # frames
        self._cursor = 0  # of the recording: all before it was sent, or need not be
        self._next_mark = 0
        self._barrier: str | None = None  # the ping behind a commit: nothing follows before its outcome is known
        self._is_end_sent = False
        self._lost_until = 0
        self._cancels: list[int] = []  # where everything was cancelled: of that before nothing is sent again
        self._pings: deque[_Ping] = deque()  # that have no pong yet
        self._pinged = _Ping("", now, 0, 0)  # the last one
        self._n_pings = 0
        self._fastest_s = math.inf  # there and back
        self._heard_at = self._answered_at = now
        self._failed_at = math.inf
        self._hearing_ms: int | None = None  # of audio in which speech would have been told; None: not yet `started`
        self._min_speech_ms = 0
        self._entries: dict[str, _Entry] = {}  # by the server's id
        self._quiet = 0  # all before it is an utterance's or silence

    @property
    def open(self) -> list[Told]:
        """Utterances that have no outcome yet."""
        return [entry.told for entry in self._entries.values()]

    @property
    def unsent(self) -> int:
        """Frames that the server has not been sent."""
        ring = self._recording.ring
        return sum(end - start for start, end in ring.unsettled(max(self._cursor, ring.start), ring.end))

    @property
    def has_room(self) -> bool:
        """Whether a source that can wait may give more: the server has taken what was sent, and has no more to do than
        keeps its model busy. Else one that comes to a standstill would have to hold more than it does.
        """
        entries = self._entries.values()
        is_busy = any(each.is_refused for each in entries) or sum(each.told.is_admitted for each in entries) > 1
        n_ahead = self.unsent + self._n_sent - self._n_acknowledged
        return not is_busy and n_ahead <= AHEAD_S * self._recording.rate

    @property
    def _is_held_back(self) -> bool:
        """Whether what comes now had better stay here, since the server may not be able to keep it."""
        return len(self._entries) >= MAX_HELD and any(each.is_refused for each in self._entries.values())

    @property
    def _held_ms(self) -> int:
        """How long audio stays in the ring."""
        return self._recording.to_ms(self._recording.ring.capacity)

    def is_dead(self, *, now: float) -> bool:
        return now > self._dead_at

    @property
    def good_until(self) -> float:
        """When the server was last known to do what it has to."""
        return min(self._answered_at, self._owing_since)

    @property
    def _owing_since(self) -> float:
        """Due are the close behind a fatal error, and `dropped` where nothing is held: no pong is a sign of them."""
        return min([self._failed_at, *(each.refused_for_good_at for each in self._entries.values())])

    @property
    def _dead_at(self) -> float:
        asked_at = self._pings[0].now if self._pings else math.inf
        silent_at = max(asked_at, self._heard_at) + SILENT_S
        return min(silent_at, asked_at + STUCK_S, self._owing_since + STUCK_S)

    def due_at(self) -> float:
        """When there may be something to do though nothing came."""
        _, oldest = self._oldest_refused()
        retry_at = oldest.retry_at if oldest is not None else math.inf
        return min(self._pinged.now + PING_S, retry_at, self._dead_at)

    def cancel(self, utterance: str | None) -> list[Event]:
        owed_until = max((end for _, end in self.owed), default=0)  # of that this connection tells no more
        events = self._recording.cancel(utterance, sent=(owed_until, self._cursor))
        if utterance is None:
            del self._recording.marks[self._next_mark :]  # commits of what was not sent yet
            old = self._recording.told_until
            self._cancels = [*(at for at in self._cancels if at >= old), self._cursor]
            self._outbox.append(messages.Cancel())
        for id, entry in self._entries.items():
            if utterance in (None, entry.told.id):
                entry.told.is_cancelled = True
                entry.told.end = min(entry.told.end, self._cursor)
            if entry.told.id == utterance:
                self._outbox.append(messages.Cancel(utterance=id))
        return events

    # ---------------------------------------------------------------- out

    def next(self, *, now: float) -> bytes | messages.ClientMessage | None:
        """What to send next; None: nothing now."""
        self._offer_oldest(now)
        if not self._outbox and now - self._pinged.now >= PING_S:
            self._ping(now)
        if self._outbox:
            return self._outbox.popleft()
        if self._is_end_sent:
            return None
        audio = None if self._is_held_back else self._next_audio(now)
        if audio is not None:
            return audio
        if self._outbox:  # a commit, before the next audio
            return self._outbox.popleft()
        recording = self._recording
        if recording.is_ending and self._cursor == recording.ring.end and self._next_mark == len(recording.marks):
            self._is_end_sent = True
            self._outbox.append(messages.End())
            return recording.ring.rest or self._outbox.popleft()  # the server says what it thinks of half a frame
        return None

    def _next_audio(self, now: float) -> bytes | None:
        ring, rate, marks = self._recording.ring, self._recording.rate, self._recording.marks
        way_s = 2 * self._fastest_s if self._fastest_s < math.inf else 0
        if self._n_sent - self._n_acknowledged >= (WINDOW_S + way_s) * rate:
            return None
        start, end = (ring.unsettled(max(self._cursor, ring.start), ring.end) or [(ring.end, ring.end)])[0]
        if start != self._cursor or not self._pieces:
            self._go_to(start, now)
        if self._next_mark < len(marks) and marks[self._next_mark].at == start:
            self._commit(marks[self._next_mark].id, now)
            self._next_mark += 1 - self._recording.forget_marks()
        if self._outbox or self._barrier is not None or start == end:
            return None
        until = min(end, start + math.ceil(FRAME_S * rate))
        if self._next_mark < len(marks):
            until = min(until, marks[self._next_mark].at)
        data = ring.read(start, until)
        self._n_sent += until - start
        self._cursor = until
        if self._n_sent - self._pinged.n_sent >= PING_AUDIO_S * rate:
            self._ping(now)
        return data

    def _go_to(self, start: int, now: float) -> None:
        """The next piece begins there."""
        marks = self._recording.marks
        if self._n_sent and self._pieces[-1].at != self._n_sent:
            mark = marks[self._next_mark] if self._next_mark < len(marks) else None
            self._commit(mark.id if mark is not None and mark.at <= start else OWN, now)
        while self._next_mark < len(marks) and marks[self._next_mark].at <= start:
            self._next_mark += 1  # that commit, or the connection before, has done it
        self._cursor = start
        self._pieces.append(_Piece(self._n_sent, start))

    def _commit(self, id: str | None, now: float) -> None:
        self._outbox.append(messages.Commit(id=id))
        self._barrier = self._ping(now)

    def _ping(self, now: float) -> str:
        self._n_pings += 1
        self._pinged = _Ping(f"{OWN}:{self._n_pings}", now, self._n_sent, self._cursor)
        self._pings.append(self._pinged)
        self._outbox.append(messages.Ping(id=self._pinged.id))
        return self._pinged.id

    def _oldest_refused(self) -> tuple[str, _Entry | None]:
        """The one that was said first: else a later one would take its place each time."""
        return next(((id, entry) for id, entry in self._entries.items() if entry.is_refused), ("", None))

    def _offer_oldest(self, now: float) -> None:
        id, oldest = self._oldest_refused()
        if oldest is not None and now >= oldest.retry_at:
            oldest.retry_at = math.inf
            self._outbox.append(messages.RetryUtterance(utterance=id))

    # ---------------------------------------------------------------- in

    def lose_what_is_gone(self) -> list[Event]:
        """What the ring could not keep until it was sent, or sent again: not frame by frame, if that can wait."""
        ring, rate = self._recording.ring, self._recording.rate
        lost = [(start, end) for start, end in self.owed_now() if min(end, start + rate) <= ring.start]
        since = max(self._cursor, self._lost_until)
        if self._cursor < ring.start and (not self._is_held_back or ring.start - since >= rate):
            lost += ring.unsettled(self._cursor, ring.start)
            self._lost_until = ring.start
        return [event for start, end in lost for event in self._recording.lose(start, min(end, ring.start))]

    def owed_now(self) -> list[Range]:
        """What was dropped, and not at our wish: the next connection gets what the ring still has of it."""
        return [part for start, end in self.owed for part in self._recording.ring.unsettled(start, end)]

    def receive(self, event: messages.ServerEvent | messages.Unknown, *, now: float) -> list[Event]:
        """Returns: what its user is told, as the recording has it."""
        self._heard_at = now
        match event:
            case messages.Pong():
                return self._acknowledge(event, now) if str(event.id).startswith(f"{OWN}:") else [event]
            case messages.Ready():
                return [event] if self._recording.n_connections == 1 else self._recording.tell_state(event.state)
            case messages.State():
                self._recording.service = event
            case messages.Started():
                self._hearing_ms = _hearing_ms(event.endpointing)
                is_detected = event.endpointing.mode == "server"
                self._min_speech_ms = event.endpointing.min_speech_ms if is_detected else 0
                was_started, self._recording.is_started = self._recording.is_started, True
                return [] if was_started else [event]
            case messages.SpeechStarted():
                return self._begin(event)
            case messages.Partial():
                return self._guess(event)
            case messages.Accepted():
                return self._admit(event)
            case messages.Busy() | messages.Retry():
                return self._refuse(event, now)
            case messages.Final():
                return self._finish(event, Fate.DECODED)
            case messages.Dropped():
                entry = self._entries.get(event.utterance)
                if event.reason != "cancelled" and not (entry is not None and entry.told.is_cancelled):
                    return self._owe(event)
                return self._finish(event, Fate.REFUSED)
            case messages.Error():
                return self._fail(event, now)
            case messages.Unknown(fields={"utterance": id}):
                return [messages.Unknown(event.type, {**event.fields, "utterance": self._name(id)})]
            case messages.Done():
                self.done = event
                # The server has heard it all, and told of every utterance.
                return self._settle_quiet(self._cursor)
        return [event]

    def _acknowledge(self, pong: messages.Pong, now: float) -> list[Event]:
        while any(ping.id == pong.id for ping in self._pings):
            ping = self._pings.popleft()
            if ping.id == self._barrier:
                self._barrier = None
            if ping.id == pong.id:
                self._n_acknowledged = ping.n_sent
                self._fastest_s = min(self._fastest_s, now - ping.now)
                self._answered_at = now
                if self._hearing_ms is not None:
                    return self._settle_quiet(ping.cursor - self._recording.to_frames(self._hearing_ms))
        return []  # a greeting's

    def _begin(self, event: messages.SpeechStarted) -> list[Event]:
        start = self._onset(event.audio_start_ms)
        for told in self.open:
            told.end = min(told.end, start)
        events = self._settle_quiet(start)
        told = self._entry(event).told
        is_again = told.end < math.inf  # it was interrupted
        told.end = min(self._cancelled_at(told.start), self._cursor) if told.is_cancelled else math.inf
        return events if is_again else [*events, self._placed(event, told)]

    def _guess(self, event: messages.Partial) -> list[Event]:
        """The user is never told of less than before: not after `accepted`, nor without what was stable."""
        entry = self._entry(event)
        if entry.told.attempt or not event.stable.startswith(entry.told.stable):
            return []
        entry.told.stable = event.stable
        return [self._placed(event, entry.told)]

    def _admit(self, event: messages.Accepted) -> list[Event]:
        entry = self._entry(event)
        told = entry.told
        self._locate(told, event)
        told.attempt = entry.n_attempts_before + event.attempt
        told.is_admitted, entry.is_refused = True, False
        entry.retry_at = entry.refused_for_good_at = math.inf
        told.commit = None if event.commit == OWN else event.commit
        return [self._placed(event, told)]

    def _refuse(self, event: messages.Busy | messages.Retry, now: float) -> list[Event]:
        if event.utterance is None:
            return [event]
        entry = self._entry(event)
        entry.told.attempt = entry.n_attempts_before + event.attempt
        entry.told.is_admitted, entry.is_refused = False, True
        if event.held_ms:
            entry.retry_at = now + retry_delay_s(event, self._rng.uniform(0, JITTER_S))
            return [self._placed(event, entry.told)]
        entry.refused_for_good_at = min(entry.refused_for_good_at, now)  # but the audio is held here
        held = msgspec.structs.replace(event, retryable=True, held_ms=self._held_ms)
        return [self._placed(held, entry.told)]

    def _finish(self, event: messages.Final | messages.Dropped | messages.Error, fate: Fate) -> list[Event]:
        entry = self._entry(event)
        told = entry.told
        if isinstance(event, messages.Final):
            told.attempt = entry.n_attempts_before + event.attempt
        placed = self._placed(event, told)
        if not isinstance(event, messages.Error):
            self._locate(told, event)
        del self._entries[str(event.utterance)]
        self._recording.settle(told.start, min(told.end, self._cursor), fate)
        return [placed, *self._recording.absorb()]

    def _owe(self, event: messages.Dropped) -> list[Event]:
        """It is sent again, to the next connection: its user need not know."""
        told = self._entry(event).told
        self._locate(told, event)
        told.drop_reason = event.reason
        del self._entries[event.utterance]
        self.owed.add(told.start, int(told.end))
        unfinished: list[Event] = [self._unfinished(told, event.reason, 0)] if told.is_admitted else []
        self._recording.interrupt(told)
        return [*unfinished, *self._recording.absorb()]

    def _fail(self, event: messages.Error, now: float) -> list[Event]:
        if event.code == "nothing_to_commit" and event.commit == OWN:
            return []
        if event.utterance is not None and event.utterance in self._entries and event.code in messages.ENDS_UTTERANCE:
            return self._finish(event, Fate.REFUSED)
        # With other settings than were asked for, the audio would be taken for something else.
        if event.fatal or self._hearing_ms is None:
            self.error, self._failed_at = event, min(self._failed_at, now)
        return [msgspec.structs.replace(event, utterance=self._name(event.utterance))]

    def interrupt(self, *, delay_s: float) -> list[Event]:
        """It is over; the next one begins after that.

        Returns: attempts that end by it.
        """
        events: list[Event] = []
        for told in self.open:
            if told.is_admitted and not told.is_cancelled:
                events.append(self._unfinished(told, CONNECTION_LOST, delay_s))
            self._recording.interrupt(told)
        events += self._recording.drop_cancelled()
        self._recording.settle(0, max(self._cancels, default=0), Fate.SILENCE)
        self._recording.settle_scraps()
        return events

    def _unfinished(self, told: Told, reason: str, delay_s: float) -> messages.Retry:
        """Its attempt has no other outcome; the audio is here."""
        told.is_admitted = False
        delay_ms = round(delay_s * 1000)
        return messages.Retry(
            utterance=told.id,
            attempt=told.attempt,
            commit=told.commit,
            status=503,
            reason=reason,
            retry_after_ms=min(max(delay_ms, 500), 1500),
            estimated_wait_ms=delay_ms,
            queue_depth=0,
            queue_capacity=0,
            retryable=True,
            held_ms=self._held_ms,
            waited_ms=0,
        )

    # ---------------------------------------------------------------- where it is

    def _entry(self, event: Of) -> _Entry:
        """One of which the server did not tell the beginning begins with the event that tells of it."""
        id = str(event.utterance)
        if id not in self._entries:
            start_ms = getattr(event, "audio_start_ms", None)
            told = self._recording.begin(self._cursor if start_ms is None else self._onset(start_ms))
            if self._cancelled_at(told.start) < math.inf:
                told.is_cancelled = True
            elif told.is_cancelled:  # by its name, which the server had not told yet
                self._outbox.append(messages.Cancel(utterance=id))
            self._entries[id] = _Entry(told, told.attempt)
        return self._entries[id]

    def _cancelled_at(self, start: int) -> float:
        """Where what begins there was cancelled with everything; the server rounds times down, to before it maybe."""
        return next((at for at in self._cancels if at > start + self._recording.to_frames(1)), math.inf)

    def _name(self, id: object) -> str | None:
        """As its user knows it."""
        entry = self._entries.get(id) if isinstance(id, str) else None
        return entry.told.id if entry is not None else None

    def _locate(self, told: Told, event: messages.Accepted | messages.Final | messages.Dropped) -> None:
        told.start, told.end = self._span(event.audio_start_ms, event.audio_end_ms)
        self._quiet = min(self._quiet, int(told.end))  # it may have been taken to be longer

    def _settle_quiet(self, until: int) -> list[Event]:
        """What of the audio before that is no utterance's is silence."""
        if until <= self._quiet:
            return []
        spoken = Ranges()
        for start, end in [*self.owed, *((told.start, min(told.end, until)) for told in self.open)]:
            spoken.add(start, int(end))
        for start, end in spoken.gaps(self._quiet, until):
            self._recording.settle(start, end, Fate.SILENCE)
        self._quiet = until
        return self._recording.absorb()

    def _position(self, ms: int, *, is_end: bool = False) -> int:
        """Of the recording, in frames; an end belongs to the piece before it."""
        recording = self._recording
        frame, near = recording.to_frames(ms), recording.to_frames(1)  # as far as rounding can have moved it
        if not self._pieces:
            return frame
        i = self._piece_at(frame, is_end=is_end)
        piece, n_frames = self._pieces[i], self._length(i)
        position = piece.since + min(max(frame - piece.at, 0), n_frames)
        first, last = (
            bisect_left(recording.marks, at, key=lambda mark: mark.at) for at in (position - near, position + near + 1)
        )
        marks = [mark.at for mark in recording.marks[first:last]]
        return min(marks, key=lambda at: abs(at - position), default=position)

    def _onset(self, ms: int) -> int:
        """Where speech begins that lasts on: not in the last of a piece, where its pre-roll may begin; unless nothing
        of the next one was sent: then a commit has ended it, however short it is.
        """
        start, frame = self._position(ms), self._recording.to_frames(ms)
        for piece in self._pieces:
            if frame < piece.at < min(frame + self._recording.to_frames(self._min_speech_ms), self._n_sent):
                start = piece.since
        return start

    def _span(self, start_ms: int, end_ms: int) -> Range:
        """Of an utterance: all in the piece in which it ends, though its pre-roll may begin in the one before."""
        start, end = self._position(start_ms), self._position(end_ms, is_end=True)
        if not self._pieces:
            return start, end
        i = self._piece_at(self._recording.to_frames(end_ms), is_end=True)
        return min(max(start, self._pieces[i].since), end), end

    def _piece_at(self, frame: int, *, is_end: bool) -> int:
        near = self._recording.to_frames(1)
        found = 0
        for i, piece in enumerate(self._pieces):
            if piece.at + near < frame if is_end else piece.at <= frame + near:
                found = i
        return found

    def _length(self, i: int) -> int:
        """Of a piece, in frames."""
        end = self._pieces[i + 1].at if i + 1 < len(self._pieces) else self._n_sent
        return end - self._pieces[i].at

    def _placed(self, event: EventT, told: Told) -> EventT:
        """An event with its utterance, its attempt and its times as the recording has them."""

        def span_ms(start_ms: int, end_ms: int) -> tuple[int, int]:
            start, end = self._span(start_ms, end_ms)
            return self._recording.to_ms(start), self._recording.to_ms(end)

        def placed(part: PartT) -> PartT:
            start_ms, end_ms = span_ms(part.start_ms, part.end_ms)
            return msgspec.structs.replace(part, start_ms=start_ms, end_ms=end_ms)

        known: dict[str, Any] = {"utterance": told.id, "attempt": told.attempt, "commit": told.commit}
        changes = {name: value for name, value in known.items() if hasattr(event, name)}
        match event:
            case messages.SpeechStarted():
                changes["audio_start_ms"] = self._recording.to_ms(told.start)
            case messages.Partial():
                changes["audio_end_ms"] = span_ms(event.audio_end_ms, event.audio_end_ms)[1]
            case messages.Accepted() | messages.Final() | messages.Dropped():
                changes["audio_start_ms"], changes["audio_end_ms"] = span_ms(event.audio_start_ms, event.audio_end_ms)
        if isinstance(event, messages.Final):
            changes["segments"] = [placed(each) for each in event.segments]
            if event.words is not msgspec.UNSET:
                changes["words"] = [placed(each) for each in event.words]
        return msgspec.structs.replace(event, **changes)
