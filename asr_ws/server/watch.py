"""Watches the event loop, on which everything in this process depends, and says once a second what was refused.

A timer that comes late shows that something kept the loop: that is measured always, and logged above a quarter of a
second. While the loop is stuck nothing of ours runs, so a watchdog in C writes down where every thread stands; it
needs neither the loop nor the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from asr_ws.core.types import RefusalReason
from asr_ws.metrics import Metrics


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """Seconds."""

    period_s: float = 0.1  # between two looks: a stall is seen by its length, less this at most
    stall_s: float = 0.25  # late by so much is a stall: frames of 100 ms queue up behind it
    dump_s: float = 5.0  # stuck for so long: the stacks, while it is; at most one turn of `report_every_s` later
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
        arm_at = loop.time()
        with _standard_error() as fd:
            try:
                while True:
                    due = loop.time() + limits.period_s
                    if fd is not None and loop.time() >= arm_at:
                        arm_at = loop.time() + limits.report_every_s
                        with contextlib.suppress(RuntimeError):  # no thread can be started: nothing to stop serving for
                            faulthandler.dump_traceback_later(limits.dump_s + limits.report_every_s, file=fd)
                    await asyncio.sleep(limits.period_s)
                    self.observe(max(0.0, loop.time() - due), now=loop.time())
            finally:
                faulthandler.cancel_dump_traceback_later()
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
            self._log.info("utterance.shed", n=shed.total(), reasons={str(reason): n for reason, n in shed.items()})
            self._refusals += shed
        if refused:
            self._log.warning(
                "access.refused", n=refused.total(), reasons=dict(refused), last=self._metrics.last_refused
            )
            self._access_refused += refused
        if n_expired:
            self._log.info("utterance.expired", n=n_expired)
            self._n_expired += n_expired
        return stalled or bool(shed) or bool(refused) or n_expired > 0


@contextlib.contextmanager
def _standard_error() -> Iterator[int | None]:
    """Its file descriptor for the watchdog; None: there is none that surely does not block it.

    It must not block: a watchdog that is stuck in a full pipe would keep whoever arms it anew waiting, with the
    interpreter's lock in his hand. A file does not. Otherwise it is one of our own, opened anew, where that is possible
    (on Linux, not of another user's); else a pipe or a socket (systemd's, Docker's) is made not to block itself, which
    whoever writes the log takes into account.
    """
    try:
        assert sys.__stderr__ is not None
        fd = sys.__stderr__.fileno()
        kind = os.fstat(fd).st_mode
    except (AssertionError, OSError, ValueError):
        yield None
        return
    own, blocking = None, None
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    if own is None and (stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind)) and sys.platform != "win32":
        blocking = os.get_blocking(fd)
        os.set_blocking(fd, False)
    harmless = own is not None or blocking is not None or stat.S_ISREG(kind)
    try:
        yield (fd if own is None else own) if harmless else None
    finally:
        if own is not None:
            os.close(own)
        if blocking is not None:
            os.set_blocking(fd, blocking)  # for a last traceback, and for whoever shares it
