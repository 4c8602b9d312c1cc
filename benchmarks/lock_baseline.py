"""A queue that refuses against a lock that waits: the real server beside the design that it replaces.

    python -m benchmarks.lock_baseline [--model tiny.en] [--cpu-threads N] [--loads 0.5,1,2,5,10] [--seconds 40]
                                       [--crowd 30] [--report FILE]

`benchmarks.lock_server` is that design: a thread for each utterance, and one lock around the model. Both have the same
model, settings and client, and a fresh process for each point; one of them has work at a time, and who is first takes
turns.

- alone: one utterance at a time on an idle server: its decode, what is added to it, and whether the texts are the same.
  The mean decode of both is what makes a load of 1.
- loads: utterances of the bundled speech at Poisson times with a fixed seed, by 50 sessions, for ``--seconds``; each is
  offered once (what is refused is cancelled). After the last one, texts are waited for 8.5 s. Told: from the `commit`
  to the first thing a client hears of it, `accepted`, `busy` or the text. Who has heard nothing by the end counts with
  the time until then. Goodput: the share of its time that the model spent on texts within 8 s of their `commit`.
- crowd: ``--crowd`` sessions commit one utterance at one instant; what is refused is offered again as the hints say.
- crash: four sessions commit at one instant, and the process that has the model dies by SIGSEGV in mid-decode.

Targets, for the real server: at twice the capacity and more everybody is told within 50 ms (p99), each utterance has an
outcome, and goodput is at least 0.9, 0.97 from ten times on; all of the crowd get their text; the crash costs no
session and no utterance.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

import click
import psutil

from asr_ws import log, messages
from asr_ws.client import ConnectionLost
from asr_ws.testing.bare import BareSession
from benchmarks.common import (
    Report,
    Spread,
    numbers,
    progress,
    report,
    reported,
    sessions,
    speech_pcm,
)
from benchmarks.offered import SCRIPTED, Talk, dealt, lasting, offer_all, offers, spoken_cuts, start_of
from benchmarks.served import Served, is_running, send_signal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOCK, OURS = "lock", "asr_ws"
IN_TIME_S: Final = 8.0  # the server's own max_wait_ms, and about what people wait for
PATIENCE_S: Final = IN_TIME_S + 0.5
N_SESSIONS: Final = 50
CROWD_PATIENCE_S: Final = 60.0
N_CRASHED: Final = 4  # one is decoded, three wait
OVERLOAD: Final = 2.0  # from here on the targets hold
MAX_TOLD_S: Final = 0.05
MIN_GOODPUT: Final = {OVERLOAD: 0.9, 10.0: 0.97}  # from that load on
SEED: Final = 2026


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one utterance, in seconds from its commit; None: that did not come about by the end."""

    committed_at: float
    told_s: float | None = None  # the first that its session heard of it
    refused_s: float | None = None
    ended_s: float | None = None  # its outcome
    text_s: float | None = None
    decode_s: float = 0.0
    text: str = ""

    @property
    def wait_s(self) -> float | None:
        return None if self.text_s is None else max(self.text_s - self.decode_s, 0.0)

    @property
    def in_time(self) -> bool:
        return self.text_s is not None and self.text_s <= IN_TIME_S


def fates(talks: Iterable[Talk]) -> list[Fate]:
    """One for each commit. A `final` of which nothing was said before bears the commit's id for the utterance's."""
    return [each for talk in talks for each in _fates(talk)]


def _fates(talk: Talk) -> list[Fate]:
    commits: dict[str | None, str | None] = {}  # by utterance
    found: dict[str | None, dict[str, Any]] = {id: {"committed_at": at} for id, at in talk.committed.items()}
    for at, event in talk.heard:
        match event:
            case messages.Accepted() | messages.Busy():
                commits.setdefault(event.utterance, event.commit)
            case messages.Final() | messages.Dropped() | messages.Error(utterance=str()):
                pass
            case _:
                continue
        told = found[commits.get(event.utterance, event.utterance)]
        since_s = at - told["committed_at"]
        told.setdefault("told_s", since_s)
        match event:
            case messages.Busy():
                told.setdefault("refused_s", since_s)
            case messages.Final():
                told |= {"text_s": since_s, "ended_s": since_s, "decode_s": event.decode_ms / 1000, "text": event.text}
            case messages.Dropped() | messages.Error():
                told["ended_s"] = since_s
    return [Fate(**told) for told in found.values()]


def goodput(all_fates: Sequence[Fate]) -> float:
    """Of the time from the first commit to the last, the share that the model spent on texts that came in time.

    That is texts a second over what it can do, at the pace that it had then: how busy the machine was does not count.
    """
    began, ended = (edge(each.committed_at for each in all_fates) for edge in (min, max))
    spent_s = 0.0
    for each in all_fates:
        if each.text_s is not None and each.in_time:
            at = each.committed_at + each.text_s
            spent_s += max(min(at, ended) - max(at - each.decode_s, began), 0.0)
    return spent_s / (ended - began) if ended > began else 0.0


def load_figures(all_fates: Sequence[Fate]) -> dict[str, object]:
    """Of one server at one load, for the report."""
    last_s = max(each.committed_at for each in all_fates) + PATIENCE_S
    told = [last_s - each.committed_at if each.told_s is None else each.told_s for each in all_fates]
    return {
        "offered": len(all_fates),
        "answered": sum(each.text_s is not None for each in all_fates),
        "in_time": round(mean(each.in_time for each in all_fates), 4),
        "goodput": round(goodput(all_fates), 4),
        "decode_s": _spread(each.decode_s for each in all_fates if each.decode_s),
        "text_s": _spread(each.text_s for each in all_fates),
        "wait_s": _spread(each.wait_s for each in all_fates),
        "told_s": _spread(told),
        "untold": sum(each.told_s is None for each in all_fates),
        "refused_s": _spread(each.refused_s for each in all_fates),
        "without_outcome": sum(each.ended_s is None for each in all_fates),
    }


def _spread(values_s: Iterable[float | None]) -> dict[str, float] | None:
    found = [each for each in values_s if each is not None]
    return Spread.of(found).figures(4) if found else None


def of(line: Report, server: str) -> dict[float, Mapping[str, Any]]:
    """The report's figures of a server by load."""
    return {each["load"]: each for each in line["loads"] if each["server"] == server}


def ratios(line: Report) -> list[dict[str, float | None]]:
    """For each load: how many times as many texts in time as with the lock, and how many times sooner told (p95)."""
    ours, lock = of(line, OURS), of(line, LOCK)
    return [
        {
            "load": load,
            "in_time": round(ours[load]["in_time"] / lock[load]["in_time"], 2) if lock[load]["in_time"] else None,
            "told_p95": round(lock[load]["told_s"]["p95"] / ours[load]["told_s"]["p95"], 1),
        }
        for load in ours
    ]


def misses(line: Report) -> list[str]:
    """Which targets the real server missed, for people; empty: none."""
    found = []
    for load, each in of(line, OURS).items():
        if load >= OVERLOAD:
            if each["untold"] or each["without_outcome"]:
                found.append(
                    f"{load:g}x: {each['untold']} were told nothing, {each['without_outcome']} have no outcome"
                )
            if each["told_s"]["p99"] >= MAX_TOLD_S:
                found.append(f"{load:g}x: told after {each['told_s']['p99'] * 1000:.0f} ms (p99)")
            if each["goodput"] < max(least for since, least in MIN_GOODPUT.items() if load >= since):
                found.append(f"{load:g}x: goodput {each['goodput']:.2f}")
    crowd, crash = line["crowd"][OURS], line["crash"][OURS]
    if n_waiting := line["settings"]["crowd"] - len(crowd["text_s"]):
        found.append(f"crowd: {n_waiting} have no text after {CROWD_PATIENCE_S:g} s")
    if crash["sessions_lost"] or crash["without_outcome"]:
        found.append(f"crash: {crash['sessions_lost']} sessions and {crash['without_outcome']} utterances lost")
    return found


def markdown(line: Report) -> list[str]:
    """A report as Markdown."""
    n_crowd = line["settings"]["crowd"]
    idle = {
        name: {
            "decode p50, ms": f"{each['decode_ms']['p50']:.0f}",
            "text after, less the decode, p50 / p95, ms": _cell(each["added_ms"], "p50", "p95"),
            "texts": f"{each['decode_ms']['n']}",
            "the same as the other's": f"{line['same_texts']}",
        }
        for name, each in line["alone"].items()
    }
    loads = {
        f"{each['load']:g}x {each['server']}": {
            "offered": f"{each['offered']}",
            "text within 8 s": f"{each['in_time']:.0%}",
            "goodput": f"{each['goodput']:.2f}",
            "decode p50, s": _cell(each["decode_s"], "p50"),
            "wait p50 / p95 / max, s": _cell(each["wait_s"], "p50", "p95", "max"),
            "told after p50 / p95 / p99, s": _cell(each["told_s"], "p50", "p95", "p99", digits=3),
            "told nothing": f"{each['untold']}",
            "refused after p50 / p99 / max, s": _cell(each["refused_s"], "p50", "p99", "max", digits=3),
            "refused": f"{each['refused_s']['n'] if each['refused_s'] else 0}",
            "memory, MB": f"{each['before']['rss_mb']:.0f} to {each['after']['rss_mb']:.0f}",
            "threads": f"{each['before']['n_threads']} to {each['after']['n_threads']}",
        }
        for each in line["loads"]
    }
    ratios = [
        f"At {each['load']:g}x {each['in_time']:g} times as many texts within 8 s as with the lock, and told "
        f"{each['told_p95']:.0f} times as soon (p95)."
        for each in line["ratios"]
        if each["in_time"] is not None
    ]
    crowd = {
        name: {
            "told: half, all, after s": f"{_after(each['told_s'], n_crowd // 2)}, {_after(each['told_s'], n_crowd)}",
            "text: half, all, after s": f"{_after(each['text_s'], n_crowd // 2)}, {_after(each['text_s'], n_crowd)}",
        }
        for name, each in line["crowd"].items()
    }
    crash = {
        name: {
            "utterances": f"{each['utterances']}",
            "sessions lost": f"{each['sessions_lost']}",
            "without an outcome": f"{each['without_outcome']}",
            "next text after, s": "never" if each["again_s"] is None else f"{each['again_s']:.1f}",
            "process": "runs" if each["runs"] else "gone, and nobody starts it again",
        }
        for name, each in line["crash"].items()
    }
    return [
        *_rows("idle", idle),
        *_rows("load", loads),
        *_rows(f"{n_crowd} at one instant", crowd),
        *_rows("SIGSEGV in mid-decode", crash),
        *ratios,
    ]


def _rows(head: str, rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    columns = [*next(iter(rows.values()))]
    cells = [
        (head, *columns),
        ("---", *("---:" for _ in columns)),
        *((name, *row.values()) for name, row in rows.items()),
    ]
    return [*("| " + " | ".join(row) + " |" for row in cells), ""]


def _cell(spread: Mapping[str, float] | None, *names: str, digits: int = 2) -> str:
    return " / ".join(f"{spread[name]:.{digits}f}" for name in names) if spread else "-"


def _after(times_s: Sequence[float], n: int) -> str:
    """When the nth of them came."""
    return f"{times_s[n - 1]:.2f}" if 0 < n <= len(times_s) else "-"


# ---------------------------------------------------------------- picture

COLOURS: Final = {OURS: "#0072B2", LOCK: "#D55E00", "": "0.4"}  # Okabe and Ito's: told apart by everybody
LINES: Final = (  # the lock tells people by their text
    (LOCK, "told_s", "-", "lock: text"),
    (OURS, "text_s", "--", "asr_ws: text"),
    (OURS, "told_s", "-", "asr_ws: yes or no"),
)


def draw(figure: Figure, line: Report) -> None:
    """What comes in time, how long people wait for a word, and what a crowd hears."""
    panels = figure.subplots(1, 3)
    for axes, panel in zip(panels, (_draw_goodput, _draw_told, _draw_crowd), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        panel(axes, line)


def _draw_goodput(axes: Axes, line: Report) -> None:
    for name in (LOCK, OURS):
        points = {load: 100 * each["goodput"] for load, each in of(line, name).items()}
        axes.plot([*points], [*points.values()], "o-", color=COLOURS[name])
        _label(axes, name, list(points.items())[-1], name, (4, 7 if name == OURS else -16))
    axes.set_ylim(0, 109)
    axes.set_title("% of the model's time\nthat went into texts within 8 s", fontsize=11)
    _load_axis(axes, line)


def _draw_told(axes: Axes, line: Report) -> None:
    for name, kind, style, text in LINES:
        points = {load: each[kind]["p95"] for load, each in of(line, name).items() if each[kind]}
        axes.plot([*points], [*points.values()], "o" + style, color=COLOURS[name])
        if points:
            _label(axes, name, list(points.items())[-1], text)
    loads = [*of(line, OURS)]
    axes.axhline(IN_TIME_S, color=COLOURS[""], linestyle=":")
    axes.annotate("8 s", (loads[0], IN_TIME_S), (0, 4), textcoords="offset points", color=COLOURS[""])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.1)
    axes.set_title("Seconds from the end of speech, p95\n(text: of those who had one)", fontsize=11)
    _load_axis(axes, line)


def _draw_crowd(axes: Axes, line: Report) -> None:
    n = line["settings"]["crowd"]
    later = max((LOCK, OURS), key=lambda name: line["crowd"][name]["text_s"][-1:])
    for name, kind, style, text in LINES:
        # Names where there is room: right of the line that comes later, left of the other; who is told is told at once.
        share, side = (1.0, 1) if kind == "told_s" and name == OURS else (0.4, 1) if name == later else (0.75, -1)
        times = line["crowd"][name][kind]
        done = [100 * each / n for each in range(len(times) + 1)]
        axes.step([0.0, *times], done, style, where="post", color=COLOURS[name])
        if times:
            n_done = round(share * len(times))
            _label(axes, name, (times[n_done - 1], done[n_done]), text, offset=(8 * side, -8), left=side > 0)
    axes.set_title(f"{n} people speak at one instant:\n% who have heard", fontsize=11)
    axes.set_xlabel("seconds from the end of speech")


def _label(
    axes: Axes,
    name: str,
    point: tuple[float, float],
    text: str,
    offset: tuple[int, int] = (4, 7),
    *,
    left: bool = False,
) -> None:
    """Args: offset: from the point, in points of print; left: the text begins there, else it ends there."""
    axes.annotate(
        text,
        point,
        offset,
        textcoords="offset points",
        ha="left" if left else "right",
        color=COLOURS[name],
        weight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
    )


def _load_axis(axes: Axes, line: Report) -> None:
    loads = [*of(line, OURS)]
    axes.set_xscale("log")
    axes.set_xticks(loads, [f"{load:g}" for load in loads])
    axes.minorticks_off()
    axes.set_xlabel("load, times what the model can do")


# ---------------------------------------------------------------- measuring


@asynccontextmanager
async def both(model: str, cpu_threads: int) -> AsyncIterator[dict[str, Served]]:
    """A fresh server of each kind, ready, and gone afterwards."""
    ours = ("benchmarks.scripted",) if model == SCRIPTED else ("asr_ws", "serve")
    # So many sessions from one address, at once and faster than they can speak, are not what is measured.
    options = {
        "model": model,
        "cpu-threads": cpu_threads,
        "max-sessions": 2000,
        "ingest-speed": 1000,
        "partials": "off",
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", f"{value}")]
    async with AsyncExitStack() as stack:
        servers = {}
        for name, program in ((OURS, ours), (LOCK, ("benchmarks.lock_server",))):
            servers[name] = await Served.start(*flags, program=program)
            stack.push_async_callback(servers[name].kill)
        await servers[OURS].until(state="ready")
        yield servers


async def at_once(
    url: str,
    cuts: Sequence[slice],
    patience_s: float,
    start: Mapping[str, Any],
    then: Callable[[], Awaitable[None]] | None = None,
) -> tuple[list[Talk], int]:
    """A session for each of these utterances; all commit at one instant, and listen until they have an outcome.

    Args:
        then: once they have committed.
    Returns:
        What they were told, and how many lost their connection.
    """
    pcm, loop = speech_pcm(), asyncio.get_running_loop()
    talks, n_lost = [Talk() for _ in cuts], 0

    async def listen(session: BareSession, talk: Talk) -> None:
        nonlocal n_lost
        try:
            async with asyncio.timeout(patience_s):
                await talk.listen(session, session.events(), once=False)
        except ConnectionLost:
            n_lost += 1
        except TimeoutError:
            pass

    async with sessions(url, len(cuts), endpointing={"mode": "manual"}, **start) as opened:
        for session, cut in zip(opened, cuts, strict=True):
            await session.send(pcm[cut])
        async with asyncio.TaskGroup() as tasks:
            for session, talk in zip(opened, talks, strict=True):
                talk.committed["0"] = loop.time()
                await session.commit("0")
                await session.end()
                tasks.create_task(listen(session, talk))
            if then is not None:
                await then()
    return talks, n_lost


def footprint(pid: int) -> dict[str, float]:
    """Of a server and its children."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return {
        "rss_mb": round(sum(each.memory_info().rss for each in processes) / 1e6, 1),
        "n_threads": sum(each.num_threads() for each in processes),
    }


async def alone(
    servers: Mapping[str, Served], cuts: Sequence[slice], start: Mapping[str, Any]
) -> dict[str, list[Fate]]:
    found: dict[str, list[Fate]] = {name: [] for name in servers}
    for n, cut in enumerate([cuts[0], *cuts]):
        for name in list(servers)[:: -1 if n % 2 else 1]:
            talks, _ = await at_once(servers[name].url, [cut], CROWD_PATIENCE_S, start)
            found[name] += fates(talks)
    return {name: each[1:] for name, each in found.items()}  # the first was to warm up


async def loaded(
    load: float,
    decode_s: float,
    cuts: Sequence[slice],
    seconds: float,
    start: Mapping[str, Any],
    name: str,
    server: Served,
) -> dict[str, object]:
    rng = random.Random(SEED)
    plans = dealt(lasting(seconds, offers(load / decode_s, cuts, rng)), N_SESSIONS, rng)
    if not any(plans):
        raise click.ClickException(
            f"no utterance comes within {seconds:g} s at {load:g}x: more --seconds, or a greater load"
        )
    before = footprint(server.pid)
    talks = await offer_all(server.url, plans, once=True, patience_s=PATIENCE_S, **start)
    return {**load_figures(fates(talks)), "before": before, "after": footprint(server.pid)}


async def crowded(
    cuts: Sequence[slice], n: int, start: Mapping[str, Any], name: str, server: Served
) -> dict[str, object]:
    talks, _ = await at_once(server.url, random.Random(SEED).choices(cuts, k=n), CROWD_PATIENCE_S, start)
    told = fates(talks)
    return {
        "told_s": sorted(round(each.told_s, 4) for each in told if each.told_s is not None),
        "text_s": sorted(round(each.text_s, 4) for each in told if each.text_s is not None),
    }


async def crashed(
    cuts: Sequence[slice], decode_s: float, start: Mapping[str, Any], name: str, server: Served
) -> dict[str, object]:
    loop, died_at = asyncio.get_running_loop(), 0.0
    model_pid = server.pid if name == LOCK else (await server.stats())["worker_pid"]

    async def crash() -> None:
        nonlocal died_at
        await asyncio.sleep(decode_s / 2)
        died_at = loop.time()
        send_signal(model_pid, "SEGV")

    talks, n_lost = await at_once(server.url, cuts[:N_CRASHED], CROWD_PATIENCE_S, start, crash)
    told = fates(talks)
    texts_at = [each.committed_at + each.text_s for each in told if each.text_s is not None]
    return {
        "utterances": len(told),
        "sessions_lost": n_lost,
        "without_outcome": sum(each.ended_s is None for each in told),
        "again_s": min((round(at - died_at, 3) for at in texts_at if at > died_at), default=None),
        "runs": is_running(server.pid),
    }


async def measure(
    model: str, cpu_threads: int, loads: Sequence[float], seconds: float, n_crowd: int, step: Callable[[], None]
) -> dict[str, Any]:
    """The report's figures."""
    cuts, start = spoken_cuts(), start_of(model)
    n_turns = 0

    async def in_turn(
        servers: Mapping[str, Served], scene: Callable[[str, Served], Awaitable[dict[str, object]]]
    ) -> dict[str, dict[str, object]]:
        """Each server, which is ended before the other one's turn: what the lock has left to do would go on."""
        nonlocal n_turns
        n_turns += 1
        found = {}
        for name in (LOCK, OURS)[:: -1 if n_turns % 2 else 1]:
            found[name] = await scene(name, servers[name])
            await servers[name].kill()
            step()
        return {name: found[name] for name in (LOCK, OURS)}

    async with both(model, cpu_threads) as servers:
        idle = await alone(servers, cuts, start)
        step()
        crowd = await in_turn(servers, partial(crowded, cuts, n_crowd, start))
    decode_s = mean(each.decode_s for all_fates in idle.values() for each in all_fates)
    points = []
    for load in loads:
        async with both(model, cpu_threads) as servers:
            found = await in_turn(servers, partial(loaded, load, decode_s, cuts, seconds, start))
        points += [{"load": load, "server": name, **each} for name, each in found.items()]
    async with both(model, cpu_threads) as servers:
        crash = await in_turn(servers, partial(crashed, cuts, decode_s, start))
    return {
        "decode_ms": round(decode_s * 1000, 1),
        "alone": {
            name: {
                "decode_ms": Spread.of([1000 * each.decode_s for each in all_fates]).figures(),
                "added_ms": Spread.of([1000 * (each.wait_s or 0.0) for each in all_fates]).figures(),
            }
            for name, all_fates in idle.items()
        },
        "same_texts": sum(ours.text == lock.text for ours, lock in zip(idle[OURS], idle[LOCK], strict=True)),
        "loads": points,
        "crowd": crowd,
        "crash": crash,
    }


@click.command()
@reported
@click.option("--model", default="tiny.en", show_default=True, help=f"or {SCRIPTED}: 0.1 s a decode")
@click.option("--cpu-threads", default=0, show_default=True, type=click.IntRange(0, 1024), help="as of serve")
@click.option(
    "--loads", default="0.5,1,2,5,10", show_default=True, callback=numbers, help="in multiples of the capacity"
)
@click.option("--seconds", default=40.0, show_default=True, type=click.FloatRange(1, 600), help="of each load")
@click.option("--crowd", "n_crowd", default=30, show_default=True, type=click.IntRange(1, 1000), help="sessions")
def main(model: str, cpu_threads: int, loads: tuple[float, ...], seconds: float, n_crowd: int) -> None:
    """A queue that refuses against a lock that waits."""
    log.configure(level="error")
    with progress(still=True) as bars:
        bar = bars.add_task("scenes", total=1 + 2 * (len(loads) + 2))
        step = partial(bars.update, bar, advance=1, refresh=True)
        figures = asyncio.run(measure(model, cpu_threads, sorted(loads), seconds, n_crowd, step))
    settings = {
        "model": model,
        "cpu_threads": cpu_threads,
        "loads": sorted(loads),
        "seconds": seconds,
        "crowd": n_crowd,
    }
    line: dict[str, Any] = {"settings": settings, **figures}
    figures |= {"ratios": ratios(line), "missed": misses(line)}
    for text in markdown(line | figures):
        click.echo(text)
    sys.exit(report("lock_baseline", settings=settings, figures=figures, passed=not figures["missed"], draw=draw))


if __name__ == "__main__":
    main()
