"""What py-spy's stacks are laid to, and what is kept of them. What a function costs is this machine's."""

from __future__ import annotations

import pytest

from benchmarks.profile import Profile, place, shares

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
