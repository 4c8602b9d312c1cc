"""Bytes from the wire -> float32 mono at 16 kHz, and a buffer that remembers where in the session its samples lie.

Rules:
- What comes out depends on the bytes alone, never on how they were cut into messages.
- A sample frame is one sample of each channel; the bytes of an incomplete one wait for the rest.
- The declared format is believed. `FormatProbe` says when the bytes speak against it; they are decoded all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr_ws.core.types import SAMPLE_RATE, Resampler, Samples

_S16_SCALE = np.float32(1 / 32768)
_DTYPES: dict[str, np.dtype[Any]] = {"pcm_s16le": np.dtype("<i2"), "pcm_f32le": np.dtype("<f4")}
_NOTHING: Samples = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """What one call added.

    Attributes:
        samples: shape (n,), mono, 16 kHz; the resampler may hold some back for the next call.
        n_frames: sample frames that this call completed, at the declared rate.
        n_invalid: how many of them held NaN or Inf: these are zeros in ``samples``, and still count as time.
    """

    samples: Samples
    n_frames: int
    n_invalid: int


class PcmDecoder:
    """Little-endian PCM of one validated format -> mono samples at 16 kHz.

    Args:
        encoding: ``pcm_s16le`` (scaled by 1/32768) or ``pcm_f32le`` (clipped to [-1, 1]).
        sample_rate: Hz, 8000..192000. At 16000 samples pass through exactly and no resampler is made.
        channels: 1, or 2, interleaved and averaged.
        make_resampler: called with ``sample_rate``, again after each `settle`.
    """

    def __init__(
        self, encoding: str, sample_rate: int, channels: int, make_resampler: Callable[[int], Resampler]
    ) -> None:
        self._dtype = _DTYPES[encoding]
        self._sample_rate = sample_rate
        self._channels = channels
        self._frame_bytes = channels * self._dtype.itemsize
        self._make_resampler = make_resampler
        self._resampler: Resampler | None = None  # of what came since the last `settle`
        self._carry = b""
        self._n_in = self._n_out = 0

    @property
    def truncated(self) -> bool:
        """Whether what came so far ends inside a sample frame."""
        return bool(self._carry)

    def feed(self, data: bytes) -> DecodedAudio:
        """Decode the next bytes, any number of them."""
        data = self._carry + data
        n_frames = len(data) // self._frame_bytes
        self._carry = data[n_frames * self._frame_bytes :]
        pcm = np.frombuffer(data, self._dtype, n_frames * self._channels).reshape(n_frames, self._channels)
        n_invalid = 0
        samples: Samples
        if self._dtype.kind == "i":
            samples = np.multiply(pcm, _S16_SCALE, dtype=np.float32)
        else:
            samples = np.clip(pcm, -1, 1, dtype=np.float32)
            if not (valid := np.isfinite(pcm).all(axis=1)).all():
                samples[~valid] = 0
                n_invalid = n_frames - int(valid.sum())
        samples = samples[:, 0] if self._channels == 1 else samples.mean(axis=1, dtype=np.float32)
        self._n_in += n_frames
        if self._sample_rate != SAMPLE_RATE and n_frames:
            self._resampler = self._resampler or self._make_resampler(self._sample_rate)
            samples = self._resampler.feed(samples)
        self._n_out += len(samples)
        return DecodedAudio(samples, n_frames, n_invalid)

    def settle(self) -> Samples:
        """What the resampler holds back, so that all that came so far is out; shape (n,). More may be fed."""
        if self._resampler is None:
            return _NOTHING
        held = self._resampler.flush()
        self._resampler = None
        # Each resampler rounds its own length: what adds up is put right here, a sample at a time.
        missing = max(0, (self._n_in * SAMPLE_RATE + self._sample_rate // 2) // self._sample_rate - self._n_out)
        held = np.pad(held[:missing], (0, max(0, missing - len(held))), "edge") if len(held) else held
        self._n_out += len(held)
        return held


_CONTAINERS = {
    "a WAV file": rb"(?:RIFF|RF64)....WAVE",
    "a FLAC file": rb"fLaC",
    "an Ogg file": rb"OggS",
    "an MP3 file": rb"ID3[\x02-\x04]",
    "a WebM or Matroska file": rb"\x1a\x45\xdf\xa3",
}
_HEADER_BYTES = 12  # the longest pattern above
_BLOCK_BYTES = 256  # leading silence is skipped in these; a whole number of samples of either encoding
_BLOCKS = 32  # judged together: 8 KiB, 256 ms of 16-bit or 128 ms of float samples at 16 kHz

# Biased exponents of a float32, which are bits 7 to 14 of its upper 16 bits.
_QUIETEST, _LOUDEST = 127 - 30, 127  # 2^-30 (far below 24-bit audio's least step) to 1.99
_MOST, _SOME = 0.9, 0.1  # of the words that are not zero
_BOTH_SIGNS = 0.01  # the least share of each sign in float audio: a constant that looks like a float has one
_SMOOTH = 2048  # mean step from one half to the other, of 65536: a float's halves are unrelated and give some 20000


class FormatProbe:
    """Looks once per stream whether its first bytes are something else than the declared encoding.

    A file's header is looked for at the very start. Then the first 8 KiB that are not silence are read as 32-bit words:
    in float audio nearly every word's exponent lies in the narrow band of audible amplitudes, while a pair of 16-bit
    samples, read as a float, is tiny where the second is positive, and huge or not a number where it is negative.
    Before anything is said the two halves of the words must bear it out, so that no constant, square wave or noise is
    suspected: those of a float have nothing in common, two 16-bit samples look alike.

    Args:
        encoding: the declared one, ``pcm_s16le`` or ``pcm_f32le``.
    """

    def __init__(self, encoding: str) -> None:
        self._looks_wrong = _looks_like_f32 if encoding == "pcm_s16le" else _looks_like_s16
        self._unread: bytes | None = b""  # None: decided, nothing is looked at or held any more
        self._evidence = b""
        self._header_seen = False

    def feed(self, data: bytes) -> str | None:
        """Look at the next bytes, in any chunking.

        Returns:
            Once per stream at most, a sentence that says why it looks like something else.
        """
        if self._unread is None:
            return None
        self._unread += data
        if not self._header_seen:
            if len(self._unread) < _HEADER_BYTES:
                return None
            self._header_seen = True
            for name, pattern in _CONTAINERS.items():
                if re.match(pattern, self._unread, re.DOTALL):
                    return self._decide(f"the audio starts like {name}: send its samples, not the file")
        whole = len(self._unread) // _BLOCK_BYTES * _BLOCK_BYTES
        blocks = np.frombuffer(self._unread, np.uint8, whole).reshape(-1, _BLOCK_BYTES)
        wanted = _BLOCKS - len(self._evidence) // _BLOCK_BYTES
        self._evidence += blocks[blocks.any(axis=1)][:wanted].tobytes()
        self._unread = self._unread[whole:]
        if len(self._evidence) < _BLOCKS * _BLOCK_BYTES:
            return None
        return self._decide(self._looks_wrong(self._evidence))

    def _decide(self, verdict: str | None) -> str | None:
        self._unread, self._evidence = None, b""
        return verdict


def _looks_like_f32(evidence: bytes) -> str | None:
    lower, upper = _halves(evidence)
    negative = (upper < 0).mean()
    if _audible(upper) < _MOST or _audible(lower) > _MOST - _SOME or min(negative, 1 - negative) < _BOTH_SIGNS:
        return None
    return "the audio is declared as pcm_s16le and looks like pcm_f32le"


def _looks_like_s16(evidence: bytes) -> str | None:
    lower, upper = _halves(evidence)
    exponents = _exponents(upper)
    tiny, huge = (exponents < _QUIETEST).mean(), (exponents > _LOUDEST).mean()
    if min(tiny, huge) < _SOME and not (tiny + huge > _MOST and _alike(lower, upper)):  # quiet, and all of one sign
        return None
    return "the audio is declared as pcm_f32le and looks like pcm_s16le"


def _halves(evidence: bytes) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Lower and upper 16 bits of the words that are not zero."""
    pairs = np.frombuffer(evidence, "<i2").reshape(-1, 2).astype(np.int32)
    lower, upper = pairs[pairs.any(axis=1)].T
    return lower, upper


def _alike(lower: NDArray[np.int32], upper: NDArray[np.int32]) -> bool:
    """Whether they could be neighbours in one signal that is not constant."""
    small, large = sorted((lower.std(), upper.std()))
    return bool(large < 2 * small and np.abs(upper - lower).mean() < _SMOOTH)


def _exponents(halves: NDArray[np.int32]) -> NDArray[np.int32]:
    return (halves >> 7) & 0xFF


def _audible(halves: NDArray[np.int32]) -> float:
    """The share that could be the upper half of a float sample."""
    exponents = _exponents(halves)
    return float(((exponents >= _QUIETEST) & (exponents <= _LOUDEST)).mean())


class SampleBuffer:
    """Samples addressed by their position in the session.

    Appending is amortised O(1) a sample, however few at a time. Memory is at most three times what is held, or 4 KiB,
    and none before the first append.
    """

    _LEAST = 1024  # samples, 4 KiB: below that shrinking saves nothing

    def __init__(self) -> None:
        self._array: Samples = _NOTHING
        self._first = 0  # where in the array the sample `start` lies
        self.start = 0  # position of the first sample still held
        self.end = 0  # position after the last

    @property
    def n_bytes(self) -> int:
        """Memory held, used or not."""
        return self._array.nbytes

    def append(self, samples: Samples) -> None:
        """Add samples, shape (n,), n >= 0, at `end`; they are copied."""
        n_held = self.end - self.start
        n_needed = n_held + len(samples)
        if self._first + n_needed > len(self._array):
            # Moving down is paid for only if it frees a third of the array for the appends to come.
            self._move(len(self._array) if n_needed * 3 <= len(self._array) * 2 else n_needed * 3 // 2)
        self._array[self._first + n_held : self._first + n_needed] = samples
        self.end += len(samples)

    def copy(self, start: int, end: int) -> Samples:
        """A copy of the samples at positions ``start`` to ``end`` - 1: the caller may keep it."""
        assert self.start <= start <= end <= self.end, (self.start, start, end, self.end)
        offset = self._first - self.start
        return self._array[offset + start : offset + end].copy()

    def discard_before(self, position: int) -> None:
        """Forget what lies before ``position``; no effect for what is already gone. At most `end` becomes `start`."""
        position = min(max(position, self.start), self.end)
        self._first += position - self.start
        self.start = position
        n_held = self.end - position
        if len(self._array) > max(n_held * 3, self._LEAST):
            self._move(n_held * 3 // 2)

    def _move(self, capacity: int) -> None:
        """Bring what is held to the beginning of an array of at least that many samples."""
        n_held = self.end - self.start
        held = self._array[self._first : self._first + n_held]
        if capacity != len(self._array):
            self._array = np.empty(max(capacity, self._LEAST), np.float32)
        self._array[:n_held] = held  # numpy copies overlapping ranges as if through a temporary
        self._first = 0
