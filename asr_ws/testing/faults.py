"""Faults that a worker commits when told to, and the real recognizer with them: ``asr-ws serve --fault-injection``.

A fault is one line:

    sleep SECONDS           take so much longer
    hang                    never come back, in C, where it lets go of the interpreter's lock
    hang-gil                ... and where it holds it
    crash SIGNAL            die by that signal, such as SEGV
    mid-crash SIGNAL        ... after half of the text has been handed over
    late-crash SIGNAL       ... after all of it
    raise TEXT              RuntimeError(TEXT)
    cuda                    as CUDA does when its memory is used up
    leak MB                 allocate and keep so much
    flood MB                write so much to standard output and to standard error, each
    next-load N FAULT       die, and commit FAULT in each of the next N loads
    once NAME FAULT         commit FAULT, unless one of that name was committed since the server started

``crash-partial``, ``raise-partial`` and so on happen in partials only.

What has to outlive the worker (``once``, ``next-load``) is in a folder named by the server's process id. On Windows, in
a virtual environment, whose python is two processes, it does not outlive it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

from asr_ws.core.types import DecodeOptions, Samples, Segment
from asr_ws.testing import marks
from asr_ws.worker.recognizer import FasterWhisperRecognizer, FilteredTranscription, Transcription

PREFIX: Final = "fault: "  # how the prompt of a session begins that wants one
CUDA_ERROR: Final = "CUDA failed with error out of memory"  # CTranslate2's words
PARTIAL: Final = "-partial"
A_LONG_TIME: Final = 2_000_000_000  # seconds of C's sleep, milliseconds of Windows'
MB: Final = 1_000_000  # bytes
LINE: Final = b"all work and no play makes\n"

_leaked: list[bytes] = []


class FaultyRecognizer:
    """A `RecognizerFactory`: faster-whisper, and what the prompts' first lines say, where they begin with PREFIX.

    The model does not see those lines. A fault that raises is the decode's failure, or the load's.
    """

    def __init__(self, model: Path, *, device: str, compute_type: str, cpu_threads: int, encoder_window: str) -> None:
        next_load().commit()
        self._real = FasterWhisperRecognizer(
            model,
            device=device,
            compute_type=compute_type,
            cpu_threads=cpu_threads,
            encoder_window=encoder_window,
        )
        self.device, self.compute_type = self._real.device, self._real.compute_type

    def transcribe(self, samples: Samples, options: DecodeOptions) -> Transcription:
        prompt = options.prompt or ""
        if not prompt.startswith(PREFIX):
            return self._real.transcribe(samples, options)
        line, _, rest = prompt.removeprefix(PREFIX).partition("\n")
        fault = Fault.of(line, partial=options.partial)
        fault.commit()
        return fault.follow(self._real.transcribe(samples, replace(options, prompt=rest or None)))


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to be done now; without a verb it is nothing."""

    verb: str = ""
    argument: str = ""

    @classmethod
    def of(cls, line: str, *, partial: bool = False) -> Fault:
        """Of one line: nothing where it is for partials and this is none, or where it was to be once, and has been.

        Raises: ValueError: ``once`` without a usable name.
        """
        verb, _, argument = line.strip().partition(" ")
        if verb == "once":
            name, _, line = argument.partition(" ")
            if not name.isalnum():
                raise ValueError(f"once {name!r}: a name is letters and digits")
            fault = cls.of(line, partial=partial)
            known = fault.verb in BEFORE_TEXT or fault.verb in AFTER_TEXT  # else it is told again and again
            return cls() if known and not _is_first(name) else fault
        if verb.endswith(PARTIAL):
            return cls(verb.removesuffix(PARTIAL), argument) if partial else cls()
        return cls(verb, argument)

    def commit(self, more: Mapping[str, Callable[[str], object]] | None = None) -> None:
        """Whatever of it comes before the text.

        Args:
            more: faults that there are beside those of BEFORE_TEXT.
        Raises:
            RuntimeError: by ``raise`` and ``cuda``.
            ValueError: there is no such fault, or its argument is wrong.
        """
        verbs = {**BEFORE_TEXT, **(more or {})}
        if self.verb and self.verb not in AFTER_TEXT:
            if self.verb not in verbs:
                raise ValueError(f"no fault {self.verb!r}: there are {', '.join((*verbs, *AFTER_TEXT))}")
            try:
                verbs[self.verb](self.argument)
            except ValueError as error:
                raise ValueError(f"{self.verb} {self.argument!r}: {error}") from error

    def follow(self, transcription: Transcription) -> Transcription:
        """Whatever of it comes amid or after the text, which then nobody sees the end of."""
        if self.verb not in AFTER_TEXT:
            return transcription
        segments = AFTER_TEXT[self.verb](transcription, self.argument)
        n_segments = 2 if self.verb == "mid-crash" else 1
        return FilteredTranscription(
            segments, transcription.language, transcription.language_probability, n_segments=n_segments
        )


def next_load() -> Fault:
    """What a ``next-load`` left for the load that begins, which this takes from it."""
    file = marks.folder(os.getppid()) / "next-load"
    with suppress(FileNotFoundError):
        n_left, _, line = file.read_text("utf-8").partition(" ")
        if int(n_left) > 1:
            file.write_text(f"{int(n_left) - 1} {line}", "utf-8")
        else:
            file.unlink()
        return Fault.of(line)
    return Fault()


def _mark(name: str) -> Path:
    folder = marks.folder(os.getppid())
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / name


def _is_first(name: str) -> bool:
    try:
        _mark(f"once-{name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


# ---------------------------------------------------------------- what they do


def _crash(name: str) -> NoReturn:
    try:
        number = signal.Signals[f"SIG{name}"]
    except KeyError as error:
        raise ValueError("no such signal, as SEGV is one") from error
    signal.raise_signal(number)
    os.abort()  # where the signal does not kill


def _crash_amid(segments: Transcription, name: str) -> Iterator[Segment]:
    for whole in segments:
        end_s = (whole.start_s + whole.end_s) / 2
        yield replace(whole, text=whole.text[: len(whole.text) // 2], end_s=end_s, words=())
        break
    _crash(name)


def _crash_late(segments: Transcription, name: str) -> Iterator[Segment]:
    yield from segments
    _crash(name)


def _hang(library: type[ctypes.CDLL]) -> NoReturn:
    sleep = library("kernel32").Sleep if sys.platform == "win32" else library(None).sleep
    while True:  # a signal that is handled ends one sleep
        sleep(A_LONG_TIME)


def _raise(text: str) -> NoReturn:
    raise RuntimeError(text)


def _leak(mb: str) -> None:
    _leaked.append(b"\x01" * (int(mb) * MB))  # zeros need not be there before they are read


def _flood(mb: str) -> None:
    block = LINE * (MB // 20 // len(LINE))
    for _ in range(int(mb) * 20):
        for descriptor in (1, 2):
            os.write(descriptor, block)


def _next_load(n_and_line: str) -> NoReturn:
    n, _, line = n_and_line.partition(" ")
    if not n.isdecimal() or not int(n):
        raise ValueError("of how many loads?")
    if Fault.of(line).verb not in BEFORE_TEXT:
        raise ValueError(f"for a load there are {', '.join(BEFORE_TEXT)}")
    _mark("next-load").write_text(n_and_line, "utf-8")
    _crash("SEGV")


BEFORE_TEXT: Final[Mapping[str, Callable[[str], object]]] = {
    "sleep": lambda seconds: time.sleep(float(seconds)),
    "hang": lambda _: _hang(ctypes.CDLL),  # lets go of the lock
    "hang-gil": lambda _: _hang(ctypes.PyDLL),  # does not
    "crash": _crash,
    "raise": _raise,
    "cuda": lambda _: _raise(CUDA_ERROR),
    "leak": _leak,
    "flood": _flood,
    "next-load": _next_load,
}
AFTER_TEXT: Final[Mapping[str, Callable[[Transcription, str], Iterator[Segment]]]] = {
    "mid-crash": _crash_amid,
    "late-crash": _crash_late,
}
