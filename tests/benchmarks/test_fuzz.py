"""The verdict, a client that keeps no rules, and a short run."""

from __future__ import annotations

import json
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.examples import KINDS, PROBE, Audio, Ending, Frames, Request, Talk, Text
from benchmarks.fuzz import Outcome, draw_examples, rounds_of, table
from benchmarks.served import TRACEBACK, Sample
from benchmarks.wire import BINARY, CLOSE, Broken, Frame
from tests.benchmarks.commands import run

SAMPLE = Sample(at_s=0.0, rss_mb=100.0, n_fds=14, n_threads=5, n_workers=1)
GOOD = Outcome(
    asked=300,
    ran={"messages": 100, "frames": 100, "pcm": 100},
    seconds=3.0,
    told={"close 1000": 80, "close 1002": 9},
    failed=None,
    commits=20,
    finals=20,
    troubles=[],
    ready=True,
    sessions_left=0,
    max_concurrent_decodes=1,
    worker_restarts=0,
    before=SAMPLE,
    after=SAMPLE,
    bugs={},
    exit_code=0,
)


# ---------------------------------------------------------------- the verdict


def test_a_run_in_which_nothing_happened_passes() -> None:
    assert (GOOD.passed, GOOD.failures) == (True, [])
    assert table(GOOD) == [
        "examples        messages 100, frames 100, pcm 100; 100 each s",
        "closes          1000: 80, 1002: 9",
        "neighbours      20 finals for 20 commits",
        "memory          100 -> 100 MB",
        "open files      14 -> 14",
    ]


def test_an_example_that_fails_is_printed_last() -> None:
    assert table(replace(GOOD, failed="Talk()\nBroken: x", troubles=["gone"]))[5:] == [
        "NOT OK          an example fails",
        "NOT OK          the neighbours had trouble 1 times",
        "  gone",
        "the least example that fails:",
        "Talk()",
        "Broken: x",
    ]


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"failed": "Talk()\nBroken: x"}, "an example fails"),
        ({"ran": {"messages": 200}}, "200 of 300 examples ran"),
        ({"finals": 19}, "1 of the neighbours' finals are missing"),
        ({"commits": 0, "finals": 0}, "the neighbours said nothing"),
        ({"troubles": ["gone"]}, "the neighbours had trouble 1 times"),
        ({"ready": False}, "the server is not ready"),
        ({"sessions_left": 1}, "1 sessions are left"),
        ({"max_concurrent_decodes": 2}, "2 decodes at once"),
        ({"worker_restarts": 1}, "1 restarts of the worker"),
        ({"after": replace(SAMPLE, rss_mb=120.0)}, "memory grew by 20.0 MB"),
        ({"after": replace(SAMPLE, n_fds=15)}, "14 open files became 15"),
        ({"bugs": {TRACEBACK: 1}}, "the log has {'traceback': 1}"),
        ({"exit_code": None}, "exit code None"),
    ],
)
def test_whatever_happened_fails_it(changes: dict[str, Any], failure: str) -> None:
    assert replace(GOOD, **changes).failures == [failure]


# ---------------------------------------------------------------- what breaks an example

READY = {
    "type": "ready",
    "protocol": "asr-ws.v1",
    "session": "s-1",
    "server": "0.1.0",
    "model": "m",
    "languages": ["en"],
    "state": "ready",
    "limits": {
        "queue_capacity": 3,
        "max_wait_ms": 8000,
        "max_utterance_ms": 30_000,
        "max_message_bytes": 262_144,
        "max_sessions": 64,
        "hold_ms": 60_000,
    },
}
PONG = {"type": "pong", "seq": 1, "id": PROBE}
NOTHING_LOST = dict.fromkeys(
    ("decoded_ms", "refused_ms", "lost_ms", "finals", "busy", "retries", "dropped", "errors"), 0
)
DONE = {"type": "done", "seq": 2, "received_ms": 1000, "silence_ms": 1000, **NOTHING_LOST}
A_SECOND = Talk((Audio(32_000, b"\0"), Text(b'{"type":"end"}'), Audio(32_000, b"\0")), Ending.END)


def event(fields: dict[str, Any]) -> bytes:
    text = json.dumps(fields).encode()
    return b"\x81\x7e" + len(text).to_bytes(2, "big") + text


def close(code: int) -> bytes:
    return b"\x88\x02" + code.to_bytes(2, "big")


@contextmanager
def saying(*answers: bytes, status: str = "101 Switching Protocols") -> Iterator[int]:
    """A server that says so to everybody, whatever they say. Gives its port."""

    class Visit(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):
                while self.rfile.readline().strip():
                    pass
                self.wfile.write(f"HTTP/1.1 {status}\r\n\r\n".encode() + b"".join(answers))
                self.rfile.read()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Visit) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_keeps_the_protocol_breaks_no_example() -> None:
    told: Counter[str] = Counter()
    with saying(event(READY), event(PONG), event(DONE), close(1000)) as port:
        A_SECOND.run(port, told)
    assert told == {"ready": 1, "pong": 1, "done": 1, "close 1000": 1}


@pytest.mark.parametrize(
    ("answers", "what"),
    [
        ((event(READY), close(1011)), "closed 1011"),
        ((event(READY), close(1000)), "closed 1000 with None"),
        ((event(READY), event({"type": "pong", "seq": 2, "id": 1}), close(1008)), "seq 2, not 1"),
        ((event({"type": "news"}),), "an unknown event"),
        ((event({**READY, "session": 1}),), "the server sent"),
        ((event({**DONE, "finals": -1}),), "does not conform at .*finals"),
        ((event(READY), event(PONG), event({**DONE, "lost_ms": 5}), close(1000)), "audio was lost"),
        (
            (event(READY), event(PONG), event({**DONE, "received_ms": 990, "silence_ms": 990}), close(1000)),
            "1000 ms were sent",
        ),
        ((b"\xc1\x00",), "a frame begins with"),
        ((b"\x82\x00",), "a frame with opcode 2"),
    ],
)
def test_a_server_that_does_not_breaks_it(answers: tuple[bytes, ...], what: str) -> None:
    with saying(*answers) as port, pytest.raises(Broken, match=what):
        A_SECOND.run(port, Counter())


def test_a_server_that_says_nothing_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.wire.LIMIT_S", 0.2)
    with saying(event(READY)) as port, pytest.raises(TimeoutError):
        A_SECOND.run(port, Counter())


def test_close_codes_of_the_client_come_back_and_others_do_not() -> None:
    with saying(event(READY), close(4000)) as port:
        Frames((Frame(CLOSE, b"\x0f\xa0"),), (), Ending.HALF).run(port, Counter())
        with pytest.raises(Broken, match="closed 4000"):
            A_SECOND.run(port, Counter())
    with saying(close(1011)) as port:
        Frames((Frame(CLOSE, b"\x03\xf3"),), (1,), Ending.HALF).run(port, Counter())
        with pytest.raises(Broken, match="closed 1011"):
            Frames((Frame(CLOSE, b"\x03\xf2"),), (), Ending.CLOSE).run(port, Counter())


def test_an_internal_server_error_breaks_a_request() -> None:
    request, told = Request(b"GET / HTTP/1.1\r\n\r\n", Ending.HALF), Counter[str]()
    with saying(status="404 Not Found") as port:
        request.run(port, told)
    assert told == {"status 404": 1}
    with saying(status="500 Internal Server Error") as port, pytest.raises(Broken, match="500"):
        request.run(port, Counter())


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_example_that_fails_is_told(kind: str) -> None:
    with saying(event(READY), close(1011)) as port:
        drawn = draw_examples(port, kind, 20, 1)
    assert drawn.failed is not None
    example, why = drawn.failed.splitlines()
    assert example.startswith(("Talk(", "Frames("))
    assert why == "Broken: closed 1011"


def test_the_same_number_draws_the_same_examples() -> None:
    with saying(event(READY), event(PONG), close(1008)) as port:
        first, again, other = (draw_examples(port, "frames", 30, number) for number in (1, 1, 2))
    assert first == again != other


def test_frames_are_written_as_they_claim() -> None:
    assert bytes(Frame(BINARY, b"ab", mask=b"\x01\x01\x01\x01")) == b"\x82\x82\x01\x01\x01\x01`c"
    assert bytes(Frame(BINARY, b"", fin=False, rsv=0x40, mask=None, claims=300)) == b"\x42\x7e\x01\x2c"


# ---------------------------------------------------------------- runs


def test_every_round_has_all_kinds_and_no_number_comes_twice() -> None:
    batches = [batch for batches in rounds_of(3001, 5) for batch in batches]
    assert [kind for kind, _, _ in batches] == ["messages", "frames", "pcm"] * 10
    assert [sum(n for kind, n, _ in batches if kind == each) for each in KINDS] == [1000, 1000, 1001]
    assert len({number for _, _, number in batches}) == 30
    assert [len(batches) for batches in rounds_of(1, 5)] == [0] * 9 + [1]


def test_a_short_run_breaks_nothing() -> None:
    lines, told = run("fuzz", "--examples", "240", "--seed", "7")
    assert lines[0].startswith("examples        messages ")
    assert told["settings"] == {"examples": 240, "seed": 7}
    assert told["failures"] == []
    assert told["neighbours"]["commits"] == told["neighbours"]["finals"] > 0
    assert told["told"]["done"] > 0
    assert told["passed"] is True
