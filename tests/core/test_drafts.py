"""Drafts: which is decoded when, rule by rule. A final's decode is expected to take 1 s, a partial's 0.25 s."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_ws.core.drafts import Draft, DraftDecode, DraftKind, Drafts
from asr_ws.core.types import (
    DecodeOptions,
    EndpointReason,
    Hypothesis,
    Partial,
    SessionId,
    Utterance,
)
from asr_ws.testing.desk import ConstantServiceTime

A, B = SessionId("a"), SessionId("b")
OPTIONS = DecodeOptions(None, prompt="names", words=True)
SPEAKING = Draft(A, "u1", 1600, 17_600, 0.9, False, False, OPTIONS, True, 8.0, lambda: np.zeros(16_000, np.float32))
PAUSING = replace(SPEAKING, pausing=True)
COMPLETE = replace(PAUSING, complete=True)


def drafts_of(*heard: Draft, partials: bool = True, speculation: bool = True) -> Drafts:
    drafts = Drafts(ConstantServiceTime(1.0), ConstantServiceTime(0.25), partials=partials, speculation=speculation)
    for draft in heard:
        drafts.hear(draft, now=0.0)
    return drafts


def longer(draft: Draft, by_s: float = 1.0) -> Draft:
    return replace(draft, end_sample=draft.end_sample + round(by_s * 16_000), speech_s=draft.speech_s + by_s)


def text(said: str, *, language: str = "en") -> Hypothesis:
    return Hypothesis(said, language, 1.0, (), None, 0.25)


def ended(draft: Draft, **changes: int) -> Utterance:
    samples = draft.copy()
    utterance = Utterance(
        draft.session, draft.id, samples, draft.start_sample, draft.end_sample, EndpointReason.SILENCE, OPTIONS
    )
    return replace(utterance, **changes)


def begin(drafts: Drafts, now: float) -> DraftDecode:
    decode = drafts.begin(now)
    assert decode is not None
    return decode


def kind(decode: DraftDecode | None) -> tuple[SessionId, DraftKind] | None:
    return None if decode is None else (decode.draft.session, decode.kind)


def partial(drafts: Drafts, said: str, *, now: float, took_s: float = 0.25) -> Partial | None:
    """A partial that begins now. Returns: what is shown."""
    return drafts.end(begin(drafts, now), text(said), now=now + took_s)


# ---------------------------------------------------------------- when a partial is due


@pytest.mark.parametrize(("speech_s", "due"), [(0.499, None), (0.5, (A, DraftKind.PARTIAL))])
def test_no_partial_in_the_first_half_second_of_speech(speech_s: float, due: object) -> None:
    assert kind(drafts_of(replace(SPEAKING, speech_s=speech_s)).begin(0.0)) == due


@pytest.mark.parametrize(("partial_s", "spacing_s"), [(0.1, 0.3), (0.25, 0.5), (1.0, 2.0), (4.0, 2.0)])
def test_partials_of_a_session_are_spaced_by_their_estimate(partial_s: float, spacing_s: float) -> None:
    drafts = Drafts(ConstantServiceTime(1.0), ConstantServiceTime(partial_s))
    drafts.hear(SPEAKING, now=0.0)
    assert partial(drafts, "a", now=10.0, took_s=0.01)
    for now, begins in ((10.0 + spacing_s - 0.001, None), (10.0 + spacing_s, (A, DraftKind.PARTIAL))):
        drafts.hear(longer(SPEAKING), now=now)
        assert kind(drafts.begin(now)) == begins


def test_first_partial_tells_how_long_it_took_since_the_onset() -> None:
    drafts = drafts_of()
    drafts.hear(replace(SPEAKING, speech_s=0.2), now=9.7)  # so speech began at 9.5
    drafts.hear(SPEAKING, now=10.0)
    shown = [partial(drafts, "one two", now=10.0)]
    drafts.hear(longer(SPEAKING), now=11.0)
    shown.append(partial(drafts, "one two three", now=11.0))
    assert [each and each.since_onset_s for each in shown] == [0.75, None]


def test_spacing_outlasts_the_utterance() -> None:
    drafts = drafts_of(SPEAKING)
    partial(drafts, "a", now=10.0)
    drafts.claim(ended(SPEAKING))
    drafts.hear(replace(SPEAKING, id="u2"), now=10.499)
    assert (drafts.begin(10.499), kind(drafts.begin(10.5))) == (None, (A, DraftKind.PARTIAL))


def test_partials_take_at_most_half_of_the_time() -> None:
    drafts = drafts_of(SPEAKING, replace(SPEAKING, session=B))
    partial(drafts, "a", now=10.0, took_s=3.0)
    assert drafts.begin(15.999) is None
    assert drafts.next_moment(15.0) == 16.0
    assert kind(drafts.begin(16.0)) == (B, DraftKind.PARTIAL)


def test_partials_go_round_robin() -> None:
    drafts = drafts_of(*(replace(SPEAKING, session=SessionId(id)) for id in "abc"))
    turns = []
    for n in range(1, 7):
        decode = begin(drafts, now := 10.0 * n)
        turns.append(decode.draft.session)
        drafts.end(decode, text("x"), now=now + 0.25)
        drafts.hear(longer(decode.draft), now=now + 0.5)
    assert turns == list("abcabc")


def test_no_partial_where_there_is_nothing_new_to_hear() -> None:
    drafts = drafts_of(SPEAKING)
    partial(drafts, "a", now=10.0)
    drafts.hear(SPEAKING, now=20.0)
    assert (drafts.begin(20.0), drafts.next_moment(20.0)) == (None, None)


@pytest.mark.parametrize(("age_s", "begins"), [(0.05, True), (0.051, False), (0.249, False), (0.25, True)])
def test_partial_begins_with_audio_that_has_just_come_or_where_no_more_comes(age_s: float, begins: bool) -> None:
    drafts = drafts_of(SPEAKING)
    assert drafts.next_moment(0.0) == 0.25
    assert (drafts.begin(age_s) is not None) == begins


def test_next_moment_is_never_over() -> None:
    drafts = drafts_of(SPEAKING)
    assert (drafts.next_moment(0.249), drafts.next_moment(0.25)) == (0.25, None)


def test_who_waits_for_his_audio_keeps_his_turn() -> None:
    drafts = drafts_of(SPEAKING)
    partial(drafts, "b", now=1.0)
    drafts.hear(longer(SPEAKING), now=9.0)
    drafts.hear(replace(SPEAKING, session=B), now=8.9)
    assert drafts.begin(9.0) is None, "it is the other's turn, whose audio is due"
    drafts.hear(replace(SPEAKING, session=B), now=9.01)
    assert kind(drafts.begin(9.01)) == (B, DraftKind.PARTIAL)


def test_no_partial_while_a_pause_may_complete_the_audio() -> None:
    drafts = drafts_of(PAUSING)
    assert (drafts.begin(9.0), drafts.next_moment(9.0)) == (None, None)
    drafts.hear(SPEAKING, now=9.0)
    assert kind(drafts.begin(9.0)) == (A, DraftKind.PARTIAL)


def test_no_partial_for_a_session_that_wants_none_or_a_server_without() -> None:
    assert drafts_of(replace(SPEAKING, partials=False)).begin(9.0) is None
    assert drafts_of(SPEAKING, partials=False).begin(9.0) is None


def test_what_ended_or_was_withdrawn_gets_none() -> None:
    drafts = drafts_of(SPEAKING, replace(SPEAKING, session=B))
    drafts.claim(ended(SPEAKING))
    drafts.forget(B, "u2")
    assert kind(drafts.begin(9.0)) == (B, DraftKind.PARTIAL)
    drafts = drafts_of(SPEAKING, replace(SPEAKING, session=B))
    drafts.forget(A, "u1")
    drafts.forget(B)
    assert drafts.begin(9.0) is None


# ---------------------------------------------------------------- how a partial is decoded, and what is shown


def test_partial_is_forced_to_begin_with_the_stable_text_in_its_language() -> None:
    drafts = drafts_of(SPEAKING)
    decode = begin(drafts, 10.0)
    assert decode.options == DecodeOptions(None, prompt="names", partial=True)
    assert (decode.expected_s, decode.began_at) == (0.25, 10.0)
    assert drafts.end(decode, text(" Hola que", language="es"), now=10.25) == Partial(A, "u1", "", "Hola que", 17_600)
    drafts.hear(longer(SPEAKING), now=11.0)
    assert begin(drafts, 11.0).options.language is None, "nothing is stable yet"
    drafts = drafts_of(SPEAKING)
    for n, said in enumerate((" Hola que", " Hola que tal")):
        shown = partial(drafts, said, now=10.0 + n)
        drafts.hear(longer(SPEAKING, n + 1.0), now=10.5 + n)
    assert shown == Partial(A, "u1", "Hola que", " tal", 33_600)
    assert begin(drafts, 12.0).options == DecodeOptions("en", prompt="names", partial=True, prefix="Hola que")


def test_nothing_found_leaves_what_is_shown() -> None:
    drafts = drafts_of(SPEAKING)
    for n, said in enumerate((" Turn on the", " Turn on the lights", "", " lights now")):
        shown = partial(drafts, said, now=10.0 + n)
        assert (shown is None) == (said == "")
        drafts.hear(longer(SPEAKING, n + 1.0), now=10.5 + n)
    assert shown == Partial(A, "u1", "Turn on the lights", " now", 65_600)


def test_no_partial_for_a_session_that_would_not_wait_for_it() -> None:
    drafts = drafts_of(replace(SPEAKING, max_wait_s=0.249), replace(SPEAKING, session=B, max_wait_s=0.25))
    assert [kind(drafts.begin(9.0)) for _ in range(2)] == [(B, DraftKind.PARTIAL), None]


def test_partial_that_comes_back_late_is_discarded() -> None:
    drafts = drafts_of(SPEAKING)
    decode = begin(drafts, 10.0)
    drafts.claim(ended(SPEAKING))
    drafts.hear(replace(SPEAKING, id="u2"), now=10.1)
    assert drafts.end(decode, text("a"), now=10.25) is None


# ---------------------------------------------------------------- speculation


def test_speculation_begins_when_the_audio_is_complete_with_the_finals_settings() -> None:
    drafts = drafts_of(PAUSING)
    assert drafts.begin(0.0) is None
    drafts.hear(COMPLETE, now=0.1)
    decode = begin(drafts, 0.1)
    assert (kind(decode), decode.options, decode.expected_s) == ((A, DraftKind.SPECULATION), OPTIONS, 1.0)
    assert (drafts.begin(5.0), drafts.next_moment(5.0)) == (None, None), "one for each pause, and no partial beside it"


def test_speculation_knows_neither_early_speech_nor_spacing_nor_rest() -> None:
    drafts = drafts_of(SPEAKING)
    partial(drafts, "a", now=10.0)
    drafts.hear(COMPLETE, now=10.25)
    assert kind(drafts.begin(10.25)) == (A, DraftKind.SPECULATION)
    assert kind(drafts_of(replace(COMPLETE, speech_s=0.1)).begin(0.0)) == (A, DraftKind.SPECULATION)


def test_speculations_go_first_the_longest_complete_before_others() -> None:
    drafts = drafts_of(replace(SPEAKING, session=SessionId("c")))
    drafts.hear(COMPLETE, now=1.0)
    drafts.hear(replace(COMPLETE, session=B), now=0.5)
    assert [kind(drafts.begin(2.0)) for _ in range(3)] == [
        (B, DraftKind.SPECULATION),
        (A, DraftKind.SPECULATION),
        ("c", DraftKind.PARTIAL),
    ]


def test_endpoint_claims_the_speculation_that_heard_exactly_it() -> None:
    drafts = drafts_of(COMPLETE)
    decode = begin(drafts, 0.0)
    assert drafts.claim(ended(COMPLETE)) is decode
    assert drafts.n_wasted == 0
    assert drafts.claim(ended(COMPLETE)) is None, "it is claimed once"


@pytest.mark.parametrize("changes", [{"end_sample": 17_601}, {"start_sample": 1601}])
def test_speculation_on_other_audio_is_wasted(changes: dict[str, int]) -> None:
    drafts = drafts_of(COMPLETE)
    begin(drafts, 0.0)
    assert drafts.claim(ended(COMPLETE, **changes)) is None
    assert drafts.n_wasted == 1


def test_retry_of_an_earlier_utterance_claims_nothing() -> None:
    drafts = drafts_of(replace(COMPLETE, id="u2"))
    decode = begin(drafts, 0.0)
    assert drafts.claim(ended(COMPLETE)) is None
    assert drafts.claim(ended(replace(COMPLETE, id="u2"))) is decode


def test_speech_that_goes_on_makes_a_partial_of_the_speculation_and_the_next_pause_has_its_own() -> None:
    drafts = drafts_of(COMPLETE)
    first = begin(drafts, 0.0)
    drafts.hear(longer(SPEAKING), now=0.5)
    assert drafts.end(first, text("Turn on."), now=1.0) == Partial(A, "u1", "", "Turn on.", 17_600)
    drafts.hear(longer(COMPLETE), now=1.5)
    second = begin(drafts, 1.5)
    assert drafts.claim(ended(longer(COMPLETE))) is second
    assert drafts.n_wasted == 1


def test_a_pause_after_speech_of_which_nothing_else_was_told_has_its_own_speculation_too() -> None:
    drafts = drafts_of(COMPLETE)
    begin(drafts, 0.0)
    drafts.hear(longer(COMPLETE, 0.25), now=3.0)
    assert drafts.claim(ended(longer(COMPLETE, 0.25))) is None
    assert drafts.n_wasted == 1


def wasting(n: int) -> Drafts:
    """So many speculations of A, wasted one after the other, the last of them begun at 0."""
    drafts = drafts_of(partials=True)
    for each in range(n):
        drafts.hear(longer(COMPLETE, each), now=each + 1.0 - n)
        assert kind(begin(drafts, each + 1.0 - n)) == (A, DraftKind.SPECULATION)
        drafts.hear(longer(SPEAKING, each + 0.5), now=each + 1.5 - n)
    return drafts


@pytest.mark.parametrize(("n", "begins_at"), [(3, 1.5), (4, 3.0)])
def test_after_more_than_three_wasted_speculations_their_session_has_none_for_twice_as_long(
    n: int, begins_at: float
) -> None:
    drafts = wasting(n)
    assert drafts.hear(longer(COMPLETE, n), now=1.5) == begins_at
    if begins_at > 1.5:
        assert (kind(drafts.begin(begins_at - 0.001)), drafts.next_moment(2.5)) == (None, begins_at)
    assert kind(drafts.begin(begins_at)) == (A, DraftKind.SPECULATION)


def test_the_rest_goes_by_what_the_wasted_speculation_took() -> None:
    drafts = wasting(4)
    drafts.hear(longer(COMPLETE, 4), now=3.0)
    late = begin(drafts, 3.0)
    drafts.hear(longer(SPEAKING, 4.5), now=3.5)
    drafts.end(late, text("a"), now=7.0)
    assert drafts.hear(longer(COMPLETE, 5), now=7.5) == 15.0


def test_partials_that_are_due_come_before_a_session_that_wasted_too_many_speculations() -> None:
    drafts = wasting(4)
    drafts.hear(longer(COMPLETE, 4), now=3.0)
    drafts.hear(replace(SPEAKING, session=B), now=3.0)
    assert [kind(drafts.begin(3.0)) for _ in range(2)] == [(B, DraftKind.PARTIAL), (A, DraftKind.SPECULATION)]
    assert drafts.claim(ended(longer(COMPLETE, 4))) is not None
    drafts.hear(replace(COMPLETE, id="u2"), now=6.0)
    drafts.hear(replace(longer(SPEAKING), session=B), now=6.0)
    assert kind(drafts.begin(6.0)) == (A, DraftKind.SPECULATION), "it became a final: the next comes first again"


def test_speculation_shows_its_text_before_the_endpoint_to_those_who_want_partials() -> None:
    drafts = drafts_of(COMPLETE, replace(COMPLETE, session=B, partials=False))
    shown = [drafts.end(begin(drafts, now), text("Turn on."), now=now + 0.5) for now in (0.0, 1.0)]
    assert shown == [Partial(A, "u1", "", "Turn on.", 17_600), None]
    drafts = drafts_of(COMPLETE, partials=False)
    assert drafts.end(begin(drafts, 0.0), text("Turn on."), now=0.5) is None


def test_speculation_that_contradicts_the_stable_text_shows_nothing() -> None:
    drafts = drafts_of(SPEAKING)
    partial(drafts, "Turn on", now=10.0)
    drafts.hear(longer(SPEAKING), now=11.0)
    partial(drafts, "Turn on the", now=11.0)
    drafts.hear(longer(COMPLETE, 2.0), now=12.0)
    assert drafts.end(begin(drafts, 12.0), text("Earn on the lights"), now=13.0) is None


def test_without_speculation_a_pause_has_one_partial() -> None:
    drafts = drafts_of(PAUSING, speculation=False)
    assert drafts.begin(9.0) is None
    drafts.hear(COMPLETE, now=9.0)
    assert kind(drafts.begin(9.0)) == (A, DraftKind.PARTIAL)
    assert drafts.next_moment(9.0) is None


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("died", [False, True])
@pytest.mark.parametrize("first", [SPEAKING, COMPLETE])
def test_what_failed_or_killed_gets_no_more_of_either(first: Draft, died: bool) -> None:
    drafts = drafts_of(first)
    assert drafts.fail(begin(drafts, 0.0), died=died, now=0.5)
    assert drafts.deaths(A, "u1") == int(died)
    for draft in (longer(SPEAKING), longer(COMPLETE)):
        drafts.hear(draft, now=9.0)
        assert (drafts.begin(9.0), drafts.next_moment(9.0)) == (None, None)
    assert drafts.claim(ended(first)) is None
    assert drafts.deaths(A, "u1") == 0, "it has ended, and took its deaths along"


def test_failure_under_what_has_ended_is_for_others_to_count() -> None:
    drafts = drafts_of(SPEAKING)
    decode = begin(drafts, 0.0)
    drafts.claim(ended(SPEAKING))
    assert not drafts.fail(decode, died=True, now=0.5)


# ---------------------------------------------------------------- load


def test_paused_when_one_has_been_due_and_the_worker_not_free_for_two_seconds() -> None:
    drafts = drafts_of(replace(SPEAKING, speech_s=0.1))
    assert drafts.paused_from(0.0) is None, "not due"
    drafts.hear(SPEAKING, now=3.0)
    assert (drafts.paused_from(0.0), drafts.paused_from(4.0)) == (5.0, 6.0)
    partial(drafts, "a", now=6.0)
    drafts.hear(longer(SPEAKING), now=6.3)
    assert drafts.paused_from(6.0) == 8.5, "two seconds after its spacing"
    drafts.claim(ended(SPEAKING))
    assert drafts.paused_from(0.0) is None, "nobody is denied one"


def test_no_speculation_where_the_final_would_not_wait_for_it() -> None:
    drafts = drafts_of(replace(COMPLETE, max_wait_s=0.999), replace(COMPLETE, session=B, max_wait_s=1.0))
    assert kind(begin(drafts, 0.0)) == (B, DraftKind.SPECULATION)
    assert kind(drafts.begin(0.0)) == (A, DraftKind.PARTIAL)


@given(
    waits_s=st.lists(st.floats(0, 2), min_size=2, max_size=12),
    took_s=st.lists(st.floats(0.01, 2), min_size=12, max_size=12),
    n_sessions=st.integers(1, 3),
)
def test_share_and_spacing_hold_whenever_it_is_asked(
    waits_s: list[float], took_s: list[float], n_sessions: int
) -> None:
    spoken = [replace(SPEAKING, session=SessionId(str(n))) for n in range(n_sessions)]
    drafts, now = drafts_of(*spoken), 10.0
    began: list[tuple[float, SessionId]] = []
    busy_s = 0.0
    for wait_s, lasts_s in zip(waits_s, took_s, strict=False):
        now += wait_s
        if (decode := drafts.begin(now)) is None:
            continue
        assert not began or busy_s <= (now - began[0][0]) / 2 + 1e-9
        assert all(now - at >= 0.5 - 1e-9 for at, session in began if session == decode.draft.session)
        began.append((now, decode.draft.session))
        now += lasts_s
        busy_s += lasts_s
        drafts.end(decode, text("x"), now=now)
        drafts.hear(longer(decode.draft), now=now)
    assert began
