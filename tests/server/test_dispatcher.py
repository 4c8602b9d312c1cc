"""The dispatcher on a real loop, with a worker whose decodes end when the test says so.

What is decided is tested in `tests.core.test_desk`, with numbers for the time. Here only what must happen has a short
deadline, and what must not has one that no machine is slow enough for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest

from asr_ws.core.admission import AdmissionQueue, Ticket
from asr_ws.core.drafts import Draft, Drafts
from asr_ws.core.holds import Holds
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.types import (
    Decoded,
    DecodeOptions,
    DropReason,
    EndpointReason,
    Failed,
    Hypothesis,
    Outcome,
    Partial,
    RefusalReason,
    Released,
    Samples,
    ServiceState,
    ServiceStatus,
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
WAIT_S = 600.0  # longer than any test


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
        service_time = ServiceTime(0.1)
        queue = AdmissionQueue(capacity, service_time, lambda low, high: low, fair=False)
        drafts = Drafts(service_time, ServiceTime(0.05))
        self.dispatcher = Dispatcher(queue, Holds(), drafts, self.metrics)
        self.dispatcher.worker = self
        self.decodes: asyncio.Queue[asyncio.Future[Hypothesis]] = asyncio.Queue()
        self.n_concurrent = self.max_concurrent = self.n_decodes = 0
        self.told: asyncio.Queue[Outcome] = asyncio.Queue()
        self.partials: asyncio.Queue[Partial] = asyncio.Queue()
        self.statuses: list[ServiceStatus] = []
        subscriber = Subscriber(self.told.put_nowait, self.partials.put_nowait, self.statuses.append)
        self.dispatcher.attach(SESSION, subscriber)

    @property
    def states(self) -> list[ServiceState]:
        return [status.state for status in self.statuses]

    async def decode(self, samples: Samples, options: DecodeOptions, expected_s: float) -> Hypothesis:
        self.n_decodes += 1
        self.n_concurrent += 1
        self.max_concurrent = max(self.max_concurrent, self.n_concurrent)
        decode: asyncio.Future[Hypothesis] = asyncio.get_running_loop().create_future()
        self.decodes.put_nowait(decode)
        try:
            return await decode
        finally:
            self.n_concurrent -= 1

    def offer(self, id: str, max_wait_s: float = WAIT_S, *, now: float | None = None) -> Ticket | Shed:
        """Offers at the same ``now`` are answered the same on every machine."""
        now = asyncio.get_running_loop().time() if now is None else now
        return self.dispatcher.offer(utterance(id), now=now, max_wait_s=max_wait_s)

    async def finish(self, text: str = "text") -> None:
        (await self.decodes.get()).set_result(hypothesis(text))

    async def die(self) -> None:
        """The worker dies under the decode, and its supervisor says so first."""
        decode = await self.decodes.get()
        self.dispatcher.worker_changed(ServiceState.RESTARTING, 0.5)
        decode.set_exception(WorkerDied())

    def come_back(self) -> None:
        self.dispatcher.worker_changed(ServiceState.READY, 0.0)


@asynccontextmanager
async def desk(capacity: int = 3, *, ready: bool = True) -> AsyncIterator[Desk]:
    made = Desk(capacity)
    task = asyncio.create_task(made.dispatcher.run())
    if ready:
        made.come_back()
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_decodes_are_serial_and_in_the_order_of_acceptance() -> None:
    async with desk() as at:
        answers = [at.offer(f"u{n}") for n in range(1, 5)]
        assert [answer.position for answer in answers if isinstance(answer, Ticket)] == [0, 1, 2, 3]
        for _ in range(4):
            await settle()
            assert at.n_concurrent == 1
            await at.finish()
        outcomes = [await at.told.get() for _ in range(4)]
        assert [(type(outcome), outcome.utterance.id) for outcome in outcomes] == [
            (Decoded, "u1"),
            (Decoded, "u2"),
            (Decoded, "u3"),
            (Decoded, "u4"),
        ]
        assert (at.max_concurrent, at.n_decodes) == (1, 4)


async def test_deadline_is_told_by_timer_while_the_worker_is_busy() -> None:
    async with desk() as at:
        now = asyncio.get_running_loop().time()
        at.offer("u1", now=now)
        at.offer("u2", 0.2, now=now)
        decode = await at.decodes.get()
        outcome = await at.told.get()
        assert isinstance(outcome, Unfinished)
        assert (outcome.utterance.id, outcome.shed.reason) == ("u2", RefusalReason.DEADLINE)
        decode.set_result(hypothesis("first"))
        assert isinstance(await at.told.get(), Decoded)
        await settle()
        assert at.n_decodes == 1, "the expired one is never decoded"


async def test_hold_ends_by_timer() -> None:
    async with desk() as at:
        at.dispatcher.hold(utterance("u1"), until=asyncio.get_running_loop().time() + WAIT_S)
        at.dispatcher.shorten_hold(SESSION, "u1", until=asyncio.get_running_loop().time() + 0.01)
        outcome = await at.told.get()
        assert outcome == Released(outcome.utterance, DropReason.HOLD_EXPIRED)
        assert at.dispatcher.reclaim(SESSION, "u1") is None


async def test_held_utterance_can_be_reclaimed_once() -> None:
    async with desk() as at:
        held = utterance("u1")
        at.dispatcher.hold(held, until=asyncio.get_running_loop().time() + WAIT_S)
        assert at.dispatcher.reclaim(SESSION, "u1") is held
        assert at.dispatcher.reclaim(SESSION, "u1") is None


async def test_outcomes_never_come_from_inside_a_call_of_the_desk() -> None:
    async with desk() as at:
        until = asyncio.get_running_loop().time() + WAIT_S
        for id in ("u1", "u2", "u3"):
            at.dispatcher.hold(utterance(id), until=until)
            assert at.told.empty()
        outcome = await at.told.get()
        assert (outcome.utterance.id, outcome) == ("u1", Released(outcome.utterance, DropReason.EVICTED))


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


async def test_death_before_the_decode_begins_is_waited_for() -> None:
    """Regression: the supervisor asserted that it had a process, and the whole server ended."""
    async with desk() as at:
        assert isinstance(at.offer("u1"), Ticket)
        at.dispatcher.worker_changed(ServiceState.RESTARTING, 0.5)  # in the same turn of the loop
        await settle()
        assert (at.n_decodes, at.told.empty()) == (0, True)
        at.come_back()
        await at.finish("late")
        outcome = await at.told.get()
        assert isinstance(outcome, Decoded)
        assert (outcome.hypothesis.text, outcome.utterance.deaths) == ("late", 0)


async def test_what_waits_for_a_worker_that_does_not_come_is_given_up_by_timer() -> None:
    async with desk() as at:
        at.offer("u1", 0.01)
        at.dispatcher.worker_changed(ServiceState.RESTARTING, 0.5)
        outcome = await at.told.get()
        assert isinstance(outcome, Unfinished)
        assert outcome.shed.reason is RefusalReason.WORKER_CRASHED
        assert at.n_decodes == 0


async def test_decode_error_ends_the_utterance_and_nothing_else() -> None:
    async with desk() as at:
        at.offer("u1")
        at.offer("u2")
        (await at.decodes.get()).set_exception(DecodeFailed("ValueError: odd"))
        outcome = await at.told.get()
        assert outcome == Failed(outcome.utterance, "decode_failed", "ValueError: odd")
        await at.finish()
        assert isinstance(await at.told.get(), Decoded)


async def test_withdrawn_utterance_frees_its_slot_and_the_worker_at_once() -> None:
    async with desk(capacity=1) as at:
        at.offer("u1")
        at.offer("u2")
        assert isinstance(at.offer("u3"), Shed)
        at.dispatcher.withdraw(SESSION, "u1")  # it was not decoded yet
        assert isinstance(at.offer("u4"), Ticket)
        await at.finish()
        assert (await at.told.get()).utterance.id == "u2"


async def test_waiting_work_starts_when_the_worker_is_back() -> None:
    async with desk() as at:
        at.dispatcher.worker_changed(ServiceState.RESTARTING, 0.2)
        assert isinstance(at.offer("u1"), Ticket)
        await settle()
        assert at.n_decodes == 0
        at.come_back()
        await at.finish()
        assert isinstance(await at.told.get(), Decoded)


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


async def test_giving_up_drops_what_is_admitted_and_drops_the_running_decode() -> None:
    async with desk() as at:
        at.offer("u1")
        decode = await at.decodes.get()
        at.offer("u2")
        at.dispatcher.drain()
        at.dispatcher.give_up()
        outcomes = [await at.told.get() for _ in range(2)]
        assert [(outcome.utterance.id, outcome.reason) for outcome in outcomes if isinstance(outcome, Released)] == [
            ("u1", DropReason.NOT_HELD),
            ("u2", DropReason.NOT_HELD),
        ]
        decode.set_result(hypothesis("too late"))
        await settle()
        assert (at.told.empty(), at.n_decodes, at.dispatcher.queue.in_flight) == (True, 1, None)


@pytest.mark.parametrize(("state", "loaded"), [(ServiceState.READY, True), (ServiceState.UNAVAILABLE, False)])
async def test_load_is_waited_for_through_restarts(state: ServiceState, loaded: bool) -> None:
    async with desk(ready=False) as at:
        waiting = asyncio.create_task(at.dispatcher.wait_loaded())
        for before in (ServiceState.STARTING, ServiceState.RESTARTING):
            at.dispatcher.worker_changed(before, 1.0)
            await settle()
            assert not waiting.done()
        at.dispatcher.worker_changed(state, 0.0)
        assert await waiting is loaded
        assert await at.dispatcher.wait_loaded() is loaded, "without waiting"


async def test_ready_is_waited_for_though_the_worker_was_unavailable() -> None:
    async with desk(ready=False) as at:
        waiting = asyncio.create_task(at.dispatcher.wait_ready())
        at.dispatcher.worker_changed(ServiceState.UNAVAILABLE, 30.0)
        await settle()
        assert not waiting.done()
        at.come_back()
        await waiting


async def test_what_happens_is_counted() -> None:
    async with desk(capacity=1) as at:
        now = asyncio.get_running_loop().time()
        at.offer("u1", now=now)
        at.offer("u2", 0.2, now=now)
        await at.told.get()  # its deadline
        at.offer("u3")
        at.offer("u4")
        at.dispatcher.shed(RefusalReason.MAX_SESSIONS, now=now)
        await at.die()
        at.come_back()
        await at.finish()
        (await at.decodes.get()).set_exception(DecodeFailed("odd"))
        assert [type(await at.told.get()) for _ in range(2)] == [Decoded, Failed]
        metrics = at.metrics
        assert metrics.refusals == {RefusalReason.QUEUE_FULL: 1, RefusalReason.MAX_SESSIONS: 1}
        assert (metrics.finals, metrics.retries, metrics.failed.mean(now=now)) == (1, 1, 2 / 3)
        assert sum(metrics.wait_s.counts) == 2, "what expired, and what got its text; a replay does not wait again"
        assert metrics.unfinished == {RefusalReason.DEADLINE: 1}
        assert metrics.decode_failures == {"worker_crashed": 1, "decode_failed": 1}
        assert (sum(metrics.decode_s["final"].counts), metrics.decode_s["final"].sum_s) == (1, 0.1)


async def test_background_decodes_are_jobs_and_no_waits_or_finals() -> None:
    async with desk() as at:
        now = asyncio.get_running_loop().time()
        for id, max_wait_s in (("f1", math.inf), ("f2", 0.2)):
            spoken = replace(utterance(id), speech_ended_at=now)
            assert isinstance(at.dispatcher.offer_background(spoken, now=now, max_wait_s=max_wait_s), Ticket)
        assert isinstance(await at.told.get(), Unfinished)
        await at.finish()
        assert isinstance(await at.told.get(), Decoded)
        metrics = at.metrics
        assert {kind: sum(histogram.counts) for kind, histogram in metrics.decode_s.items()} == {
            "final": 0,
            "partial": 0,
            "job": 1,
        }
        assert (metrics.finals, sum(metrics.wait_s.counts), sum(metrics.final_latency_s.counts)) == (0, 0, 0)
        assert metrics.unfinished == {RefusalReason.DEADLINE: 1}


async def test_who_waits_behind_the_others_is_counted_like_them() -> None:
    async with desk(capacity=1) as at:
        now = asyncio.get_running_loop().time()
        for id in ("u1", "u2", "u3"):
            answer = at.dispatcher.offer(utterance(id), now=now, max_wait_s=WAIT_S, or_behind=True)
            assert isinstance(answer, Ticket)
        assert (at.dispatcher.queue.depth, at.dispatcher.queue.background_depth) == (1, 1)
        for _ in range(3):
            await at.finish()
            assert isinstance(await at.told.get(), Decoded)
        assert (at.metrics.finals, sum(at.metrics.wait_s.counts), sum(at.metrics.decode_s["final"].counts)) == (3, 3, 3)


async def test_refusals_of_the_background_and_of_who_asks_are_counted() -> None:
    async with desk(capacity=1) as at:
        now = asyncio.get_running_loop().time()
        assert at.dispatcher.would_refuse(SESSION, now=now, max_wait_s=WAIT_S) is None
        assert isinstance(at.dispatcher.would_refuse(SESSION, now=now, max_wait_s=WAIT_S, expected=[SESSION]), Shed)
        at.dispatcher.drain()
        assert isinstance(at.dispatcher.offer_background(utterance("f1"), now=now, max_wait_s=WAIT_S), Shed)
        assert at.metrics.refusals == {RefusalReason.QUEUE_FULL: 1, RefusalReason.DRAINING: 1}


async def test_latencies_are_counted_where_they_are_known() -> None:
    async with desk() as at:
        now = asyncio.get_running_loop().time()
        for id, ended_at in (("u1", now - 100.0), ("u2", None)):
            spoken = replace(utterance(id), speech_ended_at=ended_at)
            at.dispatcher.offer(spoken, now=now, max_wait_s=WAIT_S)
            await at.finish()
        await at.told.get()
        latencies = at.metrics.final_latency_s
        assert sum(latencies.counts) == 1
        assert latencies.sum_s >= 100.0


async def test_first_partial_is_counted_and_the_next_is_not() -> None:
    async with desk() as at:
        for n, text in enumerate(("one two", " two three"), start=1):
            end = 16_000 * n
            speaking = Draft(
                SESSION, "u1", 0, end, float(n), False, False, OPTIONS, True, 8.0, lambda: np.zeros(1, np.float32)
            )
            at.dispatcher.hear(speaking, now=asyncio.get_running_loop().time())
            await at.finish(text)
            await at.partials.get()
        metrics = at.metrics
        assert (metrics.partials, sum(metrics.first_partial_s.counts)) == (2, 1)
        assert metrics.first_partial_s.sum_s >= 1.0
        assert sum(metrics.decode_s["partial"].counts) == 2


async def test_pause_that_is_overdue_when_speech_goes_on_is_told_at_once() -> None:
    """Regression: the decoder was woken for it, who was busy, and nobody was told."""
    async with desk() as at:
        now = asyncio.get_running_loop().time()
        at.offer("u1")
        await settle()
        speaking = Draft(
            SESSION, "u2", 0, 16_000, 1.0, False, False, OPTIONS, True, 8.0, lambda: np.zeros(16_000, np.float32)
        )
        at.dispatcher._desk.drafts.hear(speaking, now=now - 9.0)
        at.dispatcher._desk._free_at = now - 9.0
        at.statuses.clear()
        at.dispatcher.hear(replace(speaking, end_sample=16_512), now=now)
        while not at.statuses:
            await asyncio.sleep(0)
        assert at.statuses == [ServiceStatus(ServiceState.READY, False)]
        await at.finish()
