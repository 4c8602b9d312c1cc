"""PcmDecoder, FormatProbe and SampleBuffer, on literals, synthetic signals and the bundled recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

import asr_ws
from asr_ws.core.audio import FormatProbe, PcmDecoder, SampleBuffer
from asr_ws.core.types import Resampler, Samples
from asr_ws.resampler import AvResampler

SPEECH = sorted((Path(asr_ws.__file__).parent / "assets" / "speech").glob("*.wav"))
INVALID = np.array([np.nan, np.inf, -np.inf], "<f4")


def no_resampler(rate: int) -> Resampler:
    raise AssertionError(f"no resampler is needed at 16 kHz, asked for {rate}")


class HalvingResampler:
    """32 kHz -> 16 kHz by dropping every second sample, and holds back the last one. Unrealistic: it aliases."""

    def __init__(self) -> None:
        self.held: Samples = np.empty(0, np.float32)
        self.odd = 0

    def feed(self, samples: Samples) -> Samples:
        kept = np.concatenate((self.held, samples[self.odd :: 2]))
        self.odd = (self.odd + len(samples)) % 2
        self.held = kept[-1:]
        return kept[:-1]

    def flush(self) -> Samples:
        return self.held


def cut(data: bytes, *sizes: int) -> Iterator[bytes]:
    """Into pieces of these sizes, over and over."""
    at = i = 0
    while at < len(data):
        size = sizes[i % len(sizes)]
        yield data[at : at + size]
        at, i = at + size, i + 1


def decode(decoder: PcmDecoder, pieces: Iterator[bytes]) -> Samples:
    return np.concatenate([*(decoder.feed(piece).samples for piece in pieces), decoder.settle()])


def recording(path: Path) -> NDArray[np.int16]:
    pcm, _rate = soundfile.read(path, dtype="int16")
    return pcm


def noise(n: int, seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-32768, 32768, n).astype("<i2")


# ---------------------------------------------------------------- PcmDecoder


def test_s16_is_scaled_by_two_to_the_fifteenth() -> None:
    decoded = PcmDecoder("pcm_s16le", 16_000, 1, no_resampler).feed(bytes.fromhex("0000 0100 ff7f 0080 ffff"))
    assert decoded.samples.tolist() == [0, 1 / 32768, 32767 / 32768, -1, -1 / 32768]
    assert decoded.samples.dtype == np.float32
    assert (decoded.n_frames, decoded.n_invalid) == (5, 0)


def test_f32_is_clipped_and_otherwise_exact() -> None:
    pcm = np.array([0.1, -0.25, 1.5, -1e30, 1e-40], "<f4")
    decoded = PcmDecoder("pcm_f32le", 16_000, 1, no_resampler).feed(pcm.tobytes())
    assert decoded.samples.tolist() == [pcm[0], -0.25, 1, -1, pcm[4]]
    assert decoded.samples.dtype == np.float32


@pytest.mark.parametrize("path", SPEECH, ids=lambda path: path.stem)
def test_s16_and_f32_of_the_same_samples_are_identical(path: Path) -> None:
    pcm = recording(path)
    from_s16 = decode(PcmDecoder("pcm_s16le", 16_000, 1, no_resampler), cut(pcm.astype("<i2").tobytes(), 3200))
    from_f32 = decode(PcmDecoder("pcm_f32le", 16_000, 1, no_resampler), cut((pcm / 32768).astype("<f4").tobytes(), 999))
    assert len(from_s16) == len(pcm)
    assert np.array_equal(from_s16, from_f32)


def test_stereo_is_averaged() -> None:
    pcm = np.array([[16384, -16384], [32767, 32767], [8192, 0]], "<i2")
    decoded = PcmDecoder("pcm_s16le", 16_000, 2, no_resampler).feed(pcm.tobytes())
    assert decoded.samples.tolist() == [0, 32767 / 32768, 0.125]
    assert decoded.n_frames == 3


@pytest.mark.parametrize("sizes", [(1,), (3, 5), (7, 1, 0, 4096)], ids=str)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 32_000])
@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_f32le"])
def test_chunking_does_not_matter(encoding: str, rate: int, channels: int, sizes: tuple[int, ...]) -> None:
    pcm = noise(2 * 1500)
    data = (pcm if encoding == "pcm_s16le" else (pcm / 20000).astype("<f4")).tobytes()
    n_frames = 3000 // channels
    whole = PcmDecoder(encoding, rate, channels, lambda _rate: HalvingResampler())
    cuts = PcmDecoder(encoding, rate, channels, lambda _rate: HalvingResampler())
    expected = decode(whole, iter([data]))
    assert len(expected) == n_frames * 16_000 // rate
    assert np.array_equal(decode(cuts, cut(data, *sizes)), expected)


def test_frames_count_at_the_declared_rate_once_they_are_complete() -> None:
    decoder = PcmDecoder("pcm_s16le", 32_000, 2, lambda _rate: HalvingResampler())
    fed = [decoder.feed(bytes(size)).n_frames for size in (0, 3, 1, 7, 9)]
    assert fed == [0, 0, 1, 1, 3]


def test_the_resampler_is_made_for_the_declared_rate_and_anew_after_each_settling() -> None:
    rates: list[int] = []

    def make(rate: int) -> Resampler:
        rates.append(rate)
        return HalvingResampler()

    decoder = PcmDecoder("pcm_s16le", 32_000, 1, make)
    assert decoder.settle().tolist() == []
    fed = decoder.feed(np.array([1, 2, 3, 4], "<i2").tobytes()).samples * 32768
    assert (fed.tolist(), (decoder.settle() * 32768).tolist(), decoder.settle().tolist()) == ([1], [3], [])
    again = decoder.feed(np.array([5, 6], "<i2").tobytes()).samples
    assert (again.tolist(), (decoder.settle() * 32768).tolist()) == ([], [5])
    assert rates == [32_000, 32_000]


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 48_000, 191_999])
def test_settling_often_neither_loses_nor_adds_time(rate: int) -> None:
    decoder = PcmDecoder("pcm_s16le", rate, 1, AvResampler)
    n_samples = 0
    for n in range(1, 60):
        n_samples += len(decoder.feed(bytes(2 * (n * rate // 1000 + n))).samples)
        n_samples += len(decoder.settle())
        n_frames = sum(m * rate // 1000 + m for m in range(1, n + 1))
        assert abs(n_samples - n_frames * 16_000 / rate) <= 0.5


@pytest.mark.parametrize(("n_bytes", "truncated"), [(0, False), (7, True), (8, False), (9, True)])
def test_a_stream_that_ends_inside_a_frame_is_truncated(n_bytes: int, truncated: bool) -> None:
    decoder = PcmDecoder("pcm_f32le", 16_000, 2, no_resampler)
    decoder.feed(bytes(n_bytes))
    assert (decoder.settle().tolist(), decoder.truncated) == ([], truncated)


@pytest.mark.parametrize("value", INVALID, ids=str)
def test_sample_that_is_no_number_counts_as_time_and_is_zero(value: np.float32) -> None:
    decoder = PcmDecoder("pcm_f32le", 16_000, 1, no_resampler)
    decoded = [decoder.feed(np.array(pcm, "<f4").tobytes()) for pcm in ([0.5, 0.5], [0.5, value, 0.5], [0.5])]
    assert [call.samples.tolist() for call in decoded] == [[0.5, 0.5], [0.5, 0, 0.5], [0.5]]
    assert [(call.n_frames, call.n_invalid) for call in decoded] == [(2, 0), (3, 1), (1, 0)]


def test_one_invalid_channel_makes_the_frame_invalid() -> None:
    decoder = PcmDecoder("pcm_f32le", 16_000, 2, no_resampler)
    decoded = decoder.feed(np.array([0.5, np.nan, 0.5, 0.25], "<f4").tobytes())
    assert (decoded.samples.tolist(), decoded.n_frames, decoded.n_invalid) == ([0, 0.375], 2, 1)


# ---------------------------------------------------------------- FormatProbe


def verdicts(encoding: str, data: bytes, *sizes: int) -> list[str]:
    probe = FormatProbe(encoding)
    return [said for piece in cut(data, *sizes) if (said := probe.feed(piece))]


def as_s16(x: NDArray[np.generic]) -> bytes:
    return np.round(x).astype("<i2").tobytes()


def as_f32(x: NDArray[np.generic]) -> bytes:
    return (x / 32768).astype("<f4").tobytes()


S16_AS_F32 = "the audio is declared as pcm_f32le and looks like pcm_s16le"
F32_AS_S16 = "the audio is declared as pcm_s16le and looks like pcm_f32le"
STARTS = range(0, 160_000, 16_000)  # samples; the bundled recordings are longer than 11 s


@pytest.mark.parametrize("gain", [1, 0.1, 3.3])
@pytest.mark.parametrize("path", SPEECH, ids=lambda path: path.stem)
def test_speech_in_the_wrong_encoding_is_said_once_and_speech_in_the_right_one_never(path: Path, gain: float) -> None:
    speech = np.clip(recording(path) * gain, -32768, 32767)
    said = {
        (start, sent, declared): verdicts(declared, encode(speech[start : start + 16_000]), 640)
        for start in STARTS
        for sent, encode in (("pcm_s16le", as_s16), ("pcm_f32le", as_f32))
        for declared in ("pcm_s16le", "pcm_f32le")
    }
    wrong = {("pcm_s16le", "pcm_f32le"): [S16_AS_F32], ("pcm_f32le", "pcm_s16le"): [F32_AS_S16]}
    assert said == {(start, sent, declared): wrong.get((sent, declared), []) for start, sent, declared in said}


@pytest.mark.parametrize("offset", [20, -20])
@pytest.mark.parametrize("path", SPEECH, ids=lambda path: path.stem)
def test_16_bit_speech_with_a_constant_offset_is_still_recognised(path: Path, offset: int) -> None:
    speech = np.clip(recording(path) * 0.1 + offset, -32768, 32767)  # quiet: a whole block may have one sign
    said = {start: verdicts("pcm_f32le", as_s16(speech[start : start + 16_000]), 640) for start in STARTS}
    assert said == {key: [S16_AS_F32] for key in STARTS}


def signals() -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(0)
    t = np.arange(16_000)
    found: dict[str, NDArray[np.generic]] = {
        "silence": t * 0,
        "1-bit noise": rng.integers(0, 2, len(t)),
        "1-bit noise below zero": rng.integers(-1, 1, len(t)),
        "sparse 1-bit noise": rng.random(len(t)) < 0.01,
    }
    # 12416..16383 and -20352..-16385 are the 16-bit samples that look like the upper half of an audible float.
    for level in (32767, 20000, 16384, 16383, 16000, 14000, 3000, 300, 10, 1):
        found |= {
            f"noise {level}": rng.uniform(-level, level, len(t)),
            f"dc {level}": t * 0 + level,
            f"dc -{level}": t * 0 - level,
            f"dc {level} with noise": np.clip(level + rng.integers(-3, 4, len(t)), -32768, 32767),
            f"clicks {level}": np.where(t % 977, 0, level),
            **{f"tone {level} at {hz}": level * np.sin(t * hz * 2 * np.pi / 16_000) for hz in (50, 440, 3700, 7999)},
            **{f"square {level} of {half}": np.where(t // half % 2, level, -level) for half in (1, 2, 100)},
        }
    return found


@pytest.mark.parametrize(("name", "signal"), signals().items(), ids=signals())
def test_signals_in_the_declared_encoding_are_not_suspected(name: str, signal: NDArray[np.generic]) -> None:
    floats = signal / 32768
    said = {
        "s16": verdicts("pcm_s16le", as_s16(signal), 640),
        "s16 stereo": verdicts("pcm_s16le", as_s16(np.repeat(signal, 2)), 640),
        "s16, one channel dead": verdicts("pcm_s16le", as_s16(np.stack([signal * 0, signal], 1)), 640),
        **{f"f32 x {gain}": verdicts("pcm_f32le", (floats * gain).astype("<f4").tobytes(), 640)
           for gain in (1, 0.7371, 1e-6, 1e-20, 1e-40, 100, 32768)},
    }  # fmt: skip
    assert said == {key: [] for key in said}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"RIFF\x24\x08\x00\x00WAVEfmt ", "the audio starts like a WAV file: send its samples, not the file"),
        (b"RF64\xff\xff\xff\xffWAVEds64", "the audio starts like a WAV file: send its samples, not the file"),
        (b"fLaC\x00\x00\x00\x22" + bytes(8), "the audio starts like a FLAC file: send its samples, not the file"),
        (b"OggS\x00\x02" + bytes(10), "the audio starts like an Ogg file: send its samples, not the file"),
        (b"ID3\x04\x00" + bytes(11), "the audio starts like an MP3 file: send its samples, not the file"),
        (b"\x1aE\xdf\xa3" + bytes(12), "the audio starts like a WebM or Matroska file: send its samples, not the file"),
    ],
    ids=["wav", "rf64", "flac", "ogg", "mp3", "webm"],
)
@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_f32le"])
def test_a_files_header_is_said_once_in_any_chunking(encoding: str, header: bytes, said: str) -> None:
    data = header + noise(8000).tobytes()
    assert [verdicts(encoding, data, *sizes) for sizes in ((1,), (11, 1), (20_000,))] == [[said]] * 3


def test_a_header_later_in_the_stream_is_not_looked_for() -> None:
    assert verdicts("pcm_s16le", bytes(2) + b"RIFF\x24\x08\x00\x00WAVEfmt " + bytes(20_000), 640) == []


@pytest.mark.parametrize("n_silent", [0, 3, 64, 5000, 100_000])
def test_the_verdict_comes_after_8_kib_that_are_not_silence_in_any_chunking(n_silent: int) -> None:
    speech = as_f32(recording(SPEECH[0])[16_000:20_000])
    data = bytes(4 * n_silent) + speech
    decided_at = (4 * n_silent // 256 + 32) * 256  # whole blocks of 256 bytes at fixed offsets
    before, at = FormatProbe("pcm_s16le"), FormatProbe("pcm_s16le")
    assert [before.feed(piece) for piece in cut(data[: decided_at - 1], 4097)] == [None] * -(-(decided_at - 1) // 4097)
    assert at.feed(data[:decided_at]) == F32_AS_S16
    assert [verdicts("pcm_s16le", data, *sizes) for sizes in ((997,), (1, 6000), (len(data),))] == [[F32_AS_S16]] * 3


@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_f32le"])
def test_nothing_is_held_once_decided_and_little_before(encoding: str) -> None:
    probe = FormatProbe(encoding)
    probe.feed(bytes(1_000_000))  # silence decides nothing
    held_before = len(probe._unread or b"") + len(probe._evidence)
    probe.feed(as_s16(noise(10_000)))
    assert (held_before < 256, probe._unread, probe._evidence) == (True, None, b"")


# ---------------------------------------------------------------- SampleBuffer


def ramp(start: int, end: int) -> Samples:
    return np.arange(start, end, dtype=np.float32)


def test_samples_are_addressed_by_position() -> None:
    buffer = SampleBuffer()
    buffer.append(ramp(0, 5))
    buffer.append(ramp(5, 5))
    buffer.append(ramp(5, 12))
    buffer.discard_before(3)
    assert (buffer.start, buffer.end) == (3, 12)
    assert buffer.copy(3, 12).tolist() == list(range(3, 12))
    assert buffer.copy(4, 7).tolist() == [4, 5, 6]
    assert buffer.copy(12, 12).tolist() == []


@pytest.mark.parametrize(("position", "start"), [(0, 3), (3, 3), (5, 5), (8, 8), (99, 8)])
def test_discarding_is_limited_to_what_is_held(position: int, start: int) -> None:
    buffer = SampleBuffer()
    buffer.append(ramp(0, 8))
    buffer.discard_before(3)
    buffer.discard_before(position)
    assert (buffer.start, buffer.end, buffer.copy(start, 8).tolist()) == (start, 8, list(range(start, 8)))


@pytest.mark.parametrize(("start", "end"), [(2, 5), (3, 9), (6, 5)])
def test_a_view_outside_of_what_is_held_is_a_bug(start: int, end: int) -> None:
    buffer = SampleBuffer()
    buffer.append(ramp(0, 8))
    buffer.discard_before(3)
    with pytest.raises(AssertionError):
        buffer.copy(start, end)


def test_a_view_is_the_callers_to_keep() -> None:
    buffer = SampleBuffer()
    buffer.append(ramp(0, 1000))
    view = buffer.copy(0, 10)
    buffer.discard_before(1000)
    buffer.append(np.full(5000, -1, np.float32))
    assert view.tolist() == list(range(10))
    view[:] = 7
    assert set(buffer.copy(1000, 6000)) == {-1}


@pytest.mark.parametrize("chunk", [1, 7, 320, 5000])
def test_a_sliding_window_holds_the_right_samples_and_little_memory(chunk: int) -> None:
    buffer = SampleBuffer()
    for start in range(0, 20_000, chunk):
        buffer.append(ramp(start, start + chunk))
        buffer.discard_before(buffer.end - 4800)
        assert buffer.n_bytes <= max(3 * 4 * (4800 + chunk), 4096)
    assert np.array_equal(buffer.copy(buffer.start, buffer.end), ramp(buffer.start, buffer.end))
    assert buffer.start == buffer.end - 4800


def test_appending_single_samples_moves_each_only_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = SampleBuffer()
    moved: list[int] = []
    move = buffer._move
    monkeypatch.setattr(buffer, "_move", lambda capacity: (moved.append(buffer.end - buffer.start), move(capacity)))
    one = np.zeros(1, np.float32)
    for _ in range(50_000):
        buffer.append(one)
    for _ in range(50_000):
        buffer.append(one)
        buffer.discard_before(buffer.end - 4800)
    assert sum(moved) < 5 * 100_000


def test_memory_is_none_at_first_and_shrinks_after_a_long_utterance() -> None:
    buffer = SampleBuffer()
    at_first = buffer.n_bytes
    for start in range(0, 30 * 16_000, 320):
        buffer.append(ramp(start, start + 320))
    full = buffer.n_bytes
    buffer.discard_before(buffer.end - 4800)  # a pre-roll of 300 ms
    pre_roll = buffer.n_bytes
    buffer.discard_before(buffer.end)
    assert at_first == 0
    assert full >= 4 * 480_000
    assert pre_roll <= 64 * 1024
    assert buffer.n_bytes <= 4096
    assert (buffer.start, buffer.end) == (480_000, 480_000)
