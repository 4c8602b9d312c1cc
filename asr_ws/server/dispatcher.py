"""The single consumer: every utterance of every session passes through here, one decode at a time.

Sessions hand in through the `Desk` methods, which answer at once; outcomes go back through the callback that each
session attached, never from inside such a call. One task decodes. One timer tells deadlines and holds at the moment
they pass. Nothing here waits for anything but the decode in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from asr_ws.core.admission import AdmissionQueue, Ticket
from asr_ws.core.holds import Holds
from asr_ws.core.types import (
    Decoded,
    DecodeOptions,
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

MAX_DEATHS = 2  # worker deaths under one utterance, after which it is poison


class Worker(Protocol):
    async def decode(self, samples: Samples, options: DecodeOptions) -> Hypothesis:
        """Raises: WorkerDied, DecodeFailed."""


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A session's ears."""

    outcome: Callable[[Outcome], None]
    state: Callable[[ServiceState], None]


class Dispatcher:
    """Args: worker: set before `run`; decodes are asked of it only while `worker_changed` last said READY."""

    worker: Worker

    def __init__(self, queue: AdmissionQueue, holds: Holds, metrics: Metrics) -> None:
        self.queue = queue
        self._holds = holds
        self._metrics = metrics
        self._log = structlog.get_logger()
        self._loop = asyncio.get_running_loop()
        self._subscribers: dict[SessionId, Subscriber] = {}
        self._ready = asyncio.Event()  # the worker can decode
        self._work = asyncio.Event()  # the ticket in flight is to be decoded
        self._awaits_worker = False  # the ticket in flight is to be decoded again, once there is a worker
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ the desk

    def attach(self, session: SessionId, subscriber: Subscriber) -> None:
        self._subscribers[session] = subscriber

    def detach(self, session: SessionId) -> None:
        self._subscribers.pop(session, None)

    def offer(self, utterance: Utterance, *, now: float, max_wait_s: float) -> Ticket | Shed:
        self._expire(now)
        answer = self.queue.offer(utterance, now=now, max_wait_s=max_wait_s)
        if isinstance(answer, Shed):
            self._metrics.refusals[answer.reason] += 1
        self._pump(now)
        return answer

    def shed(self, reason: RefusalReason, *, now: float) -> Shed:
        self._metrics.refusals[reason] += 1
        return self.queue.shed(reason, now=now)

    def hold(self, utterance: Utterance, *, until: float) -> None:
        for evicted in self._holds.put(utterance, until=until):
            self._tell(Released(evicted, "evicted"))
        self._arm()

    def shorten_hold(self, session: SessionId, utterance: str, *, until: float) -> None:
        self._holds.shorten(session, utterance, until=until)
        self._arm()

    def reclaim(self, session: SessionId, utterance: str) -> Utterance | None:
        return self._holds.remove(session, utterance)

    def withdraw(self, session: SessionId, utterance: str | None = None) -> None:
        self.queue.withdraw(session, utterance)
        self._holds.withdraw(session, utterance)
        if self._awaits_worker and self.queue.in_flight and self.queue.in_flight.abandoned:
            self._finish()
        self._pump(self._loop.time())

    # ------------------------------------------------------------ the worker

    def worker_changed(self, state: ServiceState, ready_in_s: float) -> None:
        """To be called by the worker's supervisor before anything else learns of the change."""
        before = self.queue.state
        now = self._loop.time()
        if state is ServiceState.READY:
            self._ready.set()
        else:
            self._ready.clear()
        self.queue.worker_changed(state, now=now, load_s=ready_in_s)
        if self._awaits_worker:
            if self._ready.is_set():
                self._awaits_worker = False
                self.queue.replay(now)
                self._work.set()
            elif state is ServiceState.UNAVAILABLE:
                self._give_up(now)
        self._pump(now)
        if self.queue.state is not before:
            self._broadcast()

    def drain(self) -> None:
        """Admit nothing more; what is admitted is finished."""
        if not self.queue.draining:
            self.queue.draining = True
            self._broadcast()

    async def wait_ready(self) -> None:
        """Until the worker can decode."""
        await self._ready.wait()

    async def run(self) -> None:
        """Decode what is in flight, one after the other, until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            ticket = self.queue.in_flight
            assert ticket is not None
            await self._decode(ticket)
            self._pump(self._loop.time())

    async def _decode(self, ticket: Ticket) -> None:
        utterance = ticket.utterance
        try:
            hypothesis = await self.worker.decode(utterance.samples, utterance.options)
        except WorkerDied:
            self._metrics.observe_decode(failed=True)
            self._died_under(ticket)
        except DecodeFailed as error:
            self._metrics.observe_decode(failed=True)
            self._finish()
            self._tell_unless_abandoned(ticket, Failed(utterance, error.code, error.message))
        else:
            self._metrics.observe_decode(failed=False)
            self._finish(hypothesis.decode_s)
            self._metrics.finals += not ticket.abandoned
            self._tell_unless_abandoned(ticket, Decoded(utterance, hypothesis, ticket.waited_s))

    def _died_under(self, ticket: Ticket) -> None:
        """Replay it once, silently, if its deadline allows; a second death makes it poison."""
        now = self._loop.time()
        ticket.utterance = replace(ticket.utterance, deaths=ticket.utterance.deaths + 1)
        if ticket.abandoned:
            self._finish()
        elif ticket.utterance.deaths >= MAX_DEATHS:
            self._finish()
            message = f"the recognizer died {MAX_DEATHS} times under this utterance"
            self._tell(Failed(ticket.utterance, "poison_audio", message))
        elif not self.queue.may_replay(now) or self.queue.worker_state is ServiceState.UNAVAILABLE:
            self._give_up(now)
        elif self._ready.is_set():
            self.queue.replay(now)
            self._work.set()
        else:
            self._awaits_worker = True
            self._arm()

    def _give_up(self, now: float) -> None:
        """The worker died under the ticket in flight, and will not be back in time."""
        ticket = self.queue.in_flight
        assert ticket is not None
        self._finish()
        self._unfinished(ticket, RefusalReason.WORKER_CRASHED, now)

    def _finish(self, decode_s: float | None = None) -> None:
        self._awaits_worker = False
        self.queue.finish(decode_s)

    # ------------------------------------------------------------ time

    def _pump(self, now: float) -> None:
        """The next ticket goes in flight as soon as there is one and nothing hinders it."""
        if self._ready.is_set() and self.queue.in_flight is None:
            self._expire(now)
            if (ticket := self.queue.take(now)) is not None:
                self._metrics.observe_wait(ticket.waited_s)
                self._work.set()
        self._arm()

    def _expire(self, now: float) -> None:
        for ticket in self.queue.expire(now):
            self._metrics.observe_wait(now - ticket.accepted_at)
            self._unfinished(ticket, RefusalReason.DEADLINE, now)
        for utterance in self._holds.expire(now):
            self._tell(Released(utterance, "hold_expired"))
        if self._awaits_worker and self.queue.in_flight and self.queue.in_flight.deadline <= now:
            self._give_up(now)

    def _arm(self) -> None:
        """Set the timer to the next moment at which something is to be told."""
        if self._timer is not None:
            self._timer.cancel()
        deadlines = [self.queue.next_deadline(), self._holds.next_deadline()]
        if self._awaits_worker and self.queue.in_flight:
            deadlines.append(self.queue.in_flight.deadline)
        next_deadline = min((deadline for deadline in deadlines if deadline is not None), default=None)
        self._timer = None if next_deadline is None else self._loop.call_at(next_deadline, self._on_timer)

    def _on_timer(self) -> None:
        now = self._loop.time()
        self._expire(now)
        self._pump(now)

    # ------------------------------------------------------------ telling

    def _unfinished(self, ticket: Ticket, reason: RefusalReason, now: float) -> None:
        self._metrics.retries += 1
        shed = self.queue.shed(reason, now=now)
        self._tell(Unfinished(ticket.utterance, shed, now - ticket.accepted_at))

    def _tell_unless_abandoned(self, ticket: Ticket, outcome: Outcome) -> None:
        if not ticket.abandoned:
            self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        """In the loop's next turn: the session may be inside a call of the desk."""
        if (subscriber := self._subscribers.get(outcome.utterance.session)) is not None:
            self._loop.call_soon(subscriber.outcome, outcome)

    def _broadcast(self) -> None:
        for subscriber in self._subscribers.values():
            self._loop.call_soon(subscriber.state, self.queue.state)
