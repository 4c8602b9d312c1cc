"""One contract for the scripted detector and the real one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from asr_ws.core.types import Detector
from asr_ws.detector import SileroModel
from asr_ws.testing import ScriptedDetector, scripted_audio

AUDIO = scripted_audio((3, 0.0), (4, 0.75), (2, 0.25), (3, 0.0)).reshape(-1, 512)

DETECTORS = pytest.mark.parametrize(
    "make", [ScriptedDetector, lambda: SileroModel().detector()], ids=["scripted", "silero"]
)


@DETECTORS
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_probabilities_do_not_depend_on_how_windows_are_grouped(make: Callable[[], Detector], size: int) -> None:
    detector = make()
    grouped = np.concatenate([detector.probabilities(AUDIO[i : i + size]) for i in range(0, 12, size)])
    assert grouped.shape == (12,)
    assert grouped.dtype == np.float32
    assert ((grouped >= 0) & (grouped <= 1)).all()
    assert np.array_equal(grouped, make().probabilities(AUDIO))


@DETECTORS
def test_reset_is_a_new_start(make: Callable[[], Detector]) -> None:
    detector = make()
    fresh = detector.probabilities(AUDIO)
    detector.reset()
    assert np.array_equal(detector.probabilities(AUDIO), fresh)


@DETECTORS
def test_a_window_of_another_size_is_a_bug(make: Callable[[], Detector]) -> None:
    with pytest.raises(AssertionError):
        make().probabilities(np.zeros((1, 480), np.float32))


def test_scripted_audio_says_what_the_scripted_detector_answers() -> None:
    quiet = np.float32(30 / 32768)
    assert ScriptedDetector().probabilities(AUDIO).tolist() == [quiet] * 3 + [0.75] * 4 + [0.25] * 2 + [quiet] * 3


def test_a_loud_negative_sample_is_as_loud() -> None:
    assert ScriptedDetector().probabilities(-2 * AUDIO[3:4]).tolist() == [1.0]
