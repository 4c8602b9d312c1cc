"""`asr-ws transcribe` against a scripted server on 127.0.0.1.

Unrealistic about it: it listens until `end` and only then says everything that its script has for that session.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from asr_ws import messages
from asr_ws.cli import main
from asr_ws.cli.transcribe import _Output
from asr_ws.client import Event, session
from asr_ws.messages import Done, Dropped, Error, Final, FinalSegment, FinalWord, ServerEvent
from tests.client import recorded
from tests.server.running import HANG_S

Run = Callable[..., tuple[int, str, str]]

BUSY_SESSION = recorded.busy(None, reason="max_sessions", attempt=0, estimated_wait_ms=800, queue_depth=0, held_ms=0)


def final(utterance: str, text: str, *words: tuple[int, int, str]) -> Final:
    return Final(
        utterance=utterance,
        attempt=1,
        text=text,
        language="en",
        language_probability=1.0,
        audio_start_ms=int(utterance[1:]) * 1000,
        audio_end_ms=int(utterance[1:]) * 1000 + 500,
        wait_ms=0,
        decode_ms=1,
        segments=[FinalSegment("".join(said for _, _, said in words), 0, 0, -0.5, 0.25)],
        words=[FinalWord(said, start, end, 1.0) for start, end, said in words],
    )


def done(*, refused_ms: int = 0) -> Done:
    ledger = {"received_ms": 6000, "decoded_ms": 6000 - refused_ms, "silence_ms": 0, "refused_ms": refused_ms}
    return Done(**ledger, lost_ms=0, finals=1, busy=0, retries=0, dropped=0, errors=0)


HELLO = [final("u1", "Hello there.", (1000, 1500, " Hello there.")), done()]
TWO_CUES = [  # told out of order, as a retried utterance is
    recorded.speech("u1", 1000),
    recorded.speech("u4", 4000),
    final("u4", "Bye.", (4050, 4500, " Bye.")),
    final("u1", "Well! Hello.", (1000, 1200, " Well!"), (1200, 1500, " Hello.")),
    done(),
]


@dataclass
class ScriptedServer:
    """``scripts``: per session, what it is told after its `end`, the last one again and again; a `Busy` refuses it.
    ``heard``: start, audio bytes.
    """

    url: str = ""
    scripts: list[list[ServerEvent] | messages.Busy] = field(default_factory=list)
    heard: list[tuple[messages.Start, int]] = field(default_factory=list)

    def converse(self, socket: ServerConnection) -> None:
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]  # the last one for all that follow
        if isinstance(script, messages.Busy):
            socket.send(messages.encode(script))
            socket.close(1013)
            return
        socket.send(messages.encode(recorded.READY))
        start, n_bytes = messages.Start(), 0
        for frame in socket:
            if isinstance(frame, bytes):
                n_bytes += len(frame)
                continue
            match messages.decode_message(frame):
                case messages.Start() as start:
                    socket.send(messages.encode(recorded.STARTED))
                case messages.Ping(id=id):
                    socket.send(messages.encode(messages.Pong(id=id)))
                case messages.End():
                    break
        self.heard.append((start, n_bytes))
        for seq, event in enumerate(script, 2):
            event.seq = seq
            socket.send(messages.encode(event))
        socket.close()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()

    def converse(socket: ServerConnection) -> None:
        with suppress(ConnectionClosed):  # the program under test went away
            scripted.converse(socket)

    with serve(converse, "127.0.0.1", 0) as listener:
        host, port = listener.socket.getsockname()[:2]
        scripted.url = f"ws://{host}:{port}/v1/stream"
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield scripted
        listener.shutdown()
        thread.join()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `asr-ws transcribe`, which does not wait before it connects again; returns exit code, stdout, stderr."""
    monkeypatch.setattr(session, "MAX_DELAY_S", 0.0)

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["transcribe", *map(str, args)], prog_name="asr-ws")
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err  # type: ignore[return-value]

    return run


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """Six seconds of silence."""
    soundfile.write(tmp_path / "a.wav", np.zeros(6 * 16_000, np.int16), 16_000)
    return tmp_path / "a.wav"


def test_the_text_is_printed_and_nothing_else(server: ScriptedServer, run: Run, wav: Path) -> None:
    server.scripts = [[*HELLO]]
    assert run(wav, "--url", server.url) == (0, "Hello there.\n", "")
    assert server.heard == [(messages.Start(partials=False), 192_000)]


def test_the_language_is_told_to_the_server(server: ScriptedServer, run: Run, wav: Path) -> None:
    server.scripts = [[*HELLO]]
    assert run(wav, "--url", server.url, "--language", "en") == (0, "Hello there.\n", "")
    assert server.heard == [(messages.Start(partials=False, language="en"), 192_000)]


def test_finals_are_ordered_by_their_audio(server: ScriptedServer, run: Run, wav: Path) -> None:
    server.scripts = [[*TWO_CUES]]
    assert run(wav, "--url", server.url) == (0, "Well! Hello.\nBye.\n", "")


def test_a_final_is_printed_once_all_that_began_before_it_has_its_outcome(
    wav: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = _Output(wav, as_json=False, format_="text", path=None, has_heading=False)

    def printed(event: Event) -> str:
        output.receive(event)
        return capsys.readouterr().out

    for n in (1, 2, 3, 4):
        assert printed(recorded.speech(f"u{n}", 1000 * n)) == ""
    assert printed(final("u2", "Two.")) == ""
    assert printed(final("u1", "One.")) == "One.\nTwo.\n"
    assert printed(final("u4", "Four.")) == ""
    late = Error(code="unknown_utterance", message="", hint="", fatal=False, utterance="u3")
    assert printed(late) == "", "it ends nothing"
    assert printed(Dropped(utterance="u3", reason="evicted", audio_start_ms=3000, audio_end_ms=3500)) == "Four.\n"
    assert printed(recorded.speech("u5", 5000)) == ""
    assert printed(final("u6", "Six.")) == ""
    output.close()
    assert capsys.readouterr().out == "Six.\n"


def test_json_prints_every_event_as_it_came(server: ScriptedServer, run: Run, wav: Path) -> None:
    server.scripts = [[*HELLO]]
    code, out, err = run(wav, "--url", server.url, "--json")
    told = [json.loads(messages.encode(event)) for event in (recorded.READY, recorded.STARTED, *HELLO)]
    expected = [{**event, "file": str(wav)} for event in told]
    assert (code, [json.loads(line) for line in out.splitlines()], err) == (0, expected, "")


def test_srt(server: ScriptedServer, run: Run, wav: Path) -> None:
    server.scripts = [[*TWO_CUES]]
    assert run(wav, "--url", server.url, "--format", "srt") == (
        0,
        "1\n00:00:01,000 --> 00:00:01,200\nWell!\n\n"
        "2\n00:00:01,200 --> 00:00:01,500\nHello.\n\n"
        "3\n00:00:04,050 --> 00:00:04,500\nBye.\n\n",
        "",
    )


def test_vtt(server: ScriptedServer, run: Run, wav: Path) -> None:
    server.scripts = [[*HELLO]]
    assert run(wav, "--url", server.url, "--format", "vtt") == (
        0,
        "WEBVTT\n\n00:00:01.000 --> 00:00:01.500\nHello there.\n\n",
        "",
    )


def test_several_files_are_transcribed_in_turn_and_a_missing_one_does_not_stop_them(
    server: ScriptedServer, run: Run, wav: Path, tmp_path: Path
) -> None:
    server.scripts = [[*HELLO], [*TWO_CUES]]
    missing = tmp_path / "b.wav"
    assert run(wav, missing, wav, "--url", server.url) == (
        1,
        f"==> {wav} <==\nHello there.\n==> {wav} <==\nWell! Hello.\nBye.\n",
        f"error: {missing}: no such file\n",
    )


def test_a_file_that_is_not_audio_is_said_before_a_server_is_asked(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    code, out, err = run(tmp_path / "a.txt", "--url", "ws://127.0.0.1:1/v1/stream")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {tmp_path / 'a.txt'}: not a readable audio file: ")
    assert err.endswith("\nhint: WAV, FLAC, OGG and MP3 can be read; the server reads more: asr-ws transcribe --http\n")


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems have no such name")
def test_a_name_that_is_not_utf_8_is_said_on_a_pipe_too(wav: Path, closed_port: int) -> None:
    named = wav.rename(wav.with_name(os.fsdecode(b"\xff.wav")))
    command = [sys.executable, "-m", "asr_ws", "transcribe", "--url", f"ws://127.0.0.1:{closed_port}", str(named)]
    ran = subprocess.run(command, capture_output=True, timeout=HANG_S)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: {wav.parent}/\\udcff.wav: not a readable audio file: ".encode())


def test_without_a_server_it_says_how_to_start_one(run: Run, wav: Path, closed_port: int) -> None:
    url = f"ws://127.0.0.1:{closed_port}/v1/stream"
    code, out, err = run(wav, "--url", url)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: no session at {url}: ")
    assert err.endswith("\nhint: is the server running? asr-ws serve\n")


def test_files_that_are_not_tried_are_named(run: Run, wav: Path, closed_port: int) -> None:
    other = wav.with_name("b.wav")
    code, out, err = run(wav, other, "--url", f"ws://127.0.0.1:{closed_port}/v1/stream")
    assert (code, out) == (1, "")
    assert err.endswith(f"\nerror: {other}: not tried\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error(server: ScriptedServer, wav: Path) -> None:
    server.scripts = [[*HELLO]]
    command = [sys.executable, "-m", "asr_ws", "transcribe", "--url", server.url, str(wav)]
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=HANG_S)
    assert ran.returncode == 1
    assert ran.stderr.endswith(b"\nerror: No space left on device\n")
    assert b"Traceback" not in ran.stderr


def test_a_refused_session_says_when_to_try_again(server: ScriptedServer, run: Run, wav: Path) -> None:
    server.scripts = [BUSY_SESSION]
    assert run(wav, "--url", server.url) == (
        1,
        "",
        f"error: {wav}: the server refused the session: max_sessions\nhint: try again in 0.8 s\n",
    )


def test_a_dropped_utterance_is_warned_of_and_exits_with_1(server: ScriptedServer, run: Run, wav: Path) -> None:
    dropped = Dropped(utterance="u2", reason="evicted", audio_start_ms=4500, audio_end_ms=5000)
    again = Dropped(utterance="u1", reason="evicted", audio_start_ms=0, audio_end_ms=500)
    server.scripts = [[*HELLO[:1], dropped, done(refused_ms=500)], [again, done(refused_ms=500)]]
    code, out, err = run(wav, "--url", server.url)
    assert (code, out) == (1, "Hello there.\n")
    assert err.splitlines() == [
        f"note: {wav}: the connection is gone (the server dropped audio); what has no text is sent again",
        f"note: {wav}: connected again",
        f"note: {wav}: the connection is gone (the server dropped audio); still tried again",
        f"note: {wav}: connected again",
        f"warning: {wav}: no text from 00:00:04.500 to 00:00:05.000: evicted",
    ]


def test_a_failed_utterance_is_warned_of_and_exits_with_1(server: ScriptedServer, run: Run, wav: Path) -> None:
    failed = Error(code="decode_failed", message="out of memory", hint="", fatal=False, utterance="u1")
    server.scripts = [[recorded.speech("u1", 0), failed, done(refused_ms=1000)]]
    assert run(wav, "--url", server.url) == (1, "", f"warning: {wav}: u1: decode_failed: out of memory\n")


def test_a_warning_of_the_session_that_costs_no_text_exits_with_0(server: ScriptedServer, run: Run, wav: Path) -> None:
    suspect = Error(code="audio_format_suspect", message="looks like float", hint="", fatal=False)
    server.scripts = [[suspect, *HELLO]]
    warning = f"warning: {wav}: session: audio_format_suspect: looks like float\n"
    assert run(wav, "--url", server.url) == (0, "Hello there.\n", warning)


def test_a_session_that_a_fatal_error_ends_exits_with_1(server: ScriptedServer, run: Run, wav: Path) -> None:
    fatal = Error(code="unsupported_language", message="language is 'xx'", hint="send en", fatal=True)
    server.scripts = [[fatal]]
    error = f"error: {wav}: unsupported_language: language is 'xx'\nhint: send en\n"
    code, out, err = run(wav, "--url", server.url)
    assert (code, out) == (1, "")
    assert err.endswith(error)


def test_a_connection_that_ends_early_exits_with_1(server: ScriptedServer, run: Run, wav: Path) -> None:
    server.scripts = [HELLO[:1]]
    error = f"error: {wav}: the connection ended with 1000\nwarning: {wav}: the text ends at 00:00:01.500\n"
    code, out, err = run(wav, "--url", server.url)
    assert (code, out) == (1, "Hello there.\n")
    assert err.endswith(error)


@pytest.mark.parametrize("other", [["--format", "srt"], ["--output-dir", "."]])
def test_json_goes_with_nothing_else(other: list[str], run: Run, wav: Path) -> None:
    code, out, err = run(wav, "--json", *other)
    assert (code, out) == (2, "")
    assert "--json prints events" in err


def test_subtitles_of_several_files_are_not_run_together(run: Run, wav: Path) -> None:
    error = "error: --format srt of several files\nhint: --output-dir DIR writes one for each of them\n"
    assert run(wav, wav, "--format", "srt") == (2, "", error)


@pytest.mark.parametrize(
    ("format_", "name", "content"),
    [
        ("text", "txt", "Hello there.\n"),
        ("srt", "srt", "1\n00:00:01,000 --> 00:00:01,500\nHello there.\n\n"),
        ("vtt", "vtt", "WEBVTT\n\n00:00:01.000 --> 00:00:01.500\nHello there.\n\n"),
    ],
)
def test_a_file_is_written_for_each_recording(
    server: ScriptedServer, run: Run, wav: Path, format_: str, name: str, content: str
) -> None:
    server.scripts = [[*HELLO], [done()]]
    quiet, missing, folder = wav.with_name("b.wav"), wav.with_name("c.wav"), wav.parent / "out" / "texts"
    quiet.write_bytes(wav.read_bytes())
    assert run(wav, quiet, missing, "--url", server.url, "--format", format_, "--output-dir", folder) == (
        1,
        "",
        f"note: no speech was heard in {quiet}\nerror: {missing}: no such file\n",
    )
    assert {path.name for path in folder.iterdir()} == {f"a.{name}", f"b.{name}"}
    assert (folder / f"a.{name}").read_text("utf-8") == content


def test_two_recordings_are_not_written_to_one_file(run: Run, wav: Path) -> None:
    error = f"error: --output-dir out: one file would be written for {wav} and {wav.with_suffix('.mp3')}\n"
    assert run(wav, wav.with_suffix(".mp3"), "--output-dir", "out") == (2, "", error)


def test_names_that_some_systems_take_for_one_are_not_written_beside_each_other(run: Run, wav: Path) -> None:
    other = wav.parent / "b" / "A.wav"
    error = f"error: --output-dir out: one file would be written for {wav} and {other}\n"
    assert run(wav, other, "--output-dir", "out") == (2, "", error)


@pytest.mark.parametrize("n", [0, 1])
def test_no_recording_is_overwritten(run: Run, wav: Path, tmp_path: Path, n: int) -> None:
    recording, other = wav.rename(tmp_path / "a.txt"), tmp_path / "b" / "c.wav"
    audio = recording.read_bytes()
    files = [recording, other][::-1][n:]
    error = f"error: --output-dir {tmp_path}: {recording} would be overwritten\n"
    assert run(*files, "--output-dir", tmp_path) == (2, "", error)
    assert recording.read_bytes() == audio


def test_a_recording_is_not_overwritten_under_another_name(run: Run, wav: Path, tmp_path: Path) -> None:
    (tmp_path / "b.srt").hardlink_to(wav)
    error = f"error: --output-dir {tmp_path}: {wav} would be overwritten\n"
    assert run(wav, tmp_path / "b.mp3", "--format", "srt", "--output-dir", tmp_path) == (2, "", error)


def test_a_folder_that_cannot_be_written_is_said_first(run: Run, wav: Path) -> None:
    code, out, err = run(wav, "--output-dir", wav / "out")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: --output-dir: cannot write {wav / 'out'}: ")


@pytest.mark.parametrize("script", [[done()], [final("u1", ""), done()]])
def test_a_file_without_speech_is_noted(server: ScriptedServer, run: Run, wav: Path, script: list[ServerEvent]) -> None:
    server.scripts = [script]
    assert run(wav, "--url", server.url) == (0, "", f"note: no speech was heard in {wav}\n")


@pytest.mark.parametrize(
    ("reason", "why"),
    [("queue_full", "the server is busy (queue_full)"), ("fair_share", "the file is ahead of the server (fair_share)")],
)
def test_a_busy_server_is_said_once(server: ScriptedServer, run: Run, wav: Path, reason: str, why: str) -> None:
    server.scripts = [[recorded.busy("u1", reason=reason), recorded.busy("u1", reason=reason, attempt=2), *HELLO]]
    note = f"note: {wav}: {why}; it is asked again by itself\n"
    assert run(wav, "--url", server.url) == (0, "Hello there.\n", note)


def test_a_server_that_expects_no_recognizer_is_not_waited_for(server: ScriptedServer, run: Run, wav: Path) -> None:
    server.scripts = [[recorded.busy("u1", reason="unavailable", estimated_wait_ms=3_600_000)]]
    error = f"error: {wav}: the server has no recognizer, and does not expect one\nhint: its log says why\n"
    assert run(wav, "--url", server.url) == (1, "", error)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(monkeypatch: pytest.MonkeyPatch, *streams: str) -> Terminal:
    """These are one terminal."""
    screen = Terminal()
    for name, value in {"TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    for stream in streams:
        monkeypatch.setattr(stream, screen)
    return screen


def test_at_a_terminal_a_bar_is_drawn_on_stderr_only(
    server: ScriptedServer, run: Run, wav: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = show(monkeypatch, "sys.stderr")
    server.scripts = [[*HELLO], [*HELLO]]
    assert run(wav, "--url", server.url)[:2] == (0, "Hello there.\n")
    assert "a.wav" in screen.getvalue()
    screen.truncate(0)
    assert run(wav, "--url", server.url, "--json")[0] == 0
    assert screen.getvalue() == ""


def test_no_terminal_is_commanded_by_a_server(
    server: ScriptedServer, run: Run, wav: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = show(monkeypatch, "sys.stdout")
    title = "\x1b]0;PWNED\x07"
    failed = Error(code=title, message=title, hint=f"{title}\nindeed", fatal=False)
    server.scripts = [[final("u1", f"{title}Hello.\nThere."), failed, done()]]
    _, _, err = run(wav, "--url", server.url)
    assert screen.getvalue() == "\ufffd]0;PWNED\ufffdHello.\nThere.\n"
    shown = "\ufffd]0;PWNED\ufffd"
    assert err == f"warning: {wav}: session: {shown}: {shown}\nhint: {shown}\nindeed\n"


def test_a_pipe_gets_the_text_as_it_is(server: ScriptedServer, run: Run, wav: Path) -> None:
    server.scripts = [[final("u1", "\x1b[2JHello."), done()]]
    assert run(wav, "--url", server.url)[:2] == (0, "\x1b[2JHello.\n")


def test_text_stands_above_the_bar(
    server: ScriptedServer, run: Run, wav: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = show(monkeypatch, "sys.stdout", "sys.stderr")
    long = "It [was] the best of times: " * 10
    server.scripts = [[*TWO_CUES[:2], final("u4", long), *TWO_CUES[3:]]]
    assert run(wav, "--url", server.url)[0] == 0
    assert "\r\x1b[2KWell! Hello.\n" in screen.getvalue()
    assert f"\r\x1b[2K{long}\n" in screen.getvalue(), "a line, however narrow the terminal"


def test_an_address_that_can_be_none_is_a_wrong_call_and_keeps_its_password(run: Run, wav: Path) -> None:
    code, out, err = run(wav, wav, "--url", "http://me:pw@a b")
    assert (code, out, err.splitlines()[0]) == (2, "", "error: http://a b is no address of a server")


@pytest.mark.parametrize("args", [[], ["a.wav", "--format", "docx"]])
def test_a_wrong_call_exits_with_2(args: list[str], run: Run) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert "Error: " in err


# ---------------------------------------------------------------- tokens


def test_the_token_comes_from_a_file_or_the_environment(
    run: Run, server: ScriptedServer, wav: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokens"
    file.write_text("# mine\nfrom-a-file my laptop\nanother\n", "utf-8")
    server.scripts = [HELLO, HELLO, HELLO]
    assert run(wav, "--url", server.url)[0] == 0
    monkeypatch.setenv("ASR_WS_TOKEN", "from-the-environment")
    assert run(wav, "--url", server.url)[0] == 0
    assert run(wav, "--url", server.url, "--token-file", file)[0] == 0
    assert [start.token for start, _ in server.heard] == [None, "from-the-environment", "from-a-file"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read"), ("\n", "no token in"), (b"\xff", "cannot read")]
)
def test_a_token_file_that_holds_none_is_said(
    run: Run, wav: Path, tmp_path: Path, content: str | bytes | None, message: str
) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, err = run(wav, "--token-file", file)
    assert (code, err.startswith(f"error: --token-file: {message} {file}")) == (2, True)
