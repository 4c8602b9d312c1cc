"""Text before the endpoint, on the real model: it grows while somebody speaks, and changes no final."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from asr_ws import messages
from asr_ws.client import collect, connect
from asr_ws.core.types import SAMPLE_RATE
from asr_ws.server.app import App
from asr_ws.testing.wer import words
from asr_ws.worker.supervisor import WorkerSpec
from tests.conftest import read_speech
from tests.e2e.test_speech import accounted, said
from tests.server.running import serving, stats

pytestmark = pytest.mark.model

JFK = "jfk.wav"
PCM = (read_speech(JFK) * 32767).astype("<i2").tobytes()
CHUNK = 2 * SAMPLE_RATE // 10  # bytes: 0.1 s
WAITS = {12 * CHUNK: 1, 18 * CHUNK: 2}  # partials before what begins there is sent; the first words end at 22 chunks
Events = list[messages.ServerEvent | messages.Unknown]


async def spoken(app: App, *, realtime: bool = False) -> Events:
    """Realtime: the speaker waits in his first words until they have partials, on a busy machine too, and then makes up
    for it.
    """
    events: Events = []
    heard = asyncio.Event()

    async def speaker() -> AsyncIterator[bytes]:
        for start in range(0, len(PCM), CHUNK):
            while realtime and len(partials(events)) < WAITS.get(start, 0):
                heard.clear()
                await heard.wait()
            yield PCM[start : start + CHUNK]

    async with connect(app.url, language="en") as session:
        async for event in session.stream(speaker(), realtime=realtime):
            events.append(event)
            heard.set()
    return events


def partials(events: Events) -> list[messages.Partial]:
    return [event for event in events if isinstance(event, messages.Partial)]


def finals(events: Events) -> list[tuple[str, int, int]]:
    return [(e.text, e.audio_start_ms, e.audio_end_ms) for e in events if isinstance(e, messages.Final)]


async def test_text_grows_while_it_is_spoken_and_changes_no_letter_of_the_finals(tiny_en: Path) -> None:
    spec = WorkerSpec(tiny_en, device="cpu")
    async with serving(spec, partials="off", speculation="off") as app:
        plain = await spoken(app)
    async with serving(spec, partials="on", speculation="on") as app:
        events = await spoken(app, realtime=True)
        seen = await stats(app)
    assert finals(events) == finals(plain)
    assert accounted(collect(events))
    by_utterance: dict[str, list[messages.Partial]] = {}
    for event in partials(events):
        by_utterance.setdefault(event.utterance, []).append(event)
    assert any(after.stable for told in by_utterance.values() for after in told[1:]), "two have agreed"
    for told in by_utterance.values():
        assert all(after.stable.startswith(before.stable) for before, after in pairwise(told))
    shown = [word for told in by_utterance.values() for word in words(told[-1].stable + told[-1].unstable)]
    wrong = [word for word in shown if word not in words(said(JFK))]
    assert len(wrong) <= 0.2 * len(shown), "partials are what was said, as far as they go"
    assert seen["partials"] >= len(partials(events))
    assert seen["max_concurrent_decodes"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_segfault_under_partials_costs_no_final(tiny_en: Path) -> None:
    spec = WorkerSpec(tiny_en, device="cpu")
    audio, rest = PCM[: 4 * SAMPLE_RATE], PCM[4 * SAMPLE_RATE : 10 * SAMPLE_RATE]
    manual = {"mode": "manual"}  # nothing but a partial is decoded before the rest is sent
    async with serving(spec, partials="on") as app, connect(app.url, language="en", endpointing=manual) as session:
        victim = app.supervisor.pid
        assert victim is not None
        await session.send(audio)
        events: Events = []
        async for event in session.events():
            events.append(event)
            if isinstance(event, messages.Partial) and app.supervisor.pid == victim:
                os.kill(victim, signal.SIGSEGV)
            if isinstance(event, messages.State) and event.state == "restarting":
                await session.send(rest)
                await session.end()
    assert "fellow Americans" in " ".join(text for text, _, _ in finals(events))
    assert accounted(collect(events))
