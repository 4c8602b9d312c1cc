"""The law finds each breach, one test a rule, and nothing in what is right.

`tests/core/test_conservation.py` has it judge what sessions say over random schedules.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from asr_ws import messages
from asr_ws.messages import Done, Dropped, Error, Ready, ServerEvent, SpeechStarted, State, Unknown
from asr_ws.testing.conservation import Conservation
from tests.benchmarks.events import accepted, busy, expired, final, partial

READY = Ready(
    protocol="asr-ws.v1",
    session="s-1",
    server="0",
    model="m",
    languages=["en"],
    state="ready",
    limits=messages.Limits(3, 8000, 30_000, 262_144, 64, 60_000),
)
FULL = messages.Busy(
    utterance=None,
    attempt=0,
    commit=None,
    status=503,
    reason="max_sessions",
    retry_after_ms=500,
    estimated_wait_ms=0,
    queue_depth=0,
    queue_capacity=3,
    retryable=True,
    held_ms=0,
)


def begun(utterance: str = "u1") -> SpeechStarted:
    return SpeechStarted(utterance=utterance, audio_start_ms=0)


def dropped(utterance: str = "u1", reason: Any = "cancelled", span_ms: tuple[int, int] = (0, 0)) -> Dropped:
    return Dropped(utterance=utterance, reason=reason, audio_start_ms=span_ms[0], audio_end_ms=span_ms[1])


def error(code: str, utterance: str | None = None, *, fatal: bool = False) -> Error:
    return Error(code=code, message="", hint="", fatal=fatal, utterance=utterance)


def done(**figures: int) -> Done:
    names = ("received_ms", "decoded_ms", "silence_ms", "refused_ms", "lost_ms")
    counts = ("finals", "busy", "retries", "dropped", "errors")
    return Done(**dict.fromkeys((*names, *counts), 0) | figures)


def refused(event: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(event, **fields)


def span(event: Any, start_ms: int, end_ms: int) -> Any:
    return msgspec.structs.replace(event, audio_start_ms=start_ms, audio_end_ms=end_ms)


def judged(*events: ServerEvent | Unknown, code: int | None = None, numbered: bool = True) -> list[str]:
    """The breaches in these events, after a ``ready`` and with their numbers, and in that close."""
    law = Conservation()
    law.receive(READY)
    for seq, event in enumerate(events, 1):
        if numbered and not isinstance(event, Unknown):
            event.seq = seq
        law.receive(event)
    if code is not None:
        law.close(code)
    return law.breaches


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([done()], 1000),
        ([begun(), partial(stable="a"), partial(stable="a b"), accepted(), final(), done(finals=1)], 1000),
        (
            [
                begun(),
                busy(),
                busy(reason="retry_early"),
                busy(attempt=2),
                accepted(attempt=3),
                final(attempt=3),
                done(finals=1, busy=3),
            ],
            1000,
        ),
        ([begun(), accepted(), expired(), accepted(attempt=2), final(attempt=2), done(finals=1, retries=1)], 1000),
        ([begun(), accepted(), error("poison_audio", "u1"), done(errors=1)], 1000),
        ([error("nothing_to_commit"), done(errors=1)], 1000),
        ([begun(), refused(busy(), held_ms=0, retryable=False), dropped(reason="not_held")], 1012),
        ([begun(), accepted(), State(state="draining", partials="on"), final()], 1012),
        ([begun(), begun("u2"), span(accepted(), 0, 500), span(final(), 0, 500), dropped("u2", span_ms=(500, 800)),
          done(received_ms=900, decoded_ms=500, refused_ms=300, silence_ms=100, finals=1, dropped=1)], 1000),
        ([begun(), begun("u2"), dropped(span_ms=(500, 800)), dropped("u2", span_ms=(0, 500)),
          done(received_ms=800, refused_ms=800, dropped=2)], 1000),
        ([error("invalid_samples"), begun(), span(accepted(), 0, 500), span(final(), 0, 500),
          done(received_ms=500, decoded_ms=100, refused_ms=400, finals=1, errors=1)], 1000),
        ([Unknown("new", {"seq": 1})], 1012),
        ([begun(), error("idle", fatal=True)], 1008),
        ([begun(), accepted(), error("slow_consumer", fatal=True)], 1008),
        ([begun(), accepted(), error("bad_message", fatal=True)], 1006),
        ([begun()], 1006),  # what a connection that broke owes is not the law's to say
    ],
)  # fmt: skip
def test_what_is_right_is_no_breach(events: list[ServerEvent], code: int) -> None:
    assert judged(*events, code=code) == []


def test_a_refused_session_is_no_breach() -> None:
    law = Conservation()
    law.receive(FULL)
    law.close(1013)
    assert law.breaches == []


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([begun(), begun()], "a second beginning"),
        ([accepted()], "of an utterance without a beginning"),
        ([begun(), partial(stable="a"), partial(stable="b")], "stable was 'a'"),
        ([begun(), accepted(), partial()], "of an utterance that is admitted"),
        ([begun(), accepted(), final(), partial()], "of an utterance that is decoded"),
        ([begun(), accepted(attempt=2)], "attempt 2, not 1"),
        ([begun(), busy(), busy()], "attempt 1, not 2"),
        ([begun(), busy(), busy(reason="retry_early", attempt=2)], "no new attempt, after 1"),
        ([begun(), accepted(), final(attempt=2)], "attempt 2, not 1"),
        ([begun(), accepted(), accepted(attempt=2)], "of an utterance that is admitted"),
        ([begun(), final(attempt=0)], "of an utterance that is heard"),
        ([begun(), accepted(), expired(), expired()], "of an utterance that is held"),
        ([begun(), accepted(), final(), final()], "of an utterance that is decoded"),
        ([begun(), accepted(), final(), dropped()], "of an utterance that is decoded"),
        ([begun(), dropped(), dropped()], "of an utterance that is gone"),
        ([begun(), error("decode_failed", "u1")], "of an utterance that is heard"),
        ([begun(), accepted(), dropped(reason="evicted")], "of an utterance that is admitted"),
        ([begun(), accepted(), span(final(), 0, 10)], "accepted was (0, 0)"),
        ([error("internal")], "the server is broken"),
        ([begun(), refused(busy(), retry_after_ms=499)], "a hint out of its range"),
        ([begun(), refused(busy(), estimated_wait_ms=-1)], "a wait below nothing"),
        ([begun(), refused(busy(), queue_depth=4)], "more waiting than may"),
        ([begun(), refused(busy(), retryable=False)], "retryable is what is held"),
        ([begun(), busy(reason="draining")], "held while draining"),
        ([begun(), State(state="draining", partials="on"), busy()], "held while draining"),
        ([begun(), refused(busy(), held_ms=0, retryable=False), State(state="ready", partials="on")], "not held"),
        ([done(lost_ms=1, received_ms=1)], "audio was lost"),
        ([done(received_ms=5, silence_ms=4)], "it does not add up"),
        ([begun(), span(accepted(), 0, 9), span(final(), 0, 9), done(finals=1)], "9 ms of utterances are decoded"),
        ([begun(), dropped(span_ms=(0, 9)), done(dropped=1)], "9 ms of utterances are gone"),
        ([begun(), begun("u2"), dropped(span_ms=(0, 2)), dropped("u2", span_ms=(1, 2)), done(dropped=2)], "twice"),
        ([done(finals=1)], "finals, busy, retries, dropped and errors were (0, 0, 0, 0, 0)"),
        ([done(), done()], "after done"),
    ],
)  # fmt: skip
def test_a_breach_is_found(events: list[ServerEvent], said: str) -> None:
    [breach] = judged(*events)
    assert said in breach


@pytest.mark.parametrize("seqs", [[1, 3], [1, 1], [2], [msgspec.UNSET]])
def test_a_gap_in_the_numbers_is_found(seqs: list[Any]) -> None:
    events = [State(state="ready", partials="on", seq=seq) for seq in seqs]
    assert "seq" in judged(*events, numbered=False)[0]


def test_a_session_begins_with_ready() -> None:
    law = Conservation()
    law.receive(State(state="ready", partials="on", seq=1))
    assert "the first event is no ready" in law.breaches[0]


@pytest.mark.parametrize(
    ("events", "code", "said"),
    [
        ([begun(), begun("u2"), accepted("u2"), final("u2")], 1012, "closed 1012 without an outcome of u1"),
        ([begun(), busy(), done(busy=1)], 1000, "closed 1000 without an outcome of u1"),
        ([begun(), accepted(), error("idle", fatal=True)], 1008, "closed 1008 without an outcome of u1"),
        ([], 1000, "closed 1000 with None"),
        ([done()], 1012, "closed 1012 with Done"),
    ],
)
def test_a_close_that_leaves_something_open_is_found(events: list[ServerEvent], code: int, said: str) -> None:
    [breach] = judged(*events, code=code)
    assert said in breach


def test_what_has_no_outcome_yet_can_be_asked_for() -> None:
    law = Conservation()
    law.receive(READY)
    for seq, event in enumerate((begun(), begun("u2"), begun("u3"), accepted("u2"), final("u2")), 1):
        event.seq = seq
        law.receive(event)
    assert law.unsettled == ["u1", "u3"]
