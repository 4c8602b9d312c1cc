"""What py-spy's stacks are laid to, and what is kept of them. What a function costs is this machine's."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from benchmarks.profile import ROOT, Profile, checkout, markdown, place, shares

LOOP = (
    "<module> (asr_ws/__main__.py:6);run (asr_ws/server/app.py:280);"
    "run (asyncio/runners.py:118);_run_once (asyncio/base_events.py:1922)"
)


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        (
            f"{LOOP};_read (asr_ws/server/connection.py:120);run (/x/site-packages/onnxruntime/capi/session.py:9)",
            "server/connection.py: _read",
        ),
        (f"{LOOP};data_received (/x/site-packages/websockets/asyncio/connection.py:7)", "websockets"),
        (f"{LOOP};call_soon (asyncio/base_events.py:9)", "base_events"),
        ("_bootstrap (threading.py:995);_run (asr_ws/log.py:120)", "log.py: _run"),
        (r"_run (C:\asr_ws\log.py:120)", "log.py: _run"),
    ],
)
def test_time_is_laid_to_the_innermost_function_of_ours_that_the_loop_called(stack: str, expected: str) -> None:
    assert place(stack) == expected


def test_shares_are_of_all_that_was_seen_the_largest_first() -> None:
    seen = [("b (asyncio/events.py:84)", 1), ("a (asr_ws/log.py:1)", 2), ("a (asr_ws/log.py:2)", 1)]
    raw = [f"{LOOP};{frame} {n}" for frame, n in seen]
    assert list(shares([*raw, f"{LOOP};EpollSelector.select (selectors.py:468) 9"]).items()) == [
        ("log.py: a", 0.75),
        ("events", 0.25),
    ]


def test_a_place_costs_its_share_of_the_median_round() -> None:
    figures = Profile([3.0, 10.0, 4.0], {"log.py: a": 0.75, "selectors": 0.25}).figures()
    assert figures["cpu_ms_per_audio_s"] == 4.0
    assert figures["places"][0] == {"where": "log.py: a", "share": 0.75, "cpu_ms": 3.0}


def test_the_table_has_what_takes_most_now_and_what_that_took_before() -> None:
    now = Profile([4.0], {"a": 0.5, "b": 0.25}).figures()
    before = Profile([8.0], {"a": 0.75}).figures()
    assert markdown({"settings": {"against": "abc"}, "here": now, "against": before}) == [
        "| ms of processor time for each second of audio | before (abc) | now |",
        "| --- | ---: | ---: |",
        "| all | 8.0 | 4.0 |",
        "| `a` | 6.00 | 2.00 |",
        "| `b` | - | 1.00 |",
    ]


def test_another_checkout_is_a_folder_or_a_commit(tmp_path: Path) -> None:
    with checkout(str(tmp_path)) as folder:
        assert folder == tmp_path
    with pytest.raises(click.BadParameter), checkout("no-such-commit"):
        pass
    with checkout(None) as nothing:
        assert nothing is None


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no clone")
def test_a_commit_is_laid_out() -> None:
    with checkout("HEAD") as folder:
        assert folder is not None
        assert (folder / "benchmarks" / "scripted.py").exists()
