"""The intake: whose turn it is, and what becomes of what was not looked at yet when the peer goes."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from websockets.server import ServerProtocol

from asr_ws.server import intake, self_signed
from asr_ws.server.intake import Intake, Turns, _Tap
from asr_ws.worker.supervisor import WorkerSpec
from benchmarks.wire import BINARY, PING, TEXT
from tests.server.raw import frame, raw
from tests.server.running import Client, serving

START = frame(TEXT, b'{"type":"start","endpointing":{"mode":"manual"}}')
N_FRAMES = 200  # of 1.6 KB, more than one turn's


class Sender:
    """Has always more to be looked at, if it floods, and each look takes half a turn to the clock: real ones vary."""

    def __init__(self, turns: Turns, clock: Clock, *, floods: bool) -> None:
        self.looked_s = 0.0
        self.turns, self.clock, self.floods = turns, clock, floods
        self.looked_at = list[int]()  # of all looks, which

    def look(self) -> None:
        self.looked_at.append(self.clock.n_looks)
        self.clock.n_looks += 1

    def regulate(self) -> None:
        if self.floods:
            self.turns.enter(self)


class Clock:
    n_looks = 0

    def __call__(self) -> float:
        return self.n_looks / 2


async def test_who_had_least_is_next_however_many_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "TURN_S", 1.0)
    clock = Clock()
    turns = Turns(clock)
    floods = [Sender(turns, clock, floods=True) for _ in range(20)]
    speaker = Sender(turns, clock, floods=False)
    for at, flood in enumerate(floods):
        flood.looked_s = at / 64  # no two the same, as with a real clock
        turns.enter(flood)
    for _ in range(5):
        await turns_of_the_loop(20)
        n_before = clock.n_looks
        turns.enter(speaker)
        await turns_of_the_loop(2)
        assert 0 <= speaker.looked_at[-1] - n_before <= 2, "20 others would be before it if each had its turn"
    for flood in floods:
        flood.floods = False
    assert clock.n_looks <= 2 * (5 * 22 + 1), "two looks a turn of the loop"
    n_each = [len(flood.looked_at) for flood in floods]
    assert max(n_each) - min(n_each) <= 1, "and none of them starves"


async def test_a_pause_is_not_repaid() -> None:
    clock = Clock()
    turns = Turns(clock)
    steady, back = Sender(turns, clock, floods=True), Sender(turns, clock, floods=True)
    turns.enter(steady)
    await turns_of_the_loop(100)
    turns.enter(back)
    n_before = len(steady.looked_at)
    await turns_of_the_loop(20)
    steady.floods = back.floods = False
    assert abs(len(steady.looked_at) - n_before - len(back.looked_at)) <= 1


async def test_who_comes_anew_each_time_does_not_go_first() -> None:
    clock = Clock()
    turns = Turns(clock)
    steady, new = (Sender(turns, clock, floods=False) for _ in range(2))
    new.looked_s = turns.entry_s
    turns.enter(new)
    turns.enter(steady)
    await turns_of_the_loop(3)
    assert (steady.looked_at, new.looked_at) == ([0], [1])


async def test_who_comes_alone_is_looked_at_at_once_as_long_as_the_turn_has_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "TURN_S", 1.0)
    clock = Clock()
    turns = Turns(clock)
    first, second, third = (Sender(turns, clock, floods=False) for _ in range(3))
    assert [turns.take_now(each) for each in (first, second, third)] == [True, True, False], "half a turn each"
    turns.enter(third)
    assert not turns.take_now(first), "others wait"
    await turns_of_the_loop(2)
    assert turns.take_now(first)
    assert [each.looked_at for each in (first, second, third)] == [[0, 3], [1], [2]]
    assert first.looked_s >= third.looked_s - 0.5, "it is charged, and not repaid for the time in which it was away"


async def turns_of_the_loop(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


class Wire(asyncio.Transport):
    """Its peer goes after so many writes."""

    def __init__(self, n_writes: int) -> None:
        super().__init__()
        self.n_writes = n_writes
        self.written = list[bytes]()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return len(self.written) >= self.n_writes


async def test_what_is_written_for_a_slice_is_written_at_once_and_not_to_who_has_gone() -> None:
    wire = Wire(n_writes=2)
    tap = _Tap(wire, Intake(Turns(), ServerProtocol(), None))
    tap.hold()
    tap.write(b"a pong")
    tap.write(b"and another")
    assert wire.written == []
    tap.release()
    tap.write(b"an event")
    tap.write(b"one more, for nobody")
    assert wire.written == [b"a pongand another", b"an event"]


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
        async with (
            serving(scripted, tls_self_signed=encrypted, state_dir=str(tmp_path)) as app,
            raw(app, tls) as socket,
        ):
            await socket.upgrade()
            assert (await socket.next())[0] == TEXT  # `ready`
            socket.writer.write(START + frame(BINARY, bytes(1600)) * N_FRAMES)
            socket.writer.close() if encrypted else socket.writer.write_eof()
            await app.listener.wait_empty()
    [closed] = [log for log in logs if log["event"] == "session.closed"]
    # The last few wait in websockets when the connection is lost, and have nobody to be told to.
    assert closed["audio_s"] > 0.05 * (N_FRAMES - 20)
    assert not [log for log in logs if log["log_level"] == "error"]
