"""How long a decode takes on this machine with this model: the number behind every wait that a client is told.

A decode costs ``alpha + beta * audio_s``: a fixed part, and one for each second that is encoded and written down. Both
follow the decodes by least squares with exponential forgetting, so that a machine which became slower is soon believed.
The line goes through the recent decodes' mean, which leaves the slope to be found. Rules:

- **The slope leans on what is known about the model** until the lengths seen tell more: decodes that are all alike say
  nothing about other lengths. Known is that the encoder's window is the audio and 8 s, so that 1 s costs perhaps half
  of 11 s: ``alpha`` is worth `FIXED_S` of audio.
- **Neither part is negative**, so no length is expected to cost less than nothing.
- **An outlier is no trend.** A decode counts as at most `BELIEVED` times what was expected of it. When the next ones
  are as slow, more is expected of each, so that more of it counts, and the estimate soon gets there.

``sigma`` is the mean absolute error of the estimates, each made before its decode was known. Use one instance for each
kind of decode: a final's beam is wider than a partial's.
"""

from __future__ import annotations

FORGET = 0.9  # weight of a decode when the next one is known: about the last ten count
FIXED_S = 8.0  # seconds of audio that cost what every decode costs: (1 + 8) / (11 + 8) is about a half
LEAN_S2 = 4.0  # s^2: the weighted spread of lengths that counts as much as the knowledge. As in ridge regression, a
# decode's variance over the slope's: a decode is off by some 15 %, the slope known to within its own size
BELIEVED = 3.0  # one outlier of any size lifts the mean by a fifth at most, and ten decodes later by a fourteenth
UNTESTED = 0.25  # the first estimates' error, as a part of them: the self-test runs cold, beside all that starts too
LEAST_S = 0.001  # the wire's grain: work that is not done yet must not round to none


class ServiceTime:
    """Expected decode times, from those seen so far.

    Args:
        prior_s: what every decode is taken to cost, exactly, before `prime` or `observe` say what it does.
    """

    def __init__(self, prior_s: float = 1.0) -> None:
        self._learned = False  # from decodes, not from the self-test alone
        self._weight = 0.0  # of all decodes seen, the latest counting 1
        self._audio_s, self._decode_s = 0.0, prior_s  # weighted means
        self._spread_s2, self._covered_s2 = 0.0, 0.0  # weighted sums of squares and of products, about the means
        self._error_s = 0.0

    def prime(self, audio_s: float, decode_s: float) -> None:
        """The self-test's decode; it stands in until the first real one, and is nothing to go by after that."""
        if not self._learned:
            self._begin(audio_s, decode_s)

    def observe(self, audio_s: float, decode_s: float) -> None:
        """A decode of ``audio_s`` seconds took ``decode_s`` seconds."""
        if self._weight:
            decode_s = min(decode_s, BELIEVED * self.estimate(audio_s))
        if not self._learned:
            self._learned = True
            self._begin(audio_s, decode_s)
            return
        error_s = abs(decode_s - self.estimate(audio_s))
        # Weighted means and sums as West updates them (1979): no differences of large sums, so no digits are lost.
        self._weight = FORGET * self._weight + 1
        off_s = audio_s - self._audio_s
        self._audio_s += off_s / self._weight
        self._decode_s += (decode_s - self._decode_s) / self._weight
        self._error_s += (error_s - self._error_s) / self._weight
        self._spread_s2 = FORGET * self._spread_s2 + off_s * (audio_s - self._audio_s)
        self._covered_s2 = FORGET * self._covered_s2 + off_s * (decode_s - self._decode_s)

    def _begin(self, audio_s: float, decode_s: float) -> None:
        self._weight, self._audio_s, self._decode_s = 1.0, audio_s, decode_s
        self._error_s = UNTESTED * decode_s

    def estimate(self, audio_s: float) -> float:
        """Seconds that a decode of ``audio_s`` seconds is expected to take; at least `LEAST_S`."""
        return max(self._decode_s + self._beta * (audio_s - self._audio_s), LEAST_S)

    @property
    def _beta(self) -> float:
        """Seconds a second; ``alpha`` is what it leaves of the mean, and not negative either."""
        if not self._weight:
            return 0.0
        known = self._decode_s / (FIXED_S + self._audio_s)
        seen = (self._covered_s2 + LEAN_S2 * known) / (self._spread_s2 + LEAN_S2)
        return max(0.0, min(seen, self._decode_s / max(self._audio_s, LEAST_S)))

    @property
    def sigma(self) -> float:
        """Seconds by which the estimates are off, in the mean over recent decodes; 0 before anything is known."""
        return self._error_s
