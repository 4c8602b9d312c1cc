"""The verdict, a client that keeps no rules, and a short run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.examples import KINDS, Ending, Talk, Text, written
from benchmarks.fuzz import Outcome, table
from benchmarks.served import TRACEBACK, Sample
from benchmarks.wire import BINARY, Broken, Frame, event_of, expect
from tests.benchmarks.commands import run

SAMPLE = Sample(at_s=0.0, rss_mb=100.0, n_fds=14, n_threads=5, n_workers=1)
GOOD = Outcome(
    asked=300,
    ran={"messages": 100, "frames": 100, "pcm": 100},
    seconds=3.0,
    told={"close 1000": 80, "close 1002": 9},
    failed=None,
    commits=20,
    finals=20,
    troubles=[],
    ready=True,
    sessions_left=0,
    max_concurrent_decodes=1,
    worker_restarts=0,
    before=SAMPLE,
    after=SAMPLE,
    bugs={},
    exit_code=0,
)


def test_a_run_in_which_nothing_happened_passes() -> None:
    assert (GOOD.passed, GOOD.failures) == (True, [])
    assert table(GOOD) == [
        "examples        messages 100, frames 100, pcm 100; 100 each s",
        "closes          1000: 80, 1002: 9",
        "neighbours      20 finals for 20 commits",
        "memory          100 -> 100 MB",
        "open files      14 -> 14",
    ]


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"failed": "Talk()\nBroken: x"}, "an example fails"),
        ({"ran": {"messages": 200}}, "200 of 300 examples ran"),
        ({"finals": 19}, "1 of the neighbours' finals are missing"),
        ({"commits": 0, "finals": 0}, "the neighbours said nothing"),
        ({"troubles": ["gone"]}, "the neighbours had trouble 1 times"),
        ({"ready": False}, "the server is not ready"),
        ({"sessions_left": 1}, "1 sessions are left"),
        ({"max_concurrent_decodes": 2}, "2 decodes at once"),
        ({"worker_restarts": 1}, "1 restarts of the worker"),
        ({"after": replace(SAMPLE, rss_mb=120.0)}, "memory grew by 20.0 MB"),
        ({"after": replace(SAMPLE, n_fds=15)}, "14 open files became 15"),
        ({"bugs": {TRACEBACK: 1}}, "the log has {'traceback': 1}"),
        ({"exit_code": None}, "exit code None"),
    ],
)
def test_whatever_happened_fails_it(changes: dict[str, Any], failure: str) -> None:
    assert replace(GOOD, **changes).failures == [failure]


def test_events_that_are_none_break_an_example() -> None:
    for text in (b"{}", b'{"type":"new"}', b'{"type":"pong","id":1.5,"seq":1}', b'{"type":"pong","id":1,"seq":0}'):
        with pytest.raises(Broken):
            event_of(text)
    with pytest.raises(Broken, match="so it is"):
        expect(False, "so it is")


def test_frames_are_written_as_they_claim() -> None:
    assert bytes(Frame(BINARY, b"ab", mask=b"\x01\x01\x01\x01")) == b"\x82\x82\x01\x01\x01\x01`c"
    assert bytes(Frame(BINARY, b"", fin=False, rsv=0x40, mask=None, claims=300)) == b"\x42\x7e\x01\x2c"


def test_the_audio_before_end_is_counted() -> None:
    talk = Talk((Text(b"{"), Text(written({"type": "end"}).encode())), Ending.END)
    assert [list(KINDS), len(talk.parts)] == [["messages", "frames", "pcm"], 2]


def test_a_short_run_breaks_nothing() -> None:
    lines, told = run("fuzz", "--examples", "150", "--seed", "7")
    assert lines[0].startswith("examples        messages ")
    assert told["failures"] == []
    assert told["neighbours"]["commits"] == told["neighbours"]["finals"] > 0
    assert told["passed"] is True
