"""The intake: whose turn it is, and what becomes of what was not looked at yet when the peer goes."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from asr_ws.server import self_signed
from asr_ws.server.intake import Intake, Turns
from asr_ws.worker.supervisor import WorkerSpec
from benchmarks.wire import BINARY, PING, TEXT
from tests.server.raw import HANDSHAKE, Raw, frame, raw
from tests.server.running import Client, serving

START = frame(TEXT, b'{"type":"start","endpointing":{"mode":"manual"}}')
N_FRAMES = 200  # of 1.6 KB, more than one turn's


class Busy(Intake):
    """Has always more to be looked at, if it floods, and each look takes a while."""

    def __init__(self, name: str, turns: Turns, looked_at: list[str], *, floods: bool) -> None:
        self.had_s, self._turns = 0.0, turns
        self.name, self.looked_at, self.floods = name, looked_at, floods

    def look(self) -> None:
        self.looked_at.append(self.name)
        time.sleep(0.001)

    def regulate(self) -> None:
        if self.floods:
            self._turns.enter(self)


async def test_who_had_least_is_next_however_many_flood() -> None:
    turns, looked_at = Turns(), list[str]()
    floods = [Busy(f"flood {n}", turns, looked_at, floods=True) for n in range(20)]
    for flood in floods:
        turns.enter(flood)
    speaker = Busy("speaker", turns, looked_at, floods=False)
    waited = []
    for _ in range(5):
        n_before = len(looked_at)
        while len(looked_at) < n_before + 50:
            await asyncio.sleep(0)
        n_before = len(looked_at)
        turns.enter(speaker)
        while "speaker" not in looked_at[n_before:]:
            await asyncio.sleep(0)
        waited.append(looked_at.index("speaker", n_before) - n_before)
    for flood in floods:
        flood.floods = False
    assert sorted(waited)[2] <= 2, "20 others would be before it if each had its turn"
    assert len({name for name in looked_at if name != "speaker"}) == 20, "and none of them starves"


async def test_pings_of_who_has_gone_are_not_answered(scripted: WorkerSpec, caplog: pytest.LogCaptureFixture) -> None:
    """Regression: asyncio warned of each, hundreds in a turn."""
    async with serving(scripted, ready=False) as app, Client(app) as neighbour:
        for _ in range(10):
            async with raw(app) as hostile:
                await hostile.upgrade()
                hostile.writer.transport.set_write_buffer_limits(1 << 24)
                await hostile.send(frame(PING) * 30_000)
                await hostile.next()
        await neighbour.send({"type": "ping", "id": 1})
        await neighbour.until("pong")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("encrypted", [False, True])
async def test_what_was_sent_before_the_end_is_heard(scripted: WorkerSpec, tmp_path: Path, encrypted: bool) -> None:
    """Regression: over TLS the end came before what was not looked at yet."""
    tls = ssl.create_default_context(cafile=self_signed.self_signed(tmp_path).cert) if encrypted else None
    with capture_logs() as logs:
        async with serving(scripted, tls_self_signed=encrypted, state_dir=str(tmp_path)) as app:
            reader, writer = await asyncio.open_connection("127.0.0.1", app.listener.port, ssl=tls)
            await Raw(reader, writer).send(f"{HANDSHAKE}\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            assert (await reader.readexactly(2))[0] == 0x80 | TEXT  # `ready`
            writer.write(START + frame(BINARY, bytes(1600)) * N_FRAMES)
            writer.close() if encrypted else writer.write_eof()
            await app.listener.wait_empty()
            writer.close()
    [closed] = [log for log in logs if log["event"] == "session.closed"]
    # The last few wait in websockets when the connection is lost, and have nobody to be told to.
    assert closed["audio_s"] > 0.05 * (N_FRAMES - 20)
    assert not [log for log in logs if log["log_level"] == "error"]
