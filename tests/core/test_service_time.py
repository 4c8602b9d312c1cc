"""ServiceTime: what a decode is expected to take."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_ws.core.service_time import LEAST_S, ServiceTime

DECODES = st.lists(st.tuples(st.floats(0.1, 30.0), st.floats(0.0, 60.0)), min_size=1, max_size=40)


def after(decodes: Iterable[tuple[float, float]]) -> ServiceTime:
    """Args: decodes: how long each one's audio was, and how long it took."""
    service_time = ServiceTime()
    for audio_s, decode_s in decodes:
        service_time.observe(audio_s, decode_s)
    return service_time


def line(audio_s: float) -> float:
    return 0.25 + 0.0625 * audio_s


# ---------------------------------------------------------------- before there are decodes


def test_the_prior_is_taken_at_its_word_for_every_length() -> None:
    service_time = ServiceTime(0.25)
    assert [service_time.estimate(audio_s) for audio_s in (0.1, 3.0, 30.0)] == [0.25, 0.25, 0.25]
    assert service_time.sigma == 0.0


def test_of_the_self_test_a_second_costs_about_half_of_eleven() -> None:
    service_time = ServiceTime()
    service_time.prime(11.0, 1.9)
    assert [service_time.estimate(audio_s) for audio_s in (1.0, 11.0, 30.0)] == pytest.approx([0.9, 1.9, 3.8])
    assert service_time.sigma == 0.475


def test_the_latest_self_test_counts() -> None:
    service_time = ServiceTime()
    service_time.prime(11.0, 9.0)
    service_time.prime(11.0, 1.5)
    assert service_time.estimate(11.0) == 1.5


def test_self_test_stands_in_until_the_first_decode() -> None:
    """Regression: a cold self-test of 9.5 s had decodes of 0.7 s refused for minutes."""
    service_time = ServiceTime()
    service_time.prime(11.0, 9.5)
    service_time.observe(3.0, 0.7)
    assert (service_time.estimate(3.0), service_time.sigma) == (0.7, 0.175)
    service_time.prime(11.0, 9.5)  # after a restart
    assert (service_time.estimate(3.0), service_time.sigma) == (0.7, 0.175)


def test_a_first_decode_that_is_an_outlier_is_measured_by_the_self_test() -> None:
    service_time = ServiceTime()
    service_time.prime(11.0, 1.5)
    service_time.observe(11.0, 60.0)
    assert service_time.estimate(11.0) == 4.5


# ---------------------------------------------------------------- the line


def test_decodes_on_a_line_are_estimated_on_that_line() -> None:
    service_time = after((audio_s, line(audio_s)) for audio_s in (1.0, 9.0, 3.0, 6.0, 2.0) * 6)
    for audio_s in (1.0, 5.0, 9.0, 30.0):
        assert service_time.estimate(audio_s) == pytest.approx(line(audio_s), rel=0.02)


def test_a_decode_that_costs_the_same_for_every_length_is_learned_too() -> None:
    """As with the full encoder window."""
    service_time = after((audio_s, 0.5) for audio_s in (1.0, 9.0, 3.0, 6.0, 2.0) * 6)
    assert service_time.estimate(0.5) == pytest.approx(0.5, rel=0.1)
    assert service_time.estimate(15.0) == pytest.approx(0.5, rel=0.1)


def test_lengths_that_are_all_alike_give_their_mean_and_the_models_slope() -> None:
    service_time = after([(4.0, 0.8)] * 20)
    assert (service_time.estimate(4.0), service_time.estimate(16.0)) == pytest.approx((0.8, 1.6))


def test_lengths_that_are_nearly_alike_do_not_make_a_slope_of_their_noise() -> None:
    service_time = after([(3.99, 0.9), (4.01, 0.7)] * 10)
    assert service_time.estimate(16.0) == pytest.approx(1.6, rel=0.05)


def test_longer_audio_that_took_less_does_not_make_a_falling_line() -> None:
    service_time = after([(1.0, 1.0), (9.0, 0.5)] * 10)
    assert service_time.estimate(1.0) == service_time.estimate(30.0)


def test_no_work_rounds_to_no_time() -> None:
    assert after([(3.0, 0.0)] * 3).estimate(3.0) == LEAST_S


@given(DECODES)
def test_estimates_are_positive_and_grow_with_the_audio_but_not_faster_than_it(
    decodes: list[tuple[float, float]],
) -> None:
    service_time = after(decodes)
    for shorter_s, longer_s in pairwise([0.1, 1.0, 5.0, 15.0, 30.0]):
        shorter, longer = service_time.estimate(shorter_s), service_time.estimate(longer_s)
        assert LEAST_S <= shorter <= longer + 1e-9
        assert longer <= max(shorter * longer_s / shorter_s, LEAST_S) * (1 + 1e-6) + LEAST_S


@given(st.lists(st.floats(0.1, 30.0), min_size=1, max_size=40))
def test_decodes_that_cost_as_is_known_are_estimated_exactly_whatever_their_order(lengths_s: list[float]) -> None:
    service_time = after((audio_s, 0.0625 * (8.0 + audio_s)) for audio_s in lengths_s)
    assert [service_time.estimate(audio_s) for audio_s in (1.0, 12.0)] == pytest.approx([0.5625, 1.25])


@given(st.floats(0.1, 30.0), st.lists(st.floats(0.5, 1.5), min_size=1, max_size=40))
def test_of_decodes_of_one_length_the_estimate_is_a_mean(audio_s: float, decodes_s: list[float]) -> None:
    estimate = after((audio_s, decode_s) for decode_s in decodes_s).estimate(audio_s)
    assert min(decodes_s) - 1e-9 <= estimate <= max(decodes_s) + 1e-9


@given(st.lists(st.tuples(st.floats(0.1, 30.0), st.floats(0.5, 60.0)), min_size=1, max_size=20))
def test_a_machine_half_as_fast_is_expected_to_take_twice_as_long(decodes: list[tuple[float, float]]) -> None:
    fast, slow = after(decodes), after((audio_s, 2 * decode_s) for audio_s, decode_s in decodes)
    assert (slow.estimate(5.0), slow.sigma) == pytest.approx((2 * fast.estimate(5.0), 2 * fast.sigma))


# ---------------------------------------------------------------- the latest weigh most


def test_first_decodes_are_averaged_the_latest_counting_most() -> None:
    assert after([(3.0, 0.5), (3.0, 1.0)]).estimate(3.0) == pytest.approx((0.9 * 0.5 + 1.0) / 1.9)


def test_equal_decodes_are_estimated_exactly() -> None:
    service_time = after([(3.0, 0.5)] * 20)
    assert service_time.estimate(3.0) == 0.5


@pytest.mark.parametrize(("times_slower", "n_decodes"), [(2.0, 20), (10.0, 30)])
def test_a_machine_that_became_slower_is_believed_soon(times_slower: float, n_decodes: int) -> None:
    service_time = after([(3.0, 0.5)] * 50 + [(3.0, 0.5 * times_slower)] * n_decodes)
    assert service_time.estimate(3.0) == pytest.approx(0.5 * times_slower, rel=0.15)


def test_one_outlier_of_any_size_is_not() -> None:
    for decode_s in (5.0, 500.0):
        service_time = after([(3.0, 0.5)] * 100 + [(3.0, decode_s)])
        assert service_time.estimate(3.0) == pytest.approx(0.6, rel=0.001)
        for _ in range(10):
            service_time.observe(3.0, 0.5)
        assert service_time.estimate(3.0) == pytest.approx(0.535, rel=0.001)


def test_an_outlier_among_many_lengths_is_forgotten_at_every_length() -> None:
    lengths = (1.0, 9.0, 3.0, 6.0, 2.0)
    service_time = after((audio_s, line(audio_s)) for audio_s in lengths * 6)
    service_time.observe(12.0, 10 * line(12.0))
    for audio_s in lengths * 4:
        service_time.observe(audio_s, line(audio_s))
    for audio_s in (1.0, 5.0, 12.0):
        assert service_time.estimate(audio_s) == pytest.approx(line(audio_s), rel=0.2)


# ---------------------------------------------------------------- sigma


def test_sigma_is_the_error_that_estimates_had_before_their_decodes() -> None:
    service_time = after([(3.0, 0.5)])
    assert service_time.sigma == 0.125  # none yet
    service_time.observe(3.0, 1.0)  # 0.5 was expected
    assert service_time.sigma == pytest.approx((0.9 * 0.125 + 0.5) / 1.9)


def test_sigma_of_steady_noise_is_its_mean_size() -> None:
    assert after([(3.0, 0.9), (3.0, 1.1)] * 50).sigma == pytest.approx(0.1, rel=0.1)


def test_sigma_vanishes_with_the_errors() -> None:
    assert after([(3.0, 0.5)] * 60).sigma == pytest.approx(0.0, abs=0.001)


def test_an_outlier_of_any_size_is_a_bounded_error() -> None:
    for decode_s in (5.0, 500.0):
        assert after([(3.0, 0.5)] * 100 + [(3.0, decode_s)]).sigma == pytest.approx(0.1, rel=0.001)
