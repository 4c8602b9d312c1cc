"""The row and the verdict, and every kind for a moment: what it takes is this machine's and is not judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.memory import HEADER, IDLE, Footprint, row, verdict
from tests.benchmarks.commands import run

MB = 1e6
LIMIT = Footprint(IDLE, 50, 100.0, 100.0 + 50 * 20 * 1024 / MB, 100.0 + 50 * 32 * 1024 / MB, left=50, bugs={})


def test_memory_is_shared_out_over_the_connections() -> None:
    assert (round(LIMIT.held_kib, 6), round(LIMIT.most_kib, 6)) == (20.0, 32.0)
    assert replace(LIMIT, connections=100).held_kib == pytest.approx(10.0)
    assert replace(LIMIT, held_mb=99.0).held_kib < 0  # what was free before, and given back meanwhile


def test_twenty_kib_of_an_idle_session_are_the_limit_and_no_other_kind_has_one() -> None:
    under, over = replace(LIMIT, held_mb=LIMIT.held_mb - 0.001), replace(LIMIT, held_mb=LIMIT.held_mb + 0.001)
    other = replace(over, kind="heard", held_mb=1000.0)
    assert verdict([other, under]) is True
    assert verdict([over, other]) is False
    assert verdict([other]) is None
    assert verdict([replace(LIMIT, before_mb=131.0, held_mb=131.0)]) is False


def test_a_row_lines_up_with_its_header_and_says_what_is_wrong() -> None:
    other = replace(LIMIT, kind="events, unread", held_mb=100.0, left=0, bugs={"traceback": 1})
    assert [HEADER, row(replace(LIMIT, held_mb=101.6)), row(other)] == [
        "KiB of each          connections      held      most  sessions left",
        "idle                          50      31.2      32.0             50  MISSED: 20, or 130 MB before",
        "events, unread                50       0.0      32.0              0  the log has {'traceback': 1}",
    ]


@pytest.mark.model
def test_each_kind_that_is_asked_for_is_measured(tiny_en: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    arguments = ("--sessions", "2", "--seconds", "0.2", "--settle-s", "0.5", "--report", str(file))
    kinds = ("idle", "idle, TLS", "speaking", "heard")
    lines, told = run("memory", *arguments, *(f"--kind={kind}" for kind in kinds))
    assert json.loads(file.read_text("utf-8")) == told
    assert [lines[0], *(line.partition("  ")[0] for line in lines[1:])] == [HEADER, *kinds]
    for kind in kinds:
        assert told[kind]["most_kib"] >= told[kind]["held_kib"], kind
        assert told[kind]["bugs"] == {}, kind
    for kind in kinds:
        assert told[kind]["sessions_left"] == 2, kind
    assert told["heard"]["held_kib"] > 30 * 16_000 * 4 / 1024 / 2  # as float32: it is there


@pytest.mark.model
def test_without_idle_ones_there_is_no_verdict(tiny_en: Path) -> None:
    lines, told = run("memory", "--sessions", "1", "--settle-s", "0.1", "--kind", "half a handshake")
    assert (len(lines), told["passed"]) == (2, None)
