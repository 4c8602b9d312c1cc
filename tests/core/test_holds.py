"""Holds: what is kept for a retry, and what has to go."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from asr_ws.core.holds import CAPACITY_BYTES, PER_SESSION, Holds
from asr_ws.core.types import DecodeOptions, EndpointReason, SessionId, Utterance

A, B, C = SessionId("a"), SessionId("b"), SessionId("c")
OPTIONS = DecodeOptions(language=None)


def utterance(session: SessionId, id: str, n_samples: int = 100) -> Utterance:
    return Utterance(session, id, np.zeros(n_samples, np.float32), 0, n_samples, EndpointReason.SILENCE, OPTIONS)


def names(utterances: Iterable[Utterance]) -> list[tuple[str, str]]:
    return [(utterance.session, utterance.id) for utterance in utterances]


def test_what_is_held_comes_back_once() -> None:
    holds, held = Holds(), utterance(A, "u1")
    assert holds.put(held, until=60.0) == []
    assert holds.remove(A, "u1") is held
    assert holds.remove(A, "u1") is None
    assert holds.next_deadline() is None


def test_what_was_never_held_is_none() -> None:
    holds = Holds()
    holds.put(utterance(A, "u1"), until=60.0)
    assert holds.remove(A, "u2") is None
    assert holds.remove(B, "u1") is None


def test_a_third_of_one_session_evicts_its_oldest() -> None:
    holds = Holds()
    holds.put(utterance(B, "u1"), until=1.0)
    holds.put(utterance(A, "u1"), until=60.0)
    holds.put(utterance(A, "u2"), until=5.0)
    assert names(holds.put(utterance(A, "u3"), until=60.0)) == [("a", "u1")]
    assert names(holds.expire(60.0)) == [("b", "u1"), ("a", "u2"), ("a", "u3")]


def test_what_was_held_again_is_the_youngest() -> None:
    holds = Holds()
    holds.put(utterance(A, "u1"), until=60.0)
    holds.put(utterance(A, "u2"), until=60.0)
    retried = holds.remove(A, "u1")
    assert retried is not None
    holds.put(retried, until=60.0)
    assert names(holds.put(utterance(A, "u3"), until=60.0)) == [("a", "u2")]


def test_putting_a_held_one_again_makes_it_the_youngest_and_moves_its_moment() -> None:
    holds = Holds()
    holds.put(utterance(A, "u1"), until=5.0)
    holds.put(utterance(A, "u2"), until=60.0)
    assert holds.put(utterance(A, "u1"), until=70.0) == []
    assert holds.n_bytes == 800
    assert names(holds.put(utterance(A, "u3"), until=80.0)) == [("a", "u2")]
    assert names(holds.expire(75.0)) == [("a", "u1")]


def test_the_oldest_of_all_sessions_go_when_the_memory_is_full() -> None:
    holds = Holds(capacity_bytes=1200)
    holds.put(utterance(A, "u1"), until=60.0)
    holds.put(utterance(B, "u1"), until=5.0)
    assert holds.put(utterance(C, "u1"), until=60.0) == []
    assert holds.n_bytes == 1200
    assert names(holds.put(utterance(B, "u2", n_samples=101), until=60.0)) == [("a", "u1"), ("b", "u1")]
    assert holds.n_bytes == 804


def test_what_is_larger_than_the_memory_evicts_everything_but_itself() -> None:
    holds = Holds(capacity_bytes=1200)
    holds.put(utterance(A, "u1"), until=60.0)
    assert names(holds.put(utterance(B, "u1", n_samples=1000), until=60.0)) == [("a", "u1")]
    assert names(holds.expire(60.0)) == [("b", "u1")]


def test_the_limits_are_the_protocols() -> None:
    assert (PER_SESSION, CAPACITY_BYTES) == (2, 64_000_000)


def test_it_is_released_at_its_moment_and_not_before() -> None:
    holds = Holds()
    holds.put(utterance(A, "u1"), until=60.0)
    holds.put(utterance(B, "u1"), until=30.0)
    assert holds.next_deadline() == 30.0
    assert holds.expire(29.999) == []
    assert names(holds.expire(30.0)) == [("b", "u1")]
    assert holds.expire(30.0) == []
    assert holds.next_deadline() == 60.0
    assert names(holds.expire(1e9)) == [("a", "u1")]


def test_a_hold_is_shortened_and_never_lengthened() -> None:
    holds = Holds()
    holds.put(utterance(A, "u1"), until=60.0)
    holds.shorten(A, "u1", until=90.0)
    assert holds.next_deadline() == 60.0
    holds.shorten(A, "u1", until=6.0)
    assert holds.next_deadline() == 6.0
    holds.shorten(A, "u2", until=1.0)
    assert names(holds.expire(6.0)) == [("a", "u1")]


def test_withdrawn_is_forgotten_without_being_released() -> None:
    holds = Holds()
    holds.put(utterance(A, "u1"), until=60.0)
    holds.put(utterance(A, "u2"), until=60.0)
    holds.put(utterance(B, "u1"), until=60.0)
    holds.withdraw(A, "u1")
    assert holds.n_bytes == 800
    holds.withdraw(A, "u1")
    holds.withdraw(A)
    assert names(holds.expire(60.0)) == [("b", "u1")]
