"""What the service counts: the numbers behind /v1/stats."""

from __future__ import annotations

from collections import Counter, deque

WINDOW = 512  # the latest waits and decodes that averages and rates are taken over


class Metrics:
    def __init__(self) -> None:
        self.partials = 0
        self.finals = 0
        self.finals_speculated = 0
        self.retries = 0
        self.refusals: Counter[str] = Counter()  # by reason
        self._waits_s: deque[float] = deque(maxlen=WINDOW)
        self._decodes_failed: deque[bool] = deque(maxlen=WINDOW)

    def observe_wait(self, wait_s: float) -> None:
        """One admitted attempt left the queue, for the worker or by its deadline."""
        self._waits_s.append(wait_s)

    def observe_decode(self, *, failed: bool) -> None:
        self._decodes_failed.append(failed)

    @property
    def avg_wait_s(self) -> float:
        return sum(self._waits_s) / len(self._waits_s) if self._waits_s else 0.0

    @property
    def p95_wait_s(self) -> float:
        """The nearest rank: a wait that really happened."""
        waits_s = sorted(self._waits_s)
        return waits_s[max(0, -(-95 * len(waits_s) // 100) - 1)] if waits_s else 0.0

    @property
    def decode_fail_rate(self) -> float:
        """Of the latest decodes, the share that died or raised."""
        return sum(self._decodes_failed) / len(self._decodes_failed) if self._decodes_failed else 0.0
