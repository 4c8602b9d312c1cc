"""What all sessions and files came to: the closed sessions, and the open ones as they stand. No total ever decreases.

Whole nanoseconds, because a session's part must stay the same when it moves from the open ones to the closed:
Prometheus takes a total that is smaller by a rounding error for a restart.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from asr_ws.core.session import Session
from asr_ws.core.types import SAMPLE_RATE

NS_PER_S = 1_000_000_000
OUTCOMES = ("final", "error", "dropped")
FATES = ("decoded", "silence", "refused", "lost")


class Tally:
    def __init__(self) -> None:
        self.n_sessions = 0  # that were ever opened
        self._open: set[Session] = set()
        self._outcomes = Counter[str]()  # of closed sessions, and of files
        self._audio_ns = Counter[str]()

    @contextlib.contextmanager
    def counting(self, session: Session) -> Iterator[None]:
        """The session is open for as long; at the end it has seen its disconnect."""
        self.n_sessions += 1
        self._open.add(session)
        try:
            yield
        finally:
            self._open.remove(session)
            self._outcomes.update(session.outcomes)
            self._audio_ns.update(_audio_ns(session))
            # Before its end a session's audio is not lost, only not decided yet.
            self._audio_ns["lost"] += _ns(max(0, session.ledger.lost), session)

    def add(self, outcome: str | None, *, decoded: int = 0, silence: int = 0, refused: int = 0) -> None:
        """What came to its end outside of a session: an utterance, or some audio alone.

        Args: decoded, silence, refused: samples at 16 kHz.
        """
        assert outcome is None or outcome in OUTCOMES
        if outcome is not None:
            self._outcomes[outcome] += 1
        for fate, n_samples in (("decoded", decoded), ("silence", silence), ("refused", refused)):
            self._audio_ns[fate] += n_samples * NS_PER_S // SAMPLE_RATE

    def outcomes(self) -> dict[str, int]:
        """Utterances that had their one outcome."""
        totals = sum((session.outcomes for session in self._open), self._outcomes)
        return {outcome: totals[outcome] for outcome in OUTCOMES}

    def audio_s(self) -> dict[str, float]:
        """Audio whose fate is decided, by fate."""
        totals = Counter(self._audio_ns)
        for session in self._open:
            totals.update(_audio_ns(session))
        return {fate: totals[fate] / NS_PER_S for fate in FATES}


def _audio_ns(session: Session) -> dict[str, int]:
    ledger = session.ledger
    booked = {"decoded": ledger.decoded, "silence": ledger.silence, "refused": ledger.refused}
    return {fate: _ns(n_frames, session) for fate, n_frames in booked.items()}


def _ns(n_frames: int, session: Session) -> int:
    return n_frames * NS_PER_S // session.ledger.sample_rate
