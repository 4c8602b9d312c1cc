"""What the tests of the JavaScript client take from npm: TypeScript, and axe-core for the page."""

from __future__ import annotations

import os
import sys
import wave
from pathlib import Path

import click
import pytest

from asr_ws.core.types import SAMPLE_RATE
from benchmarks.chromium import find
from tests.browser.driver import HERE, NODE, node
from tests.browser.looking import wav
from tests.conftest import SPEECH, one_at_a_time


def npm(*args: str, cwd: Path) -> str:
    """Run it; its standard output."""
    # By its script: the file `npm` beside node is a symbolic link, or on Windows a batch file.
    beside = Path(NODE).parent
    folders = (beside.parent / "lib" / "node_modules", beside / "node_modules")
    script = next(path for folder in folders if (path := folder / "npm" / "bin" / "npm-cli.js").is_file())
    ran = node(script, *args, cwd=cwd)
    assert ran.returncode == 0, f"npm {' '.join(args)}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests/browser/package-lock.json names, installed once: a change of the lock installs it anew."""
    installed, lock = HERE / "node_modules" / ".package-lock.json", HERE / "package-lock.json"
    with one_at_a_time("node_modules", tmp_path_factory):
        if not installed.is_file() or installed.stat().st_mtime < lock.stat().st_mtime:
            npm("ci", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts", cwd=HERE)
    return installed.parent


@pytest.fixture
def chromium() -> None:
    """Skips the test where there is none; CI installs it on Linux."""
    try:
        find()
    except click.ClickException as error:
        if os.environ.get("CI") and sys.platform == "linux":
            raise
        pytest.skip(error.message)


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Two and a half seconds of somebody speaking, and then silence."""
    with wave.open(str(SPEECH / "jfk.wav")) as source:
        return wav(tmp_path / "speech.wav", 0, source.readframes(5 * SAMPLE_RATE // 2) + bytes(4 * SAMPLE_RATE))
