"""The single consumer: every utterance of every session passes through here, one decode at a time.

What is decided, `asr_ws.core.desk.Desk` decides; this gives it the loop's clock, one timer, and one task that decodes.
Sessions hand in through methods that answer at once; outcomes go back through the callback that each session attached,
never from inside such a call. Nothing here waits for anything but the decode in flight.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol

from asr_ws.core.admission import AdmissionQueue, Ticket
from asr_ws.core.desk import Desk, Work
from asr_ws.core.drafts import Draft, Drafts
from asr_ws.core.holds import Holds
from asr_ws.core.types import (
    Decoded,
    DecodeOptions,
    Hypothesis,
    News,
    Outcome,
    Partial,
    RefusalReason,
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

NO_ROOM: Final = (RefusalReason.QUEUE_FULL, RefusalReason.FAIR_SHARE, RefusalReason.RESTARTING)


class Worker(Protocol):
    async def decode(self, samples: Samples, options: DecodeOptions, expected_s: float) -> Hypothesis:
        """Raises: WorkerDied, DecodeFailed."""


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A session's ears."""

    outcome: Callable[[Outcome], None]
    partial: Callable[[Partial], None]
    status: Callable[[ServiceStatus], None]


class Dispatcher:
    """Args: worker: set before `run`; decodes are asked of it only while `worker_changed` last said READY."""

    worker: Worker

    def __init__(self, queue: AdmissionQueue, holds: Holds, drafts: Drafts, metrics: Metrics) -> None:
        self.queue = queue
        self.drafts = drafts
        self.decoding: str | None = None  # what kind of work the worker has; see `Metrics.observe_decode`
        self._desk = Desk(queue, holds, drafts)
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._subscribers: dict[SessionId, Subscriber] = {}
        self._touched = asyncio.Event()  # there may be something to decode
        self._worker_changed = asyncio.Event()  # set for a moment, which wakes whoever waits
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ for sessions: `asr_ws.core.session.Desk`

    def attach(self, session: SessionId, subscriber: Subscriber) -> None:
        self._subscribers[session] = subscriber

    def detach(self, session: SessionId) -> None:
        self._subscribers.pop(session, None)

    def hear(self, draft: Draft, *, now: float) -> None:
        if (moment := self._desk.hear(draft, now=now)) is not None:
            self._wake_by(moment)

    def deaths_while_heard(self, session: SessionId, utterance: str) -> int:
        return self._desk.deaths_while_heard(session, utterance)

    def offer(self, utterance: Utterance, *, now: float, max_wait_s: float, or_behind: bool = False) -> Ticket | Shed:
        """Args: or_behind: where others have all the room, it may wait behind everything else, for as long."""
        answer = self._desk.offer(utterance, now=now, max_wait_s=max_wait_s)
        if or_behind and isinstance(answer, Shed) and answer.reason in NO_ROOM:
            answer = self._desk.offer_background(utterance, now=now, max_wait_s=max_wait_s, is_slice=False)
        return self._answered(answer)

    def offer_background(self, utterance: Utterance, *, now: float, max_wait_s: float) -> Ticket | Shed:
        return self._answered(self._desk.offer_background(utterance, now=now, max_wait_s=max_wait_s))

    def _answered(self, answer: Ticket | Shed) -> Ticket | Shed:
        if isinstance(answer, Shed):
            self._metrics.refusals[answer.reason] += 1
        self._settle()
        return answer

    def would_refuse(
        self, session: SessionId, *, now: float, max_wait_s: float, expected: Collection[SessionId] = ()
    ) -> Shed | None:
        """A refusal is counted: whoever asks before the audio is there tells it instead of offering."""
        refused = self._desk.would_refuse(session, now=now, max_wait_s=max_wait_s, expected=expected)
        if refused is not None:
            self._metrics.refusals[refused.reason] += 1
        self._settle()
        return refused

    def shed(self, reason: RefusalReason, *, now: float) -> Shed:
        self._metrics.refusals[reason] += 1
        return self._desk.shed(reason, now=now)

    def hold(self, utterance: Utterance, *, until: float) -> None:
        self._desk.hold(utterance, until=until)
        self._settle()

    def shorten_hold(self, session: SessionId, utterance: str, *, until: float) -> None:
        self._desk.shorten_hold(session, utterance, until=until)
        self._settle()

    def reclaim(self, session: SessionId, utterance: str) -> Utterance | None:
        return self._desk.reclaim(session, utterance)

    def withdraw(self, session: SessionId, utterance: str | None = None) -> None:
        self._desk.withdraw(session, utterance)
        self._settle()

    # ------------------------------------------------------------ the service

    @property
    def status(self) -> ServiceStatus:
        """As it was told last."""
        return self._desk.status

    def worker_changed(self, state: ServiceState, ready_in_s: float) -> None:
        """To be called by the worker's supervisor before anything else learns of the change."""
        self._desk.receive_worker_state(state, now=self._loop.time(), load_s=ready_in_s)
        self._worker_changed.set()
        self._worker_changed.clear()
        self._settle()

    def drain(self) -> None:
        """Admit nothing more; what is admitted is finished."""
        self._desk.drain()
        self._settle()

    def give_up(self) -> None:
        """Finish nothing any more: what is admitted is dropped, the result of a running decode is dropped."""
        self._desk.give_up()
        self._settle()

    async def wait_for(self, *states: ServiceState) -> ServiceState:
        """Until the worker is in one of these. Returns: in which."""
        while self.queue.worker_state not in states:
            await self._worker_changed.wait()
        return self.queue.worker_state

    async def wait_ready(self) -> None:
        """Until the worker can decode."""
        await self.wait_for(ServiceState.READY)

    async def wait_loaded(self) -> bool:
        """Until the worker can decode, or is unavailable. Returns: whether it can."""
        return await self.wait_for(ServiceState.READY, ServiceState.UNAVAILABLE) is ServiceState.READY

    async def run(self) -> None:
        """Decode what is to be decoded, one after the other, until cancelled."""
        while True:
            self._touched.clear()
            work = self._desk.begin(self._loop.time())
            if work is None:
                await self._touched.wait()
                continue
            self._settle()
            self.decoding = _kind(work)
            result = await self._decode(work)
            self.decoding = None
            now = self._loop.time()
            if isinstance(result, Hypothesis):
                self._metrics.observe_decode(_kind(work), result.decode_s, now=now)
            else:
                self._metrics.observe_failure(result.code, now=now)
            self._desk.end(result, now=now)
            self._settle()

    async def _decode(self, work: Work) -> Hypothesis | DecodeFailed | WorkerDied:
        try:
            return await self.worker.decode(work.samples, work.options, work.expected_s)
        except (DecodeFailed, WorkerDied) as error:
            return error

    # ------------------------------------------------------------ after every call of the desk, and by timer

    def _settle(self, due: float = -math.inf) -> None:
        """``due``: the moment that has come, by a timer which may be a little early by the loop's own clock."""
        self._desk.tick(max(self._loop.time(), math.nextafter(due, math.inf)))
        for news in self._desk.take_news():
            self._tell(news)
        self._touched.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (deadline := self._desk.next_deadline()) is not None:
            self._wake_by(deadline)

    def _wake_by(self, moment: float) -> None:
        """One timer is enough: when it comes too early, the next is set."""
        if self._timer is None or self._timer.when() > moment:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(moment, self._settle, moment)

    def _tell(self, news: News) -> None:
        """In the loop's next turn: the session may be inside a call of the desk."""
        match news:
            case ServiceStatus():
                for subscriber in self._subscribers.values():
                    self._loop.call_soon(subscriber.status, news)
                return
            case Partial():
                if (owner := self._subscribers.get(news.session)) is not None:
                    self._metrics.partials += 1
                    if news.since_onset_s is not None:
                        self._metrics.first_partial_s.observe(news.since_onset_s)
                    self._loop.call_soon(owner.partial, news)
                return
            case Decoded(is_slice=False):
                self._metrics.finals += 1
                self._metrics.finals_speculated += news.speculated
                self._metrics.observe_wait(news.wait_s, now=self._loop.time())
                if (ended_at := news.utterance.speech_ended_at) is not None:
                    self._metrics.final_latency_s.observe(self._loop.time() - ended_at)
            case Unfinished():
                self._metrics.unfinished[news.shed.reason] += 1
                if news.shed.reason is RefusalReason.DEADLINE and not news.is_slice:
                    self._metrics.observe_wait(news.waited_s, now=self._loop.time())
        if (owner := self._subscribers.get(news.utterance.session)) is not None:
            self._loop.call_soon(owner.outcome, news)


def _kind(work: Work) -> str:
    """As `Metrics.observe_decode` takes it."""
    if isinstance(work.of, Ticket) and work.of.is_slice:
        return "job"
    return "partial" if work.options.partial else "final"
