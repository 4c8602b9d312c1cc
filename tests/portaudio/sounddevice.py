"""A stand-in for `sounddevice`: in tests' own process put into `sys.modules`, in a program's by PYTHONPATH.

A test gives the blocks itself (`RawInputStream.give`, `unplug`). With FAKE_WAV in the environment a stream plays that
file instead, then silence until it is closed; with FAKE_ENDLESS the file over and over; with FAKE_UNPLUGGED it is
unplugged at the file's end. FAKE_DEVICES is a JSON list of what there is in place of `DEVICES`.

Unrealistic: blocks come faster than real time and have no timestamps; a device takes each format that is not in
`refused`; a device that is unplugged says so at once, which not every driver does.
"""

from __future__ import annotations

import json
import os
import threading
import wave
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

PACE_S = 0.02  # from one block of 0.05 s to the next
INTERFACES = ({"name": "ALSA"}, {"name": "JACK"})


class PortAudioError(Exception):
    pass


def _device(index: int, name: str, hostapi: int = 0, inputs: int = 1, rate: float = 48_000.0) -> dict[str, Any]:
    return {
        "index": index,
        "name": name,
        "hostapi": hostapi,
        "max_input_channels": inputs,
        "default_samplerate": rate,
    }


DEVICES = [
    _device(0, "Loudspeaker", inputs=0),
    _device(1, "Built-in"),
    _device(2, "USB headset", rate=44_100.0),
    _device(3, "USB camera"),
    _device(4, "Built-in", hostapi=1),
]
if "FAKE_DEVICES" in os.environ:
    DEVICES = [_device(*each) for each in json.loads(os.environ["FAKE_DEVICES"])]

default = SimpleNamespace(device=[1, 0])
refused: set[tuple[int, int]] = set()  # rates and channels
busy: list[str] = []  # what opening a stream says
streams: list[RawInputStream] = []


def query_devices() -> list[dict[str, Any]]:
    return DEVICES


def query_hostapis() -> tuple[dict[str, Any], ...]:
    return INTERFACES


def check_input_settings(*, device: int, channels: int, dtype: str, samplerate: int) -> None:
    assert dtype == "int16"
    if (samplerate, channels) in refused:
        raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")


class RawInputStream:
    def __init__(
        self,
        *,
        samplerate: int,
        blocksize: int,
        device: int,
        channels: int,
        dtype: str,
        callback: Callable[..., None],
        finished_callback: Callable[[], None],
    ) -> None:
        self.device, self.format = device, (samplerate, channels)
        self._block_bytes = blocksize * channels * 2
        self._callback, self._finished = callback, finished_callback
        self._closed = threading.Event()
        streams.append(self)

    def start(self) -> None:
        if busy:
            raise PortAudioError(busy[0])
        if "FAKE_WAV" in os.environ:
            threading.Thread(target=self._play, args=(os.environ["FAKE_WAV"],), daemon=True).start()

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._finished()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def give(self, *blocks: bytes, overflow: bool = False) -> None:
        """By a thread that is not the loop's, as it is in PortAudio."""

        def call() -> None:
            for block in blocks:
                status = SimpleNamespace(input_overflow=overflow)
                self._callback(block, len(block) // 2, None, status)

        _in_a_thread(call)

    def unplug(self) -> None:
        _in_a_thread(self._finished)

    def _play(self, path: str) -> None:
        with wave.open(path) as file:
            played = file.readframes(file.getnframes())
        at, status = 0, SimpleNamespace(input_overflow=False)
        while not self._closed.wait(PACE_S):
            block = played[at : at + self._block_bytes].ljust(self._block_bytes, b"\0")
            self._callback(block, len(block) // 2, None, status)
            at += self._block_bytes
            if at >= len(played) and "FAKE_UNPLUGGED" in os.environ:
                self._finished()
                return
            if at >= len(played) and "FAKE_ENDLESS" in os.environ:
                at = 0


def _in_a_thread(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
