"""Totals over sessions, of ledgers filled by hand."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from asr_ws.core.ledger import Ledger
from asr_ws.core.session import Session
from asr_ws.server.tally import Tally


class Ended:
    """A session's facts. Unrealistic: its ledger and outcomes are whatever the test says."""

    def __init__(self, sample_rate: int = 16_000) -> None:
        self.ledger = Ledger(sample_rate)
        self.outcomes = Counter[str]()


def session(sample_rate: int = 16_000) -> Session:
    return cast(Session, Ended(sample_rate))


def test_open_sessions_count_as_they_stand() -> None:
    tally, one, other = Tally(), session(16_000), session(48_000)
    with tally.counting(one), tally.counting(other):
        one.ledger.received = 32_000
        one.ledger.decoded = 16_000
        other.ledger.received = other.ledger.refused = 24_000
        one.outcomes["final"] += 1
        assert tally.audio_s() == {"decoded": 1.0, "silence": 0.0, "refused": 0.5, "lost": 0.0}, "not decided, not lost"
        one.ledger.silence = 8_000
        one.outcomes["dropped"] += 1
    assert tally.audio_s() == {"decoded": 1.0, "silence": 0.5, "refused": 0.5, "lost": 0.5}
    assert tally.outcomes() == {"final": 1, "error": 0, "dropped": 1}
    assert tally.n_sessions == 2


def test_files_count_once_they_are_added() -> None:
    tally = Tally()
    tally.add("final", decoded=16_000, silence=8_000)
    tally.add("error", decoded=8_000)
    tally.add(None, refused=4_000)
    assert tally.audio_s() == {"decoded": 1.5, "silence": 0.5, "refused": 0.25, "lost": 0.0}
    assert tally.outcomes() == {"final": 1, "error": 1, "dropped": 0}
    assert tally.n_sessions == 0


@given(
    st.lists(st.tuples(st.integers(8000, 192_000), st.lists(st.integers(0, 10**7), min_size=1, max_size=3)), max_size=6)
)
def test_totals_never_decrease(sessions: list[tuple[int, list[int]]]) -> None:
    """Regression: summed as floats, a total shrank by a rounding error when a session closed."""
    tally = Tally()
    seen = [tally.audio_s()["decoded"]]
    with ExitStack() as still_open:
        for n, (sample_rate, decoded) in enumerate(sessions):
            with ExitStack() as closing:
                counted = session(sample_rate)
                (closing if n % 2 else still_open).enter_context(tally.counting(counted))
                for n_frames in decoded:
                    counted.ledger.decoded += n_frames
                    tally.add(None, decoded=n_frames)
                    seen.append(tally.audio_s()["decoded"])
            seen.append(tally.audio_s()["decoded"])
    seen.append(tally.audio_s()["decoded"])
    assert seen == sorted(seen)
