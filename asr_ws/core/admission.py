"""Admission: the one bounded queue in front of the model, and who gets in.

Rules, all here:

- At most ``capacity`` utterances wait; one more may be in flight. A refusal costs nothing and is told at once.
- FIFO by the moment of acceptance. Each ticket has an absolute deadline; an expired ticket is never taken.
- ``retry_after`` = time until a slot frees, clamped to 0.5-1.0 s, plus up to 0.5 s of jitter: inside 0.5-1.5 s and
  spread. (Jitter before the clamp would pile the herd up on its edges.)
- While the worker loads, the expected rest of its load time counts as waiting.

The queue never calls anybody: expired tickets are collected by `expire`, whose caller sets a timer by
`next_deadline`. ``now`` is monotonic seconds throughout.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from asr_ws.core.service_time import ServiceTime
from asr_ws.core.types import RefusalReason, ServiceState, SessionId, Shed, Utterance

MIN_HINT_S, MAX_HINT_S, HINT_SPREAD_S = 0.5, 1.0, 0.5
LEAST_LEFT_S = 0.001  # the wire's grain: what is not over yet must not round to a wait of 0

_CLOSED = {  # worker states in which nothing is admitted; a restart is short, so the queue stays open through it
    ServiceState.STARTING: RefusalReason.STARTING,
    ServiceState.UNAVAILABLE: RefusalReason.UNAVAILABLE,
}


@dataclass(slots=True, eq=False)
class Ticket:
    """One admitted attempt."""

    utterance: Utterance
    accepted_at: float
    deadline: float
    position: int  # decodes ahead of it when it was accepted, the running one included
    estimated_wait_s: float
    estimated_final_s: float
    first_taken_at: float | None = None
    decode_began_at: float | None = None
    abandoned: bool = False  # nobody wants the result any more

    def expired(self, now: float) -> bool:
        """From its deadline on; but never at the moment of its acceptance: a wait of 0 means now or not at all."""
        return now >= self.deadline and now > self.accepted_at

    @property
    def waited_s(self) -> float:
        """In the queue; only once it has been taken."""
        assert self.first_taken_at is not None
        return self.first_taken_at - self.accepted_at


def overrun(expected_s: float, elapsed_s: float) -> float:
    """What is probably left of something that was expected to take ``expected_s``.

    Once it overruns, as long again as it is late: never 0 while it lasts.
    """
    return max(abs(expected_s - elapsed_s), LEAST_LEFT_S)


class AdmissionQueue:
    """Args: uniform: ``uniform(a, b)``, the source of jitter."""

    def __init__(
        self,
        capacity: int,
        service_time: ServiceTime,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.capacity = capacity
        self.draining = False  # for good: nothing new is admitted, what is admitted is finished
        self.in_flight: Ticket | None = None
        self.worker_state = ServiceState.STARTING
        self._service_time = service_time
        self._uniform = uniform
        self._waiting: list[Ticket] = []
        self._load_began, self._load_s = 0.0, 0.0

    @property
    def state(self) -> ServiceState:
        """The service's, as clients are told it."""
        return ServiceState.DRAINING if self.draining else self.worker_state

    @property
    def depth(self) -> int:
        """How many wait, without the one in flight."""
        return len(self._waiting)

    def worker_changed(self, state: ServiceState, *, now: float, load_s: float = 0.0) -> None:
        """The worker's state; ``load_s`` is what a load that begins now is expected to take."""
        self.worker_state = state
        self._load_began, self._load_s = now, load_s

    def offer(self, utterance: Utterance, *, now: float, max_wait_s: float) -> Ticket | Shed:
        """Admit or refuse, at once."""
        wait_s = self.predicted_wait(now)
        if (reason := self._refusal(wait_s, max_wait_s)) is not None:
            return self.shed(reason, now=now)
        ticket = Ticket(
            utterance,
            accepted_at=now,
            deadline=now + max_wait_s,
            position=self.depth + (self.in_flight is not None),
            estimated_wait_s=wait_s,
            estimated_final_s=wait_s + self._service_time.estimate(utterance.audio_s),
        )
        self._waiting.append(ticket)
        return ticket

    def _refusal(self, wait_s: float, max_wait_s: float) -> RefusalReason | None:
        """The admission rules in order. Sigma and fair share belong here too."""
        if self.draining:
            return RefusalReason.DRAINING
        if self.worker_state in _CLOSED:
            return _CLOSED[self.worker_state]
        restarting = self.worker_state is ServiceState.RESTARTING
        if self.depth >= self.capacity:
            return RefusalReason.RESTARTING if restarting else RefusalReason.QUEUE_FULL
        if wait_s > max_wait_s:
            return RefusalReason.RESTARTING if restarting else RefusalReason.PREDICTED_WAIT
        return None

    def shed(self, reason: RefusalReason, *, now: float) -> Shed:
        """A refusal for ``reason``, with the hint and the numbers of this moment."""
        frees_in_s = self._load_left(now) + self._in_flight_left(now)
        hint_s = min(max(frees_in_s, MIN_HINT_S), MAX_HINT_S) + self._uniform(0.0, HINT_SPREAD_S)
        return Shed(reason, hint_s, self.predicted_wait(now), self.depth, self.capacity)

    def take(self, now: float) -> Ticket | None:
        """The oldest ticket whose deadline has not passed goes in flight; None when there is none."""
        assert self.in_flight is None, "strictly one decode at a time"
        ticket = next((ticket for ticket in self._waiting if not ticket.expired(now)), None)
        if ticket is not None:
            self._waiting.remove(ticket)
            ticket.first_taken_at = ticket.decode_began_at = now
            self.in_flight = ticket
        return ticket

    def may_replay(self, now: float) -> bool:
        """Whether the in-flight ticket's deadline leaves time for the worker to load and decode it again."""
        assert self.in_flight is not None
        decode_s = self._service_time.estimate(self.in_flight.utterance.audio_s)
        return now + self._load_left(now) + decode_s <= self.in_flight.deadline

    def replay(self, now: float) -> None:
        """The in-flight ticket is decoded again from its beginning."""
        assert self.in_flight is not None
        self.in_flight.decode_began_at = now

    def finish(self, decode_s: float | None = None) -> None:
        """Nothing is in flight any more; ``decode_s`` where a decode completed."""
        assert self.in_flight is not None
        if decode_s is not None:
            self._service_time.observe(self.in_flight.utterance.audio_s, decode_s)
        self.in_flight = None

    def expire(self, now: float) -> list[Ticket]:
        """Remove and return the waiting tickets whose deadline has come, oldest first."""
        expired = [ticket for ticket in self._waiting if ticket.expired(now)]
        self._waiting = [ticket for ticket in self._waiting if not ticket.expired(now)]
        return expired

    def next_deadline(self) -> float | None:
        return min((ticket.deadline for ticket in self._waiting), default=None)

    def withdraw(self, session: SessionId, utterance: str | None = None) -> None:
        """Remove what waits of a session, or one utterance of it; what is in flight is marked abandoned."""

        def wanted(ticket: Ticket) -> bool:
            return ticket.utterance.session == session and utterance in (None, ticket.utterance.id)

        self._waiting = [ticket for ticket in self._waiting if not wanted(ticket)]
        if self.in_flight is not None and wanted(self.in_flight):
            self.in_flight.abandoned = True

    def predicted_wait(self, now: float) -> float:
        """Seconds that an utterance offered now would wait; 0 when it would go to the worker at once."""
        ahead_s = sum(self._service_time.estimate(ticket.utterance.audio_s) for ticket in self._waiting)
        return self._load_left(now) + self._in_flight_left(now) + ahead_s

    def _load_left(self, now: float) -> float:
        return 0.0 if self.worker_state is ServiceState.READY else overrun(self._load_s, now - self._load_began)

    def _in_flight_left(self, now: float) -> float:
        if self.in_flight is None:
            return 0.0
        expected_s = self._service_time.estimate(self.in_flight.utterance.audio_s)
        if self.worker_state is not ServiceState.READY:  # it will be decoded from its beginning
            return expected_s
        assert self.in_flight.decode_began_at is not None
        return overrun(expected_s, now - self.in_flight.decode_began_at)
