"""The media process alone: its arguments, its limits, and what of the system it meets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asr_ws.media import wire
from tests.media.files import KIND, encoded, tone

CHILD = [sys.executable, "-c", "from asr_ws.media.child import main; main()"]
LIMITS = ["--max-audio-s=60", "--cpu-s=60", f"--memory-bytes={2**30}"]


def answer(command: list[str], file: bytes) -> wire.Opened | wire.Refused:
    done = subprocess.run(command, input=file, stdout=subprocess.PIPE, timeout=600, check=True)
    return wire.decode(done.stdout.partition(b"\n")[0])


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
def test_file_for_which_there_is_no_room_is_the_servers_fault() -> None:
    """A file system that is full, as near to it as one comes without one: no file may have more than 4 KiB."""
    shell = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *CHILD, *LIMITS, f"--max-bytes={2**30}"]
    refused = answer(shell, bytes(8 * 2**20))
    assert refused == wire.Refused(wire.Reason.NO_SPACE, "the server has no room for the file: File too large")


def test_file_of_too_many_bytes_is_refused_however_little_of_it_is_in_memory() -> None:
    refused = answer([*CHILD, *LIMITS, "--max-bytes=1000"], bytes(1001))
    assert refused == wire.Refused(wire.Reason.TOO_LARGE, "the file has more than 1000 bytes")


def test_file_on_the_disk_is_read_there(tmp_path: Path) -> None:
    path = tmp_path / "-a file.m3u8"  # no part of its name means anything
    path.write_bytes(encoded(KIND["ogg-opus-48k"], tone(1.0, 48_000)))
    opened = answer([*CHILD, *LIMITS, "--max-bytes=1", f"--file={path}"], b"")
    assert isinstance(opened, wire.Opened)
    assert opened.format == "ogg opus"


@pytest.mark.skipif(sys.platform != "linux", reason="what else limits it differs")
def test_limits_hold() -> None:
    code = (
        "import resource\n"
        "from asr_ws.media.child import confine\n"
        "confine(1.5, 2**30, 1000)\n"
        "print([resource.getrlimit(getattr(resource, f'RLIMIT_{n}')) for n in ('CPU', 'AS', 'FSIZE', 'NOFILE')])"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    assert done.stdout == "[(2, 3), (1073741824, 1073741824), (1000, 1000), (32, 32)]\n"
