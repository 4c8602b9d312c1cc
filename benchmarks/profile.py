"""Where the server's processor time goes, for each second of audio that is streamed to it.

    python -m benchmarks.profile [--sessions 20] [--seconds 20] [--rounds 2] [--against FOLDER|COMMIT]

A server, a process, with a scripted worker, so that no model takes part; ``--sessions`` send the bundled speech in real
time, in frames of 100 ms, with detector, partials and endpoints. First the process's own processor time is taken,
undisturbed, less what it takes with nothing to do. Then py-spy looks at it 200 times a second, and what it sees is laid
to the innermost function of ours that the loop called, with what that calls in libraries; where there is none, to the
library.

With ``--against`` the same is done to another checkout, or to a commit of this one, round by round in turn: what
changes were worth.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import click
import psutil

from benchmarks.common import Report, progress, report, reported, within
from benchmarks.ingest import speak
from benchmarks.served import Served

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT: Final = Path(__file__).parents[1]
RATE: Final = 200  # looks a second
FRAME_S: Final = 0.1
SETTLING_S: Final = 2.0
N_SHOWN, N_LISTED = 12, 6
HERE, THERE = "here", "against"
LIMIT_S: Final = 120.0  # beyond what is measured


def place(stack: str) -> str:
    """What one of py-spy's stacks is laid to: ``name (file.py:1);name (file.py:2)``, the outermost first."""
    frames = [frame.rpartition(":")[0].partition(" (")[::2] for frame in stack.split(";")]
    turns = [n for n, (name, _) in enumerate(frames) if name.endswith("_run_once")]
    for name, file in reversed(frames[turns[-1] + 1 :] if turns else frames):
        if "asr_ws/" in (path := file.replace("\\", "/")):
            return f"{path.rpartition('asr_ws/')[2]}: {name}"
    library = frames[-1][1].replace("\\", "/")
    return (
        library.rpartition("site-packages/")[2].partition("/")[0] if "site-packages" in library else Path(library).stem
    )


def shares(raw: Iterable[str]) -> dict[str, float]:
    """Of all that was seen, by place; the largest first. Args: raw: py-spy's lines, a stack and how often."""
    counts = Counter[str]()
    for line in raw:
        stack, _, n = line.rpartition(" ")
        if "select (selectors.py" not in stack:  # it waits, or is just falling asleep
            counts[place(stack)] += int(n)
    total = counts.total() or 1
    return {name: n / total for name, n in counts.most_common()}


@dataclass(frozen=True, slots=True)
class Profile:
    """``cpu_ms``: of each round, for a second of one session's audio."""

    cpu_ms: list[float]
    shares: dict[str, float]

    def figures(self) -> dict[str, Any]:
        """For the report."""
        spent = median(self.cpu_ms)
        return {
            "cpu_ms_per_audio_s": round(spent, 2),
            "rounds": [round(each, 2) for each in self.cpu_ms],
            "places": [
                {"where": name, "share": round(share, 3), "cpu_ms": round(share * spent, 2)}
                for name, share in list(self.shares.items())[:N_SHOWN]
            ],
        }


def markdown(report: Report) -> list[str]:
    """Lines of Markdown, from the report alone: the places that take most, and what they took in the other checkout."""
    sides = [side for side in (THERE, HERE) if side in report]
    found = {side: {each["where"]: each["cpu_ms"] for each in report[side]["places"]} for side in sides}
    titles = {THERE: f"before ({report['settings']['against']})", HERE: "now"}
    rows = [
        ["ms of processor time for each second of audio", *(titles[side] for side in sides)],
        ["---", *("---:" for _ in sides)],
        ["all", *(f"{report[side]['cpu_ms_per_audio_s']:.1f}" for side in sides)],
        *(
            [f"`{name}`", *(f"{found[side][name]:.2f}" if name in found[side] else "-" for side in sides)]
            for name in list(found[HERE])[:N_LISTED]
        ),
    ]
    return [f"| {' | '.join(row)} |" for row in rows]


def draw(figure: Figure, report: Report) -> None:
    """Bars, the most at the top; the other checkout's beside them."""
    sides = [side for side in (THERE, HERE) if side in report]
    found = {side: {each["where"]: each["cpu_ms"] for each in report[side]["places"]} for side in sides}
    names = list(found[HERE])[::-1]
    axes = figure.add_subplot(xlabel="ms of processor time for each second of audio")
    height = 0.8 / len(sides)
    for n, side in enumerate(sides):
        label = f"{'before' if side == THERE else 'now'}: {report[side]['cpu_ms_per_audio_s']:.1f} ms in all"
        bars = [found[side].get(name, 0.0) for name in names]
        offsets = [row + (0.5 - n) * height * (len(sides) - 1) for row in range(len(names))]
        axes.barh(offsets, bars, height, label=label, color="0.7" if side == THERE else "C0")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title("Where the server's processor time goes")
    axes.legend(loc="lower right")


# ---------------------------------------------------------------- the server, and its clients


async def measure(tree: Path, n_sessions: int, seconds: float) -> tuple[float, dict[str, float]]:
    """Returns: milliseconds for each second of audio, and the shares. Raises: click.ClickException: it did not end."""
    server = await Served.start(
        *("--max-sessions", str(2 * n_sessions), "--queue-capacity", "1000", "--max-wait-ms", "60000"),
        program=("benchmarks.scripted",),
        tree=tree,
    )
    try:
        await server.until(state="ready")
        process = psutil.Process(server.pid)
        idle_s = await _cpu_s(process, SETTLING_S) / SETTLING_S
        async with within(LIMIT_S + 2 * (SETTLING_S + seconds), "the sessions"), asyncio.TaskGroup() as tasks:
            length_s = 2 * SETTLING_S + 2 * seconds
            talk = tasks.create_task(asyncio.to_thread(speak, server.url, n_sessions, FRAME_S, length_s))
            while (await server.stats())["sessions"] < n_sessions and not talk.done():
                await asyncio.sleep(FRAME_S)
            await asyncio.sleep(SETTLING_S)
            used_s = await _cpu_s(process, seconds) - idle_s * seconds
            seen = shares(await asyncio.to_thread(_look, server.pid, seconds))
    finally:
        await server.kill()
    return used_s * 1000 / (n_sessions * seconds), seen


async def _cpu_s(process: psutil.Process, seconds: float) -> float:
    before = process.cpu_times()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system) - (before.user + before.system)


def _look(pid: int, seconds: float) -> list[str]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "stacks"
        command = [py_spy(), "record", "--pid", str(pid), "--format", "raw", "--output", str(file), "--nonblocking"]
        command += ["--rate", str(RATE), "--duration", str(max(1, round(seconds)))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not file.exists():
            raise click.ClickException(f"py-spy: {done.stderr.strip()}")
        return file.read_text("utf-8").splitlines()


def py_spy() -> str:
    """Raises: click.ClickException: it is not installed."""
    found = shutil.which("py-spy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise click.ClickException("py-spy is not installed: pip install 'asr-ws[test]'")
    return found


@click.command()
@reported
@click.option("--sessions", "n_sessions", default=20, show_default=True, type=click.IntRange(1, 200))
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(1, 600), help="of each look")
@click.option("--rounds", "n_rounds", default=2, show_default=True, type=click.IntRange(1, 100))
@click.option("--against", metavar="FOLDER|COMMIT", help="another checkout, or a commit of this one")
def main(n_sessions: int, seconds: float, n_rounds: int, against: str | None) -> None:
    """Where the server's processor time goes."""
    py_spy()
    with checkout(against) as there:
        profiles = profiled({HERE: ROOT} | ({THERE: there} if there else {}), n_sessions, seconds, n_rounds)
    for side, profile in profiles.items():
        figures = profile.figures()
        click.echo(f"{side}: {figures['cpu_ms_per_audio_s']:.2f} ms of processor time for each second of audio")
        for each in figures["places"]:
            click.echo(f"{each['cpu_ms']:>8.2f} ms{each['share']:>7.1%}  {each['where']}")
    settings = {"sessions": n_sessions, "seconds": seconds, "rounds": n_rounds, "against": against}
    figures = {side: profile.figures() for side, profile in profiles.items()}
    sys.exit(report("profile", settings=settings, figures=figures, passed=None, draw=draw))


@contextmanager
def checkout(of: str | None) -> Iterator[Path | None]:
    """That folder, or a temporary one with that commit. Raises: click.BadParameter: there is neither."""
    if of is None or Path(of).is_dir():
        yield Path(of).resolve() if of else None
        return
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "--format=zip", of], capture_output=True)
    if archive.returncode:
        raise click.BadParameter(f"no folder, and no commit: {archive.stderr.decode(errors='replace').strip()}")
    with TemporaryDirectory() as folder:
        with zipfile.ZipFile(BytesIO(archive.stdout)) as tree:
            tree.extractall(folder)
        yield Path(folder)


def profiled(trees: Mapping[str, Path], n_sessions: int, seconds: float, n_rounds: int) -> dict[str, Profile]:
    cpu_ms: dict[str, list[float]] = {side: [] for side in trees}
    seen: dict[str, Counter[str]] = {side: Counter() for side in trees}
    with progress() as bars:
        bar = bars.add_task("rounds", total=n_rounds * len(trees))
        for n_round in range(n_rounds):
            for side in list(trees)[:: -1 if n_round % 2 else 1]:
                spent, found = asyncio.run(measure(trees[side], n_sessions, seconds))
                cpu_ms[side].append(spent)
                seen[side].update({name: share / n_rounds for name, share in found.items()})
                bars.advance(bar)
    return {side: Profile(cpu_ms[side], dict(seen[side].most_common())) for side in trees}


if __name__ == "__main__":
    main()
