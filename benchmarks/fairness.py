"""Who gets what beside a session that takes all it can: nine ordinary sessions, with a hog and without it.

    python -m benchmarks.fairness [--model scripted] [--decode-ms 100] [--seconds 10] [--rounds 3]

The nine commit utterances of 1 s at Poisson times with a fixed seed, together 0.6 of what the model can decode, and
offer what is refused again as the hints say. The hog commits utterances of 0.2 s, one as soon as the last is answered,
as fast as the server takes its audio, and also follows every hint. Three configurations, in turn in every round, with
the same times for the nine: without the hog; with it; with it and without the fair share (`AdmissionQueue`, ``fair``).
What comes to no final within 5 s of a round's last offer does not count. All sessions are in manual mode; all clients
share one process, which is not the server's.

The worker is a scripted one whose every decode takes ``--decode-ms``; ``--model tiny.en`` takes a real model instead.

Target: beside the hog the nine keep at least 90 % of the finals that they get without it.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from asr_ws import log, messages
from asr_ws.testing.bare import BareSession
from benchmarks.common import (
    PCM_BYTES_PER_S,
    Cores,
    other_process,
    percentile,
    progress,
    report,
    reported,
    sessions,
    settings_of,
    speech_pcm,
    within,
)
from benchmarks.offered import (
    SCRIPTED,
    Offer,
    Talk,
    Tally,
    dealt,
    lasting,
    mean_decode_s,
    offer_all,
    offers,
    serving,
    start_of,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from asr_ws.server.app import App

MIN_KEPT: Final = 0.9
N_ORDINARY: Final = 9
OFFERED: Final = 0.6  # of the capacity, by the nine
ALONE, BESIDE, UNFAIR = "without the hog", "beside the hog", "rule off"
CONFIGURATIONS: Final = {ALONE: (True, False), BESIDE: (True, True), UNFAIR: (False, True)}  # fair, with the hog
CUTS: Final = [slice(start * PCM_BYTES_PER_S, (start + 1) * PCM_BYTES_PER_S) for start in range(50)]
HOG_BYTES: Final = PCM_BYTES_PER_S // 5
PATIENCE_S: Final = 5.0
ROUND_LIMIT_S: Final = 60.0  # beyond its seconds
SEED: Final = 2026


@dataclass(frozen=True, slots=True)
class Share:
    """What some sessions got. ``waits_ms``: from the commit to the final, retries and decode included."""

    offered: int
    finals: int
    refusals: dict[str, int]
    waits_ms: list[float]

    @classmethod
    def of(cls, talks: Iterable[Talk]) -> Share:
        talks = list(talks)
        tally = Tally.of(talks)
        waits_ms = [wait_ms for talk in talks for wait_ms in _waits_ms(talk)]
        return cls(sum(len(talk.committed) for talk in talks), tally.finals, tally.refusals, waits_ms)

    def __add__(self, other: Share) -> Share:
        refusals = dict(Counter(self.refusals) + Counter(other.refusals))
        waits_ms = self.waits_ms + other.waits_ms
        return Share(self.offered + other.offered, self.finals + other.finals, refusals, waits_ms)

    @property
    def wait_ms(self) -> float | None:
        """The median; None: there were no finals."""
        return percentile(self.waits_ms, 50) if self.waits_ms else None

    def figures(self) -> dict[str, object]:
        """For the report."""
        wait_ms = self.wait_ms
        return {
            "offered": self.offered,
            "finals": self.finals,
            "refusals": self.refusals,
            "median_wait_ms": wait_ms and round(wait_ms, 1),
        }


NOTHING: Final = Share(0, 0, {}, [])


def _waits_ms(talk: Talk) -> list[float]:
    commits: dict[str, str] = {}  # of the utterances
    waits_ms = []
    for at, event in talk.heard:
        match event:
            case messages.Accepted(utterance=str(utterance), commit=str(commit)):
                commits[utterance] = commit
            case messages.Final(utterance=utterance):
                waits_ms.append((at - talk.committed[commits[utterance]]) * 1000)
    return waits_ms


@dataclass(frozen=True, slots=True)
class Outcome:
    """By configuration."""

    ordinary: dict[str, Share]
    hog: dict[str, Share]

    def kept(self, name: str) -> float:
        """Of the finals that the nine get without the hog."""
        return self.ordinary[name].finals / max(self.ordinary[ALONE].finals, 1)

    @property
    def passed(self) -> bool:
        return self.ordinary[ALONE].finals > 0 and self.kept(BESIDE) >= MIN_KEPT


def table(outcome: Outcome) -> list[str]:
    """Lines for people."""
    lines = [f"{'':<18}{'':<10}{'offered':>8}{'finals':>8}{'kept':>7}{'wait p50 ms':>13}  refused"]
    for name in CONFIGURATIONS:
        lines.append(_row(name, "the nine", outcome.ordinary[name], f"{outcome.kept(name):.0%}"))
        if name in outcome.hog:
            lines.append(_row("", "the hog", outcome.hog[name], ""))
    return lines


def _row(name: str, who: str, share: Share, kept: str) -> str:
    wait = "-" if share.wait_ms is None else f"{share.wait_ms:.0f}"
    refused = ", ".join(f"{n} {reason}" for reason, n in sorted(share.refusals.items())) or "-"
    return f"{name:<18}{who:<10}{share.offered:>8}{share.finals:>8}{kept:>7}{wait:>13}  {refused}"


# ---------------------------------------------------------------- in the server's process


async def measure(
    model: str, start: dict[str, Any], seconds: float, rounds: int, step: Callable[[], None]
) -> tuple[Outcome, float]:
    """Returns: with the mean seconds of a decode, of which the capacity was taken."""
    settings = settings_of(model=model)
    async with AsyncExitStack() as stack:
        clients = stack.enter_context(other_process(Cores()))
        apps = {fair: await stack.enter_async_context(serving(settings, fair=fair)) for fair in (True, False)}
        decode_s = await mean_decode_s(apps[True], clients, CUTS[:8], **start)
        ordinary = dict.fromkeys(CONFIGURATIONS, NOTHING)
        hog: dict[str, Share] = {}
        for n_round in range(rounds):
            rng = random.Random(SEED + n_round)
            plans = dealt(lasting(seconds, offers(OFFERED / decode_s, CUTS, rng)), N_ORDINARY, rng)
            for name in _rotated(list(CONFIGURATIONS), n_round):
                fair, with_hog = CONFIGURATIONS[name]
                async with within(seconds + ROUND_LIMIT_S, f"round {n_round + 1} {name}"):
                    talks, hogs = await _round(apps[fair], clients, plans, start, with_hog)
                ordinary[name] += Share.of(talks)
                if hogs:
                    hog[name] = hog.get(name, NOTHING) + Share.of(hogs)
                step()
    return Outcome(ordinary, hog), decode_s


def _rotated(names: list[str], n: int) -> list[str]:
    n %= len(names)
    return names[n:] + names[:n]


async def _round(
    app: App, clients: Executor, plans: Sequence[Sequence[Offer]], start: dict[str, Any], with_hog: bool
) -> tuple[list[Talk], list[Talk]]:
    run = partial(contend, app.url, plans, start, with_hog)
    return await asyncio.get_running_loop().run_in_executor(clients, run)


# ---------------------------------------------------------------- in the clients' process


def contend(
    url: str, plans: Sequence[Sequence[Offer]], start: dict[str, Any], with_hog: bool
) -> tuple[list[Talk], list[Talk]]:
    """Returns: what the nine said and heard, and what the hog did, if there was one."""
    return asyncio.run(_contend(url, plans, start, with_hog))


async def _contend(
    url: str, plans: Sequence[Sequence[Offer]], start: dict[str, Any], with_hog: bool
) -> tuple[list[Talk], list[Talk]]:
    hogs = [Talk()] if with_hog else []
    async with (
        sessions(url, len(hogs), endpointing={"mode": "manual"}, **start) as opened,
        asyncio.TaskGroup() as tasks,
    ):
        running = [tasks.create_task(_hog(session, talk)) for session, talk in zip(opened, hogs, strict=True)]
        talks = await offer_all(url, plans, once=False, patience_s=PATIENCE_S, **start)
        for task in running:
            task.cancel()
    return talks, hogs


async def _hog(session: BareSession, talk: Talk) -> None:
    """Until cancelled."""
    loop = asyncio.get_running_loop()
    pcm = speech_pcm()[:HOG_BYTES]
    answered = asyncio.Event()

    async def commit() -> None:
        while True:
            id = f"{len(talk.committed)}"
            await session.send(pcm)
            talk.committed[id] = loop.time()
            answered.clear()
            await session.commit(id)
            await answered.wait()

    async def listen() -> None:
        async for event in session.events():
            talk.heard.append((loop.time(), event))
            if isinstance(event, messages.Accepted | messages.Busy) and event.attempt == 1:
                answered.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(commit())
        tasks.create_task(listen())


@click.command()
@reported
@click.option("--model", default=SCRIPTED, show_default=True, help="or a real one")
@click.option("--decode-ms", default=100, show_default=True, type=click.IntRange(1, 10_000), help="of the scripted one")
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(1, 600), help="of each round")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="of all configurations")
def main(model: str, decode_ms: int, seconds: float, rounds: int) -> None:
    """What ordinary sessions get beside one that takes all it can."""
    log.configure(level="error")
    start = start_of(model, decode_ms / 1000)
    with progress(still=True) as bars:
        bar = bars.add_task("rounds", total=rounds * len(CONFIGURATIONS))
        step = partial(bars.update, bar, advance=1, refresh=True)
        outcome, decode_s = asyncio.run(measure(model, start, seconds, rounds, step))
    for line in table(outcome):
        click.echo(line)
    sys.exit(
        report(
            "fairness",
            settings={
                "model": model,
                "decode_ms": round(decode_s * 1000, 1),
                "offered_by_the_nine": OFFERED,
                "seconds": seconds,
                "rounds": rounds,
            },
            figures={
                **{
                    name.replace(" ", "_"): {
                        "nine": share.figures(),
                        "kept": round(outcome.kept(name), 4),
                        "hog": outcome.hog[name].figures() if name in outcome.hog else None,
                    }
                    for name, share in outcome.ordinary.items()
                },
            },
            passed=outcome.passed,
        )
    )


if __name__ == "__main__":
    main()
