"""The thread of files: in order, to the end, and left behind where it does not answer."""

from __future__ import annotations

import asyncio
import threading

import pytest
from structlog.testing import capture_logs

from asr_ws.errors import StorageError
from asr_ws.server import disk as disk_module
from asr_ws.server.disk import Disk

SOON_S = 60  # what must come does, long before this


async def test_calls_are_made_in_order_on_one_thread_that_is_not_the_loop() -> None:
    disk, made = Disk(), list[int]()

    def call(n: int) -> str:
        made.append(n)
        return threading.current_thread().name

    assert await asyncio.gather(*(disk.run(call, n) for n in range(5))) == ["disk"] * 5
    assert made == [0, 1, 2, 3, 4]
    assert await disk.aclose(SOON_S) is True


async def test_what_a_call_raises_reaches_who_awaits_it_and_the_next_call_is_made() -> None:
    disk = Disk()
    with pytest.raises(ZeroDivisionError):
        await disk.run(divmod, 1, 0)
    assert await disk.run(divmod, 7, 2) == (3, 1)
    assert await disk.aclose(SOON_S) is True


async def test_cancelled_call_runs_to_its_end_before_the_one_that_cleans_up_and_its_error_is_logged() -> None:
    disk, order, gate = Disk(), list[str](), threading.Event()

    def fail() -> None:
        gate.wait(SOON_S)
        order.append("failed")
        raise OSError(28, "No space left on device")

    async def work() -> None:
        try:
            await disk.run(fail)
        finally:
            await disk.run(order.append, "cleaned up")

    with capture_logs() as logs:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert order == []
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await disk.aclose(SOON_S) is True
    assert order == ["failed", "cleaned up"]
    assert [(line["event"], str(line["exc_info"])) for line in logs] == [
        ("disk.call_failed", "[Errno 28] No space left on device")
    ]


async def test_calls_that_wait_are_made_before_the_end_and_none_after_it() -> None:
    disk, made = Disk(), list[int]()
    waiting = [asyncio.create_task(disk.run(made.append, n)) for n in range(3)]
    await asyncio.sleep(0)
    assert await disk.aclose(SOON_S, lambda: made.append(9)) is True
    await asyncio.gather(*waiting)
    assert made == [0, 1, 2, 9]
    with pytest.raises(StorageError, match=r"^the server is stopping$"):
        await disk.run(made.append, 3)
    assert await disk.aclose(SOON_S) is True


async def test_who_asks_a_disk_that_does_not_answer_is_told_so_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "ASK_TIMEOUT_S", 0.01)
    monkeypatch.setattr(disk_module, "MAX_CALLS", 2)
    disk, gate = Disk(), threading.Event()
    stuck = asyncio.create_task(disk.run(gate.wait, SOON_S))
    await asyncio.sleep(0)
    for _ in range(3):
        with pytest.raises(StorageError, match=r"^the disk took more than 0.01 s$"):
            await disk.ask(lambda: None)
    assert disk.is_full
    gate.set()
    assert await stuck is True
    assert await disk.run(divmod, 7, 2) == (3, 1)
    assert await disk.aclose(SOON_S) is True


async def test_timeout_of_a_call_itself_is_its_own() -> None:
    disk = Disk()

    def fail() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await disk.ask(fail)
    assert await disk.aclose(SOON_S) is True


async def test_disk_that_does_not_answer_is_left_behind() -> None:
    disk, gate = Disk(), threading.Event()
    call = asyncio.create_task(disk.run(gate.wait, SOON_S))
    await asyncio.sleep(0)
    assert await disk.aclose(0.01) is False
    gate.set()
    assert await call is True
    assert await disk.aclose(SOON_S) is True
