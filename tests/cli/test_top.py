"""`asr-ws top`, on a real server with a scripted worker, and at a terminal on one that says what it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select

import pytest
from click.testing import CliRunner

from asr_ws.cli import main
from asr_ws.client.address import OTHER_TOKEN_HINT
from asr_ws.worker.supervisor import WorkerSpec
from tests.cli.program import ROOT, program
from tests.client.plain import Plain
from tests.client.plain import serving as plain
from tests.server.running import MANUAL, SECOND, Client, serving

LATE_S = 60.0  # nothing is drawn so late
TOKEN = "0123456789abcdef"
STATS = """{"state": "ready", "model": "tiny.en", "uptime_s": 5, "queue_depth": 2, "queue_capacity": 3,
"avg_wait_ms": 1, "p95_wait_ms": 2, "sessions": 1, "worker_pid": 4711, "max_concurrent_decodes": 1, "newer": 1}"""
METRICS = """\
asr_ws_utterances_total{outcome="final"} 7.0
asr_ws_refusals_total{reason="queue_full"} 0.0
asr_ws_audio_seconds_total{fate="decoded"} 0.0
"""
NUMBERS = {"/v1/stats": (200, "application/json", STATS), "/metrics": (200, "text/plain", METRICS)}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("ASR_WS_TOKEN", raising=False)


def top(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    done = CliRunner().invoke(main, ["top", *args], prog_name="asr-ws")
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("args", [[], ["--once"]], ids=["no terminal", "once"])
async def test_it_is_printed_once(args: list[str], scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        url = app.listener.url
        async with Client(app) as client:
            await client.send(MANUAL, SECOND, {"type": "end"})
            assert await client.rest() == 1000
        code, out, err = await program("top", "--url", app.url, *args)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].endswith(f", {url}")
    assert lines[1] == "state     ready, decoding nothing"
    assert lines[7] == "finals           -         1"
    assert lines[14].startswith("final ")
    assert lines[14].endswith("       1")
    assert lines[-2].startswith("audio     lost 0 s, decoded 0:00:01, ")
    assert lines[-1].startswith("loop lag  ")


async def test_a_token_is_needed_where_the_server_wants_one(scripted: WorkerSpec, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"{TOKEN} kitchen\n")
    (tmp_path / "wrong").write_text(TOKEN.upper())
    async with serving(scripted, ready=False, auth_token_file=str(tmp_path / "tokens")) as app:
        right, wrong = [
            await program("top", "--url", app.url, "--token-file", tmp_path / name) for name in ("tokens", "wrong")
        ]
        error = f"error: no answer at {app.listener.url}/v1/stats: HTTP 401\nhint: {OTHER_TOKEN_HINT}\n"
    assert (right[0], wrong) == (0, (1, "", error))


def test_without_a_server_it_fails_with_a_hint(closed_port: int) -> None:
    code, out, err = top("--url", f"http://127.0.0.1:{closed_port}")
    assert (code, out) == (1, "")
    assert err.endswith("\nhint: is the server running? asr-ws serve\n")


def test_another_server_is_said() -> None:
    with plain(NUMBERS | {"/v1/stats": (200, "application/json", "{}")}) as server:
        code, out, err = top("--url", server.url)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {server.url}/v1/stats does not answer as this server does: ")
    assert err.endswith("\nhint: is this an asr_ws server?\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"queue_depth": 2', f'"queue_depth": {-(10**18)}'),
        ('"uptime_s": 5', '"uptime_s": 1e308'),
        ('"uptime_s": 5', '"uptime_s": NaN'),
        ('"sessions": 1', '"sessions": 1e30'),
        ('"ready"', r'"\u001b[2J"'),
        ('"newer": 1', r'"decoding": "\u001b[2J"'),
        ('"newer": 1', r'"jobs": {"\u001b[2J": 1}'),
        ('"newer": 1', '"newer": ' + "[" * 100_000),
    ],
    ids=lambda text: text[:30],
)
def test_nonsense_is_no_answer(old: str, new: str) -> None:
    assert old in STATS
    with plain(NUMBERS | {"/v1/stats": (200, "application/json", STATS.replace(old, new))}) as server:
        code, out, err = top("--url", server.url)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {server.url}/v1/stats does not answer as this server does: ")
    assert err.endswith("\nhint: is this an asr_ws server?\n")
    assert "\x1b" not in err


@pytest.mark.parametrize("text", ["", "<html>Log in</html>", 'asr_ws_utterances_total{outcome="final"} 1.0\n'])
def test_what_lacks_its_metrics_is_no_answer(text: str) -> None:
    with plain(NUMBERS | {"/metrics": (200, "text/plain", text)}) as server:
        code, out, err = top("--url", server.url)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {server.url}/metrics does not answer as this server does: asr_ws_")


def test_an_interval_that_is_no_number_is_a_wrong_call() -> None:
    code, _, err = top("--interval-s", "nan")
    assert (code, "is not a number" in err) == (2, True)


def test_the_name_of_a_model_commands_no_terminal_and_is_cut() -> None:
    named = STATS.replace("tiny.en", r"\u001b]0;PWNED\u001b\\" + "x" * 3_000_000)
    with plain(NUMBERS | {"/v1/stats": (200, "application/json", named)}) as server:
        code, out, _ = top("--url", server.url)
    assert code == 0
    assert out.startswith("\ufffd]0;PWNED\ufffd\\xxx")
    assert len(out) < 2000


@pytest.mark.parametrize("url", ["http://a b", "nowhere"])
def test_an_address_that_can_be_none_is_a_wrong_call(url: str) -> None:
    code, _, err = top("--url", url)
    assert code == 2
    assert " is no address of a server\nhint: " in err


def test_nobody_reads_a_standard_output_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with plain(NUMBERS) as server, pytest.raises(SystemExit) as ended:
        main(["top", "--url", server.url])
    sys.stdout.close()  # its substitute
    assert ended.value.code == 0


# ---------------------------------------------------------------- a terminal


class Terminal:
    """A program at a pseudo-terminal, and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self._fd = fd
        self.seen = ""

    def wait_for(self, text: str) -> None:
        """In what comes from now on."""
        self.seen = ""
        while text not in self.seen:
            assert select([self._fd], [], [], LATE_S)[0], self.seen
            self.seen += os.read(self._fd, 65536).decode(errors="replace")

    def ended(self) -> tuple[int, bool]:
        """Exit code, and whether it left the alternate screen."""
        while self.process.poll() is None:  # what nobody reads would keep it
            if select([self._fd], [], [], 0.05)[0]:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
        while select([self._fd], [], [], 0)[0]:
            self.seen += os.read(self._fd, 65536).decode(errors="replace")
        return self.process.returncode, "\x1b[?1049l" in self.seen

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def resize(self, rows: int, columns: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def at_a_terminal(server: Plain) -> Iterator[Terminal]:
    """The terminal is as it was, at the end."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    modes = termios.tcgetattr(theirs)
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "asr_ws", "top", "--url", server.url],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),  # type: ignore[call-overload]
        env={**clean, "TERM": "xterm", "PYTHONPATH": str(ROOT)},
    ) as process:
        terminal = Terminal(process, ours)
        try:
            terminal.resize(24, 80)
            yield terminal
            assert termios.tcgetattr(theirs) == modes
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)


at_terminals = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


@at_terminals
def test_a_server_that_goes_and_comes_back_is_watched_on() -> None:
    with plain(dict(NUMBERS)) as server, at_a_terminal(server) as terminal:
        terminal.wait_for("ready")
        terminal.resize(8, 40)
        server.says["/metrics"] = (502, "text/plain", "Bad Gateway\n")
        terminal.wait_for(": Bad Gat")
        server.says.update(NUMBERS)
        terminal.wait_for("ready")
        server.says["/metrics"] = (200, "text/plain", "asr_ws_utterances_total NaN\n")
        terminal.wait_for(": asr_ws_u")
        server.says.update(NUMBERS)
        terminal.wait_for("ready")
        terminal.press(b"xq")
        assert terminal.ended() == (0, True)


@at_terminals
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_a_signal_ends_it_in_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end = getattr(signal, name)
    before = signal.signal(end, signal.SIG_DFL)  # what is ignored here, as by nohup, would be there
    with plain(dict(NUMBERS)) as server, at_a_terminal(server) as terminal:
        signal.signal(end, before)
        terminal.wait_for("ready")
        terminal.process.send_signal(end)
        assert terminal.ended() == (0, True)


@at_terminals
def test_a_token_that_is_no_longer_good_ends_it_with_an_error() -> None:
    with plain(dict(NUMBERS)) as server, at_a_terminal(server) as terminal:
        terminal.wait_for("ready")
        server.headers["WWW-Authenticate"] = "Bearer"
        server.says["/v1/stats"] = (401, "application/json", "{}")
        assert terminal.ended() == (1, True)
        assert "error: " in terminal.seen.partition("\x1b[?1049l")[2]
