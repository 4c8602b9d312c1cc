"""The model on paper, the document's table, and one step of a run: its times are this machine's and not judged."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from benchmarks.capacity import COLUMNS, Said, agree, draw, markdown, row, simulate
from tests.benchmarks.commands import run

POINT = {
    "model": "sleeps",
    "decode_s": 0.4,
    "decode_alone_s": None,
    "predicted_from_alone": None,
    "speaking_share": 0.5,
    "bound": 12.5,
    "predicted": 12,
    "measured": 11,
    "too_many": 12,
}


def every(interval_s: float, since_s: float = 0.0) -> list[Said]:
    """What somebody says who ends an utterance that often, for 40 s."""
    return [Said(since_s + n * interval_s, 2.0) for n in range(round(40 / interval_s))]


def test_who_speaks_alone_never_waits() -> None:
    step = simulate([every(2.0)], decode_s=1.5, seconds=30.0)
    assert (step.utterances, step.finals, step.refusals, step.load) == (15, 15, 0, 0.75)
    assert step.wait_ms is not None
    assert (step.wait_ms.max, step.is_carried) == (0.0, True)


def test_two_at_once_wait_for_one_another() -> None:
    step = simulate([every(4.0), every(4.0, since_s=0.5)], decode_s=1.5, seconds=28.0)
    assert step.wait_ms is not None
    assert (round(step.wait_ms.p50), round(step.wait_ms.max), step.is_carried) == (0, 950, True)


def test_more_than_there_is_time_for_is_not_carried() -> None:
    step = simulate([every(2.0), every(2.0, since_s=1.0)], decode_s=1.5, seconds=30.0)
    assert (step.refusals > 0, step.is_carried) == (True, False)


def test_what_is_held_while_more_is_refused_is_evicted() -> None:
    step = simulate([every(0.5)], decode_s=8.0, seconds=30.0)
    assert step.finals < step.utterances


@pytest.mark.parametrize(
    ("predicted", "measured", "expected"),
    [(100, 85, True), (100, 84, False), (100, 116, False), (3, 4, True), (3, 1, False), (0, 1, True)],
)
def test_they_agree_within_15_percent_or_one_talker(predicted: int, measured: int, expected: bool) -> None:
    assert agree(predicted, measured) is expected


def test_the_documents_table_is_made_from_the_report_alone() -> None:
    of_a_model = {**POINT, "decode_alone_s": 0.3, "predicted_from_alone": 16, "too_many": None}
    assert markdown({"points": [POINT, of_a_model]}) == [
        "| model | alone, s | predicted from that | decode, s | speaks | bound | predicted | measured | too many |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| sleeps | - | - | 0.40 | 50% | 12.5 | 12 | 11 | 12 |",
        "| sleeps | 0.30 | 16 | 0.40 | 50% | 12.5 | 12 | 11 | - |",
    ]


def test_talkers_are_drawn_over_what_one_of_them_asks_for() -> None:
    figure = Figure()
    draw(figure, {"points": [POINT, {**POINT, "bound": 50.0, "predicted": 48, "measured": 45}]})
    (axes,) = figure.axes
    assert [([*line.get_xdata()], [*line.get_ydata()]) for line in axes.get_lines()] == [  # type: ignore[call-overload]
        ([0.02, 0.08], [50.0, 12.5]),
        ([0.02, 0.08], [48, 12]),
        ([0.02, 0.08], [45, 11]),
    ]


def test_a_point_is_predicted_and_measured() -> None:
    """Of two talkers: two ask for more time than there is, one has some to spare."""
    lines, told = run("capacity", "--decodes", "3.4", "--shares", "", "--seconds", "5")
    (point,) = told["points"]
    assert lines[0] == row(COLUMNS)
    assert [each.split()[:5] for each in lines[1:]] == [["sleeps", "-", "-", "3.40", "100%"]]
    assert point["predicted"] == 1
    assert point["steps"][0]["talkers"] == 1
    assert point["measured"] < 2
