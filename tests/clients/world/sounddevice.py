"""In place of sounddevice: a microphone that hears what a test tells it, over 127.0.0.1:FAKE_MICROPHONE_PORT.

``s``: two seconds of speech, the file FAKE_MICROPHONE_SPEECH; ``q``: a second of silence; answered by ``.`` when the
program has it. Unrealistic: it comes as fast as the program takes it, and nothing comes in between.
"""

from __future__ import annotations

import os
import socket
import threading
import wave
from types import SimpleNamespace
from typing import Any


class PortAudioError(Exception):
    pass


default = SimpleNamespace(device=[0, 0])


def query_devices() -> list[dict[str, Any]]:
    return [{"index": 0, "name": "fake", "hostapi": 0, "max_input_channels": 1, "default_samplerate": 16_000.0}]


def query_hostapis() -> tuple[dict[str, Any], ...]:
    return ({"name": "none"},)


def check_input_settings(**_: object) -> None:
    pass


class RawInputStream:
    def __init__(self, *, blocksize: int, callback: Any, **_: object) -> None:
        self._n_bytes, self._callback = 2 * blocksize, callback
        self._socket = socket.create_connection(("127.0.0.1", int(os.environ["FAKE_MICROPHONE_PORT"])))

    def start(self) -> None:
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        with wave.open(os.environ["FAKE_MICROPHONE_SPEECH"]) as file:
            sounds = {b"s": file.readframes(2 * 16_000), b"q": bytes(2 * 16_000)}
        while order := self._socket.recv(1):
            sound = sounds[order]
            for at in range(0, len(sound), self._n_bytes):
                block = sound[at : at + self._n_bytes]
                self._callback(block, len(block) // 2, None, SimpleNamespace(input_overflow=False))
            self._socket.sendall(b".")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
