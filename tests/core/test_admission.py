"""AdmissionQueue: who gets in, what they are told, and how everybody gets out.

Every decode is expected to take 1 s, exactly, where nothing else is said.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asr_ws.core.admission import FAIR_SHARE_MEMORY_S, AdmissionQueue, Aside, Ticket, overrun
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

A, B, C, D = (SessionId(name) for name in "abcd")
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


def begin(queue: AdmissionQueue, now: float, id: str = "running", session: SessionId = A) -> Ticket:
    """Something is in flight from now on."""
    ticket = admit(queue, id, now=now, session=session)
    assert queue.take(now) is ticket
    return ticket


def refusal(
    queue: AdmissionQueue, id: str, *, now: float, max_wait_s: float = 8.0, session: SessionId = A
) -> tuple[RefusalReason, float]:
    """Returns: why, and the hint."""
    refused = queue.offer(utterance(id, session), now=now, max_wait_s=max_wait_s)
    assert isinstance(refused, Shed)
    return refused.reason, refused.retry_after_s


def ids(tickets: Iterable[Ticket]) -> list[str]:
    return [ticket.utterance.id for ticket in tickets]


# ---------------------------------------------------------------- capacity and order


def test_capacity_wait_beside_the_one_in_flight_and_no_more() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    tickets = [admit(queue, now=0.0, session=session) for session in (A, B, C)]
    assert [ticket.position for ticket in tickets] == [1, 2, 3]
    assert queue.offer(utterance("u1", D), now=0.0, max_wait_s=8.0) == Shed(RefusalReason.QUEUE_FULL, 1.0, 4.0, 3, 3)
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
    for id, session, max_wait_s in [("u1", A, 8.0), ("u2", B, 4.0), ("u3", C, 6.0)]:
        admit(queue, id, now=0.0, max_wait_s=max_wait_s, session=session)
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


def test_a_longer_utterance_is_expected_to_take_longer() -> None:
    service_time = ServiceTime()
    service_time.prime(1.0, 0.9)
    queue = AdmissionQueue(3, service_time, no_jitter)
    queue.worker_changed(ServiceState.READY, now=0.0)
    admit(queue, "u1", now=0.0)
    long = Utterance(B, "u1", SAMPLES, 0, 11 * 16_000, EndpointReason.SILENCE, OPTIONS)
    ticket = queue.offer(long, now=0.0, max_wait_s=8.0)
    assert isinstance(ticket, Ticket)
    assert (ticket.estimated_wait_s, ticket.estimated_final_s) == pytest.approx((0.9, 0.9 + 1.9))


# ---------------------------------------------------------------- decodes without a ticket


def test_a_decode_without_a_ticket_is_waited_for() -> None:
    queue = queue_of()
    queue.aside = Aside(expected_s=0.5, began_at=0.0)
    first, second = admit(queue, now=0.125), admit(queue, now=0.125, session=B)
    assert (first.position, first.estimated_wait_s, first.estimated_final_s) == (1, 0.375, 1.375)
    assert (second.position, second.estimated_wait_s, second.estimated_final_s) == (2, 1.375, 2.375)
    assert queue.predicted_wait(1.25) == 0.75 + 2.0  # it runs late


def test_max_wait_0_does_not_get_in_behind_a_decode_without_a_ticket() -> None:
    queue = queue_of()
    queue.aside = Aside(expected_s=0.5, began_at=0.0)
    assert refusal(queue, "u1", now=0.125, max_wait_s=0.0) == (RefusalReason.PREDICTED_WAIT, 0.5)
    queue.aside = None
    assert admit(queue, "u1", now=0.25, max_wait_s=0.0).position == 0


def test_nothing_is_taken_beside_a_decode_without_a_ticket() -> None:
    queue = queue_of()
    queue.aside = Aside(expected_s=0.5, began_at=0.0)
    ticket = admit(queue, now=0.0)
    with pytest.raises(AssertionError):
        queue.take(0.0)
    queue.aside = None
    assert queue.take(0.0) is ticket


def test_a_worker_that_died_took_its_decode_without_a_ticket_along() -> None:
    queue = queue_of()
    queue.aside = Aside(expected_s=0.5, began_at=0.0)
    queue.worker_changed(ServiceState.RESTARTING, now=0.25, load_s=2.0)
    ticket = admit(queue, now=0.25)
    assert (ticket.position, ticket.estimated_wait_s) == (0, 2.0)


# ---------------------------------------------------------------- deadlines


def test_a_predicted_wait_beyond_the_deadline_is_refused_at_once() -> None:
    queue = queue_of()
    begin(queue, 0.0)
    admit(queue, "u1", now=0.0, max_wait_s=1.0)
    refused = queue.offer(utterance("u2"), now=0.0, max_wait_s=1.99)
    assert refused == Shed(RefusalReason.PREDICTED_WAIT, 0.5, 2.0, 1, 3)
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
    for id, session, max_wait_s in [("u1", A, 7.0), ("u2", B, 8.0), ("u3", C, 6.0)]:
        admit(queue, id, now=0.0, max_wait_s=max_wait_s, session=session)
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


# ---------------------------------------------------------------- what the estimates are not sure of


def unsure(capacity: int = 3) -> AdmissionQueue:
    """A decode is expected to take 1 s, give or take 0.25 s, so that the doubt about one is 0.75 s."""
    service_time = ServiceTime()
    service_time.prime(1.0, 1.0)
    queue = AdmissionQueue(capacity, service_time, no_jitter)
    queue.worker_changed(ServiceState.READY, now=0.0)
    return queue


def test_the_doubt_about_a_wait_must_fit_too() -> None:
    queue = unsure()
    begin(queue, 0.0)
    assert refusal(queue, "u1", now=0.0, max_wait_s=1.625)[0] is RefusalReason.PREDICTED_WAIT
    assert admit(queue, "u1", now=0.0, max_wait_s=1.75).estimated_wait_s == 1.0


def test_the_doubt_about_four_decodes_is_twice_that_about_one() -> None:
    queue = unsure(capacity=4)
    queue.aside = Aside(expected_s=1.0, began_at=0.0)
    for session in (A, B, C):
        admit(queue, now=0.0, session=session)
    assert refusal(queue, "u1", now=0.0, max_wait_s=5.375, session=D)[0] is RefusalReason.PREDICTED_WAIT
    assert admit(queue, "u1", now=0.0, max_wait_s=5.5, session=D).estimated_wait_s == 4.0


def test_what_goes_to_the_worker_at_once_leaves_no_doubt() -> None:
    assert admit(unsure(), now=0.0, max_wait_s=0.0).estimated_wait_s == 0.0


# ---------------------------------------------------------------- fair share


def test_a_session_alone_has_all_of_the_queue_but_one() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    admit(queue, "u1", now=0.0)
    admit(queue, "u2", now=0.0)
    assert queue.offer(utterance("u3"), now=0.0, max_wait_s=8.0) == Shed(RefusalReason.FAIR_SHARE, 1.0, 3.0, 2, 3)
    assert admit(queue, now=0.0, session=B).position == 3


def test_a_session_that_has_its_share_has_it_again_once_one_is_taken() -> None:
    queue = queue_of(capacity=3)
    first = admit(queue, "u1", now=0.0)
    admit(queue, "u2", now=0.0)
    assert refusal(queue, "u3", now=0.0)[0] is RefusalReason.FAIR_SHARE
    assert queue.take(0.0) is first
    admit(queue, "u3", now=0.0)


def test_while_another_waits_a_session_has_one_waiting() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    admit(queue, "u1", now=0.0)
    admit(queue, "u1", now=0.0, session=B)
    for session in (A, B):
        assert refusal(queue, "u2", now=0.0, session=session)[0] is RefusalReason.FAIR_SHARE
    admit(queue, "u1", now=0.0, session=C)


def test_what_is_in_flight_is_no_ones_share() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0, session=A)
    admit(queue, "u1", now=0.0, session=B)
    assert admit(queue, "u1", now=0.0, session=A).position == 2


def test_a_queue_of_one_has_nothing_to_share() -> None:
    queue = queue_of(capacity=1)
    begin(queue, 0.0)
    admit(queue, "u1", now=0.0)
    assert refusal(queue, "u1", now=0.0, session=B)[0] is RefusalReason.QUEUE_FULL
    assert refusal(queue, "u2", now=0.0, session=A)[0] is RefusalReason.QUEUE_FULL


def test_without_the_rule_one_session_may_fill_the_queue() -> None:
    queue = AdmissionQueue(3, ServiceTime(prior_s=1.0), no_jitter, fair=False)
    queue.worker_changed(ServiceState.READY, now=0.0)
    for id in ("u1", "u2", "u3"):
        admit(queue, id, now=0.0)
    assert refusal(queue, "u4", now=0.0)[0] is RefusalReason.QUEUE_FULL


def crowded_out(queue: AdmissionQueue, now: float) -> None:
    """B's u9 finds no room; then the queue is empty, and the worker busy."""
    begin(queue, now)
    for session in (A, C, D):
        admit(queue, "u0", now=now, session=session)
    assert refusal(queue, "u9", now=now, session=B)[0] is RefusalReason.QUEUE_FULL
    for session in (A, C, D):
        queue.withdraw(session, "u0")


def test_a_refusal_is_remembered_until_it_should_have_come_back() -> None:
    queue = queue_of(capacity=3)
    crowded_out(queue, 0.0)
    admit(queue, "u1", now=1.0)
    assert refusal(queue, "u2", now=FAIR_SHARE_MEMORY_S - 0.001)[0] is RefusalReason.FAIR_SHARE
    admit(queue, "u2", now=FAIR_SHARE_MEMORY_S)


def test_each_refusal_is_remembered_from_its_own_moment() -> None:
    queue = queue_of(capacity=3)
    crowded_out(queue, 0.0)
    queue.finish()
    crowded_out(queue, 1.5)
    admit(queue, "u1", now=2.0)
    assert refusal(queue, "u2", now=3.0)[0] is RefusalReason.FAIR_SHARE
    admit(queue, "u2", now=3.5)


def test_a_refusal_for_a_long_wait_or_for_no_worker_is_remembered() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    assert refusal(queue, "u9", now=0.0, session=B, max_wait_s=0.5)[0] is RefusalReason.PREDICTED_WAIT
    admit(queue, "u1", now=0.0)
    assert refusal(queue, "u2", now=0.0)[0] is RefusalReason.FAIR_SHARE

    queue = queue_of(state=ServiceState.STARTING)
    assert refusal(queue, "u9", now=0.0, session=B)[0] is RefusalReason.STARTING
    queue.worker_changed(ServiceState.READY, now=1.0)
    admit(queue, "u1", now=1.0)
    assert refusal(queue, "u2", now=1.0)[0] is RefusalReason.FAIR_SHARE


def test_a_refusal_of_its_own_is_not_held_against_a_session() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    assert refusal(queue, "u9", now=0.0, max_wait_s=0.5)[0] is RefusalReason.PREDICTED_WAIT
    admit(queue, "u1", now=0.0)
    admit(queue, "u2", now=0.0)


def test_a_refusal_for_fair_share_is_not_remembered() -> None:
    """Its session had its share; two hogs would block each other for nothing."""
    queue = queue_of(capacity=3)
    admit(queue, "u1", now=0.0, session=A)
    admit(queue, "u1", now=0.0, session=B)
    assert refusal(queue, "u2", now=0.0, session=A)[0] is RefusalReason.FAIR_SHARE
    queue.take(0.0)
    admit(queue, "u2", now=0.0, session=B)  # A's only one is taken


def test_an_utterance_that_got_in_is_not_remembered_as_refused() -> None:
    queue = queue_of(capacity=3)
    crowded_out(queue, 0.0)
    admit(queue, "u9", now=0.5, session=B)
    queue.finish()
    queue.take(0.5)
    admit(queue, "u1", now=0.5)
    admit(queue, "u2", now=0.5)


@pytest.mark.parametrize("withdrawn", [None, "u9"])
def test_a_withdrawn_utterance_is_not_remembered_as_refused(withdrawn: str | None) -> None:
    queue = queue_of(capacity=3)
    crowded_out(queue, 0.0)
    admit(queue, "u1", now=0.5)
    queue.withdraw(B, "another")
    queue.withdraw(C)
    assert refusal(queue, "u2", now=0.5)[0] is RefusalReason.FAIR_SHARE
    queue.withdraw(B, withdrawn)
    admit(queue, "u2", now=0.5)


# ---------------------------------------------------------------- whose doing it is


def test_who_has_its_share_is_told_so_whatever_the_queue_is_like() -> None:
    """The rest would refuse it too, but would also be there without its own doing."""
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    for session in (A, B, C):
        admit(queue, "u1", now=0.0, session=session)
    reasons = [refusal(queue, "u2", now=0.0, max_wait_s=max_wait_s)[0] for max_wait_s in (8.0, 0.5)]
    queue.worker_changed(ServiceState.RESTARTING, now=0.0, load_s=2.0)
    reasons.append(refusal(queue, "u2", now=0.0)[0])
    assert reasons == [RefusalReason.FAIR_SHARE] * 3
    assert refusal(queue, "u1", now=0.0, session=D)[0] is RefusalReason.RESTARTING


def test_a_full_queue_is_told_before_a_long_one() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    for session in (A, B, C):
        admit(queue, "u1", now=0.0, session=session)
    assert refusal(queue, "u1", now=0.0, session=D, max_wait_s=0.5)[0] is RefusalReason.QUEUE_FULL


def test_what_would_refuse_anybody_is_told_before_the_share() -> None:
    for state, reason in [
        (ServiceState.STARTING, RefusalReason.STARTING),
        (ServiceState.UNAVAILABLE, RefusalReason.UNAVAILABLE),
    ]:
        queue = queue_of(capacity=2)
        admit(queue, "u1", now=0.0)
        assert refusal(queue, "u2", now=0.0)[0] is RefusalReason.FAIR_SHARE
        queue.worker_changed(state, now=0.0)
        assert refusal(queue, "u2", now=0.0)[0] is reason
        queue.draining = True
        assert refusal(queue, "u2", now=0.0)[0] is RefusalReason.DRAINING


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


def quick(capacity: int) -> AdmissionQueue:
    """Decodes are expected to take 0.25 s, so that hints are not clamped."""
    queue = AdmissionQueue(capacity, ServiceTime(prior_s=0.25), no_jitter)
    queue.worker_changed(ServiceState.READY, now=0.0)
    return queue


def test_the_hint_for_a_full_queue_is_when_the_running_decode_ends() -> None:
    queue = quick(capacity=2)
    queue.aside = Aside(expected_s=0.75, began_at=0.0)
    for session in (A, B):
        admit(queue, now=0.0, session=session)
    assert refusal(queue, "u1", now=0.0, session=C) == (RefusalReason.QUEUE_FULL, 0.75)
    assert refusal(queue, "u1", now=0.125, session=C) == (RefusalReason.QUEUE_FULL, 0.625)


def test_the_hint_for_a_fair_share_is_when_its_own_is_taken() -> None:
    queue = quick(capacity=4)
    queue.aside = Aside(expected_s=0.25, began_at=0.0)
    for session in (A, B, C):
        admit(queue, now=0.0, session=session)
    hints = [refusal(queue, "u2", now=0.0, session=session) for session in (A, B, C)]
    assert hints == [(RefusalReason.FAIR_SHARE, hint_s) for hint_s in (0.5, 0.5, 0.75)]  # 0.25 is clamped


def test_the_hint_for_a_fair_share_is_when_enough_of_its_own_are_taken() -> None:
    queue = quick(capacity=4)
    queue.aside = Aside(expected_s=0.5, began_at=0.0)
    for id in ("u1", "u2", "u3"):
        admit(queue, id, now=0.0)
    assert refusal(queue, "u4", now=0.0) == (RefusalReason.FAIR_SHARE, 0.5)  # with one of three taken
    admit(queue, now=0.0, session=B)
    assert refusal(queue, "u4", now=0.0) == (RefusalReason.FAIR_SHARE, 1.0)  # with all three taken


def test_the_hint_for_a_long_wait_is_when_it_has_become_short_enough() -> None:
    queue = unsure()
    begin(queue, 0.0)
    assert refusal(queue, "u1", now=0.0, max_wait_s=1.0) == (RefusalReason.PREDICTED_WAIT, 0.75)  # 1 + 0.75 - 1
    assert refusal(queue, "u1", now=0.125, max_wait_s=1.0) == (RefusalReason.PREDICTED_WAIT, 0.625)


def test_the_hint_for_a_wait_that_the_doubt_alone_exceeds_is_when_nothing_waits() -> None:
    queue = unsure()
    begin(queue, 0.0)
    assert refusal(queue, "u1", now=0.375, max_wait_s=0.125) == (RefusalReason.PREDICTED_WAIT, 0.625)


def test_the_hint_while_loading_is_the_rest_of_the_load() -> None:
    queue = queue_of(state=ServiceState.STARTING, load_s=2.0)
    assert refusal(queue, "u1", now=1.25) == (RefusalReason.STARTING, 0.75)


def test_a_hint_without_a_caller_is_for_anybody() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    admit(queue, "u1", now=0.0)
    for reason in RefusalReason:
        assert queue.shed(reason, now=0.25) == Shed(reason, 0.75, 1.75, 1, 3)
    assert queue.shed(RefusalReason.FAIR_SHARE, now=0.25, session=B).retry_after_s == 0.75  # none of its own waits


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


# ---------------------------------------------------------------- background


def put_behind(queue: AdmissionQueue, id: str, *, now: float = 0.0, max_wait_s: float = math.inf) -> Ticket:
    ticket = queue.offer_background(utterance(id, D), now=now, max_wait_s=max_wait_s)
    assert isinstance(ticket, Ticket)
    return ticket


def test_background_is_taken_when_nothing_else_waits_the_oldest_first() -> None:
    queue = queue_of()
    slices = [put_behind(queue, id) for id in ("f1", "f2")]
    live = [admit(queue, now=1.0), admit(queue, now=1.0, session=B)]
    for ticket in [*live, *slices]:
        assert queue.take(2.0) is ticket
        queue.finish(1.0)
    assert queue.take(2.0) is None


def test_who_waits_for_his_text_is_taken_before_a_job_that_came_first() -> None:
    queue = queue_of()
    job, other_job = put_behind(queue, "f1"), put_behind(queue, "f2")
    long, short = put_behind(queue, "f3", max_wait_s=60.0), put_behind(queue, "f4", max_wait_s=8.0)
    assert (short.position, short.estimated_wait_s, long.position) == (0, 0.0, 0), "as it was when they came"
    for ticket in (short, long, job, other_job):
        assert queue.take(1.0) is ticket
        queue.finish(1.0)


def test_what_waits_in_the_background_is_in_nobodys_way() -> None:
    queue = queue_of(capacity=3)
    for id in ("f1", "f2", "f3"):
        put_behind(queue, id)
    assert (queue.depth, queue.background_depth) == (0, 3)
    first, second = admit(queue, "u1", now=0.0, max_wait_s=0.0), admit(queue, "u2", now=0.0)
    assert (first.position, first.estimated_wait_s, second.position, second.estimated_wait_s) == (0, 0.0, 1, 1.0)


def test_what_runs_in_the_background_is_waited_for() -> None:
    queue = queue_of()
    ticket = put_behind(queue, "f1")
    put_behind(queue, "f2")
    assert queue.take(0.0) is ticket
    live = admit(queue, now=0.25)
    assert (live.position, live.estimated_wait_s) == (1, 0.75)


def test_background_is_told_of_all_that_is_ahead_as_things_are() -> None:
    queue = queue_of()
    begin(queue, 0.0)
    admit(queue, now=0.0)
    first, second = put_behind(queue, "f1"), put_behind(queue, "f2")
    assert (first.background, first.deadline) == (True, math.inf)
    assert (first.position, first.estimated_wait_s, first.estimated_final_s) == (2, 2.0, 3.0)
    assert (second.position, second.estimated_wait_s, second.estimated_final_s) == (3, 3.0, 4.0)


def test_background_is_refused_when_its_lane_is_full_and_that_is_not_remembered() -> None:
    queue = AdmissionQueue(3, ServiceTime(prior_s=0.25), no_jitter, background_capacity=2)
    queue.worker_changed(ServiceState.READY, now=0.0)
    begin(queue, 0.0)
    for session in (A, B):
        admit(queue, now=0.0, session=session)
    for id in ("f1", "f2"):
        put_behind(queue, id)
    refused = queue.offer_background(utterance("f3", D), now=0.0, max_wait_s=math.inf)
    assert refused == Shed(RefusalReason.QUEUE_FULL, 0.75, 1.25, 2, 2)
    queue.withdraw(B)
    queue.withdraw(A)
    for id in ("u1", "u2"):
        admit(queue, id, now=0.0)


def test_background_is_admitted_however_full_the_queue_is_and_long_the_wait() -> None:
    queue = queue_of(capacity=1, state=ServiceState.RESTARTING, load_s=9.0)
    admit(queue, now=0.0, max_wait_s=9.0)
    assert put_behind(queue, "f1", max_wait_s=0.5).estimated_wait_s == 10.0


@pytest.mark.parametrize("state", [ServiceState.STARTING, ServiceState.UNAVAILABLE, ServiceState.DRAINING])
def test_background_is_refused_as_anybody_is(state: ServiceState) -> None:
    queue = queue_of(state=ServiceState.READY if state is ServiceState.DRAINING else state)
    queue.draining = state is ServiceState.DRAINING
    refused = queue.offer_background(utterance(), now=0.0, max_wait_s=8.0)
    assert isinstance(refused, Shed)
    assert refused.reason == state.value


def test_background_expires_like_any_other_or_never() -> None:
    queue = queue_of()
    put_behind(queue, "f1")
    assert queue.next_deadline() is None, "inf is no moment"
    late = put_behind(queue, "f2", max_wait_s=9.0)
    live = admit(queue, now=1.0, max_wait_s=8.0)
    assert queue.next_deadline() == 9.0
    assert queue.expire(9.0) == [live, late]
    assert ids(queue.expire(math.inf)) == ["f1"]


def test_background_is_withdrawn_and_counts_deaths_like_any_other() -> None:
    queue = queue_of()
    for id in ("f1", "f2"):
        put_behind(queue, id)
    assert queue.count_death(D, "f2")
    queue.withdraw(D, "f1")
    ticket = queue.take(0.0)
    assert ticket is not None
    assert (ticket.utterance.id, ticket.utterance.deaths) == ("f2", 1)
    queue.withdraw(D)
    assert ticket.abandoned


# ---------------------------------------------------------------- asking before


def test_asking_changes_nothing() -> None:
    queue = queue_of(capacity=1)
    assert queue.would_refuse(A, now=0.0, max_wait_s=0.0) is None
    begin(queue, 0.0)
    admit(queue, now=0.0)
    refused = queue.would_refuse(B, now=0.0, max_wait_s=8.0)
    assert refused == Shed(RefusalReason.QUEUE_FULL, 1.0, 2.0, 1, 1)
    assert queue.offer(utterance("u1", B), now=0.0, max_wait_s=8.0) == refused


def test_asking_is_not_remembered_as_a_refusal() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    assert queue.would_refuse(B, now=0.0, max_wait_s=0.0) is not None
    for id in ("u1", "u2"):
        admit(queue, id, now=0.0)


def test_who_asks_is_told_of_its_share() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    for id in ("u1", "u2"):
        admit(queue, id, now=0.0)
    assert queue.would_refuse(A, now=0.0, max_wait_s=8.0) == Shed(RefusalReason.FAIR_SHARE, 1.0, 3.0, 2, 3)


@pytest.mark.parametrize("n_expected", [0, 1, 2])
def test_what_is_on_its_way_counts_as_if_it_waited(n_expected: int) -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    admit(queue, now=0.0)
    refused = queue.would_refuse(B, now=0.0, max_wait_s=8.0, expected=[C] * n_expected)
    assert refused == (Shed(RefusalReason.QUEUE_FULL, 1.0, 4.0, 3, 3) if n_expected == 2 else None)


def test_who_waits_in_the_background_after_all_wants_in_no_more() -> None:
    queue = queue_of(capacity=2)
    begin(queue, 0.0)
    admit(queue, "u1", now=0.0)
    refusal(queue, "u2", now=0.0, session=B, max_wait_s=0.0)
    assert refusal(queue, "u2", now=0.0)[0] is RefusalReason.FAIR_SHARE  # there is another
    queue.withdraw(A)
    assert isinstance(queue.offer_background(utterance("u2", B), now=0.0, max_wait_s=8.0), Ticket)
    assert list(queue._recently_refused(0.0)) == []


def test_what_is_on_its_way_counts_for_the_share() -> None:
    queue = queue_of(capacity=3)
    begin(queue, 0.0)
    assert queue.would_refuse(A, now=0.0, max_wait_s=8.0, expected=[A]) is None
    for expected in ([A, A], [A, B]):
        refused = queue.would_refuse(A, now=0.0, max_wait_s=8.0, expected=expected)
        assert refused == Shed(RefusalReason.FAIR_SHARE, 1.0, 3.0, 2, 3)
    admit(queue, now=0.0)
    assert queue.would_refuse(B, now=0.0, max_wait_s=8.0, expected=[A]) is None


def test_what_is_on_its_way_is_waited_for_with_its_doubt() -> None:
    queue = unsure(capacity=4)  # 5 s of audio are expected to take 1 + 4/9 s
    wait_s, doubt_s = 3 * (1 + 4 / 9), 0.75 * math.sqrt(3)
    assert queue.would_refuse(A, now=0.0, max_wait_s=wait_s + doubt_s + 0.001, expected=[B, B, C]) is None
    refused = queue.would_refuse(A, now=0.0, max_wait_s=wait_s + doubt_s - 0.75, expected=[B, B, C])
    assert refused is not None
    assert (refused.reason, refused.queue_depth) == (RefusalReason.PREDICTED_WAIT, 3)
    assert (refused.retry_after_s, refused.estimated_wait_s) == pytest.approx((0.75, wait_s))


# ---------------------------------------------------------------- any schedule


@given(
    capacity=st.integers(1, 5),
    offers=st.lists(st.tuples(st.sampled_from([A, B, C]), st.floats(0.0, 4.0)), max_size=40),
    decode_s=st.floats(0.0, 3.0),
)
def test_whatever_is_offered_no_session_has_the_whole_queue_and_no_accepted_one_a_wait_too_long(
    capacity: int, offers: list[tuple[SessionId, float]], decode_s: float
) -> None:
    service_time = ServiceTime()
    service_time.prime(1.0, decode_s)
    queue = AdmissionQueue(capacity, service_time)
    queue.worker_changed(ServiceState.READY, now=0.0)
    waiting: Counter[SessionId] = Counter()
    for n, (session, max_wait_s) in enumerate(offers):
        answer = queue.offer(utterance(f"u{n}", session), now=n / 8, max_wait_s=max_wait_s)
        if isinstance(answer, Ticket):
            waiting[session] += 1
            wait_s = answer.estimated_wait_s
            assert wait_s == 0 or wait_s + 3 * service_time.sigma * answer.position**0.5 <= max_wait_s + 1e-9
            assert answer.estimated_final_s == wait_s + service_time.estimate(1.0)
        assert queue.depth == waiting.total() <= capacity
        assert max(waiting.values(), default=0) <= max(capacity - 1, 1)


class AnySchedule(RuleBasedStateMachine):
    """Each accepted ticket leaves once: taken and finished, expired at its deadline, or withdrawn."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.service_time = ServiceTime()
        self.service_time.prime(1.0, 1.0)
        self.queue = AdmissionQueue(3, self.service_time, background_capacity=2)
        self.queue.worker_changed(ServiceState.READY, now=self.now)
        self.waiting: list[Ticket] = []  # the model: what must be in the queue, in order
        self.background: list[Ticket] = []
        self.refused: dict[str, tuple[SessionId, float]] = {}  # and who was refused when
        self.n = 0

    def has_its_share(self, session: SessionId) -> bool:
        others = {ticket.utterance.session for ticket in self.waiting} | {
            owner for owner, refused_at in self.refused.values() if self.now - refused_at < 2.0
        }
        n_own = sum(ticket.utterance.session == session for ticket in self.waiting)
        return n_own >= (1 if others - {session} else 2)

    @rule(session=st.sampled_from([A, B, C]), max_wait_s=st.sampled_from([0.0, 0.5, 1.0, 2.0, 8.0]))
    def offer(self, session: SessionId, max_wait_s: float) -> None:
        self.n += 1
        self.receive_offer(utterance(f"u{self.n}", session), max_wait_s)

    @precondition(lambda self: self.refused)
    @rule(data=st.data())
    def offer_again(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.refused)))
        self.receive_offer(utterance(id, self.refused.pop(id)[0]), 8.0)

    def receive_offer(self, offered: Utterance, max_wait_s: float) -> None:
        predicted_s, depth = self.queue.predicted_wait(self.now), self.queue.depth
        asked = self.queue.would_refuse(offered.session, now=self.now, max_wait_s=max_wait_s)
        answer = self.queue.offer(offered, now=self.now, max_wait_s=max_wait_s)
        assert (asked and asked.reason) == (answer.reason if isinstance(answer, Shed) else None)
        open = self.queue.state in (ServiceState.READY, ServiceState.RESTARTING)
        runs = self.queue.in_flight is not None or (
            self.queue.aside is not None and self.queue.worker_state is ServiceState.READY
        )
        doubt_s = 3 * self.service_time.sigma * math.sqrt(depth + runs)
        in_time = predicted_s == 0 or predicted_s + doubt_s <= max_wait_s
        has_its_share = self.has_its_share(offered.session)
        assert isinstance(answer, Ticket) is (open and depth < 3 and in_time and not has_its_share)
        if isinstance(answer, Ticket):
            assert (answer.deadline, answer.estimated_wait_s) == (self.now + max_wait_s, predicted_s)
            self.waiting.append(answer)
        else:
            assert (answer.reason is RefusalReason.FAIR_SHARE) is (open and has_its_share)
            assert 0.5 <= answer.retry_after_s <= 1.5
            assert answer.estimated_wait_s == predicted_s
            if answer.reason is not RefusalReason.FAIR_SHARE:
                self.refused[offered.id] = (offered.session, self.now)
                own = [id for id, (owner, _) in self.refused.items() if owner == offered.session]
                for id in own[:-2]:  # no more are held
                    del self.refused[id]

    @rule(session=st.sampled_from([A, B, C]), max_wait_s=st.sampled_from([0.0, 0.5, 8.0, math.inf]))
    def offer_background(self, session: SessionId, max_wait_s: float) -> None:
        self.n += 1
        answer = self.queue.offer_background(utterance(f"u{self.n}", session), now=self.now, max_wait_s=max_wait_s)
        open = self.queue.state in (ServiceState.READY, ServiceState.RESTARTING)
        assert isinstance(answer, Ticket) is (open and len(self.background) < 2)
        if isinstance(answer, Ticket):
            self.background = sorted([*self.background, answer], key=lambda ticket: ticket.deadline)

    @precondition(lambda self: self.queue.in_flight is None and self.queue.aside is None)
    @rule()
    def take(self) -> None:
        ticket = self.queue.take(self.now)
        waiting = self.waiting + self.background
        fresh = [ticket for ticket in waiting if ticket.deadline > self.now or ticket.accepted_at == self.now]
        assert ticket is (fresh[0] if fresh else None)
        if ticket is not None:
            (self.background if ticket.background else self.waiting).remove(ticket)

    @precondition(lambda self: self.queue.in_flight is not None)
    @rule(decode_s=st.sampled_from([None, 0.25, 1.0, 3.0]))
    def finish(self, decode_s: float | None) -> None:
        self.queue.finish(decode_s)

    @precondition(lambda self: self.queue.in_flight is None)
    @rule(expected_s=st.sampled_from([None, 0.25, 1.0]))
    def decode_aside(self, expected_s: float | None) -> None:
        self.queue.aside = None if expected_s is None else Aside(expected_s, self.now)

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
            ticket
            for ticket in self.waiting + self.background
            if ticket.deadline <= self.now and ticket.accepted_at < self.now
        ]
        self.waiting = [ticket for ticket in self.waiting if ticket not in expired]
        self.background = [ticket for ticket in self.background if ticket not in expired]

    @rule(session=st.sampled_from([A, B, C]))
    def withdraw(self, session: SessionId) -> None:
        self.queue.withdraw(session)
        self.waiting = [ticket for ticket in self.waiting if ticket.utterance.session != session]
        self.background = [ticket for ticket in self.background if ticket.utterance.session != session]
        self.refused = {id: refused for id, refused in self.refused.items() if refused[0] != session}

    @rule(state=st.sampled_from([*ServiceState][:4]), load_s=st.sampled_from([0.0, 1.0]))
    def change_the_worker(self, state: ServiceState, load_s: float) -> None:
        self.queue.worker_changed(state, now=self.now, load_s=load_s)

    @invariant()
    def what_waits_is_what_was_admitted_and_never_more_than_the_capacity(self) -> None:
        assert self.queue.depth == len(self.waiting) <= 3
        assert self.queue.background_depth == len(self.background) <= 2
        deadlines = {ticket.deadline for ticket in self.waiting + self.background} - {math.inf}
        assert self.queue.next_deadline() == min(deadlines, default=None)

    @invariant()
    def no_session_has_the_whole_queue(self) -> None:
        owners = Counter(ticket.utterance.session for ticket in self.waiting)
        assert max(owners.values(), default=0) <= 2

    @invariant()
    def only_an_idle_server_predicts_no_wait(self) -> None:
        works = self.queue.in_flight is not None or self.queue.aside is not None
        idle = self.queue.state is ServiceState.READY and not works and not self.waiting
        assert (self.queue.predicted_wait(self.now) == 0) is idle


AnySchedule.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnySchedule = AnySchedule.TestCase
