"""What `asr_ws.testing.faults` keeps beyond the life of a worker, in a folder named by its server's process id."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


def folder(server: int) -> Path:
    """Of the server with this process id."""
    return Path(tempfile.gettempdir()) / f"asr_ws-faults-{server}"


def forget(server: int) -> None:
    """Nothing was committed once, and nothing is left for the next load."""
    shutil.rmtree(folder(server), ignore_errors=True)
