"""How fast a refusal is told when everybody is refused: the worker stands still, the queue is full, all go on speaking.

    python -m benchmarks.busy [--sessions 50,100,200] [--seconds 10] [--together]

Each session sends audio in real time in frames of 100 ms, in manual mode, ends an utterance once a second, and offers
what was refused again as the hints say. The first answer to each `commit` is timed twice:

- in the server, from the moment at which its frame was read off the socket to that at which `busy` was written;
- by the client, from before the `commit` is sent until `busy` has been read. All clients share one process, which is
  not the server's; what they wait for one another is in it.

The commits are spread over the second. With ``--together`` all come at once: the last of them has to wait for the
answers to all others, so the targets do not apply.

Targets: p99 <= 5 ms in the server, p99 < 50 ms seen by the client.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import click
from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame, Opcode

from asr_ws import log, messages
from asr_ws.testing.bare import BareSession
from asr_ws.testing.recognizer import Gate, scripted_worker
from benchmarks.common import (
    PCM_BYTES_PER_S,
    CoreUse,
    Report,
    Spread,
    numbers,
    other_process,
    pin,
    progress,
    report,
    reported,
    sessions,
    settings_of,
    split_cores,
    until,
    within,
)
from benchmarks.pictures import spreads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_IN_SERVER_MS: Final = 5.0
MAX_BY_CLIENT_MS: Final = 50.0
FRAMES_PER_S: Final = 10
SPEECH: Final = b"\x01\x00" * (PCM_BYTES_PER_S // 2 // FRAMES_PER_S)  # manual mode takes anything for speech
START: Final[dict[str, Any]] = {"endpointing": {"mode": "manual"}}
QUEUE_CAPACITY: Final = 3
OPENING_LIMIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Milliseconds, and the share of the time in which the server's thread waited for its core (`CoreUse`)."""

    sessions: int
    in_server: Spread
    by_client: Spread
    waited: float | None

    @property
    def passed(self) -> bool:
        return self.in_server.p99 <= MAX_IN_SERVER_MS and self.by_client.p99 < MAX_BY_CLIENT_MS

    def figures(self) -> dict[str, Any]:
        return {
            "sessions": self.sessions,
            "in_server_ms": self.in_server.figures(),
            "by_client_ms": self.by_client.figures(),
            "server_waited_for_core": self.waited and round(self.waited, 4),
        }


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Lines for people."""
    lines = [f"{'sessions':>8}  {'commit -> busy':<14}{'n':>7}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'max ms':>9}"]
    for outcome in outcomes:
        for name, times in (("in the server", outcome.in_server), ("by the client", outcome.by_client)):
            spread = "".join(f"{each:>9.2f}" for each in (times.p50, times.p95, times.p99, times.max))
            lines.append(f"{outcome.sessions:>8}  {name:<14}{times.n:>7}{spread}")
        if outcome.waited is not None:
            lines.append(f"{'':>8}  the server waited for its core {outcome.waited:.0%} of the time")
    return lines


# ---------------------------------------------------------------- in the server's process


class Replies:
    """Milliseconds from a commit's frame having been read to its `busy` having been written, by the commit's id."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        self._read_at: dict[str, float] = {}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Stamp every session's frames where websockets hands them on: before and after all that is ours."""
        process_event, send = ServerConnection.process_event, ServerConnection.send

        def process_and_stamp(connection: ServerConnection, event: Any) -> None:
            self._note_read(event, perf_counter())
            process_event(connection, event)

        async def send_and_stamp(connection: ServerConnection, message: Any) -> None:
            await send(connection, message)
            self._note_written(message, perf_counter())

        with (
            patch.object(ServerConnection, "process_event", process_and_stamp),
            patch.object(ServerConnection, "send", send_and_stamp),
        ):
            yield

    def _note_read(self, event: Any, now: float) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
            message = messages.decode_message(bytes(event.data).decode())
            if isinstance(message, messages.Commit) and message.id is not None:
                self._read_at[message.id] = now

    def _note_written(self, message: str, now: float) -> None:
        event = messages.decode_event(message)
        if isinstance(event, messages.Busy) and event.commit in self._read_at:
            self.ms[event.commit] = (now - self._read_at.pop(event.commit)) * 1000


async def measure(n_sessions: int, seconds: float, *, together: bool) -> Outcome:
    """Raises: click.ClickException: something was admitted, or it did not end."""
    from asr_ws.server.app import running

    settings = settings_of(
        max_sessions=n_sessions + 1 + QUEUE_CAPACITY, queue_capacity=QUEUE_CAPACITY, max_wait_ms=600_000
    )
    replies = Replies()
    measured, rest = split_cores()
    pin(rest)  # until the worker has been started
    async with AsyncExitStack() as stack:
        worker = scripted_worker(Path(stack.enter_context(TemporaryDirectory())))
        clients = stack.enter_context(other_process(rest))
        gate = await stack.enter_async_context(Gate())
        app = await stack.enter_async_context(running(settings, worker))
        await stack.enter_async_context(within(OPENING_LIMIT_S + seconds + OPENING_LIMIT_S, "the clients"))
        await app.dispatcher.wait_ready()
        start: dict[str, Any] = {**START, "prompt": gate.script}
        holders = await stack.enter_async_context(sessions(app.url, 1 + QUEUE_CAPACITY, **start))
        for holder in holders:
            await holder.send(SPEECH)
            await holder.commit()
            await until(holder.events(), messages.Accepted)
        await gate.entered()  # and stays there
        pin(measured)
        core = CoreUse()
        with replies.timed():
            answered_ms = await asyncio.get_running_loop().run_in_executor(
                clients, saturate, app.url, n_sessions, seconds, together
            )
        waited = core.waited_share
    if replies.ms.keys() != answered_ms.keys():
        raise click.ClickException(
            f"{len(replies.ms)} of {len(answered_ms)} answers were `busy`: the queue was not full"
        )
    return Outcome(n_sessions, Spread.of(list(replies.ms.values())), Spread.of(list(answered_ms.values())), waited)


# ---------------------------------------------------------------- in the clients' process


def saturate(url: str, n_sessions: int, seconds: float, together: bool) -> dict[str, float]:
    """Milliseconds from a `commit` to its first answer, by the commit's id."""
    return asyncio.run(_saturate(url, n_sessions, seconds, together))


async def _saturate(url: str, n_sessions: int, seconds: float, together: bool) -> dict[str, float]:
    async with within(OPENING_LIMIT_S + seconds, "the sessions"), sessions(url, n_sessions, **START) as opened:
        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            speakers = [
                tasks.create_task(_speak(session, f"{n}", began + (0 if together else n / n_sessions), seconds))
                for n, session in enumerate(opened)
            ]
    return {commit: ms for speaker in speakers for commit, ms in speaker.result().items()}


async def _speak(session: BareSession, name: str, began: float, seconds: float) -> dict[str, float]:
    """A `commit` after each second of audio, until ``seconds`` are over and all are answered."""
    loop = asyncio.get_running_loop()
    sent_at: dict[str, float] = {}
    answered_ms: dict[str, float] = {}
    answered = asyncio.Event()

    async def listen() -> None:
        async for event in session.events():
            match event:
                case messages.Busy(commit=str(commit), attempt=1) | messages.Accepted(commit=str(commit), attempt=1):
                    answered_ms[commit] = (perf_counter() - sent_at[commit]) * 1000
                    answered.set()

    async with asyncio.TaskGroup() as tasks:
        listener = tasks.create_task(listen(), name=f"{name} listener")
        for n_frames in range(1, round(seconds * FRAMES_PER_S) + 1):
            await asyncio.sleep(began + n_frames / FRAMES_PER_S - loop.time())
            await session.send(SPEECH)
            if n_frames % FRAMES_PER_S == 0:
                commit = f"{name}-{n_frames}"
                sent_at[commit] = perf_counter()
                await session.commit(commit)
        while len(answered_ms) < len(sent_at):
            answered.clear()
            await answered.wait()
        listener.cancel()
    return answered_ms


def draw(figure: Figure, report: Report) -> None:
    """In the server, and at its clients, by the number of sessions."""
    rows = [
        (f"{level['sessions']} sessions, {where}", level[name], aim)
        for where, name, aim in (
            ("in the server", "in_server_ms", MAX_IN_SERVER_MS),
            ("at the clients", "by_client_ms", MAX_BY_CLIENT_MS),
        )
        for level in report["levels"]
    ]
    spreads(figure, "From a commit to its busy, when all want more than there is", rows, log=True)


@click.command()
@reported
@click.option("--sessions", default="50,100,200", show_default=True, callback=numbers, help="one run each")
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(1, 600))
@click.option("--together", is_flag=True, help="all commits at once; reported, without a verdict")
def main(sessions: tuple[float, ...], seconds: float, together: bool) -> None:
    """How long `busy` takes when every session is refused."""
    log.configure(level="error")
    outcomes = []
    for n_sessions in map(int, sessions):
        with progress(still=True) as bars:
            bars.add_task(f"{n_sessions} sessions, refused for {seconds:g} s", total=None)
            bars.refresh()
            outcomes.append(asyncio.run(measure(n_sessions, seconds, together=together)))
    for line in table(outcomes):
        click.echo(line)
    sys.exit(
        report(
            "busy",
            settings={"sessions": [int(n) for n in sessions], "seconds": seconds, "together": together},
            figures={"levels": [outcome.figures() for outcome in outcomes]},
            passed=None if together else all(outcome.passed for outcome in outcomes),
            draw=draw,
        )
    )


if __name__ == "__main__":
    main()
