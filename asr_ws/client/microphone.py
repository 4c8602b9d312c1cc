"""This machine's microphone, by sounddevice (the extra ``[mic]``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from asr_ws.errors import ClientError, MissingExtra
from asr_ws.messages import AudioFormat

BLOCK_S = 0.05  # what the microphone gives at a time
TAIL = 4  # blocks, 0.2 s, heard after a key: it is pressed before the last sound has come from the device
MAX_WAITING = 200  # blocks, for a program that does not come to read them; then the oldest are dropped
# Not every driver says that its device is unplugged, some only give nothing more. Bluetooth takes two seconds to begin.
PATIENCE, PATIENCE_S = 10, 1.0  # in pieces: a program that was stopped (Ctrl-Z) must not find all of it used up
NO_PORTAUDIO_HINT = "install PortAudio: apt install libportaudio2, or brew install portaudio"
NO_MICROPHONE_HINT = "plug one in, and let this program use it"
OTHER_MICROPHONE_HINT = "asr-ws mic --devices lists them"
IN_USE_HINT = "does another program have it to itself?"


@dataclass(frozen=True, slots=True)
class Device:
    """Attributes:
    index: what `Microphone` takes.
    name: with the system's interface to it: on Windows a device has one in each.
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
    """The microphones that there are, as of this program's start. Raises: MissingExtra, ClientError: no PortAudio."""
    portaudio = _portaudio()
    default = portaudio.default.device[0]
    interfaces = portaudio.query_hostapis()
    return [
        Device(
            each["index"],
            f"{each['name']}, {interfaces[each['hostapi']]['name']}",
            int(each["default_samplerate"]),
            each["index"] == default,
        )
        for each in portaudio.query_devices()
        if each["max_input_channels"] > 0
    ]


def _find(wanted: int | str | None) -> Device:
    """Raises: ClientError: there is none such, or more than one."""
    there = devices()
    if not there:
        raise ClientError("no microphone", NO_MICROPHONE_HINT)
    if wanted is None:
        found = [device for device in there if device.is_default] or there[:1]
    elif isinstance(wanted, int):
        found = [device for device in there if device.index == wanted]
    else:
        name = wanted.casefold()
        found = [device for device in there if name in device.name.casefold()]
        found = [device for device in found if device.name.casefold().startswith(f"{name}, ")] or found
        if len(found) > 1 and (interface := _default_interface(there)):
            found = [device for device in found if device.name.endswith(interface)] or found
    if not found:
        raise ClientError(f"no microphone {wanted!r}", OTHER_MICROPHONE_HINT)
    if len(found) > 1:
        which = "; ".join(f"{device.index} {device.name}" for device in found)
        raise ClientError(f"microphone {wanted!r} may be: {which}", "give its number, or more of its name")
    return found[0]


def _default_interface(there: list[Device]) -> str:
    """Where a device is there in each of the system's interfaces, it is taken from the default's."""
    return next((device.name[device.name.rindex(", ") :] for device in there if device.is_default), "")


class Microphone:
    """An async iterable of pcm_s16le: what `Session.stream` takes. It records from its ``async for`` on, of which there
    is one; that raises ClientError when the device cannot be opened, or is gone.

    Args:
        device: an index or a part of a name, see `devices`; None: the system's own choice.
    Raises:
        MissingExtra: sounddevice is not installed.
        ClientError: no PortAudio, no such device, or more than one, or none of its formats is the protocol's.

    Attributes:
        audio: what it gives: 16 kHz mono, or the device's own rate, or stereo, where it has nothing else.
        level: of the last block, the peak in [0, 1]; muted or not.
        is_muted: what is heard meanwhile is thrown away (push to talk).
        on_muted: is awaited where it was muted, once what it heard before is taken; such as `Session.commit`.
        n_blocks: that the device has given, muted or not.
        n_overflows: how often audio was lost, since this program or the machine was too slow.
    """

    def __init__(self, device: int | str | None = None) -> None:
        self._portaudio = _portaudio()
        found = _find(device)
        self.name = found.name
        self._device = found.index
        self.audio = self._best_format(found.rate)
        self.level = 0.0
        self.is_muted = False
        self.on_muted: Callable[[], Awaitable[None]] | None = None
        self._tail = 0  # blocks until it is muted
        self.n_blocks = 0
        self.n_overflows = 0
        self._came: asyncio.Queue[bytes | None] = asyncio.Queue()  # b"": muted; None: the end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopping = False

    def _best_format(self, own_rate: int) -> AudioFormat:
        """16 kHz, which is what the recognizer hears, saves the network two thirds. CoreAudio, ALSA's plugins and the
        older ones of Windows' interfaces convert to it; WASAPI does not, nor to mono.
        """
        for channels, rate in product((1, 2), (16_000, own_rate)):
            try:
                self._portaudio.check_input_settings(
                    device=self._device, channels=channels, dtype="int16", samplerate=rate
                )
            except self._portaudio.PortAudioError as error:
                refused = error
            else:
                return AudioFormat("pcm_s16le", rate, channels)
        raise ClientError(f"no microphone {self.name!r}: {_said(refused)}", OTHER_MICROPHONE_HINT) from refused

    def toggle(self) -> bool:
        """For a key to talk: from now on it listens; or, `TAIL` blocks later and unless it is pressed again, is muted.

        Returns: whether it is to listen on.
        """
        self._tail = 0 if self.is_muted or self._tail else TAIL
        self.is_muted = False
        return not self._tail

    def stop(self) -> None:
        """End of the audio: what was heard is still given. Of any thread, or a signal's handler."""
        self._is_stopping = True
        self._call(self._came.put_nowait, None)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(function, *args)

    def _hear(self, block: Any, n_frames: int, time: Any, status: Any) -> None:
        """In PortAudio's own thread."""
        if not self._is_stopping:
            self._call(self._take, bytes(block), bool(status.input_overflow))

    def _finish(self) -> None:
        """In PortAudio's own thread: no more will come. Without `stop` the device is gone."""
        self._call(self._came.put_nowait, None)

    def _take(self, block: bytes, has_overflown: bool) -> None:
        samples = np.frombuffer(block, "<i2")
        self.level = float(np.abs(samples.astype(np.int32)).max(initial=0)) / 32768
        self.n_blocks += 1
        self._came.put_nowait(b"" if self.is_muted else block)
        if has_overflown and not self.is_muted:
            self.n_overflows += 1
        if self._tail:
            self._tail -= 1
            if not self._tail:
                self.is_muted = True
                self._came.put_nowait(b"")
        if self._came.qsize() > MAX_WAITING and self._came.get_nowait():
            self.n_overflows += 1

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._loop = asyncio.get_running_loop()
        if self._is_stopping:  # before there was a loop to tell
            return
        try:
            stream = self._portaudio.RawInputStream(
                samplerate=self.audio.sample_rate,
                blocksize=int(BLOCK_S * self.audio.sample_rate),
                device=self._device,
                channels=self.audio.channels,
                dtype="int16",
                callback=self._hear,
                finished_callback=self._finish,
            )
            stream.start()
        except self._portaudio.PortAudioError as error:
            raise ClientError(f"the microphone {self.name!r} cannot be opened: {_said(error)}", IN_USE_HINT) from error
        has_heard = False
        try:
            while (block := await self._next()) is not None:
                if block:
                    yield block
                elif has_heard and self.on_muted is not None:
                    await self.on_muted()
                has_heard = bool(block)
        finally:
            stream.close()
        if not self._is_stopping:
            raise ClientError(f"the microphone {self.name!r} is gone", "was it unplugged?")

    async def _next(self) -> bytes | None:
        for _ in range(PATIENCE):
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    return await self._came.get()
        return None


def _said(error: Exception) -> str:
    return str(error).partition(" [")[0]
