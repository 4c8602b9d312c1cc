"""The ratio, its row and its verdict, and a short run: how long a decode takes is this machine's and is not judged."""

from __future__ import annotations

from pathlib import Path

from benchmarks.baseline_ratio import ALONE, FREE, HEADER, LOADED, PINNED, Outcome, rows, verdict
from tests.benchmarks.commands import run

KEPT = Outcome({ALONE: [90.0, 100.0, 300.0], LOADED: [104.0, 105.0, 900.0]}, {ALONE: 0.01, LOADED: None})
MISSED = Outcome({ALONE: [100.0], LOADED: [106.0]}, {ALONE: None, LOADED: None})


def test_the_medians_are_compared() -> None:
    assert (KEPT.ratio, MISSED.ratio) == (1.05, 1.06)


def test_only_the_pinned_decode_is_judged() -> None:
    assert verdict({FREE: MISSED, PINNED: KEPT}) is True
    assert verdict({FREE: KEPT, PINNED: MISSED}) is False
    assert verdict({FREE: KEPT}) is None


def test_rows_line_up_with_their_header() -> None:
    assert [HEADER, *rows(PINNED, KEPT)] == [
        "decode, ms                 n     p50     p95     max  no core   ratio",
        "pinned, alone              3     100     300     300       1%        ",
        "pinned, under load         3     105     900     900        ?   1.050",
    ]


def test_a_run_has_both_and_a_picture(tmp_path: Path) -> None:
    arguments = ("--model", "scripted", "--seconds", "1", "--rounds", "1", "--report", str(tmp_path / "report.json"))
    lines, told = run("baseline_ratio", *arguments)
    assert lines[0] == HEADER
    for scene in {FREE, PINNED} & told.keys():
        assert told[scene]["alone_ms"]["n"] >= 1
        assert told[scene]["under_load_ms"]["n"] >= 1
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
