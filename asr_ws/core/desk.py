"""The desk: what becomes of every utterance of every session, from its offer to its outcome, and whose turn it is.

Rules, beside those of `AdmissionQueue` and `Holds`:

- One ticket at most is in flight. It is taken as soon as the worker is ready and nothing else is in flight, and then
  waits for `begin`, by which the caller's decode begins. The worker may die in between: that is no death of the
  ticket's, it waits for the worker.
- A ticket in flight that waits for the worker is given up at its deadline, or once the worker is unavailable.
- A death under a decode: the ticket is decoded once more, silently, if its deadline allows; the second, in whatever
  attempt, makes the utterance poison.
- What nobody wants any more is told nobody.

The desk never calls anybody: outcomes and changes of the service's state are collected by `take_news`, in order. The
caller sets a timer by `next_deadline`, at which it calls `tick`. ``now`` is monotonic seconds throughout.
"""

from __future__ import annotations

import math
from dataclasses import replace

from asr_ws.core.admission import AdmissionQueue, Ticket
from asr_ws.core.holds import Holds
from asr_ws.core.types import (
    Decoded,
    DropReason,
    Failed,
    Hypothesis,
    Outcome,
    RefusalReason,
    Released,
    ServiceState,
    SessionId,
    Shed,
    Unfinished,
    Utterance,
)
from asr_ws.errors import DecodeFailed, WorkerDied

MAX_DEATHS = 2  # worker deaths under one utterance, after which it is poison


class Desk:
    def __init__(self, queue: AdmissionQueue, holds: Holds) -> None:
        self.queue = queue
        self._holds = holds
        self._decoding = False  # the ticket in flight, if any, was handed out by `begin`
        self._news: list[Outcome | ServiceState] = []

    # ------------------------------------------------------------ for sessions: `asr_ws.core.session.Desk`

    def offer(self, utterance: Utterance, *, now: float, max_wait_s: float) -> Ticket | Shed:
        self.tick(now)
        answer = self.queue.offer(utterance, now=now, max_wait_s=max_wait_s)
        self.tick(now)
        return answer

    def shed(self, reason: RefusalReason, *, now: float) -> Shed:
        return self.queue.shed(reason, now=now)

    def hold(self, utterance: Utterance, *, until: float) -> None:
        self._news += [Released(evicted, DropReason.EVICTED) for evicted in self._holds.put(utterance, until=until)]

    def shorten_hold(self, session: SessionId, utterance: str, *, until: float) -> None:
        self._holds.shorten(session, utterance, until=until)

    def reclaim(self, session: SessionId, utterance: str) -> Utterance | None:
        return self._holds.remove(session, utterance)

    def withdraw(self, session: SessionId, utterance: str | None = None) -> None:
        """The next `tick` lets another have the place of what was in flight but is not decoded."""
        self.queue.withdraw(session, utterance)
        self._holds.withdraw(session, utterance)
        if self.queue.in_flight is not None and self.queue.in_flight.abandoned and not self._decoding:
            self.queue.finish()

    # ------------------------------------------------------------ for the one that decodes

    def begin(self, now: float) -> Ticket | None:
        """The ticket to decode now, until `end`; None: nothing is in flight, it is being decoded, or no worker."""
        ticket = self.queue.in_flight
        if ticket is None or self._decoding or self.queue.worker_state is not ServiceState.READY:
            return None
        self._decoding = True
        self.queue.replay(now)
        return ticket

    def end(self, result: Hypothesis | DecodeFailed | WorkerDied, *, now: float) -> None:
        """How the decode that `begin` handed out went. The worker's new state is received before its death."""
        ticket = self.queue.in_flight
        assert ticket is not None
        assert self._decoding
        self._decoding = False
        match result:
            case Hypothesis():
                self.queue.finish(result.decode_s)
                self._tell(ticket, Decoded(ticket.utterance, result, ticket.waited_s))
            case DecodeFailed():
                self.queue.finish()
                self._tell(ticket, Failed(ticket.utterance, result.code, result.message))
            case WorkerDied():
                self._died_under(ticket, now)
        self.tick(now)

    def _died_under(self, ticket: Ticket, now: float) -> None:
        ticket.utterance = replace(ticket.utterance, deaths=ticket.utterance.deaths + 1)
        if ticket.utterance.deaths >= MAX_DEATHS:
            self.queue.finish()
            message = f"the recognizer died {MAX_DEATHS} times under this utterance"
            self._tell(ticket, Failed(ticket.utterance, "poison_audio", message))
        elif ticket.abandoned or self.queue.worker_state is ServiceState.UNAVAILABLE or not self.queue.may_replay(now):
            self._hand_back(now)
        # Otherwise it stays in flight, and `begin` hands it out again.

    def receive_worker_state(self, state: ServiceState, *, now: float, load_s: float = 0.0) -> None:
        """``load_s``: until READY, as is to be expected."""
        before = self.queue.state
        self.tick(now)  # what is due by now is not saved by a worker that comes now
        self.queue.worker_changed(state, now=now, load_s=load_s)
        if state is ServiceState.UNAVAILABLE and self._stranded is not None:
            self._hand_back(now)
        self.tick(now)
        if self.queue.state is not before:
            self._news.append(self.queue.state)

    def drain(self) -> None:
        """Admit nothing more; what is admitted is finished."""
        if not self.queue.draining:
            self.queue.draining = True
            self._news.append(ServiceState.DRAINING)

    def give_up(self) -> None:
        """Finish nothing any more; the result of a decode that runs is not wanted."""
        waiting = self.queue.expire(math.inf)
        if (ticket := self.queue.in_flight) is not None:
            self._tell(ticket, Released(ticket.utterance, DropReason.NOT_HELD))
            ticket.abandoned = True
            if not self._decoding:
                self.queue.finish()
        for ticket in waiting:
            self._tell(ticket, Released(ticket.utterance, DropReason.NOT_HELD))

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        """What is due is told, and the next ticket goes in flight if nothing hinders it."""
        for ticket in self.queue.expire(now):
            self._tell_unfinished(ticket, RefusalReason.DEADLINE, now)
        self._news += [Released(utterance, DropReason.HOLD_EXPIRED) for utterance in self._holds.expire(now)]
        if self._stranded is not None and self._stranded.expired(now):
            self._hand_back(now)
        if self.queue.worker_state is ServiceState.READY and self.queue.in_flight is None:
            self.queue.take(now)

    def next_deadline(self) -> float | None:
        """The next moment at which something is to be told."""
        stranded = None if self._stranded is None else self._stranded.deadline
        moments = (self.queue.next_deadline(), self._holds.next_deadline(), stranded)
        return min((moment for moment in moments if moment is not None), default=None)

    def take_news(self) -> list[Outcome | ServiceState]:
        """What is to be told since the last call: outcomes to their sessions, states to all."""
        news, self._news = self._news, []
        return news

    @property
    def _stranded(self) -> Ticket | None:
        """The ticket in flight, if it waits for the worker."""
        waits = not self._decoding and self.queue.worker_state is not ServiceState.READY
        return self.queue.in_flight if waits else None

    def _hand_back(self, now: float) -> None:
        """The worker died before the ticket in flight was decoded, and will not be back in time."""
        ticket = self.queue.in_flight
        assert ticket is not None
        self.queue.finish()
        self._tell_unfinished(ticket, RefusalReason.WORKER_CRASHED, now)

    def _tell_unfinished(self, ticket: Ticket, reason: RefusalReason, now: float) -> None:
        shed = self.queue.shed(reason, now=now)
        self._tell(ticket, Unfinished(ticket.utterance, shed, now - ticket.accepted_at))

    def _tell(self, ticket: Ticket, outcome: Outcome) -> None:
        if not ticket.abandoned:
            self._news.append(outcome)
