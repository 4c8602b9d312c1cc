"""A speech detector whose answers are written into the audio."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from asr_ws.core.types import Samples

_WINDOW = 512
_FLOOR = 31  # steps of 16-bit audio: a quiet ramp that tells positions apart


class ScriptedDetector:
    """A `Detector` that takes each window's loudest sample (its absolute value) for the probability of speech.

    What is unrealistic: it remembers nothing, so `reset` has nothing to do; a click is speech and a whisper is not;
    it answers for the window itself, where Silero also weighs the ones before and fades out over some.
    """

    def probabilities(self, windows: Samples) -> NDArray[np.float32]:
        assert windows.shape[1:] == (_WINDOW,), windows.shape
        loudest: NDArray[np.float32] = np.abs(windows).max(axis=1)
        return np.minimum(loudest, np.float32(1))

    def reset(self) -> None: ...


def scripted_audio(*spans: tuple[int, float]) -> Samples:
    """Audio for the `ScriptedDetector`: ``(20, 0.0), (10, 0.9)`` is 20 quiet windows, then 10 of probability 0.9.

    Only the last sample of each window is that loud, so a window is decided when it ends, and not before. The others
    are a ramp below 0.001, the least probability there is, that differs from what lies a few windows away.

    Returns:
        shape (512 * windows,); the ramp survives a conversion to 16 bits exactly, a probability nearly.
    """
    loudest = np.repeat([probability for _, probability in spans], [n for n, _ in spans]).astype(np.float32)
    samples = (np.arange(len(loudest) * _WINDOW) % _FLOOR).astype(np.float32) / np.float32(32768)
    samples[_WINDOW - 1 :: _WINDOW] = np.maximum(samples[_WINDOW - 1 :: _WINDOW], loudest)
    return samples
