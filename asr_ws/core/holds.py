"""Refused utterances whose audio the server keeps, so that a client retries by id without sending it again.

Rules: at most ``per_session`` a session and ``capacity_bytes`` in all, the oldest evicted first; each until its own
moment, at which it is released. The store never calls anybody: `put` returns what it evicted, `expire` what is due.
"""

from __future__ import annotations

from dataclasses import replace

from asr_ws.core.types import SessionId, Utterance

CAPACITY_BYTES = 64_000_000  # float32 at 16 kHz: 1000 s of speech, or 33 utterances of the greatest length
PER_SESSION = 2


class Holds:
    def __init__(self, capacity_bytes: int = CAPACITY_BYTES, per_session: int = PER_SESSION) -> None:
        self._capacity_bytes = capacity_bytes
        self._per_session = per_session
        self._held: dict[tuple[SessionId, str], tuple[Utterance, float]] = {}  # in the order of putting

    @property
    def n_bytes(self) -> int:
        return sum(utterance.n_bytes for utterance, _ in self._held.values())

    def put(self, utterance: Utterance, *, until: float) -> list[Utterance]:
        """Hold it until then. Returns: what had to go for it, oldest first."""
        self.remove(utterance.session, utterance.id)
        self._held[utterance.session, utterance.id] = (utterance, until)
        evicted: list[Utterance] = []
        own = [key for key in self._held if key[0] == utterance.session]
        for key in own[: -self._per_session]:
            evicted.append(self._held.pop(key)[0])
        while self.n_bytes > self._capacity_bytes and len(self._held) > 1:
            evicted.append(self._held.pop(next(iter(self._held)))[0])
        return evicted

    def remove(self, session: SessionId, utterance: str) -> Utterance | None:
        held = self._held.pop((session, utterance), None)
        return held and held[0]

    def count_death(self, session: SessionId, utterance: str) -> bool:
        """The worker died under a draft of it. Returns: whether it is held."""
        if held := self._held.get((session, utterance)):
            self._held[session, utterance] = (replace(held[0], deaths=held[0].deaths + 1), held[1])
        return held is not None

    def shorten(self, session: SessionId, utterance: str, *, until: float) -> None:
        """Release it at ``until``, if that is earlier than before."""
        if held := self._held.get((session, utterance)):
            self._held[session, utterance] = (held[0], min(held[1], until))

    def withdraw(self, session: SessionId, utterance: str | None = None) -> None:
        """Forget one utterance, or all of the session."""
        for key in [key for key in self._held if key[0] == session and utterance in (None, key[1])]:
            del self._held[key]

    def expire(self, now: float) -> list[Utterance]:
        due = [key for key, (_, until) in self._held.items() if until <= now]
        return [self._held.pop(key)[0] for key in due]

    def next_deadline(self) -> float | None:
        return min((until for _, until in self._held.values()), default=None)
