"""The server with a lock, as bad as it is meant to be and no worse."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from asr_ws import messages
from asr_ws.client import ConnectionLost
from asr_ws.testing.bare import connect
from asr_ws.testing.recognizer import Gate
from benchmarks.common import until
from benchmarks.served import Served

MANUAL = {"mode": "manual"}
SECOND = bytes(32_000)
LIMIT_S = 60


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    server = await Served.start("--model", "scripted", program=("benchmarks.lock_server",))
    try:
        yield server
    finally:
        await server.kill()


async def test_who_waits_for_the_lock_hears_nothing_of_it_but_pongs_and_a_crash_ends_all(server: Served) -> None:
    async with (
        Gate() as gate,
        connect(server.url, endpointing=MANUAL, prompt=gate.script) as first,
        connect(server.url, endpointing=MANUAL, prompt="raise no") as second,
        connect(server.url, endpointing=MANUAL, prompt="crash SEGV") as third,
    ):
        events, second_events = first.events(), second.events()
        await first.send(SECOND)
        await first.commit("a")
        decode = await gate.entered()
        await second.send(SECOND)
        await second.commit("b")
        await second.ping(1)
        heard = [await anext(second_events) for _ in range(2)]
        assert [type(each) for each in heard] == [messages.Ready, messages.Pong]
        gate.release(decode)
        final = await until(events, messages.Final)
        assert (final.utterance, final.text) == ("a", "country 16000")
        error = await until(second_events, messages.Error)  # and the lock is free again
        assert (error.utterance, error.code) == ("b", "decode_failed")
        await first.end()
        assert (await until(events, messages.Done)).finals == 1
        await third.send(SECOND)
        await third.commit()
        for others in (second_events, third.events()):
            with pytest.raises(ConnectionLost):
                await until(others, messages.Final)
