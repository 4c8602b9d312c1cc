from __future__ import annotations

from asr_ws.metrics import WINDOW, Metrics


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
    metrics.observe_decode(failed=True)
    for _ in range(WINDOW):
        metrics.observe_wait(1.0)
        metrics.observe_decode(failed=False)
    assert (metrics.avg_wait_s, metrics.decode_fail_rate) == (1.0, 0.0)
