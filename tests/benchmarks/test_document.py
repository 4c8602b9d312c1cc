"""The figures in the documents are the reports'."""

from __future__ import annotations

from typing import Any

import click
import pytest

from benchmarks.document import FOLDER, ROOT, at, block, documents, filled, judged, lines_of, read_reports, shown
from benchmarks.suite import STEPS

COMMANDS = {step.name: step.shown for step in STEPS}
CONTENTION: dict[str, Any] = {
    "benchmark": "contention",
    "machine": {},
    "passive_slowdown": 1.5,
    "default_slowdown": 3.0,
    "passed": None,
}


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_the_documents_say_what_the_reports_say(document: Any) -> None:
    text = document.read_text("utf-8")
    assert filled(text, read_reports(), COMMANDS, document.parent) == text, (
        "make bench-full, or python -m benchmarks.suite --redraw"
    )


def test_a_block_is_filled_and_what_stands_around_it_stays() -> None:
    text = "Before.\n\n<!-- figures: contention -->\nold\n<!-- end -->\n\nAfter.\n"
    new = filled(text, {"contention": CONTENTION}, COMMANDS, FOLDER)
    assert new.splitlines() == [
        "Before.",
        "",
        "<!-- figures: contention -->",
        "",
        "![By how threads wait, alone and beside a busy core](contention.png)",
        "",
        "| | | aim |",
        "|---|---|---|",
        "| a decode beside a busy core, to one alone | 1.50 x |  |",
        "| ... with OpenMP's default | 3.00 x |  |",
        "",
        "`python -m benchmarks.contention`.",
        "",
        "<!-- end -->",
        "",
        "After.",
    ]
    assert filled(new, {"contention": CONTENTION}, COMMANDS, FOLDER) == new


def test_a_missed_aim_is_said() -> None:
    lines = block("contention", {"contention": {**CONTENTION, "passed": False}}, COMMANDS, ROOT)
    assert lines[0] == "![By how threads wait, alone and beside a busy core](docs/benchmarks/contention.png)"
    assert lines[-1] == "`python -m benchmarks.contention`: **an aim was missed**."
    lines = block("contention", {"contention": {**CONTENTION, "passed": False, "missed": ["a", "b"]}}, COMMANDS, ROOT)
    assert lines[-1] == "`python -m benchmarks.contention`: **an aim was missed**: a; b."


@pytest.mark.parametrize("reports", [{}, {"contention": {"benchmark": "contention", "passed": None}}])
def test_a_block_without_its_figures_is_an_error(reports: dict[str, Any]) -> None:
    with pytest.raises(click.ClickException, match="figures of contention"):
        block("contention", reports, COMMANDS, ROOT)


@pytest.mark.parametrize(
    ("value", "unit", "aim", "expected"),
    [
        (5.1, "ms", "<= 5", "**5.1 ms**"),
        (5.0, "ms", "<= 5", "5.0 ms"),
        (0.899, "%", ">= 90", "**89.9 %**"),
        (0.9, "%", ">= 90", "90.0 %"),
        (1, "n", "0", "**1**"),
        (None, "ms", "<= 5", "-"),
    ],
)
def test_what_misses_its_aim_is_bold(value: float | None, unit: str, aim: str, expected: str) -> None:
    assert judged(value, unit, aim) == expected


def test_a_place_may_have_dots_in_its_names() -> None:
    report = {"tiny.en": {"overhead_ms": {"p50": 1.5}}, "levels": [{"n": 1}, {"n": 2}]}
    assert at(report, "tiny.en.overhead_ms.p50") == 1.5
    assert at(report, "levels.-1.n") == 2


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (None, "ms", "-"),
        (12345, "n", "12 345"),
        (1.046, "x", "1.05 x"),
        (0.973, "%", "97.3 %"),
        (3.14, "ms", "3.1 ms"),
        (700.4, "ms", "700 ms"),
        (0, "ms", "0 ms"),
        (0.114, "", "0.11"),
        ("Done", "", "Done"),
    ],
)
def test_values_are_shown_with_their_units(value: Any, unit: str, expected: str) -> None:
    assert shown(value, unit) == expected


def test_an_aim_may_depend_on_what_was_measured() -> None:
    lines = [("final", "final_ms", "ms", "<= {limits_ms.final}")]
    assert lines_of({"final_ms": 707.0, "limits_ms": {"final": 684.6}}, lines)[-1] == "| final | **707 ms** | <= 685 |"


def test_lines_without_an_aim_have_an_empty_cell() -> None:
    assert lines_of({"a": 1}, [("what", "a", "n", "")])[-1] == "| what | 1 |  |"
