"""What is counted, the verdict and the table, and a small run: its times are this machine's and are not judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.offered import Decode
from benchmarks.uploads import AGAIN, ALONE, LONG, MANY, Attempt, Heard, Live, Outcome, Post, Result, Seen, table
from tests.benchmarks.commands import run

LIVE = Live([0, 300], {"queue_full": 2}, 0, [])
FULL = "503 queue_full"


def result(*attempts: Attempt, live: Live = LIVE, late: Sequence[str] = (), decodes: Sequence[Decode] = ()) -> Result:
    """Each attempt is a file's only one; ``late``: which of them were refused after their bodies."""
    seen = {each.id: Seen(each.id not in late, 1.5) for each in attempts if each.refused}
    return Result(Heard([Post((each,), 2.0) for each in attempts], live), seen, decodes)


TEXT = Attempt("a", "200", 900.0, 880.0, "one two three four")
EARLY = Attempt("b", FULL, 4.0)
LATE = Attempt("c", "503 predicted_wait", 400.0, 30.0)
GOOD = Outcome({MANY: result(TEXT, EARLY, LATE, late="c")}, 8000, 1, "one two three four")


def outcome(name: str, found: Result, **changes: Any) -> Outcome:
    return replace(GOOD, results={**GOOD.results, name: found}, **changes)


def test_refusals_are_early_or_late_by_what_the_server_saw() -> None:
    found = GOOD.results[MANY]
    assert found.spreads == {
        "early_ms": [4.0],
        "early_in_server_ms": [1.5],
        "late_from_head_ms": [400.0],
        "late_from_body_ms": [30.0],
        "late_in_server_ms": [1.5],
        "accepted_ms": [900.0],
        "done_after_s": [2.0],
        "live_wait_ms": [0, 300],
    }
    assert found.outcomes == {"200": 1, "503 predicted_wait": 1, FULL: 1}


def test_the_table_has_each_scene_and_each_kind_of_refusal() -> None:
    assert GOOD.misses == []
    assert table(GOOD) == [
        "               requests  200  429  503 other  200 after, s: p50    max  finals  wait ms: p50   p95   max  busy"
        "  lost ms",
        "many callers          3    1    0    2     0                0.9    0.9       2             0   300   300     2"
        "        0",
        "refusals, ms                            n     p50     p99     max  in the server: p50     p99",
        "many callers  early, from the head      1     4.0     4.0     4.0                1.50    1.50",
        "many callers  late, from the head       1   400.0   400.0   400.0                   -       -",
        "many callers  late, from the body       1    30.0    30.0    30.0                1.50    1.50",
        "all           early, from the head      1     4.0     4.0     4.0                1.50    1.50",
        "all           late, from the head       1   400.0   400.0   400.0                   -       -",
        "all           late, from the body       1    30.0    30.0    30.0                1.50    1.50",
        "many callers: 1 x 200, 1 x 503 predicted_wait, 1 x 503 queue_full",
        "decodes at once: 1; the bound of a wait: 8000 ms",
    ]


@pytest.mark.parametrize(
    ("name", "found", "miss"),
    [
        (MANY, result(EARLY, Attempt("d", "none: EOFError()")), "many callers: 1 requests: none: EOFError()"),
        (MANY, result(EARLY, Attempt("d", "500 internal")), "many callers: 1 requests: 500 internal"),
        (MANY, result(replace(EARLY, from_head_ms=50.0)), "early refusals took 50.0 ms (p99)"),
        (
            MANY,
            result(replace(LATE, from_body_ms=51.0), late="c"),
            "late refusals took 51.0 ms (p99)",
        ),
        (MANY, result(EARLY, replace(TEXT, text="one three")), "many callers: 1 texts are wrong"),
        (ALONE, result(live=replace(LIVE, waits_ms=[8001])), "alone: a live final waited 8001 ms"),
        (ALONE, result(live=replace(LIVE, waits_ms=[])), "alone: no live final"),
        (ALONE, result(live=replace(LIVE, lost_ms=3)), "alone: 3 ms of audio were lost"),
        (ALONE, result(live=replace(LIVE, breaches=["after done"])), "alone: after done"),
        (AGAIN, result(TEXT, EARLY), "until done: 1 files have no text in the end"),
    ],
)
def test_each_broken_promise_is_a_miss(name: str, found: Result, miss: str) -> None:
    assert outcome(name, found).misses == [miss]


def test_more_than_one_decode_at_once_and_nothing_to_measure_are_misses() -> None:
    assert replace(GOOD, max_concurrent_decodes=2).misses == ["2 decodes at once"]
    nothing = replace(GOOD, results={MANY: result(TEXT)})
    assert nothing.misses == ["nothing to measure: nothing was refused"]


SLICE = Decode("final", 0.0, 2.0, accepted_at=0.0, background=True)


def test_a_final_that_waits_for_one_slice_is_as_promised_and_for_two_is_not() -> None:
    final = Decode("final", 2.0, 2.5, accepted_at=0.5)
    behind_one = result(decodes=[SLICE, final])
    assert (behind_one.slices_waited, behind_one.behind_slice_ms, behind_one.slice_ms) == (1, 1500.0, 2000.0)
    assert outcome(LONG, behind_one).misses == []
    second = replace(SLICE, began=2.0, ended=4.0)
    behind_two = result(decodes=[SLICE, second, replace(final, began=4.0, ended=4.5)])
    assert outcome(LONG, behind_two).misses == ["a long file: a live final waited for 2 slices"]


def test_every_post_is_answered_beside_sessions_that_speak() -> None:
    arguments = ("--scripted", "--decode-ms", "100", "--posts", "10", "--rounds", "1", "--sessions", "2")
    lines, told = run("uploads", *arguments, "--seconds", "2", "--long", "1")
    late_or_slow = [miss for miss in told["missed"] if "refusals took" in miss]
    assert told["missed"] == late_or_slow, lines
    scenes = told["scenes"]
    assert list(scenes) == ["alone", "one caller", "many callers", "until done", "a long file"]
    assert (scenes["alone"]["requests"], scenes["one caller"]["requests"], scenes["many callers"]["requests"]) == (
        0,
        10,
        10,
    )
    assert scenes["one caller"]["outcomes"]["429 fair_share"] >= 1
    assert scenes["until done"]["outcomes"]["200"] == 10
    assert scenes["a long file"]["outcomes"] == {"200": 1}
    assert scenes["a long file"]["slices"] >= 2
    assert told["max_concurrent_decodes"] == 1
