"""The schedule, the slope and the verdict; half a minute of faults and of clean load; and that harm is found."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from asr_ws.messages import SpeechStarted
from asr_ws.testing.conservation import Conservation
from benchmarks import chaos
from benchmarks.chaos import OTHERS, Outcome, Plan, Planned, Run, schedule, slope_mb_per_min, table
from benchmarks.common import progress
from benchmarks.crowd import Account
from benchmarks.served import Sample
from tests.benchmarks.commands import run
from tests.testing.test_conservation import READY, done

QUIET = Sample(at_s=0.0, rss_mb=100.0, n_fds=12, n_threads=4, n_workers=1)


def samples(*rss_mb: float) -> list[Sample]:
    """One a second."""
    return [dataclasses.replace(QUIET, at_s=1000.0 + at_s, rss_mb=mb) for at_s, mb in enumerate(rss_mb)]


def outcome(**changes: Any) -> Outcome:
    """Of a good run, with these changes."""
    good = Outcome(
        seconds=600.0,
        clean=False,
        decode_s=0.5,
        planned=40,
        faults={"segv": 29, "hang": 2, "vanish": 90},
        account=Account(utterances=1200, finals=1000),
        parent_crashes=0,
        worker_restarts=40,
        max_workers=1,
        max_concurrent_decodes=1,
        slope_mb_per_min=0.99,
        before=QUIET,
        after=QUIET,
        course_mb=[100.0],
        bugs={},
        exit_code=0,
    )
    return dataclasses.replace(good, **changes)


# ---------------------------------------------------------------- the schedule


def test_the_same_seed_is_the_same_schedule() -> None:
    assert schedule(600, 7) == schedule(600, 7)
    assert schedule(600, 7) != schedule(600, 8)


def test_a_segv_comes_every_twenty_seconds_and_one_other_fault_between() -> None:
    planned = schedule(600, 1)
    assert [each.at_s for each in planned if each.name == "segv"] == [20.0 * n for n in range(1, 30)]
    assert planned == sorted(planned, key=lambda each: each.at_s)
    others = [each for each in planned if each.name != "segv"]
    assert [int(each.at_s // 20) for each in others] == list(range(30))
    assert all(4 <= each.at_s % 20 <= 7 for each in others)


def test_each_other_fault_comes_once_before_any_comes_again() -> None:
    names = [each.name for each in schedule(600, 1) if each.name != "segv"]
    assert sorted(names[: len(OTHERS)]) == sorted(OTHERS)


def test_a_short_run_has_its_faults_sooner() -> None:
    planned = schedule(30, 1)
    assert [each.at_s for each in planned if each.name == "segv"] == [10.0, 20.0]
    assert len(planned) == 5


def test_what_is_left_out_does_not_come() -> None:
    assert [each.name for each in schedule(60, 1, ("segv", *OTHERS[1:]))] == [OTHERS[0]] * 3
    assert schedule(60, 1, ("segv", *OTHERS)) == []


# ---------------------------------------------------------------- the slope and the verdict


def test_the_slope_is_that_of_the_run_after_its_first_fifth() -> None:
    assert slope_mb_per_min(samples(0, 50, 100, 101, 102, 103, 104, 105, 106, 107), 10) == pytest.approx(60.0)
    assert slope_mb_per_min(samples(0, 50, *[100] * 8), 10) == 0.0


@pytest.mark.parametrize("n", [0, 1, 4])
def test_a_few_samples_have_no_slope(n: int) -> None:
    assert slope_mb_per_min(samples(*[100.0] * n), 10) is None


def test_the_course_of_the_memory_is_twenty_points_of_it() -> None:
    assert chaos.course_mb(samples(*map(float, range(1, 411)))) == [20.0 * n for n in range(1, 21)]
    assert chaos.course_mb(samples(1, 2)) == [1.0, 2.0]
    assert chaos.course_mb([]) == []


def test_a_good_run_is_ok() -> None:
    assert (outcome().failures, outcome().ok) == ([], True)
    assert outcome(after=dataclasses.replace(QUIET, rss_mb=200.0, n_fds=11, n_threads=3)).ok
    assert outcome(seconds=299.0, slope_mb_per_min=9.0).ok
    assert outcome(slope_mb_per_min=None).ok


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"account": Account(finals=1, lost_outcomes=2)}, "2 outcomes lost"),
        ({"account": Account(finals=1, lost_ms=3)}, "3 ms of audio lost"),
        ({"account": Account(finals=1, breaches=["a", "b"])}, "2 breaches of the protocol"),
        ({"account": Account()}, "no final at all"),
        ({"account": Account(finals=1, unreachable=2)}, "the server could not be reached 2 times"),
        ({"faults": {"segv": 19, "vanish": 90}}, "19 of 40 faults came about"),
        ({"parent_crashes": 1}, "the server ended 1 times"),
        ({"clean": True, "worker_restarts": 1}, "1 restarts of the worker without a fault"),
        ({"max_workers": 2}, "2 workers at once"),
        ({"max_concurrent_decodes": 2}, "2 decodes at once"),
        ({"slope_mb_per_min": 1.0}, "memory grows by 1.00 MB a minute"),
        ({"after": dataclasses.replace(QUIET, n_fds=13)}, "12 open files became 13"),
        ({"after": dataclasses.replace(QUIET, n_threads=5)}, "4 threads became 5"),
        ({"bugs": {"session.failed": 1}}, "the log has {'session.failed': 1}"),
        ({"exit_code": None}, "exit code None"),
        ({"exit_code": 1}, "exit code 1"),
    ],
)
def test_each_harm_is_a_failure(changes: dict[str, Any], failure: str) -> None:
    assert outcome(**changes).failures == [failure]
    assert f"NOT OK          {failure}" in table(outcome(**changes))


def test_the_table_is_for_people() -> None:
    assert table(outcome(seconds=60.0)) == [
        "utterances      1200, 10.0 times the capacity; finals 1000",
        "lost            0 outcomes, 0 ms of audio",
        "faults          hang 2, segv 29, vanish 90 (40 planned, beside those of clients)",
        "the server      ended 0 times; exit code 0",
        "the worker      40 restarts, 1 at once at most",
        "memory          100 -> 100 MB, +0.99 MB a minute (not judged in so short a run)",
        "open files      12 -> 12",
        "threads         4 -> 4",
    ]


def law(*events: Any) -> Conservation:
    found = Conservation()
    found.receive(READY)
    for seq, event in enumerate(events, 1):
        event.seq = seq
        found.receive(event)
    return found


def test_what_a_session_was_not_told_is_lost_however_it_closed() -> None:
    account = Account()
    account.settle(law(SpeechStarted(utterance="u1", audio_start_ms=0)), 1006)
    account.settle(law(done(received_ms=5, lost_ms=5)), 1000)
    assert (account.utterances, account.lost_outcomes, account.lost_ms) == (1, 1, 5)
    assert [each.split(":")[0] for each in account.breaches] == [
        "closed 1006, with 1 utterances that have no outcome",
        "audio was lost",
    ]


def test_the_servers_word_is_not_taken_for_what_it_was_sent() -> None:
    account, told = Account(), law(done(received_ms=990))
    assert told.done is not None
    account.compare(told, told.done, n_bytes=32_000, n_commits=1)
    assert (account.lost_ms, account.breaches) == (10, ["1 commits came to 0 utterances"])


# ---------------------------------------------------------------- runs

posix = pytest.mark.skipif(sys.platform == "win32", reason="a SIGTERM there ends a process without asking it")


@posix
@pytest.mark.model
def test_a_short_time_of_faults_harms_nobody(tiny_en: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    arguments = ("--seconds", "18", "--seed", "1", "--sessions", "8", "--without", "stop,hang,hang-gil")
    lines, told = run("chaos", *arguments, "--report", str(file))
    assert (told["ok"], told["failures"], told["breaches"]) == (True, [], []), lines
    assert json.loads(file.read_text("utf-8")) == told
    assert (told["seconds"], told["seed"]) == (18.0, 1)
    assert (told["lost_outcomes"], told["lost_ms"], told["parent_crashes"]) == (0, 0, 0)
    assert told["faults"]["segv"] == 2
    assert told["worker_restarts"] >= 2
    assert 0 < told["finals"] <= told["utterances"]
    assert "rss_slope_mb_per_min" in told


@posix
@pytest.mark.model
def test_a_short_time_of_overload_harms_nobody(tiny_en: Path) -> None:
    lines, told = run("chaos", "--clean", "--seconds", "8", "--sessions", "24")
    assert (told["ok"], told["failures"], told["breaches"]) == (True, [], []), lines
    assert (told["faults"], told["worker_restarts"]) == ({}, 0)
    assert told["refusals"].keys() & {"queue_full", "predicted_wait"}, "it was no overload"
    assert told["finals"] > 0


@posix
@pytest.mark.model
async def test_a_server_that_dies_is_seen_and_replaced(tiny_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def pid_of_the_server(self: Run) -> int:
        return self._server.pid

    monkeypatch.setattr(Run, "_worker", pid_of_the_server)
    monkeypatch.setattr(chaos, "schedule", lambda seconds, seed, without: [Planned(3.0, "kill")])
    with progress() as bar:
        found = await Run(Plan(6.0, 1, "tiny.en", 4, 1.0, False, chaos.CLIENTS), bar).outcome()
    assert (found.parent_crashes, found.ok, found.exit_code) == (1, False, 0)
    assert "the server ended 1 times" in found.failures
    assert found.account.closes[1006] > 0
    assert found.account.finals > 0
