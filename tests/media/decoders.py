"""Decoders that do what a broken file makes the real one do. Unrealistic: they do not look at the file."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

import numpy as np

from asr_ws.core.types import Samples
from asr_ws.media.wire import Opened

SECOND = np.zeros(16_000, np.float32)
Decoded = tuple[Opened, Iterator[Samples]]


def opened(samples: Iterator[Samples]) -> Decoded:
    return Opened(None, "scripted"), samples


def endless(file: BinaryIO, n_bytes: int, max_audio_s: float) -> Decoded:
    def samples() -> Iterator[Samples]:
        while True:
            yield SECOND

    return opened(samples())


def told_of_by_print(file: BinaryIO, n_bytes: int, max_audio_s: float) -> Decoded:
    os.write(1, b"a native library says hello\n")
    print("so does Python", flush=True)
    return opened(iter([SECOND]))


def one_second_then_segv(file: BinaryIO, n_bytes: int, max_audio_s: float) -> Decoded:
    def samples() -> Iterator[Samples]:
        yield SECOND
        ctypes.string_at(0)

    return opened(samples())


def killed_at_once(file: BinaryIO, n_bytes: int, max_audio_s: float) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def stopped_at_once(file: BinaryIO, n_bytes: int, max_audio_s: float) -> NoReturn:
    os.kill(os.getpid(), signal.SIGSTOP)
    raise AssertionError


def one_second_then_a_loop(file: BinaryIO, n_bytes: int, max_audio_s: float) -> Decoded:
    def samples() -> Iterator[Samples]:
        for _ in range(16):  # past what is buffered before it is written
            yield SECOND
        while True:
            pass

    return opened(samples())


def loop(file: BinaryIO, n_bytes: int, max_audio_s: float) -> NoReturn:
    while True:
        pass


def glutton(file: BinaryIO, n_bytes: int, max_audio_s: float) -> Decoded:
    return opened(iter([np.zeros(2**40, np.float32)]))


def raising(file: BinaryIO, n_bytes: int, max_audio_s: float) -> NoReturn:
    raise RuntimeError("no such luck")


def garrulous(file: BinaryIO, n_bytes: int, max_audio_s: float) -> NoReturn:
    sys.stderr.write("x" * 1_000_000 + "\nthe last line\n")
    sys.stderr.flush()
    os._exit(9)


def mad(file: BinaryIO, n_bytes: int, max_audio_s: float) -> NoReturn:
    """Writes what is no header, on whatever standard output is now."""
    for fd in range(3, 10):
        try:
            os.write(fd, b"{}\n")
        except OSError:
            continue
    signal.pause()
    raise AssertionError
