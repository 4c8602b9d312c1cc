"""Files that change: what is believed of them, and when."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from asr_ws.errors import UsageError
from asr_ws.server import reload
from asr_ws.server.reload import Reloaded, read


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "LOOK_EVERY_S", 0.001)


def text(contents: Sequence[bytes]) -> str:
    return contents[0].decode()


@asynccontextmanager
async def watching(watched: Reloaded[str], told: list[str]) -> AsyncIterator[list[Any]]:
    with capture_logs() as logs:
        task = asyncio.create_task(watched.run(told.append))
        try:
            yield logs
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


async def test_what_changed_before_the_first_look_is_not_missed(tmp_path: Path) -> None:
    file, told = tmp_path / "file", list[str]()
    file.write_text("one", "utf-8")
    watched = Reloaded([file], text)
    file.write_text("two", "utf-8")
    async with watching(watched, told):
        await until(lambda: told)
    assert (watched.value, told) == ("one", ["two"])


async def test_what_is_half_written_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: Iterator[bytes] = iter([b"old", b"ne", b"new", b"newer", b"old"])  # after these the newest, each time
    monkeypatch.setattr(reload, "read", lambda file: next(looks, b"newest"))
    told = list[str]()
    async with watching(Reloaded([tmp_path], text), told) as logs:
        await until(lambda: "newest" in told)
    assert (told, len(logs)) == (["newest"], 1)


async def test_what_was_made_of_files_that_changed_meanwhile_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenSSL does, who makes something of it reads the file by himself."""
    looks = iter([b"one", b"two", b"two", b"thr", b"two", b"two", b"three"])
    monkeypatch.setattr(reload, "read", lambda file: next(looks, b"three"))
    of_both = iter([UsageError("of both"), "of both"])

    def make(contents: Sequence[bytes]) -> str:
        made = next(of_both) if contents[0] == b"two" else text(contents)
        if isinstance(made, UsageError):
            raise made
        return made

    told = list[str]()
    async with watching(Reloaded([tmp_path], make), told) as logs:
        await until(lambda: told)
    assert (told, [log["event"] for log in logs]) == (["three"], ["file.reloaded"])
    assert next(of_both, None) is None


async def test_a_disk_that_does_not_answer_is_said_in_a_thread_that_no_end_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, found = threading.Event(), iter([b"one"])

    def hung(_: Path) -> bytes:
        return next(found, b"") or (answers.wait(60) and b"two")

    monkeypatch.setattr(reload, "read", hung)
    monkeypatch.setattr(reload, "SLOW_S", 0.001)
    told = list[str]()
    async with watching(Reloaded([tmp_path], text), told) as logs:
        await until(lambda: logs)
        assert ([log["event"] for log in logs], told) == (["file.not_answering"], [])
        assert [thread.daemon for thread in threading.enumerate() if thread.name == "files"] == [True]
        answers.set()
        await until(lambda: told)


async def test_whatever_is_wrong_with_a_file_the_last_good_one_stays(tmp_path: Path) -> None:
    def strict(contents: Sequence[bytes]) -> str:
        if contents[0] == b"bug":
            raise MemoryError
        return text(contents)

    file, told = tmp_path / "file", list[str]()
    file.write_text("one", "utf-8")
    async with watching(Reloaded([file], strict), told) as logs:
        file.write_text("bug", "utf-8")
        await until(lambda: len(logs) == 1)
        file.write_bytes(bytes(reload.MAX_FILE_BYTES + 1))
        await until(lambda: len(logs) == 2)
        file.unlink()
        await until(lambda: len(logs) == 3)
        file.mkdir()
        await until(lambda: len(logs) == 4)
        file.rmdir()
        file.write_text("two", "utf-8")
        await until(lambda: told)
    assert told == ["two"]
    assert {log["event"] for log in logs[:4]} == {"file.not_reloaded"}
    a_folder = "Permission denied" if sys.platform == "win32" else "is no regular file"
    reasons = "is longer than 1024 KiB", "No such file or directory", a_folder
    assert all(reason in log["message"] for reason, log in zip(reasons, logs[1:4], strict=True))


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="is no regular file"):
            read(file)


def test_a_name_that_no_file_can_have_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="null"):
        read(tmp_path / "a\0b")
