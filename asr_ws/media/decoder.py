"""A media file -> mono samples at 16 kHz, by FFmpeg through PyAV.

Rules:
- FFmpeg opens nothing but the given bytes: no playlist is among the formats, and no protocol is allowed. Either is
  enough.
- Of a file that is damaged, or ends too early, comes what can be decoded.
- Samples are made as those of a live session are (`asr_ws.core.audio`, `asr_ws.resampler`), so that a recording gives
  the same text by either way.
- What a file says of itself is told, and believed only where it can be true.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, groupby
from typing import Any, BinaryIO

import av
import numpy as np

from asr_ws.core.types import SAMPLE_RATE, Samples
from asr_ws.media import wire
from asr_ws.media.child import Refusal
from asr_ws.resampler import AvResampler

FORMATS = "wav,w64,aiff,caf,flac,ogg,mp3,mov,mp4,m4a,3gp,matroska,webm,aac,amr"  # demuxers
CODECS = (  # of audio: what is beside it, a film's picture say, is not so much as looked at
    "aac,alac,amrnb,amrwb,flac,mp2float,mp3,mp3float,opus,vorbis,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,"
    "pcm_alaw,pcm_mulaw,pcm_s8,pcm_u8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,"
    "pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be"
)
PROTOCOLS = ""  # none: a playlist of files was played where this was left out, and was not where it is empty
# Of titles that are not UTF-8: PyAV 19 takes them as they are, and knows no such word; before, it raised.
LENIENT: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
# How those begin: that of a broken one is told from what is none. (AAC and MP3 begin with any packet.)
BEGINNINGS = re.compile(
    rb"(RIFF|RF64)....WAVE|riff|FORM....AIF|caff|fLaC|OggS|ID3|....(ftyp|moov|mdat|free|skip|wide)|\x1a\x45\xdf\xa3|#!AMR",
    re.DOTALL,
)
ESTIMATED = frozenset(("mp3", "aac", "amr"))  # whose durations are guessed from the first packets, unless they say it
LEAST_BITS_PER_S = 1000  # of a file whose duration is believed: coded speech has more; silence is counted as it comes
RATES = range(4_000, 384_001)  # Hz: what recorders and sound cards have; a filter for less or more takes any memory
MAX_PLANES = 7  # one a channel: of AV_NUM_DATA_POINTERS and more, PyAV 18 and 19 look for one too many; 18 dies of it
BATCH_S = 0.25  # of audio in one pass of the resampler
MAX_FAILED_READS = 100  # in a row: most formats find the next packet behind a damaged one

_NUMBERS = {"u8": 128, "s16": 2**15, "s32": 2**31}  # full scale of sample formats, packed ones


def decode(file: BinaryIO, n_bytes: int, max_audio_s: float) -> tuple[wire.Opened, Iterator[Samples]]:
    """
    Args:
        file: can seek.
        n_bytes: its size.
    Returns:
        What it is; what it holds, shape (n,), n >= 1 each: at least one, but for `Refusal`.
    Raises:
        Refusal: it cannot be decoded, or holds more than ``max_audio_s``. Also the iterator, which knows it only then.
        MemoryError.
    """
    try:
        container = av.open(
            file,
            "r",
            container_options={
                "format_whitelist": FORMATS,
                "codec_whitelist": CODECS,
                "protocol_whitelist": PROTOCOLS,
            },
            **LENIENT,
        )
    except MemoryError:
        raise
    except av.FFmpegError as error:
        file.seek(0)
        if BEGINNINGS.match(file.read(16)):
            raise Refusal(wire.Reason.UNDECODABLE_MEDIA, f"the file is damaged: {error.strerror}") from error
        raise Refusal(
            wire.Reason.UNSUPPORTED_MEDIA, "this is no audio file, or of a kind that is not decoded"
        ) from error
    stream = container.streams.best("audio")
    if stream is None:
        raise Refusal(wire.Reason.NO_AUDIO, "the file has no audio track")
    codec = stream.codec_context.name if stream.codec_context is not None else "unknown"
    if codec not in CODECS.split(","):
        raise Refusal(wire.Reason.UNSUPPORTED_MEDIA, f"the file's audio is of a kind that is not decoded: {codec}")
    stream.codec_context.thread_count = 1
    name = container.format.name
    duration_s = _duration_s(container, stream)
    if duration_s is not None and n_bytes * 8 < duration_s * LEAST_BITS_PER_S:
        duration_s = None
    if duration_s is not None and duration_s > max_audio_s and name not in ESTIMATED:
        raise _too_long(max_audio_s)
    return wire.Opened(duration_s, f"{name} {codec}"), _limited(_resampled(_mono(container, stream)), max_audio_s)


def _duration_s(container: Any, stream: Any) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = container.duration / av.time_base
    else:
        return None
    return seconds if seconds > 0 else None


def _too_long(max_audio_s: float) -> Refusal:
    return Refusal(wire.Reason.TOO_LONG, f"the file holds more than {max_audio_s:g} s of audio")


def _limited(chunks: Iterator[Samples], max_audio_s: float) -> Iterator[Samples]:
    left = round(max_audio_s * SAMPLE_RATE)
    for samples in chunks:
        left -= len(samples)
        if left < 0:
            raise _too_long(max_audio_s)
        if len(samples):
            yield samples


def _resampled(blocks: Iterator[tuple[int, Samples]]) -> Iterator[Samples]:
    """Each run of one rate by a resampler of its own: in a chain of Ogg streams it may change."""
    for rate, run in groupby(blocks, key=lambda block: block[0]):
        batches = _batched((samples for _, samples in run), int(rate * BATCH_S))
        if rate == SAMPLE_RATE:
            yield from batches
            continue
        resampler = AvResampler(rate)
        for samples in batches:
            yield resampler.feed(samples)
        yield resampler.flush()


def _batched(chunks: Iterator[Samples], n_samples: int) -> Iterator[Samples]:
    waiting: list[Samples] = []
    n_waiting = 0
    for samples in chunks:
        waiting.append(samples)
        n_waiting += len(samples)
        if n_waiting >= n_samples:
            yield np.concatenate(waiting)
            waiting.clear()
            n_waiting = 0
    if waiting:
        yield np.concatenate(waiting)


def _mono(container: Any, stream: Any) -> Iterator[tuple[int, Samples]]:
    """Rate and samples of each frame that can be decoded. Raises: Refusal: there is none."""
    n_decoded = n_bad = 0
    # The last, None, asks for what the codec still holds.
    for packet in chain(_packets(container, stream), (None,)):
        try:
            frames = stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError):  # the latter is PyAV 19's, of a header with which no codec starts
            n_bad += 1
            continue
        for frame in frames:
            n_planes = frame.layout.nb_channels if frame.format.is_planar else 1
            if frame.sample_rate not in RATES or n_planes > MAX_PLANES:
                n_bad += 1
            elif frame.samples:
                n_decoded += 1
                yield frame.sample_rate, _averaged(frame)
    if not n_decoded and n_bad:
        raise Refusal(wire.Reason.UNDECODABLE_MEDIA, "nothing in the file could be decoded")
    if not n_decoded:
        raise Refusal(wire.Reason.NO_AUDIO, "the file's audio track is empty")


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    n_failed = 0
    while n_failed < MAX_FAILED_READS:
        try:
            for packet in container.demux(stream):
                n_failed = 0
                if packet.size:  # the last has none, and stands for the end
                    yield packet
            return
        except MemoryError:
            raise
        except av.FFmpegError:
            n_failed += 1


def _averaged(frame: av.AudioFrame) -> Samples:
    """Its channels' mean, as `asr_ws.core.audio.PcmDecoder` has it: in [-1, 1], and zero where one holds no number."""
    pcm = frame.to_ndarray()
    if not frame.format.is_planar:
        pcm = pcm.reshape(frame.samples, -1).T
    name = frame.format.packed.name
    samples: Samples
    if (full_scale := _NUMBERS.get(name)) is not None:
        samples = pcm.astype(np.float32) / np.float32(full_scale)
        if name == "u8":
            samples -= 1
    else:
        samples = np.clip(pcm, -1, 1, dtype=np.float32, casting="same_kind")
        samples[:, ~np.isfinite(pcm).all(axis=0)] = 0
    mono: Samples = samples[0] if len(samples) == 1 else samples.mean(axis=0, dtype=np.float32)
    return mono
