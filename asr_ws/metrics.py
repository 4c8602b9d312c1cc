"""What the service counts, behind /v1/stats and /metrics: plain numbers, written by whoever sees a thing happen.

No clock is read here: ``now`` is monotonic seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque

WINDOW_S = 300.0  # that averages and rates slide over: long enough for a p95, short enough to be about now
WINDOW_N = 4096  # and the most values: 13 a second

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


class Recent:
    """The values of the last `WINDOW_S`, the latest `WINDOW_N` of them."""

    def __init__(self) -> None:
        self._values: deque[tuple[float, float]] = deque(maxlen=WINDOW_N)

    def add(self, value: float, *, now: float) -> None:
        self._values.append((now, value))

    def _at(self, now: float) -> list[float]:
        while self._values and self._values[0][0] <= now - WINDOW_S:
            self._values.popleft()
        return [value for _, value in self._values]

    def mean(self, *, now: float) -> float:
        """Zero where there is none."""
        values = self._at(now)
        return sum(values) / len(values) if values else 0.0

    def p95(self, *, now: float) -> float:
        """The nearest rank: a value that was really seen. Zero where there is none."""
        values = sorted(self._at(now))
        return values[max(0, -(-95 * len(values) // 100) - 1)] if values else 0.0


class Metrics:
    """Attributes: waits_s: recent ones, in the queue. failed: recent decodes, 1.0 for one that died or raised."""

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
        self.waits_s = Recent()
        self.failed = Recent()

    def observe_wait(self, wait_s: float, *, now: float) -> None:
        """One admitted attempt left the queue, for the worker or by its deadline; not a slice."""
        self.waits_s.add(wait_s, now=now)
        self.wait_s.observe(wait_s)

    def observe_decode(self, kind: str, decode_s: float, *, now: float) -> None:
        """Args: kind: ``final``, a speculation included, ``partial``, or ``job``, a slice of a long file too."""
        self.failed.add(0.0, now=now)
        self.decode_s[kind].observe(decode_s)

    def observe_failure(self, code: str, *, now: float) -> None:
        """A decode raised, or its worker ended."""
        self.failed.add(1.0, now=now)
        self.decode_failures[code] += 1

    @property
    def retries(self) -> int:
        return self.unfinished.total()
