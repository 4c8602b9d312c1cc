"""Real human speech through a real server on the real model: what a user gets."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from asr_ws import messages
from asr_ws.client import Event, Transcript, collect, connect
from asr_ws.core.types import SAMPLE_RATE, Samples
from asr_ws.server.app import App
from asr_ws.testing.wer import WordErrors, total, word_errors
from asr_ws.worker.supervisor import Limits, WorkerSpec
from tests.conftest import SPEECH, read_speech
from tests.server.running import serving, stats

pytestmark = pytest.mark.model

JFK = "jfk.wav"
LONG = "long-two-cities.wav"
S16 = {"encoding": "pcm_s16le"}
F32 = {"encoding": "pcm_f32le"}


@asynccontextmanager
async def real(tiny_en: Path, **changes: Any) -> AsyncIterator[App]:
    async with serving(WorkerSpec(tiny_en, device="cpu"), **changes) as app:
        yield app


def said(name: str) -> str:
    rows = (line.split("\t") for line in (SPEECH / "manifest.tsv").read_text(encoding="utf-8").splitlines())
    return next(row[3] for row in rows if row[0] == name)


def as_bytes(samples: Samples, audio: dict[str, Any]) -> bytes:
    if audio["encoding"] == "pcm_f32le":
        return samples.astype("<f4").tobytes()
    return np.round(samples * 32768).astype("<i2").tobytes()


def chunks(data: bytes, n_bytes: int) -> Iterator[bytes]:
    return (data[start : start + n_bytes] for start in range(0, len(data), n_bytes))


async def heard(app: App, source: Any, **start: Any) -> Transcript:
    async with connect(app.url, language="en", **start) as session:
        return collect([event async for event in session.stream(source)])


def accounted(transcript: Transcript) -> bool:
    done = transcript.done
    assert done is not None
    assert done.received_ms == done.decoded_ms + done.silence_ms + done.refused_ms + done.lost_ms
    return (done.lost_ms, done.refused_ms, transcript.unfinished) == (0, 0, [])


async def test_recordings_come_out_right_cut_at_their_pauses(tiny_en: Path) -> None:
    async with real(tiny_en) as app:
        transcripts = {name: await heard(app, SPEECH / name) for name in (JFK, LONG)}
    errors = {name: word_errors(said(name), transcript.text) for name, transcript in transcripts.items()}
    assert total(errors.values()).rate <= 0.05, {name: heard.text for name, heard in transcripts.items()}
    assert errors[LONG].errors <= 4, transcripts[LONG].text
    assert all(accounted(transcript) for transcript in transcripts.values())
    finals = transcripts[LONG].finals
    assert len(finals) >= 5, "it has at least that many pauses"
    edges = [edge for final in finals for edge in (final.audio_start_ms, final.audio_end_ms)]
    assert edges == sorted(edges), "ranges are disjoint and in order"
    assert edges[-1] <= 44_374


async def test_encoding_and_chunking_do_not_change_a_letter(tiny_en: Path) -> None:
    samples = read_speech(JFK)[: 5 * SAMPLE_RATE]
    cases = [(S16, 1), (S16, 1001), (S16, 65536), (F32, 1003), (F32, 4096), (F32, 65536)]
    async with real(tiny_en) as app:
        plain = await heard(app, samples)
        assert len(plain.finals) == 2
        for audio, n_bytes in cases:
            data = as_bytes(samples, audio)
            n_head = SAMPLE_RATE if n_bytes == 1 else len(data)  # all of it, byte by byte, takes half a minute
            pieces = [*chunks(data[:n_head], n_bytes), *chunks(data[n_head:], 1001)]
            transcript = await heard(app, pieces, audio=audio)
            ranges = [(final.text, final.audio_start_ms, final.audio_end_ms) for final in transcript.finals]
            assert ranges == [(final.text, final.audio_start_ms, final.audio_end_ms) for final in plain.finals]
            assert accounted(transcript)


def to_48k_stereo(samples: Samples) -> bytes:
    """As a sound card gives it: shape (n,) at 16 kHz -> interleaved s16le at 48 kHz."""
    resampler = av.AudioResampler(format="s16", layout="stereo", rate=48_000)
    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="flt", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return b"".join(out.to_ndarray().tobytes() for out in frames)


def differs(one: Transcript, other: Transcript) -> WordErrors:
    return word_errors(one.text, other.text)


async def test_other_rates_channels_and_manual_commits_say_the_same(tiny_en: Path) -> None:
    samples = read_speech(LONG)[: 21 * SAMPLE_RATE]  # to a pause
    async with real(tiny_en) as app:
        plain = await heard(app, samples)
        stereo = await heard(
            app,
            chunks(to_48k_stereo(samples), 19_200),
            audio={"encoding": "pcm_s16le", "sample_rate": 48_000, "channels": 2},
        )
        manual = await committed_by_hand(app, samples, [final.audio_end_ms for final in plain.finals])
    assert differs(plain, stereo).rate <= 0.05, stereo.text
    assert differs(plain, manual).rate <= 0.05, manual.text
    assert accounted(stereo)
    assert accounted(manual)
    assert manual.done is not None
    assert (manual.done.silence_ms, manual.done.decoded_ms) == (0, manual.done.received_ms)


async def committed_by_hand(app: App, samples: Samples, ends_ms: list[int]) -> Transcript:
    """Push to talk: the button is let go where the utterances end; the last is ended by `end`."""
    edges = [0, *(end * SAMPLE_RATE // 1000 for end in ends_ms[:-1]), len(samples)]
    transcript = Transcript()
    async with connect(app.url, language="en", endpointing={"mode": "manual"}) as session:
        events = session.events()
        for start, end in pairwise(edges):
            for chunk in chunks(as_bytes(samples[start:end], S16), 65_536):
                await session.send(chunk)
            await (session.end() if end == len(samples) else session.commit())
            async for event in events:
                transcript.receive(event)
                if isinstance(event, messages.Final):
                    break
        async for event in events:
            transcript.receive(event)
    return transcript


@pytest.mark.parametrize("what", ["silence", "noise", "quiet noise", "hum"])
async def test_what_is_not_speech_gives_no_words(tiny_en: Path, what: str) -> None:
    n = 5 * SAMPLE_RATE
    noise = np.random.default_rng(1).standard_normal(n).astype(np.float32)
    samples = {
        "silence": np.zeros(n, np.float32),
        "noise": noise * 0.2,
        "quiet noise": noise * 0.002,
        "hum": (0.2 * np.sin(2 * np.pi * 440 * np.arange(n) / SAMPLE_RATE)).astype(np.float32),
    }[what]
    async with real(tiny_en) as app:
        transcript = await heard(app, samples)
    assert transcript.text == ""
    assert accounted(transcript)


async def test_forty_sessions_at_once_all_end_in_finals(tiny_en: Path) -> None:
    """At most 3 wait and 1 is decoded; the others are told so with a hint, and by following it get their text."""
    clip = as_bytes(read_speech(JFK)[: 3 * SAMPLE_RATE], S16)
    go = asyncio.Event()
    depths: list[int] = []

    async def one(app: App) -> list[messages.ServerEvent | messages.Unknown]:
        async with connect(app.url, language="en", endpointing={"mode": "manual"}) as session:
            await session.send(clip)
            await go.wait()
            await session.commit()
            await session.end()
            events = []
            async for event in session.events():
                events.append(event)
                depths.append(app.dispatcher.queue.depth)
            return events

    async with real(tiny_en) as app:
        async with asyncio.TaskGroup() as tasks:
            sessions = [tasks.create_task(one(app)) for _ in range(40)]
            while app.listener.n_sessions < 40:
                await asyncio.sleep(0)
            go.set()
        seen = await stats(app)
    outcomes = [[event for event in session.result() if isinstance(event, messages.Final)] for session in sessions]
    assert [len(finals) for finals in outcomes] == [1] * 40
    assert len({finals[0].text for finals in outcomes}) == 1, "the same audio is the same text"
    refusals = [e for session in sessions for e in session.result() if isinstance(e, (messages.Busy, messages.Retry))]
    assert sum(isinstance(refusal, messages.Busy) and refusal.attempt == 1 for refusal in refusals) >= 36
    assert all(500 <= refusal.retry_after_ms <= 1500 for refusal in refusals)
    assert max(depths) <= 3
    assert seen["max_concurrent_decodes"] == 1
    assert (seen["queue_depth"], seen["in_flight_tasks"], seen["sessions"]) == (0, 0, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
async def test_death_of_the_recognizer_in_mid_decode_is_survived(tiny_en: Path, name: str) -> None:
    """The incident this server was built for."""
    async with real(tiny_en) as app:
        events = await committed(app, getattr(signal, name))
        seen = await stats(app)
    finals = [event for event in events if isinstance(event, messages.Final)]
    assert [final.utterance for final in finals] == ["u1"]
    assert "country" in finals[0].text
    assert [event.state for event in events if isinstance(event, messages.State)] == ["restarting", "ready"]
    assert accounted(collect(events))
    assert (seen["worker_restart_count"], seen["state"]) == (1, "ready")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_recognizer_that_stands_still_in_mid_decode_is_replaced(tiny_en: Path) -> None:
    """It is told to the client, which offers the audio again: the next worker decodes it."""

    class Once(Limits):
        def decode(self, expected_s: float, n_decodes: int) -> float:
            return 2.0 if not n_restarts() else super().decode(expected_s, n_decodes)

    async with serving(WorkerSpec(tiny_en, device="cpu", limits=Once())) as app:

        def n_restarts() -> int:
            return app.supervisor.n_restarts

        events = await committed(app, signal.SIGSTOP)
        assert app.supervisor.restarts == {"hung": 1}
    told = [event.reason for event in events if isinstance(event, messages.Retry)]
    assert told == ["worker_hung"]
    [final] = [event for event in events if isinstance(event, messages.Final)]
    assert (final.utterance, "country" in final.text) == ("u1", True)
    assert accounted(collect(events))


async def committed(app: App, number: int) -> list[Event]:
    """All events of an utterance under whose first decode the recognizer gets this signal."""
    async with connect(app.url, language="en", endpointing={"mode": "manual"}) as session:
        victim = app.supervisor.pid
        assert victim is not None
        await session.send(as_bytes(read_speech(JFK), S16)[:200_000])
        await session.commit()
        await session.end()
        events: list[Event] = []
        async for event in session.events():
            events.append(event)
            if isinstance(event, messages.Accepted) and event.attempt == 1:
                os.kill(victim, number)
        assert app.supervisor.pid != victim
        return events
