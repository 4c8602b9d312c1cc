"""Gives back to the system what the C library keeps: audio that comes and goes leaves holes between what stays.

Without it a server seems to leak: `make soak` saw it grow by more than 1 MB a minute, which `malloc_trim` gave back.
It holds the loop while it goes through what is free, some milliseconds: the histogram of the loop's lag has them.
"""

from __future__ import annotations

import asyncio
import ctypes

EVERY_S = 10.0


async def give_back(every_s: float = EVERY_S) -> None:
    """Again and again, until cancelled. Only glibc needs it, and has it: elsewhere this returns at once."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # macOS and musl have no such function, Windows no such library
        return
    while True:
        await asyncio.sleep(every_s)
        trim(0)
