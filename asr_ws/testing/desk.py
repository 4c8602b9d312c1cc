"""The server's single consumer in virtual time: sessions are tested against it without a worker, a socket or a clock.

It is `asr_ws.server.dispatcher.Dispatcher` with the same `AdmissionQueue` and `Holds`, and a worker whose decodes end
as a script says. As there, calls are answered at once, outcomes are told only outside of them, a ticket whose deadline
has passed is never decoded, and a worker's death replays the utterance in flight once.

What is unrealistic:

- Nothing takes time but decodes and reloads; timers fire a microsecond late, always.
- The worker comes back after exactly ``reload_s``. It becomes `unavailable` only where a test says so.
- Every decode is expected to take ``estimate_s``, whatever the last ones took.
- All outcomes that are due are told before anything else is received; on a real loop a message may come between.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from asr_ws import messages
from asr_ws.core.admission import AdmissionQueue, Ticket
from asr_ws.core.holds import Holds
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.session import Session
from asr_ws.core.types import (
    Decoded,
    Failed,
    Hypothesis,
    Outcome,
    RefusalReason,
    Released,
    Segment,
    ServiceState,
    SessionId,
    Shed,
    Unfinished,
    Utterance,
)
from asr_ws.errors import DecodeFailed, WorkerDied

MAX_DEATHS = 2  # as in the dispatcher, which a double cannot import
TIMER_LATENCY_S = 1e-6  # a real timer never fires before its moment


@dataclass(frozen=True, slots=True)
class Step:
    """How one decode goes: it takes ``decode_s``, then ends so; None: a hypothesis with the utterance's id as text."""

    decode_s: float = 0.5
    ends: Hypothesis | DecodeFailed | WorkerDied | None = None


@dataclass(slots=True)
class Decoding:
    """One decode that the worker began, for assertions afterwards; ``ended_at`` is inf while it lasts."""

    utterance: Utterance
    deadline: float
    began_at: float
    ended_at: float = math.inf


@dataclass(frozen=True, slots=True)
class _Subscriber:
    outcome: Callable[[Outcome], None]
    state: Callable[[ServiceState], None]


class _ConstantServiceTime(ServiceTime):
    def observe(self, audio_s: float, decode_s: float) -> None:
        """What was expected stays expected."""


class ScriptedDesk:
    """A `Desk` for sessions; time passes in `advance` alone.

    Args:
        script: how the decodes go, one step each, replays included; ``Step()`` when it is exhausted.
        state: the worker's at first; ``load_s`` is what its load is then said to take.
        uniform: the jitter of the retry hints; none by default.
    Attributes:
        now: monotonic seconds; pass it to the sessions.
        decodings: every decode so far, in order.
        max_depth: the most that ever waited.
    """

    def __init__(
        self,
        capacity: int = 3,
        script: Iterable[Step] = (),
        *,
        state: ServiceState = ServiceState.READY,
        load_s: float = 0.0,
        reload_s: float = 1.0,
        estimate_s: float = 0.5,
        holds: Holds | None = None,
        uniform: Callable[[float, float], float] = lambda low, high: low,
    ) -> None:
        self.now = 1000.0
        self.decodings: list[Decoding] = []
        self.max_depth = 0
        self.queue = AdmissionQueue(capacity, _ConstantServiceTime(estimate_s), uniform)
        self._holds = holds or Holds()
        self._script = iter(script)
        self._reload_s = reload_s
        self._subscribers: dict[SessionId, _Subscriber] = {}
        self._untold: deque[Callable[[], None]] = deque()
        self._step = Step()
        self._step_ends_at = math.inf  # finite while the worker decodes
        self._reloaded_at = math.inf
        self._awaits_worker = False  # the ticket in flight is to be decoded again
        self._ready = False
        self.worker_changed(state, load_s=load_s)

    # ------------------------------------------------------------ the desk

    def attach(
        self, session: SessionId, outcome: Callable[[Outcome], None], state: Callable[[ServiceState], None]
    ) -> None:
        self._subscribers[session] = _Subscriber(outcome, state)

    def detach(self, session: SessionId) -> None:
        del self._subscribers[session]

    def offer(self, utterance: Utterance, *, now: float, max_wait_s: float) -> Ticket | Shed:
        assert now == self.now
        self._expire()
        answer = self.queue.offer(utterance, now=now, max_wait_s=max_wait_s)
        self._pump()
        self.max_depth = max(self.max_depth, self.queue.depth)
        return answer

    def shed(self, reason: RefusalReason, *, now: float) -> Shed:
        assert now == self.now
        return self.queue.shed(reason, now=now)

    def hold(self, utterance: Utterance, *, until: float) -> None:
        for evicted in self._holds.put(utterance, until=until):
            self._tell(Released(evicted, "evicted"))

    def shorten_hold(self, session: SessionId, utterance: str, *, until: float) -> None:
        self._holds.shorten(session, utterance, until=until)

    def reclaim(self, session: SessionId, utterance: str) -> Utterance | None:
        return self._holds.remove(session, utterance)

    def withdraw(self, session: SessionId, utterance: str | None = None) -> None:
        self.queue.withdraw(session, utterance)
        self._holds.withdraw(session, utterance)
        if self._awaits_worker and self.queue.in_flight is not None and self.queue.in_flight.abandoned:
            self._finish()
        self._pump()

    # ------------------------------------------------------------ what a test makes happen

    @property
    def idle(self) -> bool:
        """Whether nothing is decoded now."""
        return self._step_ends_at == math.inf

    def advance(self, seconds: float = 0.0) -> None:
        """Let time pass; everything that comes due is told at its own moment, and what is due now at once."""
        end = self.now + seconds
        self._deliver()
        while (due := self._next_moment()) <= end:
            self.now = max(self.now, due)
            if self._step_ends_at <= self.now:
                self._end_step()
            elif self._reloaded_at <= self.now:
                self.worker_changed(ServiceState.READY)
            else:
                self._expire()
                self._pump()
            self._deliver()
        self.now = max(self.now, end)

    def kill(self) -> None:
        """The worker dies now, decoding or not, and reloads."""
        decoded = self._step_ends_at < math.inf
        self.worker_changed(ServiceState.RESTARTING, load_s=self._reload_s)
        self._reloaded_at = self.now + self._reload_s
        if decoded:
            self._stop_step()
            self._died()

    def worker_changed(self, state: ServiceState, *, load_s: float = 0.0) -> None:
        """As the supervisor would say it; a death goes by `kill`."""
        before = self.queue.state
        self._ready = state is ServiceState.READY
        self._reloaded_at = math.inf
        self.queue.worker_changed(state, now=self.now, load_s=load_s)
        if self._awaits_worker and self._ready:
            self._awaits_worker = False
            self.queue.replay(self.now)
            self._begin()
        elif self._awaits_worker and state is ServiceState.UNAVAILABLE:
            self._give_up()
        self._pump()
        if self.queue.state is not before:
            self._broadcast()

    def drain(self) -> None:
        """Admit nothing more; the sessions learn of it in the next `advance`."""
        self.queue.draining = True
        self._broadcast()

    # ------------------------------------------------------------ the worker

    def _begin(self) -> None:
        ticket = self.queue.in_flight
        assert ticket is not None
        assert self._step_ends_at == math.inf, "two decodes at once"
        self._step = next(self._script, Step())
        self._step_ends_at = self.now + self._step.decode_s
        self.decodings.append(Decoding(ticket.utterance, ticket.deadline, self.now))

    def _stop_step(self) -> Ticket:
        assert self.queue.in_flight is not None
        self._step_ends_at = math.inf
        self.decodings[-1].ended_at = self.now
        return self.queue.in_flight

    def _end_step(self) -> None:
        step = self._step
        if isinstance(step.ends, WorkerDied):
            self.kill()
            return
        ticket = self._stop_step()
        utterance = ticket.utterance
        if isinstance(step.ends, DecodeFailed):
            self._finish()
            outcome: Outcome = Failed(utterance, step.ends.code, step.ends.message)
        else:
            self._finish(step.decode_s)
            outcome = Decoded(utterance, step.ends or says(utterance, utterance.id, step.decode_s), ticket.waited_s)
        if not ticket.abandoned:
            self._tell(outcome)
        self._pump()

    def _died(self) -> None:
        ticket = self.queue.in_flight
        assert ticket is not None
        ticket.utterance = replace(ticket.utterance, deaths=ticket.utterance.deaths + 1)
        if ticket.abandoned:
            self._finish()
        elif ticket.utterance.deaths >= MAX_DEATHS:
            self._finish()
            self._tell(Failed(ticket.utterance, "poison_audio", "the recognizer died 2 times under this utterance"))
        elif self.queue.may_replay(self.now):
            self._awaits_worker = True
        else:
            self._give_up()

    def _give_up(self) -> None:
        ticket = self.queue.in_flight
        assert ticket is not None
        self._finish()
        self._tell_unfinished(ticket, RefusalReason.WORKER_CRASHED)

    def _finish(self, decode_s: float | None = None) -> None:
        self._awaits_worker = False
        self.queue.finish(decode_s)

    # ------------------------------------------------------------ time

    def _pump(self) -> None:
        if self._ready and self.queue.in_flight is None and self.queue.take(self.now) is not None:
            self._begin()

    def _expire(self) -> None:
        for ticket in self.queue.expire(self.now):
            self._tell_unfinished(ticket, RefusalReason.DEADLINE)
        for utterance in self._holds.expire(self.now):
            self._tell(Released(utterance, "hold_expired"))
        if self._awaits_worker and self.queue.in_flight is not None and self.queue.in_flight.deadline < self.now:
            self._give_up()

    def _next_moment(self) -> float:
        timers = [self.queue.next_deadline(), self._holds.next_deadline()]
        if self._awaits_worker and self.queue.in_flight is not None:
            timers.append(self.queue.in_flight.deadline)
        next_timer = min((timer for timer in timers if timer is not None), default=math.inf)
        return min(self._step_ends_at, self._reloaded_at, next_timer + TIMER_LATENCY_S)

    # ------------------------------------------------------------ telling

    def _tell_unfinished(self, ticket: Ticket, reason: RefusalReason) -> None:
        shed = self.queue.shed(reason, now=self.now)
        self._tell(Unfinished(ticket.utterance, shed, self.now - ticket.accepted_at))

    def _tell(self, outcome: Outcome) -> None:
        if (subscriber := self._subscribers.get(outcome.utterance.session)) is not None:
            self._untold.append(partial(subscriber.outcome, outcome))

    def _broadcast(self) -> None:
        state = self.queue.state
        for subscriber in self._subscribers.values():
            self._untold.append(partial(subscriber.state, state))

    def _deliver(self) -> None:
        while self._untold:
            self._untold.popleft()()


def says(utterance: Utterance, text: str, decode_s: float) -> Hypothesis:
    """A hypothesis of one segment, as long as the utterance."""
    segment = Segment(text, 0.0, utterance.audio_s, avg_logprob=-0.25, no_speech_prob=0.0625, compression_ratio=1.0)
    return Hypothesis(text, utterance.options.language or "en", 1.0, (segment,), None, decode_s)


class DeskClient:
    """A client of one session at the desk, and everything that it was told, in order."""

    def __init__(self, desk: ScriptedDesk, session: Session) -> None:
        self.session = session
        self.events: list[messages.ServerEvent] = []
        self._desk = desk
        self._n_taken = 0
        desk.attach(session.id, self._receive_outcome, self._receive_state)
        self.events += session.receive_open(desk.queue.state)

    def send(self, message: messages.ClientMessage | str | bytes) -> None:
        """A message, its literal JSON, or audio."""
        now = self._desk.now
        if isinstance(message, bytes):
            self.events += self.session.receive_audio(message, now=now)
        else:
            text = message if isinstance(message, str) else messages.encode(message)
            self.events += self.session.receive_text(text, now=now)

    def disconnect(self) -> None:
        self._desk.detach(self.session.id)
        self.session.receive_disconnect()

    def take(self) -> list[messages.ServerEvent]:
        """The events since the last call."""
        taken = self.events[self._n_taken :]
        self._n_taken = len(self.events)
        return taken

    def _receive_outcome(self, outcome: Outcome) -> None:
        self.events += self.session.receive_outcome(outcome, now=self._desk.now)

    def _receive_state(self, state: ServiceState) -> None:
        self.events += self.session.receive_state(state, now=self._desk.now)
