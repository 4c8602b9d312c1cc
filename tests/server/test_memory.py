"""What is free between what is not goes back to the system."""

from __future__ import annotations

import asyncio
import sys

import psutil
import pytest

from asr_ws.server.memory import give_back

MB = 1_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
async def test_holes_are_given_back() -> None:
    process = psutil.Process()
    kept = []
    holes = []
    for _ in range(1000):  # 100 MB in pieces too small to be pages of their own, and what stays behind each
        holes.append(b"x" * 100_000)
        kept.append(b"x" * 50_000)
    holes.clear()
    before = process.memory_info().rss
    task = asyncio.create_task(give_back(0.001))
    async with asyncio.timeout(60):
        while process.memory_info().rss > before - 50 * MB:
            await asyncio.sleep(0.001)
    task.cancel()
    assert len(kept) == 1000
