"""Media files, made by FFmpeg's encoders. Unrealistic: each is a tone."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

TONE_HZ = 440.0
FRAME = 1024  # samples, as encoders that take any number are given them


@dataclass(frozen=True)
class Kind:
    """How a file is made; ``padding_s``: what its codec may add."""

    name: str
    container: str
    codec: str
    rate: int
    layout: str = "mono"
    padding_s: float = 0.0
    options: tuple[tuple[str, str], ...] = ()


KINDS = (
    Kind("wav-s16-16k", "wav", "pcm_s16le", 16_000),
    Kind("wav-s16-8k", "wav", "pcm_s16le", 8_000),
    Kind("wav-s16-44k-stereo", "wav", "pcm_s16le", 44_100, "stereo"),
    Kind("wav-s24-48k-stereo", "wav", "pcm_s24le", 48_000, "stereo"),
    Kind("wav-f32-48k", "wav", "pcm_f32le", 48_000),
    Kind("wav-mulaw-8k", "wav", "pcm_mulaw", 8_000),
    Kind("flac-44k-stereo", "flac", "flac", 44_100, "stereo"),
    Kind("flac-16k", "flac", "flac", 16_000),
    Kind("ogg-vorbis-44k-stereo", "ogg", "vorbis", 44_100, "stereo", 0.05),
    Kind("ogg-opus-48k", "ogg", "libopus", 48_000, padding_s=0.03),
    Kind("mp3-44k-stereo", "mp3", "libmp3lame", 44_100, "stereo", 0.06),
    Kind("mp3-16k", "mp3", "libmp3lame", 16_000, padding_s=0.08),
    Kind("m4a-aac-44k-stereo", "mp4", "aac", 44_100, "stereo", 0.05),
    Kind("m4a-aac-faststart", "mp4", "aac", 48_000, padding_s=0.05, options=(("movflags", "faststart"),)),
    Kind("aac-adts-44k", "adts", "aac", 44_100, padding_s=0.08),
    Kind("webm-opus-48k-stereo", "webm", "libopus", 48_000, "stereo", 0.03),
)
KIND = {kind.name: kind for kind in KINDS}


def tone(seconds: float, rate: int) -> np.ndarray:
    """Shape (n,), int16, at half of full scale."""
    return (np.sin(np.arange(round(seconds * rate)) * 2 * np.pi * TONE_HZ / rate) * 16_000).astype(np.int16)


def encoded(kind: Kind, samples: np.ndarray) -> bytes:
    """Args: samples: shape (n,), int16; the same in each channel."""
    with TemporaryDirectory() as folder:  # which faststart reads again
        path = Path(folder) / "file"
        with av.open(str(path), "w", format=kind.container, options=dict(kind.options)) as container:
            stream = container.add_stream(kind.codec, kind.rate, options={"strict": "experimental"})
            stream.layout = kind.layout
            stream.time_base = Fraction(1, kind.rate)
            container.start_encoding()  # also where there is nothing to encode
            for start in range(0, len(samples), FRAME):
                pcm = np.repeat(samples[start : start + FRAME], stream.layout.nb_channels)[np.newaxis]
                frame = av.AudioFrame.from_ndarray(pcm, "s16", kind.layout)
                frame.sample_rate, frame.pts = kind.rate, start
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()


def film(container: str, *, sound: bool) -> bytes:
    """One second of black, with a tone or without."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        picture = out.add_stream("mpeg4", 10)
        picture.width = picture.height = 64
        audio = out.add_stream("aac", 16_000) if sound else None
        if audio is not None:
            audio.layout = "mono"
        for _ in range(10):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        out.mux(picture.encode(None))
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(tone(1, 16_000)[np.newaxis], "s16", "mono")
            frame.sample_rate = 16_000
            out.mux(audio.encode(frame))
            out.mux(audio.encode(None))
    return file.getvalue()
