"""Desk: who is decoded when, and what everybody is told. Every decode is expected to take 1 s; hints have no jitter."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from asr_ws.core.admission import AdmissionQueue, Ticket
from asr_ws.core.desk import Desk
from asr_ws.core.drafts import Draft, DraftDecode, DraftKind, Drafts
from asr_ws.core.holds import Holds
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.types import (
    Decoded,
    DecodeOptions,
    DropReason,
    EndpointReason,
    Failed,
    Hypothesis,
    Partial,
    RefusalReason,
    Released,
    ServiceState,
    ServiceStatus,
    SessionId,
    Shed,
    Unfinished,
    Utterance,
)
from asr_ws.errors import DecodeFailed, WorkerDied, WorkerHung

READY, RESTARTING, UNAVAILABLE = ServiceState.READY, ServiceState.RESTARTING, ServiceState.UNAVAILABLE
SESSION = SessionId("s")
SAMPLES = np.zeros(16_000, np.float32)
OPTIONS = DecodeOptions(None)
U1, U2, U3 = (Utterance(SESSION, id, SAMPLES, 0, 16_000, EndpointReason.COMMIT, OPTIONS) for id in ("u1", "u2", "u3"))
TEXT = Hypothesis("text", "en", 1.0, (), None, 1.0)
SEGV = WorkerDied()


def desk_of(capacity: int = 3) -> Desk:
    """Its worker is ready, and that was told."""
    service_time = ServiceTime(prior_s=1.0)
    queue = AdmissionQueue(capacity, service_time, lambda low, high: low, fair=False)
    desk = Desk(queue, Holds(), Drafts(service_time, ServiceTime(prior_s=0.25)))
    desk.receive_worker_state(READY, now=0.0)
    assert desk.take_news() == [ServiceStatus(READY, True)]
    return desk


def admit(desk: Desk, *utterances: Utterance, now: float = 0.0, max_wait_s: float = 8.0) -> None:
    for utterance in utterances:
        assert isinstance(desk.offer(utterance, now=now, max_wait_s=max_wait_s), Ticket)


def begun(desk: Desk, now: float = 0.0) -> Utterance | None:
    work = desk.begin(now)
    return None if work is None else work.of.utterance


def die(
    desk: Desk, now: float, state: ServiceState = RESTARTING, load_s: float = 2.0, death: WorkerDied = SEGV
) -> None:
    """Under the decode; the state is told first."""
    desk.receive_worker_state(state, now=now, load_s=load_s)
    assert desk.take_news() == [ServiceStatus(state, True)]
    desk.end(death, now=now)


def told(state: ServiceState) -> ServiceStatus:
    return ServiceStatus(state, True)


def crashed(utterance: Utterance, waited_s: float, wait_s: float, hint_s: float = 1.0, depth: int = 0) -> Unfinished:
    return Unfinished(utterance, Shed(RefusalReason.WORKER_CRASHED, hint_s, wait_s, depth, 3), waited_s)


def dropped(utterance: Utterance) -> Released:
    return Released(utterance, DropReason.NOT_HELD)


# ---------------------------------------------------------------- one decode at a time


def test_offer_to_an_idle_worker_is_in_flight_at_once_and_takes_no_slot() -> None:
    desk = desk_of(capacity=1)
    admit(desk, U1, U2)
    refused = desk.offer(U3, now=0.0, max_wait_s=8.0)
    assert refused == Shed(RefusalReason.QUEUE_FULL, 1.0, 2.0, 1, 1)


def test_decodes_begin_one_after_the_other_in_the_order_of_acceptance() -> None:
    desk = desk_of()
    assert begun(desk) is None
    admit(desk, U1, U2)
    assert begun(desk, 0.0) is U1
    assert begun(desk, 0.5) is None
    desk.end(TEXT, now=1.0)
    assert begun(desk, 1.0) is U2
    desk.end(TEXT, now=2.0)
    assert begun(desk, 2.0) is None
    assert desk.take_news() == [Decoded(U1, TEXT, 0.0), Decoded(U2, TEXT, 1.0)]


def test_failed_decode_ends_its_utterance_and_no_other() -> None:
    desk = desk_of()
    admit(desk, U1, U2)
    begun(desk)
    desk.end(DecodeFailed("odd"), now=1.0)
    assert desk.take_news() == [Failed(U1, "decode_failed", "odd")]
    assert begun(desk, 1.0) is U2


# ---------------------------------------------------------------- deadlines


@pytest.mark.parametrize(("now", "n_told"), [(7.999, 0), (8.0, 1), (9.0, 1)])
def test_waiting_ticket_is_told_from_its_deadline_on(now: float, n_told: int) -> None:
    desk = desk_of()
    admit(desk, U1, U2)
    begun(desk)
    desk.tick(now)
    told = Unfinished(U2, Shed(RefusalReason.DEADLINE, 1.0, max(now - 1.0, 0.0), 0, 3), now)
    assert desk.take_news() == [told][:n_told]
    desk.end(TEXT, now=now)
    assert (begun(desk, now) is None) == bool(n_told), "an expired ticket is never decoded"


def test_deadline_does_not_end_a_decode() -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    desk.tick(100.0)
    desk.end(TEXT, now=100.0)
    assert desk.take_news() == [Decoded(U1, TEXT, 0.0)]


def test_offer_comes_after_what_is_due() -> None:
    desk = desk_of(capacity=1)
    admit(desk, U1, U2)
    begun(desk)
    admit(desk, U3, now=8.0, max_wait_s=8.0)
    assert [news.utterance.id for news in desk.take_news() if isinstance(news, Unfinished)] == ["u2"]


@pytest.mark.parametrize(("now", "released"), [(4.999, []), (5.0, [Released(U1, DropReason.HOLD_EXPIRED)])])
def test_hold_ends_at_its_moment(now: float, released: list[Released]) -> None:
    desk = desk_of()
    desk.hold(U1, until=60.0)
    desk.shorten_hold(SESSION, "u1", until=5.0)
    desk.tick(now)
    assert desk.take_news() == released
    assert desk.reclaim(SESSION, "u1") is (None if released else U1)


def test_third_hold_of_a_session_evicts_its_first() -> None:
    desk = desk_of()
    for utterance in (U1, U2, U3):
        desk.hold(utterance, until=60.0)
    assert desk.take_news() == [Released(U1, DropReason.EVICTED)]


def test_next_deadline_is_the_next_moment_at_which_something_is_to_be_told() -> None:
    desk = desk_of()
    assert desk.next_deadline() is None
    admit(desk, U1)
    assert desk.next_deadline() is None, "the worker is ready for it"
    admit(desk, U2, now=1.0)
    assert desk.next_deadline() == 9.0
    desk.receive_worker_state(RESTARTING, now=1.0, load_s=2.0)
    assert desk.next_deadline() == 8.0, "of the one in flight"
    desk.hold(U3, until=5.0)
    assert desk.next_deadline() == 5.0


# ---------------------------------------------------------------- the worker dies under a decode


def test_death_is_replayed_silently_before_what_waits() -> None:
    desk = desk_of()
    admit(desk, U1, U2)
    begun(desk)
    die(desk, 0.5)
    assert begun(desk, 2.0) is None
    desk.receive_worker_state(READY, now=2.5)
    assert begun(desk, 2.5) == replace(U1, deaths=1)
    desk.end(TEXT, now=3.5)
    assert desk.take_news() == [told(READY), Decoded(replace(U1, deaths=1), TEXT, 0.0)]
    assert begun(desk, 3.5) is U2


def test_replay_is_expected_to_take_as_long_as_any_decode() -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    die(desk, 0.5)
    desk.receive_worker_state(READY, now=2.5)
    begun(desk, 2.5)
    ticket = desk.offer(U2, now=2.75, max_wait_s=8.0)
    assert isinstance(ticket, Ticket)
    assert ticket.estimated_wait_s == 0.75


def test_second_death_makes_it_poison_and_the_next_goes_on() -> None:
    desk = desk_of()
    admit(desk, U1, U2)
    begun(desk)
    die(desk, 0.5)
    desk.receive_worker_state(READY, now=2.5)
    begun(desk, 2.5)
    desk.receive_worker_state(RESTARTING, now=3.0, load_s=2.0)
    desk.end(SEGV, now=3.0)
    poison = Failed(replace(U1, deaths=2), "poison_audio", "the recognizer died 2 times under this utterance")
    assert desk.take_news() == [told(READY), told(RESTARTING), poison]
    desk.receive_worker_state(READY, now=5.0)
    assert begun(desk, 5.0) is U2


def test_what_hung_is_handed_back_however_much_time_is_left_and_is_poison_the_second_time() -> None:
    desk = desk_of()
    admit(desk, U1, U2, max_wait_s=600.0)
    begun(desk)
    die(desk, 10.0, death=WorkerHung())
    once = replace(U1, deaths=1)
    hung = Unfinished(once, Shed(RefusalReason.WORKER_HUNG, 1.0, 3.0, 1, 3), 10.0)
    assert desk.take_news() == [hung]
    desk.receive_worker_state(READY, now=12.0)
    assert begun(desk, 12.0) is U2
    desk.end(TEXT, now=13.0)
    assert desk.take_news() == [told(READY), Decoded(U2, TEXT, 12.0)]
    admit(desk, once, now=13.0)
    begun(desk, 13.0)
    die(desk, 23.0, death=WorkerHung())
    twice = replace(U1, deaths=2)
    assert desk.take_news() == [Failed(twice, "poison_audio", "the recognizer died 2 times under this utterance")]


@pytest.mark.parametrize("died_at", [5.5, 10.0])  # 2 s of load and 1 s of decode do not fit any more
def test_death_without_time_for_a_replay_is_told_at_once(died_at: float) -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    die(desk, died_at)
    assert desk.take_news() == [crashed(replace(U1, deaths=1), died_at, wait_s=2.0)]


@pytest.mark.parametrize(("now", "told"), [(7.999, []), (8.0, [crashed(replace(U1, deaths=1), 8.0, wait_s=5.0)])])
def test_replay_whose_worker_does_not_come_is_given_up_at_its_deadline(now: float, told: list[Unfinished]) -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    die(desk, 0.5, load_s=2.5)
    desk.tick(now)
    assert desk.take_news() == told


def test_worker_that_comes_at_the_deadline_comes_too_late() -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    die(desk, 0.5, load_s=2.5)
    desk.receive_worker_state(READY, now=8.0)
    assert desk.take_news() == [crashed(replace(U1, deaths=1), 8.0, wait_s=5.0), told(READY)]
    assert begun(desk, 8.0) is None


def test_unavailable_worker_gives_up_the_replay_before_its_state_is_told() -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    die(desk, 0.5)
    desk.receive_worker_state(UNAVAILABLE, now=1.0, load_s=30.0)
    assert desk.take_news() == [crashed(replace(U1, deaths=1), 1.0, wait_s=30.0), told(UNAVAILABLE)]


def test_death_that_leaves_the_worker_unavailable_is_told_at_once() -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    die(desk, 0.5, UNAVAILABLE)
    assert desk.take_news() == [crashed(replace(U1, deaths=1), 0.5, wait_s=2.0)]


# ---------------------------------------------------------------- the worker dies before the decode begins


def test_death_between_taking_and_beginning_is_waited_for_and_not_charged() -> None:
    """Regression: the decode was asked of a worker that was gone, and the server died of it."""
    desk = desk_of()
    admit(desk, U1)
    for _ in range(3):
        desk.receive_worker_state(RESTARTING, now=0.0, load_s=2.0)
        assert begun(desk, 0.0) is None
        desk.receive_worker_state(READY, now=2.0)
    assert begun(desk, 2.0) is U1
    desk.end(TEXT, now=3.0)
    assert desk.take_news() == [told(RESTARTING), told(READY)] * 3 + [Decoded(U1, TEXT, 0.0)]


@pytest.mark.parametrize("max_wait_s", [0.0, 8.0])  # 0: now or not at all
def test_ticket_that_waits_for_the_worker_is_given_up_at_its_deadline(max_wait_s: float) -> None:
    desk = desk_of()
    admit(desk, U1, max_wait_s=max_wait_s)
    desk.receive_worker_state(RESTARTING, now=0.0, load_s=10.0)
    assert desk.take_news() == [told(RESTARTING)]
    assert desk.next_deadline() == max_wait_s
    desk.tick(max_wait_s + 0.5)
    assert desk.take_news() == [crashed(U1, max_wait_s + 0.5, wait_s=10.0 - max_wait_s - 0.5)]


def test_ticket_that_waits_for_the_worker_is_given_up_with_it() -> None:
    desk = desk_of()
    admit(desk, U1)
    desk.receive_worker_state(UNAVAILABLE, now=1.0, load_s=30.0)
    assert desk.take_news() == [crashed(U1, 1.0, wait_s=30.0), told(UNAVAILABLE)]


def test_what_waits_in_the_queue_is_not_given_up_with_the_worker() -> None:
    desk = desk_of()
    admit(desk, U1, U2)
    desk.receive_worker_state(UNAVAILABLE, now=1.0, load_s=2.0)
    assert desk.take_news() == [crashed(U1, 1.0, wait_s=3.0, depth=1), told(UNAVAILABLE)]
    desk.receive_worker_state(READY, now=3.0)
    assert begun(desk, 3.0) is U2


# ---------------------------------------------------------------- withdrawing


def test_withdrawn_decode_ends_unheard() -> None:
    desk = desk_of()
    admit(desk, U1, U2)
    begun(desk)
    desk.withdraw(SESSION, "u1")
    assert begun(desk) is None, "the worker is busy with it"
    desk.end(TEXT, now=1.0)
    assert begun(desk, 1.0) is U2
    assert desk.take_news() == []


def test_withdrawn_decode_is_not_replayed() -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    desk.withdraw(SESSION)
    die(desk, 0.5)
    desk.receive_worker_state(READY, now=2.5)
    assert (begun(desk, 2.5), desk.take_news()) == (None, [told(READY)])


@pytest.mark.parametrize("died", [False, True])
def test_withdrawn_before_it_is_decoded_lets_the_next_have_its_place(died: bool) -> None:
    desk = desk_of()
    admit(desk, U1, U2)
    if died:
        begun(desk)
        die(desk, 0.5)
        desk.receive_worker_state(READY, now=2.5)
    desk.withdraw(SESSION, "u1")
    desk.tick(2.5)
    assert begun(desk, 2.5) is U2


# ---------------------------------------------------------------- draining, and giving up


def test_drain_is_told_once_and_finishes_what_is_admitted() -> None:
    desk = desk_of()
    admit(desk, U1, U2)
    desk.drain()
    desk.drain()
    refused = desk.offer(U3, now=0.0, max_wait_s=8.0)
    assert refused == Shed(RefusalReason.DRAINING, 1.0, 2.0, 1, 3)
    for now in (1.0, 2.0):
        begun(desk, now)
        desk.end(TEXT, now=now)
    desk.receive_worker_state(RESTARTING, now=3.0)
    assert desk.take_news() == [
        ServiceStatus(ServiceState.DRAINING, False),
        Decoded(U1, TEXT, 0.0),
        Decoded(U2, TEXT, 1.0),
    ]


@pytest.mark.parametrize("decoding", [False, True])
def test_giving_up_drops_all_that_is_admitted(decoding: bool) -> None:
    desk = desk_of()
    admit(desk, U1, U2, U3)
    if decoding:
        begun(desk)
    desk.give_up()
    assert desk.take_news() == [dropped(U1), dropped(U2), dropped(U3)]
    if decoding:
        desk.end(TEXT, now=1.0)
    assert (desk.take_news(), desk.queue.depth, desk.queue.in_flight) == ([], 0, None)


def test_giving_up_tells_nothing_of_what_was_withdrawn() -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    desk.withdraw(SESSION, "u1")
    desk.give_up()
    assert desk.take_news() == []


def test_death_after_giving_up_is_not_replayed() -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    desk.give_up()
    assert desk.take_news() == [dropped(U1)]
    die(desk, 1.0)
    assert (desk.take_news(), desk.queue.in_flight) == ([], None)


# ---------------------------------------------------------------- states


def test_state_is_told_on_change_only() -> None:
    desk = desk_of()
    for state in (READY, RESTARTING, RESTARTING, READY):
        desk.receive_worker_state(state, now=1.0)
    assert desk.take_news() == [told(RESTARTING), told(READY)]
    assert desk.take_news() == []


# ---------------------------------------------------------------- drafts

OTHER = SessionId("other")
SPEAKING = Draft(OTHER, "u1", 0, 16_000, 1.0, False, False, OPTIONS, True, 8.0, lambda: SAMPLES)
COMPLETE = replace(SPEAKING, pausing=True, complete=True)
SPOKEN = replace(U1, session=OTHER, endpoint=EndpointReason.SILENCE)


def begun_draft(desk: Desk, now: float = 0.0) -> DraftKind | None:
    work = desk.begin(now)
    assert work is None or isinstance(work.of, DraftDecode)
    return work and work.of.kind


def speculating(*, finished: bool = False) -> Desk:
    """It began a speculation at 0, expected to take 1 s."""
    desk = desk_of(capacity=1)
    desk.hear(COMPLETE, now=0.0)
    assert begun_draft(desk) is DraftKind.SPECULATION
    if finished:
        desk.end(TEXT, now=0.5)
        assert desk.take_news() == [Partial(OTHER, "u1", "", "text", 16_000)]
    return desk


@pytest.mark.parametrize("draft", [SPEAKING, COMPLETE])
def test_draft_is_not_decoded_while_a_ticket_is_in_flight_or_waits(draft: Draft) -> None:
    desk = desk_of()
    desk.hear(draft, now=0.0)
    admit(desk, U1, U2)
    assert [begun(desk), begun(desk)] == [U1, None]
    desk.end(TEXT, now=1.0)
    assert begun(desk, 1.0) is U2
    desk.end(TEXT, now=2.0)
    assert begun_draft(desk, 2.0) is not None


@pytest.mark.parametrize("state", [RESTARTING, UNAVAILABLE])
def test_draft_is_decoded_by_a_ready_worker_that_does_not_drain(state: ServiceState) -> None:
    desk = desk_of()
    desk.hear(COMPLETE, now=0.0)
    desk.receive_worker_state(state, now=0.0)
    assert begun_draft(desk) is None
    desk.receive_worker_state(READY, now=1.0)
    desk.drain()
    assert (begun_draft(desk, 1.0), desk.next_deadline()) == (None, None)


def test_running_partial_counts_as_a_decode_ahead() -> None:
    desk = desk_of()
    desk.hear(SPEAKING, now=0.0)
    assert begun_draft(desk) is DraftKind.PARTIAL
    ticket = desk.offer(U1, now=0.125, max_wait_s=8.0)
    assert isinstance(ticket, Ticket)
    assert (ticket.position, ticket.estimated_wait_s, ticket.estimated_final_s) == (1, 0.125, 1.125)
    assert desk.begin(0.2) is None
    desk.end(TEXT, now=0.25)
    assert begun(desk, 0.25) is U1


def test_draft_whose_timer_comes_early_by_the_clock_begins_all_the_same() -> None:
    desk = desk_of()
    desk.hear(SPEAKING, now=0.0)
    desk.tick(0.125)
    assert (desk.begin(0.125), desk.next_deadline()) == (None, 0.25)
    desk.tick(0.25)
    assert begun_draft(desk, 0.2375) is DraftKind.PARTIAL


def test_partial_is_told_and_decoded_from_what_was_heard_by_then() -> None:
    desk = desk_of()
    desk.hear(SPEAKING, now=0.0)
    work = desk.begin(0.0)
    assert work is not None
    assert (work.samples is SAMPLES, work.options) == (True, DecodeOptions(None, partial=True))
    desk.end(TEXT, now=0.25)
    assert desk.take_news() == [Partial(OTHER, "u1", "", "text", 16_000)]


def test_finished_speculation_is_the_final_at_the_endpoint_past_a_full_queue() -> None:
    desk = speculating(finished=True)
    admit(desk, U1, U2, now=1.0)
    ticket = desk.offer(SPOKEN, now=1.0, max_wait_s=0.0)
    assert isinstance(ticket, Ticket)
    assert (ticket.position, ticket.estimated_wait_s, ticket.estimated_final_s) == (0, 0.0, 0.0)
    assert desk.take_news() == [Decoded(SPOKEN, TEXT, 0.0, speculated=True)]
    assert begun(desk, 1.0) is U1


def test_running_speculation_becomes_the_attempts_decode_past_a_full_queue() -> None:
    desk = speculating()
    admit(desk, U1, now=0.25)
    ticket = desk.offer(SPOKEN, now=0.25, max_wait_s=8.0)
    assert isinstance(ticket, Ticket)
    assert (ticket.position, ticket.estimated_wait_s, ticket.estimated_final_s) == (0, 0.0, 0.75)
    refused = desk.offer(U2, now=0.25, max_wait_s=8.0)
    assert refused == Shed(RefusalReason.QUEUE_FULL, 0.75, 1.75, 1, 1)
    desk.end(TEXT, now=1.0)
    assert desk.take_news() == [Decoded(SPOKEN, TEXT, 0.0, speculated=True)]
    assert begun(desk, 1.0) is U1


def test_promoted_speculation_is_replayed_after_a_death_like_any_other() -> None:
    desk = speculating()
    assert isinstance(desk.offer(SPOKEN, now=0.25, max_wait_s=8.0), Ticket)
    die(desk, 0.5)
    desk.receive_worker_state(READY, now=2.5)
    assert begun(desk, 2.5) == replace(SPOKEN, deaths=1)
    desk.end(TEXT, now=3.5)
    assert desk.take_news() == [told(READY), Decoded(replace(SPOKEN, deaths=1), TEXT, 0.0)]
    assert desk.drafts.n_wasted == 1


@pytest.mark.parametrize("finished", [False, True])
def test_withdrawn_after_its_promotion_it_is_told_nobody(finished: bool) -> None:
    desk = speculating(finished=finished)
    assert isinstance(desk.offer(SPOKEN, now=0.5, max_wait_s=8.0), Ticket)
    desk.take_news()
    desk.withdraw(OTHER, "u1")
    if not finished:
        desk.end(TEXT, now=1.0)
    assert (desk.take_news(), desk.queue.in_flight) == ([], None)


def test_promoted_speculation_that_fails_was_wasted() -> None:
    desk = speculating()
    assert isinstance(desk.offer(SPOKEN, now=0.25, max_wait_s=8.0), Ticket)
    desk.end(DecodeFailed("odd"), now=0.5)
    assert desk.drafts.n_wasted == 1


def test_drain_promotes_nothing() -> None:
    desk = speculating(finished=True)
    desk.drain()
    refused = desk.offer(SPOKEN, now=1.0, max_wait_s=8.0)
    assert refused == Shed(RefusalReason.DRAINING, 0.5, 0.0, 0, 1)


def test_failed_speculation_is_decoded_again_as_a_final() -> None:
    desk = speculating()
    desk.end(DecodeFailed("odd"), now=0.5)
    admit(desk, SPOKEN, now=0.5)
    assert begun(desk, 0.5) is SPOKEN
    assert desk.take_news() == []


def test_death_under_a_draft_counts_while_it_is_heard() -> None:
    desk = speculating()
    die(desk, 0.5)
    desk.receive_worker_state(READY, now=2.5)
    assert (desk.deaths_while_heard(OTHER, "u1"), begun_draft(desk, 2.5)) == (1, None)


def test_death_under_a_draft_counts_where_its_utterance_waits_or_is_held() -> None:
    desk = desk_of()
    desk.hear(SPEAKING, now=0.0)
    begun_draft(desk)
    admit(desk, SPOKEN, now=0.1)
    die(desk, 0.2)
    desk.receive_worker_state(READY, now=2.2)
    assert begun(desk, 2.2) == replace(SPOKEN, deaths=1)
    desk = desk_of()
    desk.hear(SPEAKING, now=0.0)
    begun_draft(desk)
    assert isinstance(desk.offer(SPOKEN, now=0.1, max_wait_s=0.0), Shed)
    desk.hold(SPOKEN, until=60.0)
    die(desk, 0.2)
    assert desk.reclaim(OTHER, "u1") == replace(SPOKEN, deaths=1)


def test_death_under_a_draft_counts_while_its_utterances_outcome_is_on_its_way() -> None:
    desk = desk_of()
    desk.hear(SPEAKING, now=0.0)
    begun_draft(desk)
    assert isinstance(desk.offer(SPOKEN, now=0.1, max_wait_s=0.4), Ticket)
    desk.tick(0.5)
    (unfinished,) = desk.take_news()
    die(desk, 0.5)
    assert isinstance(unfinished, Unfinished)
    desk.hold(unfinished.utterance, until=60.0)
    assert desk.reclaim(OTHER, "u1") == replace(SPOKEN, deaths=1)


def test_no_news_is_due_of_what_is_withdrawn_in_mid_partial() -> None:
    desk = desk_of()
    desk.hear(SPEAKING, now=0.0)
    begun_draft(desk)
    desk.withdraw(OTHER)
    desk.end(TEXT, now=0.25)
    assert (desk.take_news(), desk.next_deadline()) == ([], None)


def test_load_pauses_partials_once_and_the_next_one_ends_the_pause() -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    desk.hear(SPEAKING, now=0.0)
    assert desk.next_deadline() == 2.0
    desk.tick(1.999)
    assert desk.take_news() == []
    for now in (2.0, 3.0, 4.0):
        desk.tick(now)
    assert desk.take_news() == [ServiceStatus(READY, False)]
    desk.end(TEXT, now=5.0)
    assert begun_draft(desk, 5.0) is DraftKind.PARTIAL
    assert desk.take_news() == [Decoded(U1, TEXT, 0.0), ServiceStatus(READY, True)]


def test_pause_lasts_through_the_gaps_and_ends_of_speech_until_the_worker_is_free() -> None:
    """Regression: each gap between two words said `on`, and each word after it `paused`."""
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    desk.hear(SPEAKING, now=0.0)
    desk.tick(2.0)
    for now in (2.1, 2.2, 2.3):
        desk.hear(replace(SPEAKING, pausing=True), now=now)
        desk.tick(now)
        desk.hear(SPEAKING, now=now + 0.05)
        desk.tick(now + 0.05)
    admit(desk, SPOKEN, now=3.0)
    desk.end(TEXT, now=4.0)
    begun(desk, 4.0)
    assert desk.take_news() == [ServiceStatus(READY, False), Decoded(U1, TEXT, 0.0)]
    desk.end(TEXT, now=5.0)
    assert desk.take_news() == [Decoded(SPOKEN, TEXT, 1.0), ServiceStatus(READY, True)]


def test_frame_of_audio_under_load_costs_no_look_at_the_others() -> None:
    desk = desk_of()
    desk.hear(SPEAKING, now=0.0)
    admit(desk, U1)
    begun(desk)
    assert desk.hear(replace(SPEAKING, session=SESSION), now=0.5) == 2.5
    assert desk.next_deadline() == 2.0, "the timer has the others already"


def test_restart_is_no_load() -> None:
    desk = desk_of()
    desk.receive_worker_state(RESTARTING, now=0.0, load_s=9.0)
    desk.hear(SPEAKING, now=0.0)
    desk.tick(9.0)
    admit(desk, U1, now=9.0)
    desk.receive_worker_state(READY, now=9.0)
    begun(desk, 9.0)
    assert desk.take_news() == [told(RESTARTING), told(READY)]
    assert desk.next_deadline() == 11.0


def test_draft_has_its_moment_in_the_timer() -> None:
    desk = desk_of()
    desk.hear(SPEAKING, now=0.0)
    begun_draft(desk)
    desk.end(TEXT, now=0.25)
    desk.hear(replace(SPEAKING, session=SESSION), now=0.3)
    assert desk.next_deadline() == 0.55, "unless more is heard by then"


# ---------------------------------------------------------------- background

F1, F2 = (replace(U1, session=SessionId("file"), id=id) for id in ("f1", "f2"))


def put_behind(desk: Desk, *utterances: Utterance, now: float = 0.0, max_wait_s: float = math.inf) -> None:
    for utterance in utterances:
        assert isinstance(desk.offer_background(utterance, now=now, max_wait_s=max_wait_s), Ticket)


def behind(utterance: Utterance, wait_s: float) -> Decoded:
    return Decoded(utterance, TEXT, wait_s, is_slice=True)


def test_live_utterance_waits_for_one_slice_at_most() -> None:
    desk = desk_of()
    put_behind(desk, F1, F2)
    assert begun(desk) is F1
    admit(desk, U1, U2, now=0.5)
    for now, next_one in ((1.0, U1), (2.0, U2), (3.0, F2)):
        desk.end(TEXT, now=now)
        assert begun(desk, now) is next_one
    desk.end(TEXT, now=4.0)
    assert desk.take_news() == [behind(F1, 0.0), Decoded(U1, TEXT, 0.5), Decoded(U2, TEXT, 1.5), behind(F2, 3.0)]


def test_slice_may_wait_for_ever_and_no_timer_is_set_for_that() -> None:
    desk = desk_of()
    put_behind(desk, F1, F2)
    assert desk.next_deadline() is None
    desk.receive_worker_state(RESTARTING, now=0.0, load_s=2.0)
    assert desk.next_deadline() is None, "nor for the one that waits for the worker"
    desk.tick(1e9)
    desk.receive_worker_state(READY, now=1e9)
    assert desk.take_news() == [told(RESTARTING), told(READY)]
    assert begun(desk, 1e9) is F1


def test_slice_with_a_deadline_is_told_at_it() -> None:
    desk = desk_of()
    put_behind(desk, F1, F2, max_wait_s=8.0)
    begun(desk)
    assert desk.next_deadline() == 8.0
    desk.tick(8.0)
    assert desk.take_news() == [Unfinished(F2, Shed(RefusalReason.DEADLINE, 1.0, 7.0, 0, 16), 8.0, is_slice=True)]


@pytest.mark.parametrize("draft", [SPEAKING, COMPLETE])
def test_draft_is_not_decoded_while_a_slice_waits(draft: Draft) -> None:
    desk = desk_of()
    desk.hear(draft, now=0.0)
    put_behind(desk, F1, F2)
    for now, next_one in ((0.0, F1), (1.0, F2)):
        assert begun(desk, now) is next_one
        desk.end(TEXT, now=now + 1.0)
    assert begun_draft(desk, 2.0) is not None


def test_slice_is_replayed_handed_back_with_its_death_and_poison_the_second_time() -> None:
    desk = desk_of()
    put_behind(desk, F1)
    begun(desk)
    die(desk, 0.5)
    desk.receive_worker_state(UNAVAILABLE, now=1.0, load_s=9.0)
    once = replace(F1, deaths=1)
    crash = Shed(RefusalReason.WORKER_CRASHED, 1.0, 9.0, 0, 16)
    assert desk.take_news() == [Unfinished(once, crash, 1.0, is_slice=True), told(UNAVAILABLE)]
    desk.receive_worker_state(READY, now=10.0)
    put_behind(desk, once, now=10.0)
    assert (begun(desk, 10.0), desk.take_news()) == (once, [told(READY)])
    die(desk, 10.5, death=WorkerHung())
    poison = Failed(replace(F1, deaths=2), "poison_audio", "the recognizer died 2 times under this utterance")
    assert desk.take_news() == [poison]


def test_giving_up_drops_slices_too() -> None:
    desk = desk_of()
    put_behind(desk, F1, F2)
    admit(desk, U1)
    desk.give_up()
    assert desk.take_news() == [dropped(F1), dropped(U1), dropped(F2)]
    assert (desk.queue.background_depth, desk.queue.in_flight) == (0, None)


def test_withdrawn_slices_are_told_nobody() -> None:
    desk = desk_of()
    put_behind(desk, F1, F2)
    begun(desk)
    desk.withdraw(SessionId("file"))
    desk.end(TEXT, now=1.0)
    assert (desk.take_news(), begun(desk, 1.0)) == ([], None)


def test_who_asks_is_answered_after_what_is_due() -> None:
    desk = desk_of(capacity=1)
    admit(desk, U1, U2)
    begun(desk)
    assert desk.would_refuse(SESSION, now=7.0, max_wait_s=8.0) == Shed(RefusalReason.QUEUE_FULL, 1.0, 7.0, 1, 1)
    assert desk.would_refuse(SESSION, now=8.0, max_wait_s=8.0) is None
