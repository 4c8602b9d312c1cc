"""What the service adds to a decode: from `commit` to `final`, less the decode itself, with nothing else to do.

    python -m benchmarks.overhead [--model tiny.en] [--commits 100]

One session in manual mode, without partials, on an idle server: 2 s of speech are sent, and once the server says (by a
`pong`) that it has them, the `commit`. The client, in another process, takes the time until it has read the `final`.
The decode is what the worker measured around it; the `decode_ms` of the `final` is that, rounded to whole milliseconds,
so the unrounded value is taken from the worker's answer inside the server, utterance by utterance.

The first row is measured with a scripted worker, which answers at once: that is our own work, without what a model
leaves behind in caches and on cores. The second, with the model, is what counts. ``--model scripted``: no model at all.

Target: p50 <= 5 ms.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Final

import click

from asr_ws import log, messages
from asr_ws.core.types import DecodeOptions, Hypothesis, Samples
from asr_ws.testing.recognizer import scripted_worker
from asr_ws.worker.supervisor import Supervisor
from benchmarks.common import (
    PCM_BYTES_PER_S,
    Cores,
    Report,
    Spread,
    other_process,
    progress,
    report,
    reported,
    sessions,
    settings_of,
    speech_pcm,
    until,
    within,
)
from benchmarks.pictures import spreads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_OVERHEAD_MS: Final = 5.0
SCRIPTED: Final = "scripted"
UTTERANCE_BYTES: Final = 2 * PCM_BYTES_PER_S
PAUSE_S: Final = 0.05  # after each final; halfway through it the bar is drawn, when nothing is measured
LOAD_LIMIT_S: Final = 300.0
FINAL_LIMIT_S: Final = 60.0  # a decode that hangs


def overhead_ms(whole_ms: list[float], decode_ms: list[float]) -> Spread:
    """Of the same utterances in the same order. Raises: ValueError: not as many of one as of the other."""
    return Spread.of([whole - decode for whole, decode in zip(whole_ms, decode_ms, strict=True)])


def row(model: str, overhead: Spread, decode: Spread) -> str:
    """A line for people, of milliseconds."""
    return (
        f"{model:<20}{overhead.n:>5}{overhead.p50:>9.2f}{overhead.p95:>9.2f}{overhead.p99:>9.2f}{overhead.max:>9.2f}"
        f"{decode.p50:>13.1f}"
    )


HEADER: Final = (
    f"{'commit -> final, less the decode':<25}\n"
    f"{'model':<20}{'n':>5}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'max ms':>9}{'decode p50':>13}"
)


class Watched:
    """The dispatcher's worker, and how long each of its decodes took."""

    def __init__(self, worker: Supervisor, step: Callable[[], None]) -> None:
        self.decode_ms: list[float] = []
        self._worker = worker
        self._step = step

    async def decode(self, samples: Samples, options: DecodeOptions, expected_s: float) -> Hypothesis:
        hypothesis = await self._worker.decode(samples, options, expected_s)
        self.decode_ms.append(hypothesis.decode_s * 1000)
        asyncio.get_running_loop().call_later(PAUSE_S / 2, self._step)
        return hypothesis


async def measure(model: str, n_commits: int, step: Callable[[], None]) -> tuple[Spread, Spread]:
    """Milliseconds: what was added, and the decodes."""
    from asr_ws.server.app import running

    scripted = model == SCRIPTED
    settings = settings_of(model=model, ingest_speed=1000.0)  # so that the pace does not hold the speech back
    async with AsyncExitStack() as stack:
        spec = scripted_worker(Path(stack.enter_context(TemporaryDirectory()))) if scripted else None
        client = stack.enter_context(other_process(Cores()))
        app = await stack.enter_async_context(running(settings, spec))
        async with within(LOAD_LIMIT_S, f"{model} to be loaded"):
            await app.dispatcher.wait_ready()
        app.dispatcher.worker = watched = Watched(app.supervisor, step)
        whole_ms = await asyncio.get_running_loop().run_in_executor(client, commit, app.url, n_commits)
    return overhead_ms(whole_ms, watched.decode_ms), Spread.of(watched.decode_ms)


def commit(url: str, n_commits: int) -> list[float]:
    """In the client's process. Returns: milliseconds from each commit to its final."""
    return asyncio.run(_commit(url, n_commits))


async def _commit(url: str, n_commits: int) -> list[float]:
    pcm = speech_pcm()
    times: list[float] = []
    async with sessions(url, 1, endpointing={"mode": "manual"}) as (session,):
        events = session.events()
        for n in range(n_commits):
            async with within(FINAL_LIMIT_S, f"final {n + 1}"):
                at = n * UTTERANCE_BYTES % (len(pcm) - UTTERANCE_BYTES)
                await session.send(pcm[at : at + UTTERANCE_BYTES])
                await session.ping(n)
                await until(events, messages.Pong)
                began = perf_counter()
                await session.commit()
                await until(events, messages.Final)
                times.append((perf_counter() - began) * 1000)
            await asyncio.sleep(PAUSE_S)
    return times


def draw(figure: Figure, report: Report) -> None:
    """Without a model, and with it."""
    names = dict.fromkeys((SCRIPTED, report["settings"]["model"]))
    spreads(
        figure, "From commit to final, less the decode", [(name, report[name]["overhead_ms"], None) for name in names]
    )


@click.command()
@reported
@click.option("--model", default="tiny.en", show_default=True, help=f"or {SCRIPTED}: none")
@click.option("--commits", "n_commits", default=100, show_default=True, type=click.IntRange(1, 10_000))
def main(model: str, n_commits: int) -> None:
    """What the service adds to a decode."""
    log.configure(level="error")
    click.echo(HEADER)
    rows: dict[str, tuple[Spread, Spread]] = {}
    with progress(still=True) as bars:
        for each in dict.fromkeys((SCRIPTED, model)):
            step = partial(bars.update, bars.add_task(each, total=n_commits), advance=1, refresh=True)
            rows[each] = asyncio.run(measure(each, n_commits, step))
            click.echo(row(each, *rows[each]))
    sys.exit(
        report(
            "overhead",
            settings={"model": model, "commits": n_commits, "partials": False, "audio_s": 2},
            figures={
                name: {"overhead_ms": overhead.figures(), "decode_ms": decode.figures()}
                for name, (overhead, decode) in rows.items()
            },
            passed=rows[model][0].p50 <= MAX_OVERHEAD_MS,
            draw=draw,
        )
    )


if __name__ == "__main__":
    main()
