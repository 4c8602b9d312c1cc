"""What sessions heard comes to, the verdict, the table and the picture, and a small run."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks.lock_baseline import Fate, draw, fates, goodput, load_figures, markdown, misses, ratios
from benchmarks.offered import Talk
from tests.benchmarks.commands import run
from tests.benchmarks.events import accepted, busy, dropped, final


def test_a_session_is_told_by_accepted_by_busy_or_by_the_text() -> None:
    ours = Talk(
        committed={"0": 10.0, "1": 11.0, "2": 12.0},
        heard=[
            (10.25, accepted("u1", commit="0")),
            (11.5, busy("u2", commit="1")),
            (11.75, dropped("u2")),
            (14.0, final("u1", "hello", decode_ms=500)),
        ],
    )
    lock = Talk(committed={"0": 10.0}, heard=[(13.0, final("0", "hello", decode_ms=500))])
    assert fates([ours, lock]) == [
        Fate(10.0, told_s=0.25, ended_s=4.0, text_s=4.0, decode_s=0.5, text="hello"),
        Fate(11.0, told_s=0.5, refused_s=0.5, ended_s=0.75),
        Fate(12.0),
        Fate(10.0, told_s=3.0, ended_s=3.0, text_s=3.0, decode_s=0.5, text="hello"),
    ]
    assert fates([lock])[0].wait_s == 2.5


def test_a_refused_utterance_was_first_told_when_it_was_first_refused() -> None:
    talk = Talk(
        {"0": 1.0}, [(1.5, busy(commit="0")), (2.0, busy(attempt=2)), (3.0, accepted(attempt=3)), (4.0, final())]
    )
    assert fates([talk]) == [Fate(1.0, told_s=0.5, refused_s=0.5, ended_s=3.0, text_s=3.0, text="hello")]


def test_goodput_is_the_time_of_decodes_whose_texts_came_in_time() -> None:
    in_time = Fate(0.0, text_s=2.0, decode_s=1.0)
    late = Fate(1.0, text_s=8.5, decode_s=1.0)
    half_after_the_end = Fate(4.0, text_s=6.5, decode_s=1.0)
    assert goodput([in_time, late, half_after_the_end, Fate(10.0)]) == 0.15
    assert goodput([in_time]) == 0.0


def test_who_was_told_nothing_waited_until_the_end() -> None:
    figures = load_figures([Fate(0.0, told_s=0.5, ended_s=0.5, text_s=0.5), Fate(2.0)])
    assert figures["told_s"] == {"n": 2, "p50": 0.5, "p95": 8.5, "p99": 8.5, "max": 8.5}
    assert (figures["in_time"], figures["untold"], figures["without_outcome"], figures["refused_s"]) == (
        0.5,
        1,
        1,
        None,
    )


SPREAD = {"n": 8, "p50": 0.5, "p95": 2.0, "p99": 4.0, "max": 4.0}
QUICK = {"n": 8, "p50": 0.001, "p95": 0.004, "p99": 0.04, "max": 0.05}
BEFORE, AFTER = {"rss_mb": 200.4, "n_threads": 4}, {"rss_mb": 300.4, "n_threads": 10}
POINT = {
    "offered": 20,
    "decode_s": SPREAD,
    "wait_s": SPREAD,
    "text_s": SPREAD,
    "before": BEFORE,
    "after": AFTER,
    "untold": 0,
}
OURS = {**POINT, "load": 10.0, "server": "asr_ws", "in_time": 0.1, "goodput": 0.97, "told_s": QUICK, "refused_s": QUICK}
LOCK = {**POINT, "load": 10.0, "server": "lock", "in_time": 0.04, "goodput": 0.25, "told_s": SPREAD, "refused_s": None}
LINE: dict[str, Any] = {
    "settings": {"crowd": 2},
    "alone": {
        name: {"decode_ms": {"n": 17, "p50": 130.4}, "added_ms": {"p50": 2.0, "p95": 4.5}}
        for name in ("lock", "asr_ws")
    },
    "same_texts": 17,
    "loads": [LOCK | {"untold": 9}, OURS | {"without_outcome": 0}],
    "crowd": {
        "lock": {"told_s": [0.5, 1.0], "text_s": [0.5, 1.0]},
        "asr_ws": {"told_s": [0.01, 0.01], "text_s": [0.5]},
    },
    "crash": {
        "lock": {"utterances": 4, "sessions_lost": 4, "without_outcome": 4, "again_s": None, "runs": False},
        "asr_ws": {"utterances": 4, "sessions_lost": 0, "without_outcome": 0, "again_s": 1.25, "runs": True},
    },
}
KEPT = LINE | {"crowd": {name: {"told_s": [0.5, 0.5], "text_s": [0.5, 1.0]} for name in ("lock", "asr_ws")}}


def test_the_table_is_markdown_of_the_report() -> None:
    line = LINE | {"ratios": ratios(LINE), "missed": misses(LINE)}
    assert markdown(line) == [
        "| idle | decode p50, ms | text after, less the decode, p50 / p95, ms | texts | the same as the other's |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| lock | 130 | 2.00 / 4.50 | 17 | 17 |",
        "| asr_ws | 130 | 2.00 / 4.50 | 17 | 17 |",
        "",
        "| load | offered | text within 8 s | goodput | decode p50, s | wait p50 / p95 / max, s "
        "| told after p50 / p95 / p99, s | told nothing "
        "| refused after p50 / p99 / max, s | refused | memory, MB | threads |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 10x lock | 20 | 4% | 0.25 | 0.50 | 0.50 / 2.00 / 4.00 "
        "| 0.500 / 2.000 / 4.000 | 9 | - | 0 | 200 to 300 | 4 to 10 |",
        "| 10x asr_ws | 20 | 10% | 0.97 | 0.50 | 0.50 / 2.00 / 4.00 "
        "| 0.001 / 0.004 / 0.040 | 0 | 0.001 / 0.040 / 0.050 | 8 | 200 to 300 | 4 to 10 |",
        "",
        "| 2 at one instant | told: half, all, after s | text: half, all, after s |",
        "| --- | ---: | ---: |",
        "| lock | 0.50, 1.00 | 0.50, 1.00 |",
        "| asr_ws | 0.01, 0.01 | 0.50, - |",
        "",
        "| SIGSEGV in mid-decode | utterances | sessions lost | without an outcome | next text after, s | process |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| lock | 4 | 4 | 4 | never | gone, and nobody starts it again |",
        "| asr_ws | 4 | 0 | 0 | 1.2 | runs |",
        "",
        "At 10x 2.5 times as many texts within 8 s as with the lock, and told 500 times as soon (p95).",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"untold": 1}, ["10x: 1 were told nothing, 0 have no outcome"]),
        ({"without_outcome": 2}, ["10x: 0 were told nothing, 2 have no outcome"]),
        ({"told_s": QUICK | {"p99": 0.05}}, ["10x: told after 50 ms (p99)"]),
        ({"goodput": 0.96}, ["10x: goodput 0.96"]),
        ({"load": 2.0, "goodput": 0.91}, []),
        ({"load": 2.0, "goodput": 0.89}, ["2x: goodput 0.89"]),
        ({"load": 1.0, "goodput": 0.5}, []),
    ],
)
def test_the_real_server_is_judged_where_it_has_too_much_to_do(change: dict[str, Any], expected: list[str]) -> None:
    line = deepcopy(KEPT)
    line["loads"][1] |= change
    assert misses(line) == expected


def test_a_crash_that_costs_a_session_or_an_utterance_counts() -> None:
    line = deepcopy(KEPT)
    line["crash"]["asr_ws"] |= {"sessions_lost": 1}
    assert misses(line) == ["crash: 1 sessions and 0 utterances lost"]


def test_the_picture_shows_the_reports_values() -> None:
    figure = Figure()
    draw(figure, LINE)
    goodput_of, told, crowd = figure.axes
    assert [each.get_ydata()[0] for each in goodput_of.lines] == [25.0, 97.0]  # type: ignore[index]
    assert 0.004 in [each.get_ydata()[0] for each in told.lines]  # type: ignore[index]
    assert [[*each.get_xdata()] for each in crowd.lines][1] == [0.0, 0.5]  # type: ignore[misc]


def test_both_servers_get_the_same_and_each_utterance_is_accounted_for() -> None:
    lines, told = run("lock_baseline", "--model", "scripted", "--loads", "2", "--seconds", "1", "--crowd", "3")
    assert lines[0].startswith("| idle |")
    lock, ours = told["loads"]
    assert (lock["server"], ours["server"], lock["offered"]) == ("lock", "asr_ws", ours["offered"])
    assert lock["answered"] == lock["offered"]  # it has a second's work left, and time for it
    assert ours["without_outcome"] == ours["untold"] == 0
    assert [len(each["text_s"]) for each in told["crowd"].values()] == [3, 3]
    assert told["crash"]["lock"]["sessions_lost"] == 4
    assert (told["crash"]["asr_ws"]["sessions_lost"], told["crash"]["asr_ws"]["without_outcome"]) == (0, 0)
    assert told["same_texts"] == told["alone"]["lock"]["decode_ms"]["n"]
