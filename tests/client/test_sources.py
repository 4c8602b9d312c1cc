from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_ws.client.sources import AudioSource, Opened, open_source
from asr_ws.errors import ClientError
from asr_ws.messages import AudioFormat

DECLARED = AudioFormat()
RAMP = np.arange(-4000, 4000, dtype=np.int16)  # 0.5 s at 16 kHz


async def drain(source: AudioSource, declared: AudioFormat = DECLARED) -> tuple[Opened, list[bytes]]:
    opened = open_source(source, declared)
    return opened, [chunk async for chunk in opened.chunks]


@pytest.mark.parametrize(
    ("name", "subtype", "encoding"),
    [
        ("a.wav", "PCM_16", "pcm_s16le"),
        ("a.flac", "PCM_16", "pcm_s16le"),
        ("a.wav", "PCM_U8", "pcm_s16le"),
        ("a.wav", "PCM_24", "pcm_f32le"),
        ("a.flac", "PCM_24", "pcm_f32le"),
        ("a.wav", "FLOAT", "pcm_f32le"),
        ("a.wav", "ULAW", "pcm_f32le"),
        ("a.ogg", "VORBIS", "pcm_f32le"),
        ("a.mp3", "MPEG_LAYER_III", "pcm_f32le"),
    ],
)
async def test_a_file_is_sent_in_what_loses_nothing_of_it(
    name: str, subtype: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    soundfile.write(path, RAMP, 16_000, subtype=subtype)
    opened, chunks = await drain(path)
    expected, _ = soundfile.read(path, dtype="int16" if encoding == "pcm_s16le" else "float32")
    assert opened.audio == AudioFormat(encoding, 16_000, 1)
    assert opened.duration_s == len(expected) / 16_000
    sent = np.frombuffer(b"".join(chunks), "<i2" if encoding == "pcm_s16le" else "<f4")
    assert np.allclose(sent, expected, rtol=0, atol=1e-6)  # MP3 decodes to within that, cut or whole


async def test_a_path_may_be_text(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", RAMP, 16_000)
    assert b"".join((await drain(str(tmp_path / "a.wav")))[1]) == RAMP.tobytes()


async def test_a_file_keeps_its_rate_and_two_channels(tmp_path: Path) -> None:
    stereo = np.stack([RAMP, -RAMP], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 44_100)
    opened, chunks = await drain(tmp_path / "a.wav")
    assert (opened.audio, opened.duration_s) == (AudioFormat("pcm_s16le", 44_100, 2), 8000 / 44_100)
    assert b"".join(chunks) == stereo.tobytes()
    assert [len(chunk) for chunk in chunks] == [4410 * 4, 3590 * 4]


async def test_more_channels_than_two_become_their_mean(tmp_path: Path) -> None:
    channels = np.tile(np.array([3, 6, 9], np.int16), (100, 1))
    mean = np.full(100, 6, np.int16)
    soundfile.write(tmp_path / "a.wav", channels, 16_000)
    opened, chunks = await drain(tmp_path / "a.wav")
    assert (opened.audio, b"".join(chunks)) == (AudioFormat("pcm_s16le", 16_000, 1), mean.tobytes())
    opened, chunks = await drain(channels)
    assert (opened.audio, b"".join(chunks)) == (AudioFormat("pcm_s16le", 16_000, 1), mean.tobytes())


async def test_an_empty_file_is_no_audio(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.int16), 16_000)
    opened, chunks = await drain(tmp_path / "a.wav")
    assert (opened.duration_s, chunks) == (0.0, [])


@pytest.mark.parametrize("rate", [7999, 192_001])
def test_a_rate_that_no_server_takes_is_refused(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", RAMP, rate)
    with pytest.raises(ClientError) as caught:
        open_source(tmp_path / "a.wav", DECLARED)
    assert str(caught.value) == f"{tmp_path / 'a.wav'}: {rate} Hz (the server takes 8000 to 192000 Hz)"


@pytest.mark.parametrize("rate", [8000, 11_025, 192_000])
async def test_an_odd_rate_is_declared_and_chunks_last_a_tenth_of_a_second(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", RAMP, rate)
    opened, chunks = await drain(tmp_path / "a.wav")
    assert opened.audio == AudioFormat("pcm_s16le", rate, 1)
    assert len(chunks[0]) == 2 * min(8000, rate // 10)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ClientError) as caught:
        open_source(tmp_path / "a.wav", DECLARED)
    assert str(caught.value) == f"{tmp_path / 'a.wav'}: no such file"


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.write_bytes(b"RIFF\0\0\0\0WAVEfmt ")])
def test_what_is_not_audio_is_said(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "a.wav")
    with pytest.raises(
        ClientError, match=r"a\.wav: not a readable audio file: .* \(WAV, FLAC, OGG and MP3 can be read; .*\)"
    ):
        open_source(tmp_path / "a.wav", DECLARED)


@pytest.mark.parametrize(
    "name",
    ["a.raw", pytest.param(os.fsdecode(b"\xff.wav"), marks=pytest.mark.skipif(os.name == "nt", reason="UTF-16"))],
)
def test_a_name_that_libsndfile_does_not_take_is_said(name: str, tmp_path: Path) -> None:
    try:
        soundfile.write(tmp_path / "a.wav", RAMP, 16_000)
        (tmp_path / "a.wav").rename(tmp_path / name)
    except OSError:
        pytest.skip("nor does the file system")
    with pytest.raises(ClientError, match=re.escape(f"{tmp_path / name}: not a readable audio file: ")):
        open_source(tmp_path / name, DECLARED)


def test_a_name_that_is_too_long_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / f"{'a' * 300}.wav"
    with pytest.raises(ClientError) as caught:
        open_source(path, DECLARED)
    assert str(caught.value) == f"{path}: no such file"


def test_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ClientError) as caught:
        open_source(tmp_path, DECLARED)
    assert str(caught.value) == f"{tmp_path}: a folder (name the files in it)"


@pytest.mark.skipif(sys.platform == "win32", reason="no mkfifo")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(ClientError) as caught:
        open_source(tmp_path / "a.wav", DECLARED)
    assert caught.value.message == f"{tmp_path / 'a.wav'}: no regular file"


async def test_how_far_a_damaged_file_was_read_is_said(tmp_path: Path) -> None:
    path, noise = tmp_path / "a.flac", np.random.default_rng(0).integers(-9999, 9999, 32_000, np.int16)
    soundfile.write(path, noise, 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    chunks: list[bytes] = []
    with pytest.raises(ClientError) as caught:
        async for chunk in open_source(path, DECLARED).chunks:
            chunks.append(chunk)
    read_s = len(b"".join(chunks)) / 32_000
    assert 0.5 < read_s < 1
    assert str(caught.value).startswith(f"{path}: not readable beyond {read_s:.1f} s: ")
    assert caught.value.hint == "it is cut or damaged"


@pytest.mark.parametrize(
    ("samples", "audio", "sent"),
    [
        (RAMP, AudioFormat("pcm_s16le", 16_000, 1), RAMP.astype("<i2").tobytes()),
        (RAMP / np.float32(4000), AudioFormat("pcm_f32le", 16_000, 1), (RAMP / np.float32(4000)).tobytes()),
        (RAMP / np.float64(4000), AudioFormat("pcm_f32le", 16_000, 1), (RAMP / 4000).astype("<f4").tobytes()),
        (RAMP.reshape(-1, 1), AudioFormat("pcm_s16le", 16_000, 1), RAMP.astype("<i2").tobytes()),
        (RAMP.reshape(-1, 2), AudioFormat("pcm_s16le", 16_000, 2), RAMP.astype("<i2").tobytes()),
        (RAMP[::2], AudioFormat("pcm_s16le", 16_000, 1), RAMP[::2].astype("<i2").tobytes()),
    ],
    ids=["int16", "float32", "float64", "one channel", "two channels", "strided"],
)
async def test_an_array_is_sent_as_it_is_typed_and_shaped(
    samples: np.ndarray[Any, Any], audio: AudioFormat, sent: bytes
) -> None:
    opened, chunks = await drain(samples)
    assert (opened.audio, opened.duration_s, b"".join(chunks)) == (audio, len(samples) / 16_000, sent)


async def test_an_array_is_at_the_declared_rate() -> None:
    opened, chunks = await drain(RAMP, AudioFormat("pcm_f32le", 8000, 2))
    assert (opened.audio, opened.duration_s) == (AudioFormat("pcm_s16le", 8000, 1), 1.0)
    assert [len(chunk) for chunk in chunks] == [1600] * 10


@pytest.mark.parametrize(
    ("samples", "what"),
    [
        (np.zeros(8, np.uint8), "an array of uint8, 1-dimensional"),
        (np.zeros(8, np.int32), "an array of int32, 1-dimensional"),
        (np.zeros(8, ">i2"), "an array of >i2, 1-dimensional"),
        (np.zeros((2, 2, 2), np.float32), "an array of float32, 3-dimensional"),
        (np.zeros((), np.float32), "an array of float32, 0-dimensional"),
    ],
)
def test_an_array_that_cannot_be_audio_is_refused(samples: np.ndarray[Any, Any], what: str) -> None:
    with pytest.raises(ClientError) as caught:
        open_source(samples, DECLARED)
    assert str(caught.value) == f"{what} (float in [-1, 1] or int16, shape (n,) or (n, channels))"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_bytes_are_cut_into_tenths_of_a_second_and_declare_nothing(kind: Callable[[bytes], Any]) -> None:
    data = RAMP.tobytes() + b"\x01"  # an odd byte is the server's to judge
    opened, chunks = await drain(kind(data))
    assert (opened.audio, opened.duration_s) == (None, len(data) / 32_000)
    assert b"".join(chunks) == data
    assert [len(chunk) for chunk in chunks] == [3200] * 5 + [1]


async def test_an_iterable_of_bytes_is_sent_as_it_is_cut() -> None:
    opened, chunks = await drain(iter([b"one", b"", b"two"]))
    assert (opened.audio, opened.duration_s, chunks) == (None, None, [b"one", b"", b"two"])


async def test_an_async_iterable_of_bytes_is_sent_as_it_is_cut() -> None:
    async def microphone() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    opened, chunks = await drain(microphone())
    assert (opened.audio, opened.duration_s, chunks) == (None, None, [b"one", b"two"])


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        (AudioFormat(), 32_000),
        (AudioFormat("pcm_f32le"), 64_000),
        (AudioFormat("pcm_s16le", 44_100, 2), 176_400),
    ],
)
def test_bytes_a_second(audio: AudioFormat, expected: int) -> None:
    assert audio.bytes_per_s == expected


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("-", "-: no file"),
        (np.zeros((2, 16_000), np.float32), "an array of shape (2, 16000)"),
        (b"RIFF....WAVE", "these bytes are a whole file, not PCM"),
    ],
)
def test_what_is_easily_mistaken_is_told(source: AudioSource, told: str) -> None:
    with pytest.raises(ClientError) as caught:
        open_source(source, AudioFormat())
    assert caught.value.message == told
    assert caught.value.hint
