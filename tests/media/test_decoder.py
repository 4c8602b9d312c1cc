"""What the decoder makes of files, in this process; those that may crash it are in tests/server/test_media.py."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from asr_ws.core.audio import PcmDecoder
from asr_ws.core.types import Samples
from asr_ws.media import decoder, wire
from asr_ws.media.child import Refusal
from asr_ws.media.decoder import decode
from asr_ws.resampler import AvResampler
from tests.media.files import KIND, KINDS, TONE_HZ, Kind, encoded, film, tone

SECONDS = 2.0
PLAYLIST = b"ffconcat version 1.0\nfile secret.wav\n"


def decoded(file: bytes, max_audio_s: float = 3600) -> tuple[wire.Opened, Samples]:
    opened, chunks = decode(io.BytesIO(file), len(file), max_audio_s)
    return opened, np.concatenate(list(chunks))


def pitch_hz(samples: Samples) -> float:
    """Of the strongest tone, to 0.1 Hz, by a parabola through the spectrum's peak."""
    spectrum = np.log(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) + 1e-12)
    peak = int(spectrum.argmax())
    left, top, right = spectrum[peak - 1 : peak + 2]
    return float((peak + (left - right) / (left - 2 * top + right) / 2) * 16_000 / len(samples))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_tone_comes_out_as_it_went_in(kind: Kind) -> None:
    opened, samples = decoded(encoded(kind, tone(SECONDS, kind.rate)))
    assert opened.duration_s == pytest.approx(SECONDS, abs=0.001 + 2 * kind.padding_s)
    assert len(samples) / 16_000 == pytest.approx(SECONDS, abs=0.001 + kind.padding_s)
    assert samples.dtype == np.float32
    assert np.abs(samples).max() == pytest.approx(16_000 / 32_768, abs=0.1)
    assert pitch_hz(samples) == pytest.approx(TONE_HZ, abs=0.1)


def test_wav_of_our_own_format_is_the_same_sample_for_sample() -> None:
    pcm = np.random.default_rng(1).integers(-(2**15), 2**15, 50_000).astype(np.int16)
    opened, samples = decoded(encoded(KIND["wav-s16-16k"], pcm))
    assert opened == wire.Opened(3.125, "wav pcm_s16le")
    assert np.array_equal(samples, pcm / np.float32(32_768))


def test_recording_comes_out_as_the_same_audio_of_a_live_session_does() -> None:
    """Stereo at 44.1 kHz, its channels unlike each other."""
    pcm = np.random.default_rng(2).integers(-(2**15), 2**15, (44_100, 2)).astype("<i2")
    wav = encoded(KIND["wav-s16-44k-stereo"], pcm[:, 0])
    wav = wav[: wav.index(b"data") + 8] + pcm.tobytes()
    live = PcmDecoder("pcm_s16le", 44_100, 2, AvResampler)
    expected = np.concatenate([live.feed(pcm.tobytes()).samples, live.settle()])
    assert np.array_equal(decoded(wav)[1], expected)


def test_what_is_no_number_or_too_loud_is_made_harmless() -> None:
    wav = encoded(KIND["wav-f32-48k"], tone(1.0, 48_000))
    head = wav[: wav.index(b"data") + 8]
    pcm = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.5] * 8_000, "<f4")
    samples = decoded(head + pcm.tobytes())[1]
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() <= 1


def test_title_in_latin_1_does_no_harm() -> None:
    wav = encoded(KIND["wav-s16-16k"], tone(1.0, 16_000))
    at = wav.index(b"data")
    title = b"LIST\x10\0\0\0INFOINAM\x04\0\0\0\xe4\xf6\xfc\xff"
    assert len(decoded(wav[:at] + title + wav[at:])[1]) == 16_000


@pytest.mark.parametrize(("codec", "layout"), [("aac", "6.1"), ("pcm_s16le", "7.1"), ("flac", "7.1")])
def test_many_channels_are_averaged(codec: str, layout: str) -> None:
    container = {"aac": "mp4", "pcm_s16le": "wav", "flac": "flac"}[codec]
    _, samples = decoded(encoded(Kind("", container, codec, 48_000, layout), tone(1.0, 48_000)))
    assert pitch_hz(samples) == pytest.approx(TONE_HZ, abs=0.2)


def test_channels_that_would_crash_pyav_are_not_decoded() -> None:
    """Regression: a film's 7.1 channels as AAC were a segmentation fault."""
    file = encoded(Kind("", "mp4", "aac", 48_000, "7.1"), tone(1.0, 48_000))
    assert refused(file) is wire.Reason.UNDECODABLE_MEDIA


def test_sound_of_a_film_is_decoded() -> None:
    opened, samples = decoded(film("mp4", sound=True))
    assert opened.format == "mov,mp4,m4a,3gp,3g2,mj2 aac"
    assert pitch_hz(samples) == pytest.approx(TONE_HZ, abs=0.2)


def test_chain_of_streams_of_two_rates_is_one_recording() -> None:
    parts = [encoded(KIND[name], tone(1.0, KIND[name].rate)) for name in ("mp3-44k-stereo", "mp3-16k")]
    samples = decoded(b"".join(parts))[1]
    assert len(samples) / 16_000 == pytest.approx(2.0, abs=0.2)
    assert pitch_hz(samples[-12_000:]) == pytest.approx(TONE_HZ, abs=0.2)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damage_costs_what_it_hit(kind: Kind) -> None:
    """64 bytes in the middle of two seconds."""
    file = bytearray(encoded(kind, tone(SECONDS, kind.rate)))
    middle = len(file) // 2
    file[middle : middle + 64] = b"\xa5" * 64
    samples = decoded(bytes(file))[1]
    assert len(samples) / 16_000 > SECONDS / 2 - 0.5
    assert np.isfinite(samples).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.container != "mp4"], ids=lambda kind: kind.name)
def test_file_that_ends_too_early_gives_what_is_there(kind: Kind) -> None:
    file = encoded(kind, tone(SECONDS, kind.rate))
    samples = decoded(file[: len(file) * 3 // 4])[1]
    assert SECONDS / 2 - 0.1 < len(samples) / 16_000 < SECONDS  # of Ogg, whole pages


def refused(file: bytes, max_audio_s: float = 3600) -> wire.Reason:
    with pytest.raises(Refusal) as refusal:
        decoded(file, max_audio_s)
    return refusal.value.refused.error


def test_m4a_without_its_end_is_damaged_and_one_that_begins_with_it_is_not() -> None:
    whole = encoded(KIND["m4a-aac-44k-stereo"], tone(SECONDS, 44_100))
    assert refused(whole[: len(whole) // 2]) is wire.Reason.UNDECODABLE_MEDIA
    whole = encoded(KIND["m4a-aac-faststart"], tone(SECONDS, 48_000))
    assert len(decoded(whole[: len(whole) * 3 // 4])[1]) > 16_000


def test_wav_that_was_written_to_a_pipe_says_nothing_of_its_length() -> None:
    wav = encoded(KIND["wav-s16-16k"], tone(SECONDS, 16_000))
    at = wav.index(b"data") + 4
    for claimed in (b"\xff\xff\xff\xff", b"\xf0\xff\xff\xff", b"\0\0\0\0"):
        assert len(decoded(wav[:at] + claimed + wav[at + 4 :])[1]) == 32_000


def test_flac_that_claims_days_is_not_believed() -> None:
    flac = bytearray(encoded(KIND["flac-16k"], tone(SECONDS, 16_000)))
    flac[21] |= 0x0F
    flac[22:26] = b"\xff\xff\xff\xff"  # 2^36 - 1 samples
    opened, samples = decoded(bytes(flac))
    assert opened.duration_s is None
    assert len(samples) == 32_000


@pytest.mark.parametrize("name", ["wav-s16-16k", "flac-16k", "m4a-aac-44k-stereo", "webm-opus-48k-stereo"])
def test_file_that_says_it_is_too_long_is_refused_before_it_is_decoded(name: str) -> None:
    file = encoded(KIND[name], tone(SECONDS, KIND[name].rate))
    with pytest.raises(Refusal) as refusal:
        decode(io.BytesIO(file), len(file), 1.5)
    assert refusal.value.refused == wire.Refused(wire.Reason.TOO_LONG, "the file holds more than 1.5 s of audio")


def test_file_that_does_not_is_when_it_turns_out() -> None:
    file = encoded(KIND["aac-adts-44k"], tone(SECONDS, 44_100))
    _, chunks = decode(io.BytesIO(file), len(file), 1.5)
    got = []
    with pytest.raises(Refusal, match=r"more than 1\.5 s"):
        got.extend(chunks)
    assert 0 < sum(map(len, got)) <= 24_000


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"hello, this is a text\n" * 100, wire.Reason.UNSUPPORTED_MEDIA),
        (b"RIFF\xff\xff\xff\xffWAVEfmt ", wire.Reason.UNDECODABLE_MEDIA),
        (b"fLaC" + bytes(100), wire.Reason.UNDECODABLE_MEDIA),
        (film("mp4", sound=False), wire.Reason.NO_AUDIO),
        (film("matroska", sound=False), wire.Reason.NO_AUDIO),
        (film("avi", sound=False), wire.Reason.UNSUPPORTED_MEDIA),
        (encoded(KIND["wav-s16-16k"], tone(0.0, 16_000)), wire.Reason.NO_AUDIO),
    ],
    ids=["text", "wav", "flac", "mp4", "mkv", "avi", "empty"],
)
def test_what_cannot_be_decoded_is_refused(file: bytes, reason: wire.Reason) -> None:
    assert refused(file) is reason


def allow(format: str, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "FORMATS", f"{decoder.FORMATS},{format}")
    monkeypatch.setattr(decoder, "PROTOCOLS", protocol)


@pytest.mark.parametrize(("format", "protocol"), [("concat", ""), ("wav", "file")])
def test_playlist_opens_no_file_where_its_format_or_its_protocol_is_not_allowed(
    format: str, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either is enough."""
    allow(format, protocol, monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.wav").write_bytes(encoded(KIND["wav-s16-16k"], tone(1.0, 16_000)))
    assert refused(PLAYLIST) is wire.Reason.UNSUPPORTED_MEDIA


def test_playlist_opens_a_file_where_both_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which shows that the tests above are of something."""
    allow("concat", "file", monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.wav").write_bytes(encoded(KIND["wav-s16-16k"], tone(1.0, 16_000)))
    assert len(decoded(PLAYLIST)[1]) == 16_000


@pytest.mark.parametrize("rate", [1, 3_999, 384_001, 2**31 - 1])
def test_rates_that_no_audio_has_are_refused(rate: int) -> None:
    wav = bytearray(encoded(KIND["wav-s16-16k"], tone(0.1, 16_000)))
    wav[24:28] = rate.to_bytes(4, "little")
    assert refused(bytes(wav)) is wire.Reason.UNDECODABLE_MEDIA
