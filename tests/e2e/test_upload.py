"""`asr-ws transcribe --http` against a real server on the real model: what is on the terminal, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SPEECH
from tests.e2e.test_openai import FILES, encoded_speech, is_right
from tests.e2e.test_speech import JFK, LONG

pytestmark = pytest.mark.model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(url: str) -> Run:
    """Returns: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "asr_ws", "transcribe", "--http", "--url", url, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
        return done.returncode, done.stdout, done.stderr

    return run


def test_text_of_a_long_file_is_a_line_a_slice(run: Run) -> None:
    code, out, err = run(SPEECH / LONG)
    assert (code, err) == (0, "")
    assert is_right(out, LONG)
    assert len(out.splitlines()) >= 2


def test_what_soundfile_does_not_read_is_sent_all_the_same(run: Run, tmp_path: Path) -> None:
    m4a = next(kind for kind in FILES if kind.name.endswith(".m4a"))
    (tmp_path / m4a.name).write_bytes(encoded_speech(m4a))
    code, out, err = run(tmp_path / m4a.name)
    assert (code, err) == (0, "")
    assert is_right(out)


def test_subtitles_and_events(run: Run) -> None:
    code, srt, err = run(SPEECH / JFK, "--format", "srt")
    assert (code, err, srt[:8]) == (0, "", "1\n00:00:")
    code, vtt, err = run(SPEECH / JFK, "--format", "vtt")
    assert (code, err, vtt[:14]) == (0, "", "WEBVTT\n\n00:00:")
    code, events, err = run(SPEECH / JFK, "--json")
    assert (code, err) == (0, "")
    *_, done = map(json.loads, events.splitlines())
    assert (done["type"], done["file"]) == ("transcript.text.done", str(SPEECH / JFK))
    assert is_right(done["text"])
    assert done["result"]["segments"][0]["text"].strip() in done["text"]


def test_one_file_that_is_none_does_not_stop_the_others(run: Run, tmp_path: Path) -> None:
    (tmp_path / "none.wav").write_bytes(b"no audio, this")
    code, out, err = run(tmp_path / "none.wav", SPEECH / JFK, "--output-dir", tmp_path / "texts")
    assert (code, out) == (1, "")
    assert err == (
        f"error: {tmp_path / 'none.wav'}: unsupported_media: this is no audio file, or of a kind that is not decoded "
        "(send wav, flac, ogg, mp3, m4a or webm)\n"
    )
    assert [path.name for path in (tmp_path / "texts").iterdir()] == ["jfk.txt"]
    assert is_right((tmp_path / "texts" / "jfk.txt").read_text("utf-8"))
