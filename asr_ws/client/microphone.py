"""This machine's microphone, by sounddevice (the extra ``[mic]``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from asr_ws.errors import ClientError, MissingExtra
from asr_ws.messages import AudioFormat

BLOCK_S = 0.05  # what the microphone gives at a time
MAX_WAITING = 200  # blocks, for a program that does not come to read them; then the oldest are dropped
NO_PORTAUDIO_HINT = "install PortAudio: apt install libportaudio2, or brew install portaudio"
NO_MICROPHONE_HINT = "plug one in, or name another: asr-ws mic --devices lists them"


@dataclass(frozen=True, slots=True)
class Device:
    """Attributes:
    index: what `Microphone` takes.
    rate: Hz, that it has of its own.
    """

    index: int
    name: str
    rate: int
    is_default: bool


def _portaudio() -> Any:
    """Raises: MissingExtra; ClientError: the library is there, PortAudio is not."""
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise MissingExtra("a microphone", "mic") from error
    except OSError as error:
        raise ClientError(f"no microphone: {error}", NO_PORTAUDIO_HINT) from error
    return sounddevice


def devices() -> list[Device]:
    """The microphones that there are. Raises: MissingExtra, ClientError: see `Microphone`."""
    portaudio = _portaudio()
    default = portaudio.default.device[0]
    return [
        Device(each["index"], each["name"], int(each["default_samplerate"]), each["index"] == default)
        for each in portaudio.query_devices()
        if each["max_input_channels"] > 0
    ]


class Microphone:
    """An async iterable of pcm_s16le, mono: what `Session.stream` takes. It records from its first ``async for`` on.

    Args:
        device: an index or a part of a name, see `devices`; None: the system's own choice.
    Raises:
        MissingExtra: sounddevice is not installed.
        ClientError: no PortAudio, no such device, or it cannot be opened.

    Attributes:
        audio: what it gives: 16 kHz, or the device's own rate where it has no other.
        level: of the last block, the peak in [0, 1].
        is_muted: what is heard meanwhile is thrown away (push to talk).
        n_overflows: how often audio was lost, since this program or the machine was too slow.
    """

    def __init__(self, device: int | str | None = None) -> None:
        portaudio = _portaudio()
        try:
            found = portaudio.query_devices(device, "input")
            rate = 16_000
            try:
                portaudio.check_input_settings(device=device, channels=1, dtype="int16", samplerate=rate)
            except portaudio.PortAudioError:
                rate = int(found["default_samplerate"])
                portaudio.check_input_settings(device=device, channels=1, dtype="int16", samplerate=rate)
        except (portaudio.PortAudioError, ValueError) as error:
            named = "" if device is None else f" {device!r}"
            raise ClientError(f"no microphone{named}: {_said(error)}", NO_MICROPHONE_HINT) from error
        self.name: str = found["name"]
        self.audio = AudioFormat("pcm_s16le", rate, 1)
        self.level = 0.0
        self.is_muted = False
        self.n_overflows = 0
        self._portaudio = portaudio
        self._device = device
        self._came: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """End of the audio: what was heard is still given. Of the loop's thread."""
        self._came.put_nowait(None)

    def _hear(self, block: Any, n_frames: int, time: Any, status: Any) -> None:
        """In PortAudio's own thread."""
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._take, bytes(block), bool(status.input_overflow))

    def _take(self, block: bytes, has_overflown: bool) -> None:
        samples = np.frombuffer(block, "<i2")
        self.level = float(np.abs(samples.astype(np.int32)).max(initial=0)) / 32768
        if not self.is_muted:
            self._came.put_nowait(block)
        if self._came.qsize() > MAX_WAITING:
            self._came.get_nowait()
            has_overflown = True
        self.n_overflows += has_overflown

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._loop = asyncio.get_running_loop()
        try:
            stream = self._portaudio.RawInputStream(
                samplerate=self.audio.sample_rate,
                blocksize=int(BLOCK_S * self.audio.sample_rate),
                device=self._device,
                channels=1,
                dtype="int16",
                callback=self._hear,
            )
            stream.start()
        except self._portaudio.PortAudioError as error:
            raise ClientError(f"the microphone {self.name!r} cannot be opened: {_said(error)}", "") from error
        try:
            while (block := await self._came.get()) is not None:
                yield block
        finally:
            stream.close()


def _said(error: Exception) -> str:
    return str(error).partition(" [")[0]
