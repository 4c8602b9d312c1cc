"""The JavaScript client's own unit tests, which are node's: one test here a file there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.browser.driver import HERE, NODE

FILES = sorted((HERE / "unit").glob("*.test.mjs"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_units_under_node(file: Path) -> None:
    ran = subprocess.run(
        (NODE, "--test", "--test-reporter=spec", str(file)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
    )
    assert ran.returncode == 0, f"\n{ran.stdout}"


def test_there_are_units() -> None:
    assert [file.name for file in FILES] == ["asr-client.test.mjs", "asr-session.test.mjs", "audio-ring.test.mjs"]
