"""How many sessions in real time one core carries: real speech in a loop, with the detector, partials and speculation.

The worker is scripted and sleeps for `DECODE_S`: no model takes the core, it keeps up with all finals, and partials
find their time.

    python -m benchmarks.ingest [--frame-ms 100] [--seconds 10] [--sessions N ...]

The server runs in this process, on one core where the platform lets us choose (Linux); the clients run in another
process and, with the scripted worker, on the other cores. A level is so many sessions for so many seconds; it is
carried when the loop's lag stays below 50 ms (p99) and no audio piles up. Levels double until one is not carried, and
halve the gap from there; or they are those that ``--sessions`` names.

- lag: how late the loop comes to a moment that lies on a grid of 10 ms; a stall counts for every moment that it covers.
- behind: how long a `ping` that was sent after a session's audio waits for its `pong`, as the client sees it: audio
  that piles up delays it.
- late: how much later than in real time the clients sent, which is theirs, and makes a level worth nothing.
- core: what the server's thread used of its core, and per frame; other programs on it do not change that.
- waited: how long it was ready to run and another program had the core (Linux): such a level says little.

Target: >= 150 sessions at 100 ms.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import click

from asr_ws import log, messages
from asr_ws.testing.bare import BareSession
from asr_ws.testing.recognizer import scripted_worker
from benchmarks.common import (
    PCM_BYTES_PER_S,
    CoreUse,
    Report,
    Spread,
    other_process,
    pin,
    progress,
    report,
    reported,
    sessions,
    settings_of,
    speech_pcm,
    split_cores,
    within,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from matplotlib.figure import Figure

    from asr_ws.server.app import App

DECODE_S: Final = 0.01  # of each decode, final or not
LEAST_SESSIONS: Final = 150  # the target
MAX_SESSIONS: Final = 1200
MAX_LAG_MS: Final = 50.0
MAX_BEHIND_MS: Final = 200.0  # p99: in 10 s, a server that is 2 % too slow is this far behind at the end
MAX_LATE_MS: Final = 50.0
GRID_S: Final = 0.01
SETTLING_S: Final = 1.0  # of audio before anything is measured
PING_S: Final = 1.0  # between two pings of a session
OPENING_LIMIT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Level:
    """What came out of so many sessions; milliseconds, and shares of a core."""

    sessions: int
    lag: Spread
    behind: Spread
    late: Spread
    used: float
    frame_us: float
    waited: float | None

    @property
    def carried(self) -> bool:
        return self.lag.p99 < MAX_LAG_MS and self.behind.p99 < MAX_BEHIND_MS and self.late.p99 < MAX_LATE_MS

    def figures(self) -> dict[str, object]:
        """For the report."""
        return {
            "sessions": self.sessions,
            "carried": self.carried,
            "lag_ms": self.lag.figures(),
            "behind_ms": self.behind.figures(),
            "late_ms": self.late.figures(),
            "core_used": round(self.used, 3),
            "frame_us": round(self.frame_us, 1),
            "server_waited_for_core": self.waited and round(self.waited, 3),
        }


def next_level(levels: Sequence[tuple[int, bool]]) -> int | None:
    """How many sessions to try after these, of which it is known whether they were carried; None: that was all."""
    most = max((n for n, carried in levels if carried), default=0)
    least = min((n for n, carried in levels if not carried), default=None)
    if least is None:
        return None if most == MAX_SESSIONS else min(max(2 * most, LEAST_SESSIONS), MAX_SESSIONS)
    return None if least - most <= max(1, most // 10) else (most + least) // 2


HEADER: Final = (
    f"{'sessions':>8}{'lag p50':>9}{'p99':>8}{'max ms':>8}{'behind p99':>12}{'late p99':>10}"
    f"{'core':>7}{'us/frame':>10}{'waited':>8}"
)


def row(level: Level) -> str:
    """A line for people."""
    waited = "?" if level.waited is None else f"{level.waited:.0%}"
    return (
        f"{level.sessions:>8}{level.lag.p50:>9.1f}{level.lag.p99:>8.1f}{level.lag.max:>8.1f}{level.behind.p99:>12.1f}"
        f"{level.late.p99:>10.1f}{level.used:>7.0%}{level.frame_us:>10.0f}{waited:>8}"
        f"  {'carried' if level.carried else 'not carried'}"
    )


# ---------------------------------------------------------------- in the server's process


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[App, Executor]]:
    """A server with a scripted worker, on its core, and the process for its clients."""
    from asr_ws.server.app import running

    measured, rest = split_cores()
    pin(rest)  # until the worker has been started
    settings = settings_of(max_sessions=MAX_SESSIONS, queue_capacity=1000, max_wait_ms=60_000)  # nothing is refused
    async with AsyncExitStack() as stack:
        worker = scripted_worker(Path(stack.enter_context(TemporaryDirectory())))
        clients = stack.enter_context(other_process(rest))
        app = await stack.enter_async_context(running(settings, worker))
        async with within(OPENING_LIMIT_S, "the worker"):
            await app.dispatcher.wait_ready()
        pin(measured)
        yield app, clients


async def measure(app: App, clients: Executor, n_sessions: int, frame_s: float, seconds: float) -> Level:
    async with within(OPENING_LIMIT_S + 2 * seconds, f"{n_sessions} sessions"):
        talk = asyncio.get_running_loop().run_in_executor(
            clients, speak, app.url, n_sessions, frame_s, SETTLING_S + seconds
        )
        while app.listener.n_sessions < n_sessions and not talk.done():
            await asyncio.sleep(GRID_S)
        await asyncio.sleep(SETTLING_S)
        core = CoreUse()
        lags_ms = await lag_ms(seconds)
        used_s, used, waited = core.used_s, core.used_share, core.waited_share
        behind_ms, late_ms = await talk
    frame_us = used_s * 1e6 / (n_sessions * seconds / frame_s)
    return Level(n_sessions, Spread.of(lags_ms), Spread.of(behind_ms), Spread.of(late_ms), used, frame_us, waited)


async def lag_ms(seconds: float) -> list[float]:
    """How late the loop comes to each moment of a grid."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    lags: list[float] = []
    for n in range(1, round(seconds / GRID_S) + 1):
        due = began + n * GRID_S
        if (left_s := due - loop.time()) > 0:
            await asyncio.sleep(left_s)
        lags.append(max(0.0, loop.time() - due) * 1000)
    return lags


# ---------------------------------------------------------------- in the clients' process


def speak(url: str, n_sessions: int, frame_s: float, seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds that pings waited for their pongs, and by which frames were sent late; the settling left out."""
    return asyncio.run(_speak(url, n_sessions, frame_s, seconds))


async def _speak(url: str, n_sessions: int, frame_s: float, seconds: float) -> tuple[list[float], list[float]]:
    pcm = speech_pcm()
    loop = asyncio.get_running_loop()
    behind_ms: list[float] = []
    late_ms: list[float] = []
    sent_at: dict[tuple[int, int], float] = {}  # of the pings that wait for their pongs
    answered = asyncio.Event()

    async def listen(n: int, session: BareSession) -> None:
        async for event in session.events():
            if isinstance(event, messages.Pong) and isinstance(event.id, int):
                behind_ms.append((loop.time() - sent_at.pop((n, event.id))) * 1000)
                answered.set()

    async def send(n: int, session: BareSession) -> None:
        """From its own place in the speech, and at its own time within a frame, like clients that know nothing of
        one another.
        """
        frame_bytes = round(PCM_BYTES_PER_S * frame_s)
        at = n * 7919 * 2 * 16 % (len(pcm) - frame_bytes)  # a prime number of milliseconds on from the one before
        first = began + frame_s * n / n_sessions
        n_pings = 0
        for n_frames in range(1, round(seconds / frame_s) + 1):
            due = first + n_frames * frame_s
            await asyncio.sleep(due - loop.time())
            settled = due - began > SETTLING_S
            if settled:
                late_ms.append(max(0.0, loop.time() - due) * 1000)
            await session.send(pcm[at : at + frame_bytes])
            at = (at + frame_bytes) % (len(pcm) - frame_bytes) // 2 * 2
            if settled and due - began > SETTLING_S + n_pings * PING_S:
                n_pings += 1
                sent_at[n, n_pings] = loop.time()
                await session.ping(n_pings)

    async with (
        within(OPENING_LIMIT_S + seconds, "the sessions"),
        sessions(url, n_sessions, partials=True, prompt=f"sleep {DECODE_S}") as opened,
    ):
        began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            listeners = [tasks.create_task(listen(n, session)) for n, session in enumerate(opened)]
            async with asyncio.TaskGroup() as senders:
                for n, session in enumerate(opened):
                    senders.create_task(send(n, session))
            while sent_at:
                answered.clear()
                await answered.wait()
            for listener in listeners:
                listener.cancel()
    return behind_ms, late_ms


def draw(figure: Figure, report: Report) -> None:
    """The loop's lag, and what of the core was used, by sessions."""
    levels = sorted(report["levels"], key=lambda level: level["sessions"])
    n_sessions = [level["sessions"] for level in levels]
    axes = figure.add_subplot(title="Sessions in real time on one core", xlabel="sessions", ylabel="loop lag, p99, ms")
    axes.plot(n_sessions, [level["lag_ms"]["p99"] for level in levels], "o-", color="C0", label="loop lag, p99")
    axes.axhline(MAX_LAG_MS, color="C3", linestyle=":", label="limit")
    axes.set_ylim(bottom=0)
    axes.axvline(report["carried"], color="0.8", label=f"carried: {report['carried']}")
    used = axes.twinx()
    used.plot(n_sessions, [100 * level["core_used"] for level in levels], "s--", color="0.5", label="of the core, %")
    used.set_ylabel("of the core, %")
    used.set_ylim(0, 105)
    axes.legend(handles=[*axes.get_lines(), *used.get_lines()], loc="lower right")


@click.command()
@reported
@click.option("--frame-ms", default=100, show_default=True, type=click.IntRange(10, 1000))
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(1, 600), help="of each level")
@click.option(
    "--sessions",
    "given",
    multiple=True,
    type=click.IntRange(1, MAX_SESSIONS),
    help="a level to measure, instead of the search; may be repeated",
)
def main(frame_ms: int, seconds: float, given: tuple[int, ...]) -> None:
    """How many sessions in real time one core carries."""
    log.configure(level="error")
    pinned = bool(split_cores()[0])
    click.echo(HEADER)
    levels = asyncio.run(_search(frame_ms / 1000, seconds, given))
    most = max((level.sessions for level in levels if level.carried), default=0)
    judged = not given and frame_ms == 100
    sys.exit(
        report(
            "ingest",
            settings={"frame_ms": frame_ms, "seconds": seconds, "pinned": pinned},
            figures={"carried": most, "levels": [level.figures() for level in levels]},
            passed=most >= LEAST_SESSIONS if judged else None,
            draw=draw,
        )
    )


async def _search(frame_s: float, seconds: float, given: Sequence[int]) -> list[Level]:
    levels: list[Level] = []
    async with serving() as (app, clients):
        todo = list(given)
        with progress(still=True) as bars:
            bar = bars.add_task("", total=None)
            while (n := todo.pop(0) if todo else None if given else next_level(_judged(levels))) is not None:
                bars.update(bar, description=f"{n} sessions", refresh=True)
                levels.append(await measure(app, clients, n, frame_s, seconds))
                click.echo(row(levels[-1]))
    return levels


def _judged(levels: Sequence[Level]) -> list[tuple[int, bool]]:
    return [(level.sessions, level.carried) for level in levels]


if __name__ == "__main__":
    main()
