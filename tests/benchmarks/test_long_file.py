"""The verdict and the table, and a small run: memory and speed are this machine's and are not judged."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from benchmarks.long_file import Outcome, table
from tests.benchmarks.commands import run

FLAT = [50.0] * 40
GOOD = Outcome(600.0, 120.0, 0, 1500, 0.02, {"client": FLAT, "server": FLAT}, [(float(n), n + 1.0) for n in range(100)])


def test_a_good_run_has_no_fault() -> None:
    assert GOOD.faults == []
    assert table(GOOD) == [
        "audio 600 s in 120 s: 5.0 times as fast as it was spoken",
        "words 1500, word errors 2.0%",
        "client      50.0 to    50.0 MB, grew by   0.0 MB",
        "server      50.0 to    50.0 MB, grew by   0.0 MB",
        "the bar, against what the server had done: 1 points off, 9 of 10 times no more",
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"exit_code": 1}, "exit code 1"),
        ({"error_rate": 0.06}, "word errors 6.0%"),
        ({"rss_mb": {"client": [*FLAT, *[60.0] * 40]}}, "client grew by 10.0 MB"),
        ({"bar": [(0.0, 5.0), (1.0, 4.0)]}, "the bar went back"),
        ({"bar": [(0.0, 0.0), (50.0, 61.0)]}, "the bar is 11 points off"),
    ],
)
def test_each_fault_counts(changes: dict[str, object], fault: str) -> None:
    assert replace(GOOD, **changes).faults == [fault]  # type: ignore[arg-type]


@pytest.mark.model
@pytest.mark.skipif(sys.platform == "win32", reason="there is no pty on which a bar would be drawn")
def test_a_minute_is_transcribed(tiny_en: object) -> None:
    _, told = run("long_file", "--minutes", "0.5")
    assert told["word_error_rate"] <= 0.05
    assert not [fault for fault in told["faults"] if "bar went back" in fault or "exit code" in fault]
