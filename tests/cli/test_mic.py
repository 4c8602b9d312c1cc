"""`asr-ws mic` as a program of its own, on the stand-in for sounddevice, against a server with a scripted worker.

What the stand-in has that is unrealistic: tests/portaudio/sounddevice.py. The worker's text is the number of samples.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import sys
import wave
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from asr_ws import messages
from asr_ws.cli import mic
from asr_ws.cli.keys import END, Keys
from asr_ws.client import Gap, Reconnected, Reconnecting
from asr_ws.client.microphone import TAIL
from asr_ws.worker.supervisor import WorkerSpec
from tests.cli.test_transcribe import final
from tests.client.recorded import READY, busy
from tests.conftest import SPEECH
from tests.server.running import HANG_S, serving

ROOT = Path(__file__).parents[2]
FAKE = ROOT / "tests" / "portaudio"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals to a child, pseudo-terminals")


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """One sentence: three seconds."""
    with wave.open(str(SPEECH / "jfk.wav")) as whole, wave.open(str(tmp_path / "speech.wav"), "wb") as cut:
        cut.setparams(whole.getparams())
        cut.writeframes(whole.readframes(3 * 16_000))
    return tmp_path / "speech.wav"


def endless(speech: Path) -> dict[str, str]:
    """Whenever a key is pressed, somebody speaks."""
    return {"FAKE_WAV": str(speech), "FAKE_ENDLESS": "1"}


@asynccontextmanager
async def running(
    *args: object, fake: Path = FAKE, environment: dict[str, str], **files: Any
) -> AsyncIterator[Process]:
    ours = ("ASR_WS_", "NO_COLOR", "FORCE_COLOR")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join([str(fake), str(ROOT)])
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "asr_ws", "mic", *map(str, args)],
        env={**clean, "PYTHONPATH": path, "TERM": "xterm", "COLUMNS": "80", **environment},
        **{"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, **files},
    )
    try:
        async with asyncio.timeout(HANG_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(process: Process) -> tuple[int, str, str]:
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def line(stream: asyncio.StreamReader | None, wanted: str = "") -> str:
    """Read on to a line that begins so."""
    assert stream is not None
    while not (said := (await stream.readline()).decode()).startswith(wanted):
        assert said, f"it ended without {wanted!r}"
    return said


async def event(process: Process, type: str) -> dict[str, Any]:
    assert process.stdout is not None
    while True:
        told: dict[str, Any] = json.loads(await process.stdout.readline())
        if told["type"] == type:
            return told


# ---------------------------------------------------------------- not a terminal


async def test_finals_are_lines_of_their_own_and_ctrl_c_ends_it(scripted: WorkerSpec, speech: Path) -> None:
    async with serving(scripted) as app, running("--url", app.url, environment={"FAKE_WAV": str(speech)}) as process:
        url = app.url
        assert re.fullmatch(r"country \d+\n", await line(process.stdout))
        process.send_signal(signal.SIGINT)
        code, out, err = await ended(process)
    assert (code, out) == (0, "")
    assert err.startswith(f"Built-in, ALSA to base at {url}. Ctrl-C ends.\nstarting\nlistening\n")


async def test_what_was_said_before_ctrl_c_gets_its_text(scripted: WorkerSpec, speech: Path) -> None:
    async with (
        serving(scripted) as app,
        running("--url", app.url, "--json", environment={"FAKE_WAV": str(speech)}) as process,
    ):
        await event(process, "speech_started")
        process.send_signal(signal.SIGINT)
        accepted, told, done = [await event(process, each) for each in ("accepted", "final", "done")]
        assert (accepted["endpoint"], told["utterance"], done["finals"], done["lost_ms"]) == ("end", "u1", 1, 0)
        assert (await ended(process))[:2] == (0, "")


async def test_a_microphone_that_is_unplugged_is_said_after_its_text(scripted: WorkerSpec, speech: Path) -> None:
    environment = {"FAKE_WAV": str(speech), "FAKE_UNPLUGGED": "1"}
    async with serving(scripted) as app, running("--url", app.url, environment=environment) as process:
        code, out, err = await ended(process)
    assert code == 1
    assert re.fullmatch(r"(country \d+\n)+", out)
    assert err.endswith("error: the microphone 'Built-in, ALSA' is gone\nhint: was it unplugged?\n")


async def test_push_to_talk_by_lines(scripted: WorkerSpec, speech: Path) -> None:
    async with (
        serving(scripted) as app,
        running("--url", app.url, "--push-to-talk", environment={"FAKE_WAV": str(speech)}) as process,
    ):
        assert process.stdin is not None
        for _ in range(2):
            await line(process.stderr, "muted")
            process.stdin.write(b"\n")
            await line(process.stderr, "listening")
            process.stdin.write(b"\n")
            samples = int((await line(process.stdout, "country")).split()[1])
            assert samples >= TAIL * 800
        process.stdin.close()
        assert (await ended(process))[:2] == (0, "")


async def test_push_to_talk_ends_with_what_was_being_said(scripted: WorkerSpec, speech: Path) -> None:
    async with (
        serving(scripted) as app,
        running("--url", app.url, "--push-to-talk", "--json", environment=endless(speech)) as process,
    ):
        assert process.stdin is not None
        process.stdin.write(b"\n")
        await event(process, "speech_started")
        process.stdin.write(b"q\n")
        assert (await event(process, "accepted"))["endpoint"] == "end"
        assert (await event(process, "done"))["finals"] == 1
        assert (await ended(process))[0] == 0


async def test_a_second_ctrl_c_does_not_wait(speech: Path) -> None:
    async def converse(socket: ServerConnection) -> None:
        """Hears everything, and answers nothing."""
        await socket.send(messages.encode(READY))
        with suppress(ConnectionClosed):
            async for _ in socket:
                pass

    async with serve(converse, "127.0.0.1", 0) as server:
        host, port = next(iter(server.sockets)).getsockname()[:2]
        url = f"ws://{host}:{port}/v1/stream"
        async with running("--url", url, environment={"FAKE_WAV": str(speech)}) as process:
            await line(process.stderr, "listening")
            process.send_signal(signal.SIGINT)
            await line(process.stderr, "ending")
            process.send_signal(signal.SIGINT)
            assert await ended(process) == (1, "", "Aborted!\n")


async def test_ctrl_c_does_not_wait_for_a_server_that_does_not_greet(speech: Path) -> None:
    is_there = asyncio.Event()

    async def converse(socket: ServerConnection) -> None:
        is_there.set()
        await socket.wait_closed()

    async with serve(converse, "127.0.0.1", 0) as server:
        host, port = next(iter(server.sockets)).getsockname()[:2]
        async with running("--url", f"ws://{host}:{port}/", environment={"FAKE_WAV": str(speech)}) as process:
            await is_there.wait()
            process.send_signal(signal.SIGINT)
            assert await ended(process) == (1, "", "Aborted!\n")


# ---------------------------------------------------------------- a terminal


async def test_at_a_terminal_a_line_is_drawn_and_keys_talk(scripted: WorkerSpec, speech: Path) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    modes = termios.tcgetattr(theirs)
    loop = asyncio.get_running_loop()
    seen, came = "", asyncio.Event()

    def read() -> None:
        nonlocal seen
        seen += os.read(ours, 65536).decode()
        came.set()

    async def until(pattern: str) -> None:
        while not re.search(pattern, seen):
            came.clear()
            await came.wait()

    loop.add_reader(ours, read)
    try:
        async with (
            serving(scripted, partials="on") as app,
            running(
                *("--url", app.url, "--push-to-talk"),
                environment=endless(speech),
                **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
            ) as process,
        ):
            await until(r"\x1b\[1mmuted")
            os.write(ours, b"x ")
            await until(r"\|+ *\x1b\[0m \x1b\[1mlistening")  # a level
            await until(r"listening.*\x1b\[2m[^\r]*country")  # a partial
            os.write(ours, b"\n")
            await until(r"\r\x1b\[2Kcountry \d+\r\n")
            os.write(ours, b"q")
            assert await process.wait() == 0
            assert termios.tcgetattr(theirs) == modes
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)


# ---------------------------------------------------------------- the state, in a word


@pytest.fixture
def dictation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Without a server and without audio."""
    spec = importlib.util.spec_from_file_location("sounddevice", FAKE / "sounddevice.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    spec.loader.exec_module(module)
    dictation = mic._Dictation(mic.Microphone(), mic._Screen(is_live=True), as_json=False)
    dictation._session = SimpleNamespace(behind_s=0.4)  # type: ignore[assignment]
    return dictation


def test_the_state_in_a_word(dictation: Any) -> None:
    assert dictation.state(10) == "starting"
    dictation._microphone.n_blocks = 1
    assert dictation.state(10) == "listening"
    dictation._microphone.is_muted = True
    assert dictation.state(10) == "muted"
    dictation._session.behind_s = 2.6
    assert dictation.state(10) == "3 s behind"
    dictation.receive(msgspec.structs.replace(busy("u1", reason="queue_full"), retry_after_ms=1500), 10)
    assert [dictation.state(now) for now in (10, 11, 12)] == [f"busy: asked again in {n} s" for n in (2, 1, 0)]
    dictation.receive(Reconnecting(1, 0.5, "going away"), 12)
    assert dictation.state(12) == "reconnecting"
    dictation.receive(Reconnected(), 13)
    dictation.receive(final("u1", "Hello."), 13)
    dictation._session.behind_s = 0.0
    dictation._is_ending = True
    assert dictation.state(13) == "ending"


def test_an_error_that_ends_no_utterance_leaves_what_was_heard_of_it(dictation: Any) -> None:
    dictation.receive(messages.Partial(utterance="u1", stable="Hel", unstable="lo", audio_end_ms=500), 0)
    dictation.receive(busy("u1", reason="queue_full"), 0)
    before = dictation.state(0)
    dictation.receive(messages.Error(code="unknown_utterance", message="", hint="", fatal=False, utterance="u1"), 0)
    assert (dictation._texts, dictation.state(0)) == ({"u1": ("Hel", "lo")}, before)
    dictation.receive(messages.Error(code="decode_failed", message="", hint="", fatal=False, utterance="u1"), 0)
    assert (dictation._texts, dictation.state(0)) == ({}, "starting")


def test_nothing_that_a_server_says_commands_the_terminal(dictation: Any) -> None:
    dictation.receive(messages.Partial(utterance="u1", stable="\x1b[2JHel", unstable="\x07lo", audio_end_ms=500), 0)
    assert dictation._texts == {"u1": ("\ufffd[2JHel", "\ufffdlo")}


def test_what_comes_to_no_text_is_said_and_fails(dictation: Any, capsys: pytest.CaptureFixture[str]) -> None:
    dictation.receive(final("u1", "Hello."), 0)
    dictation.receive(final("u2", ""), 0)
    twice = messages.Error(code="nothing_to_commit", message="nothing to end", hint="", fatal=False)
    dictation.receive(twice, 0)
    assert (capsys.readouterr(), dictation.has_failed) == (("Hello.\n", ""), False)
    dictation.receive(Gap(1000, 2500), 0)
    assert dictation.has_failed
    assert capsys.readouterr() == (
        "",
        "warning: no text from 00:00:01.000 to 00:00:02.500\n",
    )


@pytest.mark.parametrize(
    ("typed", "keys"), [(b"\nq\n", ["\n", END]), (b"  \n", [" ", END]), (b"x", ["x", END]), (b"", [END])]
)
def test_lines_are_keys_where_standard_input_is_no_terminal(
    typed: bytes, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.write(writing, typed)
    os.close(writing)
    with open(reading) as standard_input, Keys() as read:
        monkeypatch.setattr("asr_ws.cli.keys.os.read", lambda fd, n, read=os.read: read(standard_input.fileno(), n))
        assert [read.read() for _ in keys] == keys


# ---------------------------------------------------------------- which microphone


async def test_microphones_are_listed() -> None:
    async with running("--devices", environment={}) as process:
        assert await ended(process) == (
            0,
            "*   1  Built-in, ALSA  48000 Hz\n"
            "    2  USB headset, ALSA  44100 Hz\n"
            "    3  USB camera, ALSA  48000 Hz\n"
            "    4  Built-in, JACK  48000 Hz\n",
            "",
        )
    async with running("--devices", "--json", environment={"FAKE_DEVICES": '[[1, "Built-in"]]'}) as process:
        code, out, _ = await ended(process)
        assert (code, json.loads(out)) == (
            0,
            {"index": 1, "name": "Built-in, ALSA", "rate": 48_000, "is_default": True},
        )


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--device", "9"], "no microphone 9\nhint: asr-ws mic --devices lists them"),
        (["--device", "nothing"], "no microphone 'nothing'\nhint: asr-ws mic --devices lists them"),
        (
            ["--device", "usb"],
            "microphone 'usb' may be: 2 USB headset, ALSA; 3 USB camera, ALSA\n"
            "hint: give its number, or more of its name",
        ),
    ],
)
async def test_no_such_microphone(args: list[str], error: str) -> None:
    async with running(*args, environment={}) as process:
        assert await ended(process) == (1, "", f"error: {error}\n")


async def test_no_microphone() -> None:
    async with running(environment={"FAKE_DEVICES": "[]"}) as process:
        error = "error: no microphone\nhint: plug one in, and let this program use it\n"
        assert await ended(process) == (1, "", error)


@pytest.mark.parametrize(
    ("raised", "code", "error"),
    [
        (
            "ModuleNotFoundError('sounddevice')",
            2,
            "a microphone needs the optional dependencies 'mic'\nhint: pip install 'asr-ws[mic]'",
        ),
        (
            "OSError('PortAudio library not found')",
            1,
            "no microphone: PortAudio library not found\n"
            "hint: install PortAudio: apt install libportaudio2, or brew install portaudio",
        ),
    ],
)
@pytest.mark.parametrize("args", [[], ["--devices"]])
async def test_what_is_not_installed(args: list[str], raised: str, code: int, error: str, tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text(f"raise {raised}\n")
    async with running(*args, fake=tmp_path, environment={}) as process:
        assert await ended(process) == (code, "", f"error: {error}\n")


async def test_without_a_server_it_says_how_to_start_one(unused_tcp_port: int) -> None:
    url = f"ws://127.0.0.1:{unused_tcp_port}/v1/stream"
    async with running("--url", url, environment={}) as process:
        code, out, err = await ended(process)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: no session at {url}: ")
    assert err.endswith("\nhint: is the server running? asr-ws serve\n")


async def test_a_language_that_the_server_has_not_is_an_error_said_once(scripted: WorkerSpec, speech: Path) -> None:
    async with (
        serving(scripted) as app,
        running("--url", app.url, "--language", "xx", environment={"FAKE_WAV": str(speech)}) as process,
    ):
        code, out, err = await ended(process)
    assert (code, out, err.count("error: "), err.count("unsupported_language")) == (1, "", 1, 1)
