"""What the worker decodes of utterances that are still being heard, when it has nothing else to do.

A *partial* is a quick decode of the utterance so far; its text is shown and replaced. A *speculation* decodes with the
final's settings as soon as the audio is complete unless speech goes on; at the endpoint it becomes the final. Rules:

- Neither starts unless the worker is idle and nothing waits (the desk sees to that). Speculations go first.
- No partial in the utterance's first 0.5 s of speech, nor within max(0.3 s, twice its estimate) of the session's last
  one, start to start, nor while a pause lets the audio come to its end, nor where there is nothing new to hear.
- A partial begins when audio has just come; otherwise it waits for the next, which may show that speech has ended: the
  speculation would have to wait for it then. Where none comes for 0.25 s it begins with what there is.
- After a partial as much time as it took passes without one: they take at most half of the worker's time.
- Neither for a session whose finals would not wait for it.
- Round robin: of the sessions whose partial is due, the one whose last was longest ago.
- A speculation is exempt from these, there is one for each pause, and where speech goes on its text is shown as a
  partial's. Where more than three in a row were wasted so, their session has no other for twice as long as the last one
  took, and the next comes after partials that are due; until one becomes a final again.
- What comes back after the endpoint is discarded. Under which the worker died, or which failed, gets no more of either.
- Partials are paused when one has been due for 2 s without the worker's being free, until it is.

``now`` is monotonic seconds throughout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from asr_ws.core.partials import PartialText
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.types import (
    SAMPLE_RATE,
    DecodeOptions,
    Hypothesis,
    Partial,
    Samples,
    SessionId,
    Utterance,
)

EARLY_SPEECH_S = 0.5  # of speech before the first partial: less is mostly one word, and mostly wrong
MIN_SPACING_S = 0.3  # between two partials of a session, start to start: text that changes faster is not read
SPACING_ESTIMATES = 2.0  # ... and so many times what the next is expected to take
FRESH_S, STALE_S = 0.05, 0.25  # age of the audio: just come, and where no more seems to come. Frames are 20-100 ms
PAUSED_AFTER_S = 2.0
FREE_WASTES = 3  # in a row: who thinks while he speaks makes pauses too
WASTE_RESTS = 2.0  # so that a session which only makes pauses has a third of the worker's time at most
NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Draft:
    """An utterance that is being heard; ``start_sample..end_sample`` is what a commit would end now."""

    session: SessionId
    id: str
    start_sample: int
    end_sample: int
    speech_s: float  # from its first speech to its last
    pausing: bool  # no speech at this moment
    complete: bool  # nothing will be added to it unless speech goes on
    options: DecodeOptions
    partials: bool  # whether its session wants any
    max_wait_s: float  # for a final
    copy: Callable[[], Samples]  # of these samples, as long as nothing more is heard

    @property
    def audio_s(self) -> float:
        return (self.end_sample - self.start_sample) / SAMPLE_RATE


class DraftKind(Enum):
    PARTIAL = auto()
    SPECULATION = auto()


@dataclass(slots=True, eq=False)
class DraftDecode:
    """One decode of a draft, from its beginning; ``hypothesis`` once a speculation has come to its end."""

    kind: DraftKind
    draft: Draft
    options: DecodeOptions
    expected_s: float  # what it took, once it has ended
    began_at: float
    hypothesis: Hypothesis | None = None


@dataclass(slots=True)
class _Heard:
    """What is remembered of a session's utterance while it is being heard."""

    draft: Draft
    heard_at: float
    onset_at: float
    text: PartialText = field(default_factory=PartialText)
    language: str | None = None  # of the stable text: a language that changes would not fit it
    enough_from: float | None = None  # speech for a partial
    due_at: float | None = None  # its next partial, but for the others' turns; None: not as things are
    complete_from: float | None = None
    decoded_until: int = 0  # samples that the last decode heard
    speculation: DraftDecode | None = None  # of the pause that lasts
    barred: bool = False
    deaths: int = 0


class Drafts:
    """Args:
    partials, speculation: whether there are any.
    final_time, partial_time: how long decodes take, with a final's settings and with a partial's.
    """

    def __init__(
        self, final_time: ServiceTime, partial_time: ServiceTime, *, partials: bool = True, speculation: bool = True
    ) -> None:
        self.partials = partials
        self.n_wasted = 0  # speculations that no endpoint found, or that failed
        self._speculation = speculation
        self._final_time = final_time
        self._partial_time = partial_time
        self._heard: dict[SessionId, _Heard] = {}
        self._last_partial: dict[SessionId, float] = {}  # when it began
        self._wasted_in_a_row = Counter[SessionId]()
        self._speculates_from: dict[SessionId, float] = {}  # of those that wasted too many
        self._rest_until = NEVER

    # ------------------------------------------------------------ what is heard

    def hear(self, draft: Draft, *, now: float) -> float | None:
        """The session's utterance as far as it has been heard; to be said whenever that changes.

        Returns: When `begin` may have something of it, ``now`` included; None: not before more is heard.
        """
        heard = self._heard.get(draft.session)
        if heard is None or heard.draft.id != draft.id:
            heard = self._heard[draft.session] = _Heard(draft, now, now - draft.speech_s)
        if not draft.complete or draft.end_sample != heard.draft.end_sample:
            heard.complete_from = None
            self._waste(heard)  # speech went on
        if draft.complete and heard.complete_from is None:
            heard.complete_from = now
        heard.draft, heard.heard_at = draft, now
        if heard.enough_from is None and draft.speech_s >= EARLY_SPEECH_S:
            heard.enough_from = now
        heard.due_at = self._due_at(heard)
        if self._may_speculate(heard):
            return max(now, self._speculates_from.get(draft.session, now))
        if heard.due_at is None:
            return None
        begins_at = max(heard.due_at, self._rest_until)
        return now if begins_at <= now else max(begins_at, now + STALE_S)

    def forget(self, session: SessionId, utterance: str | None = None) -> None:
        """That utterance, or whatever of the session, ended without being offered."""
        if (heard := self._heard.get(session)) and utterance in (None, heard.draft.id):
            self._waste(self._heard.pop(session))
        if utterance is None:
            self._last_partial.pop(session, None)
            self._trust(session)

    def deaths(self, session: SessionId, utterance: str) -> int:
        """How often the worker died under decodes of this utterance while it was being heard."""
        heard = self._heard.get(session)
        return heard.deaths if heard is not None and heard.draft.id == utterance else 0

    def claim(self, utterance: Utterance) -> DraftDecode | None:
        """The utterance has ended. Returns: the speculation that heard exactly it, running or finished."""
        heard = self._heard.get(utterance.session)
        if heard is None or heard.draft.id != utterance.id:
            return None
        found = self._heard.pop(utterance.session).speculation
        if found is None:
            return None
        if (found.draft.start_sample, found.draft.end_sample) != (utterance.start_sample, utterance.end_sample):
            self._waste(heard)
            return None
        self._trust(utterance.session)
        return found

    # ------------------------------------------------------------ what is decoded

    def begin(self, now: float) -> DraftDecode | None:
        """The decode to start now, if any; the caller has an idle worker, and nothing waits."""
        complete = [
            heard
            for session, heard in self._heard.items()
            if self._may_speculate(heard) and self._speculates_from.get(session, now) <= now
        ]
        complete.sort(key=lambda heard: heard.complete_from or now)
        if sound := [heard for heard in complete if heard.draft.session not in self._speculates_from]:
            return self._begin_speculation(sound[0], now)
        due = [heard for heard in self._heard.values() if heard.due_at is not None and heard.due_at <= now]
        if due and self._rest_until <= now:
            heard = min(due, key=lambda heard: self._last_partial.get(heard.draft.session, NEVER))
            if not FRESH_S < now - heard.heard_at < STALE_S:
                return self._begin_partial(heard, now)
        return self._begin_speculation(complete[0], now) if complete else None

    def next_moment(self, now: float) -> float | None:
        """When `begin` may have something that it has not yet; None: not before more is heard."""
        moments = [
            max(heard.due_at, self._rest_until, heard.heard_at + STALE_S)
            for heard in self._heard.values()
            if heard.due_at is not None
        ]
        moments += [at for session, at in self._speculates_from.items() if session in self._heard]
        return min((moment for moment in moments if moment > now), default=None)

    def paused_from(self, free_at: float, session: SessionId | None = None) -> float | None:
        """When load will have stopped the partials of that session, or of any, if the worker has not been free since
        ``free_at``.
        """
        heard = self._heard.values() if session is None else (self._heard[session],)
        first = min((each.due_at for each in heard if each.due_at is not None), default=None)
        return None if first is None else max(first, self._rest_until, free_at) + PAUSED_AFTER_S

    def end(self, decode: DraftDecode, hypothesis: Hypothesis, *, now: float) -> Partial | None:
        """How it came out. Returns: what there is to show."""
        self._took(decode, now)
        if decode.kind is DraftKind.PARTIAL:
            self._rest_until = now + (now - decode.began_at)
            self._partial_time.observe(decode.draft.audio_s, now - decode.began_at)
        else:
            self._final_time.observe(decode.draft.audio_s, now - decode.began_at)
            decode.hypothesis = hypothesis
        heard = self._still(decode)
        # Nothing found is no text: what has been shown stays.
        if heard is None or not self._shown(decode.draft) or not hypothesis.text.strip():
            return None
        text = heard.text
        since_onset_s = None if text.stable or text.unstable else now - heard.onset_at
        receive = text.receive if decode.kind is DraftKind.PARTIAL else text.receive_whole
        if not receive(hypothesis.text):
            return None
        heard.language = hypothesis.language if text.stable else None
        draft = decode.draft
        return Partial(draft.session, draft.id, text.stable, text.unstable, draft.end_sample, since_onset_s)

    def fail(self, decode: DraftDecode, *, died: bool, now: float) -> bool:
        """It raised, or the worker died under it. Returns: whether the utterance is still being heard."""
        self._took(decode, now)
        self._rest_until = now + (now - decode.began_at)
        heard = self._still(decode)
        if heard is None:
            return False
        heard.barred, heard.due_at = True, None
        heard.deaths += died
        self._waste(heard)
        return True

    # ------------------------------------------------------------ rules

    def _may_speculate(self, heard: _Heard) -> bool:
        return self._is_for_speculation(heard.draft) and not heard.barred and heard.speculation is None

    def _is_for_speculation(self, draft: Draft) -> bool:
        return self._speculation and draft.complete and self._final_time.estimate(draft.audio_s) <= draft.max_wait_s

    def _due_at(self, heard: _Heard) -> float | None:
        """As `_Heard.due_at`, which is kept because it is asked for at every frame of everybody's audio."""
        draft = heard.draft
        pauses = draft.pausing and not draft.complete
        if heard.enough_from is None or heard.barred or pauses or self._is_for_speculation(draft):
            return None
        estimate_s = self._partial_estimate(draft.audio_s)
        if not self._shown(draft) or draft.end_sample <= heard.decoded_until or estimate_s > draft.max_wait_s:
            return None
        last = self._last_partial.get(draft.session, NEVER)
        return max(heard.enough_from, last + max(MIN_SPACING_S, SPACING_ESTIMATES * estimate_s))

    def _shown(self, draft: Draft) -> bool:
        return self.partials and draft.partials

    def _waste(self, heard: _Heard) -> None:
        if (wasted := heard.speculation) is not None:
            heard.speculation = None
            self.n_wasted += 1
            self._wasted_in_a_row[wasted.draft.session] += 1
            if self._wasted_in_a_row[wasted.draft.session] > FREE_WASTES:
                self._rest_after(wasted)

    def _rest_after(self, wasted: DraftDecode) -> None:
        self._speculates_from[wasted.draft.session] = wasted.began_at + (1 + WASTE_RESTS) * wasted.expected_s

    def _took(self, decode: DraftDecode, now: float) -> None:
        decode.expected_s = now - decode.began_at
        if decode.kind is DraftKind.SPECULATION and decode.draft.session in self._speculates_from:
            self._rest_after(decode)

    def _trust(self, session: SessionId) -> None:
        del self._wasted_in_a_row[session]
        self._speculates_from.pop(session, None)

    def _begin_partial(self, heard: _Heard, now: float) -> DraftDecode:
        draft = heard.draft
        self._last_partial[draft.session] = now
        options = replace(
            draft.options,
            partial=True,
            prefix=heard.text.stable,
            language=draft.options.language or heard.language,
            words=False,
        )
        return self._began(heard, DraftKind.PARTIAL, options, self._partial_estimate(draft.audio_s), now)

    def _begin_speculation(self, heard: _Heard, now: float) -> DraftDecode:
        expected_s = self._final_time.estimate(heard.draft.audio_s)
        decode = self._began(heard, DraftKind.SPECULATION, heard.draft.options, expected_s, now)
        heard.speculation = decode
        return decode

    def _partial_estimate(self, audio_s: float) -> float:
        """Never more than a final's: those are decoded also where a partial seemed too long to be waited for."""
        return min(self._partial_time.estimate(audio_s), self._final_time.estimate(audio_s))

    def _began(
        self, heard: _Heard, kind: DraftKind, options: DecodeOptions, expected_s: float, now: float
    ) -> DraftDecode:
        heard.decoded_until, heard.due_at = heard.draft.end_sample, None
        return DraftDecode(kind, heard.draft, options, expected_s, now)

    def _still(self, decode: DraftDecode) -> _Heard | None:
        heard = self._heard.get(decode.draft.session)
        return heard if heard is not None and heard.draft.id == decode.draft.id else None
