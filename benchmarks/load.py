"""Whether what the server promises under load holds, and what partials cost when there is too much to do.

    python -m benchmarks.load [--model tiny.en] [--cpu-threads N] [--loads 1,2,3] [--seconds 40] [--offers 300]
                              [--rounds 4]

Utterances of the bundled speech are offered at Poisson times with a fixed seed, so many times what the model can decode
(measured first, on the idle server); each is offered once: what is refused is cancelled. All clients share one process,
which is not the server's.

- promises: ``--seconds`` at each load, by 20 sessions in manual mode. Of the accepted utterances, the share whose final
  came within ``estimated_final_ms`` + 25 % + 150 ms of ``accepted``, as the client saw both.
- deadlines: the same with ``max_wait_ms`` 1500: of the accepted ones, the share that expired (`retry`, ``deadline``).
- drafts: ``--offers`` utterances, spoken in real time so that they end at twice the capacity, to a server with partials
  and speculation, and as many to one with neither, in rounds that take turns, with the same times. Each is spoken by
  a session in server mode that was silent before. The share of finals is what drafts may not cost. In the server, for
  each final that had to wait: how long it waited while a partial or a speculation was being decoded. Whether both had
  the same machine is shown by the decodes' median and the share of the time in which the worker had work and no core.

Targets: promises >= 90 % and deadlines <= 2 %, each over all loads together, as one load accepts too few to tell 2 %
from 3 %; with drafts at least 95 % of the finals without; no final waits behind drafts for longer than one of them
takes.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import click

from asr_ws import log, messages
from asr_ws.testing.bare import connect
from benchmarks.common import (
    PCM_BYTES_PER_S,
    Cores,
    Report,
    numbers,
    other_process,
    percentile,
    progress,
    report,
    reported,
    settings_of,
    speech_pcm,
    within,
)
from benchmarks.offered import (
    SCRIPTED,
    Decode,
    Offer,
    Talk,
    Tally,
    WorkerCores,
    dealt,
    lasting,
    mean_decode_s,
    offer_all,
    offers,
    serving,
    spoken_cuts,
    start_of,
    watched,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from asr_ws.server.app import App

MIN_KEPT_PROMISES: Final = 0.9
TOLERANCE, TOLERANCE_MS = 0.25, 150.0  # of an estimate
SHORT_WAIT_MS: Final = 1500
MAX_EXPIRED: Final = 0.02
MIN_FINALS: Final = 0.95  # of those without drafts
DRAFTS_LOAD: Final = 2.0
N_SESSIONS: Final = 20
PAUSE_S: Final = 1.0  # of silence after an utterance: more than ends it
FRAME_S: Final = 0.1
GRAIN_S: Final = 0.001  # of what is compared: clocks are read one after the other
DRAFTS: Final = {
    "on": {"partials": "on", "speculation": "on"},
    "off": {"partials": "off", "speculation": "off"},
}
PATIENCE_S: Final = 60.0  # for outcomes: more than anything may wait and be decoded
SEED: Final = 2026


@dataclass(frozen=True, slots=True)
class Promises:
    """What accepted utterances were told, and what became of them; ``late_ms``: final, less what was estimated."""

    tally: Tally
    accepted: int
    kept: int
    expired: int
    late_ms: list[float]

    @classmethod
    def of(cls, talks: Iterable[Talk]) -> Promises:
        talks = list(talks)
        pairs = [pair for talk in talks for pair in _promised(talk)]
        took = [(estimated, took) for estimated, took in pairs if took is not None]
        return cls(
            Tally.of(talks),
            len(pairs),
            sum(took_ms <= estimated * (1 + TOLERANCE) + TOLERANCE_MS for estimated, took_ms in took),
            sum(
                isinstance(event, messages.Retry) and event.reason == "deadline"
                for talk in talks
                for _, event in talk.heard
            ),
            [took_ms - estimated for estimated, took_ms in took],
        )

    @property
    def kept_share(self) -> float:
        return self.kept / max(self.accepted, 1)

    @property
    def expired_share(self) -> float:
        return self.expired / max(self.accepted, 1)

    def figures(self) -> dict[str, object]:
        """For the report."""
        return {
            **self.tally.figures(),
            "accepted": self.accepted,
            "within_estimate": round(self.kept_share, 4),
            "expired": round(self.expired_share, 4),
            "late_p50_ms": round(percentile(self.late_ms, 50), 1) if self.late_ms else None,
            "late_p95_ms": round(percentile(self.late_ms, 95), 1) if self.late_ms else None,
        }


def _promised(talk: Talk) -> list[tuple[int, float | None]]:
    """Of each accepted attempt: what was estimated, and milliseconds from `accepted` to its final; None: none came."""
    accepted: dict[str, tuple[int, float]] = {}
    took: dict[str, float] = {}
    for at, event in talk.heard:
        match event:
            case messages.Accepted(utterance=utterance, estimated_final_ms=estimated_ms):
                accepted[utterance] = (estimated_ms, at)
            case messages.Final(utterance=utterance):
                took[utterance] = (at - accepted[utterance][1]) * 1000
    return [(estimated_ms, took.get(utterance)) for utterance, (estimated_ms, _) in accepted.items()]


@dataclass(frozen=True, slots=True)
class Drafts:
    """What came of the utterances that were spoken in real time; ``behind``: see `behind_drafts`."""

    tally: Tally
    partials: int
    speculated: int  # finals
    behind: list[tuple[float, float]]
    decode_ms: float | None = None  # the median of what was decoded with a final's settings
    waited: float | None = None  # of `WorkerCores`

    @property
    def finals_share(self) -> float:
        return self.tally.finals / max(self.tally.offered, 1)

    def figures(self) -> dict[str, object]:
        """For the report."""
        return {
            **self.tally.figures(),
            "finals_share": round(self.finals_share, 4),
            "partials": self.partials,
            "finals_speculated": self.speculated,
            "finals_that_waited_behind_drafts": len(self.behind),
            "longest_behind_drafts_ms": round(max((waited_s for waited_s, _ in self.behind), default=0.0) * 1000, 1),
            "decode_ms": self.decode_ms and round(self.decode_ms, 1),
            "worker_waited_for_core": self.waited,
        }


def behind_drafts(decodes: Sequence[Decode]) -> list[tuple[float, float]]:
    """Of each final that waited while drafts were decoded: how many seconds, and the longest of these decodes.

    A speculation that becomes a final in mid-decode is a draft until then.
    """
    drafts = [(each.began, each.promoted_at or each.ended, each.took_s) for each in decodes if each.kind != "final"]
    found = []
    for each in decodes:
        if each.accepted_at is not None:
            waits = [
                (min(until, each.began) - max(began, each.accepted_at), took_s)
                for began, until, took_s in drafts
                if began < each.began and until > each.accepted_at
            ]
            if waits:
                found.append((sum(waited_s for waited_s, _ in waits), max(took_s for _, took_s in waits)))
    return found


def ending(all_offers: Iterable[Offer]) -> list[Offer]:
    """The same, in the order in which they begin: so that they end at their times, all of them equally later."""
    all_offers = list(all_offers)
    longest_s = max((each.audio_s for each in all_offers), default=0.0)
    begun = [replace(each, at_s=each.at_s + longest_s - each.audio_s) for each in all_offers]
    return sorted(begun, key=lambda each: each.at_s)


def seated(all_offers: Iterable[Offer], pause_s: float) -> list[list[Offer]]:
    """Each offer to a session that has been silent for so long, to a new one where there is none."""
    plans: list[list[Offer]] = []
    silent_from: list[float] = []
    for each in all_offers:
        free = next((n for n, at_s in enumerate(silent_from) if at_s + pause_s <= each.at_s), len(plans))
        if free == len(plans):
            plans.append([])
            silent_from.append(0.0)
        plans[free].append(each)
        silent_from[free] = each.at_s + each.audio_s
    return plans


def track(plan: Iterable[Offer], pcm: bytes) -> bytes:
    """What a session's microphone hears: silence, each utterance from its time on, and a pause after the last."""
    heard = bytearray()
    for each in plan:
        heard += bytes(max(0, 2 * round(each.at_s * PCM_BYTES_PER_S / 2) - len(heard)))
        heard += pcm[each.cut]
    return bytes(heard) + bytes(round(PAUSE_S * PCM_BYTES_PER_S))


def misses(promises: dict[float, Promises], deadlines: dict[float, Promises], drafts: dict[str, Drafts]) -> list[str]:
    """Which targets were missed, for people; empty: none."""
    found = []
    if (
        not drafts["on"].partials
        or not drafts["off"].tally.finals
        or not all(each.accepted for each in [*promises.values(), *deadlines.values()])
    ):
        found.append("nothing to measure: no partials, no finals, or nothing accepted")
    kept, accepted = _sums(promises, "kept", "accepted")
    if kept < MIN_KEPT_PROMISES * accepted:
        found.append(f"{kept} of {accepted} accepted within their estimate")
    expired, accepted = _sums(deadlines, "expired", "accepted")
    if expired > MAX_EXPIRED * accepted:
        found.append(f"{SHORT_WAIT_MS} ms: {expired} of {accepted} accepted expired")
    if (on := drafts["on"].finals_share) < MIN_FINALS * (off := drafts["off"].finals_share):
        found.append(f"drafts: {on:.1%} came to a final with them, {off:.1%} without")
    late = [(waited_s, took_s) for waited_s, took_s in drafts["on"].behind if waited_s > took_s + GRAIN_S]
    found += [f"a final waited {waited * 1000:.0f} ms behind drafts of {took * 1000:.0f} ms" for waited, took in late]
    return found


def _sums(promises: dict[float, Promises], *names: str) -> list[int]:
    """Over all loads."""
    return [sum(getattr(each, name) for each in promises.values()) for name in names]


def _of_accepted(promises: dict[float, Promises], name: str) -> float | None:
    part, accepted = _sums(promises, name, "accepted")
    return round(part / accepted, 4) if accepted else None


def promises_table(promises: dict[float, Promises], deadlines: dict[float, Promises]) -> list[str]:
    """Lines for people."""
    lines = [
        f"{'load':<16}{'offered':>8}{'accepted':>9}{'finals':>8}{'within estimate':>17}{'late p50':>10}{'p95 ms':>8}"
        f"{'expired':>9}"
    ]
    for measured, suffix in ((promises, ""), (deadlines, f", {SHORT_WAIT_MS} ms")):
        for load, each in measured.items():
            late = [f"{percentile(each.late_ms, percent):.0f}" if each.late_ms else "-" for percent in (50, 95)]
            lines.append(
                f"{f'{load:g}x{suffix}':<16}{each.tally.offered:>8}{each.accepted:>9}{each.tally.finals:>8}"
                f"{each.kept_share:>17.1%}{late[0]:>10}{late[1]:>8}{each.expired_share:>9.1%}"
            )
    return lines


def drafts_table(drafts: dict[str, Drafts]) -> list[str]:
    """Lines for people."""
    lines = [
        f"{'drafts':<16}{'offered':>8}{'finals':>9}{'share':>8}{'partials':>10}{'speculated':>12}"
        f"{'waited behind':>15}{'max ms':>8}{'decode p50':>12}{'no core':>9}"
    ]
    for name, each in drafts.items():
        longest_ms = max((waited_s for waited_s, _ in each.behind), default=0.0) * 1000
        decode = "-" if each.decode_ms is None else f"{each.decode_ms:.0f}"
        waited = "?" if each.waited is None else f"{each.waited:.0%}"
        lines.append(
            f"{name:<16}{each.tally.offered:>8}{each.tally.finals:>9}{each.finals_share:>8.1%}{each.partials:>10}"
            f"{each.speculated:>12}{len(each.behind):>15}{longest_ms:>8.0f}{decode:>12}{waited:>9}"
        )
    return lines


# ---------------------------------------------------------------- in the server's process


@dataclass(frozen=True, slots=True)
class Measured:
    decode_s: float
    promises: dict[float, Promises]
    deadlines: dict[float, Promises]
    drafts: dict[str, Drafts]


async def measure(
    model: str,
    cpu_threads: int,
    loads: Sequence[float],
    seconds: float,
    n_offers: int,
    n_rounds: int,
    step: Callable[[], None],
) -> Measured:
    """Raises: click.ClickException: it did not end."""
    cuts, start = spoken_cuts(), start_of(model)
    async with AsyncExitStack() as stack:
        clients = stack.enter_context(other_process(Cores()))
        apps: dict[str, App] = {}
        for name, texts in DRAFTS.items():
            settings = settings_of(
                model=model, cpu_threads=cpu_threads, max_sessions=2000, ingest_speed=1000.0, **texts
            )
            apps[name] = await stack.enter_async_context(serving(settings))
        decode_s = await mean_decode_s(apps["on"], clients, cuts, **start)

        async def promises(**limits: int) -> dict[float, Promises]:
            found = {}
            for load in loads:
                rng = random.Random(SEED)
                plans = dealt(lasting(seconds, offers(load / decode_s, cuts, rng)), N_SESSIONS, rng)
                run = partial(offer, apps["on"].url, plans, {**start, **limits})
                found[load] = Promises.of(await _in(clients, run, seconds))
                step()
            return found

        kept, expired = await promises(), await promises(max_wait_ms=SHORT_WAIT_MS)
        drafts = await _drafts(apps, clients, cuts, DRAFTS_LOAD / decode_s, n_offers, n_rounds, start, step)
    return Measured(decode_s, kept, expired, drafts)


async def _drafts(
    apps: dict[str, App],
    clients: Executor,
    cuts: Sequence[slice],
    rate: float,
    n_offers: int,
    n_rounds: int,
    start: dict[str, Any],
    step: Callable[[], None],
) -> dict[str, Drafts]:
    """With and without, in turn; who is first takes turns too."""
    talks: dict[str, list[Talk]] = {name: [] for name in apps}
    decodes: dict[str, list[Decode]] = {name: [] for name in apps}
    before = {name: _counts(app) for name, app in apps.items()}
    cores = {name: WorkerCores(app) for name, app in apps.items()}
    for n_round in range(n_rounds):
        n = n_offers * (n_round + 1) // n_rounds - n_offers * n_round // n_rounds
        plans = seated(ending(islice(offers(rate, cuts, random.Random(SEED + n_round)), n)), PAUSE_S)
        for name in list(apps)[:: -1 if n_round % 2 else 1]:
            with watched(apps[name]) as seen:
                talks[name] += await _in(clients, partial(speak, apps[name].url, plans, start), n / rate)
            decodes[name] += seen
            step()
    return {
        name: Drafts(
            Tally.of(talks[name]),
            *_since(before[name], _counts(app)),
            behind_drafts(decodes[name]),
            _median_ms(decodes[name]),
            cores[name].waited_share,
        )
        for name, app in apps.items()
    }


def _median_ms(decodes: Iterable[Decode]) -> float | None:
    took_ms = [each.took_s * 1000 for each in decodes if each.kind != "partial"]
    return percentile(took_ms, 50) if took_ms else None


def _counts(app: App) -> tuple[int, int]:
    """Partials, and finals that were speculations."""
    return app.metrics.partials, app.metrics.finals_speculated


def _since(before: tuple[int, int], now: tuple[int, int]) -> tuple[int, int]:
    return now[0] - before[0], now[1] - before[1]


async def _in(clients: Executor, run: Callable[[], list[Talk]], seconds: float) -> list[Talk]:
    async with within(2 * seconds + 2 * PATIENCE_S, "the clients"):
        return await asyncio.get_running_loop().run_in_executor(clients, run)


# ---------------------------------------------------------------- in the clients' process


def offer(url: str, plans: Sequence[Sequence[Offer]], start: dict[str, Any]) -> list[Talk]:
    """Commit each utterance at its time."""
    return asyncio.run(offer_all(url, plans, once=True, patience_s=PATIENCE_S, **start))


def speak(url: str, plans: Sequence[Sequence[Offer]], start: dict[str, Any]) -> list[Talk]:
    """Say each utterance in real time, from its time on."""
    return asyncio.run(_speak(url, plans, start))


async def _speak(url: str, plans: Sequence[Sequence[Offer]], start: dict[str, Any]) -> list[Talk]:
    pcm = speech_pcm()
    talks = [Talk() for _ in plans]

    async def say(n: int, plan: Sequence[Offer], talk: Talk) -> None:
        await asyncio.sleep(FRAME_S * n / len(plans))  # clients that know nothing of one another
        async with connect(url, **start) as session:
            await talk.listen(session, session.stream(track(plan, pcm), realtime=True), once=True)

    async with asyncio.TaskGroup() as tasks:
        for n, (plan, talk) in enumerate(zip(plans, talks, strict=True)):
            tasks.create_task(say(n, plan, talk))
    return talks


def draw(figure: Figure, report: Report) -> None:
    """Promises and expiries by load; finals with partials and without."""
    promises, drafts = figure.subplots(1, 2, width_ratios=(3, 2))
    loads = [each["load"] for each in report["promises"]]
    kept = [100 * each["within_estimate"] for each in report["promises"]]
    expired = [100 * each["expired"] for each in report["deadlines"]]
    promises.plot(loads, kept, "o-", label="there when it was promised")
    promises.plot(loads, expired, "s-", label=f"expired, with {SHORT_WAIT_MS} ms of patience")
    for aim, color in ((100 * MIN_KEPT_PROMISES, "C0"), (100 * MAX_EXPIRED, "C1")):
        promises.axhline(aim, color=color, linestyle=":")
    promises.set_xticks(loads, [f"{load:g}" for load in loads])
    promises.set(title="Of what was accepted", xlabel="offered, in times of the capacity", ylabel="%", ylim=(-2, 103))
    promises.legend(loc="center right")
    shares = {name: 100 * report["drafts"][name]["finals_share"] for name in DRAFTS}
    bars = drafts.bar([f"partials {name}" for name in shares], list(shares.values()), color=["C0", "0.6"])
    drafts.bar_label(bars, fmt="%.0f %%")
    drafts.set(title=f"Of what was offered at {DRAFTS_LOAD:g} x: finals", ylabel="%")


@click.command()
@reported
@click.option("--model", default="tiny.en", show_default=True, help=f"or {SCRIPTED}: 0.1 s a decode")
@click.option("--cpu-threads", default=0, show_default=True, type=click.IntRange(0, 1024), help="as of serve")
@click.option("--loads", default="1,2,3", show_default=True, callback=numbers, help="in multiples of the capacity")
@click.option("--seconds", default=40.0, show_default=True, type=click.FloatRange(1, 600), help="of each load")
@click.option("--offers", "n_offers", default=300, show_default=True, type=click.IntRange(1, 10_000), help="for drafts")
@click.option("--rounds", "n_rounds", default=4, show_default=True, type=click.IntRange(1, 100), help="of drafts")
def main(model: str, cpu_threads: int, loads: tuple[float, ...], seconds: float, n_offers: int, n_rounds: int) -> None:
    """Whether estimates and deadlines hold under load, and what partials cost then."""
    log.configure(level="error")
    with progress(still=True) as bars:
        bar = bars.add_task("loads", total=2 * len(loads) + 2 * n_rounds)
        step = partial(bars.update, bar, advance=1, refresh=True)
        measured = asyncio.run(measure(model, cpu_threads, loads, seconds, n_offers, n_rounds, step))
    found = misses(measured.promises, measured.deadlines, measured.drafts)
    for line in (
        *promises_table(measured.promises, measured.deadlines),
        *drafts_table(measured.drafts),
        *(f"missed: {miss}" for miss in found),
    ):
        click.echo(line)
    sys.exit(
        report(
            "load",
            settings={
                "model": model,
                "cpu_threads": cpu_threads,
                "decode_ms": round(measured.decode_s * 1000, 1),
                "loads": list(loads),
                "seconds": seconds,
                "offers": n_offers,
                "rounds": n_rounds,
                "drafts_load": DRAFTS_LOAD,
            },
            figures={
                "promises": [{"load": load, **each.figures()} for load, each in measured.promises.items()],
                "deadlines": [{"load": load, **each.figures()} for load, each in measured.deadlines.items()],
                "drafts": {name: each.figures() for name, each in measured.drafts.items()},
                "within_estimate": _of_accepted(measured.promises, "kept"),
                "expired": _of_accepted(measured.deadlines, "expired"),
                "missed": found,
            },
            passed=not found,
            draw=draw,
        )
    )


if __name__ == "__main__":
    main()
