"""Ledger: every frame is booked once, and the milliseconds add up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_ws.core.ledger import Ledger

FATES = ("decoded_ms", "silence_ms", "refused_ms", "lost_ms")


def test_nothing_received_is_nothing_booked() -> None:
    ledger = Ledger(16_000)
    ledger.finish()
    assert ledger.as_ms() == {"received_ms": 0, "decoded_ms": 0, "silence_ms": 0, "refused_ms": 0, "lost_ms": 0}


def test_what_lies_between_utterances_is_silence() -> None:
    ledger = Ledger(16_000)
    ledger.receive(16_000)
    ledger.decoded += ledger.claim(1600, 4800)
    ledger.refused += ledger.claim(8000, 9600)
    ledger.finish()
    assert ledger.as_ms() == {
        "received_ms": 1000,
        "decoded_ms": 200,
        "silence_ms": 700,
        "refused_ms": 100,
        "lost_ms": 0,
    }


def test_a_claim_says_how_many_frames_it_took() -> None:
    ledger = Ledger(48_000)
    ledger.receive(48_000)
    assert ledger.claim(1600, 4800) == 9600
    assert ledger.silence == 4800


def test_what_nobody_books_is_lost() -> None:
    ledger = Ledger(16_000)
    ledger.receive(1600)
    ledger.claim(0, 800)
    ledger.finish()
    assert (ledger.silence, ledger.lost) == (800, 800)
    assert ledger.as_ms()["lost_ms"] == 50


def test_what_is_not_settled_yet_counts_as_lost_until_it_is() -> None:
    ledger = Ledger(16_000)
    ledger.receive(1600)
    assert ledger.lost == 1600
    ledger.finish()
    assert ledger.lost == 0


def test_finishing_twice_books_once() -> None:
    ledger = Ledger(16_000)
    ledger.receive(1600)
    ledger.finish()
    ledger.finish()
    assert (ledger.silence, ledger.lost) == (1600, 0)


def test_invalid_frames_are_refused_and_in_no_utterance_or_silence() -> None:
    ledger = Ledger(16_000)
    ledger.receive(1000)
    ledger.receive(200, 200)  # before the utterance
    ledger.receive(1000)
    ledger.receive(300, 300)  # inside it
    ledger.receive(500)
    ledger.receive(400, 400)  # half inside, half after it
    ledger.receive(600)
    assert ledger.claim(1500, 3200) == 1700 - 300 - 200
    ledger.finish()
    assert (ledger.silence, ledger.refused) == (1500 - 200 + 600, 900)
    assert ledger.lost == 1200


def test_an_invalid_frame_that_two_utterances_share_is_booked_once() -> None:
    ledger = Ledger(16_000)
    ledger.receive(1000)
    ledger.receive(1000, 1000)
    ledger.receive(1000)
    assert [ledger.claim(500, 1400), ledger.claim(1400, 2500)] == [500, 500]
    ledger.finish()
    assert (ledger.silence, ledger.refused, ledger.lost) == (1000, 1000, 1000)


@pytest.mark.parametrize("n_invalid", [0, 1])
def test_what_is_remembered_of_invalid_frames_is_bounded_by_time(n_invalid: int) -> None:
    """Regression: every message of them was remembered, for as long as nobody spoke."""
    ledger = Ledger(16_000)
    for _ in range(16_000):
        ledger.receive(1, 1)
        ledger.receive(1, n_invalid)
    assert len(ledger._marks) <= 2 * 200 + 3, "two marks in 10 ms"
    assert ledger.claim(0, 32_000) == 16_000 * (1 - n_invalid)
    assert len(ledger._marks) <= 2


def test_invalid_frames_that_lie_close_together_are_spread_between_two_utterances_and_add_up() -> None:
    ledger = Ledger(16_000)
    for _ in range(100):
        ledger.receive(1, 1)
        ledger.receive(1)
    assert ledger.claim(0, 77) + ledger.claim(77, 200) == 100


def test_samples_beyond_what_was_received_are_the_resamplers_and_nobodys_frames() -> None:
    ledger = Ledger(44_100)
    ledger.receive(44_100)
    ledger.decoded += ledger.claim(0, 16_017)
    ledger.finish()
    assert (ledger.decoded, ledger.lost) == (44_100, 0)


@pytest.mark.parametrize("sample_rate", [8000, 11_025, 16_000, 44_100, 48_000, 192_000])
def test_adjacent_utterances_leave_nothing_between_them_at_any_rate(sample_rate: int) -> None:
    ledger = Ledger(sample_rate)
    ledger.receive(sample_rate)
    for start in range(0, 16_000, 1001):
        ledger.decoded += ledger.claim(start, min(start + 1001, 16_000))
    ledger.finish()
    assert (ledger.decoded, ledger.silence, ledger.lost) == (sample_rate, 0, 0)


@settings(max_examples=200, deadline=None)
@given(
    sample_rate=st.integers(8000, 192_000),
    messages=st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 1)), max_size=12),
    edges=st.lists(st.integers(0, 40_000), max_size=12).map(sorted),
    fates=st.lists(st.sampled_from(["decoded", "refused"]), min_size=6, max_size=6),
)
def test_the_parts_add_up_and_nothing_is_lost(
    sample_rate: int, messages: list[tuple[int, float]], edges: list[int], fates: list[str]
) -> None:
    ledger = Ledger(sample_rate)
    for n_frames, share in messages:
        ledger.receive(n_frames, int(n_frames * share))
    for start, end, fate in zip(edges[::2], edges[1::2], fates, strict=False):
        n_frames = ledger.claim(start, end)
        assert n_frames >= 0
        setattr(ledger, fate, getattr(ledger, fate) + n_frames)
    ledger.finish()
    assert ledger.lost == 0
    assert ledger.silence >= 0
    ms = ledger.as_ms()
    assert sum(ms[fate] for fate in FATES) == ms["received_ms"]
    assert ms["lost_ms"] == 0
    assert ms["received_ms"] == round(ledger.received * 1000 / sample_rate)
    assert all(
        abs(ms[f"{fate}_ms"] - getattr(ledger, fate) * 1000 / sample_rate) <= 1 for fate in ("decoded", "silence")
    )
