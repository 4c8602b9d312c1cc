"""The dispatcher on a real loop, with a worker whose decodes end when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from asr_ws.core.admission import AdmissionQueue, Ticket
from asr_ws.core.holds import Holds
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.types import (
    Decoded,
    DecodeOptions,
    EndpointReason,
    Failed,
    Hypothesis,
    Outcome,
    RefusalReason,
    Released,
    Samples,
    ServiceState,
    SessionId,
    Shed,
    Unfinished,
    Utterance,
)
from asr_ws.errors import DecodeFailed, WorkerDied
from asr_ws.metrics import Metrics
from asr_ws.server.dispatcher import Dispatcher, Subscriber

SESSION = SessionId("s-1")
OPTIONS = DecodeOptions("en")


def utterance(id: str, session: SessionId = SESSION) -> Utterance:
    return Utterance(session, id, np.zeros(1600, np.float32), 0, 1600, EndpointReason.COMMIT, OPTIONS)


def hypothesis(text: str) -> Hypothesis:
    return Hypothesis(text, "en", 1.0, (), None, 0.1)


class Desk:
    """A dispatcher, its hand-driven worker, and what its one session was told.

    Unrealistic: a decode takes as long as the test likes, and a dead worker is back as soon as it says so.
    """

    def __init__(self, capacity: int) -> None:
        self.metrics = Metrics()
        self.dispatcher = Dispatcher(
            AdmissionQueue(capacity, ServiceTime(0.1), lambda low, high: low), Holds(), self.metrics
        )
        self.dispatcher.worker = self
        self.decodes: asyncio.Queue[asyncio.Future[Hypothesis]] = asyncio.Queue()
        self.n_concurrent = self.max_concurrent = self.n_decodes = 0
        self.told: asyncio.Queue[Outcome] = asyncio.Queue()
        self.states: list[ServiceState] = []
        self.dispatcher.attach(SESSION, Subscriber(self.told.put_nowait, self.states.append))

    async def decode(self, samples: Samples, options: DecodeOptions) -> Hypothesis:
        self.n_decodes += 1
        self.n_concurrent += 1
        self.max_concurrent = max(self.max_concurrent, self.n_concurrent)
        decode: asyncio.Future[Hypothesis] = asyncio.get_running_loop().create_future()
        self.decodes.put_nowait(decode)
        try:
            return await decode
        finally:
            self.n_concurrent -= 1

    def offer(self, id: str, max_wait_s: float = 8.0) -> Ticket | Shed:
        now = asyncio.get_running_loop().time()
        return self.dispatcher.offer(utterance(id), now=now, max_wait_s=max_wait_s)

    async def finish(self, text: str = "text") -> None:
        (await self.decodes.get()).set_result(hypothesis(text))

    async def die(self) -> None:
        """The worker dies under the decode, and its supervisor says so first."""
        decode = await self.decodes.get()
        self.dispatcher.worker_changed(ServiceState.RESTARTING, 0.5)
        decode.set_exception(WorkerDied("segv"))

    def come_back(self) -> None:
        self.dispatcher.worker_changed(ServiceState.READY, 0.0)


@asynccontextmanager
async def desk(capacity: int = 3, *, ready: bool = True) -> AsyncIterator[Desk]:
    made = Desk(capacity)
    task = asyncio.create_task(made.dispatcher.run())
    if ready:
        made.come_back()
    try:
        async with asyncio.timeout(30):
            yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_idle_worker_takes_an_utterance_without_a_queue_slot() -> None:
    async with desk() as at:
        answers = [at.offer(f"u{n}") for n in range(1, 6)]
        assert [answer.position for answer in answers if isinstance(answer, Ticket)] == [0, 1, 2, 3]
        assert isinstance(answers[4], Shed)
        assert answers[4].reason is RefusalReason.QUEUE_FULL
        assert at.dispatcher.queue.depth == 3


async def test_decodes_are_serial_and_in_the_order_of_acceptance() -> None:
    async with desk() as at:
        for id in ("u1", "u2", "u3"):
            at.offer(id)
        for _ in range(3):
            await settle()
            assert at.n_concurrent == 1
            await at.finish()
        outcomes = [await at.told.get() for _ in range(3)]
        assert [(type(outcome), outcome.utterance.id) for outcome in outcomes] == [
            (Decoded, "u1"),
            (Decoded, "u2"),
            (Decoded, "u3"),
        ]
        assert at.max_concurrent == 1
        assert at.metrics.finals == 3


async def test_deadline_is_told_by_timer_while_the_worker_is_busy() -> None:
    async with desk() as at:
        at.offer("u1")
        decode = await at.decodes.get()
        at.dispatcher.queue._service_time.observe(0.1, 0.01)  # so that the short wait is believed in
        assert isinstance(at.offer("u2", max_wait_s=0.05), Ticket)
        outcome = await at.told.get()
        assert isinstance(outcome, Unfinished)
        assert (outcome.utterance.id, outcome.shed.reason) == ("u2", RefusalReason.DEADLINE)
        assert outcome.waited_s >= 0.05
        assert at.dispatcher.queue.depth == 0
        decode.set_result(hypothesis("first"))
        await settle()
        assert at.n_decodes == 1, "the expired one is never decoded"


async def test_death_replays_the_utterance_once_silently_before_what_waits() -> None:
    async with desk() as at:
        at.offer("u1")
        at.offer("u2")
        await at.die()
        await settle()
        assert at.told.empty()
        assert at.dispatcher.queue.depth == 1, "what waits keeps its place"
        at.come_back()
        await at.finish("again")
        outcome = await at.told.get()
        assert isinstance(outcome, Decoded)
        assert (outcome.utterance.id, outcome.hypothesis.text, outcome.utterance.deaths) == ("u1", "again", 1)
        await at.finish()
        assert (await at.told.get()).utterance.id == "u2"
        assert at.states == [ServiceState.READY, ServiceState.RESTARTING, ServiceState.READY]


async def test_second_death_makes_it_poison_and_the_next_goes_on() -> None:
    async with desk() as at:
        at.offer("u1")
        at.offer("u2")
        for _ in range(2):
            await at.die()
            await settle()
            at.come_back()
        outcome = await at.told.get()
        assert isinstance(outcome, Failed)
        assert (outcome.utterance.id, outcome.code) == ("u1", "poison_audio")
        await at.finish()
        assert isinstance(await at.told.get(), Decoded)


async def test_death_without_time_for_a_replay_becomes_a_retry() -> None:
    async with desk() as at:
        at.offer("u1", max_wait_s=0.2)  # less than the reload of 0.5 s
        await at.die()
        outcome = await at.told.get()
        assert isinstance(outcome, Unfinished)
        assert outcome.shed.reason is RefusalReason.WORKER_CRASHED
        assert outcome.utterance.deaths == 1, "the next attempt's death is its second"
        assert at.dispatcher.queue.in_flight is None


async def test_replay_that_the_worker_comes_too_late_for_becomes_a_retry_at_its_deadline() -> None:
    async with desk() as at:
        at.offer("u1", max_wait_s=0.7)
        await at.die()
        await settle()
        assert at.told.empty(), "0.5 s of reload and 0.1 s of decode fit"
        outcome = await at.told.get()  # but the worker does not come back
        assert isinstance(outcome, Unfinished)
        assert outcome.shed.reason is RefusalReason.WORKER_CRASHED


async def test_unavailable_worker_gives_up_the_replay() -> None:
    async with desk() as at:
        at.offer("u1")
        await at.die()
        await settle()
        at.dispatcher.worker_changed(ServiceState.UNAVAILABLE, 30.0)
        outcome = await at.told.get()
        assert isinstance(outcome, Unfinished)
        assert outcome.shed.reason is RefusalReason.WORKER_CRASHED


async def test_decode_error_ends_the_utterance_and_nothing_else() -> None:
    async with desk() as at:
        at.offer("u1")
        at.offer("u2")
        (await at.decodes.get()).set_exception(DecodeFailed("ValueError: odd"))
        outcome = await at.told.get()
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.message) == ("decode_failed", "ValueError: odd")
        await at.finish()
        assert isinstance(await at.told.get(), Decoded)
        assert at.metrics.decode_fail_rate == 0.5


async def test_withdrawn_utterance_frees_its_slot_at_once() -> None:
    async with desk(capacity=1) as at:
        at.offer("u1")
        at.offer("u2")
        assert isinstance(at.offer("u3"), Shed)
        at.dispatcher.withdraw(SESSION, "u2")
        assert isinstance(at.offer("u4"), Ticket)


async def test_withdrawn_decode_finishes_unheard_and_is_not_replayed() -> None:
    async with desk() as at:
        at.offer("u1")
        await settle()
        at.dispatcher.withdraw(SESSION, "u1")
        at.offer("u2")
        await at.die()
        at.come_back()
        await at.finish()
        assert (await at.told.get()).utterance.id == "u2"
        assert at.n_decodes == 2


async def test_withdrawn_replay_does_not_wait_for_the_worker() -> None:
    async with desk() as at:
        at.offer("u1")
        await at.die()
        await settle()
        at.dispatcher.withdraw(SESSION)
        assert at.dispatcher.queue.in_flight is None


async def test_hold_ends_by_timer() -> None:
    async with desk() as at:
        now = asyncio.get_running_loop().time()
        at.dispatcher.hold(utterance("u1"), until=now + 0.05)
        outcome = await at.told.get()
        assert outcome == Released(outcome.utterance, "hold_expired")
        assert at.dispatcher.reclaim(SESSION, "u1") is None


async def test_third_hold_of_a_session_evicts_its_first() -> None:
    async with desk() as at:
        until = asyncio.get_running_loop().time() + 60
        for id in ("u1", "u2", "u3"):
            at.dispatcher.hold(utterance(id), until=until)
        outcome = await at.told.get()
        assert isinstance(outcome, Released)
        assert (outcome.utterance.id, outcome.reason) == ("u1", "evicted")


async def test_outcomes_never_come_from_inside_a_call_of_the_desk() -> None:
    async with desk() as at:
        until = asyncio.get_running_loop().time() + 60
        for id in ("u1", "u2", "u3"):
            at.dispatcher.hold(utterance(id), until=until)
            assert at.told.empty()


async def test_waiting_work_starts_when_the_worker_is_back() -> None:
    async with desk() as at:
        at.dispatcher.worker_changed(ServiceState.RESTARTING, 0.2)
        assert isinstance(at.offer("u1"), Ticket)
        await settle()
        assert at.n_decodes == 0
        at.come_back()
        await at.finish()
        assert isinstance(await at.told.get(), Decoded)


async def test_nothing_is_admitted_before_the_first_load() -> None:
    async with desk(ready=False) as at:
        answer = at.offer("u1")
        assert isinstance(answer, Shed)
        assert answer.reason is RefusalReason.STARTING


@pytest.mark.parametrize("n_waiting", [0, 2])
async def test_drain_finishes_what_is_admitted_and_nothing_else(n_waiting: int) -> None:
    async with desk() as at:
        for n in range(n_waiting + 1):
            at.offer(f"u{n}")
        at.dispatcher.drain()
        refused = at.offer("late")
        assert isinstance(refused, Shed)
        assert refused.reason is RefusalReason.DRAINING
        for _ in range(n_waiting + 1):
            await at.finish()
            assert isinstance(await at.told.get(), Decoded)
        assert at.states[-1] is ServiceState.DRAINING
