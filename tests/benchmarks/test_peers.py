"""The figures from what was heard, each protocol from recorded messages, the table and the picture.

No server is installed or started here, so what they really send is only as true as these records.
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from itertools import islice
from typing import Any

import click
import pytest

from benchmarks.peers import draw, markdown
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.clips import Clip, spoken
from benchmarks.peers.heard import Heard, Refused, Shown, Spoken, flicker, one_by_one, together
from benchmarks.peers.scenes import after, told
from benchmarks.peers.wires import AsrWs, Message, Send, SttServer, WhisperLive, WhisperLiveKit, Wire, Wyoming

SPOKEN = Spoken("lights", "turn on the lights", onset_s=0.5, stops_s=(1.0, 2.0))
GUESSED = Shown("Turn on the flights.", False)
RIGHT = Shown("Turn on the lights.", True)


def heard(*shown: tuple[float, Shown], **more: Any) -> Heard:
    return Heard(SPOKEN, shown=list(shown), **more)


def receive(wire: Wire, *messages: Message | dict[str, Any]) -> list[Shown | Refused | Send]:
    return [
        each
        for message in messages
        for each in wire.receive(json.dumps(message) if isinstance(message, dict) else message)
    ]


# ---------------------------------------------------------------- from what was said


def test_speech_stops_before_a_pause_and_at_its_end() -> None:
    windows = [False, True, False, True, *(4 * [False]), True, True, False]
    assert spoken(windows, 0.1) == (pytest.approx(0.1), pytest.approx((0.4, 1.0)))
    with pytest.raises(click.ClickException):
        spoken([False], 0.1)


def test_a_clip_goes_on_as_noise_in_whole_frames() -> None:
    clip = Clip(SPOKEN, b"\x00\x40" * 1700)
    first, second, third = islice(clip.frames(), 3)
    assert {len(first), len(second), len(third)} == {3200}
    assert (first, second[:200]) == (b"\x00\x40" * 1600, b"\x00\x40" * 100)
    assert 0 < max(abs(each) for each in struct.unpack("<1600h", third)) < 50


# ---------------------------------------------------------------- from what was heard


def test_times_count_from_the_end_and_from_the_onset_of_speech() -> None:
    one = heard((1.2, GUESSED), (2.4, replace(RIGHT, final=False)), (2.9, RIGHT), (3.2, RIGHT))
    assert (one.first_ms, one.last_change_ms, one.final_ms) == pytest.approx((700, 400, 900))


def test_text_that_goes_on_after_a_final_is_not_final_yet() -> None:
    begun = Shown("Turn on.", True)
    assert heard((1.0, begun), (2.5, RIGHT)).final_ms == pytest.approx(500)
    assert heard((1.0, begun), (2.5, GUESSED)).final_ms is None
    assert heard().final_ms is None


def test_a_change_of_punctuation_is_no_change_of_the_words() -> None:
    one = heard((2.1, Shown("turn on the lights", False)), (2.5, RIGHT))
    assert one.last_change_ms == pytest.approx(100)


def test_a_client_waits_until_the_final_text_has_stood_for_a_while() -> None:
    one = heard((2.5, RIGHT))
    assert [one.is_settled(now_s, 2.0) for now_s in (4.4, 4.6)] == [False, True]
    assert not heard((2.5, GUESSED)).is_settled(20.0, 2.0)


def test_flicker_counts_words_that_were_changed_or_taken_away_of_all_that_were_shown() -> None:
    assert flicker([["turn", "on"], ["turn", "on", "the", "flights"], ["turn", "on", "the", "lights"]]) == (1, 5)
    assert flicker([["b", "c"], ["a", "b", "c"]]) == (0, 3)  # they only moved
    assert flicker([["a"], []]) == (1, 1)
    assert flicker([]) == (0, 0)


def test_a_refusal_is_timed_from_the_last_stop_in_speech_or_else_from_connecting() -> None:
    full = Refused("WAIT 5.0")
    assert heard(refused=[(0.1, full)], connected_s=-0.2).refusal == ("WAIT 5.0", "connecting", 300)
    assert heard(refused=[(1.75, full), (5.0, full)]).refusal == ("WAIT 5.0", "speech", 750)
    assert heard().refusal is None


def test_clips_one_by_one() -> None:
    never = heard((1.0, GUESSED))
    assert one_by_one([heard((1.2, GUESSED), (2.5, RIGHT)), never]) == {
        "clips": 2,
        "final_ms": {"n": 1, "p50": 500.0, "max": 500.0},
        "last_change_ms": {"n": 2, "p50": -250.0, "max": 500.0},
        "first_ms": {"n": 2, "p50": 600.0, "max": 700.0},
        "word_errors": 0.125,
        "flicker": 0.1111,
    }


def test_nothing_heard_has_no_times() -> None:
    assert one_by_one([heard()]) | {"word_errors": 0} == {
        **dict.fromkeys(("final_ms", "last_change_ms", "first_ms", "flicker")),
        "clips": 1,
        "word_errors": 0,
    }


def test_served_is_who_has_his_own_text_in_time() -> None:
    somebody_elses = heard((2.5, Shown("Ask not what your country can do for you.", True)))
    late, refused = heard((17.5, RIGHT)), heard(refused=[(0.1, Refused("WAIT 5.0"))], ended=(0.2, "closed with 1000"))
    late.late_s = 0.25
    assert together([heard((2.5, RIGHT)), somebody_elses, late, refused], within_s=15) == {
        "clients": 4,
        "served": 1,
        "final_ms": {"n": 1, "p50": 500.0, "max": 500.0},
        "texts": {"right": 2, "wrong": 1, "silent": 1},
        "refused": 1,
        "refusal": {"words": "WAIT 5.0", "after": "connecting", "ms": 100.0},
        "ended": ["closed with 1000"],
        "late_ms": 250,
    }


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Turn on lights.", "right"),
        ("Turn on.", "in part"),
        ("Turn off the kitchen.", "wrong"),
        ("Turn on the lights. Ask not what your country can do.", "wrong"),
        ("", "silent"),
    ],
)
def test_a_text_may_lack_something_or_have_something_else(text: str, verdict: str) -> None:
    assert heard((2.5, Shown(text, True))).verdict == verdict


def test_what_a_client_was_told_of_a_crash() -> None:
    assert told(heard(ended=(1.5, "closed with 1006")), 1.4) == "connection closed with 1006"
    assert told(heard((2.5, RIGHT)), 1.4) == "its whole text"
    assert told(heard((2.5, RIGHT), refused=[(1.5, Refused("retry"))]), 1.4) == "retry, then its whole text"
    assert told(heard((1.2, GUESSED), refused=[(1.3, Refused("busy"))]), 1.4) == "nothing more"


def test_text_is_back_when_there_is_more_than_before_the_crash() -> None:
    assert after(heard((1.2, GUESSED), (1.5, GUESSED), (1.6, Shown("", False)), (2.5, RIGHT)), 1.4) == pytest.approx(
        [1.1]
    )


# ---------------------------------------------------------------- protocols


def test_asr_ws() -> None:
    wire = AsrWs()
    assert wire.opening() == ['{"type": "start", "language": "en"}']
    assert not wire.is_ready
    busy = {"type": "busy", "utterance": "u2", "reason": "queue_full", "retry_after_ms": 830, "held_ms": 60000}
    assert receive(
        wire,
        {"type": "ready"},
        {"type": "speech_started", "utterance": "u1"},
        {"type": "partial", "utterance": "u1", "stable": "Turn on", "unstable": " the kit"},
        {"type": "accepted", "utterance": "u1"},
        {"type": "speech_started", "utterance": "u2"},
        {"type": "final", "utterance": "u1", "text": "Turn on the kitchen lights."},
        busy,
        {"type": "final", "utterance": "u2", "text": "Please."},
    ) == [
        Shown("", False),
        Shown("Turn on the kit", False),
        Shown("Turn on the kit", False),
        Shown("Turn on the kitchen lights.", False),
        Refused("busy (queue_full), retry_after_ms 830"),
        Send('{"type": "retry", "utterance": "u2"}', 0.83),
        Shown("Turn on the kitchen lights. Please.", True),
    ]
    assert wire.is_ready
    assert receive(wire, {**busy, "utterance": None, "held_ms": 0}) == [
        Refused("busy (queue_full), retry_after_ms 830")
    ]


def test_asr_ws_is_told_where_an_utterance_ends_only_with_push_to_talk() -> None:
    assert AsrWs().stop() == []
    wire = AsrWs(push_to_talk=True)
    assert json.loads(wire.opening()[0])["endpointing"] == {"mode": "manual"}
    assert wire.stop() == ['{"type": "commit"}']


def test_whisper_live() -> None:
    wire = WhisperLive()
    assert wire.frame(struct.pack("<2h", 16384, -32768)) == struct.pack("<2f", 0.5, -1.0)
    one = {"start": "0.000", "end": "2.340", "text": " Turn on", "completed": True}
    assert receive(
        wire,
        {"uid": "peers", "message": "SERVER_READY", "backend": "faster_whisper"},
        {"uid": "peers", "segments": [one, {"start": "2.340", "end": "3.000", "text": " the", "completed": False}]},
        {"uid": "peers", "segments": [one]},
        {"uid": "peers", "status": "WAIT", "message": 5.0},
        {"uid": "peers", "message": "DISCONNECT"},
    ) == [Shown("Turn on the", False), Shown("Turn on", True), Refused("WAIT 5.0")]
    assert wire.is_ready


def test_whisper_live_kit() -> None:
    wire = WhisperLiveKit()
    line = {"speaker": 1, "text": " Turn on", "start": "0:00:00", "end": "0:00:02"}
    assert receive(
        wire,
        {"type": "config", "useAudioWorklet": True, "mode": "full"},
        {"status": "active_transcription", "lines": [line], "buffer_transcription": " the", "error": ""},
        {"status": "no_audio_detected", "lines": [line, {"speaker": -2, "text": None}], "buffer_transcription": ""},
        {"type": "ready_to_stop"},
    ) == [Shown("Turn on the", False), Shown("Turn on", True)]
    assert wire.is_ready


def test_stt_server() -> None:
    wire = SttServer()
    assert wire.frame(b"\1\2") == b'\x15\0\0\0{"sampleRate": 16000}\1\2'
    assert receive(
        wire,
        {"type": "vad_detect_start"},
        {"type": "realtime", "text": "Turn on the"},
        {"type": "transcription_start", "audio_bytes_base64": ""},
        {"type": "fullSentence", "text": "Turn on the lights."},
        {"type": "realtime", "text": "Please"},
    ) == [
        Shown("Turn on the", False),
        Shown("Turn on the lights.", True),
        Shown("Turn on the lights. Please", False),
    ]


@pytest.mark.parametrize("n_bytes", [1, 7, 1000])
def test_wyoming_however_it_is_cut(n_bytes: int) -> None:
    told = b'{"type": "transcript", "version": "1.10.2", "data_length": 14}\n{"text": "hi"}'
    told += b'{"type": "error", "data": {"text": "no"}}\n'
    pieces = [told[first : first + n_bytes] for first in range(0, len(told), n_bytes)]
    assert receive(Wyoming(), *pieces) == [Shown("hi", True), Refused("no")]


def test_wyoming_sends_a_line_and_the_samples() -> None:
    head, _, samples = Wyoming().frame(b"\1\2").partition(b"\n")
    assert samples == b"\1\2"
    assert json.loads(head) == {
        "type": "audio-chunk",
        "data": {"rate": 16000, "width": 2, "channels": 1},
        "payload_length": 2,
    }


@pytest.mark.parametrize("name", PEERS)
def test_every_command_can_be_filled_in(name: str) -> None:
    values = dict.fromkeys(("bin", "folder", "model", "port", "port2"), "x")
    filled = [each.format(**values) for each in (*PEERS[name].command, PEERS[name].address)]
    assert not any("{" in each for each in filled)


# ---------------------------------------------------------------- for people

SCENE = together([heard((2.5, RIGHT))], within_s=15)
RAN = {
    "differs": "beam 5",
    "versions": {"one": "1.2"},
    "environment_mb": 536,
    "one": one_by_one([heard((1.2, GUESSED), (2.5, RIGHT))]),
    "two": SCENE,
    "many": SCENE | {"refusal": {"words": "busy", "after": "speech", "ms": 640.0}, "late_ms": 120},
    "rss_mb": {"idle": 355, "after": 457},
    "others_cores": 0.1,
    "crash": {"saw": "its whole text", "back_s": 1.0, "alive": True},
}
GONE = RAN | {
    "many": SCENE,
    "one": one_by_one([heard((1.2, GUESSED))]),
    "crash": {"saw": "connection closed with 1006", "back_s": None, "alive": False},
    "others_cores": 1.4,
}
REPORT = {
    "settings": {"clients": 10, "rounds": 2},
    "peers": {"asr-ws": RAN, "other": GONE, "third": {"cannot": "not installed: no compiler"}},
}


def test_the_table() -> None:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(REPORT)]
    assert [cells[0], cells[2], cells[3]] == [
        [
            *("server", "final, ms", "of clips", "last change, ms", "first text, ms", "word errors, %", "flicker, %"),
            *("MB idle, after", "installed, MB"),
        ],
        ["asr-ws", "500", "1/1", "500", "700", "0.0", "20.0", "355, 457", "536"],
        ["other", "-", "0/1", "-800", "700", "25.0", "0.0", "355, 457", "536"],
    ]
    assert [row[-2:] for row in cells[7:9]] == [
        ["“busy”, 0.64 s after speech", "its whole text; back after 1.0 s"],
        ["nothing", "connection closed with 1006; gone"],
    ]
    assert cells[-6:] == [
        ["- Rounds: 2 (`--rounds`)."],
        ["- asr-ws 1.2: beam 5."],
        ["- other 1.2: beam 5."],
        ["- A frame was sent up to 120 ms late: a client had no core, or its server did not read."],
        ["- third cannot run here: not installed: no compiler"],
        ["- The machine was not quiet: other programs had up to 1.4 of its cores."],
    ]


def test_the_picture_has_a_bar_for_each_that_ran() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(12, 3))
    draw(figure, REPORT)
    figure.canvas.draw()
    left = figure.axes[0]
    assert [text.get_text() for text in left.get_yticklabels()] == ["other", "asr-ws"]
    assert [text.get_text().strip() for text in left.texts] == ["never", "0.50"]
