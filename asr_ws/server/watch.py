"""Watches the event loop, on which everything in this process depends, and says once a second what was refused.

A timer that comes late shows that something kept the loop: that is measured always, and logged above a quarter of a
second. While the loop is stuck a thread of our own writes down where every thread stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import traceback
from collections import Counter
from dataclasses import dataclass

import structlog

from asr_ws.core.types import RefusalReason
from asr_ws.metrics import Metrics


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """Seconds."""

    period_s: float = 0.1  # between two looks: a stall is seen by its length, less this at most
    stall_s: float = 0.25  # late by so much is a stall: frames of 100 ms queue up behind it
    dump_s: float = 5.0  # stuck for so long: the stacks, while it is
    report_every_s: float = 1.0  # nothing is logged more often, however often it happens


class Watch:
    """Args: metrics: where lags are counted, and refusals looked up."""

    def __init__(self, metrics: Metrics, limits: WatchLimits = WatchLimits()) -> None:
        self._metrics = metrics
        self._limits = limits
        self._log = structlog.get_logger()
        self._worst_lag_s = 0.0  # not reported yet
        self._refusals = Counter[str]()  # reported
        self._access_refused = Counter[str]()  # reported
        self._n_expired = 0
        self._report_from = 0.0

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        limits = self._limits
        watchdog = _Watchdog(limits.dump_s)
        with contextlib.suppress(RuntimeError):  # no thread can be started: nothing to stop serving for
            watchdog.start()
        try:
            while True:
                due = loop.time() + limits.period_s
                await asyncio.sleep(limits.period_s)
                watchdog.sign()
                self.observe(max(0.0, loop.time() - due), now=loop.time())
        finally:
            watchdog.stop()
            self._report()

    def observe(self, lag_s: float, *, now: float) -> None:
        """The loop's timer came late by ``lag_s``; ``now``: monotonic seconds."""
        self._metrics.loop_lag_s.observe(lag_s)
        self._worst_lag_s = max(self._worst_lag_s, lag_s)
        if now >= self._report_from and self._report():
            self._report_from = now + self._limits.report_every_s

    def _report(self) -> bool:
        """Returns: whether there was anything to say."""
        shed = self._metrics.refusals - self._refusals
        n_expired = self._metrics.unfinished[RefusalReason.DEADLINE] - self._n_expired
        refused = self._metrics.access_refused - self._access_refused
        stalled = self._worst_lag_s > self._limits.stall_s
        if stalled:
            self._log.warning("loop.stalled", lag_s=round(self._worst_lag_s, 3))
            self._worst_lag_s = 0.0
        if shed:
            self._log.info("utterance.shed", n=shed.total(), reasons=_by_name(shed))
            self._refusals += shed
        if refused:
            last = self._metrics.last_refused
            self._log.warning("access.refused", n=refused.total(), reasons=_by_name(refused), **last)
            self._access_refused += refused
        if n_expired:
            self._log.info("utterance.expired", n=n_expired)
            self._n_expired += n_expired
        return stalled or bool(shed) or bool(refused) or n_expired > 0


def _by_name(counts: Counter[str]) -> dict[str, int]:
    return {str(reason): n for reason, n in counts.items()}  # as plain text, whatever enumeration it is of


class _Watchdog(threading.Thread):
    """Writes down where each thread stands when the loop has given no sign of life for so long; once each time.

    By the interpreter's own means, with its lock: `faulthandler` reads the frames of running threads without it, which
    has killed the process. So nothing is written while a call in C keeps the lock.
    """

    N_LOOKS = 5  # each without a sign: a process that was stopped, and goes on, has missed one

    def __init__(self, stuck_s: float) -> None:
        super().__init__(name="watchdog", daemon=True)  # no end waits for it, should standard error hold it up
        self._look_every_s = stuck_s / self.N_LOOKS
        self._n_silent = 0
        self._stopped = threading.Event()

    def sign(self) -> None:
        self._n_silent = 0

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.wait(self._look_every_s):
            self._n_silent += 1
            if self._n_silent == self.N_LOOKS:
                self._write()

    def _write(self) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        lines = ["the event loop is stuck\n"]
        for id, frame in sys._current_frames().items():
            if id != self.ident:
                lines += f"thread {names.get(id, id)}:\n", *traceback.format_stack(frame)
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is no standard error
            # Not by sys.stderr, whose lock whoever logs would wait for.
            os.write(sys.__stderr__.fileno(), "".join(lines).encode(errors="replace"))  # type: ignore[union-attr]
