"""One client's state machine: audio and messages in, events out. No socket, no clock.

    AWAITING_START ──start, or any other message or audio──► STREAMING ──end──► ENDING ──all told──► CLOSED
           └───────────────┴── fatal error, drain ──► CLOSING ──admitted ones told──┴─────────────────►

Each utterance is HEARD, then ADMITTED or HELD, back and forth, until its one `final`, `error` or `dropped`. The session
owns no audio: the endpointer has what is being heard, the desk what waits, is decoded, or is held.

Every ``receive_*`` returns the events that it caused, in order, and never waits. ``now`` is monotonic seconds.
After each, `close` says whether and how the connection is to be closed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Protocol

from asr_ws import messages
from asr_ws.core import languages
from asr_ws.core.admission import Ticket
from asr_ws.core.audio import FormatProbe, PcmDecoder
from asr_ws.core.drafts import Draft
from asr_ws.core.endpointer import Endpoint, Endpointer, EndpointEvent, EndpointRules, Onset
from asr_ws.core.ledger import Ledger
from asr_ws.core.types import (
    SAMPLE_RATE,
    Decoded,
    DecodeOptions,
    Detector,
    DropReason,
    EndpointReason,
    Failed,
    Outcome,
    Partial,
    RefusalReason,
    Released,
    Resampler,
    ServiceState,
    ServiceStatus,
    SessionId,
    Shed,
    Unfinished,
    Utterance,
    ms,
)
from asr_ws.errors import ProtocolError

HOLD_S = 60.0  # from an utterance's first refusal
HOLD_AFTER_REFUSAL_S = 5.0  # at least this after any refusal, so that its hint can be followed
EARLY_S = 0.1  # a retry may come this much before its hint
MAX_BAD_MESSAGES = 3  # the last of them ends the session
FAILURE_HINTS = {
    "decode_failed": "the server's log may say more; other utterances are not affected",
    "poison_audio": "do not send this audio again",
}


class Desk(Protocol):
    """Where a session hands in its utterances; the outcomes come back through `Session.receive_outcome`, later."""

    def hear(self, draft: Draft, *, now: float) -> None:
        """What is being heard, whenever it changes; it ends by `offer` or `withdraw`."""

    def deaths_while_heard(self, session: SessionId, utterance: str) -> int:
        """How often the worker died under it before its endpoint."""

    def offer(self, utterance: Utterance, *, now: float, max_wait_s: float) -> Ticket | Shed: ...

    def shed(self, reason: RefusalReason, *, now: float) -> Shed: ...

    def hold(self, utterance: Utterance, *, until: float) -> None: ...

    def shorten_hold(self, session: SessionId, utterance: str, *, until: float) -> None: ...

    def reclaim(self, session: SessionId, utterance: str) -> Utterance | None:
        """The held utterance, held no longer."""

    def withdraw(self, session: SessionId, utterance: str | None = None) -> None:
        """Forget one utterance, or all of the session, wherever it waits, is decoded, or is held."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the server is, the same for every session."""

    version: str
    model: str
    languages: tuple[str, ...]  # ("en",): an English-only model
    limits: messages.Limits
    partials: bool = False  # whether this server sends any
    speculation: bool = False


@dataclass(frozen=True, slots=True)
class Close:
    code: int
    reason: str = ""


class _Phase(Enum):
    AWAITING_START = auto()
    STREAMING = auto()
    ENDING = auto()
    CLOSING = auto()
    CLOSED = auto()


class _Place(Enum):
    HEARD = auto()
    ADMITTED = auto()
    HELD = auto()


@dataclass(slots=True)
class _Entry:
    """What the session remembers of an utterance that has had no outcome yet."""

    id: str
    start_sample: int
    end_sample: int = 0
    place: _Place = _Place.HEARD
    n_frames: int = 0
    attempt: int = 0
    commit: str | None = None
    first_refused_at: float | None = None
    hint_at: float = 0.0
    due_at: float = 0.0  # when a client that keeps the protocol's rules offers it again


class Session:
    """Args:
    make_detector: for a session with server-side endpointing.
    make_resampler: ``make_resampler(rate)``, for audio that is not at 16 kHz; a fresh one after each commit.
    """

    def __init__(
        self,
        id: SessionId,
        service: Service,
        desk: Desk,
        make_detector: Callable[[], Detector],
        make_resampler: Callable[[int], Resampler],
    ) -> None:
        self.id = id
        self.close: Close | None = None
        self.counts: Counter[str] = Counter()  # events by type
        self.outcomes: Counter[str] = Counter()  # utterances by how they ended: final, error, dropped
        self._service = service
        self._desk = desk
        self._make_detector = make_detector
        self._make_resampler = make_resampler
        self._phase = _Phase.AWAITING_START
        self._closing: Close | None = None  # what `close` becomes once the admitted ones are told
        self._events: list[messages.ServerEvent] = []
        self._seq = 0
        self._entries: dict[str, _Entry] = {}
        self._n_utterances = 0
        self._n_bad_messages = 0
        self._late_audio_told = False
        self._in_invalid = False
        self._draining = False
        self._configure(messages.Start())

    @property
    def takes_audio(self) -> bool:
        """Whether audio is listened to now; otherwise it is ignored, or an error."""
        return self._phase in (_Phase.AWAITING_START, _Phase.STREAMING)

    @property
    def audio_bytes_per_s(self) -> int:
        audio = self._start.audio
        return audio.bytes_per_s

    # ------------------------------------------------------------ what comes in

    def receive_open(self, status: ServiceStatus) -> list[messages.ServerEvent]:
        self._events.append(
            messages.Ready(
                protocol=messages.PROTOCOL,
                session=self.id,
                server=self._service.version,
                model=self._service.model,
                languages=list(self._service.languages),
                state=status.state.value,
                limits=self._service.limits,
            )
        )
        if self._service.partials and not status.partials:  # `ready` does not say it
            self._emit_status(status)
        return self._flush()

    def receive_audio(self, data: bytes, *, now: float) -> list[messages.ServerEvent]:
        """Bytes of PCM in the declared format, cut anywhere."""
        if self._phase in (_Phase.CLOSING, _Phase.CLOSED):
            return []
        if self._phase is _Phase.ENDING:
            if not self._late_audio_told:
                self._late_audio_told = True
                self._error("unexpected_message", "audio after end", "open a new session for more audio")
            return self._flush()
        self._phase = _Phase.STREAMING
        if suspicion := self._probe.feed(data):
            self._error(
                "audio_format_suspect", suspicion, "declare the right `audio` in start, and send headerless PCM"
            )
        audio = self._decoder.feed(data)
        self.ledger.receive(audio.n_frames, audio.n_invalid)
        if audio.n_invalid and not self._in_invalid:
            self._error("invalid_samples", "NaN or Inf in float PCM", "these samples are taken as silence")
        if audio.n_frames:
            self._in_invalid = audio.n_invalid > 0  # said once for each run of such audio
        self._receive_endpoints(self._endpointer.feed(audio.samples), now)
        self.ledger.pass_over(self._endpointer.undecided)
        self._tell_draft(now)
        return self._flush()

    def receive_text(self, text: str, *, now: float) -> list[messages.ServerEvent]:
        """One JSON message."""
        if self._phase in (_Phase.CLOSING, _Phase.CLOSED):
            return []
        try:
            self._receive_message(messages.decode_message(text), now)
        except ProtocolError as error:
            self._receive_error(error)
        return self._flush()

    def receive_outcome(self, outcome: Outcome, *, now: float) -> list[messages.ServerEvent]:
        """What became of an attempt, or of a hold; ignored where the utterance has had its outcome meanwhile."""
        utterance = outcome.utterance
        entry = self._entries.get(utterance.id)
        was_held = isinstance(outcome, Released) and outcome.reason is not DropReason.NOT_HELD
        place = _Place.HELD if was_held else _Place.ADMITTED
        if entry is None or entry.place is not place or entry.attempt != utterance.attempt:
            return []
        match outcome:
            case Decoded():
                self.ledger.decoded += self._settle(entry, "final")
                self._emit(_final(outcome, words=self._start.words))
            case Unfinished():
                self._refuse(entry, utterance, outcome.shed, now, waited_s=outcome.waited_s)
            case Failed():
                self.ledger.refused += self._settle(entry, "error")
                self._error(
                    outcome.code, outcome.message, FAILURE_HINTS[outcome.code], utterance=entry.id, commit=entry.commit
                )
            case Released():
                self._drop(entry, outcome.reason)
        self._advance()
        return self._flush()

    def receive_partial(self, partial: Partial) -> list[messages.ServerEvent]:
        """Text of what is being heard; ignored where the utterance has ended meanwhile."""
        entry = self._entries.get(partial.utterance)
        if entry is not None and entry.place is _Place.HEARD:
            self._emit(
                messages.Partial(
                    utterance=entry.id,
                    stable=partial.stable,
                    unstable=partial.unstable,
                    audio_end_ms=ms(partial.end_sample),
                )
            )
        return self._flush()

    def receive_status(self, status: ServiceStatus) -> list[messages.ServerEvent]:
        """The service changed. Draining lets what is admitted finish, and nothing else."""
        if self._phase is _Phase.CLOSED:
            return []
        self._emit_status(status)
        self._draining = status.state is ServiceState.DRAINING
        if self._draining and self._phase is not _Phase.CLOSING:
            if self._phase is _Phase.ENDING:
                self._drop_unadmitted()
            else:
                self._begin_closing(Close(1012, "the server stops"))
            self._advance()
        return self._flush()

    def _emit_status(self, status: ServiceStatus) -> None:
        self._emit(messages.State(state=status.state.value, partials="on" if status.partials else "paused"))

    def receive_failure(self, error: ProtocolError) -> list[messages.ServerEvent]:
        """The shell saw the client break a rule, or broke itself."""
        ends_also_the_closing = error.code == "unauthorized" and self._phase is _Phase.CLOSING
        if self._phase not in (_Phase.CLOSING, _Phase.CLOSED) or ends_also_the_closing:
            self._receive_error(error)
        return self._flush()

    def receive_disconnect(self) -> None:
        """The socket is gone: nothing of this session is wanted any more, and nothing can be told."""
        self._desk.withdraw(self.id)
        self._claim_heard()
        for entry in list(self._entries.values()):
            self.ledger.refused += self._settle(entry, "dropped")
        self.ledger.finish()
        self._phase = _Phase.CLOSED

    # ------------------------------------------------------------ messages

    def _receive_message(self, message: messages.ClientMessage, now: float) -> None:
        if isinstance(message, messages.Start):
            self._receive_start(message)
            return
        if self._phase is _Phase.AWAITING_START and not isinstance(message, messages.Ping):
            self._phase = _Phase.STREAMING
        match message:
            case messages.Ping(id=id):
                self._emit(messages.Pong(id=id))
            case messages.Commit(id=commit):
                self._receive_commit(commit, now)
            case messages.RetryUtterance(utterance=id):
                self._receive_retry(id, now)
            case messages.Cancel(utterance=id):
                self._receive_cancel(id, now)
            case messages.End():
                self._receive_end(now)

    def _receive_start(self, start: messages.Start) -> None:
        if self._phase is not _Phase.AWAITING_START:
            raise ProtocolError("unexpected_message", "start must come first, and once", "open a new session instead")
        limit_ms = self._service.limits.max_wait_ms
        if start.max_wait_ms is not None and start.max_wait_ms > limit_ms:
            raise ProtocolError("bad_message", f"Expected `int` <= {limit_ms} - at `$.max_wait_ms`", "see ready.limits")
        start.audio.check()
        if objection := languages.objection(start.language, start.task, self._service.languages):
            raise ProtocolError("unsupported_language", *objection, close_code=1008)
        self._configure(start)
        self._phase = _Phase.STREAMING
        self._emit(
            messages.Started(
                audio=start.audio,
                language=self._options.language,
                task=start.task,
                partials=start.partials and self._service.partials,
                words=start.words,
                endpointing=start.endpointing,
                max_wait_ms=ms_of(self._max_wait_s),
            )
        )

    def _configure(self, start: messages.Start) -> None:
        """Put a start's settings in force."""
        known, audio, endpointing = self._service.languages, start.audio, start.endpointing
        self._start = start
        self._options = DecodeOptions(
            language=start.language if len(known) > 1 else known[0],
            task=start.task,
            prompt=start.prompt,
            hotwords=start.hotwords,
            words=start.words,
        )
        limit_ms = self._service.limits.max_wait_ms
        self._max_wait_s = (limit_ms if start.max_wait_ms is None else start.max_wait_ms) / 1000
        self._decoder = PcmDecoder(audio.encoding, audio.sample_rate, audio.channels, self._make_resampler)
        self._probe = FormatProbe(audio.encoding)
        self.ledger = Ledger(audio.sample_rate)
        manual = endpointing.mode == "manual"
        # Without a detector nothing is ever known to be complete, so there is no speculation.
        self._has_drafts = (start.partials and self._service.partials) or (self._service.speculation and not manual)
        self._endpointer = Endpointer(
            EndpointRules(
                silence=endpointing.silence_ms * SAMPLE_RATE // 1000,
                prefix=endpointing.prefix_ms * SAMPLE_RATE // 1000,
                min_speech=endpointing.min_speech_ms * SAMPLE_RATE // 1000,
                max_utterance=endpointing.max_utterance_ms * SAMPLE_RATE // 1000,
                threshold=endpointing.threshold,
                manual=manual,
            ),
            None if manual else self._make_detector(),
        )

    def _settle_audio(self, now: float) -> None:
        """Let the endpointer hear all audio that came before this message."""
        self._receive_endpoints(self._endpointer.feed(self._decoder.settle()), now)

    def _receive_commit(self, commit: str | None, now: float) -> None:
        if self._phase is not _Phase.STREAMING:
            raise ProtocolError("unexpected_message", "commit after end", "end already ended the last utterance")
        self._settle_audio(now)
        events = self._endpointer.commit()
        if not events:
            hint = "the endpointer may have been first: see the last accepted"
            self._error("nothing_to_commit", "no speech is being heard", hint, commit=commit)
        self._receive_endpoints(events, now, commit)

    def _receive_retry(self, id: str, now: float) -> None:
        entry = self._entries.get(id)
        if entry is None:
            self._error("unknown_utterance", f"no utterance {id!r} is held", "it has had its outcome", utterance=id)
        elif entry.place is not _Place.HELD:
            hint = "only what was refused is offered again"
            self._error("unexpected_message", f"{id} is {entry.place.name.lower()}, not held", hint, utterance=id)
        elif now < entry.hint_at - EARLY_S:
            shed = self._desk.shed(RefusalReason.RETRY_EARLY, now=now)
            until_hint_s = min(max(entry.hint_at - now, 0.5), 1.5)
            self._emit(self._busy(entry, replace(shed, retry_after_s=until_hint_s), self._hold_until(entry) - now))
        elif (utterance := self._desk.reclaim(self.id, id)) is not None:
            self._offer(entry, utterance, now)
        # Otherwise its hold ended in this very moment: the Released that says so is on its way.

    def _receive_cancel(self, id: str | None, now: float) -> None:
        self._settle_audio(now)
        self._claim_heard(id)
        for entry in [self._entries.get(id)] if id is not None else list(self._entries.values()):
            if entry is not None:
                self._desk.withdraw(self.id, entry.id)
                self._drop(entry, DropReason.CANCELLED)
        if id is None:
            self._endpointer.drop()  # also what is not speech yet
        self._advance()

    def _receive_end(self, now: float) -> None:
        if self._phase is not _Phase.STREAMING:
            raise ProtocolError("unexpected_message", "end was sent already", "wait for done")
        if self._decoder.truncated:
            self._error("truncated_pcm", "the stream ended inside a sample", "its last bytes are ignored")
        self._phase = _Phase.ENDING  # from here on, holds are short
        self._settle_audio(now)
        self._receive_endpoints(self._endpointer.finish(), now)
        self.ledger.finish()
        for entry in self._entries.values():
            if entry.place is _Place.HELD:
                self._desk.shorten_hold(self.id, entry.id, until=self._hold_until(entry))
        self._advance()

    # ------------------------------------------------------------ utterances

    def _receive_endpoints(self, events: Iterable[EndpointEvent], now: float, commit: str | None = None) -> None:
        for event in events:
            match event:
                case Onset():
                    self._n_utterances += 1
                    entry = _Entry(f"u{self._n_utterances}", event.start_sample)
                    self._entries[entry.id] = entry
                    self._emit(messages.SpeechStarted(utterance=entry.id, audio_start_ms=ms(entry.start_sample)))
                case Endpoint():
                    entry = self._heard()
                    entry.end_sample = event.end_sample
                    entry.commit = commit
                    entry.n_frames = self.ledger.claim(event.start_sample, event.end_sample)
                    tail = self._endpointer.tail if event.reason is EndpointReason.SILENCE else 0
                    utterance = Utterance(
                        session=self.id,
                        id=entry.id,
                        samples=event.samples,
                        start_sample=event.start_sample,
                        end_sample=event.end_sample,
                        endpoint=event.reason,
                        options=self._options,
                        attempt=0,
                        deaths=self._desk.deaths_while_heard(self.id, entry.id),
                        speech_ended_at=now - (self._endpointer.end - event.end_sample + tail) / SAMPLE_RATE,
                    )
                    self._offer(entry, utterance, now)

    def _tell_draft(self, now: float) -> None:
        """Let the desk know how far the utterance being heard has come."""
        if not self._has_drafts or (spoken := self._endpointer.spoken) is None:
            return
        start, end = spoken.start_sample, spoken.end_sample
        draft = Draft(
            session=self.id,
            id=self._heard().id,
            start_sample=start,
            end_sample=end,
            speech_s=spoken.speech / SAMPLE_RATE,
            pausing=spoken.pausing,
            complete=spoken.complete,
            options=self._options,
            partials=self._start.partials,
            max_wait_s=self._max_wait_s,
            copy=lambda: self._endpointer.copy(start, end),
        )
        self._desk.hear(draft, now=now)

    def _heard(self) -> _Entry:
        return next(entry for entry in self._entries.values() if entry.place is _Place.HEARD)

    def _offer(self, entry: _Entry, utterance: Utterance, now: float) -> None:
        """The next attempt: `accepted` or `busy`."""
        entry.attempt += 1
        utterance = replace(utterance, attempt=entry.attempt)
        match self._desk.offer(utterance, now=now, max_wait_s=self._max_wait_s):
            case Ticket() as ticket:
                entry.place = _Place.ADMITTED
                self._emit(
                    messages.Accepted(
                        utterance=entry.id,
                        attempt=entry.attempt,
                        commit=entry.commit,
                        position=ticket.position,
                        estimated_wait_ms=ms_of(ticket.estimated_wait_s),
                        estimated_final_ms=ms_of(ticket.estimated_final_s),
                        audio_start_ms=ms(utterance.start_sample),
                        audio_end_ms=ms(utterance.end_sample),
                        endpoint=utterance.endpoint.value,
                    )
                )
            case Shed() as shed:
                self._refuse(entry, utterance, shed, now)

    def _refuse(
        self, entry: _Entry, utterance: Utterance, shed: Shed, now: float, waited_s: float | None = None
    ) -> None:
        """`busy`, or `retry` for what had been admitted; then the hold, or `dropped`."""
        # The reason tells of a drain before `receive_state` does; the state also of what expires in it.
        draining = self._draining or shed.reason is RefusalReason.DRAINING
        held = not draining and self._phase is not _Phase.CLOSING
        entry.place = _Place.HELD
        entry.hint_at = now + shed.retry_after_s
        entry.due_at = now + messages.retry_wait_s(shed.reason, shed.retry_after_s, shed.estimated_wait_s)
        if entry.first_refused_at is None:
            entry.first_refused_at = now
        until = self._hold_until(entry)
        self._emit(self._busy(entry, shed, until - now if held else 0.0, waited_s))
        if held:
            self._desk.hold(utterance, until=until)
        else:
            self._drop(entry, DropReason.NOT_HELD)

    def _hold_until(self, entry: _Entry) -> float:
        assert entry.first_refused_at is not None
        if self._phase is _Phase.ENDING:  # a client that knows no retry must not be kept waiting
            return entry.due_at + HOLD_AFTER_REFUSAL_S
        return max(entry.first_refused_at + HOLD_S, entry.due_at + HOLD_AFTER_REFUSAL_S)

    def _busy(
        self, entry: _Entry, shed: Shed, held_s: float, waited_s: float | None = None
    ) -> messages.Busy | messages.Retry:
        fields: dict[str, Any] = {
            "utterance": entry.id,
            "attempt": entry.attempt,
            "commit": entry.commit,
            "retryable": held_s > 0,
            "held_ms": ms_of(held_s),
            **refusal_fields(shed),
        }
        if waited_s is None:
            return messages.Busy(**fields)
        return messages.Retry(**fields, waited_ms=ms_of(waited_s))

    def _claim_heard(self, id: str | None = None) -> None:
        """What is being heard, if it is this utterance, ends here for the ledger and the endpointer."""
        if (heard := self._endpointer.heard) and id in (None, (entry := self._heard()).id):
            entry = self._heard()
            entry.end_sample = heard[1]
            entry.n_frames = self.ledger.claim(*heard)
            self._endpointer.drop()

    def _drop(self, entry: _Entry, reason: DropReason) -> None:
        self.ledger.refused += self._settle(entry, "dropped")
        self._emit(
            messages.Dropped(
                utterance=entry.id,
                reason=reason.value,
                audio_start_ms=ms(entry.start_sample),
                audio_end_ms=ms(entry.end_sample),
            )
        )

    def _drop_unadmitted(self) -> None:
        self._claim_heard()
        for entry in list(self._entries.values()):
            if entry.place is not _Place.ADMITTED:
                self._desk.withdraw(self.id, entry.id)
                self._drop(entry, DropReason.NOT_HELD)

    def _settle(self, entry: _Entry, outcome: str) -> int:
        """The utterance has its one outcome. Returns: its frames, to be booked."""
        del self._entries[entry.id]
        self.outcomes[outcome] += 1
        return entry.n_frames

    # ------------------------------------------------------------ the way out

    def _receive_error(self, error: ProtocolError) -> None:
        close_code = error.close_code
        if error.code == "bad_message":
            self._n_bad_messages += 1
            if self._n_bad_messages >= MAX_BAD_MESSAGES:
                close_code = 1008
        self._error(error.code, error.message, error.hint, fatal=close_code is not None)
        if close_code is not None:
            if error.code == "unauthorized":  # nothing more is told to whoever that is
                self.receive_disconnect()
                self.close = Close(close_code, error.code)
            else:
                self._begin_closing(Close(close_code, error.code))
                self._advance()

    def _begin_closing(self, close: Close) -> None:
        """Read no more; what is admitted still gets its outcome, then the close follows."""
        self._closing = close
        self._phase = _Phase.CLOSING
        self._drop_unadmitted()
        self.ledger.finish()

    def _advance(self) -> None:
        """Close when nothing is outstanding any more."""
        if self._entries:
            return
        if self._phase is _Phase.ENDING:
            self._emit(
                messages.Done(
                    **self.ledger.as_ms(),
                    finals=self.counts["final"],
                    busy=self.counts["busy"],
                    retries=self.counts["retry"],
                    dropped=self.counts["dropped"],
                    errors=self.counts["error"],
                )
            )
            self.close = Close(1000)
        elif self._phase is _Phase.CLOSING:
            self.close = self._closing
        else:
            return
        self._phase = _Phase.CLOSED

    def _error(
        self,
        code: str,
        message: str,
        hint: str,
        *,
        fatal: bool = False,
        utterance: str | None = None,
        commit: str | None = None,
    ) -> None:
        self._emit(
            messages.Error(code=code, message=message, hint=hint, fatal=fatal, utterance=utterance, commit=commit)
        )

    def _emit(self, event: messages.ServerEvent) -> None:
        self._seq += 1
        event.seq = self._seq
        self.counts[str(event.__struct_config__.tag)] += 1
        self._events.append(event)

    def _flush(self) -> list[messages.ServerEvent]:
        events, self._events = self._events, []
        return events


def ms_of(seconds: float) -> int:
    return round(seconds * 1000)


def refusal_fields(shed: Shed) -> dict[str, Any]:
    """The wire's part of a refusal that tells of the queue."""
    return {
        "status": shed.reason.status,
        "reason": shed.reason.value,
        "retry_after_ms": ms_of(shed.retry_after_s),
        "estimated_wait_ms": ms_of(shed.estimated_wait_s),
        "queue_depth": shed.queue_depth,
        "queue_capacity": shed.queue_capacity,
    }


def _final(outcome: Decoded, *, words: bool) -> messages.Final:
    """Times from the utterance's start to the session's, kept inside the utterance."""
    utterance, hypothesis = outcome.utterance, outcome.hypothesis

    def at(seconds: float) -> int:
        return ms(utterance.start_sample + min(round(seconds * SAMPLE_RATE), len(utterance.samples)))

    final = messages.Final(
        utterance=utterance.id,
        attempt=utterance.attempt,
        text=hypothesis.text.strip(),
        language=hypothesis.language,
        language_probability=round(hypothesis.language_probability, 4),
        audio_start_ms=ms(utterance.start_sample),
        audio_end_ms=ms(utterance.end_sample),
        wait_ms=ms_of(outcome.wait_s),
        decode_ms=ms_of(hypothesis.decode_s),
        segments=[
            messages.FinalSegment(
                text=segment.text,
                start_ms=at(segment.start_s),
                end_ms=at(segment.end_s),
                avg_logprob=round(segment.avg_logprob, 4),
                no_speech_prob=round(segment.no_speech_prob, 4),
            )
            for segment in hypothesis.segments
        ],
        filtered=hypothesis.filtered,
        recovered=hypothesis.recovered,
    )
    if words:
        final.words = [
            messages.FinalWord(
                word=word.word, start_ms=at(word.start_s), end_ms=at(word.end_s), probability=round(word.probability, 4)
            )
            for segment in hypothesis.segments
            for word in segment.words
        ]
    return final
