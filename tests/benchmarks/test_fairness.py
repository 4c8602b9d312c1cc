"""Shares, the table and the verdict, and a small run."""

from __future__ import annotations

import pytest

from benchmarks.fairness import ALONE, BESIDE, UNFAIR, Outcome, Share, table
from benchmarks.offered import Talk
from tests.benchmarks.commands import run
from tests.benchmarks.events import accepted, busy, final


def test_a_wait_counts_from_the_commit_through_every_retry() -> None:
    patient = Talk(
        committed={"0": 10.0, "1": 10.5},
        heard=[
            (10.125, busy("u1")),
            (10.75, accepted("u2", commit="1")),
            (11.0, accepted("u1", attempt=2, commit="0")),
            (11.25, final("u2")),
            (12.0, final("u1")),
        ],
    )
    refused = Talk(committed={"0": 10.0}, heard=[(10.25, busy("u1", "fair_share")), (11.0, busy("u1", attempt=2))])
    share = Share.of([patient, refused])
    assert share == Share(3, 2, {"queue_full": 2, "fair_share": 1}, [750.0, 2000.0])
    assert share.figures() == {
        "offered": 3,
        "finals": 2,
        "refusals": {"queue_full": 2, "fair_share": 1},
        "median_wait_ms": 750.0,
    }


def test_rounds_add_up() -> None:
    assert Share(3, 2, {"queue_full": 2}, [1.0]) + Share(1, 1, {"queue_full": 1, "fair_share": 1}, [2.0]) == Share(
        4, 3, {"queue_full": 3, "fair_share": 1}, [1.0, 2.0]
    )


def outcome(beside: int, alone: int = 10) -> Outcome:
    ordinary = {
        ALONE: Share(10, alone, {}, [100.0] * alone),
        BESIDE: Share(10, beside, {"queue_full": 2, "fair_share": 1}, [200.0] * beside),
        UNFAIR: Share(10, 0, {"queue_full": 40}, []),
    }
    hog = {BESIDE: Share(30, 5, {"fair_share": 60}, [300.0]), UNFAIR: Share(40, 15, {"queue_full": 50}, [250.0])}
    return Outcome(ordinary, hog)


@pytest.mark.parametrize(
    ("beside", "alone", "passed"), [(10, 10, True), (9, 10, True), (8, 10, False), (11, 10, True), (0, 0, False)]
)
def test_nine_tenths_of_the_finals_without_the_hog_are_to_be_kept(beside: int, alone: int, passed: bool) -> None:
    assert outcome(beside, alone).passed is passed


def test_the_table_says_who_got_what() -> None:
    assert table(outcome(9)) == [
        "                             offered  finals   kept  wait p50 ms  refused",
        "without the hog   the nine        10      10   100%          100  -",
        "beside the hog    the nine        10       9    90%          200  1 fair_share, 2 queue_full",
        "                  the hog         30       5                 300  60 fair_share",
        "rule off          the nine        10       0     0%            -  40 queue_full",
        "                  the hog         40      15                 250  50 queue_full",
    ]


def test_the_same_offers_meet_all_three_configurations() -> None:
    lines, told = run("fairness", "--decode-ms", "50", "--seconds", "1", "--rounds", "1")
    assert len(lines) == 6
    assert told["settings"]["decode_ms"] >= 50
    nine = [told[name]["nine"]["offered"] for name in ("without_the_hog", "beside_the_hog", "rule_off")]
    assert nine == [nine[0]] * 3
    assert nine[0] > 0
    assert told["without_the_hog"]["hog"] is None
    assert min(told[name]["hog"]["offered"] for name in ("beside_the_hog", "rule_off")) > nine[0]  # a hog
    assert "fair_share" not in told["rule_off"]["nine"]["refusals"]
