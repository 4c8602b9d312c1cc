from __future__ import annotations

from asr_ws.metrics import BOUNDS_S, WINDOW_N, WINDOW_S, Histogram, Metrics, Recent


def test_nothing_observed_is_zero_not_an_error() -> None:
    metrics = Metrics()
    assert (metrics.waits_s.mean(now=0.0), metrics.waits_s.p95(now=0.0), metrics.failed.mean(now=0.0)) == (0, 0, 0)


def test_p95_is_a_value_that_was_seen() -> None:
    waits_s = Recent()
    for n in range(1, 101):
        waits_s.add(float(n), now=0.0)
    assert (waits_s.mean(now=0.0), waits_s.p95(now=0.0)) == (50.5, 95.0)


def test_one_value_is_its_own_p95() -> None:
    waits_s = Recent()
    waits_s.add(3.0, now=0.0)
    assert waits_s.p95(now=0.0) == 3.0


def test_what_is_older_than_the_window_counts_no_more() -> None:
    metrics = Metrics()
    metrics.observe_wait(9.0, now=0.0)
    metrics.observe_failure("decode_failed", now=0.0)
    metrics.observe_wait(1.0, now=1.0)
    metrics.observe_decode("final", 0.1, now=1.0)
    assert (metrics.waits_s.mean(now=1.0), metrics.failed.mean(now=1.0)) == (5.0, 0.5)
    assert (metrics.waits_s.mean(now=WINDOW_S), metrics.failed.mean(now=WINDOW_S)) == (1.0, 0.0)
    assert metrics.waits_s.mean(now=WINDOW_S + 1.0) == 0.0
    assert metrics.wait_s.sum_s == 10.0  # the histogram forgets nothing


def test_a_flood_of_values_is_bounded() -> None:
    waits_s = Recent()
    waits_s.add(1e9, now=0.0)
    for _ in range(WINDOW_N):
        waits_s.add(1.0, now=0.0)
    assert waits_s.mean(now=0.0) == 1.0


def test_histogram_counts_up_to_and_including_each_bound() -> None:
    histogram = Histogram()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] + 1e-9, BOUNDS_S[-1], BOUNDS_S[-1] + 1):
        histogram.observe(seconds)
    assert (histogram.counts[:2], histogram.counts[-2:]) == ([2, 1], [1, 1])
    assert sum(histogram.counts) == 5
    assert histogram.sum_s == 2 * BOUNDS_S[0] + 1e-9 + 2 * BOUNDS_S[-1] + 1
