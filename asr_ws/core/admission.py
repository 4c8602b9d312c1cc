"""Admission: the one bounded queue in front of the model, and who gets in.

Rules, all here:

- At most ``capacity`` utterances wait; one decode more may be running. A refusal costs nothing and is told at once.
- FIFO by the moment of acceptance. Each ticket has an absolute deadline; an expired ticket is never taken.
- The predicted wait is what is left of the running decode plus the estimates of all that wait. A decode without a
  ticket (a partial, a speculation) is `aside`, and runs like any other. While the worker loads, the expected rest of
  its load counts too.
- **No empty promise.** What would have to wait is admitted only if the predicted wait and its doubt fit into its
  ``max_wait``. The doubt is `SURE` times the estimates' ``sigma`` times the square root of the decodes ahead, as
  independent errors add up. What goes to the worker at once is admitted in any case.
- **Fair share.** While another session waits, or was refused within `FAIR_SHARE_MEMORY_S`, a session has at most one
  utterance waiting. It never has the whole queue, so that whoever comes next finds a slot; a queue of one has nothing
  to share.
- **Whose doing it is** decides between reasons. First what would refuse anybody whatever waits: draining, no worker.
  Then `fair_share`: who has its share already would be refused with the rest of the queue empty too, and is the only
  one that could have done otherwise; told `queue_full`, one that filled the queue itself would take the server to be
  too small. Then the server's state, a full queue before a long one; during a restart both are the restart's doing.
- **Who was refused** is an utterance that wanted in and found no room or no worker. A refusal for `fair_share` is not
  remembered: its session has something waiting, which counts already, and once that is taken it has had its turn; two
  hogs would hold the room of their refusals against each other. `retry_early` never asked the queue. An utterance
  that gets in or is withdrawn wants in no more.
- **Honest hints.** ``retry_after`` is the time until a slot frees for this caller, clamped to 0.5-1.0 s, plus up to
  0.5 s of jitter: inside 0.5-1.5 s and spread. (Jitter before the clamp would pile the herd up on its edges.) That is
  the end of the running decode; for `fair_share` when enough of the session's own are taken; for `predicted_wait`
  when the wait and its doubt have shrunk to ``max_wait``.
- **Background work** (slices of long files) waits in a lane of its own, for as long as it likes, and is taken only
  when nothing else waits. So it is in nobody's way while it waits: it fills no slot, is nobody's share, and adds to no
  wait but that of more of its kind. Once it runs it is a decode like any other, of one slice at most. A refusal of it
  is not remembered, and its hint is the time until the worker has come to the lane.

The queue never calls anybody: expired tickets are collected by `expire`, whose caller sets a timer by
`next_deadline`. ``now`` is monotonic seconds throughout.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from asr_ws.core.holds import PER_SESSION
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.types import RefusalReason, ServiceState, SessionId, Shed, Utterance

MIN_HINT_S, MAX_HINT_S, HINT_SPREAD_S = 0.5, 1.0, 0.5  # the wire's 500..1500 ms
LEAST_LEFT_S = 0.001  # the wire's grain: what is not over yet must not round to a wait of 0
SURE = 3.0  # mean absolute errors: 2.4 standard deviations of a normal one. Who is refused comes back just when wait
# and doubt fit, so under load most of what gets in is borderline: at 1 of these too much of it expires
EXPECTED_AUDIO_S = 5.0  # what an utterance is taken to last that is not here yet: people's are mostly 2-8 s
BACKGROUND_CAPACITY = 16  # slices, 31 MB: whoever has more offers the next when one is done
FAIR_SHARE_MEMORY_S = 2.0  # the longest hint, 1.5 s, and time to follow it: who does is back before it is forgotten

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
    speculated: bool = False  # its decode began before it was accepted
    background: bool = False  # it waits behind all that are not
    is_slice: bool = False  # a part of a long file, or of a job: its wait and its decode are no utterance's

    def expired(self, now: float) -> bool:
        """From its deadline on; but never at the moment of its acceptance: a wait of 0 means now or not at all."""
        return now >= self.deadline and now > self.accepted_at

    @property
    def waited_s(self) -> float:
        """In the queue; only once it has been taken."""
        assert self.first_taken_at is not None
        return self.first_taken_at - self.accepted_at


@dataclass(frozen=True, slots=True)
class Aside:
    """What the worker decodes without a ticket: a partial, or a final before its endpoint."""

    expected_s: float
    began_at: float


def overrun(expected_s: float, elapsed_s: float) -> float:
    """What is probably left of something that was expected to take ``expected_s``.

    Once it overruns, as long again as it is late: never 0 while it lasts.
    """
    return max(abs(expected_s - elapsed_s), LEAST_LEFT_S)


def all_are_reached(capacity: int, decode_s: float, max_wait_s: float) -> bool:
    """Whether the last one in a full queue is decoded in time, where a decode takes ``decode_s`` in the mean."""
    return capacity * decode_s <= max_wait_s


class AdmissionQueue:
    """Who waits for the worker, and what it does now.

    Args:
        uniform: ``uniform(a, b)``, the source of jitter.
        fair: False turns the fair share off, for comparison.
        background_capacity: how many may wait behind the others.
    Attributes:
        aside: what the worker decodes without a ticket; set and cleared by the caller, who takes no ticket meanwhile.
    """

    def __init__(
        self,
        capacity: int,
        service_time: ServiceTime,
        uniform: Callable[[float, float], float] = random.uniform,
        *,
        fair: bool = True,
        background_capacity: int = BACKGROUND_CAPACITY,
    ) -> None:
        self.capacity = capacity
        self.draining = False  # for good: nothing new is admitted, what is admitted is finished
        self.in_flight: Ticket | None = None
        self.aside: Aside | None = None
        self.worker_state = ServiceState.STARTING
        self._service_time = service_time
        self._uniform = uniform
        self._fair = fair
        self._background_capacity = background_capacity
        self._waiting: list[Ticket] = []
        self._background: list[Ticket] = []
        self._refused_at: dict[SessionId, dict[str, float]] = {}  # by utterance, the longest ago first
        self._load_began, self._load_s = 0.0, 0.0

    @property
    def state(self) -> ServiceState:
        """The service's, as clients are told it."""
        return ServiceState.DRAINING if self.draining else self.worker_state

    @property
    def depth(self) -> int:
        """How many wait, without the one in flight and the background."""
        return len(self._waiting)

    @property
    def background_depth(self) -> int:
        """How many wait behind those."""
        return len(self._background)

    def worker_changed(self, state: ServiceState, *, now: float, load_s: float = 0.0) -> None:
        """The worker's state; ``load_s`` is what a load that begins now is expected to take."""
        self.worker_state = state
        self._load_began, self._load_s = now, load_s

    def offer(self, utterance: Utterance, *, now: float, max_wait_s: float) -> Ticket | Shed:
        """Admit or refuse, at once."""
        session = utterance.session
        self._forget_refusal(session, utterance.id)
        if (refused := self.would_refuse(session, now=now, max_wait_s=max_wait_s)) is not None:
            if refused.reason is not RefusalReason.FAIR_SHARE:
                refused_at = self._refused_at.setdefault(session, {})
                refused_at[utterance.id] = now
                if len(refused_at) > PER_SESSION:  # the others are not held, and do not come back
                    del refused_at[next(iter(refused_at))]
            return refused
        ticket = self._ticket(utterance, self._waiting, now=now, max_wait_s=max_wait_s)
        self._waiting.append(ticket)
        return ticket

    def would_refuse(
        self, session: SessionId, *, now: float, max_wait_s: float, expected: Collection[SessionId] = ()
    ) -> Shed | None:
        """What `offer` would say to another utterance of ``session`` now; None: it would admit it. Nothing changes.

        Args:
            expected: whose utterances are on their way, each once: they count as if they waited.
        """
        reason = self._refusal(session, now=now, max_wait_s=max_wait_s, expected=expected)
        if reason is None:
            return None
        return self.shed(reason, now=now, session=session, max_wait_s=max_wait_s, n_expected=len(expected))

    def offer_background(
        self, utterance: Utterance, *, now: float, max_wait_s: float, is_slice: bool = True
    ) -> Ticket | Shed:
        """Admit it behind everything else, or refuse: there is no worker, or no room in the lane.

        Whose deadline comes first is first there: a job's, which has none, is behind whoever waits for his text.

        Args: max_wait_s: may be inf.
        """
        reason = self._closed
        if reason is None and self.background_depth >= self._background_capacity:
            reason = RefusalReason.QUEUE_FULL
        if reason is not None:
            return self.shed(reason, now=now, background=True)
        self._forget_refusal(utterance.session, utterance.id)
        before = [ticket for ticket in self._background if ticket.deadline <= now + max_wait_s]
        ticket = self._ticket(utterance, [*self._waiting, *before], now=now, max_wait_s=max_wait_s)
        ticket.background, ticket.is_slice = True, is_slice
        self._background.insert(len(before), ticket)
        return ticket

    def _ticket(
        self,
        utterance: Utterance,
        ahead: Collection[Ticket],
        *,
        now: float,
        max_wait_s: float,
    ) -> Ticket:
        wait_s = self._wait_behind(ahead, now)
        return Ticket(
            utterance,
            accepted_at=now,
            deadline=now + max_wait_s,
            position=len(ahead) + self._runs(now),
            estimated_wait_s=wait_s,
            estimated_final_s=wait_s + self.expected_decode(utterance),
        )

    @property
    def _closed(self) -> RefusalReason | None:
        """What refuses anybody, whatever waits."""
        return RefusalReason.DRAINING if self.draining else _CLOSED.get(self.worker_state)

    def _refusal(
        self, session: SessionId, *, now: float, max_wait_s: float, expected: Collection[SessionId]
    ) -> RefusalReason | None:
        """The admission rules, in their order."""
        if self._closed is not None:
            return self._closed
        n_own = len(self._waiting_of(session)) + sum(each == session for each in expected)
        if n_own >= self._share(session, now, expected) < self.capacity:
            return RefusalReason.FAIR_SHARE
        if self.depth + len(expected) >= self.capacity:
            reason = RefusalReason.QUEUE_FULL
        elif self.predicted_wait(now, len(expected)) + self._doubt(now, len(expected)) > max_wait_s:
            reason = RefusalReason.PREDICTED_WAIT
        else:
            return None
        return RefusalReason.RESTARTING if self.worker_state is ServiceState.RESTARTING else reason

    def _share(self, session: SessionId, now: float, expected: Collection[SessionId] = ()) -> int:
        """How many utterances of ``session`` may wait now."""
        if not self._fair:
            return self.capacity
        waiting = (ticket.utterance.session for ticket in self._waiting)
        others = chain(waiting, expected, self._recently_refused(now))
        return 1 if any(other != session for other in others) else max(self.capacity - 1, 1)

    def _recently_refused(self, now: float) -> Iterator[SessionId]:
        for session, refused_at in self._refused_at.items():
            if any(now - at < FAIR_SHARE_MEMORY_S for at in refused_at.values()):
                yield session

    def _forget_refusal(self, session: SessionId, utterance: str | None) -> None:
        if utterance is None:
            self._refused_at.pop(session, None)
        elif refused_at := self._refused_at.get(session):
            refused_at.pop(utterance, None)

    def shed(
        self,
        reason: RefusalReason,
        *,
        now: float,
        session: SessionId | None = None,
        max_wait_s: float | None = None,
        n_expected: int = 0,
        background: bool = False,
    ) -> Shed:
        """A refusal for ``reason``, with the hint and the numbers of this moment.

        Args:
            session: whose utterance it is, for `fair_share`.
            max_wait_s: what it may wait, for `predicted_wait`. Without these the hint is for anybody.
            n_expected: as many as `would_refuse` takes them.
            background: whether it is of that lane, whose depth and capacity are told then.
        """
        if background:
            hint_s = self._hint(self._wait_behind(self._waiting, now))
            wait_s = self._wait_behind(self._all_waiting, now)
            return Shed(reason, hint_s, wait_s, self.background_depth, self._background_capacity)
        wait_s = self.predicted_wait(now, n_expected)
        frees_in_s = self._wait_behind([], now)
        if reason is RefusalReason.FAIR_SHARE and session is not None:
            # With the oldest of a full share taken, the session has less than that.
            for ticket in self._waiting_of(session)[-self._share(session, now) :][:1]:
                frees_in_s = self._wait_behind(self._waiting[: self._waiting.index(ticket)], now)
        elif reason is RefusalReason.PREDICTED_WAIT and max_wait_s is not None:
            frees_in_s = wait_s - max(max_wait_s - self._doubt(now, n_expected), 0.0)
        return Shed(reason, self._hint(frees_in_s), wait_s, self.depth + n_expected, self.capacity)

    def _hint(self, frees_in_s: float) -> float:
        return min(max(frees_in_s, MIN_HINT_S), MAX_HINT_S) + self._uniform(0.0, HINT_SPREAD_S)

    def take(self, now: float) -> Ticket | None:
        """The first ticket whose deadline has not passed goes in flight, of the background only when no other waits.

        Returns: None when there is none.
        """
        assert self.in_flight is None, "strictly one decode at a time"
        assert self.aside is None, "strictly one decode at a time"
        ticket = next((ticket for ticket in self._all_waiting if not ticket.expired(now)), None)
        if ticket is not None:
            self._keep_waiting(lambda waiting: waiting is not ticket)
            ticket.first_taken_at = ticket.decode_began_at = now
            self.in_flight = ticket
        return ticket

    def expected_decode(self, utterance: Utterance) -> float:
        """Seconds."""
        return self._service_time.estimate(utterance.audio_s)

    def may_replay(self, now: float) -> bool:
        """Whether the in-flight ticket's deadline leaves time for the worker to load and decode it again."""
        assert self.in_flight is not None
        decode_s = self.expected_decode(self.in_flight.utterance)
        return now + self._load_left(now) + decode_s <= self.in_flight.deadline

    def replay(self, now: float) -> None:
        """The in-flight ticket is decoded again from its beginning."""
        assert self.in_flight is not None
        self.in_flight.decode_began_at = now

    def finish(self, decode_s: float | None = None) -> None:
        """Nothing is in flight any more; ``decode_s`` where a decode completed: how long it kept the worker busy."""
        assert self.in_flight is not None
        if decode_s is not None:
            self._service_time.observe(self.in_flight.utterance.audio_s, decode_s)
        self.in_flight = None

    def expire(self, now: float) -> list[Ticket]:
        """Remove and return the waiting tickets whose deadline has come, first to last, the background's behind."""
        expired = [ticket for ticket in self._all_waiting if ticket.expired(now)]
        self._keep_waiting(lambda ticket: not ticket.expired(now))
        return expired

    def next_deadline(self) -> float | None:
        """None: no ticket that waits has one."""
        return min((ticket.deadline for ticket in self._all_waiting if ticket.deadline < math.inf), default=None)

    def withdraw(self, session: SessionId, utterance: str | None = None) -> None:
        """Forget what waits or was refused of a session, or one utterance of it; in flight it is marked abandoned."""

        def wanted(ticket: Ticket) -> bool:
            return ticket.utterance.session == session and utterance in (None, ticket.utterance.id)

        self._keep_waiting(lambda ticket: not wanted(ticket))
        self._forget_refusal(session, utterance)
        if self.in_flight is not None and wanted(self.in_flight):
            self.in_flight.abandoned = True

    def count_death(self, session: SessionId, utterance: str) -> bool:
        """The worker died under a draft of it. Returns: whether it waits."""
        for ticket in self._all_waiting:
            if (ticket.utterance.session, ticket.utterance.id) == (session, utterance):
                ticket.utterance = replace(ticket.utterance, deaths=ticket.utterance.deaths + 1)
                return True
        return False

    def predicted_wait(self, now: float, n_expected: int = 0) -> float:
        """Seconds that an utterance offered now would wait; 0 when it would go to the worker at once.

        Args: n_expected: as many as `would_refuse` takes them.
        """
        return self._wait_behind(self._waiting, now) + n_expected * self._service_time.estimate(EXPECTED_AUDIO_S)

    def _wait_behind(self, ahead: Iterable[Ticket], now: float) -> float:
        estimates_s = sum(self.expected_decode(ticket.utterance) for ticket in ahead)
        return self._load_left(now) + self._running_left(now) + estimates_s

    def _doubt(self, now: float, n_expected: int) -> float:
        """Seconds by which the predicted wait may well be exceeded; 0 when there is none."""
        return SURE * self._service_time.sigma * math.sqrt(self.depth + n_expected + self._runs(now))

    def _runs(self, now: float) -> bool:
        """Whether a decode is ahead of all that wait."""
        return self._running_left(now) > 0

    @property
    def _all_waiting(self) -> Iterator[Ticket]:
        return chain(self._waiting, self._background)

    def _keep_waiting(self, wanted: Callable[[Ticket], bool]) -> None:
        self._waiting = [*filter(wanted, self._waiting)]
        self._background = [*filter(wanted, self._background)]

    def _waiting_of(self, session: SessionId) -> list[Ticket]:
        return [ticket for ticket in self._waiting if ticket.utterance.session == session]

    def _load_left(self, now: float) -> float:
        return 0.0 if self.worker_state is ServiceState.READY else overrun(self._load_s, now - self._load_began)

    def _running_left(self, now: float) -> float:
        """Of the one decode that the worker is at, or will be at once it has loaded."""
        ready = self.worker_state is ServiceState.READY
        if self.in_flight is not None:
            expected_s = self.expected_decode(self.in_flight.utterance)
            if not ready:  # it will be decoded from its beginning
                return expected_s
            assert self.in_flight.decode_began_at is not None
            return overrun(expected_s, now - self.in_flight.decode_began_at)
        if self.aside is not None and ready:  # a worker that died took it along
            return overrun(self.aside.expected_s, now - self.aside.began_at)
        return 0.0
