"""How long a decode takes on this machine with this model: the number behind every wait that a client is told."""

from __future__ import annotations

_RECENT = 0.2  # weight of the newest decode in the running mean: about the last ten count


class ServiceTime:
    """An exponentially weighted mean of decode times.

    Whisper pads to 30 s, so a decode costs nearly the same for 1 s and for 11 s of audio: a mean tells most of it.
    """

    def __init__(self, prior_s: float = 1.0) -> None:
        self._mean_s = prior_s
        self._observed = False

    def observe(self, audio_s: float, decode_s: float) -> None:
        weight = _RECENT if self._observed else 1.0  # the first real one replaces the guess
        self._mean_s += weight * (decode_s - self._mean_s)
        self._observed = True

    def estimate(self, audio_s: float) -> float:
        """Seconds that a decode of ``audio_s`` seconds is expected to take."""
        return self._mean_s
