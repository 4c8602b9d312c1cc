"""The fit, the table, and a short run: how long a decode takes is this machine's and is not judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.common import PCM_BYTES_PER_S
from benchmarks.decode_time import fitted, markdown, pieces
from tests.benchmarks.commands import run


def test_the_law_is_fitted_to_the_medians() -> None:
    assert fitted([1.0, 2.0, 5.0], [0.3, 0.4, 0.7]) == pytest.approx((0.2, 0.1))


def test_a_piece_is_a_run_of_whole_utterances_and_no_longer_than_one_may_be() -> None:
    s = PCM_BYTES_PER_S
    cuts = [slice(0, 2 * s), slice(3 * s, 6 * s), slice(10 * s, 38 * s)]
    assert pieces(cuts, 5.0, 2) == [slice(0, 6 * s), slice(3 * s, 6 * s)]
    assert pieces(cuts, 60.0, 1) == [slice(10 * s, 38 * s)]


def test_the_table_is_markdown_of_the_report() -> None:
    found = {"final": [110.4, 200.0], "partial": [50.0, 60.0], "any_ms": 90.0, "each_ms": 22.5}
    assert markdown({"lengths_s": [1.0, 5.0], "models": {"tiny.en": found}}) == [
        "| a decode, ms | 1 s | 5 s | any, and each second |",
        "|---|---|---|---|",
        "| tiny.en, final | 110 | 200 | 90 + 22 |",
        "| tiny.en, partial | 50 | 60 |  |",
    ]


@pytest.mark.model
def test_each_length_is_decoded_in_both_ways(tiny_en: Path, tmp_path: Path) -> None:
    arguments = ("--models", "tiny.en", "--lengths", "2,5", "--rounds", "1")
    _, told = run("decode_time", *arguments, "--report", str(tmp_path / "report.json"))
    assert all(len(told["models"]["tiny.en"][kind]) == 2 for kind in ("final", "partial"))
    assert (tmp_path / "report.png").exists()
