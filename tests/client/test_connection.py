"""One connection after the other of a recording; see tests/client/recorded.py for its notation."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from asr_ws import messages
from asr_ws.client.connection import PING_S, SILENT_S, STUCK_S, Connection, retry_delay_s
from asr_ws.client.events import Gap
from asr_ws.client.recording import Fate, Recording
from asr_ws.client.ring import AudioRing
from tests.client.recorded import (
    HEARING_MS,
    READY,
    START,
    STARTED,
    Scene,
    accepted,
    audio,
    busy,
    dropped,
    error,
    final,
    partial,
    speech,
)


def told(scene: Scene) -> list[tuple[Any, ...]]:
    """Of each utterance's events: the kind, the id, the attempt or the text, and where."""
    return [
        (
            type(event).__name__,
            getattr(event, "utterance", None),
            getattr(event, "attempt", getattr(event, "stable", getattr(event, "reason", None))),
            getattr(event, "audio_start_ms", None),
            getattr(event, "audio_end_ms", None),
        )
        for event in scene.events
        if not isinstance(event, messages.Ready | messages.Started)
    ]


@pytest.mark.parametrize(
    ("changes", "delay_s"),
    [
        ({}, 0.8),
        ({"reason": "starting"}, 4.0),
        ({"reason": "restarting", "estimated_wait_ms": 100}, 0.8),
        ({"reason": "unavailable", "estimated_wait_ms": 60_000}, 10.0),
        ({"reason": "starting", "held_ms": 3000}, 2.5),
    ],
)
def test_retry_waits_for_the_hint_or_the_load_within_the_hold(changes: dict[str, Any], delay_s: float) -> None:
    assert retry_delay_s(busy("u1", **changes), jitter_s=0) == delay_s
    assert retry_delay_s(busy("u1", **{"held_ms": 60_000, **changes}), jitter_s=0.1) >= delay_s


# ---------------------------------------------------------------- what is sent


@pytest.mark.parametrize("step", [None, 1, 3, 1000])
def test_start_goes_first_and_audio_follows_however_it_was_cut(step: int | None) -> None:
    scene = Scene().connect()
    scene.record(1500, step)
    assert scene.log == ["start", (0, 1500)]


def test_no_more_goes_than_the_server_has_not_said_to_have_taken() -> None:
    scene = Scene().connect()
    scene.is_mute = True
    scene.record(5000)
    assert scene.log == ["start", (0, 1000)]
    assert not scene.connection.has_room
    scene.pong()
    assert scene.log == ["start", (0, 2000)]
    scene.is_mute = False
    scene.pong()
    assert scene.log == ["start", (0, 5000)]
    assert scene.connection.has_room


def test_a_commit_goes_where_it_was_said_and_nothing_before_its_outcome() -> None:
    scene = Scene().connect()
    scene.record(300)
    scene.is_mute = True
    scene.commit("c1")
    scene.record(200)
    assert scene.log == ["start", (0, 300), "commit c1"]
    scene.pong()
    assert scene.log == ["start", (0, 300), "commit c1", (300, 500)]


def test_end_goes_after_all_the_rest_and_half_a_frame_before_it() -> None:
    scene = Scene().connect()
    scene.is_mute = True
    scene.record(1200)
    scene.recording.ring.append(b"\x07")
    scene.commit()
    scene.end()
    assert scene.log == ["start", (0, 1000)]
    scene.is_mute = False
    scene.pong()
    assert scene.log == ["start", (0, 1200), "commit None", b"\x07", "end"]
    scene.pump()
    assert scene.log[-1] == "end"


def test_a_server_that_does_not_answer_is_dead_and_one_that_was_not_asked_is_not() -> None:
    scene = Scene().connect()
    scene.is_mute = True
    scene.wait(PING_S)
    assert scene.connection.due_at() == PING_S + min(PING_S, SILENT_S)
    scene.wait(SILENT_S)
    assert not scene.connection.is_dead(now=scene.now)
    assert scene.connection.is_dead(now=scene.now + 0.001)
    scene.tell(STARTED)
    assert not scene.connection.is_dead(now=scene.now + 0.001)


def test_a_server_that_says_much_and_takes_nothing_is_dead_too() -> None:
    """Regression: it was waited for as long as it said anything."""
    scene = Scene().connect()
    scene.is_mute = True
    scene.record(5000)
    scene.wait(STUCK_S - 0.1)
    scene.tell(STARTED, messages.Pong(id="another"))
    assert scene.log[1:] == [(0, 1000)]
    assert not scene.connection.is_dead(now=STUCK_S)
    assert scene.connection.due_at() == STUCK_S
    assert scene.connection.is_dead(now=STUCK_S + 0.001)


@pytest.mark.parametrize(
    "events", [(error("internal", fatal=True),), (speech("u1", 0), busy("u1", held_ms=0, retryable=False))]
)
def test_a_server_that_answers_pings_and_not_what_it_has_to_is_dead_too(events: tuple[Any, ...]) -> None:
    """Regression: the close behind a fatal error, or what follows a refusal for good, was waited for without end."""
    scene = Scene().connect()
    scene.record(1000)
    scene.wait(1.0)
    scene.tell(*events)
    for _ in range(int(STUCK_S / PING_S)):
        scene.wait(PING_S)
        scene.tell(*events)
    assert not scene.connection.is_dead(now=scene.now - 0.001)
    assert scene.connection.due_at() == 1.0 + STUCK_S
    assert scene.connection.is_dead(now=1.0 + STUCK_S + 0.001)
    assert scene.connection.good_until == 1.0


def test_a_connection_was_good_until_its_last_answer() -> None:
    scene = Scene().connect()
    scene.wait(PING_S)
    scene.is_mute = True
    scene.wait(PING_S)
    scene.tell(STARTED)
    assert scene.connection.good_until == PING_S


# ---------------------------------------------------------------- refusals


def test_a_refused_utterance_is_offered_again_after_the_hint() -> None:
    scene = Scene().connect()
    scene.record(1000)
    scene.tell(speech("u1", 0), busy("u1"))
    assert not scene.connection.has_room
    scene.wait(0.5)
    assert "retry u1" not in scene.log
    assert scene.connection.due_at() == 0.8
    scene.wait(0.3)
    assert scene.log[-1] == "retry u1"
    scene.tell(accepted("u1", 0, 900, attempt=2), final("u1", 0, 900, attempt=2))
    assert scene.connection.has_room
    assert scene.unsettled == [(900, 1000)]


def test_the_one_that_was_said_first_is_offered_first() -> None:
    scene = Scene().connect()
    scene.record(2000)
    scene.tell(speech("u1", 0), busy("u1", retry_after_ms=1500), speech("u2", 1000), busy("u2", retry_after_ms=500))
    scene.wait(1.0)
    assert [each for each in scene.log if "retry" in each] == []
    scene.wait(0.5)
    assert [each for each in scene.log if "retry" in each] == ["retry u1"]
    assert scene.connection.due_at() > scene.now  # nothing to do until that one is answered
    scene.tell(accepted("u1", 0, 900, attempt=2))
    assert [each for each in scene.log if "retry" in each] == ["retry u1", "retry u2"]


def test_what_the_server_might_not_keep_stays_here() -> None:
    scene = Scene().connect()
    scene.record(2000)
    scene.tell(speech("u1", 0), busy("u1"), speech("u2", 1000), busy("u2"))
    scene.record(500)
    scene.commit("c")
    assert scene.log[-1] == (0, 2000)
    scene.tell(accepted("u1", 0, 900, attempt=2), final("u1", 0, 900, attempt=2))
    assert scene.log[-2:] == [(0, 2500), "commit c"]


def test_what_the_server_dropped_by_itself_is_owed_and_its_user_is_not_told() -> None:
    scene = Scene().connect()
    scene.record(2000)
    scene.tell(speech("u1", 100), busy("u1", held_ms=0), dropped("u1", 100, 900, "not_held"))
    assert scene.connection.owed_now() == [(100, 900)]
    scene.lose().connect()
    assert scene.log == ["start", (100, 2000)]
    scene.tell(speech("u1", 0), accepted("u1", 0, 800), final("u1", 0, 800))
    assert told(scene) == [
        ("SpeechStarted", "u1", None, 100, None),
        ("Busy", "u1", 1, None, None),
        ("Accepted", "u1", 2, 100, 900),
        ("Final", "u1", 2, 100, 900),
    ]


# ---------------------------------------------------------------- what has its outcome


def test_silence_is_settled_when_speech_would_have_been_told() -> None:
    scene = Scene().connect()
    scene.record(HEARING_MS + 1000)
    assert scene.unsettled[0][0] == 500 * ((HEARING_MS + 1000) // 500) - HEARING_MS


def test_only_what_has_no_outcome_is_sent_again_with_a_commit_between() -> None:
    scene = Scene().connect()
    scene.record(6000)
    scene.tell(speech("u1", 1000), accepted("u1", 1000, 2000))
    scene.tell(speech("u2", 3000), accepted("u2", 3000, 4000), final("u2", 3000, 4000))
    scene.tell(speech("u3", 5000))
    scene.lose().connect()
    assert scene.log == ["start", (1000, 2000), "commit own", (5000, 6000)]


def test_ids_attempts_and_times_run_on() -> None:
    scene = Scene().connect()
    scene.record(6000)
    scene.tell(speech("u1", 1000), accepted("u1", 1000, 2000), speech("u2", 5000), partial("u2", "Say", 5500))
    scene.lose(delay_s=2.5).connect()
    scene.record(1000)
    scene.tell(
        speech("u1", 0),
        partial("u1", "Well", 500),
        accepted("u1", 0, 1000, commit="asr_ws.client"),
        speech("u2", 1000),
        partial("u2", "S", 1200),
        partial("u2", "Say it", 2500),
        final(
            "u1",
            0,
            1000,
            segments=[messages.FinalSegment("Well.", 100, 1000, 0.0, 0.0)],
            words=[messages.FinalWord("Well.", 100, 900, 1.0)],
        ),
        accepted("u2", 1000, 2900),
        final("u2", 1000, 2900),
        speech("u3", 2950),
    )
    assert told(scene) == [
        ("SpeechStarted", "u1", None, 1000, None),
        ("Accepted", "u1", 1, 1000, 2000),
        ("SpeechStarted", "u2", None, 5000, None),
        ("Partial", "u2", "Say", None, 5500),
        ("Retry", "u1", 1, None, None),
        ("Accepted", "u1", 2, 1000, 2000),
        ("Partial", "u2", "Say it", None, 6500),
        ("Final", "u1", 2, 1000, 2000),
        ("Accepted", "u2", 1, 5000, 6900),
        ("Final", "u2", 1, 5000, 6900),
        ("SpeechStarted", "u3", None, 6950, None),
    ]
    [lost] = scene.of(messages.Retry)
    assert (lost.reason, lost.retry_after_ms, lost.estimated_wait_ms) == ("connection_lost", 1500, 2500)
    first, _ = scene.of(messages.Final)
    assert (first.segments[0].start_ms, first.segments[0].end_ms, first.words[0].end_ms) == (1100, 2000, 1900)
    again = [each for each in scene.of(messages.Accepted) if each.attempt == 2]
    assert again[0].commit is None
    assert [event.seq for event in scene.events if not isinstance(event, messages.Ready)] == list(range(1, 13))


def test_a_commit_is_said_again_where_it_was_said() -> None:
    scene = Scene().connect()
    scene.record(1000)
    scene.commit("c1")
    scene.record(500)
    scene.lose().connect()
    assert scene.log == ["start", (0, 1000), "commit c1", (1000, 1500)]
    scene.tell(speech("u1", 0), accepted("u1", 0, 1000, commit="c1", endpoint="commit"), final("u1", 0, 1000))
    assert [each.commit for each in scene.of(messages.Accepted)] == ["c1"]
    scene.lose().connect()
    assert scene.log == ["start", (1000, 1500)]


def test_commits_before_all_that_has_no_outcome_are_forgotten() -> None:
    """Regression: they were kept as long as the session was."""
    scene = Scene().connect()
    for start in range(0, 10_000, 100):
        scene.record(100)
        scene.commit(f"c{start}")
        scene.tell(speech(f"u{start}", start), accepted(f"u{start}", start, start + 100))
        scene.tell(final(f"u{start}", start, start + 100))
    assert [mark.at for mark in scene.recording.marks] == [9900, 10_000]


def test_a_commit_behind_what_has_no_outcome_is_not_forgotten() -> None:
    scene = Scene().connect()
    scene.record(100)
    scene.commit("c0")
    scene.tell(speech("u0", 0), accepted("u0", 0, 100))
    for start in range(100, 1000, 100):
        scene.record(100)
        scene.commit(f"c{start}")
        scene.tell(speech(f"u{start}", start), accepted(f"u{start}", start, start + 100))
        scene.tell(final(f"u{start}", start, start + 100))
    scene.lose().connect()
    assert scene.log == ["start", (0, 100), "commit c0"]


def test_what_two_pieces_would_join_is_not_told_of_the_commit_between_them() -> None:
    scene = Scene().connect()
    scene.record(5000)
    scene.tell(speech("u1", 1000), accepted("u1", 1000, 2000), speech("u2", 3000), accepted("u2", 3000, 4000))
    scene.tell(final("u2", 3000, 4000))
    scene.lose().connect()
    assert scene.log[:3] == ["start", (1000, 2000), "commit own"]
    scene.tell(error("nothing_to_commit", commit="asr_ws.client"), error("nothing_to_commit", commit="c7"))
    assert [each.commit for each in scene.of(messages.Error)] == ["c7"]


def test_two_that_are_heard_as_one_have_an_outcome_each() -> None:
    scene = Scene().connect()
    scene.record(5000)
    scene.tell(speech("u1", 0), accepted("u1", 0, 2000), speech("u2", 2000), accepted("u2", 2000, 4000))
    scene.lose().connect()
    scene.tell(speech("u1", 0), accepted("u1", 0, 4100), final("u1", 0, 4100))
    assert told(scene)[-2:] == [("Final", "u1", 2, 0, 4100), ("Dropped", "u2", "not_held", 4000, 4000)]


def test_what_is_not_heard_again_as_speech_has_an_outcome_all_the_same() -> None:
    scene = Scene().connect()
    scene.record(1000)
    scene.tell(speech("u1", 200))
    scene.lose().connect()
    scene.record(HEARING_MS + 1000)
    assert told(scene)[-1] == ("Dropped", "u1", "not_held", 1000, 1000)


def test_an_utterance_lies_in_the_piece_in_which_it_ends() -> None:
    """Regression: with a pre-roll from the piece before, it took all that was settled between them once more."""
    scene = Scene()
    scene.recording.ring.append(audio(0, 9000))
    scene.recording.ring.settle(0, 1000)
    scene.recording.ring.settle(1400, 5000)
    scene.connect()
    assert scene.log == ["start", (1000, 1400), "commit own", (5000, 9000)]
    scene.tell(speech("u1", 300), partial("u1", "So", 1000), accepted("u1", 300, 2400), final("u1", 300, 2400))
    assert told(scene) == [
        ("SpeechStarted", "u1", None, 5000, None),
        ("Partial", "u1", "So", None, 5600),
        ("Accepted", "u1", 1, 5000, 7000),
        ("Final", "u1", 1, 5000, 7000),
    ]


def test_scraps_between_outcomes_are_not_sent_again() -> None:
    scene = Scene().connect()
    scene.record(3000)
    scene.tell(speech("u1", 0), accepted("u1", 0, 1000), final("u1", 0, 1000))
    scene.tell(speech("u2", 1050), accepted("u2", 1099, 2000), final("u2", 1099, 2000))
    scene.lose().connect()
    assert scene.log == ["start", (2000, 3000)]


def test_a_short_utterance_that_was_interrupted_is_heard_again() -> None:
    """Regression: what is shorter than a syllable was taken for a scrap, though its user had been told of it."""
    scene = Scene().connect()
    scene.record(3000)
    scene.tell(speech("u1", 0), accepted("u1", 0, 1000), final("u1", 0, 1000))
    scene.tell(speech("u2", 1000), busy("u2"), speech("u3", 1090), accepted("u3", 1090, 2000), final("u3", 1090, 2000))
    scene.lose().connect()
    assert scene.log[:3] == ["start", (1000, 1090), "commit own"]


def test_what_is_shorter_than_times_are_exact_is_sent_again_too() -> None:
    """Regression: it was taken for what is left of an utterance that was heard as part of another one."""
    scene = Scene().connect()
    scene.record(10)
    scene.tell(speech("u1", 0), busy("u1", held_ms=0), dropped("u1", 0, 10, "not_held"))
    scene.record(1000)
    scene.tell(speech("u2", 10), accepted("u2", 10, 1010), final("u2", 10, 1010))
    assert scene.of(messages.Dropped) == []
    scene.lose().connect()
    assert scene.log == ["start", (0, 10), "commit own"]


def test_in_manual_mode_an_utterance_of_any_length_is_where_it_begins() -> None:
    scene = Scene()
    scene.recording.ring.append(audio(0, 3000))
    scene.recording.ring.settle(120, 2000)
    manual = messages.EndpointingInForce(mode="manual", silence_ms=5000, min_speech_ms=150)
    scene.connection = Connection(scene.recording, START, now=0.0)
    scene.tell(READY, msgspec.structs.replace(STARTED, endpointing=manual))
    scene.tell(speech("u1", 0), accepted("u1", 0, 120))
    assert [each.audio_start_ms for each in scene.of(messages.SpeechStarted, messages.Accepted)] == [0, 0]


def test_a_short_utterance_that_was_committed_lies_before_a_jump() -> None:
    """Regression: it was taken to begin in the piece that had not been sent yet."""
    scene = Scene()
    scene.recording.ring.append(audio(0, 3000))
    scene.recording.ring.settle(120, 2000)
    scene.is_mute = True
    scene.connect()
    assert scene.log == ["start", (0, 120), "commit own"]
    scene.tell(speech("u1", 20), accepted("u1", 20, 120))
    assert [each.audio_start_ms for each in scene.of(messages.SpeechStarted, messages.Accepted)] == [20, 20]


def test_times_do_not_run_backwards() -> None:
    scene = Scene().connect()
    scene.is_mute = True
    scene.record(1500)
    scene.cancel()
    scene.record(1)
    scene.is_mute = False
    scene.pong()
    scene.tell(speech("u1", 1000), accepted("u1", 1000, 1001), final("u1", 1000, 1001))
    assert all(each.audio_start_ms <= each.audio_end_ms for each in scene.of(messages.Accepted, messages.Final))


def test_a_service_that_is_well_again_is_told() -> None:
    scene = Scene().connect()
    scene.tell(messages.State(state="draining", partials="on", seq=2))
    scene.lose().connect()
    assert [each.state for each in scene.of(messages.State)] == ["draining", "ready"]


@pytest.mark.parametrize("code", ["decode_failed", "poison_audio"])
def test_an_error_that_ends_an_utterance_settles_it(code: str) -> None:
    scene = Scene().connect()
    scene.record(1000)
    scene.tell(speech("u1", 100), accepted("u1", 100, 900), error(code, utterance="u1"))
    assert scene.unsettled == [(900, 1000)]
    assert scene.connection.error is None


def test_an_error_before_the_settings_are_in_force_ends_the_session() -> None:
    scene = Scene().connect()
    scene.tell(error("invalid_samples"))
    assert scene.connection.error is None
    connection = Connection(scene.recording, START, now=0.0)
    refused = error("bad_message")
    assert [connection.receive(event, now=0.0) for event in (READY, refused)] == [[], [refused]]
    assert connection.error == refused


def test_an_error_tells_of_the_utterance_by_the_name_that_its_user_knows() -> None:
    scene = Scene().connect()
    scene.record(3000)
    scene.tell(speech("u1", 0), accepted("u1", 0, 900), final("u1", 0, 900), speech("u2", 1000))
    scene.lose().connect()
    scene.tell(speech("u1", 0), error("unknown_utterance", utterance="u1"), error("unknown_utterance", utterance="u9"))
    assert [each.utterance for each in scene.of(messages.Error)] == ["u2", None]


def test_an_event_of_a_newer_server_tells_of_the_utterance_by_the_name_that_its_user_knows() -> None:
    scene = Scene().connect()
    scene.record(3000)
    scene.tell(speech("u1", 0), accepted("u1", 0, 900), final("u1", 0, 900), speech("u2", 1000))
    scene.lose().connect()
    scene.tell(speech("u1", 0))
    for utterance in ("u1", "u9", ["u1"]):
        scene.tell(messages.Unknown("diarized", {"seq": 3, "utterance": utterance, "speaker": 1}))
    told = [{"seq": seq, "utterance": id, "speaker": 1} for seq, id in ((6, "u2"), (7, None), (8, None))]
    assert [each.fields for each in scene.of(messages.Unknown)] == told


# ---------------------------------------------------------------- cancelled


def test_a_commit_behind_what_was_cancelled_keeps_its_name() -> None:
    scene = Scene().connect()
    scene.is_mute = True
    scene.record(1500)
    scene.cancel()
    scene.commit("c1")
    scene.is_mute = False
    scene.pong()
    assert scene.log == ["start", (0, 1000), "cancel None", "commit c1"]


def test_what_is_cancelled_is_not_sent_again() -> None:
    scene = Scene().connect()
    scene.record(3000)
    scene.tell(speech("u1", 500), accepted("u1", 500, 1500), speech("u2", 2000))
    scene.cancel()
    assert scene.log[-1] == "cancel None"
    scene.record(500)
    scene.lose().connect()
    assert scene.log == ["start", (3000, 3500)]
    assert told(scene)[3:] == [("Dropped", "u1", "cancelled", 500, 1500), ("Dropped", "u2", "cancelled", 2000, 3000)]


def test_one_is_cancelled_by_the_name_that_its_user_knows() -> None:
    scene = Scene().connect()
    scene.record(3000)
    scene.tell(speech("u1", 0), accepted("u1", 0, 900), final("u1", 0, 900), speech("u2", 1000))
    scene.lose().connect()
    scene.tell(speech("u1", 100))
    scene.cancel("u2")
    assert scene.log[-1] == "cancel u1"
    scene.tell(dropped("u1", 100, 2000))
    assert told(scene)[-1] == ("Dropped", "u2", "cancelled", 1100, 3000)


def test_one_that_is_cancelled_before_it_is_heard_again_is_cancelled_when_it_is() -> None:
    """Regression: it was decoded all the same, or dropped with an end before its beginning."""
    scene = Scene().connect()
    scene.record(1000)
    scene.tell(speech("u1", 100))
    scene.lose().connect()
    scene.cancel("u1")
    scene.record(500)
    scene.tell(speech("u1", 0))
    assert scene.log == ["start", (100, 1500), "cancel u1"]
    scene.record(200)
    scene.lose().connect()
    assert told(scene)[-1] == ("Dropped", "u1", "cancelled", 100, 1500)
    assert scene.log == ["start", (1500, 1700)]


def test_what_is_cancelled_twice_ends_where_it_was_cancelled_first() -> None:
    """Regression: it took what was never sent, since that was cancelled too."""
    scene = Scene().connect()
    scene.is_mute = True
    scene.record(500)
    scene.commit()
    scene.record(30)
    scene.cancel()
    scene.cancel()
    scene.tell(speech("u1", 0))
    scene.lose()
    assert told(scene)[-1] == ("Dropped", "u1", "cancelled", 0, 500)


def test_what_begins_behind_a_cancel_is_not_cancelled_though_its_time_is_rounded_down() -> None:
    """Regression: up to the cut it counted as cancelled, and what was said of it was not sent again."""
    scene = Scene().connect()
    scene.record(101)
    scene.tell(speech("u1", 0))
    scene.cancel()
    scene.tell(dropped("u1", 0, 101))
    scene.record(2000)
    scene.tell(speech("u2", 100))
    scene.lose().connect()
    assert scene.log == ["start", (101, 2101)]
    scene.tell(speech("u1", 0), accepted("u1", 0, 2000), final("u1", 0, 2000))
    assert told(scene)[1:] == [
        ("Dropped", "u1", "cancelled", 0, 101),
        ("SpeechStarted", "u2", None, 100, None),
        ("Accepted", "u2", 1, 101, 2101),
        ("Final", "u2", 1, 101, 2101),
    ]


def test_cancels_before_all_that_has_no_outcome_are_forgotten() -> None:
    """Regression: they were kept as long as the connection was."""
    scene = Scene().connect()
    for n in range(100):
        scene.record(100)
        scene.tell(speech(f"u{n}", n * 100))
        scene.cancel()
        scene.tell(dropped(f"u{n}", n * 100, n * 100 + 100))
    assert scene.connection._cancels == [9900, 10_000]


def test_what_is_cancelled_while_the_connection_is_away_is_told_at_once() -> None:
    scene = Scene().connect()
    scene.record(3000)
    scene.tell(speech("u1", 0), accepted("u1", 0, 900), speech("u2", 1000))
    scene.lose()
    scene._keep(scene.recording.cancel("u1"))
    assert told(scene)[-1] == ("Dropped", "u1", "cancelled", 0, 900)
    scene._keep(scene.recording.cancel(None))
    assert told(scene)[-1] == ("Dropped", "u2", "cancelled", 1000, 3000)
    assert scene.unsettled == []


# ---------------------------------------------------------------- lost


def test_what_the_ring_could_not_keep_is_told_once() -> None:
    scene = Scene(ring_s=10).connect()
    scene.is_mute = True
    scene.record(20_000, step=5000)
    spans = [(gap.audio_start_ms, gap.audio_end_ms) for gap in scene.of(Gap)]
    assert spans == [(1000, 2500), (2500, 5000), (5000, 7500), (7500, 10_000)]
    scene.is_mute = False
    scene.pong()
    assert scene.log == ["start", (0, 1000), "commit own", (10_000, 20_000)]
    assert scene.of(Gap)[4:] == []


def test_an_utterance_that_the_ring_could_not_keep_is_dropped() -> None:
    scene = Scene(ring_s=10).connect()
    scene.record(5000)
    scene.tell(speech("u1", 100), accepted("u1", 100, 900))
    scene.lose()
    for at in range(5000, 20_000, 5000):
        scene.recording.ring.append(audio(at, at + 5000))
    scene.connect()
    assert told(scene)[-2:] == [("Dropped", "u1", "evicted", 100, 900), ("Gap", None, None, 900, 10_000)]


def test_the_account_is_of_all_connections() -> None:
    scene = Scene().connect()
    scene.record(5000)
    scene.tell(speech("u1", 0), accepted("u1", 0, 900), final("u1", 0, 900), speech("u2", 2000))
    scene.lose().connect()
    scene.end()
    scene.tell(speech("u1", 1100), accepted("u1", 1100, 2100), error("decode_failed", utterance="u1"))
    done = messages.Done(4100, 0, 3100, 1000, 0, 0, 0, 0, 0, 1, seq=9)
    scene.tell(done)
    assert scene.recording.number(done) == messages.Done(5000, 900, 3100, 1000, 0, 1, 0, 0, 0, 1, seq=8)


def test_the_account_adds_up_however_it_is_rounded() -> None:
    """Regression: two halves of a millisecond were one more than there was, and silence one less than none."""
    recording = Recording(AudioRing(100_000, 2), 16_000)
    recording.n_connections = 2
    recording.ring.append(bytes(2 * 32_020))
    recording.settle(0, 16_010, Fate.DECODED)
    recording.settle(16_010, 32_020, Fate.REFUSED)
    done = messages.Done(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, seq=1)
    assert recording.number(done) == messages.Done(2001, 1001, 0, 1000, 0, 0, 0, 0, 0, 0, seq=1)
