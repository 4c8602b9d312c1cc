"""Whether anything that comes over a socket breaks the server: examples by Hypothesis, beside neighbours who speak.

    python -m benchmarks.fuzz [--examples 20000] [--seed 1] [--report FILE]

The server is a process of its own, with a scripted worker. Each example is one connection; there are three kinds, and
of each equally many:

- messages: texts that are nearly the protocol's, or not even JSON: wrong fields, types and numbers, literals that no
  number can hold, deep nesting, surrogates; some audio between them.
- frames: WebSocket frames with any opcode, flags, mask and length, or any bytes, cut anywhere; and any bytes where a
  handshake is due.
- pcm: a `start` with any format and endpointing, then any bytes of audio (speech, noise, NaN, file headers) in any
  pieces, and `commit`, `cancel`, `retry` and `end` between them.

An example ends by `end`, a close, half a close, or not at all: the connection is reset. All that the server says must
be as the JSON Schema and `asr_ws.testing.conservation` say, no audio may be lost, and the server must answer or close
within LIMIT_S. It never closes with 1011. Each kind has a process of its own, so three examples are at work at once.

Targets: that holds for every example; the neighbours have a final for each of their commits; nothing that only a bug
writes is in the log; the server is ready, and has decoded one thing at a time; since the first tenth of the examples it
has no more open files, and has grown by less than 20 MB. An example that fails is shrunk and printed.
"""

from __future__ import annotations

import asyncio
import sys
import urllib.request
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Final
from urllib.parse import urlsplit

import click
import psutil
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import HypothesisWarning
from rich.progress import Progress

from asr_ws import messages
from asr_ws.errors import ClientError
from asr_ws.testing.bare import connect
from asr_ws.testing.conservation import Conservation
from asr_ws.testing.served import as_ctrl_c
from benchmarks.chaos import BUGS
from benchmarks.common import PCM_BYTES_PER_S, progress, report, reported, told_plainly, within
from benchmarks.examples import KINDS, Example
from benchmarks.served import POLL_S, Sample, Served
from benchmarks.wire import LIMIT_S

ROUNDS: Final = 10  # the first is warm-up
MAX_GROWTH_MB: Final = 20.0
MIN_SHARE: Final = 0.95  # of the examples asked for: Hypothesis leaves out what it had before
N_NEIGHBOURS: Final = 2
NEIGHBOUR_PAUSE_S: Final = 0.2
FINAL_LIMIT_S: Final = 60.0  # for a neighbour's final, the attempts that are refused included
FLAT_LIMIT_S: Final = 12.0  # for the last connections to be taken apart, and memory to be given back
# Audio is taken as fast as it comes, and so few may wait that some are refused.
SERVER: Final = ("--model", "scripted", "--ingest-speed", "1000", "--queue-capacity", "2")


# ---------------------------------------------------------------- in the processes of the examples


@dataclass(slots=True)
class Drawn:
    """What came of some examples of a kind.

    Attributes:
        ran: how many they were, those included that Hypothesis made out of one that failed.
        told: what the server said to them.
        failed: the last one that did, and why. Hypothesis comes to the least last.
    """

    kind: str
    ran: int = 0
    told: Counter[str] = field(default_factory=Counter)
    failed: str | None = None


def draw_examples(port: int, kind: str, n: int, number: int) -> Drawn:
    """That many examples, the same ones for the same number."""
    drawn = Drawn(kind)

    @seed(number)
    @settings(
        max_examples=n,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
    )
    @given(KINDS[kind])
    def check(example: Example) -> None:
        drawn.ran += 1
        try:
            example.run(port, drawn.told)
        except Exception as error:
            if drawn.failed is None or not isinstance(error, ConnectionRefusedError):  # else the first was its end
                drawn.failed = f"{example!r}\n{type(error).__name__}: {error}"
            raise

    warnings.simplefilter("ignore", HypothesisWarning)  # of examples that are long
    try:
        check()
    except Exception:
        if drawn.failed is None:  # it is Hypothesis' own
            raise
    return drawn


# ---------------------------------------------------------------- neighbours

SECOND: Final = b"\x01\x00" * (PCM_BYTES_PER_S // 2)  # manual mode takes anything for speech
SECONDS_TEXT: Final = f"country {len(SECOND) // 2}"  # what the scripted worker makes of it


@dataclass(slots=True)
class Neighbour:
    """Says a second, waits for its text, and so on."""

    partials: bool
    commits: int = 0
    finals: int = 0
    troubles: list[str] = field(default_factory=list)

    async def speak(self, url: str, until: asyncio.Event) -> None:
        law = Conservation()
        try:
            async with connect(url, partials=self.partials, endpointing={"mode": "manual"}) as session:
                events = session.events()
                while not until.is_set():
                    for at in range(0, len(SECOND), len(SECOND) // 5):
                        await session.send(SECOND[at : at + len(SECOND) // 5])
                    await session.commit()
                    self.commits += 1
                    async with within(FINAL_LIMIT_S, "a neighbour's final"):
                        async for event in events:
                            law.receive(event)
                            if isinstance(event, messages.Final):
                                break
                            if isinstance(event, messages.Dropped | messages.Error):
                                self.troubles.append(str(event))
                                break
                    if isinstance(event, messages.Final):
                        self.finals += 1
                        if event.text != SECONDS_TEXT:
                            self.troubles.append(str(event))
                    await asyncio.sleep(NEIGHBOUR_PAUSE_S)
                await session.end()
                async with within(FINAL_LIMIT_S, "a neighbour's done"):
                    async for event in events:
                        law.receive(event)
        except (ClientError, click.ClickException) as error:
            self.troubles.append(str(error))
        else:
            law.close(1000)
        self.troubles += law.breaches


# ---------------------------------------------------------------- a run


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. ``exit_code`` None: the server did not end when it was told to."""

    asked: int  # examples
    ran: dict[str, int]  # by kind
    seconds: float
    told: dict[str, int]  # what the server said
    failed: str | None  # the least example that broke it, and how
    commits: int  # of the neighbours
    finals: int
    troubles: list[str]  # theirs
    ready: bool
    sessions_left: int
    max_concurrent_decodes: int
    worker_restarts: int
    before: Sample  # after the first round
    after: Sample
    bugs: dict[str, int]  # in the log
    exit_code: int | None

    @property
    def growth_mb(self) -> float:
        return self.after.rss_mb - self.before.rss_mb

    @property
    def failures(self) -> list[str]:
        """Why it is not passed; nothing: it is."""
        n_ran = sum(self.ran.values())
        broken = {
            "an example fails": self.failed is not None,
            f"{n_ran} of {self.asked} examples ran": n_ran < MIN_SHARE * self.asked,
            f"{self.commits - self.finals} of the neighbours' finals are missing": self.finals < self.commits,
            "the neighbours said nothing": not self.commits,
            f"the neighbours had trouble {len(self.troubles)} times": self.troubles,
            "the server is not ready": not self.ready,
            f"{self.sessions_left} sessions are left": self.sessions_left,
            f"{self.max_concurrent_decodes} decodes at once": self.max_concurrent_decodes != 1,
            f"{self.worker_restarts} restarts of the worker": self.worker_restarts,
            f"memory grew by {self.growth_mb:.1f} MB": self.growth_mb >= MAX_GROWTH_MB,
            f"{self.before.n_fds} open files became {self.after.n_fds}": self.after.n_fds > self.before.n_fds,
            f"the log has {self.bugs}": self.bugs,
            f"exit code {self.exit_code}": self.exit_code != 0,
        }
        return [what for what, is_so in broken.items() if is_so]

    @property
    def passed(self) -> bool:
        return not self.failures

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {
            "ran": self.ran,
            "seconds": round(self.seconds, 1),
            "told": dict(sorted(self.told.items())),
            "failures": self.failures,
            "failed": self.failed,
            "neighbours": {"commits": self.commits, "finals": self.finals, "troubles": self.troubles[:20]},
            "rss_mb": [round(self.before.rss_mb, 1), round(self.after.rss_mb, 1)],
            "fds": [self.before.n_fds, self.after.n_fds],
            "max_concurrent_decodes": self.max_concurrent_decodes,
            "worker_restarts": self.worker_restarts,
            "exit_code": self.exit_code,
        }


def table(outcome: Outcome) -> list[str]:
    """Lines for people."""
    ran, told = outcome.ran, outcome.told
    n_ran = sum(ran.values())
    before, after = outcome.before, outcome.after
    closes = {name.removeprefix("close "): n for name, n in sorted(told.items()) if name.startswith("close ")}
    return [
        f"examples        {', '.join(f'{kind} {n}' for kind, n in ran.items())}; {n_ran / outcome.seconds:.0f} each s",
        f"closes          {', '.join(f'{code}: {n}' for code, n in closes.items()) or 'none'}",
        f"neighbours      {outcome.finals} finals for {outcome.commits} commits",
        f"memory          {before.rss_mb:.0f} -> {after.rss_mb:.0f} MB",
        f"open files      {before.n_fds} -> {after.n_fds}",
        *(f"NOT OK          {failure}" for failure in outcome.failures),
        *(f"  {trouble}" for trouble in outcome.troubles[:20]),
        *(["the least example that fails:", *outcome.failed.splitlines()] if outcome.failed else []),
    ]


async def run(n_examples: int, number: int, bars: Progress) -> Outcome:
    """Raises: click.ClickException: it cannot be run at all."""
    as_ctrl_c()
    server = await Served.start(*SERVER, program=("benchmarks.scripted",))
    try:
        await server.until(state="ready")
        return await _run(server, n_examples, number, bars)
    finally:
        await server.kill()


async def _run(server: Served, n_examples: int, number: int, bars: Progress) -> Outcome:
    loop = asyncio.get_running_loop()
    neighbours = [Neighbour(partials=bool(n % 2)) for n in range(N_NEIGHBOURS)]
    quiet, port = asyncio.Event(), urlsplit(server.url).port
    assert port is not None
    seconds = 0.0
    before: Sample | None = None
    drawn: list[Drawn] = []
    bar = bars.add_task("", total=n_examples)
    with ProcessPoolExecutor(len(KINDS), get_context("spawn")) as pool:
        async with asyncio.TaskGroup() as tasks:
            for neighbour in neighbours:
                tasks.create_task(neighbour.speak(server.url, quiet), name="neighbour")
            for batches in rounds_of(n_examples, number):
                began = loop.time()
                running = [loop.run_in_executor(pool, draw_examples, port, *batch) for batch in batches]
                drawn += await asyncio.gather(*running)
                seconds += loop.time() - began
                before = before or await _flat(server, None)
                n_finals = sum(each.finals for each in neighbours)
                done = sum(each.ran for each in drawn)
                bars.update(bar, completed=done, description=f"fuzz; {n_finals} finals of the neighbours")
                if any(each.failed for each in drawn):
                    break
            after = await _flat(server, before)
            quiet.set()
    stats = await _stats(server, sessions=0)
    ready = await asyncio.to_thread(_is_ready, server.url)
    exit_code = await server.stop()
    return Outcome(
        asked=n_examples,
        ran={kind: sum(each.ran for each in drawn if each.kind == kind) for kind in KINDS},
        seconds=seconds,
        told=dict(sum((each.told for each in drawn), Counter())),
        failed=next((each.failed for each in drawn if each.failed is not None), None),
        commits=sum(each.commits for each in neighbours),
        finals=sum(each.finals for each in neighbours),
        troubles=[trouble for each in neighbours for trouble in each.troubles],
        ready=ready,
        sessions_left=stats.get("sessions", 0),
        max_concurrent_decodes=stats.get("max_concurrent_decodes", 0),
        worker_restarts=stats.get("worker_restart_count", 0),
        before=before or after,
        after=after,
        bugs={event: server.log[event] for event in BUGS if server.log[event]},
        exit_code=exit_code,
    )


def rounds_of(n_examples: int, number: int) -> Iterator[list[tuple[str, int, int]]]:
    """Kind, how many, and a number of their own: of each kind equally many, and some in each round."""
    shares = [(n_examples + n) // len(KINDS) for n in range(len(KINDS))]
    for at in range(ROUNDS):
        sizes = [share * (at + 1) // ROUNDS - share * at // ROUNDS for share in shares]
        first = (number * ROUNDS + at) * len(KINDS)
        yield [(kind, size, first + n) for n, (kind, size) in enumerate(zip(KINDS, sizes, strict=True)) if size]


async def _stats(server: Served, *, sessions: int) -> dict[str, Any]:
    """Once there are no more sessions than that, as far as that happens; nothing: the server does not answer."""
    stats: dict[str, Any] = {}
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(FLAT_LIMIT_S):
            while (stats := await server.stats())["sessions"] > sessions:
                await asyncio.sleep(POLL_S)
    return stats


async def _flat(server: Served, before: Sample | None) -> Sample:
    """What the server has while only the neighbours are there: no more than before, as far as that happens."""
    await _stats(server, sessions=N_NEIGHBOURS)
    sample = _sample(server)
    with suppress(TimeoutError):
        async with asyncio.timeout(FLAT_LIMIT_S):
            while before and (sample.n_fds > before.n_fds or sample.rss_mb >= before.rss_mb + MAX_GROWTH_MB):
                await asyncio.sleep(POLL_S)
                sample = _sample(server)
    return sample


def _sample(server: Served) -> Sample:
    try:
        return server.sample()
    except psutil.NoSuchProcess:  # it ended, which is told otherwise
        return Sample(0.0, 0.0, 0, 0, 0)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=LIMIT_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@click.command()
@reported
@click.option("--examples", default=20_000, show_default=True, type=click.IntRange(1), help="in all")
@click.option("--seed", "number", default=1, show_default=True, help="the same examples for the same seed")
def main(examples: int, number: int) -> None:
    """Say everything to a server that one should not, and see whether it or anybody else minds."""
    with progress() as bars, told_plainly():
        outcome = asyncio.run(run(examples, number, bars))
    click.echo("\n".join(table(outcome)))
    asked = {"examples": examples, "seed": number}
    sys.exit(report("fuzz", settings=asked, figures=outcome.figures(), passed=outcome.passed))


if __name__ == "__main__":
    main()
