"""The desk: what becomes of every utterance of every session, from its offer to its outcome, and whose turn it is.

Rules, beside those of `AdmissionQueue`, `Holds` and `Drafts`:

- One ticket at most is in flight. It is taken as soon as the worker is ready and nothing else is in flight, and then
  waits for `begin`, by which the caller's decode begins. The worker may die in between: that is no death of the
  ticket's, it waits for the worker.
- A ticket in flight that waits for the worker is given up at its deadline, or once the worker is unavailable.
- A death under a decode: the ticket is decoded once more, silently, if its deadline allows; the second, in whatever
  attempt, makes the utterance poison. Under which the worker hung is not decoded again by itself: whoever waits has
  waited longer than anybody should.
- What nobody wants any more is told nobody.
- A draft is decoded only while the worker is ready and no ticket waits or is in flight, of the background neither.
- A background ticket has no privilege and no handicap once it is in flight: a live one that comes then waits for it.
- An utterance that a speculation heard exactly is admitted past the queue, full or not, and needs no other decode.
- A death under a draft's decode counts as its utterance's, wherever that has come meanwhile.

The desk never calls anybody: outcomes and changes of the service's status are collected by `take_news`, in order. The
caller sets a timer by `next_deadline`, at which it calls `tick`. ``now`` is monotonic seconds throughout.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from asr_ws.core.admission import AdmissionQueue, Aside, Ticket, overrun
from asr_ws.core.drafts import Draft, DraftDecode, Drafts
from asr_ws.core.holds import Holds
from asr_ws.core.types import (
    Decoded,
    DecodeOptions,
    DropReason,
    Failed,
    Hypothesis,
    News,
    Outcome,
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
from asr_ws.errors import DecodeFailed, WorkerDied, WorkerHung

MAX_DEATHS = 2  # worker deaths under one utterance, after which it is poison


@dataclass(frozen=True, slots=True)
class Work:
    """What the worker is to decode now."""

    samples: Samples
    options: DecodeOptions
    expected_s: float
    of: Ticket | DraftDecode


class Desk:
    def __init__(self, queue: AdmissionQueue, holds: Holds, drafts: Drafts) -> None:
        self.queue = queue
        self.drafts = drafts
        self._holds = holds
        self._decoding: Ticket | DraftDecode | None = None  # handed out by `begin`
        self._news: list[News] = []
        self.status = ServiceStatus(queue.state, drafts.partials)  # as it was told last
        self._ticked_at = -math.inf
        self._free_at = -math.inf  # when the worker could have decoded a draft, the last time
        self._died_unfinished: tuple[SessionId, str] | None = None  # under its draft, while its outcome was on its way

    # ------------------------------------------------------------ for sessions: `asr_ws.core.session.Desk`

    def offer(self, utterance: Utterance, *, now: float, max_wait_s: float) -> Ticket | Shed:
        self.tick(now)
        if self.queue.draining:
            self.drafts.forget(utterance.session, utterance.id)
        if (speculation := self.drafts.claim(utterance)) is not None:
            return self._promote(speculation, utterance, now, max_wait_s)
        answer = self.queue.offer(utterance, now=now, max_wait_s=max_wait_s)
        self.tick(now)
        return answer

    def offer_background(
        self, utterance: Utterance, *, now: float, max_wait_s: float, is_slice: bool = True
    ) -> Ticket | Shed:
        """As `AdmissionQueue` does. `Unfinished` carries the deaths under it, and is what to offer again."""
        self.tick(now)
        answer = self.queue.offer_background(utterance, now=now, max_wait_s=max_wait_s, is_slice=is_slice)
        self.tick(now)
        return answer

    def would_refuse(
        self, session: SessionId, *, now: float, max_wait_s: float, expected: Collection[SessionId] = ()
    ) -> Shed | None:
        self.tick(now)
        return self.queue.would_refuse(session, now=now, max_wait_s=max_wait_s, expected=expected)

    def _promote(self, speculation: DraftDecode, utterance: Utterance, now: float, max_wait_s: float) -> Ticket:
        """The utterance is decoded, or is being: its wait is over."""
        running = speculation is self._decoding
        left_s = overrun(speculation.expected_s, now - speculation.began_at) if running else 0.0
        ticket = Ticket(
            utterance,
            accepted_at=now,
            deadline=now + max_wait_s,
            position=0,
            estimated_wait_s=0.0,
            estimated_final_s=left_s,
            first_taken_at=now,
            decode_began_at=speculation.began_at,
            speculated=True,
        )
        if running:
            self._decoding = self.queue.in_flight = ticket
            self.queue.aside = None
        else:
            assert speculation.hypothesis is not None
            self._tell(ticket, Decoded(utterance, speculation.hypothesis, 0.0, speculated=True))
        return ticket

    def hear(self, draft: Draft, *, now: float) -> float | None:
        """At every frame of audio, so it costs little.

        Returns: When to look whether something begins or is to be told, ``now`` included; None: no need to.
        """
        begins_at = self.drafts.hear(draft, now=now)
        return begins_at if self._idle else self._pause_at(draft.session)

    def deaths_while_heard(self, session: SessionId, utterance: str) -> int:
        return self.drafts.deaths(session, utterance)

    def shed(self, reason: RefusalReason, *, now: float) -> Shed:
        return self.queue.shed(reason, now=now)

    def hold(self, utterance: Utterance, *, until: float) -> None:
        if (utterance.session, utterance.id) == self._died_unfinished:
            self._died_unfinished = None
            utterance = replace(utterance, deaths=utterance.deaths + 1)
        self._news += [Released(evicted, DropReason.EVICTED) for evicted in self._holds.put(utterance, until=until)]

    def shorten_hold(self, session: SessionId, utterance: str, *, until: float) -> None:
        self._holds.shorten(session, utterance, until=until)

    def reclaim(self, session: SessionId, utterance: str) -> Utterance | None:
        return self._holds.remove(session, utterance)

    def withdraw(self, session: SessionId, utterance: str | None = None) -> None:
        """The next `tick` lets another have the place of what was in flight but is not decoded."""
        self.queue.withdraw(session, utterance)
        self._holds.withdraw(session, utterance)
        self.drafts.forget(session, utterance)
        if self.queue.in_flight is not None and self.queue.in_flight.abandoned and self._decoding is None:
            self.queue.finish()

    # ------------------------------------------------------------ for the one that decodes

    def begin(self, now: float) -> Work | None:
        """What to decode now, until `end`; None: nothing, or it is being decoded, or no worker.

        A timer may come a little early by the caller's clock: ``now`` is no earlier than the last `tick`'s.
        """
        now = max(now, self._ticked_at)
        if self._decoding is not None or self.queue.worker_state is not ServiceState.READY:
            return None
        if (ticket := self.queue.in_flight) is not None:
            self._decoding = ticket
            self.queue.replay(now)
            expected_s = self.queue.expected_decode(ticket.utterance)
            return Work(ticket.utterance.samples, ticket.utterance.options, expected_s, ticket)
        if self._idle and (decode := self.drafts.begin(now)) is not None:
            work = Work(decode.draft.copy(), decode.options, decode.expected_s, decode)
            self._decoding = decode
            self.queue.aside = Aside(decode.expected_s, now)
            self._tell_status(now)
            return work
        return None

    def end(self, result: Hypothesis | DecodeFailed | WorkerDied, *, now: float) -> None:
        """How the decode that `begin` handed out went. The worker's new state is received before its death."""
        ended, self._decoding = self._decoding, None
        assert ended is not None
        if isinstance(ended, DraftDecode):
            self.queue.aside = None
            self._end_draft(ended, result, now)
        else:
            self._end_ticket(ended, result, now)
        self.tick(now)

    def _end_ticket(self, ticket: Ticket, result: Hypothesis | DecodeFailed | WorkerDied, now: float) -> None:
        match result:
            case Hypothesis():
                assert ticket.decode_began_at is not None
                self.queue.finish(now - ticket.decode_began_at)
                decoded = Decoded(
                    ticket.utterance,
                    result,
                    ticket.waited_s,
                    speculated=ticket.speculated,
                    is_slice=ticket.is_slice,
                )
                self._tell(ticket, decoded)
            case DecodeFailed():
                self.drafts.n_wasted += ticket.speculated
                self.queue.finish()
                self._tell(ticket, Failed(ticket.utterance, result.code, result.message))
            case WorkerDied():
                self._died_under(ticket, result, now)

    def _end_draft(self, decode: DraftDecode, result: Hypothesis | DecodeFailed | WorkerDied, now: float) -> None:
        if isinstance(result, Hypothesis):
            if (partial := self.drafts.end(decode, result, now=now)) is not None:
                self._news.append(partial)
            return
        died = isinstance(result, WorkerDied)
        still_heard = self.drafts.fail(decode, died=died, now=now)
        if died and not still_heard:
            session, utterance = decode.draft.session, decode.draft.id
            counted = self.queue.count_death(session, utterance) or self._holds.count_death(session, utterance)
            self._died_unfinished = None if counted else (session, utterance)

    def _died_under(self, ticket: Ticket, death: WorkerDied, now: float) -> None:
        ticket.utterance = replace(ticket.utterance, deaths=ticket.utterance.deaths + 1)
        self.drafts.n_wasted += ticket.speculated
        ticket.speculated = False
        if ticket.utterance.deaths >= MAX_DEATHS:
            self.queue.finish()
            message = f"the recognizer died {MAX_DEATHS} times under this utterance"
            self._tell(ticket, Failed(ticket.utterance, "poison_audio", message))
        elif (
            isinstance(death, WorkerHung)
            or ticket.abandoned
            or self.queue.worker_state is ServiceState.UNAVAILABLE
            or not self.queue.may_replay(now)
        ):
            self._hand_back(now, RefusalReason(death.code))
        # Otherwise it stays in flight, and `begin` hands it out again.

    def receive_worker_state(self, state: ServiceState, *, now: float, load_s: float = 0.0) -> None:
        """``load_s``: until READY, as is to be expected."""
        self.tick(now)  # what is due by now is not saved by a worker that comes now
        self.queue.worker_changed(state, now=now, load_s=load_s)
        if state is ServiceState.UNAVAILABLE and self._stranded is not None:
            self._hand_back(now)
        self.tick(now)

    def drain(self) -> None:
        """Admit nothing more; what is admitted is finished."""
        self.queue.draining = True
        self._tell_status(self._ticked_at)

    def give_up(self) -> None:
        """Finish nothing any more; the result of a decode that runs is not wanted."""
        waiting = self.queue.expire(math.inf)
        if (ticket := self.queue.in_flight) is not None:
            self._tell(ticket, Released(ticket.utterance, DropReason.NOT_HELD))
            ticket.abandoned = True
            if self._decoding is None:
                self.queue.finish()
        for ticket in waiting:
            self._tell(ticket, Released(ticket.utterance, DropReason.NOT_HELD))

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        """What is due is told, and the next ticket goes in flight if nothing hinders it."""
        self._ticked_at = now
        for ticket in self.queue.expire(now):
            self._tell_unfinished(ticket, RefusalReason.DEADLINE, now)
        self._news += [Released(utterance, DropReason.HOLD_EXPIRED) for utterance in self._holds.expire(now)]
        if self._stranded is not None and self._stranded.expired(now):
            self._hand_back(now)
        if self.queue.worker_state is ServiceState.READY and self.queue.in_flight is None and self._decoding is None:
            self.queue.take(now)
        if self._idle or self.queue.worker_state is not ServiceState.READY:  # a restart is no load
            self._free_at = now
        self._tell_status(now)

    def next_deadline(self) -> float | None:
        """The next moment after the last `tick` at which something is to be told, or may begin."""
        moments = (
            self.queue.next_deadline(),
            self._holds.next_deadline(),
            None if self._stranded is None else self._stranded.deadline,
            self._pause_at(),
            self.drafts.next_moment(self._ticked_at) if self._idle else None,
        )
        return min((moment for moment in moments if moment is not None and moment < math.inf), default=None)

    def take_news(self) -> list[News]:
        """What is to be told since the last call: outcomes and partials to their sessions, the status to all."""
        news, self._news = self._news, []
        return news

    @property
    def _idle(self) -> bool:
        """Whether the worker has nothing to do but drafts. Nothing is in flight then, so nothing waits."""
        return self.queue.state is ServiceState.READY and self._decoding is None and self.queue.in_flight is None

    @property
    def _stranded(self) -> Ticket | None:
        """The ticket in flight, if it waits for the worker."""
        waits = self._decoding is None and self.queue.worker_state is not ServiceState.READY
        return self.queue.in_flight if waits else None

    def _hand_back(self, now: float, reason: RefusalReason = RefusalReason.WORKER_CRASHED) -> None:
        """The worker ended before the ticket in flight was decoded, and it is not decoded again by itself."""
        ticket = self.queue.in_flight
        assert ticket is not None
        self.queue.finish()
        self._tell_unfinished(ticket, reason, now)

    def _tell_unfinished(self, ticket: Ticket, reason: RefusalReason, now: float) -> None:
        shed = self.queue.shed(reason, now=now, session=ticket.utterance.session, background=ticket.background)
        self._tell(ticket, Unfinished(ticket.utterance, shed, now - ticket.accepted_at, ticket.is_slice))

    def _tell(self, ticket: Ticket, outcome: Outcome) -> None:
        if not ticket.abandoned:
            self._news.append(outcome)

    def _pause_at(self, session: SessionId | None = None) -> float | None:
        """When it will have to be told that there are no partials, as things are, because of that session or of any."""
        busy = self._decoding is not None and not isinstance(self._decoding, DraftDecode)
        return self.drafts.paused_from(self._free_at, session) if busy and self.status.partials else None

    def _tell_status(self, now: float) -> None:
        if self._idle or isinstance(self._decoding, DraftDecode):
            partials = True
        else:
            pause = self._pause_at()
            partials = self.status.partials and (pause is None or now < pause)
        status = ServiceStatus(self.queue.state, partials and self.drafts.partials and not self.queue.draining)
        if status != self.status:
            self.status = status
            self._news.append(status)
