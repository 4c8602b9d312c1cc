"""`asr-ws` as a process of its own: beside a server in this one, whose log goes to the same standard output."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from tests.server.running import HANG_S

ROOT = Path(__file__).parents[2]


async def program(*args: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    command = [sys.executable, "-m", "asr_ws", *map(str, args)]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=HANG_S
    )
    return done.returncode, done.stdout, done.stderr
