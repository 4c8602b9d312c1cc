"""The microphone on a stand-in for sounddevice, see there what is unrealistic about it; tests/e2e has a real one."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from asr_ws import messages
from asr_ws.client import connect, microphone
from asr_ws.client.microphone import TAIL, Device, Microphone, devices
from asr_ws.errors import ClientError, MissingExtra
from asr_ws.messages import AudioFormat
from asr_ws.worker.supervisor import WorkerSpec
from tests.server.running import serving

FAKE = Path(__file__).parents[1] / "portaudio" / "sounddevice.py"
A, B, C = (bytes([n, 0]) * 800 for n in (1, 2, 3))


@pytest.fixture(autouse=True)
def portaudio(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("sounddevice", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    spec.loader.exec_module(module)
    return module


async def opened(microphone: Microphone, portaudio: Any) -> tuple[AsyncIterator[bytes], asyncio.Task[bytes], Any]:
    """It records: the blocks, the first of which is awaited, and the stream."""
    blocks = aiter(microphone)
    first = asyncio.ensure_future(anext(blocks))
    while not portaudio.streams:
        await asyncio.sleep(0)
    return blocks, first, portaudio.streams[0]


async def rest(blocks: AsyncIterator[bytes]) -> list[bytes]:
    return [block async for block in blocks]


# ---------------------------------------------------------------- which one


def test_the_microphones_are_listed() -> None:
    assert devices() == [
        Device(1, "Built-in, ALSA", 48_000, True),
        Device(2, "USB headset, ALSA", 44_100, False),
        Device(3, "USB camera, ALSA", 48_000, False),
        Device(4, "Built-in, JACK", 48_000, False),
    ]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [(None, 1), (3, 3), ("headset", 2), ("uSb C", 3), ("built", 1), ("JACK", 4), ("built-in, j", 4)],
)
async def test_it_is_found_by_its_index_or_a_part_of_its_name(
    wanted: int | str | None, index: int, portaudio: Any
) -> None:
    _, first, stream = await opened(Microphone(wanted), portaudio)
    assert stream.device == index
    stream.unplug()
    await asyncio.wait([first])
    assert isinstance(first.exception(), ClientError)


def test_a_whole_name_is_meant_where_it_is_also_a_part_of_another(portaudio: Any) -> None:
    portaudio.DEVICES[3]["name"] = "USB headset 2"
    assert Microphone("usb headset").name == "USB headset, ALSA"


@pytest.mark.parametrize("wanted", [0, 9, "speaker", "nothing"])
def test_there_is_none_such(wanted: int | str) -> None:
    with pytest.raises(ClientError) as none:
        Microphone(wanted)
    assert (none.value.message, none.value.hint) == (f"no microphone {wanted!r}", "asr-ws mic --devices lists them")


def test_a_name_of_several_names_them() -> None:
    with pytest.raises(ClientError) as several:
        Microphone("usb")
    assert several.value.message == "microphone 'usb' may be: 2 USB headset, ALSA; 3 USB camera, ALSA"


def test_without_a_default_it_is_the_first(portaudio: Any) -> None:
    portaudio.default.device[0] = -1
    assert Microphone().name == "Built-in, ALSA"


def test_a_machine_without_any(portaudio: Any) -> None:
    del portaudio.DEVICES[1:]
    assert devices() == []
    with pytest.raises(ClientError, match=r"^no microphone .plug one in"):
        Microphone()


def test_without_sounddevice_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtra, match=r"asr-ws\[mic\]"):
        Microphone()


def test_without_portaudio_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(ModuleType):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [Missing("missing"), *sys.meta_path])
    with pytest.raises(ClientError, match=r"^no microphone: PortAudio library not found .install PortAudio"):
        devices()


# ---------------------------------------------------------------- which format


@pytest.mark.parametrize(
    ("refused", "audio"),
    [
        ([], (16_000, 1)),
        ([(16_000, 1)], (48_000, 1)),
        ([(16_000, 1), (48_000, 1)], (16_000, 2)),
        ([(16_000, 1), (48_000, 1), (16_000, 2)], (48_000, 2)),
    ],
)
def test_it_gives_16_khz_mono_or_what_there_is(
    refused: list[tuple[int, int]], audio: tuple[int, int], portaudio: Any
) -> None:
    portaudio.refused.update(refused)
    assert Microphone().audio == AudioFormat("pcm_s16le", *audio)


def test_a_device_that_takes_no_format_is_none(portaudio: Any) -> None:
    portaudio.refused.update((rate, channels) for rate in (16_000, 48_000) for channels in (1, 2))
    with pytest.raises(ClientError) as none:
        Microphone()
    assert none.value.message == "no microphone 'Built-in, ALSA': Invalid sample rate"


async def test_a_session_is_told_the_format(scripted: WorkerSpec, portaudio: Any) -> None:
    portaudio.refused.add((16_000, 1))
    microphone = Microphone()
    async with serving(scripted) as app, connect(app.url, endpointing={"mode": "manual"}) as session:
        seen = []
        async for event in session.stream(microphone):
            seen.append(event)
            if isinstance(event, messages.Ready):
                while not portaudio.streams:
                    await asyncio.sleep(0)
                portaudio.streams[0].give(*[bytes(4800)] * 20)
                microphone.stop()
    [final] = [event for event in seen if isinstance(event, messages.Final)]
    assert (final.audio_start_ms, final.audio_end_ms) == (0, 1000)


# ---------------------------------------------------------------- what it hears, and its end


async def test_it_gives_what_it_hears(portaudio: Any) -> None:
    microphone = Microphone()
    blocks, first, stream = await opened(microphone, portaudio)
    stream.give(A, B)
    assert await first == A
    loud = np.array([0, -32768, 5], "<i2").tobytes()
    stream.give(loud)
    microphone.stop()
    stream.give(C)
    assert await rest(blocks) == [B, loud]
    assert (microphone.level, microphone.n_blocks, microphone.n_overflows, stream.is_closed) == (1.0, 3, 0, True)


async def test_muted_it_hears_and_gives_nothing(portaudio: Any) -> None:
    microphone = Microphone()
    microphone.is_muted = True
    blocks, first, stream = await opened(microphone, portaudio)
    stream.give(A, overflow=True)
    while not microphone.n_blocks:
        await asyncio.sleep(0)
    assert (microphone.level, microphone.n_overflows) == (1 / 32768, 0)
    microphone.is_muted = False
    stream.give(B)
    assert await first == B
    microphone.stop()
    assert await rest(blocks) == []


async def test_a_key_is_pressed_before_the_last_sound_has_come(portaudio: Any) -> None:
    microphone, told = Microphone(), list[bytes | str]()

    async def commit() -> None:
        told.append("commit")

    async def listen() -> None:
        async for block in microphone:
            told.append(block)

    async def hear(*blocks: bytes) -> None:
        n_blocks = microphone.n_blocks + len(blocks)
        portaudio.streams[0].give(*blocks)
        while microphone.n_blocks < n_blocks:
            await asyncio.sleep(0)

    microphone.is_muted, microphone.on_muted = True, commit
    listening = asyncio.create_task(listen())
    while not portaudio.streams:
        await asyncio.sleep(0)
    await hear(A, A)
    assert microphone.toggle()
    await hear(A)
    assert not microphone.toggle()
    await hear(B)
    assert microphone.toggle(), "it was taken back"
    assert not microphone.toggle()
    await hear(*[B] * TAIL, C, C)
    assert microphone.is_muted
    assert microphone.toggle()
    await hear(A)
    microphone.is_muted = True
    await hear(C)
    microphone.stop()
    await listening
    assert told == [A, B, *[B] * TAIL, "commit", A, "commit"]


async def test_stop_before_it_records_is_no_audio(portaudio: Any) -> None:
    microphone = Microphone()
    microphone.stop()
    assert (await rest(aiter(microphone)), portaudio.streams) == ([], [])


async def test_stop_from_another_thread_wakes_the_loop(portaudio: Any) -> None:
    microphone = Microphone()
    _, first, _ = await opened(microphone, portaudio)
    thread = threading.Thread(target=microphone.stop)
    thread.start()
    thread.join()
    with pytest.raises(StopAsyncIteration):
        await first
    microphone.stop()  # twice is once


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_stop_from_a_signals_handler_wakes_the_loop(portaudio: Any) -> None:
    microphone = Microphone()
    _, first, _ = await opened(microphone, portaudio)
    before = signal.signal(signal.SIGINT, lambda *_: microphone.stop())
    try:
        main = threading.main_thread().ident
        assert main is not None
        threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGINT)).start()
        with pytest.raises(StopAsyncIteration):
            await first
    finally:
        signal.signal(signal.SIGINT, before)


async def test_unplugged_it_ends_with_an_error_after_what_it_heard(portaudio: Any) -> None:
    blocks, first, stream = await opened(Microphone(), portaudio)
    stream.give(A, B)
    stream.unplug()
    assert (await first, await anext(blocks)) == (A, B)
    with pytest.raises(ClientError) as gone:
        await anext(blocks)
    assert (gone.value.message, gone.value.hint) == ("the microphone 'Built-in, ALSA' is gone", "was it unplugged?")
    assert stream.is_closed


async def test_a_device_that_gives_nothing_more_is_gone(portaudio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microphone, "PATIENCE_S", 0.001)
    _, first, _ = await opened(Microphone(), portaudio)
    with pytest.raises(ClientError, match="is gone"):
        await first


async def test_a_device_that_is_in_use_says_so(portaudio: Any) -> None:
    portaudio.busy.append("Device unavailable [PaErrorCode -9985]")
    with pytest.raises(ClientError) as unavailable:
        await anext(aiter(Microphone()))
    assert unavailable.value.message == "the microphone 'Built-in, ALSA' cannot be opened: Device unavailable"


async def test_audio_that_the_machine_loses_is_counted(portaudio: Any) -> None:
    microphone = Microphone()
    blocks, first, stream = await opened(microphone, portaudio)
    stream.give(A, overflow=True)
    stream.give(B)
    microphone.stop()
    assert (await first, await rest(blocks), microphone.n_overflows) == (A, [B], 1)


async def test_what_nobody_reads_is_bounded_and_counted(portaudio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microphone, "MAX_WAITING", 2)
    heard = Microphone()
    blocks, first, stream = await opened(heard, portaudio)
    stream.give(A)
    await first
    stream.give(A, A, A, B, C)
    heard.stop()
    assert await rest(blocks) == [B, C]
    assert heard.n_overflows == 3
