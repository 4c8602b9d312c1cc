"""What a death of the worker, or of the server, costs: how soon it is seen, how soon it is over, what is left behind.

    python -m benchmarks.recovery [--model tiny.en] [--cycles 100] [--kills 10] [--seconds 10]

- **dead worker seen**: from SIGSEGV, in mid-decode of a real utterance on the real model, to the server's saying so.
- **ready again**: from SIGSEGV to the next worker's being ready, less what that took to load and test its model.
- **worker gone**: from SIGKILL of the server to the end of its worker, which hangs in native code, with the
  interpreter's lock held (on Linux) and without.
- **busy while it is killed**: from a `commit` to its answer, seen by 200 sessions that are refused while workers hang,
  are killed and come back.
- **left behind** by all cycles: file descriptors, threads, processes, files in /dev/shm.

Targets: <= 50 ms, <= 500 ms, <= 100 ms and < 50 ms for 95 (busy: 99) in a hundred, and nothing left behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import click
import psutil

from asr_ws import log, messages
from asr_ws.core.types import ServiceState
from asr_ws.server.app import running, worker_spec
from asr_ws.testing.bare import BareSession, connect
from asr_ws.testing.recognizer import scripted_worker
from asr_ws.worker.supervisor import Limits
from benchmarks.busy import QUEUE_CAPACITY, SPEECH, START, saturate
from benchmarks.common import (
    PCM_BYTES_PER_S,
    Report,
    Spread,
    other_process,
    progress,
    report,
    reported,
    sessions,
    settings_of,
    speech_pcm,
    split_cores,
    until,
    within,
)
from benchmarks.pictures import spreads
from benchmarks.served import Served, count_fds, is_running

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SEEN_MS: Final = 50.0
MAX_READY_MS: Final = 500.0
MAX_GONE_MS: Final = 100.0
MAX_BUSY_MS: Final = 50.0
UTTERANCE_S: Final = 5
HANG_LIMITS: Final = Limits(decode_s=1.0, decode_estimates=0.0, first_decode_s=0.0, n_first_decodes=0)
LIMIT_S: Final = 60.0
SETTLING_S: Final = 0.2  # from its being accepted to its hanging in C


@dataclass(frozen=True, slots=True)
class Left:
    """What a process holds."""

    fds: int
    threads: int
    processes: int
    shared_memory: int

    @classmethod
    def now(cls) -> Left:
        me = psutil.Process()
        return cls(count_fds(me), me.num_threads(), len(me.children(recursive=True)), shared_memory())


def shared_memory() -> int:
    """Files in /dev/shm. It is the machine's: semaphores there are those of any program's multiprocessing.

    They do not count. The server and its worker have none: tests/test_import_rules.py.
    """
    return sum(not name.startswith("sem.") for name in os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times in ms; ``n_hung`` workers were killed while ``busy`` was measured."""

    seen: Spread
    ready: Spread
    gone: Spread
    busy: Spread
    n_hung: int
    before: Left
    after: Left

    def rows(self) -> list[tuple[str, Spread, float, float]]:
        """What, its values, the one that counts, its limit."""
        return [
            ("dead worker seen", self.seen, self.seen.p95, MAX_SEEN_MS),
            ("ready again, less load and self-test", self.ready, self.ready.p95, MAX_READY_MS),
            ("worker gone after the server's SIGKILL", self.gone, self.gone.p95, MAX_GONE_MS),
            ("busy while hung workers are killed", self.busy, self.busy.p99, MAX_BUSY_MS),
        ]

    @property
    def passed(self) -> bool:
        return self.before == self.after and all(value <= limit for _, _, value, limit in self.rows())


def table(outcome: Outcome) -> list[str]:
    """Lines for people."""
    lines = [f"{'ms':<40}{'n':>6}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}{'limit':>8}"]
    for name, spread, value, limit in outcome.rows():
        values = "".join(f"{each:>9.1f}" for each in (spread.p50, spread.p95, spread.p99, spread.max))
        lines.append(f"{name:<40}{spread.n:>6}{values}{limit:>8.0f}{'' if value <= limit else '  MISSED'}")
    lines.append(f"workers killed meanwhile: {outcome.n_hung}")
    after = asdict(outcome.after)
    for name, n in asdict(outcome.before).items():
        verdict = "" if n == after[name] else "  LEFT"
        lines.append(f"{name.replace('_', ' '):<40}{n:>6} before{after[name]:>6} after{verdict}")
    return lines


# ---------------------------------------------------------------- crash cycles


async def crash_cycles(model: str, n: int, tick: Any) -> tuple[Spread, Spread, Left, Left]:
    settings = settings_of(model=model, partials="off")
    speech = speech_pcm()[: UTTERANCE_S * PCM_BYTES_PER_S]
    seen_ms, ready_ms = [], []
    async with running(settings, worker_spec(settings)) as app:
        await app.dispatcher.wait_ready()
        async with connect(app.url, endpointing={"mode": "manual"}, language="en") as session:
            events = session.events()
            await final_of(session, events, speech)
            before = Left.now()
            for _ in range(n):
                async with within(LIMIT_S, "a crash cycle"):
                    await session.send(speech)
                    await session.commit()
                    await until(events, messages.Accepted)
                    pid = app.supervisor.pid
                    assert pid is not None
                    killed_at = perf_counter()
                    os.kill(pid, signal.SIGSEGV)
                    await app.dispatcher.wait_for(ServiceState.RESTARTING)
                    seen_at = perf_counter()
                    await app.dispatcher.wait_ready()
                    ready_at = perf_counter()
                    loaded = app.supervisor.loaded
                    assert loaded is not None
                    seen_ms.append((seen_at - killed_at) * 1000)
                    ready_ms.append((ready_at - killed_at - loaded.load_s - loaded.self_test_decode_s) * 1000)
                    await until(events, messages.Final)  # decoded again, and the next death is the first in a row
                tick()
            after = Left.now()
    return Spread.of(seen_ms), Spread.of(ready_ms), before, after


async def final_of(session: BareSession, events: AsyncIterator[Any], speech: bytes) -> None:
    await session.send(speech)
    await session.commit()
    async with within(LIMIT_S, "a final"):
        await until(events, messages.Final)


# ---------------------------------------------------------------- the server's death


async def orphaned_ms(model: str, fault: str) -> float:
    """Milliseconds from the server's SIGKILL to the end of its worker, which has that fault."""
    server = await Served.start("--model", model, "--fault-injection")
    try:
        worker: int = (await server.until(state="ready"))["worker_pid"]
        manual = {"mode": "manual"}
        async with connect(server.url, endpointing=manual, prompt=f"fault: {fault}", partials=False) as session:
            await session.send(bytes(PCM_BYTES_PER_S))
            await session.commit()
            async with within(LIMIT_S, "a worker that hangs"):
                await until(session.events(), messages.Accepted)
            await asyncio.sleep(SETTLING_S)
            killed_at = perf_counter()
            os.kill(server.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            while is_running(worker):
                await asyncio.sleep(0.0005)
            return (perf_counter() - killed_at) * 1000
    finally:
        await server.kill()


# ---------------------------------------------------------------- busy, meanwhile


async def busy_ms(n_sessions: int, seconds: float) -> tuple[Spread, int]:
    """Answers to all commits, and how many workers were killed meanwhile."""
    settings = settings_of(
        max_sessions=n_sessions + 1 + QUEUE_CAPACITY, queue_capacity=QUEUE_CAPACITY, max_wait_ms=600_000
    )
    _, rest = split_cores()
    with TemporaryDirectory() as folder, other_process(rest) as clients:
        spec = replace(scripted_worker(Path(folder)), limits=HANG_LIMITS)
        async with running(settings, spec) as app, within(3 * LIMIT_S + seconds, "the clients"):
            await app.dispatcher.wait_ready()
            async with (
                sessions(app.url, 1 + QUEUE_CAPACITY, **START, prompt="hang") as holders,
                asyncio.TaskGroup() as tasks,
            ):
                holding = [tasks.create_task(hold(session), name="holder") for session in holders]
                while app.dispatcher.queue.depth < QUEUE_CAPACITY:
                    await asyncio.sleep(0)
                loop = asyncio.get_running_loop()
                answered = await loop.run_in_executor(clients, saturate, app.url, n_sessions, seconds, False)
                n_hung = app.supervisor.n_restarts
                for holder in holding:
                    holder.cancel()
    return Spread.of(list(answered.values())), n_hung


async def hold(session: BareSession) -> None:
    """Always have an utterance there under which the worker hangs; the second time is its end."""
    await session.send(SPEECH)
    await session.commit()
    async for event in session.events():
        if isinstance(event, (messages.Error, messages.Dropped)):
            await session.send(SPEECH)
            await session.commit()


# ---------------------------------------------------------------- all


async def measure(model: str, cycles: int, kills: int, n_sessions: int, seconds: float) -> Outcome:
    with progress(still=True) as bars:
        steps = bars.add_task("crash cycles", total=cycles + 2 * kills)

        def tick() -> None:
            bars.advance(steps)
            bars.refresh()

        seen, ready, before, after = await crash_cycles(model, cycles, tick)
        gone_ms = []
        for fault in ("hang", "hang-gil") if sys.platform == "linux" else ("hang",):
            for _ in range(kills):
                gone_ms.append(await orphaned_ms(model, fault))
                tick()
        busy, n_hung = await busy_ms(n_sessions, seconds)
    return Outcome(seen, ready, Spread.of(gone_ms), busy, n_hung, before, after)


def draw(figure: Figure, report: Report) -> None:
    """What a death costs, beside its limits."""
    rows = [
        ("a dead worker is seen", report["seen_ms"], MAX_SEEN_MS),
        ("ready again, less load and self-test", report["ready_less_load_ms"], MAX_READY_MS),
        ("worker gone after the server's SIGKILL", report["gone_ms"], MAX_GONE_MS),
        ("a busy while hung workers are killed", report["busy_ms"], MAX_BUSY_MS),
    ]
    spreads(figure, "What a death costs", rows, log=True, aim_is_of="p95, of the last p99")


@click.command()
@reported
@click.option("--model", default="tiny.en", show_default=True)
@click.option("--cycles", default=100, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--kills", default=10, show_default=True, type=click.IntRange(1, 1000), help="of the server, by kind")
@click.option("--sessions", "n_sessions", default=200, show_default=True, type=click.IntRange(1, 2000))
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(1, 600), help="of refusals")
def main(model: str, cycles: int, kills: int, n_sessions: int, seconds: float) -> None:
    """What a death of the worker, or of the server, costs."""
    log.configure(level="error")
    outcome = asyncio.run(measure(model, cycles, kills, n_sessions, seconds))
    for line in table(outcome):
        click.echo(line)
    sys.exit(
        report(
            "recovery",
            settings={"model": model, "cycles": cycles, "kills": kills, "sessions": n_sessions, "seconds": seconds},
            figures={
                "seen_ms": outcome.seen.figures(),
                "ready_less_load_ms": outcome.ready.figures(),
                "gone_ms": outcome.gone.figures(),
                "busy_ms": outcome.busy.figures(),
                "workers_hung": outcome.n_hung,
                "before": asdict(outcome.before),
                "after": asdict(outcome.after),
            },
            passed=outcome.passed,
            draw=draw,
        )
    )


if __name__ == "__main__":
    main()
