from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import structlog

from asr_ws import log
from asr_ws.log import Writer

HANG_S = 60.0  # nothing here takes so long, however slow the machine


@pytest.fixture
def _logging() -> Iterator[None]:
    yield
    log.close()
    structlog.reset_defaults()


class GatedRaw(io.RawIOBase):
    """Under a standard error that nobody reads until `opened` is set; unlike a pipe it has room for nothing."""

    def __init__(self) -> None:
        self.written = b""
        self.entered, self.opened = threading.Event(), threading.Event()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.entered.set()
        assert self.opened.wait(HANG_S)
        self.written += data
        return len(data)


def gated() -> tuple[GatedRaw, io.TextIOWrapper]:
    raw = GatedRaw()
    return raw, io.TextIOWrapper(io.BufferedWriter(raw), "utf-8")


def run(script: str, *, read_stderr: bool) -> tuple[str, bytes]:
    """A process that logs. Returns: its standard output, and what there was on its standard error at its end."""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        if read_stderr:
            out, err = process.communicate(timeout=HANG_S)
        else:  # the pipe fills up while the process runs
            out = process.stdout.read()
            process.wait(HANG_S)
            err = process.stderr.read()
    assert process.returncode == 0, err.decode()
    return out.decode(), err


@pytest.mark.usefixtures("_logging")
def test_json_tracebacks_hold_no_locals(capsys: pytest.CaptureFixture[str]) -> None:
    """Locals hold tokens, text and audio, which are never logged."""
    log.configure("json")
    secret = "canary" + "-token"
    try:
        raise ValueError(f"{len(secret)} characters")
    except ValueError:
        structlog.get_logger().exception("session.failed")
    log.close()
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "session.failed"
    assert "canary-token" not in line


@pytest.mark.usefixtures("_logging")
def test_console_tracebacks_stand_under_their_line_and_hold_no_locals(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("console")
    secret = "canary" + "-token"
    try:
        raise ValueError(f"{len(secret)} characters")
    except ValueError:
        structlog.get_logger().exception("session.failed", session="s-1")
    log.close()
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.split()[1:] == ["[error", "]", "session.failed", "session=s-1"]
    assert last == "ValueError: 12 characters"


@pytest.mark.usefixtures("_logging")
def test_json_is_one_object_a_line_whatever_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    structlog.get_logger().info("thing.seen", text="two\nlines", half="\ud800", other=object)
    log.close()
    [line] = capsys.readouterr().err.splitlines()
    seen = json.loads(line)
    assert (seen["text"], seen["half"]) == ("two\nlines", "\ud800")


@pytest.mark.usefixtures("_logging")
def test_what_a_worker_printed_reaches_no_terminal_as_commands(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("console")
    structlog.get_logger().warning("worker.died", stderr="Fatal\x1b[2J\n\tat é \x07", error="a\x9b2Jb")
    log.close()
    [line, *words] = capsys.readouterr().err.splitlines()
    assert line.endswith("error=a\\x9b2Jb")
    assert words == ["Fatal\\x1b[2J", "\tat é \\x07"]


@pytest.mark.usefixtures("_logging")
def test_lone_surrogates_are_escaped_on_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("console")
    structlog.get_logger().info("thing.seen", half="\ud800")
    log.close()
    assert "half=\\ud800" in capsys.readouterr().err
    assert log.dropped() == 0


@pytest.mark.usefixtures("_logging")
def test_libraries_log_the_same_way_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    library = logging.getLogger("websockets.server")
    library.info("connection open")
    library.warning("odd: %s", "this")
    logging.getLogger("asyncio").warning("SSL connection is closed")
    try:
        raise ValueError("broken")
    except ValueError:
        library.exception("opening handshake failed")
    log.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"], line["logger"], line["message"]) for line in lines] == [
        ("library.logged", "warning", "websockets.server", "odd: this"),
        ("library.logged", "error", "websockets.server", "opening handshake failed"),
    ]
    assert lines[1]["exception"][0]["exc_value"] == "broken"


@pytest.mark.usefixtures("_logging")
def test_library_whose_arguments_do_not_fit_its_format_is_logged_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("json")
    [ours] = [handler for handler in logging.getLogger().handlers if type(handler).__module__ == "asr_ws.log"]
    ours.handle(logging.makeLogRecord({"name": "odd", "levelno": logging.ERROR, "msg": "%d seen", "args": ("some",)}))
    log.close()
    assert json.loads(capsys.readouterr().err)["message"] == "%d seen"


def test_lines_keep_their_order() -> None:
    raw, stream = gated()
    raw.opened.set()
    writer = Writer(stream)
    for n in range(1000):
        writer.put(str(n))
    writer.close(HANG_S)
    assert raw.written.split() == [b"%d" % n for n in range(1000)]


def test_full_queue_drops_counts_and_says_so_once() -> None:
    raw, stream = gated()
    writer = Writer(stream, capacity=2, on_dropped=lambda n: f"dropped {n}")
    writer.put("a")
    assert raw.entered.wait(HANG_S)
    for line in "bcdef":
        writer.put(line)
    assert writer.n_dropped == 3
    raw.opened.set()
    writer.close(HANG_S)
    assert raw.written.split(b"\n") == [b"a", b"dropped 3", b"b", b"c", b""]


def test_what_is_dropped_within_a_second_is_told_together() -> None:
    raw, stream = gated()
    raw.opened.set()
    writer = Writer(stream, on_dropped=lambda n: f"dropped {n}")
    writer._told_at = float("inf")  # that second does not end
    for _ in range(5):
        writer._drop()
        writer.put("x")
    writer.close(HANG_S)
    assert raw.written.split(b"\n") == [*[b"x"] * 5, b"dropped 5", b""]


def test_last_drops_are_told_though_nothing_is_logged_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "TELL_EVERY_S", 0.05)
    raw, stream = gated()
    told = threading.Event()

    def tell(n: int) -> None:
        told.set()

    writer = Writer(stream, capacity=1, on_dropped=tell)
    writer.put("a")
    assert raw.entered.wait(HANG_S)
    for line in "bc":
        writer.put(line)
    writer._told_at = time.monotonic()
    raw.opened.set()
    assert told.wait(HANG_S)
    writer.close(HANG_S)


def test_close_does_not_wait_for_a_reader_that_stands_still() -> None:
    raw, stream = gated()
    writer = Writer(stream, capacity=1)
    writer.put("a")
    assert raw.entered.wait(HANG_S)
    writer.put("b")
    writer.close(0.01)
    assert raw.written == b""
    writer.put("c")
    assert writer.n_dropped == 1, "what comes after the end"
    raw.opened.set()


class BrokenRaw(GatedRaw):
    """Its reader has gone."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, io.TextIOWrapper(io.BufferedWriter(BrokenRaw()))])
def test_stream_that_takes_nothing_costs_lines_only(stream: io.TextIOWrapper | None) -> None:
    writer = Writer(stream)
    for _ in range(3):
        writer.put("x")
    writer.close(HANG_S)
    assert writer.n_dropped == 3


def test_full_pipe_neither_holds_the_caller_up_nor_keeps_the_process_alive() -> None:
    script = """
import structlog
from asr_ws import log
log.configure("json")
logger = structlog.get_logger()
for n in range(20_000):
    logger.info("thing.seen", n=n)
print(log.dropped(), flush=True)
"""
    out, err = run(script, read_stderr=False)
    assert 10_000 < int(out) < 20_000, "the queue and the pipe hold less than half of them"
    *whole, _ = err.decode().split("\n")
    seen = [entry["n"] for entry in map(json.loads, whole) if entry["event"] == "thing.seen"]
    assert seen == list(range(len(seen)))


def test_what_is_logged_last_is_written_before_the_process_ends() -> None:
    script = """
import structlog
from asr_ws import log
log.configure("json")
for n in range(3000):
    structlog.get_logger().info("thing.seen", n=n)
"""
    _, err = run(script, read_stderr=True)
    assert [json.loads(line)["n"] for line in err.decode().splitlines()] == list(range(3000))
