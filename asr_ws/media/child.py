"""What the media process does: takes the file, has it decoded, writes what comes.

    python -m asr_ws.media SERVER_PID --max-bytes N --max-audio-s S --cpu-s S --memory-bytes N [--file PATH] < FILE

Writing waits while nobody reads, so what it holds does not grow with the audio. It ends by ``os._exit``: there is
nothing to tidy up, and tearing down native libraries has crashed.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from asr_ws.core.types import Samples
from asr_ws.media import wire
from asr_ws.worker.system import claim_stdio

SPOOL_BYTES = 4 * 1024 * 1024  # in memory; more goes to a file without a name: FFmpeg has to seek in it
READ_BYTES = 65_536  # a pipe's buffer
MAX_FILES = 32  # standard ones, pipes, the spool, and one at a time that Python imports

# A file, its size, how many seconds of audio there may be -> what it is, and its audio.
Decoder = Callable[[BinaryIO, int, float], tuple[wire.Opened, Iterator[Samples]]]


class Refusal(Exception):
    """There is no audio in this file, or more than there may be. Raised by a `Decoder`, also between its samples."""

    def __init__(self, error: wire.Reason, message: str) -> None:
        super().__init__(message)
        self.refused = wire.Refused(error, message)


def main() -> NoReturn:
    args = _arguments()
    source, sink = claim_stdio()
    faulthandler.enable()
    confine(args.cpu_s, args.memory_bytes, args.max_bytes)
    try:
        exit_status = _run(args, source, sink)
    except MemoryError as error:
        print(f"out of memory: {error}", file=sys.stderr, flush=True)
        exit_status = wire.EXIT_OUT_OF_MEMORY
    except BrokenPipeError:  # nobody wants it any more
        exit_status = 0
    os._exit(exit_status)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="asr_ws.media")
    parser.add_argument("--max-bytes", type=int, required=True)
    parser.add_argument("--max-audio-s", type=float, required=True)
    parser.add_argument("--cpu-s", type=float, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--decoder", default="asr_ws.media.decoder:decode")
    return parser.parse_args()


def confine(cpu_s: float, memory_bytes: int, file_bytes: int) -> None:
    """Set this process's limits, before it imports what might break them. Windows has no such."""
    if sys.platform == "win32":
        return
    import resource

    seconds = max(1, math.ceil(cpu_s))
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # SIGXCPU, which tells it from a crash; then SIGKILL
        resource.RLIMIT_AS: (memory_bytes, memory_bytes),
        resource.RLIMIT_FSIZE: (file_bytes, file_bytes),
        resource.RLIMIT_NOFILE: (MAX_FILES, MAX_FILES),
    }
    for which, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some; or the server has less itself
            resource.setrlimit(which, limit)


def _run(args: argparse.Namespace, source: BufferedReader, sink: BinaryIO) -> int:
    """Returns: the exit status."""
    opened: wire.Opened | None = None
    try:
        module, _, name = args.decoder.partition(":")
        decode: Decoder = getattr(importlib.import_module(module), name)  # first: it takes longer than most files
        file, n_bytes = _spooled(source, args.max_bytes) if args.file is None else _found(args.file)
        described, chunks = decode(file, n_bytes, args.max_audio_s)
        for samples in chunks:
            if opened is None:
                opened = described
                sink.write(wire.encode(opened))
            sink.write(samples.astype("<f4", copy=False).tobytes())
    except Refusal as refusal:
        if opened is None:
            sink.write(wire.encode(refusal.refused))
        elif refusal.refused.error is wire.Reason.TOO_LONG:
            sink.flush()
            return wire.EXIT_TOO_LONG
        else:
            raise
    sink.flush()
    return 0


def _found(path: Path) -> tuple[BinaryIO, int]:
    file = path.open("rb")
    n_bytes = os.fstat(file.fileno()).st_size
    if not n_bytes:
        raise Refusal(wire.Reason.EMPTY_FILE, "the file is empty")
    return file, n_bytes


def _spooled(source: BufferedReader, max_bytes: int) -> tuple[BinaryIO, int]:
    """All of the source, to be read from its start, and how many bytes that is."""
    n_bytes = 0
    spool: Any = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115  (it is handed on)
    while chunk := source.read1(READ_BYTES):
        n_bytes += len(chunk)
        if n_bytes > max_bytes:
            raise Refusal(wire.Reason.TOO_LARGE, f"the file has more than {max_bytes} bytes")
        try:
            spool.write(chunk)
        except OSError as error:
            raise Refusal(wire.Reason.NO_SPACE, f"the server has no room for the file: {error.strerror}") from error
    if not n_bytes:
        raise Refusal(wire.Reason.EMPTY_FILE, "the file is empty")
    spool.seek(0)
    return spool, n_bytes
