"""The search, the rows and the verdict, and a small run: its times are this machine's and are not judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.common import Spread
from benchmarks.ingest import HEADER, Level, next_level, row
from tests.benchmarks.commands import run


def spread(p99: float) -> Spread:
    return Spread(1000, p50=0.25, p95=1.5, p99=p99, max=120.0)


LEVEL = Level(150, lag=spread(49.0), behind=spread(199.0), late=spread(9.0), used=0.62, frame_us=412.3, waited=0.031)


def test_a_row_lines_up_with_its_header_and_says_the_verdict() -> None:
    assert [HEADER, row(LEVEL), row(replace(LEVEL, lag=spread(60.0), waited=None))] == [
        "sessions  lag p50     p99  max ms  behind p99  late p99   core  us/frame  waited",
        "     150      0.2    49.0   120.0       199.0       9.0    62%       412      3%  carried",
        "     150      0.2    60.0   120.0       199.0       9.0    62%       412       ?  not carried",
    ]


@pytest.mark.parametrize(
    ("level", "carried"),
    [
        (LEVEL, True),
        (replace(LEVEL, lag=spread(50.0)), False),
        (replace(LEVEL, behind=spread(200.0)), False),
        (replace(LEVEL, late=spread(50.0)), False),
        (replace(LEVEL, lag=replace(spread(49.0), max=5000.0)), True),
    ],
)
def test_a_level_is_carried_without_lag_backlog_or_late_clients(level: Level, carried: bool) -> None:
    assert level.carried is carried


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([], 150),
        ([(150, True)], 300),
        ([(150, True), (300, True)], 600),
        ([(150, True), (300, True), (600, True)], 1200),
        ([(150, True), (300, True), (600, True), (1200, True)], None),
        ([(150, True), (300, False)], 225),
        ([(150, True), (300, False), (225, True)], 262),
        ([(150, True), (300, False), (225, False), (187, True), (206, True), (215, True)], None),
        ([(150, False)], 75),
        ([(150, False), (75, True)], 112),
        ([(1, False)], None),
    ],
)
def test_levels_double_until_one_is_too_much_and_then_halve_the_gap_to_a_tenth(
    levels: list[tuple[int, bool]], expected: int | None
) -> None:
    assert next_level(levels) == expected


def test_two_sessions_are_heard_for_a_second() -> None:
    lines, told = run("ingest", "--sessions", "2", "--seconds", "1", "--frame-ms", "20")
    (level,) = told["levels"]
    assert (lines[0], len(lines)) == (HEADER, 2)
    assert told["settings"]["frame_ms"] == 20
    assert (told["passed"], level["sessions"], level["lag_ms"]["n"]) == (None, 2, 100)
    assert level["late_ms"]["n"] >= 98  # each frame of that second, as far as it began after the settling
    assert level["behind_ms"]["n"] >= 2
    assert level["frame_us"] > 0
