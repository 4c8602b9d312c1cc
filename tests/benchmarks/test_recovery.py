"""The table and the verdict, and a small run: its times are this machine's and are not judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.common import Spread
from benchmarks.recovery import Left, Outcome, table
from tests.benchmarks.commands import run

FLAT = Left(fds=18, threads=4, processes=1, shared_memory=5)
LIMITS = Outcome(*(Spread(100, 1.0, limit, limit, 900.0) for limit in (50, 500, 100, 50)), 3, FLAT, FLAT)


def test_the_table_names_what_is_over_its_limit_and_what_is_left() -> None:
    outcome = replace(LIMITS, seen=Spread(100, 1.0, 50.1, 51.0, 60.0), after=replace(FLAT, fds=19))
    assert table(outcome) == [
        "ms                                           n      p50      p95      p99      max   limit",
        "dead worker seen                           100      1.0     50.1     51.0     60.0      50  MISSED",
        "ready again, less load and self-test       100      1.0    500.0    500.0    900.0     500",
        "worker gone after the server's SIGKILL     100      1.0    100.0    100.0    900.0     100",
        "busy while hung workers are killed         100      1.0     50.0     50.0    900.0      50",
        "workers killed meanwhile: 3",
        "fds                                         18 before    19 after  LEFT",
        "threads                                      4 before     4 after",
        "processes                                    1 before     1 after",
        "shared memory                                5 before     5 after",
    ]


@pytest.mark.parametrize("field", ["seen", "ready", "gone", "busy"])
def test_each_limit_counts(field: str) -> None:
    assert LIMITS.passed
    over = replace(getattr(LIMITS, field), p95=500.1, p99=500.1)
    assert not replace(LIMITS, **{field: over}).passed


@pytest.mark.parametrize("field", ["fds", "threads", "processes", "shared_memory"])
def test_anything_left_behind_counts(field: str) -> None:
    assert not replace(LIMITS, after=replace(FLAT, **{field: 99})).passed


@pytest.mark.model
def test_every_kind_is_measured_and_nothing_is_left(tiny_en: object) -> None:
    lines, told = run("recovery", "--cycles", "2", "--kills", "1", "--sessions", "10", "--seconds", "2")
    assert lines[0].split() == ["ms", "n", "p50", "p95", "p99", "max", "limit"]
    assert (told["seen_ms"]["n"], told["ready_less_load_ms"]["n"], told["busy_ms"]["n"]) == (2, 2, 20)
    assert told["gone_ms"]["n"] >= 1
    assert told["workers_hung"] >= 1
    assert told["before"] == told["after"]
