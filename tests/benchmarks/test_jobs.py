"""The verdict and the table, and five kills: how long anything took is this machine's and is not judged."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.jobs import Asked, Kept, Kills, Outcome, Sample, table
from tests.benchmarks.commands import run

SHORT = Sample("11 s", b"", "one two three four")
TEXT = "one two three for"


def asked(key: str, *ids: str, ended: tuple[str, str | None] = ("succeeded", TEXT)) -> Asked:
    return Asked(key, "11 s", list(ids), [ended, ended])


GOOD = Outcome(
    kills=Kills(n=2, gone_ms=[4.0, 9.0], n_children=3, n_media=1),
    asked=[asked("key-1", "job-a"), asked("key-2", "job-b", "job-b")],
    samples={"11 s": replace(SHORT, said=TEXT)},
    undisturbed={"11 s": TEXT},
    is_scripted=False,
    kept=Kept("ok", {"job-a": "succeeded", "job-b": "succeeded"}, 0, []),
    resumed=1,
    lost=0,
    ended_in_log={"job-a": 1},
    bugs={},
    exit_code=0,
)


def test_a_good_run_has_no_fault() -> None:
    assert GOOD.faults == []
    assert table(GOOD) == [
        "kills      2, in 1 of them a job was being done",
        "children   3, 1 of them decoded a file; gone after 4 ms (p50), 9 ms at most",
        "jobs       2: 2 x 11 s",
        "           acknowledged 3 times, succeeded 2",
        "errors     11 s 0.0% of the words",
        "kept       database ok, 0 files in the spool",
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"asked": [*GOOD.asked, Asked("key-3", "11 s")]}, "key-3 was never acknowledged"),
        (
            {"asked": [asked("key-1", "job-a"), asked("key-2", "job-b", "job-c")]},
            "key-2 is more than one job: ['job-b', 'job-c']",
        ),
        ({"asked": [asked("key-1", "job-a"), Asked("key-2", "11 s", ["job-b"])]}, "job-b is lost: it has not ended"),
        (
            {"asked": [asked("key-1", "job-a"), asked("key-2", "job-b", ended=("status 404", None))]},
            f"job-b (11 s): ('status 404', None) is not ('succeeded', '{TEXT}')",
        ),
        (
            {"asked": [asked("key-1", "job-a"), asked("key-2", "job-b", ended=("succeeded", f"{TEXT} {TEXT}"))]},
            f"job-b (11 s): ('succeeded', '{TEXT} {TEXT}') is not ('succeeded', '{TEXT}')",
        ),
        (
            {"asked": [asked("key-1", "job-a"), asked("key-2", "job-b"), asked("key-3", "job-b")]},
            "two keys are one job",
        ),
        (
            {"kept": replace(GOOD.kept, status_by_id={**GOOD.kept.status_by_id, "job-c": "succeeded"})},
            "1 jobs that nobody was told of",
        ),
        (
            {"kept": replace(GOOD.kept, status_by_id={"job-a": "succeeded", "job-b": "running"})},
            "1 acknowledged jobs have not succeeded in the database",
        ),
        ({"kept": replace(GOOD.kept, check="row 1 missing")}, "the database: row 1 missing"),
        ({"kept": replace(GOOD.kept, n_slices=2)}, "2 slices of no unfinished job"),
        ({"kept": replace(GOOD.kept, spool=["job-a"])}, "1 files are left in the spool"),
        ({"lost": 1}, "the audio of 1 jobs was lost"),
        ({"ended_in_log": {"job-a": 2}}, "1 jobs ended twice, by the log"),
        ({"kills": Kills(left=1)}, "1 children outlived their server"),
        ({"bugs": {"traceback": 1}}, "the log has {'traceback': 1}"),
        ({"exit_code": None}, "exit code None"),
        ({"samples": {"11 s": replace(SHORT, said="nothing of this")}}, "11 s: word errors 133.3%"),
    ],
)
def test_each_harm_is_a_fault(changes: dict[str, Any], fault: str) -> None:
    assert replace(GOOD, **changes).faults == [fault]


@pytest.mark.skipif(sys.platform == "win32", reason="a SIGTERM there ends a process without asking it")
def test_five_kills_lose_no_job_and_double_none() -> None:
    lines, told = run("jobs", "--scripted", "--kills", "5")
    assert told["faults"] == [], lines
    assert told["kills_done"] == 5
    assert told["succeeded"] == told["jobs"] > 4
    assert told["acknowledgements"] >= told["jobs"]
    assert told["resumed"] >= 1, "no kill came while a job was being done"
