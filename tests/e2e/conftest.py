"""What more than one of these files needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def url(tiny_en: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server on the real model, in a process of its own, as a user starts it."""
    command = [sys.executable, "-m", "asr_ws", "serve", "--port", "0", "--model", str(tiny_en), "--log-level", "error"]
    command += ["--state-dir", str(tmp_path_factory.mktemp("state"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().removeprefix("listening on ").strip()
            while not server.stdout.readline().startswith("  ready "):
                assert server.poll() is None
            yield url
        finally:
            server.kill()
