"""`asr-ws transcribe --http` against a scripted server on 127.0.0.1."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from asr_ws.cli import main, upload
from asr_ws.client import http
from asr_ws.client.http import CUT
from tests.cli.test_transcribe import Run, Terminal, show
from tests.client import uploads
from tests.client.uploads import Server, answers, breaks_off, chunk, delta, done, refuses, says, serving
from tests.server.running import HANG_S

HELLO = [delta("Hello", 30.0), delta("", 45.0), delta("there.", 60.0), done("Hello there.")]
LONG_S = 30.0  # nothing is drawn so late
SUBTITLES = "1\n00:00:00,000 --> 00:00:01,000\nHello there.\n\n"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `asr-ws transcribe --http`, which does not wait; returns exit code, stdout, stderr."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(upload, "transcribe_file", partial(http.transcribe_file, sleep=lambda _: None))

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["transcribe", "--http", *map(str, args)], prog_name="asr-ws")
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err  # type: ignore[return-value]

    return run


@pytest.fixture
def m4a(tmp_path: Path) -> Path:
    (tmp_path / "a.m4a").write_bytes(b"no WAV file")
    return tmp_path / "a.m4a"


def asked(server: Server) -> list[bytes]:
    """The formats."""
    return [
        request.body.partition(b'name="response_format"\r\n\r\n')[2].partition(b"\r\n")[0] for request in server.heard
    ]


def test_an_address_that_can_be_none_is_a_wrong_call_and_said_once(run: Run, m4a: Path) -> None:
    code, out, err = run(m4a, m4a, "--url", "http://a b")
    assert (code, out) == (2, "")
    assert err.startswith("error: http://a b is no address of a server\nhint: ")
    assert err.count("error") == 1


def test_the_text_is_printed_and_nothing_else(server: Server, run: Run, m4a: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    server.scripts = [says(*HELLO)]
    arguments = [m4a, "--url", server.url, "--language", "en", "--token-file", tmp_path / "token"]
    assert run(*arguments) == (0, "Hello\nthere.\n", "")
    [request] = server.heard
    assert request.headers["authorization"] == "Bearer secret"
    assert b'name="language"\r\n\r\nen\r\n' in request.body
    assert b'filename="a.m4a"\r\nContent-Type: application/octet-stream\r\n\r\nno WAV file\r\n--' in request.body
    assert asked(server) == [b"text"]


def test_text_that_comes_only_at_the_end_is_printed_too(server: Server, run: Run, m4a: Path) -> None:
    server.scripts = [says(done("Hello there."))]
    assert run(m4a, "--url", server.url) == (0, "Hello there.\n", "")


@pytest.mark.parametrize("format_", ["srt", "vtt"])
def test_subtitles_are_the_servers(server: Server, run: Run, m4a: Path, format_: str) -> None:
    server.scripts = [says(*HELLO[:-1], done("Hello there.", result=SUBTITLES))]
    assert run(m4a, "--url", server.url, "--format", format_) == (0, SUBTITLES, "")
    assert asked(server) == [format_.encode()]


def test_a_server_without_subtitles_is_said(server: Server, run: Run, m4a: Path) -> None:
    server.scripts = [says(*HELLO)]
    error = f"error: {m4a}: the server gives no subtitles\nhint: is it of the same version?\n"
    assert run(m4a, "--url", server.url, "--format", "srt") == (1, "", error)


def test_json_prints_every_event_as_it_came(server: Server, run: Run, m4a: Path) -> None:
    told = [uploads.event(type="newer", n=1), *HELLO[:-1], done("Hello there.", result={"text": "Hello there."})]
    server.scripts = [says(b": alive\n\n", *told)]
    code, out, err = run(m4a, "--url", server.url, "--json")
    expected = [{**json.loads(each.removeprefix(b"data: ")), "file": str(m4a)} for each in told]
    assert (code, [json.loads(line) for line in out.splitlines()], err) == (0, expected, "")
    assert asked(server) == [b"verbose_json"]


def test_several_files_go_in_turn_and_one_that_is_refused_does_not_stop_them(
    server: Server, run: Run, m4a: Path
) -> None:
    missing = m4a.with_name("b.mp4")
    server.scripts = [answers("415 No", uploads.error("unsupported_format", "no audio")), says(*HELLO)]
    assert run(m4a, missing, m4a, "--url", server.url) == (
        1,
        f"==> {m4a} <==\nHello\nthere.\n",
        f"error: {m4a}: unsupported_format: no audio\nerror: {missing}: no such file\n",
    )


@pytest.mark.parametrize(("format_", "name"), [("text", "txt"), ("srt", "srt")])
def test_a_file_is_written_for_each(server: Server, run: Run, m4a: Path, format_: str, name: str) -> None:
    quiet, folder = m4a.with_name("b.webm"), m4a.parent / "texts"
    quiet.write_bytes(b"")
    server.scripts = [says(*HELLO[:-1], done("Hello there.", result=SUBTITLES)), says(done("", result=""))]
    note = f"note: no speech was heard in {quiet}\n"
    assert run(m4a, quiet, "--url", server.url, "--format", format_, "--output-dir", folder) == (0, "", note)
    written = {"txt": "Hello\nthere.\n", "srt": SUBTITLES}[name]
    assert {path.name: path.read_text() for path in folder.iterdir()} == {f"a.{name}": written, f"b.{name}": ""}


def test_a_busy_server_is_said_once(server: Server, run: Run, m4a: Path) -> None:
    server.scripts = [refuses("queue_full"), refuses("predicted_wait"), says(*HELLO)]
    note = f"note: {m4a}: the server is busy (queue_full); it is asked again by itself\n"
    assert run(m4a, "--url", server.url) == (0, "Hello\nthere.\n", note)


def test_a_server_that_expects_no_recognizer_is_not_waited_for(server: Server, run: Run, m4a: Path) -> None:
    server.scripts = [refuses("unavailable", estimated_wait_ms=3_600_000)]
    error = f"error: {m4a}: the server has no recognizer, and does not expect one\nhint: its log says why\n"
    assert run(m4a, "--url", server.url) == (1, "", error)


def test_a_lost_connection_costs_no_text_and_repeats_none(server: Server, run: Run, m4a: Path) -> None:
    server.scripts = [breaks_off(*HELLO[:1]), says(*HELLO)]
    note = f"note: {m4a}: the connection is gone ({CUT}); the file is sent again\n"
    assert run(m4a, "--url", server.url) == (0, "Hello\nthere.\n", note)


def test_a_failure_keeps_the_text_before_it(server: Server, run: Run, m4a: Path) -> None:
    server.scripts = [says(HELLO[0], uploads.event(**uploads.error("decode_failed", "out of memory")))] * 2
    said = f"error: {m4a}: decode_failed: out of memory\nwarning: {m4a}: the text ends at 00:00:30.000\n"
    assert run(m4a, "--url", server.url) == (1, "Hello\n", said)
    assert run(m4a, "--url", server.url, "--output-dir", m4a.parent) == (1, "", said)
    assert m4a.with_suffix(".txt").read_text() == "Hello\n"


def test_without_a_server_the_other_files_are_not_tried(run: Run, m4a: Path, closed_port: int) -> None:
    code, out, err = run(m4a, m4a, "--url", f"ws://127.0.0.1:{closed_port}/v1/stream")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: no answer at http://127.0.0.1:{closed_port}/v1/audio/transcriptions: ")
    assert err.endswith(f"\nhint: is the server running? asr-ws serve\nerror: {m4a}: not tried\n")


def test_a_whole_file_is_not_sent_as_it_was_spoken(run: Run, m4a: Path) -> None:
    code, out, err = run(m4a, "--realtime")
    assert (code, out) == (2, "")
    assert err.endswith("Error: --http sends the whole file; --realtime does not go with it\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal for one process")
def test_ctrl_c_ends_it_and_says_how_far_the_text_goes(server: Server, m4a: Path) -> None:
    def stalls(peer: socket.socket, server: Server) -> None:
        server.read(peer)
        peer.sendall(uploads.STREAM + chunk(HELLO[0]))
        peer.recv(1)  # until the client goes

    server.scripts = [stalls]
    command = [sys.executable, "-m", "asr_ws", "transcribe", "--http", str(m4a), "--url", server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "Hello\n"
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=HANG_S)
    assert (program.returncode, out) == (1, "")
    assert err.split("\n") == [f"warning: {m4a}: the text ends at 00:00:30.000", "", "Aborted!", ""]


class Watched(Terminal):
    """A terminal of which somebody else can wait to see something: a bar draws itself only so often."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = threading.Condition()

    def write(self, text: str) -> int:
        with self._drawn:
            self._drawn.notify_all()
            return super().write(text)

    def wait_for(self, *texts: str) -> None:
        """All of them in what was drawn, in that order."""
        pattern = re.compile(".*".join(map(re.escape, texts)), re.DOTALL)
        with self._drawn:
            assert self._drawn.wait_for(lambda: pattern.search(self.getvalue()), LONG_S), self.getvalue()


def test_at_a_terminal_a_bar_tells_what_is_sent_and_then_what_is_done(
    server: Server, run: Run, m4a: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(monkeypatch)
    screen = Watched()
    monkeypatch.setattr("sys.stderr", screen)
    with m4a.open("r+b") as grown:
        grown.truncate(50 << 20)

    def keeps_pace(peer: socket.socket, server: Server) -> None:
        _, left = server.read_head(peer)
        screen.wait_for("sending a.m4a", "0%")
        while left:
            left -= len(peer.recv(1 << 20))
        peer.sendall(uploads.STREAM + chunk(HELLO[0]))
        screen.wait_for("sending a.m4a", "\x1b[2Ka.m4a", "50%")
        peer.sendall(b"".join(map(chunk, HELLO[1:])))

    server.scripts = [keeps_pace]
    assert run(m4a, "--url", server.url)[:2] == (0, "Hello\nthere.\n")


def test_no_bar_is_drawn_around_events(server: Server, run: Run, m4a: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show(monkeypatch, "sys.stderr")
    server.scripts = [says(*HELLO)]
    assert run(m4a, "--url", server.url, "--json")[0] == 0
    assert screen.getvalue() == ""


def test_text_stands_above_the_bar(server: Server, run: Run, m4a: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show(monkeypatch, "sys.stdout", "sys.stderr")
    server.scripts = [says(*HELLO)]
    assert run(m4a, "--url", server.url)[0] == 0
    assert "\r\x1b[2KHello\n" in screen.getvalue()
