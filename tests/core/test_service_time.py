"""ServiceTime: what a decode is expected to take."""

from __future__ import annotations

import pytest

from asr_ws.core.service_time import ServiceTime


def after(*decodes_s: float, prior_s: float = 1.0) -> float:
    service_time = ServiceTime(prior_s)
    for decode_s in decodes_s:
        service_time.observe(3.0, decode_s)
    return service_time.estimate(3.0)


def test_before_any_decode_it_is_the_prior() -> None:
    assert ServiceTime().estimate(3.0) == 1.0
    assert after(prior_s=0.25) == 0.25


def test_the_first_decode_replaces_the_prior() -> None:
    assert after(0.5, prior_s=100.0) == 0.5


def test_first_decodes_are_averaged_and_later_ones_count_for_a_fifth() -> None:
    assert after(0.5, 1.5, 2.5) == pytest.approx(1.5)
    assert after(*[0.5] * 10, 1.5) == pytest.approx(0.5 * 0.8 + 1.5 * 0.2)


def test_self_test_stands_in_until_the_first_decode() -> None:
    """Regression: a cold self-test of 9.5 s had decodes of 0.7 s refused for minutes."""
    service_time = ServiceTime(1.0)
    service_time.prime(11.0, 9.5)
    assert service_time.estimate(3.0) == 9.5
    service_time.observe(3.0, 0.7)
    assert service_time.estimate(3.0) == pytest.approx(0.7)
    service_time.prime(11.0, 9.5)  # after a restart
    assert service_time.estimate(3.0) == pytest.approx(0.7)


def test_a_machine_that_became_slower_is_believed_within_some_decodes() -> None:
    assert after(0.5, *[2.0] * 10) == pytest.approx(2.0, rel=0.1)


def test_one_slow_decode_is_not() -> None:
    assert after(*[0.5] * 10, 5.0) == pytest.approx(0.5 + 4.5 / 5)


def test_equal_decodes_are_estimated_exactly() -> None:
    assert after(*[0.5] * 20) == 0.5
