"""What is said to the servers: short clips, each with its text and with where in it speech begins and ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Final

import click
import numpy as np

from benchmarks.common import Recording
from benchmarks.peers.heard import Spoken
from benchmarks.peers.wires import RATE

FRAME_S: Final = 0.1
FRAME_BYTES: Final = round(2 * RATE * FRAME_S)
SPEECH: Final = 0.5  # of Silero's probability
NOISE: Final = 5.0  # of 32768, the deviation: -76 dB, a quiet room
PAUSE_S: Final = 0.3  # without speech
MAX_CLIP_S: Final = 16.0
# The bundled long recording, cut in pauses: from and to, seconds, and the words of its transcript that lie there.
PIECES: Final = {
    "long-two-cities.wav": (
        (0.90, 8.65, "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of"
         " foolishness,"),
        (8.65, 17.25, "it was the epoch of belief, it was the epoch of incredulity, it was the season of light, it was"
         " the season of darkness,"),
        (17.25, 24.46, "it was the spring of hope, it was the winter of despair, we had everything before us, we had"
         " nothing before us,"),
        (24.46, 28.80, "we were all going direct to heaven, we were all going direct the other way."),
        (28.80, 44.37, "In short, the period was so far like the present period that some of its noisiest authorities"
         " insisted on its being received, for good or for evil, in the superlative degree of comparison only."),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clip:
    spoken: Spoken
    pcm: bytes  # s16le, mono, 16 kHz

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / RATE

    def frames(self) -> Iterator[bytes]:
        """The clip as a microphone gives it, and after it noise without end."""
        rng = np.random.default_rng(0)
        for first in count(0, FRAME_BYTES):
            pcm = self.pcm[first : first + FRAME_BYTES]
            noise = rng.normal(0, NOISE, (FRAME_BYTES - len(pcm)) // 2).astype("<i2").tobytes()
            yield pcm + noise


def clips_of(recordings: Sequence[Recording]) -> list[Clip]:
    """The English ones, long ones in pieces or not at all. Raises: click.ClickException: there are none."""
    from faster_whisper.audio import decode_audio

    found: list[Clip] = []
    for each in recordings:
        if each.language != "en":
            continue
        samples = decode_audio(str(each.file), sampling_rate=RATE)
        whole = ((0.0, len(samples) / RATE, each.said),)
        for n, (from_s, to_s, said) in enumerate(PIECES.get(each.file.name, whole), 1):
            name = each.file.stem if each.file.name not in PIECES else f"{each.file.stem}-{n}"
            if to_s - from_s <= MAX_CLIP_S:
                found.append(_clip(name, said, samples[round(from_s * RATE) : round(to_s * RATE)]))
    if not found:
        raise click.ClickException(f"no English recording of at most {MAX_CLIP_S:g} s")
    return found


def _clip(name: str, said: str, samples: np.ndarray) -> Clip:
    from asr_ws.detector import WINDOW, SileroModel

    n_windows = len(samples) // WINDOW
    windows = samples[: n_windows * WINDOW].reshape(n_windows, WINDOW).astype(np.float32)
    is_speech = SileroModel().detector().probabilities(windows) >= SPEECH
    onset_s, stops_s = spoken(is_speech.tolist(), WINDOW / RATE)
    pcm = np.clip(np.round(samples * 32768), -32768, 32767).astype("<i2").tobytes()
    return Clip(Spoken(name, said, onset_s, stops_s), pcm)


def spoken(is_speech: Sequence[bool], window_s: float) -> tuple[float, tuple[float, ...]]:
    """Where speech begins, and where it stops: before each pause of more than PAUSE_S, and at its end; seconds.

    Raises: click.ClickException: there is none.
    """
    windows = [at for at, is_one in enumerate(is_speech) if is_one]
    if not windows:
        raise click.ClickException("a recording without speech")
    stops = [at for at, after in pairwise(windows) if (after - at - 1) * window_s > PAUSE_S]
    return windows[0] * window_s, tuple((at + 1) * window_s for at in (*stops, windows[-1]))
