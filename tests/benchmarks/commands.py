"""Runs a benchmark as its users do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
HANG_S = 300  # however slow the machine: it hangs


def run(name: str, *arguments: str) -> tuple[list[str], dict[str, Any]]:
    """Returns: the lines of the table, and the report. The exit code is the verdict's."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG_S)
    assert done.stdout, done.stderr
    *lines, last = done.stdout.splitlines()
    told: dict[str, Any] = json.loads(last)
    assert done.returncode == (told["passed"] is False), done.stderr
    assert told["benchmark"] == name
    return lines, told
