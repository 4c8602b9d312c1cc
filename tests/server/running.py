"""A whole server with a scripted worker, and a bare client, for tests on real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from asr_ws.config import DEFAULTS, Settings
from asr_ws.server.app import App, running
from asr_ws.worker.supervisor import WorkerSpec
from tests.schema import check_event

HANG_S = 600  # no test takes so long, however slow the machine: it hangs
PATIENT_MS = 600_000  # else a decode that a gate holds for long has the next one refused for its predicted wait
SPEED = 1000.0  # audio is taken as fast as it comes
MANUAL = {"type": "start", "endpointing": {"mode": "manual"}}
NOWHERE = str(Path(tempfile.gettempdir()) / f"asr-ws-tests-{os.getpid()}")  # not the user's own jobs
SECOND = bytes(2 * 16_000)  # of s16le silence, which manual mode takes as it takes anything


def settings(**changes: Any) -> Settings:
    """Defaults on a free port, patient and without partials, with these settings changed, whatever their group."""
    usual = {"port": 0, "ingest_speed": SPEED, "partials": "off", "state_dir": NOWHERE, "max_wait_ms": PATIENT_MS}
    changes = {**usual, **changes}
    groups = {}
    for name in (group.name for group in fields(Settings)):
        group = getattr(DEFAULTS, name)
        groups[name] = replace(group, **{key: value for key, value in changes.items() if hasattr(group, key)})
    return Settings(**groups)


@asynccontextmanager
async def serving(spec: WorkerSpec, *, ready: bool = True, **changes: Any) -> AsyncIterator[App]:
    async with asyncio.timeout(HANG_S), running(settings(**changes), spec) as app:
        if ready:
            await app.dispatcher.wait_ready()
        yield app


class Client:
    """Sends what it is told and keeps what it hears, each event checked by the protocol's schema; knows no retries."""

    def __init__(self, app: App, **options: Any) -> None:
        self.url = app.url
        self._options = {"compression": None, "max_queue": None, **options}
        self.events: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        self._connect = connect(self.url, **self._options)
        self.socket: ClientConnection = await self._connect.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._connect.__aexit__(kind, error, traceback)

    async def send(self, *messages: dict[str, Any] | bytes | str) -> None:
        for message in messages:
            await self.socket.send(json.dumps(message) if isinstance(message, dict) else message)

    async def next(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(await self.socket.recv())
        check_event(event)
        self.events.append(event)
        return event

    async def until(self, type: str, **fields: Any) -> dict[str, Any]:
        """Read on to the next event of that type with these fields."""
        while True:
            event = await self.next()
            if event["type"] == type and fields.items() <= event.items():
                return event

    async def rest(self) -> int:
        """Read to the end. Returns: the close code."""
        while True:
            try:
                await self.next()
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd else 1006

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]


async def get(app: App, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and body of a plain request."""

    def fetch() -> tuple[int, str]:
        request = urllib.request.Request(app.listener.url + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def stats(app: App) -> dict[str, Any]:
    status, body = await get(app, "/v1/stats")
    assert status == 200
    parsed: dict[str, Any] = json.loads(body)
    return parsed
