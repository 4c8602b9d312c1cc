"""What a measurement is told by: percentiles, and the machine that it was made on."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

VERSIONS_OF: Final = ("asr-ws", "faster-whisper", "ctranslate2", "onnxruntime", "numpy", "websockets")


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that at least ``percent`` of them do not exceed (nearest rank): one that was measured.

    Raises: ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Spread:
    """How values lie, in their own unit."""

    n: int
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises: ValueError: no values."""
        p50, p95, p99 = (percentile(values, percent) for percent in (50, 95, 99))
        return cls(len(values), p50, p95, p99, max(values))

    def figures(self, digits: int = 3) -> dict[str, float]:
        """For the report."""
        return {name: round(getattr(self, name), digits) for name in ("n", "p50", "p95", "p99", "max")}


def machine() -> dict[str, object]:
    """The machine and what runs on it, so that a number can be read later."""
    told: dict[str, object] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    for package in VERSIONS_OF:
        with suppress(PackageNotFoundError):  # a client's installation has no recognizer
            told[package] = version(package)
    return told


def _cpu_model() -> str:
    try:
        if sys.platform == "linux":
            lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, StopIteration, subprocess.CalledProcessError):  # such as ARM boards, which name no model there
        pass
    return platform.processor() or platform.machine()
