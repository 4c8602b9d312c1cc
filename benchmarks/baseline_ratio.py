"""Whether a decode takes longer because others wait: alone, against five times what the model can do.

    python -m benchmarks.baseline_ratio [--model tiny.en] [--load 5] [--seconds 15] [--rounds 3]

One utterance of the bundled speech, always the same, is decoded again and again: by one session, as soon as it has its
text; then offered by `N_SESSIONS` at Poisson times with a fixed seed, ``--load`` times the capacity, with partials on.
The two take turns in rounds. What is compared is the decode as the server's loop sees it: from the request's being
written to the text's being read.

- pinned: the worker has one core, and one thread; the server and the clients have the others. That is the server's own
  doing: whether it lets anything run beside a decode. Linux only, and not where there is one core.
- free: as a user starts it, all of them on all cores. The clients, and the server's work for them, take what they need.

Target, pinned: the median under load is at most 1.05 times that alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from asr_ws import log
from benchmarks.common import (
    Cores,
    Report,
    Spread,
    other_process,
    pin,
    progress,
    report,
    reported,
    settings_of,
    split_cores,
    within,
)
from benchmarks.offered import (
    SCRIPTED,
    Talk,
    WorkerCores,
    dealt,
    decode_each,
    lasting,
    offer_all,
    offers,
    serving,
    spoken_cuts,
    start_of,
    watched,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_RATIO: Final = 1.05
N_SESSIONS: Final = 20
PATIENCE_S: Final = 30.0
ALONE, LOADED = "alone", "under load"
PINNED, FREE = "pinned", "free"
SEED: Final = 2026


@dataclass(frozen=True, slots=True)
class Outcome:
    """Milliseconds of each decode, alone and under load; and of the time, in which the worker had work and no core."""

    decode_ms: dict[str, list[float]]
    waited: dict[str, float | None]

    @property
    def ratio(self) -> float:
        alone, loaded = (Spread.of(self.decode_ms[name]).p50 for name in (ALONE, LOADED))
        return loaded / alone

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {
            "ratio": round(self.ratio, 3),
            **{f"{name.replace(' ', '_')}_ms": Spread.of(each).figures(1) for name, each in self.decode_ms.items()},
            "worker_waited_for_core": self.waited,
        }


def verdict(outcomes: dict[str, Outcome]) -> bool | None:
    return outcomes[PINNED].ratio <= MAX_RATIO if PINNED in outcomes else None


HEADER: Final = f"{'decode, ms':<22}{'n':>6}{'p50':>8}{'p95':>8}{'max':>8}{'no core':>9}{'ratio':>8}"


def rows(name: str, outcome: Outcome) -> list[str]:
    """Lines for people."""
    lines = []
    for how, decode_ms in outcome.decode_ms.items():
        spread, waited = Spread.of(decode_ms), outcome.waited[how]
        ratio = f"{outcome.ratio:.3f}" if how == LOADED else ""
        lines.append(
            f"{f'{name}, {how}':<22}{spread.n:>6}{spread.p50:>8.0f}{spread.p95:>8.0f}{spread.max:>8.0f}"
            f"{'?' if waited is None else f'{waited:.0%}':>9}{ratio:>8}"
        )
    return lines


def draw(figure: Figure, report: Report) -> None:
    """Medians, with a line up to p95, side by side."""
    scenes = [name for name in (PINNED, FREE) if name in report]
    axes = figure.add_subplot(title="The same decode, alone and under five times the capacity", ylabel="ms")
    for n, scene in enumerate(scenes):
        for offset, how, color in ((-0.2, ALONE, "C0"), (0.2, LOADED, "C1")):
            spread = report[scene][f"{how.replace(' ', '_')}_ms"]
            axes.bar(n + offset, spread["p50"], 0.36, color=color, label=how if n == 0 else None)
            axes.plot([n + offset] * 2, [spread["p50"], spread["p95"]], color="0.2")
            axes.annotate(f"{spread['p50']:.0f}", (n + offset, spread["p50"] / 2), ha="center", color="white")
        axes.annotate(f"x {report[scene]['ratio']:.2f}", (n, axes.get_ylim()[1]), ha="center", va="top")
    axes.set_xticks(range(len(scenes)), [f"{each}: median, and up to p95" for each in scenes])
    axes.margins(y=0.15)
    axes.legend(loc="upper center")


# ---------------------------------------------------------------- in the server's process


async def measure(
    model: str, load: float, seconds: float, n_rounds: int, pinned: bool, step: Callable[[], None]
) -> Outcome:
    """Raises: click.ClickException: it did not end."""
    for_worker, for_others = split_cores() if pinned else (Cores(), Cores())
    start = start_of(model)
    cut = sorted(spoken_cuts(), key=lambda each: each.stop - each.start)[len(spoken_cuts()) // 2]
    decode_ms: dict[str, list[float]] = {ALONE: [], LOADED: []}
    waited: dict[str, list[float]] = {ALONE: [], LOADED: []}
    async with AsyncExitStack() as stack:
        clients = stack.enter_context(other_process(for_others))
        settings = settings_of(model=model, cpu_threads=1 if pinned else 0, ingest_speed=1000.0)
        app = await stack.enter_async_context(serving(settings))
        if pinned:
            pin(for_others)
            assert app.supervisor.pid is not None
            _pin_threads(app.supervisor.pid, for_worker)
        with watched(app) as decodes:
            await _in(clients, partial(decode_each, app.url, [cut], start), PATIENCE_S)
        decode_s = decodes[0].took_s
        n_alone = max(1, round(seconds / 2 / decode_s))
        for n_round in range(n_rounds):
            rng = random.Random(SEED + n_round)
            plans = dealt(lasting(seconds, offers(load / decode_s, [cut], rng)), N_SESSIONS, rng)
            for name, run in (
                (ALONE, partial(decode_each, app.url, [cut] * n_alone, start)),
                (LOADED, partial(_offer, app.url, plans, start)),
            ):
                cores = WorkerCores(app)
                with watched(app) as decodes:
                    await _in(clients, run, 4 * seconds + PATIENCE_S)
                decode_ms[name] += [each.took_s * 1000 for each in decodes if each.kind == "final"]
                if cores.waited_share is not None:
                    waited[name].append(cores.waited_share)
                step()
    shares = {name: round(sum(each) / len(each), 3) if each else None for name, each in waited.items()}
    return Outcome(decode_ms, shares)


def _pin_threads(pid: int, cores: Cores) -> None:
    if sys.platform == "linux":
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), cores)


async def _in(clients: Executor, run: Callable[[], Any], limit_s: float) -> None:
    async with within(limit_s, "the clients"):
        await asyncio.get_running_loop().run_in_executor(clients, run)


# ---------------------------------------------------------------- in the clients' process


def _offer(url: str, plans: list[list[Any]], start: dict[str, Any]) -> list[Talk]:
    return asyncio.run(offer_all(url, plans, once=True, patience_s=PATIENCE_S, **start))


@click.command()
@reported
@click.option("--model", default="tiny.en", show_default=True, help=f"or {SCRIPTED}: 0.1 s a decode")
@click.option("--load", default=5.0, show_default=True, type=click.FloatRange(1, 50), help="in times of the capacity")
@click.option("--seconds", default=15.0, show_default=True, type=click.FloatRange(1, 600), help="of each round")
@click.option("--rounds", "n_rounds", default=3, show_default=True, type=click.IntRange(1, 100))
def main(model: str, load: float, seconds: float, n_rounds: int) -> None:
    """Whether a decode takes longer because others wait."""
    log.configure(level="error")
    outcomes: dict[str, Outcome] = {}
    scenes = [FREE, *([PINNED] if split_cores()[0] else [])]  # the process that is pinned stays so
    click.echo(HEADER)
    with progress(still=True) as bars:
        step = partial(bars.update, bars.add_task("rounds", total=2 * n_rounds * len(scenes)), advance=1, refresh=True)
        for scene in scenes:
            outcomes[scene] = asyncio.run(measure(model, load, seconds, n_rounds, scene == PINNED, step))
            for line in rows(scene, outcomes[scene]):
                click.echo(line)
    settings = {"model": model, "load": load, "seconds": seconds, "rounds": n_rounds, "sessions": N_SESSIONS}
    figures = {name: each.figures() for name, each in outcomes.items()}
    sys.exit(report("baseline_ratio", settings=settings, figures=figures, passed=verdict(outcomes), draw=draw))


if __name__ == "__main__":
    main()
