"""The table and the verdict, and a small run: its times are this machine's and are not judged."""

from __future__ import annotations

import pytest

from benchmarks.busy import Outcome, table
from benchmarks.common import Spread
from tests.benchmarks.commands import run


def spread(p99: float) -> Spread:
    return Spread(2000, p50=0.5, p95=1.25, p99=p99, max=120.0)


def test_the_table_has_both_ends_and_how_far_to_trust_it() -> None:
    assert table([Outcome(50, spread(4.5), spread(20.0), 0.126)]) == [
        "sessions  commit -> busy      n   p50 ms   p95 ms   p99 ms   max ms",
        "      50  in the server    2000     0.50     1.25     4.50   120.00",
        "      50  by the client    2000     0.50     1.25    20.00   120.00",
        "          the server waited for its core 13% of the time",
    ]
    assert len(table([Outcome(n, spread(4.5), spread(20.0), None) for n in (50, 100)])) == 5


@pytest.mark.parametrize(
    ("in_server", "by_client", "passed"), [(5.0, 49.9, True), (5.1, 49.9, False), (5.0, 50.0, False)]
)
def test_five_milliseconds_in_the_server_and_less_than_fifty_at_the_client(
    in_server: float, by_client: float, passed: bool
) -> None:
    assert Outcome(200, spread(in_server), spread(by_client), None).passed is passed


def test_every_commit_is_refused_and_timed_at_both_ends() -> None:
    lines, told = run("busy", "--sessions", "2,5", "--seconds", "2")
    assert lines[0] == "sessions  commit -> busy      n   p50 ms   p95 ms   p99 ms   max ms"
    assert told["settings"] == {"sessions": [2, 5], "seconds": 2.0, "together": False}
    few, more = told["levels"]
    assert (few["sessions"], few["in_server_ms"]["n"], few["by_client_ms"]["n"]) == (2, 4, 4)
    assert (more["sessions"], more["in_server_ms"]["n"], more["by_client_ms"]["n"]) == (5, 10, 10)
    assert min(more[where]["p50"] for where in ("in_server_ms", "by_client_ms")) > 0


def test_all_commits_at_once_are_not_judged() -> None:
    _, told = run("busy", "--sessions", "2", "--seconds", "1", "--together")
    assert (told["levels"][0]["by_client_ms"]["n"], told["passed"]) == (2, None)
