"""The row, and a small run on the real model: its times are this machine's and are not judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.common import Spread
from benchmarks.contention import HEADER, row
from tests.benchmarks.commands import run


def test_a_row_lines_up_with_its_header() -> None:
    assert [*HEADER.splitlines(), row("passive", True, Spread(25, 150.4, 180.0, 190.0, 201.5))] == [
        "decode of 4 s of speech",
        "threads wait  beside           p50 ms   p95 ms   max ms",
        "passive       a busy core         150      180      202",
    ]


@pytest.mark.model
def test_each_policy_is_timed_alone_and_beside_a_busy_core(tiny_en: Path) -> None:
    lines, told = run("contention", "--rounds", "1", "--decodes", "1")
    assert [line[:28].split() for line in lines[2:]] == [
        ["default", "nobody"],
        ["default", "a", "busy", "core"],
        ["passive", "nobody"],
        ["passive", "a", "busy", "core"],
    ]
    assert told["settings"] == {"model": "tiny.en", "rounds": 1, "decodes": 1, "audio_s": 4}
    assert told["passive_slowdown"] > 0
