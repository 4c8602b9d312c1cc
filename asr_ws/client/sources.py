"""What a client may stream: a file, samples, a microphone, or bytes that come from somewhere."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from asr_ws.client.microphone import Microphone
from asr_ws.errors import ClientError
from asr_ws.messages import MAX_CHANNELS, MAX_RATE, MIN_RATE, AudioFormat

AudioSource = str | Path | bytes | NDArray[Any] | Microphone | Iterable[bytes] | AsyncIterable[bytes]

CHUNK_S = 0.1  # what is read, and sent, at a time
FILE_MARKS = (b"RIFF", b"fLaC", b"OggS")  # the first bytes of WAV, FLAC and Ogg files
PIPE_HINT = "name a file; in Python an iterable of bytes may read a pipe"
_EXACT_AS_S16 = ("PCM_16", "PCM_S8", "PCM_U8")  # sound files of these lose nothing as 16-bit samples


@dataclass(frozen=True, slots=True)
class Opened:
    """Attributes:
    audio: what ``chunks`` hold; None: whatever the session declares.
    duration_s: where it is known beforehand.
    is_live: it cannot wait: what is not taken is lost.
    """

    audio: AudioFormat | None
    chunks: AsyncIterator[bytes]
    duration_s: float | None = None
    is_live: bool = False


def open_source(source: AudioSource, declared: AudioFormat) -> Opened:
    """Look at a source, not yet at its audio.

    Args:
        source: a path to anything libsndfile reads; an array of float32 in [-1, 1] or int16, shape (n,) or
            (n, channels), at the declared rate; a `Microphone`; bytes, or an iterable of bytes, in the declared format.
            An iterable may block: it is read in a thread of its own.
    Raises:
        ClientError: no such file, not an audio file, or an array of another type or shape. From its chunks: the file is
            damaged further on.
    """
    if isinstance(source, (str, Path)):
        return _open_file(Path(source))
    if isinstance(source, np.ndarray):
        return _open_array(source, declared)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if bytes(source[:4]) in FILE_MARKS:
            raise ClientError("these bytes are a whole file, not PCM", "give its path")
        return Opened(None, _each(_cut(bytes(source), declared)), len(source) / declared.bytes_per_s)
    if isinstance(source, Microphone):
        return Opened(source.audio, aiter(source), is_live=True)
    if isinstance(source, AsyncIterable):
        return Opened(None, aiter(source))
    if not isinstance(source, Iterable):
        raise ClientError(
            f"no audio comes from {type(source).__name__}", "give a path, an array, bytes, or some that yield bytes"
        )
    return Opened(None, _from_thread(source))


def check_file(path: Path) -> None:
    """Raises: ClientError: it is none that can be read from its beginning, as often as need be."""
    if str(path) == "-":  # which libsndfile takes for standard input, and closes
        raise ClientError("-: no file", PIPE_HINT)
    if os.path.isdir(path):  # those of `Path` raise for a name that is too long
        raise ClientError(f"{path}: a folder", "name the files in it")
    if not os.path.exists(path):
        raise ClientError(f"{path}: no such file")
    if not os.path.isfile(path):  # a pipe is read once, and may never begin
        raise ClientError(f"{path}: no regular file", PIPE_HINT)


def _open_file(path: Path) -> Opened:
    check_file(path)
    try:
        file = soundfile.SoundFile(path)
    # The last two: a name that is not UTF-8, and one that ends with .raw.
    except (OSError, soundfile.SoundFileError, UnicodeError, TypeError) as error:
        raise ClientError(
            f"{path}: not a readable audio file: {error}",
            "WAV, FLAC, OGG and MP3 can be read; the server reads more: asr-ws transcribe --http",
        ) from error
    if not MIN_RATE <= file.samplerate <= MAX_RATE:
        raise ClientError(f"{path}: {file.samplerate} Hz", f"the server takes {MIN_RATE} to {MAX_RATE} Hz")
    exact = file.subtype in _EXACT_AS_S16

    def chunks() -> Iterator[bytes]:
        with file:
            dtype, n_frames = ("int16" if exact else "float32"), max(1, int(file.samplerate * CHUNK_S))
            # Else soundfile seeks after each read, to where it is: an MP3 decoder then loses the bits it carries over.
            file.seekable = lambda: False
            n_read = 0
            try:
                while len(block := file.read(n_frames, dtype=dtype)):
                    n_read += len(block)
                    yield _to_bytes(_at_most_stereo(block))
            except soundfile.SoundFileError as error:
                read_s = n_read / file.samplerate
                raise ClientError(
                    f"{path}: not readable beyond {read_s:.1f} s: {error}", "it is cut or damaged"
                ) from error

    audio = AudioFormat("pcm_s16le" if exact else "pcm_f32le", file.samplerate, min(file.channels, MAX_CHANNELS))
    if file.channels > MAX_CHANNELS:
        audio = AudioFormat(audio.encoding, audio.sample_rate, 1)
    return Opened(audio, _from_thread(chunks()), file.frames / file.samplerate)


def _open_array(samples: NDArray[Any], declared: AudioFormat) -> Opened:
    if samples.dtype not in (np.int16, np.float32, np.float64) or samples.ndim not in (1, 2):
        raise ClientError(
            f"an array of {samples.dtype}, {samples.ndim}-dimensional",
            "float in [-1, 1] or int16, shape (n,) or (n, channels)",
        )
    if samples.ndim == 2 and samples.shape[1] > max(samples.shape[0], MAX_CHANNELS):
        raise ClientError(f"an array of shape {samples.shape}", "shape (n,) or (n, channels): transpose it")
    samples = _at_most_stereo(samples)
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    encoding = "pcm_s16le" if samples.dtype == np.int16 else "pcm_f32le"
    audio = AudioFormat(encoding, declared.sample_rate, channels)
    return Opened(audio, _each(_cut(_to_bytes(samples), audio)), len(samples) / declared.sample_rate)


def _at_most_stereo(samples: NDArray[Any]) -> NDArray[Any]:
    """More channels than the protocol carries become one."""
    if samples.ndim == 2 and samples.shape[1] > MAX_CHANNELS:
        samples = samples.mean(axis=1).astype(samples.dtype)
    return samples


def _to_bytes(samples: NDArray[Any]) -> bytes:
    return samples.astype("<i2" if samples.dtype == np.int16 else "<f4").tobytes()


def _cut(data: bytes, audio: AudioFormat) -> Iterator[bytes]:
    n_bytes = max(1, int(audio.bytes_per_s * CHUNK_S))
    return (data[start : start + n_bytes] for start in range(0, len(data), n_bytes))


async def _each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _from_thread(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Whatever blocks there, does not block here; a daemon, since nothing can make it give up a read."""
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()  # one at most, on demand
    wanted, is_over = threading.Semaphore(0), threading.Event()

    def read() -> None:
        last: BaseException | None = None
        iterator: Iterator[bytes] | None = None
        try:
            iterator = iter(chunks)
            while wanted.acquire() and not is_over.is_set() and (chunk := next(iterator, None)) is not None:
                loop.call_soon_threadsafe(came.put_nowait, chunk)
        except BaseException as error:  # the source's own, raised where it is read
            last = error
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(came.put_nowait, last)

    threading.Thread(target=read, name="asr_ws source", daemon=True).start()
    try:
        while True:
            wanted.release()
            chunk = await came.get()
            if isinstance(chunk, BaseException):
                raise chunk
            if chunk is None:
                return
            yield chunk
    finally:
        is_over.set()
        wanted.release()
