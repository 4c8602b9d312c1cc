"""How long a decode takes on this machine with this model: the number behind every wait that a client is told."""

from __future__ import annotations

_RECENT = 0.2  # least weight of the newest decode in the running mean: about the last ten count


class ServiceTime:
    """A running mean of decode times in which the latest weigh most.

    Whisper pads to 30 s, so a decode costs nearly the same for 1 s and for 11 s of audio: a mean tells most of it.
    The self-test only stands in until the first decode: it runs cold, and beside all that starts with the machine.
    """

    def __init__(self, prior_s: float = 1.0) -> None:
        self._mean_s = prior_s
        self._n_observed = 0

    def prime(self, audio_s: float, decode_s: float) -> None:
        """The self-test's decode."""
        if not self._n_observed:
            self._mean_s = decode_s

    def observe(self, audio_s: float, decode_s: float) -> None:
        self._n_observed += 1
        self._mean_s += max(_RECENT, 1 / self._n_observed) * (decode_s - self._mean_s)

    def estimate(self, audio_s: float) -> float:
        """Seconds that a decode of ``audio_s`` seconds is expected to take."""
        return self._mean_s
