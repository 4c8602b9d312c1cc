"""`asr-ws mic` on PortAudio and the real model; the microphone is what PulseAudio plays into nothing.

Unrealistic: no room and no noise; PulseAudio converts the rate, a device would by its driver.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ctypes.util import find_library
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from asr_ws.testing.wer import word_errors
from asr_ws.worker.supervisor import WorkerSpec
from tests.conftest import SPEECH
from tests.e2e.test_speech import said
from tests.server.running import HANG_S, serving

ROOT = Path(__file__).parents[2]
CLIP = "jfk.wav"
PLUGIN = list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so"))
MISSING = [name for name in ("pulseaudio", "pactl", "paplay") if shutil.which(name) is None]
MISSING += [] if sys.platform == "linux" and find_library("portaudio") else ["PortAudio"]
MISSING += [] if PLUGIN else ["ALSA's plugin for PulseAudio"]
pytestmark = [pytest.mark.model, pytest.mark.skipif(bool(MISSING), reason=f"there is no {', '.join(MISSING)}")]


@asynccontextmanager
async def started(*command: str, environment: dict[str, str]) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(HANG_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def sound() -> AsyncIterator[dict[str, str]]:
    """A PulseAudio of its own, whose one microphone hears what is played to it; the environment that leads there."""
    with TemporaryDirectory(prefix="asr_ws-pulse-") as folder:  # pytest's own may be too long for a socket
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ASR_WS_", "PULSE_"))}
        environment |= {"HOME": folder, "XDG_RUNTIME_DIR": folder, "PYTHONPATH": str(ROOT)}
        modules = "load-module module-native-protocol-unix\nload-module module-null-sink sink_name=speech\n"
        (Path(folder) / "modules.pa").write_text(modules)
        command = [
            "pulseaudio",
            "-n",
            "--daemonize=no",
            "--use-pid-file=no",
            "--exit-idle-time=-1",
            "--disable-shm=yes",
        ]
        async with started(*command, "--file", f"{folder}/modules.pa", environment=environment) as pulseaudio:
            while await ended_with("pactl", "info", environment=environment):
                assert pulseaudio.returncode is None
            yield environment


async def ended_with(*command: str, environment: dict[str, str]) -> int:
    async with started(*command, environment=environment) as process:
        return await process.wait()


@asynccontextmanager
async def listening(url: str, environment: dict[str, str], *options: str) -> AsyncIterator[Process]:
    command = [sys.executable, "-m", "asr_ws", "mic", "--url", url, *options]
    async with started(*command, environment=environment) as process:
        assert process.stderr is not None
        while (line := await process.stderr.readline()) != b"listening\n":  # it gives blocks
            assert line, "it ended"
        yield process


async def test_what_is_played_is_heard(tiny_en: Path) -> None:
    async with (
        serving(WorkerSpec(tiny_en, device="cpu"), partials="off") as app,
        sound() as environment,
        listening(app.url, environment) as process,
    ):
        assert await ended_with("paplay", str(SPEECH / CLIP), environment=environment) == 0
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert process.returncode == 0, err
    heard = out.decode().replace("\n", " ")
    assert word_errors(said(CLIP), heard).rate <= 0.2, heard


async def test_a_sound_server_that_dies_is_a_microphone_that_is_gone(scripted: WorkerSpec) -> None:
    async with (
        serving(scripted) as app,
        sound() as environment,
        listening(app.url, environment) as process,
    ):
        assert await ended_with("pactl", "exit", environment=environment) == 0
        _, err = await process.communicate()
    assert process.returncode == 1
    assert err.decode().endswith(" is gone\nhint: was it unplugged?\n")
