"""All benchmarks but the peers, one after the other, and the documents that have their figures.

    python -m benchmarks.suite [--sample] [--only NAME ...] [--into FOLDER]
    python -m benchmarks.suite --redraw

Each is a command of its own, run as its users run it; its report is FOLDER/NAME.json, its picture FOLDER/NAME.png, and
all that it printed FOLDER/NAME.txt. ``docs/benchmarks`` has the full run; its README, and the other documents with
blocks of figures, are written anew from the reports (see `benchmarks.document`): none of those is written by hand.
``--sample`` is a short run of the same commands, into a folder of its own: it shows that they work, and little of what
this machine can do. ``--redraw`` measures nothing.

Exit code 1: one of them missed its aim, which a sample may, or did not come to its end.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

import click
import psutil

from asr_ws.testing.served import as_ctrl_c, ending_with_us
from benchmarks.common import Draw, picture, progress
from benchmarks.document import FOLDER, TIMES, read_reports, rewrite

LIMIT_S: Final = 1500.0  # of each: it hangs
SAMPLES: Final = Path("build/benchmarks")
BEFORE: Final = "f963aa7"  # the commit before the server's path of a frame was looked at


@dataclass(frozen=True, slots=True)
class Step:
    """``module`` with the arguments of the full run, or of the sample; None: not in it. ``name``: of the report."""

    name: str
    full: str = ""
    sample: str | None = ""
    module: str = ""

    def command(self, report: Path, *, sample: bool) -> list[str]:
        arguments = ((self.sample or "") if sample else self.full).split()
        return [sys.executable, "-m", f"benchmarks.{self.module or self.name}", *arguments, "--report", str(report)]

    @property
    def shown(self) -> str:
        """The full run's, for people."""
        return f"python -m benchmarks.{self.module or self.name} {self.full}".rstrip()


STEPS: Final = (
    Step("lock_baseline", "--model base --seconds 30", "--loads 5 --seconds 6 --crowd 6"),
    Step("capacity", "--models tiny.en,base --seconds 15", "--quick"),
    Step("latency", "--loads 2", "--clips 1"),
    Step("latency_base", "--model base", None, "latency"),
    Step("decode_time", "", "--models tiny.en --lengths 2,5 --rounds 1"),
    Step("load", "--seconds 20 --offers 150 --rounds 2", "--loads 2 --seconds 3 --offers 10 --rounds 1"),
    Step("fairness", "", "--rounds 1 --seconds 4"),
    Step("overhead", "", "--commits 10"),
    Step("baseline_ratio", "", "--seconds 5 --rounds 1"),
    Step("busy", "", "--sessions 100 --seconds 3"),
    Step("ingest", "", "--sessions 20 --seconds 3"),
    Step("profile", f"--against {BEFORE}", "--sessions 5 --seconds 3 --rounds 1"),
    Step("contention", "", "--rounds 1 --decodes 2"),
    Step("accuracy"),
    Step("microphone", sample=None),
    Step("window", sample=None),
    Step("recovery", "--cycles 30", "--cycles 3 --kills 2 --seconds 3"),
    Step("memory", "", "--sessions 10 --seconds 1 --settle-s 1 --kind idle --kind speaking"),
    Step("uploads", "--rounds 3 --long 10", "--scripted --rounds 1 --seconds 5"),
    Step("jobs", "--kills 25", "--kills 1"),
    Step("long_file", "", "--minutes 1"),
    Step("seams", "--cuts 6", None),
    Step("proxied", "--seconds 60", "--seconds 5"),
    Step("fuzz", "--examples 5000", "--examples 300"),
    Step("blast", "--seconds 120", "--seconds 5"),
    Step("chaos", "--seconds 600", "--seconds 20"),
    Step("soak", "--clean --seconds 600", None, "chaos"),
)


class Verdict(StrEnum):
    KEPT = "ok"
    MISSED = "an aim was missed"
    FAILED = "failed"


def run(step: Step, folder: Path, *, sample: bool) -> tuple[Verdict, float]:
    """Returns: what came of it, and how long it took. An earlier report stays where there is no new one."""
    new = folder / f"{step.name}.new.json"
    new.unlink(missing_ok=True)
    began = time.monotonic()
    with (folder / f"{step.name}.txt").open("wb") as out:
        command = step.command(new, sample=sample)
        process = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT, preexec_fn=ending_with_us())
        try:
            process.wait(LIMIT_S)
        except psutil.TimeoutExpired:
            pass
        finally:
            with suppress(psutil.NoSuchProcess):  # it has ended
                for each in (*process.children(recursive=True), process):  # its server would be in the others' way
                    each.kill()
    verdict = Verdict.FAILED
    if new.exists():
        verdict = Verdict.MISSED if json.loads(new.read_text("utf-8"))["passed"] is False else Verdict.KEPT
    for file in (new, new.with_suffix(".png")):
        if file.exists():
            file.replace(folder / (step.name + file.suffix))
    return verdict, time.monotonic() - began


def redraw(folder: Path) -> None:
    """The pictures, from the reports alone."""
    for name, report in read_reports(folder).items():
        draw: Draw | None = getattr(importlib.import_module(f"benchmarks.{report['benchmark']}"), "draw", None)
        if draw is not None:
            try:
                picture(draw, report, folder / f"{name}.png")
            except (LookupError, TypeError, ValueError) as error:
                raise click.ClickException(f"{folder / name}.json cannot be drawn: {error!r}") from error


@click.command()
@click.option("--sample", is_flag=True, help="less of each")
@click.option("--only", "names", multiple=True, type=click.Choice([step.name for step in STEPS]), help="not the others")
@click.option("--into", "folder", type=click.Path(path_type=Path, file_okay=False), help="where reports go")
@click.option("--redraw", "only_redraw", is_flag=True, help="measure nothing: pictures and documents from the reports")
def main(sample: bool, names: tuple[str, ...], folder: Path | None, only_redraw: bool) -> None:
    """All benchmarks but the peers, one after the other, and the documents that have their figures."""
    as_ctrl_c()
    folder = folder or (SAMPLES if sample else FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    bad, began = [], time.monotonic()
    if only_redraw:
        redraw(folder)
    else:
        steps = [step for step in STEPS if (step.name in names if names else not sample or step.sample is not None)]
        times_file = folder / TIMES
        times = json.loads(times_file.read_text("utf-8")) if times_file.exists() else {}
        with progress() as bars:
            bar = bars.add_task("", total=len(steps))
            for step in steps:
                bars.update(bar, description=step.name)
                verdict, took_s = run(step, folder, sample=sample)
                click.echo(f"{step.name:<18}{timedelta(seconds=round(took_s))!s:>9}  {verdict}")
                if verdict is Verdict.FAILED or (verdict is Verdict.MISSED and not sample):
                    bad.append(step.name)
                times[step.name] = {"seconds": round(took_s), "verdict": verdict}
                times_file.write_text(json.dumps(times, indent=2) + "\n", "utf-8")
                bars.advance(bar)
    if folder == FOLDER:
        for document in rewrite({step.name: step.shown for step in STEPS}):
            click.echo(f"written: {document}")
    if not only_redraw:
        total_s = time.monotonic() - began
        click.echo(
            f"{'all of them':<18}{timedelta(seconds=round(total_s))!s:>9}  what they said, found and drew: {folder}"
        )
    for name in bad:
        click.echo(f"see {folder / name}.txt")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
