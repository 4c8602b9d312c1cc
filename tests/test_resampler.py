"""AvResampler against the resampler it wraps, and against what a resampler must not do to speech."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from asr_ws.core.types import Samples
from asr_ws.resampler import AvResampler

RATES = (8000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000, 192_000)
ODD_RATES = (12_345, 47_999)  # few factors in common with 16000


def noise(n: int) -> Samples:
    return np.random.default_rng(0).uniform(-0.5, 0.5, n).astype(np.float32)


def tone(hz: float, rate: int, n: int, amplitude: float = 0.5) -> Samples:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(n) / rate)).astype(np.float32)


def resample(rate: int, samples: Samples, *sizes: int) -> Samples:
    """Fed in pieces of these sizes, over and over; whole when none are given."""
    resampler = AvResampler(rate)
    ends = itertools.accumulate(itertools.cycle(sizes or (len(samples),)), initial=0)
    pieces, start = [], next(ends)
    while start < len(samples):
        end = next(ends)
        pieces.append(resampler.feed(samples[start:end]))
        start = end
    return np.concatenate([*pieces, resampler.flush()])


def level_db(samples: Samples) -> float:
    return float(20 * np.log10(np.sqrt(np.mean(samples.astype(float) ** 2))))


@pytest.mark.parametrize("rate", RATES + ODD_RATES)
def test_chunking_does_not_matter(rate: int) -> None:
    samples = noise(rate // 3 + 17)
    whole = resample(rate, samples)
    assert np.array_equal(resample(rate, samples, 7, 0, 1, 333, 960), whole)
    assert np.array_equal(resample(rate, samples, 20_000, 1), whole)


@pytest.mark.parametrize("rate", RATES + ODD_RATES)
def test_one_sample_at_a_time_gives_the_same(rate: int) -> None:
    samples = noise(2000)
    assert np.array_equal(resample(rate, samples, 1), resample(rate, samples))


@pytest.mark.parametrize("rate", RATES + ODD_RATES)
def test_the_duration_is_kept(rate: int) -> None:
    lengths = (0, 1, 5, 100, rate // 250, rate // 7, 2 * rate + 37)
    assert [len(resample(rate, noise(n))) for n in lengths] == [int(n * 16_000 / rate + 0.5) for n in lengths]


@pytest.mark.parametrize("rate", [*RATES, *ODD_RATES])
def test_a_tone_keeps_its_level_and_its_place_over_many_seconds(rate: int) -> None:
    resampled = resample(rate, tone(1000, rate, 20 * rate))
    carrier = np.exp(-2j * np.pi * 1000 * np.arange(len(resampled)) / 16_000)
    for part in (slice(160, 16_000), slice(-16_000, -160)):
        phasor = 2j * np.mean(resampled[part] * carrier[part])  # 0.5 for the sine that went in
        assert abs(20 * np.log10(abs(phasor) / 0.5)) < 0.01
        assert abs(np.angle(phasor)) / (2 * np.pi * 1000) < 1e-6  # seconds; 0.2 ms would already be good


@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000, 192_000])
def test_what_lies_above_8_khz_is_not_folded_down(rate: int) -> None:
    resampled = resample(rate, tone(10_000, rate, rate))
    assert level_db(resampled[1600:-1600]) - level_db(tone(10_000, rate, rate)) <= -60


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_the_result_is_that_of_pyavs_own_resampler(rate: int) -> None:
    samples = noise(rate)
    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="flt", layout="mono")
    frame.sample_rate = rate
    theirs = av.AudioResampler(format="flt", layout="mono", rate=16_000).resample(frame)
    expected = np.concatenate([part.to_ndarray()[0] for part in theirs])  # without its flush, which mirrors the end
    assert np.array_equal(resample(rate, samples)[: len(expected)], expected)


@pytest.mark.parametrize("rate", RATES + ODD_RATES)
@pytest.mark.parametrize("chunk_ms", [0, 4, 20])  # 0: sample by sample
def test_only_a_few_ms_are_held_back(rate: int, chunk_ms: int) -> None:
    resampler, n_in, n_out, most_held_s = AvResampler(rate), 0, 0, 0.0
    samples = noise(rate // 10)
    size = rate * chunk_ms // 1000 or 1
    for start in range(0, len(samples), size):
        n_in += len(samples[start : start + size])
        n_out += len(resampler.feed(samples[start : start + size]))
        if n_in >= rate // 50:  # before that the filter fills
            most_held_s = max(most_held_s, n_in / rate - n_out / 16_000)
    assert 0.0005 < most_held_s < 0.008


def test_full_scale_stays_within_full_scale() -> None:
    square = np.sign(tone(440, 48_000, 48_000)) + np.float32(0)
    resampled = resample(48_000, square.astype(np.float32))
    assert (resampled.min(), resampled.max()) == (-1, 1)


def test_silence_stays_silence_and_nothing_comes_of_nothing() -> None:
    assert not resample(48_000, np.zeros(48_000, np.float32)).any()
    unused = AvResampler(48_000)
    assert (len(unused.feed(np.empty(0, np.float32))), len(unused.flush())) == (0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_two_hundred_of_them_start_no_thread() -> None:
    before = len(list(Path("/proc/self/task").iterdir()))
    resamplers = [AvResampler(48_000) for _ in range(200)]
    fed = {len(resampler.feed(noise(960))) for resampler in resamplers}
    assert len(list(Path("/proc/self/task").iterdir())) <= before
    assert fed == {304}  # 320 less the filter's 1 ms
