"""`asr-ws demo`, as the README has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.model
HANG_S = 300  # however slow the machine: it hangs


@pytest.mark.parametrize("kill", [False, True])
def test_the_text_arrives_also_where_the_recognizer_is_killed_in_mid_sentence(tiny_en: Path, kill: bool) -> None:
    command = [sys.executable, "-m", "asr_ws", "demo", "--once", "--port", "0", *(["--kill"] if kill else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"lost_ms":0' in done.stdout
    assert ("--- killed the recognizer" in done.stdout) is kill
    assert ("the recognizer was replaced 1 time(s)" in done.stdout) is kill
    assert ('"state":"restarting"' in done.stdout) is kill
