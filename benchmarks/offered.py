"""Offered load: utterances that come at given times, whatever became of those before, and what became of them.

What the clients do runs in a process of their own, what watches the server in the server's.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from asr_ws import messages
from asr_ws.config import Settings
from asr_ws.testing.bare import BareSession, Event
from benchmarks.common import PCM_BYTES_PER_S, sessions, speech_pcm, until, within

if TYPE_CHECKING:
    from asr_ws.core.types import DecodeOptions, Hypothesis, Samples
    from asr_ws.server.app import App

SCRIPTED: Final = "scripted"  # the name of no model
LOAD_LIMIT_S: Final = 300.0
DECODE_LIMIT_S: Final = 120.0  # a decode that hangs

# ---------------------------------------------------------------- in the clients' process


@dataclass(frozen=True, slots=True)
class Offer:
    """An utterance that is to be offered."""

    at_s: float  # from the beginning of the run
    cut: slice  # of `speech_pcm`

    @property
    def audio_s(self) -> float:
        n_bytes: int = self.cut.stop - self.cut.start
        return n_bytes / PCM_BYTES_PER_S


def offers(rate: float, cuts: Sequence[slice], rng: random.Random) -> Iterator[Offer]:
    """``rate`` utterances a second without end, at the moments of a Poisson process, each any of ``cuts``."""
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate)
        yield Offer(at_s, rng.choice(cuts))


def lasting(seconds: float, all_offers: Iterable[Offer]) -> Iterator[Offer]:
    """Those of the first so many seconds."""
    return takewhile(lambda each: each.at_s < seconds, all_offers)


def dealt(all_offers: Iterable[Offer], n_sessions: int, rng: random.Random) -> list[list[Offer]]:
    """Each offer to any of the sessions, whatever that is doing."""
    plans: list[list[Offer]] = [[] for _ in range(n_sessions)]
    for each in all_offers:
        rng.choice(plans).append(each)
    return plans


@dataclass(slots=True)
class Talk:
    """What one session said and was told, and when, in its loop's seconds."""

    committed: dict[str, float] = field(default_factory=dict)  # by the commit's id
    heard: list[tuple[float, Event]] = field(default_factory=list)

    async def listen(self, session: BareSession, events: AsyncIterator[Event], *, once: bool) -> None:
        """Until ``events`` end.

        Args:
            once: what is refused is cancelled, so that each utterance is offered once; else the client offers it again.
        """
        loop = asyncio.get_running_loop()
        async for event in events:
            self.heard.append((loop.time(), event))
            if once and isinstance(event, messages.Busy | messages.Retry):
                await session.cancel(event.utterance)


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of utterances. ``refusals`` counts `busy`, by reason, those of later attempts included."""

    offered: int
    finals: int
    refusals: dict[str, int]

    @classmethod
    def of(cls, talks: Iterable[Talk]) -> Tally:
        events = [event for talk in talks for _, event in talk.heard]
        return cls(
            sum(isinstance(each, messages.Accepted | messages.Busy) and each.attempt == 1 for each in events),
            sum(isinstance(each, messages.Final) for each in events),
            dict(Counter(each.reason for each in events if isinstance(each, messages.Busy))),
        )

    def figures(self) -> dict[str, object]:
        """For the report."""
        return {"offered": self.offered, "finals": self.finals, "refusals": self.refusals}


async def offer_all(
    url: str, plans: Sequence[Sequence[Offer]], *, once: bool, patience_s: float, **start_fields: Any
) -> list[Talk]:
    """A session in manual mode for each plan: every utterance at once and at its time, whatever became of the others.

    Args:
        once: as of `Talk.listen`.
        patience_s: how long outcomes are waited for after the last offer.
    """
    pcm = speech_pcm()
    loop = asyncio.get_running_loop()
    talks = [Talk() for _ in plans]
    async with sessions(url, len(plans), partials=True, endpointing={"mode": "manual"}, **start_fields) as opened:
        began = loop.time()

        async def say(session: BareSession, plan: Sequence[Offer], talk: Talk) -> None:
            for n, each in enumerate(plan):
                await asyncio.sleep(began + each.at_s - loop.time())
                await session.send(pcm[each.cut])
                talk.committed[f"{n}"] = loop.time()
                await session.commit(f"{n}")
            await session.end()

        last_s = max((each.at_s for plan in plans for each in plan), default=0.0)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(began + last_s + patience_s), asyncio.TaskGroup() as tasks:
                for session, plan, talk in zip(opened, plans, talks, strict=True):
                    tasks.create_task(talk.listen(session, session.events(), once=once))
                    tasks.create_task(say(session, plan, talk))
    return talks


# ---------------------------------------------------------------- in the server's process


def start_of(model: str, decode_s: float = 0.1) -> dict[str, Any]:
    """What a session's `start` has to say to this model: nothing, but to SCRIPTED how long its decodes take."""
    return {"prompt": f"sleep {decode_s}"} if model == SCRIPTED else {}


@asynccontextmanager
async def serving(settings: Settings, *, fair: bool = True) -> AsyncIterator[App]:
    """A server that is ready; the model SCRIPTED is a worker that does what prompts say. Raises: click.ClickException:
    it did not get ready.
    """
    from asr_ws.server.app import running, worker_spec
    from asr_ws.testing.recognizer import scripted_worker

    with TemporaryDirectory() as folder:
        spec = scripted_worker(Path(folder)) if settings.model.model == SCRIPTED else worker_spec(settings)
        async with running(settings, spec, fair=fair) as app:
            async with within(LOAD_LIMIT_S, f"{settings.model.model} to be loaded"):
                await app.dispatcher.wait_ready()
            yield app


def spoken_cuts() -> list[slice]:
    """The utterances of the bundled speech: 1.5 to 5 s each, as the server's own endpointer finds them."""
    from asr_ws.core.endpointer import Endpoint, Endpointer, EndpointRules
    from asr_ws.detector import SileroModel

    rules = EndpointRules(silence=4800, prefix=4800, min_speech=2400, max_utterance=96_000, threshold=0.5)
    endpointer = Endpointer(rules, SileroModel().detector())
    samples = np.frombuffer(speech_pcm(), "<i2").astype(np.float32) / np.float32(32768)
    found = endpointer.feed(samples) + endpointer.finish()
    return [slice(2 * each.start_sample, 2 * each.end_sample) for each in found if isinstance(each, Endpoint)]


DecodeKind = Literal["final", "partial", "speculation"]


@dataclass(frozen=True, slots=True)
class Decode:
    """One decode of a server's; seconds of its loop."""

    kind: DecodeKind
    began: float
    ended: float
    accepted_at: float | None = None  # of a final
    promoted_at: float | None = None  # of a speculation that became the final while it ran
    background: bool = False  # of a file, behind what is live

    @property
    def took_s(self) -> float:
        return self.ended - self.began


@contextmanager
def watched(app: App) -> Iterator[list[Decode]]:
    """What the server's worker decodes from now on, as it comes to its end."""
    decodes: list[Decode] = []
    dispatcher, worker, loop = app.dispatcher, app.dispatcher.worker, asyncio.get_running_loop()

    class Watched:
        async def decode(self, samples: Samples, options: DecodeOptions, expected_s: float) -> Hypothesis:
            ticket, began = dispatcher.queue.in_flight, loop.time()
            hypothesis = await worker.decode(samples, options, expected_s)
            if ticket is not None:
                accepted_at, background = ticket.accepted_at, ticket.background
                decodes.append(Decode("final", began, loop.time(), accepted_at=accepted_at, background=background))
            else:
                kind: DecodeKind = "partial" if options.partial else "speculation"
                promoted = dispatcher.queue.in_flight
                promoted_at = promoted.accepted_at if promoted is not None else None
                decodes.append(Decode(kind, began, loop.time(), promoted_at=promoted_at))
            return hypothesis

    dispatcher.worker = Watched()
    try:
        yield decodes
    finally:
        dispatcher.worker = worker


def _worker_times_s(pid: int | None) -> tuple[float, float] | None:
    """Seconds in which the worker's threads ran, and in which they were ready to."""
    try:
        texts = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    except OSError:  # it is gone, or a thread of it
        return None
    times = [[int(each) / 1e9 for each in text.split()[:2]] for text in texts]
    return (sum(ran for ran, _ in times), sum(waited for _, waited in times)) if times else None


class WorkerCores:
    """Of the time in which a server's worker had work, how much it had no core, since this was made.

    Other programs on the machine make decodes slow: `waited_share` shows how much of a timing is theirs.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._before = _worker_times_s(app.supervisor.pid)

    @property
    def waited_share(self) -> float | None:
        """Only Linux tells."""
        now = _worker_times_s(self._app.supervisor.pid)
        if now is None or self._before is None:
            return None
        ran_s, waited_s = (after - before for after, before in zip(now, self._before, strict=True))
        return round(waited_s / (ran_s + waited_s), 3) if ran_s + waited_s > 0 else None


async def mean_decode_s(app: App, clients: Executor, cuts: Sequence[slice], **start_fields: Any) -> float:
    """What one of these utterances takes an idle server's worker: one over it is the capacity."""
    warm_up = cuts[:1]
    with watched(app) as decodes:
        run = partial(decode_each, app.url, [*warm_up, *cuts], start_fields)
        await asyncio.get_running_loop().run_in_executor(clients, run)
    return mean(each.took_s for each in decodes[len(warm_up) :])


def decode_each(url: str, cuts: Sequence[slice], start_fields: Mapping[str, Any]) -> None:
    async def run() -> None:
        pcm = speech_pcm()
        async with sessions(url, 1, endpointing={"mode": "manual"}, **start_fields) as (session,):
            events = session.events()
            for cut in cuts:
                await session.send(pcm[cut])
                await session.commit()
                async with within(DECODE_LIMIT_S, "a decode"):
                    await until(events, messages.Final)

    asyncio.run(run())
