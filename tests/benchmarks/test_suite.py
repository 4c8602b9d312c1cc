"""The suite runs benchmarks as its users do, keeps what they report, and says which missed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import suite
from benchmarks.suite import STEPS, Step, Verdict, main, run
from tests.benchmarks.commands import REPOSITORY

SHORT = "--model scripted --seconds 1 --rounds 1"


def test_every_benchmark_but_the_peers_is_in_it() -> None:
    modules = {
        file.stem for file in (REPOSITORY / "benchmarks").glob("*.py") if "@reported" in file.read_text("utf-8")
    } - {"common", "peers"}
    assert {step.module or step.name for step in STEPS} == modules


def test_a_run_leaves_report_picture_and_what_was_printed(tmp_path: Path) -> None:
    verdict, _ = run(Step("baseline_ratio", sample=SHORT), tmp_path, sample=True)
    told = json.loads((tmp_path / "baseline_ratio.json").read_text("utf-8"))
    assert verdict is (Verdict.MISSED if told["passed"] is False else Verdict.KEPT)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "baseline_ratio.json",
        "baseline_ratio.png",
        "baseline_ratio.txt",
    ]


def test_a_run_that_fails_leaves_the_earlier_report(tmp_path: Path) -> None:
    (tmp_path / "busy.json").write_text("{}")
    (tmp_path / "busy.new.json").write_text('{"passed": true}')  # of a run that was killed
    verdict, _ = run(Step("busy", "--no-such-option"), tmp_path, sample=False)
    assert verdict is Verdict.FAILED
    assert (tmp_path / "busy.json").read_text() == "{}"
    assert "no-such-option" in (tmp_path / "busy.txt").read_text()


@pytest.mark.parametrize(("arguments", "seen"), [((), ["overhead", "busy"]), (("--sample",), ["busy"])])
def test_who_missed_is_told_and_is_the_exit_code(
    arguments: tuple[str, ...], seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = {"busy": Verdict.FAILED, "overhead": Verdict.MISSED, "ingest": Verdict.KEPT}
    monkeypatch.setattr(suite, "run", lambda step, folder, *, sample: (verdicts[step.name], 61.0))
    only = [f"--only={name}" for name in verdicts]
    told = CliRunner().invoke(main, [*only, *arguments, "--into", str(tmp_path)])
    assert told.exit_code == 1
    assert told.stdout.splitlines() == [
        "overhead            0:01:01  an aim was missed",
        "busy                0:01:01  failed",
        "ingest              0:01:01  ok",
        f"all of them         0:00:00  what they said, found and drew: {tmp_path}",
        *(f"see {tmp_path / name}.txt" for name in seen),
    ]
    assert json.loads((tmp_path / "suite.json").read_text("utf-8"))["busy"] == {"seconds": 61, "verdict": "failed"}


def test_a_sample_that_missed_its_aims_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "run", lambda step, folder, *, sample: (Verdict.MISSED, 1.0))
    assert CliRunner().invoke(main, ["--sample", "--into", str(tmp_path)]).exit_code == 0
