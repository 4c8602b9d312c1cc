"""The watch: what it says, with numbers for lags and times; and that it sees a loop that is really stuck."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from asr_ws.core.access import AccessRefusal
from asr_ws.core.types import RefusalReason
from asr_ws.metrics import Metrics
from asr_ws.server.watch import Watch, WatchLimits

HANG_S = 60.0  # nothing here takes so long, however slow the machine
STALLED = {"event": "loop.stalled", "log_level": "warning"}


def told(metrics: Metrics, *lags: tuple[float, float]) -> list[Any]:
    """What a watch with default limits logs, for these moments and lags."""
    with capture_logs() as logs:
        watch = Watch(metrics)
        for now, lag_s in lags:
            watch.observe(lag_s, now=now)
    return logs


def test_lag_is_counted_and_a_quarter_of_a_second_is_no_stall_yet() -> None:
    metrics = Metrics()
    assert told(metrics, (1000.0, 0.0), (1000.1, 0.25), (1000.2, 0.02)) == []
    assert (sum(metrics.loop_lag_s.counts), metrics.loop_lag_s.sum_s) == (3, 0.27)


def test_stall_is_told_at_once_and_then_the_worst_of_each_second() -> None:
    lags = (1000.0, 0.3), (1000.4, 0.4), (1000.9, 0.7), (1000.95, 0.0), (1001.0, 0.0), (1003.0, 0.0), (1003.1, 0.5)
    assert told(Metrics(), *lags) == [{**STALLED, "lag_s": lag_s} for lag_s in (0.3, 0.7, 0.5)]


def test_those_who_may_not_come_in_are_told_once_a_second_with_the_last_address() -> None:
    metrics = Metrics()
    with capture_logs() as logs:
        watch = Watch(metrics)
        for now, address in ((1000.0, "203.0.113.5"), (1000.5, "203.0.113.6"), (1000.7, "203.0.113.7"), (1001.0, "")):
            metrics.access_refused[AccessRefusal.ORIGIN] += bool(address)
            metrics.last_refused = {"last": address} if address else metrics.last_refused
            watch.observe(0.0, now=now)
    refused = {"event": "access.refused", "log_level": "warning"}
    assert logs == [
        {**refused, "n": 1, "reasons": {"origin": 1}, "last": "203.0.113.5"},
        {**refused, "n": 2, "reasons": {"origin": 2}, "last": "203.0.113.7"},
    ]


def test_refusals_and_expiries_are_told_together_once_a_second() -> None:
    metrics = Metrics()
    with capture_logs() as logs:
        watch = Watch(metrics)
        watch.observe(0.0, now=1000.0)
        for now, n in ((1000.1, 1), (1000.2, 2), (1001.0, 3), (1001.1, 0), (1003.0, 0)):
            metrics.refusals[RefusalReason.QUEUE_FULL] += n
            metrics.refusals[RefusalReason.FAIR_SHARE] += n % 2
            metrics.unfinished[RefusalReason.DEADLINE] += n
            metrics.unfinished[RefusalReason.WORKER_CRASHED] += n  # told as worker.died
            watch.observe(0.0, now=now)
    shed, expired = ({"event": f"utterance.{what}", "log_level": "info"} for what in ("shed", "expired"))
    assert logs == [
        {**shed, "n": 2, "reasons": {"queue_full": 1, "fair_share": 1}},
        {**expired, "n": 1},
        {**shed, "n": 6, "reasons": {"queue_full": 5, "fair_share": 1}},
        {**expired, "n": 5},
    ]


async def test_stuck_loop_is_seen() -> None:
    metrics = Metrics()
    with capture_logs() as logs:
        task = asyncio.create_task(Watch(metrics, WatchLimits(period_s=0.01, stall_s=0.05)).run())
        while not metrics.loop_lag_s.sum_s:
            await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251  that is the fault
        while not logs:
            await asyncio.sleep(0)
        task.cancel()
    assert logs[0]["event"] == "loop.stalled"
    assert 0.05 < logs[0]["lag_s"] <= metrics.loop_lag_s.sum_s + 0.001


SCRIPT = """
import asyncio, os, select, sys, time
from asr_ws.metrics import Metrics
from asr_ws.server.watch import Watch, WatchLimits

def stuck_here():
    {stuck}

async def main():
    {before}
    metrics = Metrics()
    watch = asyncio.create_task(Watch(metrics, WatchLimits(0.01, 0.05, dump_s=0.05, report_every_s=0.05)).run())
    while not metrics.loop_lag_s.sum_s:
        await asyncio.sleep(0)
    stuck_here()
    n_seen = sum(metrics.loop_lag_s.counts)
    while sum(metrics.loop_lag_s.counts) < n_seen + 20:
        await asyncio.sleep(0)
    watch.cancel()

asyncio.run(main())
print("went on", flush=True)
"""


@pytest.mark.parametrize(
    "stuck",
    [
        "sys.stdin.readline()",
        "while not select.select([sys.stdin], [], [], 0)[0]: pass",
    ],
)
def test_stacks_are_written_while_the_loop_is_stuck(stuck: str) -> None:
    script = SCRIPT.format(stuck=stuck, before="")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", script], text=True, **pipes)  # type: ignore[call-overload]
    hang = threading.Timer(HANG_S, process.kill)
    hang.start()
    with process:
        for line in process.stderr:
            if "in stuck_here" in line:
                break
        else:
            pytest.fail("no stack was written")
        out, _ = process.communicate("\n")
    hang.cancel()
    assert out.endswith("went on\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only there it is avoided")
def test_stacks_that_nobody_reads_do_not_hold_the_loop_up() -> None:
    fill = """
    own = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(own, bytes(1))
    except BlockingIOError:
        os.close(own)"""
    script = SCRIPT.format(stuck="time.sleep(0.5)", before=fill)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", script], text=True, **pipes)  # type: ignore[call-overload]
    hang = threading.Timer(HANG_S, process.kill)
    hang.start()
    with process:
        assert process.stdout.read().endswith("went on\n")
    hang.cancel()


async def test_what_was_refused_last_is_told_at_the_end() -> None:
    metrics = Metrics()
    with capture_logs() as logs:
        task = asyncio.create_task(Watch(metrics).run())
        await asyncio.sleep(0)
        metrics.refusals[RefusalReason.DRAINING] += 2
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert [(log["event"], log["n"]) for log in logs] == [("utterance.shed", 2)]
