"""Desk: who is decoded when, and what everybody is told. Every decode is expected to take 1 s; hints have no jitter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from asr_ws.core.admission import AdmissionQueue, Ticket
from asr_ws.core.desk import Desk
from asr_ws.core.holds import Holds
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.types import (
    Decoded,
    DecodeOptions,
    DropReason,
    EndpointReason,
    Failed,
    Hypothesis,
    RefusalReason,
    Released,
    ServiceState,
    SessionId,
    Shed,
    Unfinished,
    Utterance,
)
from asr_ws.errors import DecodeFailed, WorkerDied

READY, RESTARTING, UNAVAILABLE = ServiceState.READY, ServiceState.RESTARTING, ServiceState.UNAVAILABLE
SESSION = SessionId("s")
SAMPLES = np.zeros(16_000, np.float32)
OPTIONS = DecodeOptions(None)
U1, U2, U3 = (Utterance(SESSION, id, SAMPLES, 0, 16_000, EndpointReason.COMMIT, OPTIONS) for id in ("u1", "u2", "u3"))
TEXT = Hypothesis("text", "en", 1.0, (), None, 1.0)
SEGV = WorkerDied("segv")


def desk_of(capacity: int = 3) -> Desk:
    """Its worker is ready, and that was told."""
    desk = Desk(AdmissionQueue(capacity, ServiceTime(prior_s=1.0), lambda low, high: low), Holds())
    desk.receive_worker_state(READY, now=0.0)
    assert desk.take_news() == [READY]
    return desk


def admit(desk: Desk, *utterances: Utterance, now: float = 0.0, max_wait_s: float = 8.0) -> None:
    for utterance in utterances:
        assert isinstance(desk.offer(utterance, now=now, max_wait_s=max_wait_s), Ticket)


def begun(desk: Desk, now: float = 0.0) -> Utterance | None:
    ticket = desk.begin(now)
    return None if ticket is None else ticket.utterance


def die(desk: Desk, now: float, state: ServiceState = RESTARTING, load_s: float = 2.0) -> None:
    """Under the decode; the state is told first."""
    desk.receive_worker_state(state, now=now, load_s=load_s)
    assert desk.take_news() == [state]
    desk.end(SEGV, now=now)


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
    assert desk.take_news() == [READY, Decoded(replace(U1, deaths=1), TEXT, 0.0)]
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
    assert desk.take_news() == [READY, RESTARTING, poison]
    desk.receive_worker_state(READY, now=5.0)
    assert begun(desk, 5.0) is U2


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
    assert desk.take_news() == [crashed(replace(U1, deaths=1), 8.0, wait_s=5.0), READY]
    assert begun(desk, 8.0) is None


def test_unavailable_worker_gives_up_the_replay_before_its_state_is_told() -> None:
    desk = desk_of()
    admit(desk, U1)
    begun(desk)
    die(desk, 0.5)
    desk.receive_worker_state(UNAVAILABLE, now=1.0, load_s=30.0)
    assert desk.take_news() == [crashed(replace(U1, deaths=1), 1.0, wait_s=30.0), UNAVAILABLE]


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
    assert desk.take_news() == [RESTARTING, READY] * 3 + [Decoded(U1, TEXT, 0.0)]


@pytest.mark.parametrize("max_wait_s", [0.0, 8.0])  # 0: now or not at all
def test_ticket_that_waits_for_the_worker_is_given_up_at_its_deadline(max_wait_s: float) -> None:
    desk = desk_of()
    admit(desk, U1, max_wait_s=max_wait_s)
    desk.receive_worker_state(RESTARTING, now=0.0, load_s=10.0)
    assert desk.take_news() == [RESTARTING]
    assert desk.next_deadline() == max_wait_s
    desk.tick(max_wait_s + 0.5)
    assert desk.take_news() == [crashed(U1, max_wait_s + 0.5, wait_s=10.0 - max_wait_s - 0.5)]


def test_ticket_that_waits_for_the_worker_is_given_up_with_it() -> None:
    desk = desk_of()
    admit(desk, U1)
    desk.receive_worker_state(UNAVAILABLE, now=1.0, load_s=30.0)
    assert desk.take_news() == [crashed(U1, 1.0, wait_s=30.0), UNAVAILABLE]


def test_what_waits_in_the_queue_is_not_given_up_with_the_worker() -> None:
    desk = desk_of()
    admit(desk, U1, U2)
    desk.receive_worker_state(UNAVAILABLE, now=1.0, load_s=2.0)
    assert desk.take_news() == [crashed(U1, 1.0, wait_s=3.0, depth=1), UNAVAILABLE]
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
    assert (begun(desk, 2.5), desk.take_news()) == (None, [READY])


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
    assert desk.take_news() == [ServiceState.DRAINING, Decoded(U1, TEXT, 0.0), Decoded(U2, TEXT, 1.0)]


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
    assert desk.take_news() == [RESTARTING, READY]
    assert desk.take_news() == []
