"""AdmissionQueue: who gets in, what they are told, and how everybody gets out. Every decode is expected to take 1 s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asr_ws.core.admission import AdmissionQueue, Ticket, overrun
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.types import (
    DecodeOptions,
    EndpointReason,
    RefusalReason,
    ServiceState,
    SessionId,
    Shed,
    Utterance,
)

A, B = SessionId("a"), SessionId("b")
OPTIONS = DecodeOptions(language=None)
SAMPLES = np.zeros(16_000, np.float32)


def no_jitter(low: float, high: float) -> float:
    return low


def utterance(id: str = "u1", session: SessionId = A) -> Utterance:
    return Utterance(session, id, SAMPLES, 0, len(SAMPLES), EndpointReason.SILENCE, OPTIONS)


def queue_of(capacity: int = 3, state: ServiceState = ServiceState.READY, load_s: float = 0.0) -> AdmissionQueue:
    queue = AdmissionQueue(capacity, ServiceTime(prior_s=1.0), no_jitter)
    queue.worker_changed(state, now=0.0, load_s=load_s)
    return queue


def admit(
    queue: AdmissionQueue, id: str = "u1", *, now: float, max_wait_s: float = 8.0, session: SessionId = A
) -> Ticket:
    ticket = queue.offer(utterance(id, session), now=now, max_wait_s=max_wait_s)
    assert isinstance(ticket, Ticket)
    return ticket


def begin(queue: AdmissionQueue, now: float, id: str = "running") -> Ticket:
    """Something is in flight from now on."""
    ticket = admit(queue, id, now=now)
    assert queue.take(now) is ticket
    return ticket


def ids(tickets: Iterable[Ticket]) -> list[str]:
    return [ticket.utterance.id for ticket in tickets]


# ---------------------------------------------------------------- capacity and order


def test_capacity_wait_beside_the_one_in_flight_and_no_more() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    tickets = [admit(queue, f"u{i}", now=0.0) for i in (1, 2, 3)]
    assert [ticket.position for ticket in tickets] == [1, 2, 3]
    assert queue.offer(utterance("u4"), now=0.0, max_wait_s=8.0) == Shed(RefusalReason.QUEUE_FULL, 1.0, 4.0, 3, 3)
    assert queue.depth == 3


def test_a_refusal_leaves_no_trace() -> None:
    queue = queue_of(capacity=1)
    admit(queue, "u1", now=0.0)
    for _ in range(5):
        assert isinstance(queue.offer(utterance("u2"), now=0.0, max_wait_s=8.0), Shed)
    assert (queue.depth, queue.next_deadline(), queue.predicted_wait(0.0)) == (1, 8.0, 1.0)


def test_a_slot_that_frees_is_free() -> None:
    queue = queue_of(capacity=1)
    admit(queue, "u1", now=0.0)
    queue.take(0.0)
    assert admit(queue, "u2", now=0.0).position == 1


def test_taken_in_the_order_of_acceptance_whatever_the_deadlines() -> None:
    queue = queue_of()
    for id, max_wait_s in [("u1", 8.0), ("u2", 4.0), ("u3", 6.0)]:
        admit(queue, id, now=0.0, max_wait_s=max_wait_s)
    taken = []
    for now in (0.0, 1.0, 2.0):
        ticket = queue.take(now)
        assert ticket is not None
        taken.append((ticket.utterance.id, ticket.waited_s))
        queue.finish(1.0)
    assert taken == [("u1", 0.0), ("u2", 1.0), ("u3", 2.0)]
    assert queue.take(3.0) is None


def test_two_decodes_at_once_are_a_bug() -> None:
    queue = queue_of()
    begin(queue, 0.0)
    admit(queue, now=0.0)
    with pytest.raises(AssertionError):
        queue.take(0.0)


# ---------------------------------------------------------------- what an accepted one is told


def test_idle_means_position_0_and_no_wait() -> None:
    ticket = admit(queue_of(), now=5.0)
    assert (ticket.position, ticket.estimated_wait_s, ticket.estimated_final_s) == (0, 0.0, 1.0)
    assert (ticket.accepted_at, ticket.deadline) == (5.0, 13.0)


def test_the_rest_of_the_running_decode_and_all_ahead_are_waited_for() -> None:
    queue = queue_of()
    begin(queue, 0.0)
    admit(queue, "u1", now=0.25)
    ticket = admit(queue, "u2", now=0.25)
    assert (ticket.position, ticket.estimated_wait_s, ticket.estimated_final_s) == (2, 1.75, 2.75)


def test_a_decode_lasts_from_when_it_was_taken() -> None:
    queue = queue_of()
    admit(queue, "u1", now=0.0)
    queue.take(0.5)
    assert queue.predicted_wait(0.75) == 0.75


def test_estimates_follow_the_decodes() -> None:
    queue = queue_of()
    begin(queue, 0.0)
    queue.finish(4.0)
    assert admit(queue, now=4.0).estimated_final_s == 4.0


def test_a_decode_that_did_not_complete_teaches_nothing() -> None:
    queue = queue_of()
    begin(queue, 0.0)
    queue.finish()
    assert admit(queue, now=9.0).estimated_final_s == 1.0


@pytest.mark.parametrize(
    ("expected_s", "elapsed_s", "left_s"),
    [(1.0, 0.0, 1.0), (1.0, 0.75, 0.25), (1.0, 1.5, 0.5), (1.0, 5.0, 4.0), (1.0, 1.0, 0.001), (0.0, 0.0, 0.001)],
)
def test_what_runs_late_lasts_as_long_again_and_is_never_over(
    expected_s: float, elapsed_s: float, left_s: float
) -> None:
    assert overrun(expected_s, elapsed_s) == left_s


def test_a_decode_that_is_due_right_now_is_still_waited_for() -> None:
    """Regression: at that very moment the predicted wait was 0, so that max_wait 0 got in behind a running decode."""
    queue = queue_of()
    begin(queue, 0.0)
    assert queue.predicted_wait(1.0) == 0.001
    assert isinstance(queue.offer(utterance(), now=1.0, max_wait_s=0.0), Shed)


# ---------------------------------------------------------------- deadlines


def test_a_predicted_wait_beyond_the_deadline_is_refused_at_once() -> None:
    queue = queue_of()
    begin(queue, 0.0)
    admit(queue, "u1", now=0.0, max_wait_s=1.0)
    refused = queue.offer(utterance("u2"), now=0.0, max_wait_s=1.99)
    assert refused == Shed(RefusalReason.PREDICTED_WAIT, 1.0, 2.0, 1, 3)
    assert admit(queue, "u3", now=0.0, max_wait_s=2.0).estimated_wait_s == 2.0


def test_it_expires_at_its_deadline_exactly() -> None:
    queue = queue_of()
    begin(queue, 10.0)
    late, early = admit(queue, "u1", now=10.0, max_wait_s=4.0), admit(queue, "u2", now=10.5, max_wait_s=3.0)
    assert queue.next_deadline() == early.deadline == 13.5
    assert queue.expire(13.499) == []
    assert queue.expire(13.5) == [early]
    assert queue.expire(13.5) == []
    assert queue.next_deadline() == late.deadline == 14.0
    assert queue.expire(1e9) == [late]
    assert queue.next_deadline() is None


def test_expired_ones_are_told_oldest_first() -> None:
    queue = queue_of()
    begin(queue, 0.0)
    for id, max_wait_s in [("u1", 7.0), ("u2", 8.0), ("u3", 6.0)]:
        admit(queue, id, now=0.0, max_wait_s=max_wait_s)
    assert ids(queue.expire(7.0)) == ["u1", "u3"]
    assert queue.depth == 1


def test_an_expired_ticket_is_never_taken() -> None:
    queue = queue_of()
    admit(queue, "u1", now=0.0, max_wait_s=2.0)
    admit(queue, "u2", now=0.0, max_wait_s=3.0)
    ticket = queue.take(2.0)
    assert ticket is not None
    assert ticket.utterance.id == "u2"
    assert ids(queue.expire(2.0)) == ["u1"]


def test_what_is_in_flight_does_not_expire() -> None:
    queue = queue_of()
    begin(queue, 0.0)
    assert queue.next_deadline() is None
    assert queue.expire(100.0) == []


def test_max_wait_0_is_now_or_not_at_all() -> None:
    """Regression: it was accepted by an idle server, and expired before it could be taken in the same moment."""
    queue = queue_of()
    ticket = admit(queue, now=5.0, max_wait_s=0.0)
    assert queue.expire(5.0) == []
    assert queue.take(5.0) is ticket
    assert queue.offer(utterance("u2"), now=5.0, max_wait_s=0.0) == Shed(RefusalReason.PREDICTED_WAIT, 1.0, 1.0, 0, 3)


def test_max_wait_0_expires_in_the_next_moment() -> None:
    queue = queue_of()
    ticket = admit(queue, now=5.0, max_wait_s=0.0)
    assert queue.take(5.001) is None
    assert queue.expire(5.001) == [ticket]


# ---------------------------------------------------------------- hints


@pytest.mark.parametrize(
    ("elapsed_s", "hint_s"), [(0.0, 1.0), (0.25, 0.75), (0.75, 0.5), (1.0, 0.5), (1.75, 0.75), (60.0, 1.0)]
)
def test_the_hint_is_when_a_slot_frees_within_its_bounds(elapsed_s: float, hint_s: float) -> None:
    queue = queue_of(capacity=1)
    begin(queue, 0.0)
    admit(queue, "u1", now=0.0)
    refused = queue.offer(utterance("u2"), now=elapsed_s, max_wait_s=100.0)
    assert isinstance(refused, Shed)
    assert (refused.reason, refused.retry_after_s) == (RefusalReason.QUEUE_FULL, hint_s)


def test_the_estimate_is_not_clamped() -> None:
    queue = queue_of(capacity=1)
    begin(queue, 0.0)
    admit(queue, "u1", now=0.0)
    assert queue.shed(RefusalReason.QUEUE_FULL, now=61.0).estimated_wait_s == 61.0


@pytest.mark.parametrize("elapsed_s", [0.0, 0.5, 1.0, 60.0])
def test_hints_stay_in_their_range_and_are_spread_over_half_a_second(elapsed_s: float) -> None:
    queue = AdmissionQueue(1, ServiceTime(prior_s=1.0))
    queue.worker_changed(ServiceState.READY, now=0.0)
    begin(queue, 0.0)
    hints = [queue.shed(RefusalReason.QUEUE_FULL, now=elapsed_s).retry_after_s for _ in range(300)]
    assert all(0.5 <= hint <= 1.5 for hint in hints)
    assert max(hints) - min(hints) > 0.3
    assert Counter(hints).most_common(1)[0][1] < 3  # no pile on an edge


def test_jitter_is_added_after_the_clamp() -> None:
    queue = AdmissionQueue(1, ServiceTime(), lambda low, high: high)
    assert queue.shed(RefusalReason.STARTING, now=0.0).retry_after_s == 1.0
    queue.worker_changed(ServiceState.STARTING, now=0.0, load_s=60.0)
    assert queue.shed(RefusalReason.STARTING, now=0.0).retry_after_s == 1.5


# ---------------------------------------------------------------- the worker's states


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (ServiceState.STARTING, RefusalReason.STARTING),
        (ServiceState.UNAVAILABLE, RefusalReason.UNAVAILABLE),
    ],
)
def test_nothing_is_admitted_to_a_worker_that_is_not_there(state: ServiceState, reason: RefusalReason) -> None:
    queue = queue_of(state=state, load_s=5.0)
    assert queue.state is state
    assert queue.offer(utterance(), now=2.0, max_wait_s=8.0) == Shed(reason, 1.0, 3.0, 0, 3)


def test_before_the_worker_says_anything_it_is_starting() -> None:
    queue = AdmissionQueue(3, ServiceTime(), no_jitter)
    assert queue.state is ServiceState.STARTING
    refused = queue.offer(utterance(), now=0.0, max_wait_s=8.0)
    assert isinstance(refused, Shed)
    assert refused.reason is RefusalReason.STARTING


def test_the_queue_stays_open_through_a_restart_and_its_load_is_waited_for() -> None:
    queue = queue_of(state=ServiceState.RESTARTING, load_s=2.0)
    ticket = admit(queue, "u1", now=0.5)
    assert (ticket.position, ticket.estimated_wait_s, ticket.estimated_final_s) == (0, 1.5, 2.5)
    assert admit(queue, "u2", now=3.0).estimated_wait_s == 1.0 + 1.0  # the load is a second late, u1 ahead


def test_a_restart_that_would_take_too_long_refuses_for_that_reason() -> None:
    queue = queue_of(state=ServiceState.RESTARTING, load_s=2.0)
    assert queue.offer(utterance(), now=0.0, max_wait_s=1.9) == Shed(RefusalReason.RESTARTING, 1.0, 2.0, 0, 3)
    assert queue.offer(utterance(), now=2.0, max_wait_s=0.0) == Shed(RefusalReason.RESTARTING, 0.5, 0.001, 0, 3)


def test_a_queue_that_fills_in_a_restart_refuses_for_that_reason() -> None:
    queue = queue_of(capacity=1, state=ServiceState.RESTARTING, load_s=2.0)
    admit(queue, "u1", now=0.0)
    assert queue.offer(utterance("u2"), now=0.0, max_wait_s=8.0) == Shed(RefusalReason.RESTARTING, 1.0, 3.0, 1, 1)


def test_once_ready_the_load_is_over() -> None:
    queue = queue_of(state=ServiceState.STARTING, load_s=5.0)
    queue.worker_changed(ServiceState.READY, now=3.0)
    assert admit(queue, now=3.0).estimated_wait_s == 0.0


def test_draining_refuses_whatever_else_is_the_case() -> None:
    for state in (ServiceState.READY, ServiceState.STARTING, ServiceState.RESTARTING, ServiceState.UNAVAILABLE):
        queue = queue_of(capacity=1, state=state)
        queue.draining = True
        assert queue.state is ServiceState.DRAINING
        refused = queue.offer(utterance(), now=0.0, max_wait_s=8.0)
        assert isinstance(refused, Shed)
        assert refused.reason is RefusalReason.DRAINING


def test_what_was_admitted_before_a_drain_is_finished() -> None:
    queue = queue_of()
    ticket = admit(queue, now=0.0)
    queue.draining = True
    assert queue.take(0.0) is ticket


# ---------------------------------------------------------------- replay


@pytest.mark.parametrize(("died_at", "may"), [(4.0, True), (5.0, True), (5.001, False), (9.0, False)])
def test_a_replay_needs_time_for_reload_and_decode(died_at: float, may: bool) -> None:
    queue = queue_of()
    begin(queue, 0.0)  # its deadline is at 8
    queue.worker_changed(ServiceState.RESTARTING, now=died_at, load_s=2.0)
    assert queue.may_replay(died_at) is may


@pytest.mark.parametrize(("now", "may"), [(0.9, True), (7.0, True), (7.001, False)])
def test_a_replay_on_a_worker_that_is_back_already_needs_a_whole_decode(now: float, may: bool) -> None:
    """Regression: what was left of the decode that died was taken for what the replay needs."""
    queue = queue_of()
    begin(queue, 0.0)
    assert queue.may_replay(now) is may


def test_an_in_flight_decode_starts_over_with_its_worker() -> None:
    queue = queue_of()
    ticket = begin(queue, 0.0)
    queue.worker_changed(ServiceState.RESTARTING, now=0.75, load_s=2.0)
    assert queue.predicted_wait(0.75) == 2.0 + 1.0
    queue.worker_changed(ServiceState.READY, now=2.75)
    queue.replay(2.75)
    assert queue.predicted_wait(3.0) == 0.75
    assert (ticket.waited_s, ticket.deadline) == (0.0, 8.0)
    assert queue.in_flight is ticket


# ---------------------------------------------------------------- withdraw


def test_one_waiting_utterance_is_withdrawn() -> None:
    queue = queue_of()
    begin(queue, 0.0)
    for id, session in [("u1", A), ("u2", A), ("u1", B)]:
        admit(queue, id, now=0.0, session=session)
    queue.withdraw(A, "u1")
    queue.withdraw(A, "u1")
    assert [(ticket.utterance.session, ticket.utterance.id) for ticket in queue.expire(8.0)] == [
        ("a", "u2"),
        ("b", "u1"),
    ]


def test_all_of_a_session_is_withdrawn() -> None:
    queue = queue_of()
    ticket = begin(queue, 0.0)
    admit(queue, "u1", now=0.0)
    admit(queue, "u1", now=0.0, session=B)
    queue.withdraw(A)
    assert [ticket.utterance.session for ticket in queue.expire(8.0)] == ["b"]
    assert ticket.abandoned


def test_what_is_in_flight_is_abandoned_and_still_waited_for() -> None:
    queue = queue_of()
    ticket = begin(queue, 0.0, id="u1")
    queue.withdraw(A, "u2")
    queue.withdraw(B)
    assert not ticket.abandoned
    queue.withdraw(A, "u1")
    assert ticket.abandoned
    assert queue.in_flight is ticket
    assert queue.predicted_wait(0.0) == 1.0


# ---------------------------------------------------------------- any schedule


class AnySchedule(RuleBasedStateMachine):
    """Each accepted ticket leaves once: taken and finished, expired at its deadline, or withdrawn."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.queue = AdmissionQueue(2, ServiceTime(prior_s=1.0))
        self.queue.worker_changed(ServiceState.READY, now=self.now)
        self.waiting: list[Ticket] = []  # the model: what must be in the queue, in order
        self.n = 0

    @rule(session=st.sampled_from([A, B]), max_wait_s=st.sampled_from([0.0, 0.5, 1.0, 2.0, 8.0]))
    def offer(self, session: SessionId, max_wait_s: float) -> None:
        self.n += 1
        predicted_s, depth = self.queue.predicted_wait(self.now), self.queue.depth
        answer = self.queue.offer(utterance(f"u{self.n}", session), now=self.now, max_wait_s=max_wait_s)
        admits = self.queue.state in (ServiceState.READY, ServiceState.RESTARTING)
        assert isinstance(answer, Ticket) is (admits and depth < 2 and predicted_s <= max_wait_s)
        if isinstance(answer, Ticket):
            assert (answer.deadline, answer.estimated_wait_s) == (self.now + max_wait_s, predicted_s)
            self.waiting.append(answer)
        else:
            assert 0.5 <= answer.retry_after_s <= 1.5
            assert answer.estimated_wait_s == predicted_s

    @precondition(lambda self: self.queue.in_flight is None)
    @rule()
    def take(self) -> None:
        ticket = self.queue.take(self.now)
        fresh = [ticket for ticket in self.waiting if ticket.deadline > self.now or ticket.accepted_at == self.now]
        assert ticket is (fresh[0] if fresh else None)
        if ticket is not None:
            self.waiting.remove(ticket)

    @precondition(lambda self: self.queue.in_flight is not None)
    @rule(decode_s=st.sampled_from([None, 0.25, 1.0, 3.0]))
    def finish(self, decode_s: float | None) -> None:
        self.queue.finish(decode_s)

    @rule(by_s=st.sampled_from([0.25, 0.5, 2.0]))
    def let_time_pass(self, by_s: float) -> None:
        self.now += by_s

    @rule()
    def let_time_pass_to_the_next_deadline(self) -> None:
        self.now = max(self.now, self.queue.next_deadline() or self.now)

    @rule()
    def expire(self) -> None:
        expired = self.queue.expire(self.now)
        assert expired == [
            ticket for ticket in self.waiting if ticket.deadline <= self.now and ticket.accepted_at < self.now
        ]
        self.waiting = [ticket for ticket in self.waiting if ticket not in expired]

    @rule(session=st.sampled_from([A, B]))
    def withdraw(self, session: SessionId) -> None:
        self.queue.withdraw(session)
        self.waiting = [ticket for ticket in self.waiting if ticket.utterance.session != session]

    @rule(state=st.sampled_from([*ServiceState][:4]), load_s=st.sampled_from([0.0, 1.0]))
    def change_the_worker(self, state: ServiceState, load_s: float) -> None:
        self.queue.worker_changed(state, now=self.now, load_s=load_s)

    @invariant()
    def what_waits_is_what_was_admitted_and_never_more_than_the_capacity(self) -> None:
        assert self.queue.depth == len(self.waiting) <= 2
        assert self.queue.next_deadline() == min((ticket.deadline for ticket in self.waiting), default=None)

    @invariant()
    def only_an_idle_server_predicts_no_wait(self) -> None:
        idle = self.queue.state is ServiceState.READY and self.queue.in_flight is None and not self.waiting
        assert (self.queue.predicted_wait(self.now) == 0) is idle


AnySchedule.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnySchedule = AnySchedule.TestCase
