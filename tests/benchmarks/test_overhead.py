"""The row and the difference, and a small run: its times are this machine's and are not judged."""

from __future__ import annotations

import pytest

from benchmarks.common import Spread
from benchmarks.overhead import HEADER, overhead_ms, row
from tests.benchmarks.commands import run


def test_what_was_added_is_taken_utterance_by_utterance() -> None:
    assert overhead_ms([103.0, 202.0], [100.0, 201.0]) == Spread(2, p50=1.0, p95=3.0, p99=3.0, max=3.0)


def test_a_decode_too_many_is_not_overlooked() -> None:
    with pytest.raises(ValueError, match="longer than argument 1"):
        overhead_ms([103.0], [100.0, 201.0])


def test_a_row_lines_up_with_its_header() -> None:
    spread = Spread(100, p50=1.5, p95=2.25, p99=3.0, max=12.0)
    assert [*HEADER.splitlines(), row("tiny.en", spread, Spread(100, 122.0, 140.0, 150.0, 180.0))] == [
        "commit -> final, less the decode",
        "model                   n   p50 ms   p95 ms   p99 ms   max ms   decode p50",
        "tiny.en               100     1.50     2.25     3.00    12.00        122.0",
    ]


def test_each_commit_is_timed_around_its_decode() -> None:
    lines, told = run("overhead", "--model", "scripted", "--commits", "3")
    assert len(lines) == 3
    assert told["settings"] == {"model": "scripted", "commits": 3, "partials": False, "audio_s": 2}
    assert (told["scripted"]["overhead_ms"]["n"], told["scripted"]["decode_ms"]["n"]) == (3, 3)
    assert told["scripted"]["overhead_ms"]["p50"] > 0
