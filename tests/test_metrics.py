from __future__ import annotations

from asr_ws.metrics import BOUNDS_S, WINDOW, Histogram, Metrics


def test_nothing_observed_is_zero_not_an_error() -> None:
    metrics = Metrics()
    assert (metrics.avg_wait_s, metrics.p95_wait_s, metrics.decode_fail_rate) == (0.0, 0.0, 0.0)


def test_p95_is_a_wait_that_happened() -> None:
    metrics = Metrics()
    for n in range(1, 101):
        metrics.observe_wait(float(n))
    assert (metrics.avg_wait_s, metrics.p95_wait_s) == (50.5, 95.0)


def test_one_wait_is_its_own_p95() -> None:
    metrics = Metrics()
    metrics.observe_wait(3.0)
    assert metrics.p95_wait_s == 3.0


def test_only_the_latest_count() -> None:
    metrics = Metrics()
    metrics.observe_wait(1e9)
    metrics.observe_failure("decode_failed")
    for _ in range(WINDOW):
        metrics.observe_wait(1.0)
        metrics.observe_decode("final", 0.1)
    assert (metrics.avg_wait_s, metrics.decode_fail_rate) == (1.0, 0.0)


def test_histogram_counts_up_to_and_including_each_bound() -> None:
    histogram = Histogram()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] + 1e-9, BOUNDS_S[-1], BOUNDS_S[-1] + 1):
        histogram.observe(seconds)
    assert (histogram.counts[:2], histogram.counts[-2:]) == ([2, 1], [1, 1])
    assert sum(histogram.counts) == 5
    assert histogram.sum_s == 2 * BOUNDS_S[0] + 1e-9 + 2 * BOUNDS_S[-1] + 1
