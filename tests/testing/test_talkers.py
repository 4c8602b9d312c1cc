"""What a step is judged by, how many to try next, and what a talker says."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from asr_ws import messages
from asr_ws.testing.figures import Spread
from asr_ws.testing.talkers import (
    FRAME_BYTES,
    Step,
    Talk,
    Told,
    counted,
    cut,
    least_talkers,
    most_carried,
    next_talkers,
    says,
    speech_pcm,
    turns,
)
from tests.benchmarks.events import accepted, busy, expired, final, partial

DROPPED = messages.Dropped(utterance="u1", reason="evicted", audio_start_ms=0, audio_end_ms=2000)


def told(*heard: tuple[float, Any]) -> Told:
    talk = Talk(began=100.0)
    for at, event in heard:
        talk.receive(event, now=at)
    (utterance,) = talk.utterances.values()
    return utterance


# ---------------------------------------------------------------- an utterance


@pytest.mark.parametrize(
    ("heard", "wait_s"),
    [
        ([(110.0, accepted()), (113.0, final(decode_ms=1000))], 2.0),
        ([(110.0, busy()), (112.0, accepted(attempt=2)), (115.0, final(decode_ms=1000, attempt=2))], 4.0),
        ([(110.0, accepted()), (111.5, expired()), (112.0, accepted()), (112.5, final(decode_ms=500))], 2.0),
        ([(110.0, accepted()), (110.1, final(decode_ms=900))], 0.0),  # it was decoded before its end
        ([(110.0, busy())], 20.0),  # until now
    ],
)
def test_a_wait_lasts_from_the_first_verdict_to_the_final_without_the_decode(
    heard: list[tuple[float, Any]], wait_s: float
) -> None:
    assert told(*heard).wait_s(130.0) == pytest.approx(wait_s)


def test_what_one_utterance_was_told() -> None:
    assert told(
        (104.0, partial()),
        (105.0, partial()),
        (106.0, busy()),
        (107.0, busy(reason="retry_early")),
        (108.0, accepted(attempt=2, endpoint="silence")),
        (109.0, final(decode_ms=250)),
    ) == Told(
        verdict_at=106.0,
        speech_ended_at=99.8,  # 200 ms before the end of its audio, at 0
        final_at=109.0,
        decode_s=0.25,
        refusals=2,
        partials=2,
    )


def test_what_was_dropped_is_settled_and_has_no_text() -> None:
    utterance = told((106.0, busy()), (107.0, DROPPED))
    assert (utterance.is_settled, utterance.final_at, utterance.is_lost) == (True, None, True)


def test_utterances_count_by_their_first_verdict() -> None:
    talk = Talk(0.0, {"a": Told(verdict_at=4.9), "b": Told(verdict_at=5.0), "c": Told(verdict_at=35.0), "d": Told()})
    assert counted([talk], 5.0, 35.0) == [Told(verdict_at=5.0)]


# ---------------------------------------------------------------- a step


def waited(wait_s: float, decode_s: float = 1.0, **facts: Any) -> Told:
    return Told(verdict_at=10.0, final_at=10.0 + wait_s + decode_s, decode_s=decode_s, **facts)


def step(*utterances: Told, seconds: float = 30.0, late_s: tuple[float, ...] = (0.001,)) -> Step:
    limits = {"seconds": seconds, "max_wait_ms": 8000, "worker": None, "late_s": late_s, "now": 60.0}
    return Step.of(2, utterances, **limits)


def test_a_step_has_its_figures() -> None:
    measured = step(waited(2.0, speech_ended_at=9.0, partials=3), waited(4.0, refusals=1), seconds=4.0)
    assert measured == Step(
        talkers=2,
        seconds=4.0,
        max_wait_ms=8000,
        utterances=2,
        finals=2,
        refusals=1,
        partials=3,
        wait_ms=Spread(2, p50=2000.0, p95=4000.0, p99=4000.0, max=4000.0),
        text_ms=Spread(1, p50=4000.0, p95=4000.0, p99=4000.0, max=4000.0),
        decode_ms=1000.0,
        load=0.5,
        worker=None,
        late_ms=Spread(1, p50=1.0, p95=1.0, p99=1.0, max=1.0),
    )
    assert measured.is_carried


@pytest.mark.parametrize(
    ("measured", "faults"),
    [
        (step(*[waited(8.0)] * 19, waited(30.0)), []),
        (step(*[waited(8.0)] * 18, *[waited(8.1)] * 2), ["more than 5 of 100 utterances waited more than 8 s"]),
        (
            step(*[waited(1.0, 0.1)] * 40, Told(verdict_at=10.0, is_lost=True)),
            ["1 of 41 utterances came to no text"],
        ),
        (
            step(waited(1.0), Told(verdict_at=10.0, is_lost=True), seconds=1.5),
            [
                "more than 5 of 100 utterances waited more than 8 s",
                "1 of 2 utterances came to no text",
                "what was said asks for 133.3% of the model's time, so that waits grow on and on",
            ],
        ),
        (
            step(*[waited(1.0)] * 4, seconds=3.9),
            ["what was said asks for 102.6% of the model's time, so that waits grow on and on"],
        ),
        (step(waited(1.0), late_s=(0.11,)), ["the measuring side was the limit: it sent audio 110 ms late (p99)"]),
        (step(), ["nobody said anything in the time measured"]),
    ],
)
def test_a_step_is_carried_that_has_no_fault(measured: Step, faults: list[str]) -> None:
    assert (measured.faults, measured.is_carried) == (faults, not faults)


# ---------------------------------------------------------------- how many to try


@pytest.mark.parametrize(
    ("capacity", "options", "tried"),
    [
        (0, {}, [1]),
        (1, {}, [1, 2]),
        (11, {}, [1, 2, 4, 8, 16, 12, 10, 11]),
        (50, {}, [1, 2, 4, 8, 16, 32, 64, 48, 56, 52]),  # 4 more of 48 are not looked for
        (70, {}, [1, 2, 4, 8, 16, 32, 64]),
        (3, {"first": 4}, [4, 2, 3]),
        (13, {"first": 13, "growth": 1.1}, [13, 15, 14]),
        (8, {"first": 13, "growth": 1.1}, [13, 11, 10, 9, 8]),
    ],
)
def test_steps_go_up_until_it_is_too_much_and_close_in(
    capacity: int, options: dict[str, Any], tried: list[int]
) -> None:
    judged: list[tuple[int, bool]] = []
    while (n := next_talkers(judged, 64, **options)) is not None:
        judged.append((n, n <= capacity))
    assert [n for n, _ in judged] == tried


def test_what_is_carried_above_one_that_is_not_does_not_count() -> None:
    assert most_carried([(4, True), (8, False), (16, True)]) == 4
    assert most_carried([(1, False)]) == 0


def test_those_who_say_little_are_first_tried_together() -> None:
    assert [least_talkers(*each) for each in ((1.0, 30.0), (0.5, 30.0), (0.5, 60.0), (0.3, 15.0))] == [1, 1, 1, 4]


# ---------------------------------------------------------------- what they say


def test_a_turn_ends_where_it_is_quietest() -> None:
    loud, quiet = b"\x00\x10" * (FRAME_BYTES // 2), b"\x01\x00" * (FRAME_BYTES // 2)
    frames = [*[loud] * 40, quiet, *[loud] * 50]
    assert [len(turn) for turn in turns(frames)] == [41, 50]


def test_who_makes_no_pause_says_the_recordings_from_a_place_of_his_own_on_without_end() -> None:
    frames = cut(speech_pcm())
    assert [*islice(says(frames, 0, 1.0), 2 * len(frames))] == frames * 2
    first = next(says(frames, 1, 1.0))
    assert first == frames[int(0.618033 * len(frames))]


def test_who_makes_pauses_speaks_for_his_share_of_the_time() -> None:
    frames = cut(speech_pcm())
    heard = [*islice(says(frames, 1, 0.25), 40_000)]
    silence = sum(frame == bytes(FRAME_BYTES) for frame in heard) / len(heard)
    assert silence == pytest.approx(0.75, abs=0.05)
    assert {len(frame) for frame in heard} == {FRAME_BYTES}
