"""What the service counts, behind /v1/stats and /metrics: plain numbers, written by whoever sees a thing happen."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque

WINDOW = 512  # the latest waits and decodes that averages and rates are taken over

# Seconds, the upper bounds of the histograms' buckets: one ladder from a turn of the loop to the longest decode, so
# that any two can be compared. Close together from 0.1 to 1 s, where texts are awaited.
BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 30.0)


class Histogram:
    """How many of the observed seconds lie in each bucket."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)  # the last: beyond all bounds
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Metrics:
    def __init__(self) -> None:
        self.partials = 0
        self.finals = 0  # without slices of long files
        self.finals_speculated = 0
        self.refusals: Counter[str] = Counter()  # `busy`, by reason
        self.access_refused: Counter[str] = Counter()  # who may not come in, or finds no room, by why
        self.last_refused: dict[str, str] = {}  # the last one's address, and its page's origin where that was why
        self.unfinished: Counter[str] = Counter()  # `retry`, by reason
        self.decode_failures: Counter[str] = Counter()  # by the error's code
        self.wait_s = Histogram()
        self.decode_s = {"final": Histogram(), "partial": Histogram(), "job": Histogram()}
        self.final_latency_s = Histogram()  # from the end of speech
        self.first_partial_s = Histogram()  # from the onset of speech
        self.loop_lag_s = Histogram()
        self._waits_s: deque[float] = deque(maxlen=WINDOW)
        self._decodes_failed: deque[bool] = deque(maxlen=WINDOW)

    def observe_wait(self, wait_s: float) -> None:
        """One admitted attempt left the queue, for the worker or by its deadline; not a slice."""
        self._waits_s.append(wait_s)
        self.wait_s.observe(wait_s)

    def observe_decode(self, kind: str, decode_s: float) -> None:
        """Args: kind: ``final``, a speculation included, ``partial``, or ``job``, a slice of a long file too."""
        self._decodes_failed.append(False)
        self.decode_s[kind].observe(decode_s)

    def observe_failure(self, code: str) -> None:
        """A decode raised, or its worker ended."""
        self._decodes_failed.append(True)
        self.decode_failures[code] += 1

    @property
    def retries(self) -> int:
        return self.unfinished.total()

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
