"""What is put on the wire, the table and the verdict, and a short run: its times are this machine's."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Opcode
from websockets.server import ServerProtocol

from benchmarks.blast import KINDS, Blasted, Kind, Outcome, Spoken, noise, table
from benchmarks.common import PCM_BYTES_PER_S
from tests.benchmarks.commands import run
from tests.benchmarks.events import accepted, final
from tests.benchmarks.test_chaos import law
from tests.testing.test_conservation import begun, done

# ---------------------------------------------------------------- on the wire


def test_a_block_is_its_frames_and_a_ping_and_what_is_left_over_is_left_out() -> None:
    first, second = Kind("small", frame_bytes=2, pinged=3).blocks(b"abcdefghijklmno")
    assert read(first + second) == [
        *((Opcode.BINARY, each) for each in (b"ab", b"cd", b"ef")),
        (Opcode.TEXT, b'{"type":"ping"}'),
        *((Opcode.BINARY, each) for each in (b"gh", b"ij", b"kl")),
        (Opcode.TEXT, b'{"type":"ping"}'),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_ten_seconds_of_noise_are_enough_for_every_kind(kind: Kind) -> None:
    *frames, (last, _) = read(next(kind.blocks(noise(1))))
    assert (last, {opcode for opcode, _ in frames}) == (Opcode.TEXT, {Opcode.BINARY})
    assert [len(payload) for _, payload in frames] == [kind.frame_bytes] * kind.pinged
    assert kind.audio_s_per_ping == sum(len(payload) for _, payload in frames) / PCM_BYTES_PER_S


def test_each_blaster_has_noise_of_its_own() -> None:
    assert noise(1) == noise(1)
    assert noise(1) != noise(2)


def read(data: bytes) -> list[tuple[Opcode, bytes]]:
    server = ServerProtocol(max_size=None)
    server.receive_data(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    (request,) = server.events_received()
    server.send_response(server.accept(request))  # type: ignore[arg-type]
    server.receive_data(data)
    return [(frame.opcode, bytes(frame.data)) for frame in server.events_received()]  # type: ignore[union-attr]


# ---------------------------------------------------------------- the verdict


def heard() -> tuple[Any, ...]:
    """One utterance, up to its final."""
    return begun(), accepted(), final()


def spoken(*events: Any, pings_ms: tuple[float, ...] = (1.5, 1000.0)) -> Spoken:
    told, reasons = Counter(final=12, busy=3), Counter({"dropped evicted": 1, "busy queue_full": 3})
    return Spoken(seconds=60.0, sent_s=60.0, law=law(*events), told=told, reasons=reasons, pings_ms=list(pings_ms))


def content() -> Spoken:
    return spoken(*heard(), done(received_ms=60_000, silence_ms=60_000, finals=1))


BLASTED = Blasted(
    KINDS[1], seconds=60.0, sent_s=160.0, taken_s=120.0, told={"busy": 2, "dropped": 1, "pong": 120}, close_code=1012
)
GOOD = Outcome(
    speakers=[content()],
    blasters=[BLASTED],
    rss_mb=[*[100.0] * 14, 180.0, 110.0, 129.0, 120.0],
    bugs={},
    exit_code=0,
    waited=0.025,
)


def test_a_good_run_misses_nothing() -> None:
    assert GOOD.misses() == []
    assert replace(GOOD, blasters=[], rss_mb=[100.0, 200.0]).misses() == []


def test_memory_grows_from_what_it_is_after_fifteen_seconds_to_its_highest() -> None:
    assert GOOD.growth_mb == 19.0
    assert replace(GOOD, rss_mb=[*[100.0] * 15, 130.0, 120.0, 110.0]).growth_mb == 0.0
    assert replace(GOOD, rss_mb=[*[100.0] * 15, 130.0]).growth_mb is None


@pytest.mark.parametrize(
    ("speaker", "expected"),
    [
        (spoken(done()), ["said nothing"]),
        (spoken(*heard()), ["was not told `done`"]),
        (spoken(*heard(), done(received_ms=5, refused_ms=5, finals=1)), ["0 ms lost, 5 ms refused"]),
        (spoken(*heard(), done(received_ms=5, lost_ms=5, finals=1)), ["5 ms lost, 0 ms refused"]),
        (
            spoken(*heard(), begun("u2"), done(finals=1)),
            ["1 of 2 utterances have no final: 3 busy queue_full, 1 dropped evicted"],
        ),
        (spoken(*heard(), done(finals=1), pings_ms=()), ["no ping was answered"]),
        (spoken(*heard(), done(finals=1), pings_ms=(1.0, 1000.6)), ["a ping took 1001 ms"]),
    ],
)
def test_each_thing_that_a_speaker_may_suffer_is_a_miss(speaker: Spoken, expected: list[str]) -> None:
    assert speaker.misses() == [*speaker.law.breaches, *expected]
    assert replace(GOOD, speakers=[content(), speaker]).misses() == [f"speaker 2: {miss}" for miss in speaker.misses()]


def test_a_connection_that_ends_before_its_session_is_a_miss() -> None:
    speaker = spoken(*heard())
    speaker.law.close(1000)
    assert speaker.misses() == ["closed 1000 with None", "was not told `done`"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"blasters": [replace(BLASTED, close_code=1008)]}, "blaster 1: closed 1008 with 120.0 s taken"),
        ({"blasters": [replace(BLASTED, taken_s=0.0)]}, "blaster 1: closed 1012 with 0.0 s taken"),
        ({"rss_mb": [*[100.0] * 16, 120.0]}, "memory grew by 20.0 MB"),
        ({"bugs": {"traceback": 1}}, "the log has {'traceback': 1}"),
        ({"exit_code": None}, "exit code None"),
    ],
)
def test_each_thing_that_the_server_may_suffer_is_a_miss(changes: dict[str, Any], expected: str) -> None:
    outcome = replace(GOOD, **changes)
    assert outcome.misses() == [expected]
    assert table(outcome)[-1] == f"missed: {expected}"


def test_the_table_has_a_row_for_everybody() -> None:
    assert table(GOOD) == [
        "client                         sent s  taken s x real time  finals  busy  retries  dropped  errors  ping p50"
        "    p99  max ms",
        "speaker 1                        60.0     60.0        1.00      12     3        0        0       0       1.5"
        " 1000.0  1000.0",
        "blaster 1, 3200-byte frames     160.0    120.0        2.00       0     2        0        1       0",
        "memory 100.0 MB, 180.0 at most; after the warm-up +19.0 MB",
        "the speakers' process waited for a core 2% of the time",
    ]


# ---------------------------------------------------------------- runs


@pytest.mark.model
def test_speakers_are_heard_beside_blasters_of_every_kind(tiny_en: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    lines, told = run("blast", "--seconds", "4", "--speakers", "2", "--pause", "0", "--report", str(file))
    assert json.loads(file.read_text("utf-8")) == told
    assert [line.partition("  ")[0] for line in lines[:6]] == [
        "client",
        *("speaker 1", "speaker 2"),
        *(f"blaster {n}, {kind.name}" for n, kind in enumerate(KINDS, 1)),
    ]
    assert told["settings"] == {
        "model": "tiny.en",
        "seconds": 4.0,
        "blasters": 3,
        "speakers": 2,
        "pause": 0.0,
        "speech": False,
    }
    for each in told["speakers"]:
        assert (each["sent_s"], each["taken_s"]) == (4.0, 4.0)
        assert each["final"] == each["utterances"] >= 1
        assert (each["lost_ms"], each["refused_ms"]) == (0, 0)
        assert each["ping_ms"]["n"] >= 40
    for each in told["blasters"]:
        assert each["sent_s"] >= each["taken_s"] > 0
        assert each["close_code"] == 1012
    assert told["exit_code"] == 0
    assert len(told["rss_mb"]) >= 4
