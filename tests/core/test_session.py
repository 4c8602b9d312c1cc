"""What a session decides, event by event. Manual endpointing unless a test is about the detector.

At the desk of these tests one utterance may wait, a decode is expected to take 0.5 s and takes 0.5 s, and hints have no
jitter. A desk that is REFUSED with 0.8 s to go refuses everything with a hint of 800 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from asr_ws.core.holds import Holds
from asr_ws.core.session import Close, Service, Session
from asr_ws.core.types import (
    Decoded,
    DecodeOptions,
    Detector,
    EndpointReason,
    Failed,
    Hypothesis,
    RefusalReason,
    Released,
    Resampler,
    Samples,
    Segment,
    ServiceState,
    ServiceStatus,
    SessionId,
    Shed,
    Unfinished,
    Utterance,
    Word,
)
from asr_ws.errors import DecodeFailed, ProtocolError, WorkerDied
from asr_ws.messages import (
    Accepted,
    AudioFormat,
    Busy,
    Cancel,
    Commit,
    Done,
    Dropped,
    End,
    Endpointing,
    Error,
    Final,
    FinalSegment,
    FinalWord,
    Limits,
    Partial,
    Ping,
    Pong,
    Ready,
    Retry,
    RetryUtterance,
    ServerEvent,
    SpeechStarted,
    Start,
    Started,
    State,
)
from asr_ws.resampler import AvResampler
from asr_ws.testing import ScriptedDetector
from asr_ws.testing.desk import DeskClient, ScriptedDesk, Step, says

LIMITS = Limits(1, 8000, 30_000, 262_144, 64, 60_000)
MANUAL = Endpointing(mode="manual")
WINDOW = 512  # samples


class RepeatingResampler:
    """8 -> 16 kHz by saying every sample twice, and holds back the last pair. Unrealistic: it aliases."""

    def __init__(self, rate: int) -> None:
        assert rate == 8000
        self._held: Samples = np.empty(0, np.float32)

    def feed(self, samples: Samples) -> Samples:
        ready = np.concatenate((self._held, np.repeat(samples, 2)))
        self._held = ready[len(ready) - 2 :]
        return ready[: len(ready) - 2]

    def flush(self) -> Samples:
        return self._held


def open_client(
    desk: ScriptedDesk,
    id: str = "s-1",
    languages: tuple[str, ...] = ("en",),
    make_detector: Callable[[], Detector] = ScriptedDetector,
    make_resampler: Callable[[int], Resampler] = RepeatingResampler,
) -> DeskClient:
    service = Service("0.1.0", "tiny.en", languages, LIMITS, partials=desk.drafts.partials, speculation=True)
    return DeskClient(desk, Session(SessionId(id), service, desk, make_detector, make_resampler))


def started_client(
    desk: ScriptedDesk, *, endpointing: Endpointing = MANUAL, id: str = "s-1", **start: Any
) -> DeskClient:
    client = open_client(desk, id)
    client.send(Start(endpointing=endpointing, **start))
    assert [event.__struct_config__.tag for event in client.take()] == ["ready", "started"]
    return client


def speak(client: DeskClient, *, ms: int = 1000, commit: str | None = None) -> None:
    """One committed utterance."""
    client.send(bytes(ms * 32))
    client.send(Commit(id=commit))


def starting_desk(**changes: Any) -> ScriptedDesk:
    return ScriptedDesk(1, state=ServiceState.STARTING, load_s=0.8, **changes)


def quiet(n_windows: float) -> bytes:
    return bytes(int(n_windows * WINDOW) * 2)


def loud(n_windows: float) -> bytes:
    return np.full(int(n_windows * WINDOW), 29_491, "<i2").tobytes()


def f32(*values: float) -> bytes:
    """10 ms of each."""
    return np.repeat(np.array(values, "<f4"), 160).tobytes()


# What these tests expect most, to be changed by `where`.

STARTED = Started(
    seq=1,
    audio=AudioFormat(),
    language="en",
    task="transcribe",
    partials=False,
    words=False,
    endpointing=MANUAL,
    max_wait_ms=8000,
)
ACCEPTED = Accepted(
    utterance="u1",
    attempt=1,
    commit=None,
    position=0,
    estimated_wait_ms=0,
    estimated_final_ms=500,
    audio_start_ms=0,
    audio_end_ms=1000,
    endpoint="commit",
)
FINAL = Final(
    utterance="u1",
    attempt=1,
    text="u1",
    language="en",
    language_probability=1.0,
    audio_start_ms=0,
    audio_end_ms=1000,
    wait_ms=0,
    decode_ms=500,
    segments=[FinalSegment("u1", 0, 1000, -0.25, 0.0625)],
)
REFUSED = Busy(
    utterance="u1",
    attempt=1,
    commit=None,
    status=503,
    reason="starting",
    retry_after_ms=800,
    estimated_wait_ms=800,
    queue_depth=0,
    queue_capacity=1,
    retryable=True,
    held_ms=60_000,
)
DROPPED = Dropped(utterance="u1", reason="cancelled", audio_start_ms=0, audio_end_ms=1000)
DONE = Done(
    received_ms=1000,
    decoded_ms=0,
    silence_ms=0,
    refused_ms=1000,
    lost_ms=0,
    finals=0,
    busy=0,
    retries=0,
    dropped=0,
    errors=0,
)


def where(event: ServerEvent, seq: int, **changes: Any) -> ServerEvent:
    return msgspec.structs.replace(event, seq=seq, **changes)


def speech_started(seq: int, utterance: str = "u1", audio_start_ms: int = 0) -> SpeechStarted:
    return SpeechStarted(seq=seq, utterance=utterance, audio_start_ms=audio_start_ms)


ONLY_REFUSED = "only what was refused is offered again"
HINTS = {
    "nothing_to_commit": "the endpointer may have been first: see the last accepted",
    "unknown_utterance": "it has had its outcome",
    "decode_failed": "the server's log may say more; other utterances are not affected",
    "poison_audio": "do not send this audio again",
}


def error(seq: int, code: str, message: str, hint: str | None = None, fatal: bool = False, **about: Any) -> Error:
    hint = HINTS[code] if hint is None else hint
    return Error(seq=seq, code=code, message=message, hint=hint, fatal=fatal, **about)


# ---------------------------------------------------------------- open, start


def test_ready_is_sent_on_open_and_has_no_seq() -> None:
    client = open_client(ScriptedDesk(1))
    assert client.take() == [
        Ready(
            protocol="asr-ws.v1",
            session="s-1",
            server="0.1.0",
            model="tiny.en",
            languages=["en"],
            state="ready",
            limits=LIMITS,
        )
    ]


def test_started_tells_the_defaults_in_force() -> None:
    client = open_client(ScriptedDesk(1))
    client.send('{"type":"start"}')
    assert client.take()[1:] == [where(STARTED, 1, endpointing=Endpointing())]


def test_started_tells_what_was_asked() -> None:
    client = open_client(ScriptedDesk(1), languages=("de", "en"))
    audio = AudioFormat("pcm_f32le", 8000, 2)
    endpointing = Endpointing(silence_ms=100)
    client.send(Start(audio=audio, language="de", task="translate", words=True, endpointing=endpointing, max_wait_ms=0))
    expected = where(
        STARTED, 1, audio=audio, language="de", task="translate", words=True, endpointing=endpointing, max_wait_ms=0
    )
    assert client.take()[1:] == [expected]


@pytest.mark.parametrize(("languages", "language"), [(("en",), "en"), (("de", "en"), None)])
def test_null_language_is_detected_unless_the_model_knows_but_one(
    languages: tuple[str, ...], language: str | None
) -> None:
    desk = ScriptedDesk(1)
    client = open_client(desk, languages=languages)
    client.send(Start(endpointing=MANUAL, prompt="P", hotwords="H"))
    speak(client)
    assert client.take()[1] == where(STARTED, 1, language=language)
    desk.advance(0)
    assert desk.decodings[0].utterance.options == DecodeOptions(language, "transcribe", "P", "H", words=False)


ONCE = ("unexpected_message", "start must come first, and once", "open a new session instead")


@pytest.mark.parametrize("first", [Start(), Commit(), Cancel(), RetryUtterance("u1"), b"\0\0", b""])
def test_start_is_refused_after_anything_but_a_ping(first: Any) -> None:
    client = open_client(ScriptedDesk(1))
    client.send(first)
    n_before = len(client.take()) - 1
    client.send(Start())
    assert client.take() == [error(n_before + 1, *ONCE)]
    assert client.session.close is None


def test_start_may_follow_a_ping_or_a_start_that_was_refused() -> None:
    client = open_client(ScriptedDesk(1))
    client.send(Ping(id=7))
    client.send('{"type":"start","max_wait_ms":8001}')
    client.send(Start(endpointing=MANUAL, max_wait_ms=8000))
    assert client.take()[1:] == [
        Pong(seq=1, id=7),
        error(2, "bad_message", "Expected `int` <= 8000 - at `$.max_wait_ms`", "see ready.limits"),
        where(STARTED, 3),
    ]


@pytest.mark.parametrize(
    ("start", "code", "message", "hint"),
    [
        (
            '{"type":"start","audio":{"encoding":"opus"}}',
            "unsupported_format",
            "audio.encoding is 'opus'",
            "send pcm_s16le or pcm_f32le",
        ),
        (
            '{"type":"start","audio":{"sample_rate":7999}}',
            "unsupported_format",
            "audio.sample_rate is 7999",
            "send 8000..192000",
        ),
        ('{"type":"start","audio":{"channels":3}}', "unsupported_format", "audio.channels is 3", "send 1..2"),
        (
            '{"type":"start","language":"de"}',
            "unsupported_language",
            "this model does not know 'de'",
            "it knows en",
        ),
        (
            '{"type":"start","task":"translate"}',
            "unsupported_language",
            "an English-only model cannot translate",
            "serve a multilingual model",
        ),
    ],
)
def test_unsupported_start_closes_the_session(start: str, code: str, message: str, hint: str) -> None:
    client = open_client(ScriptedDesk(1))
    client.send(start)
    assert client.take()[1:] == [error(1, code, message, hint, fatal=True)]
    assert client.session.close == Close(1008, code)
    client.send(b"\0\0")
    client.send(Ping())
    assert client.take() == []


def test_prompt_too_long_is_a_bad_message() -> None:
    client = open_client(ScriptedDesk(1))
    client.send(Start(prompt="p" * 700, hotwords="h" * 101))
    message = "prompt and hotwords are 801 characters together - at `$.prompt`"
    assert client.take()[1:] == [error(1, "bad_message", message, "send at most 800")]
    assert client.session.close is None


def test_audio_needs_no_start() -> None:
    client = open_client(ScriptedDesk(1))
    client.send(loud(20))
    client.send(Commit())
    assert client.take()[1:] == [speech_started(1), where(ACCEPTED, 2, audio_end_ms=640)]


# ---------------------------------------------------------------- messages that break the rules


def test_third_bad_message_is_fatal() -> None:
    client = started_client(ScriptedDesk(1))
    for _ in range(4):
        client.send("{}")
    bad = ("bad_message", "Object missing required field `type`", "see docs/reference/protocol.md for the fields")
    assert client.take() == [error(2, *bad), error(3, *bad), error(4, *bad, fatal=True)]
    assert client.session.close == Close(1008, "bad_message")


def test_only_bad_messages_count_towards_the_third() -> None:
    client = started_client(ScriptedDesk(1))
    for text in ("{}", '{"type":"start"}', '{"type":"commit"}', '{"type":"retry","utterance":"u1"}', "{}"):
        client.send(text)
    assert [event.fatal for event in client.take() if isinstance(event, Error)] == [False] * 5
    assert client.session.close is None


def text_of(n_bytes: int) -> str:
    frame = '{"type":"start","client":"%s"}'
    return frame % ("é" * ((n_bytes - len(frame) + 2) // 2) + "x" * (n_bytes % 2))


def test_text_frame_of_16_kib_in_utf8_is_read() -> None:
    client = open_client(ScriptedDesk(1))
    text = text_of(16_384)
    assert len(text.encode()) == 16_384
    client.send(text)
    assert client.take()[1:] == [where(STARTED, 1, endpointing=Endpointing())]


def test_larger_text_frame_is_fatal() -> None:
    client = open_client(ScriptedDesk(1))
    text = text_of(16_385)
    assert len(text.encode()) == 16_385
    client.send(text)
    assert client.take()[1:] == [error(1, "too_large", "text frame too large", "at most 16384 bytes", fatal=True)]
    assert client.session.close == Close(1009, "too_large")


def test_lone_surrogate_in_text_is_a_bad_message() -> None:
    client = started_client(ScriptedDesk(1))
    client.send('{"type":"ping","id":"\ud800"}')
    [event] = client.take()
    assert isinstance(event, Error)
    assert (event.code, event.fatal) == ("bad_message", False)


def test_audio_after_end_is_told_once_and_ignored() -> None:
    client = started_client(ScriptedDesk(1))
    client.send(bytes(32_000))
    client.send(End())
    client.take()
    client.send(bytes(32_000))
    client.send(bytes(32_000))
    assert client.take() == [error(4, "unexpected_message", "audio after end", "open a new session for more audio")]
    assert client.session.ledger.received == 16_000


def test_commit_and_a_second_end_after_end_are_unexpected() -> None:
    client = started_client(ScriptedDesk(1))
    client.send(bytes(32_000))
    client.send(End())
    client.take()
    client.send(Commit(id="c1"))
    client.send(End())
    assert client.take() == [
        error(4, "unexpected_message", "commit after end", "end already ended the last utterance"),
        error(5, "unexpected_message", "end was sent already", "wait for done"),
    ]


def test_failure_that_the_shell_saw_ends_the_session() -> None:
    client = started_client(ScriptedDesk(1))
    idle = ProtocolError("idle", "nothing came", "ping", close_code=1008)
    assert client.session.receive_failure(idle) == [error(2, "idle", "nothing came", "ping", fatal=True)]
    assert client.session.close == Close(1008, "idle")
    assert client.session.receive_failure(idle) == []


# ---------------------------------------------------------------- audio


def test_utterance_is_heard_accepted_and_decoded() -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk)
    speak(client, commit="c1")
    desk.advance(1)
    assert client.take() == [speech_started(2), where(ACCEPTED, 3, commit="c1"), where(FINAL, 4)]
    assert [len(decoding.utterance.samples) for decoding in desk.decodings] == [16_000]


def test_silence_ends_an_utterance_with_its_tail_and_pre_roll() -> None:
    client = started_client(ScriptedDesk(1), endpointing=Endpointing())
    client.send(quiet(20) + loud(20) + quiet(19))
    start_ms, end_ms = 340, 1480  # window 20 begins at 640, less 300; the last speech ends at 1280, plus 200
    assert client.take() == [
        speech_started(2, audio_start_ms=start_ms),
        where(ACCEPTED, 3, audio_start_ms=start_ms, audio_end_ms=end_ms, endpoint="silence"),
    ]


@pytest.mark.parametrize(
    ("mode", "since_s"),
    [("server", 0.8), ("manual", 0.0)],  # 25 windows after the last speech; a commit is the end itself
)
def test_end_of_speech_is_told_as_if_the_audio_came_in_real_time(
    mode: Literal["server", "manual"], since_s: float
) -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk, endpointing=Endpointing(mode=mode))
    client.send(quiet(20) + loud(20) + quiet(25))
    client.send(Commit())
    desk.advance(1)
    [decoding] = desk.decodings
    assert decoding.utterance.speech_ended_at == pytest.approx(1000.0 - since_s)


def test_every_utterance_is_counted_under_its_one_outcome() -> None:
    desk = ScriptedDesk(1, [Step(), Step(ends=DecodeFailed("odd"))])
    client = started_client(desk)
    for _ in range(3):  # decoded, failed, cancelled while it waits
        speak(client)
    client.send(Cancel("u3"))
    desk.advance(2)
    speak(client)
    client.send(bytes(32_000))
    client.disconnect()  # one in flight, one being heard: nobody is told
    assert client.session.outcomes == {"final": 1, "error": 1, "dropped": 3}


def test_manual_utterance_ends_at_its_greatest_length() -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk, endpointing=Endpointing(mode="manual", max_utterance_ms=1000))
    client.send(bytes(32 * 1500))
    client.send(End())
    desk.advance(2)
    assert client.take() == [
        speech_started(2),
        where(ACCEPTED, 3, endpoint="max_length"),
        speech_started(4, "u2", 1000),
        where(
            ACCEPTED,
            5,
            utterance="u2",
            position=1,
            estimated_wait_ms=500,
            estimated_final_ms=1000,
            audio_start_ms=1000,
            audio_end_ms=1500,
            endpoint="end",
        ),
        where(FINAL, 6),
        where(
            FINAL,
            7,
            utterance="u2",
            text="u2",
            audio_start_ms=1000,
            audio_end_ms=1500,
            wait_ms=500,
            segments=[FinalSegment("u2", 1000, 1500, -0.25, 0.0625)],
        ),
        where(DONE, 8, received_ms=1500, decoded_ms=1500, refused_ms=0, finals=2),
    ]


def test_end_leaves_speech_below_the_least_length_to_silence() -> None:
    client = started_client(ScriptedDesk(1), endpointing=Endpointing())
    client.send(quiet(10) + loud(4))
    client.send(End())
    assert client.take() == [where(DONE, 2, received_ms=448, silence_ms=448, refused_ms=0)]
    assert client.session.close == Close(1000)


def test_commit_takes_speech_below_the_least_length() -> None:
    client = started_client(ScriptedDesk(1), endpointing=Endpointing())
    client.send(quiet(10) + loud(4))
    client.send(Commit())
    assert client.take() == [
        speech_started(2, audio_start_ms=20),
        where(ACCEPTED, 3, audio_start_ms=20, audio_end_ms=448),
    ]


def test_resampled_audio_is_counted_at_its_own_rate() -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk, audio=AudioFormat(sample_rate=8000))
    client.send(bytes(2 * 8000))
    client.send(End())
    desk.advance(1)
    assert client.take() == [
        speech_started(2),
        where(ACCEPTED, 3, endpoint="end"),
        where(FINAL, 4),
        where(DONE, 5, decoded_ms=1000, refused_ms=0, finals=1),
    ]
    assert (client.session.ledger.received, client.session.ledger.decoded) == (8000, 8000)


def test_stream_that_ends_inside_a_sample_is_told() -> None:
    client = started_client(ScriptedDesk(1), endpointing=Endpointing())
    client.send(bytes(33))
    client.send(End())
    assert client.take() == [
        error(2, "truncated_pcm", "the stream ended inside a sample", "its last bytes are ignored"),
        where(DONE, 3, received_ms=1, silence_ms=1, refused_ms=0, errors=1),
    ]


INVALID = ("invalid_samples", "NaN or Inf in float PCM", "these samples are taken as silence")


def test_invalid_samples_count_as_time_and_as_refused() -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk, audio=AudioFormat("pcm_f32le"))
    client.send(f32(0.1, 0.1))
    client.send(f32(0.1, np.nan))
    client.send(f32(np.inf))
    client.send(f32(0.1))
    client.send(f32(-np.inf))
    client.send(End())
    desk.advance(1)
    segments = [FinalSegment("u1", 0, 70, -0.25, 0.0625)]
    assert client.take() == [
        speech_started(2),
        error(3, *INVALID),
        error(4, *INVALID),
        where(ACCEPTED, 5, audio_end_ms=70, endpoint="end"),
        where(FINAL, 6, audio_end_ms=70, segments=segments),
        where(DONE, 7, received_ms=70, decoded_ms=40, refused_ms=30, finals=1, errors=2),
    ]
    samples = desk.decodings[0].utterance.samples
    assert samples[::160].tolist() == [*[np.float32(0.1)] * 3, 0, 0, np.float32(0.1), 0]


def test_invalid_samples_are_silence_to_the_detector() -> None:
    client = started_client(ScriptedDesk(1), audio=AudioFormat("pcm_f32le"), endpointing=Endpointing())
    client.send(f32(*[np.nan] * 100))
    client.send(End())
    assert client.take() == [error(2, *INVALID), where(DONE, 3, errors=1)]


def test_wav_header_is_told_once_and_decoded_all_the_same() -> None:
    header = b"RIFF\x00\x00\x00\x00WAVEfmt "
    client = started_client(ScriptedDesk(1))
    client.send(header)
    client.send(header)
    client.send(bytes(32_000 - 32))
    client.send(Commit())
    assert client.take() == [
        error(
            2,
            "audio_format_suspect",
            "the audio starts like a WAV file: send its samples, not the file",
            "declare the right `audio` in start, and send headerless PCM",
        ),
        speech_started(3),
        where(ACCEPTED, 4),
    ]


@pytest.mark.parametrize(
    ("audio", "sample"),
    [
        (AudioFormat(), np.array([29_491], np.int16)),
        (AudioFormat(channels=2), np.array([29_491, 29_491], np.int16)),
        (AudioFormat("pcm_f32le"), np.array([0.9], np.float32)),
        (AudioFormat("pcm_f32le", 8000, 2), np.array([0.9, 0.9], np.float32)),
    ],
)
@pytest.mark.parametrize("mode", ["server", "manual"])
def test_events_do_not_depend_on_how_the_audio_was_cut(audio: AudioFormat, sample: NDArray[Any], mode: Any) -> None:
    def events(n_bytes: int) -> list[ServerEvent]:
        desk = ScriptedDesk(1)
        endpointing = Endpointing(mode=mode, silence_ms=100, min_speech_ms=30, max_utterance_ms=1000)
        client = started_client(desk, audio=audio, endpointing=endpointing)
        frames = np.tile(sample, WINDOW * audio.sample_rate // 16_000)
        silent = np.zeros_like(frames)
        pcm = b"".join(window.tobytes() for window in [silent] * 2 + [frames] * 4 + [silent] * 5 + [frames] * 2)
        pcm += b"\1"
        for start in range(0, len(pcm), n_bytes):
            client.send(pcm[start : start + n_bytes])
        client.send(Commit(id="c1"))
        client.send(pcm[: len(pcm) // 2])
        client.send(End())
        desk.advance(60)
        assert isinstance(client.events[-1], Done)
        return client.take()

    whole = events(1_000_000)
    assert events(1) == whole
    assert events(777) == whole


# ---------------------------------------------------------------- commit


def test_nothing_to_commit_echoes_the_id_and_is_not_fatal() -> None:
    client = started_client(ScriptedDesk(1))
    client.send(Commit(id="c1"))
    speak(client, commit="c2")
    client.send(Commit(id="c3"))
    assert client.take() == [
        error(2, "nothing_to_commit", "no speech is being heard", commit="c1"),
        speech_started(3),
        where(ACCEPTED, 4, commit="c2"),
        error(5, "nothing_to_commit", "no speech is being heard", commit="c3"),
    ]
    assert client.session.close is None


def test_commit_id_is_echoed_by_all_that_tells_of_its_utterance() -> None:
    desk = starting_desk(script=[Step(0.5, DecodeFailed("out of memory"))])
    client = started_client(desk)
    speak(client, commit="c1")
    desk.worker_changed(ServiceState.READY)
    desk.advance(1)
    client.send(RetryUtterance("u1"))
    desk.advance(1)
    assert client.take() == [
        speech_started(2),
        where(REFUSED, 3, commit="c1"),
        State(seq=4, state="ready", partials="paused"),
        where(ACCEPTED, 5, attempt=2, commit="c1"),
        error(6, "decode_failed", "out of memory", utterance="u1", commit="c1"),
    ]


# ---------------------------------------------------------------- refusals and retries


def test_full_queue_refuses_and_holds() -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk)
    for _ in range(3):
        speak(client)
    assert client.take()[-1] == Busy(
        seq=7,
        utterance="u3",
        attempt=1,
        commit=None,
        status=503,
        reason="queue_full",
        retry_after_ms=500,
        estimated_wait_ms=1000,
        queue_depth=1,
        queue_capacity=1,
        retryable=True,
        held_ms=60_000,
    )


def test_held_utterance_is_retried_by_its_id_alone() -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    desk.worker_changed(ServiceState.READY)
    desk.advance(0.8)
    client.take()
    client.send(RetryUtterance("u1"))
    client.send(End())
    desk.advance(1)
    assert client.take() == [
        where(ACCEPTED, 5, attempt=2),
        where(FINAL, 6, attempt=2),
        where(DONE, 7, decoded_ms=1000, refused_ms=0, finals=1, busy=1),
    ]


def test_retry_up_to_100_ms_before_its_hint_is_not_early() -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    desk.advance(0.71)
    client.take()
    client.send(RetryUtterance("u1"))
    refusal = where(REFUSED, 4, attempt=2, retry_after_ms=500, estimated_wait_ms=90, held_ms=59_290)
    assert client.take() == [refusal]


@pytest.mark.parametrize(
    ("after_s", "hint_ms", "wait_ms", "held_ms"),
    [(0, 800, 800, 60_000), (0.6, 500, 200, 59_400), (0.69, 500, 110, 59_310)],
)
def test_early_retry_is_no_attempt_and_keeps_the_hold(after_s: float, hint_ms: int, wait_ms: int, held_ms: int) -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client, commit="c1")
    desk.advance(after_s)
    client.take()
    client.send(RetryUtterance("u1"))
    early = where(
        REFUSED,
        4,
        commit="c1",
        status=429,
        reason="retry_early",
        retry_after_ms=hint_ms,
        estimated_wait_ms=wait_ms,
        held_ms=held_ms,
    )
    assert client.take() == [early]
    desk.worker_changed(ServiceState.READY)
    desk.advance(0.8)
    client.send(RetryUtterance("u1"))
    assert client.take() == [
        State(seq=5, state="ready", partials="paused"),
        where(ACCEPTED, 6, attempt=2, commit="c1"),
    ]


def test_retry_of_what_is_not_held_is_told_and_changes_nothing() -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk)
    client.send(RetryUtterance("u1"))
    client.send(bytes(32_000))
    client.send(RetryUtterance("u1"))
    client.send(Commit())
    client.send(RetryUtterance("u1"))
    desk.advance(1)
    client.send(RetryUtterance("u1"))
    assert client.take() == [
        error(2, "unknown_utterance", "no utterance 'u1' is held", utterance="u1"),
        speech_started(3),
        error(4, "unexpected_message", "u1 is heard, not held", ONLY_REFUSED, utterance="u1"),
        where(ACCEPTED, 5),
        error(6, "unexpected_message", "u1 is admitted, not held", ONLY_REFUSED, utterance="u1"),
        where(FINAL, 7),
        error(8, "unknown_utterance", "no utterance 'u1' is held", utterance="u1"),
    ]


def test_utterance_of_another_session_is_unknown() -> None:
    desk = starting_desk()
    speak(started_client(desk, id="s-1"))
    other = started_client(desk, id="s-2")
    desk.advance(1)
    other.send(RetryUtterance("u1"))
    assert other.take() == [error(2, "unknown_utterance", "no utterance 'u1' is held", utterance="u1")]


def test_hold_ends_60_s_after_the_first_refusal() -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    client.take()
    desk.advance(59.9)
    assert client.take() == []
    desk.advance(0.2)
    assert client.take() == [where(DROPPED, 4, reason="hold_expired")]


def test_later_refusal_does_not_prolong_a_hold_that_lasts_long_enough() -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    desk.advance(20)
    client.send(RetryUtterance("u1"))
    refusal = where(REFUSED, 4, attempt=2, retry_after_ms=1000, estimated_wait_ms=19_200, held_ms=40_000)
    assert client.take()[2:] == [refusal]
    desk.advance(39.9)
    assert client.take() == []
    desk.advance(0.2)
    assert client.take() == [where(DROPPED, 5, reason="hold_expired")]


def test_later_refusal_holds_for_5_s_after_the_wait_that_is_due() -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    desk.advance(58)
    client.send(RetryUtterance("u1"))
    refusal = where(REFUSED, 4, attempt=2, retry_after_ms=1000, estimated_wait_ms=57_200, held_ms=15_000)
    assert client.take()[2:] == [refusal]
    desk.advance(14.9)
    assert client.take() == []
    desk.advance(0.2)
    assert client.take() == [where(DROPPED, 5, reason="hold_expired")]


def test_hold_never_ends_while_its_utterance_is_admitted() -> None:
    desk = starting_desk(script=[Step(100)])
    client = started_client(desk)
    speak(client)
    desk.worker_changed(ServiceState.READY)
    desk.advance(59)
    client.send(RetryUtterance("u1"))
    desk.advance(10)
    client.take()
    desk.advance(100)
    final = where(FINAL, 6, attempt=2, decode_ms=100_000)
    assert client.take() == [final]


@pytest.mark.parametrize(("end_after_s", "hold_s"), [(0, 5.8), (1, 4.8), (5, 0.8)])
def test_end_shortens_a_hold_to_5_s_after_its_hint(end_after_s: float, hold_s: float) -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    desk.advance(end_after_s)
    client.send(End())
    client.take()
    desk.advance(hold_s - 0.1)
    assert (client.take(), client.session.close) == ([], None)
    desk.advance(0.2)
    assert client.take() == [where(DROPPED, 4, reason="hold_expired"), where(DONE, 5, busy=1, dropped=1)]
    assert client.session.close == Close(1000)


def test_end_leaves_a_hold_the_load_that_its_client_is_to_wait_for() -> None:
    """Regression: it ended 5 s after `retry_after_ms`, before a client that keeps the rules had asked again."""
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    desk.advance(5)
    client.send(RetryUtterance("u1"))
    refusal = where(REFUSED, 4, attempt=2, retry_after_ms=1000, estimated_wait_ms=4200, held_ms=55_000)
    assert client.take()[2:] == [refusal]
    client.send(End())
    desk.advance(9.1)
    assert client.take() == []
    desk.advance(0.2)
    assert client.take() == [where(DROPPED, 5, reason="hold_expired"), where(DONE, 6, busy=2, dropped=1)]


def test_end_ends_a_hold_whose_hint_lies_more_than_5_s_back() -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    desk.advance(30)
    client.send(End())
    client.take()
    desk.advance(0.01)
    assert client.take() == [where(DROPPED, 4, reason="hold_expired"), where(DONE, 5, busy=1, dropped=1)]


def test_what_end_itself_closes_is_held_for_5_s_after_its_hint() -> None:
    desk = starting_desk()
    client = started_client(desk)
    client.send(bytes(32_000))
    client.send(End())
    assert client.take()[1:] == [where(REFUSED, 3, held_ms=5800)]
    desk.advance(5.7)
    assert client.take() == []
    desk.advance(0.2)
    assert client.take() == [where(DROPPED, 4, reason="hold_expired"), where(DONE, 5, busy=1, dropped=1)]


def test_hold_that_the_resampler_releases_at_the_end_is_short_too() -> None:
    desk = starting_desk()
    endpointing = Endpointing(mode="manual", max_utterance_ms=1000)
    client = started_client(desk, audio=AudioFormat(sample_rate=8000), endpointing=endpointing)
    client.send(bytes(2 * 8000))
    client.send(End())
    assert client.take()[1:] == [where(REFUSED, 3, held_ms=5800)]


def test_retry_after_end_is_heard_and_held_for_5_s_again() -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    client.send(End())
    desk.advance(5)
    client.take()
    client.send(RetryUtterance("u1"))
    refusal = where(REFUSED, 4, attempt=2, retry_after_ms=1000, estimated_wait_ms=4200, held_ms=9200)
    assert client.take() == [refusal]
    desk.worker_changed(ServiceState.READY)
    desk.advance(5)
    client.send(RetryUtterance("u1"))
    desk.advance(1)
    assert client.take() == [
        State(seq=5, state="ready", partials="paused"),
        where(ACCEPTED, 6, attempt=3),
        where(FINAL, 7, attempt=3),
        where(DONE, 8, decoded_ms=1000, refused_ms=0, finals=1, busy=2),
    ]


def test_third_hold_evicts_the_oldest() -> None:
    desk = starting_desk()
    client = started_client(desk)
    for _ in range(3):
        speak(client)
    client.send(RetryUtterance("u1"))
    desk.advance(0)
    assert client.take()[5:] == [
        where(REFUSED, 7, utterance="u3"),
        where(REFUSED, 8, status=429, reason="retry_early"),
        where(DROPPED, 9, reason="evicted"),
    ]


def test_retry_that_crosses_the_end_of_its_hold_is_answered_by_it_alone() -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    desk.advance(1)
    speak(client)
    speak(client)
    client.take()
    client.send(RetryUtterance("u1"))
    assert client.take() == []
    desk.advance(0)
    assert client.take() == [where(DROPPED, 8, reason="evicted")]


# ---------------------------------------------------------------- what was admitted and not finished


def test_ticket_that_waited_too_long_is_offered_back() -> None:
    desk = ScriptedDesk(1, [Step(20)])
    client = started_client(desk, max_wait_ms=2000)
    speak(client)
    speak(client, commit="c2")
    client.take()
    desk.advance(2.1)
    assert client.take() == [
        Retry(
            seq=6,
            utterance="u2",
            attempt=1,
            commit="c2",
            status=503,
            reason="deadline",
            retry_after_ms=1000,
            estimated_wait_ms=1500,
            queue_depth=0,
            queue_capacity=1,
            retryable=True,
            held_ms=60_000,
            waited_ms=2000,
        )
    ]
    assert [decoding.utterance.id for decoding in desk.decodings] == ["u1"]


def test_wait_of_0_is_admitted_when_the_worker_is_idle_and_refused_when_not() -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk, max_wait_ms=0)
    speak(client)
    speak(client)
    desk.advance(1)
    assert client.take() == [
        speech_started(2),
        where(ACCEPTED, 3),
        speech_started(4, "u2", 1000),
        where(REFUSED, 5, utterance="u2", reason="predicted_wait", retry_after_ms=500, estimated_wait_ms=500),
        where(FINAL, 6),
    ]


def test_crash_replays_silently_in_the_same_attempt() -> None:
    desk = ScriptedDesk(1, [Step(0.2, WorkerDied())])
    client = started_client(desk)
    speak(client)
    desk.advance(2)
    assert client.take()[1:] == [
        where(ACCEPTED, 3),
        State(seq=4, state="restarting", partials="paused"),
        State(seq=5, state="ready", partials="paused"),
        where(FINAL, 6),
    ]


def test_crash_that_leaves_no_time_is_offered_back_and_its_retry_is_the_next_attempt() -> None:
    desk = ScriptedDesk(1, [Step(0.2, WorkerDied())], reload_s=10)
    client = started_client(desk)
    speak(client)
    desk.advance(0.3)
    assert client.take()[2:] == [
        State(seq=4, state="restarting", partials="paused"),
        Retry(
            seq=5,
            utterance="u1",
            attempt=1,
            commit=None,
            status=503,
            reason="worker_crashed",
            retry_after_ms=1000,
            estimated_wait_ms=10_000,
            queue_depth=0,
            queue_capacity=1,
            retryable=True,
            held_ms=60_000,
            waited_ms=200,
        ),
    ]
    desk.advance(10)
    client.send(RetryUtterance("u1"))
    client.send(End())
    desk.advance(1)
    assert client.take()[1:] == [
        where(ACCEPTED, 7, attempt=2),
        where(FINAL, 8, attempt=2),
        where(DONE, 9, decoded_ms=1000, refused_ms=0, finals=1, retries=1),
    ]


def test_utterance_that_kills_the_worker_twice_is_poison() -> None:
    dies = Step(0.2, WorkerDied())
    desk = ScriptedDesk(1, [dies, dies])
    client = started_client(desk)
    speak(client, commit="c1")
    client.send(End())
    desk.advance(5)
    poison = "the recognizer died 2 times under this utterance"
    assert [event for event in client.take() if not isinstance(event, State)] == [
        speech_started(2),
        where(ACCEPTED, 3, commit="c1"),
        error(7, "poison_audio", poison, utterance="u1", commit="c1"),
        where(DONE, 8, errors=1),
    ]
    assert client.session.close == Close(1000)


def test_deaths_are_counted_over_all_attempts() -> None:
    dies = Step(0.2, WorkerDied())
    desk = ScriptedDesk(1, [dies, dies], reload_s=10)
    client = started_client(desk)
    speak(client)
    desk.advance(12)
    client.send(RetryUtterance("u1"))
    desk.advance(1)
    poison = "the recognizer died 2 times under this utterance"
    assert client.take()[-1] == error(9, "poison_audio", poison, utterance="u1")


def test_failed_decode_is_the_end_of_its_utterance() -> None:
    desk = ScriptedDesk(1, [Step(0.2, DecodeFailed("out of memory"))])
    client = started_client(desk)
    speak(client)
    client.send(End())
    desk.advance(1)
    assert client.take()[2:] == [
        error(4, "decode_failed", "out of memory", utterance="u1"),
        where(DONE, 5, errors=1),
    ]


def shed(reason: RefusalReason) -> Shed:
    return Shed(reason, 0.5, 1.0, 0, 1)


def utterance(attempt: int, id: str = "u1") -> Utterance:
    samples = np.zeros(16_000, np.float32)
    return Utterance(
        SessionId("s-1"), id, samples, 0, 16_000, EndpointReason.COMMIT, DecodeOptions("en"), attempt=attempt
    )


def test_outcome_of_an_attempt_that_is_over_is_ignored() -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    desk.worker_changed(ServiceState.READY)
    desk.advance(1)
    first, second, unknown = utterance(1), utterance(2), utterance(1, "u9")
    late = Unfinished(first, shed(RefusalReason.DEADLINE), 1.0)
    session, now = client.session, desk.now
    assert session.receive_outcome(late, now=now) == []  # it is held
    client.send(RetryUtterance("u1"))
    for stale in (
        late,
        Decoded(first, says(first, "stale", 1.0), 0.0),
        Failed(first, "decode_failed", "stale"),
        Released(first, "evicted"),
        Released(second, "evicted"),  # it is admitted
        Decoded(unknown, says(unknown, "stale", 1.0), 0.0),
    ):
        assert session.receive_outcome(stale, now=now) == []
    desk.advance(1)
    assert client.take()[-1] == where(FINAL, 6, attempt=2)
    assert session.receive_outcome(Decoded(second, says(second, "again", 1.0), 0.0), now=now) == []


# ---------------------------------------------------------------- final


def hypothesis(*segments: Segment) -> Hypothesis:
    text = "".join(segment.text for segment in segments)
    return Hypothesis(text, "en", 0.123456, segments, None, 0.5)


TWO_SEGMENTS = hypothesis(
    Segment(" One", 0.0, 0.5, -0.123456, 0.001234, 1.0, (Word(" One", 0.1, 0.5, 0.98765),)),
    Segment(" two.", 0.5, 1.5, -0.5, 0.5, 1.0, (Word(" two.", 0.5, 9.9, 0.5),)),  # beyond the audio, as Whisper may
)
SEGMENTS = [
    FinalSegment(" One", 1000, 1500, -0.1235, 0.0012),
    FinalSegment(" two.", 1500, 2000, -0.5, 0.5),
]
WORDS = [FinalWord(" One", 1100, 1500, 0.9877), FinalWord(" two.", 1500, 2000, 0.5)]


@pytest.mark.parametrize(("asked", "words"), [(True, {"words": WORDS}), (False, {})])
def test_final_has_session_times_and_words_only_if_asked(asked: bool, words: dict[str, Any]) -> None:
    desk = ScriptedDesk(1, [Step(), Step(0.5, TWO_SEGMENTS)])
    client = started_client(desk, words=asked)
    speak(client)
    speak(client)
    desk.advance(2)
    assert client.take()[-1] == where(
        FINAL,
        7,
        utterance="u2",
        text="One two.",
        language_probability=0.1235,
        audio_start_ms=1000,
        audio_end_ms=2000,
        wait_ms=500,
        segments=SEGMENTS,
        **words,
    )


def test_filtered_final_says_why_it_is_empty() -> None:
    desk = ScriptedDesk(1, [Step(0.5, Hypothesis("", "en", 1.0, (), "no_speech", 0.5))])
    client = started_client(desk, words=True)
    speak(client)
    desk.advance(1)
    assert client.take()[-1] == where(FINAL, 4, text="", segments=[], words=[], filtered="no_speech")


# ---------------------------------------------------------------- cancel


@pytest.mark.parametrize("id", ["u1", None])
def test_cancel_of_what_is_heard_starts_anew_there(id: str | None) -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk)
    client.send(bytes(16_000))
    client.send(Cancel(utterance=id))
    speak(client)
    client.send(End())
    desk.advance(1)
    times = {"audio_start_ms": 500, "audio_end_ms": 1500}
    assert client.take() == [
        speech_started(2),
        where(DROPPED, 3, audio_end_ms=500),
        speech_started(4, "u2", 500),
        where(ACCEPTED, 5, utterance="u2", **times),
        where(FINAL, 6, utterance="u2", text="u2", segments=[FinalSegment("u2", 500, 1500, -0.25, 0.0625)], **times),
        where(DONE, 7, received_ms=1500, decoded_ms=1000, refused_ms=500, finals=1, dropped=1),
    ]


def test_cancel_without_id_forgets_what_is_not_yet_speech() -> None:
    client = started_client(ScriptedDesk(1), endpointing=Endpointing())
    client.send(quiet(10) + loud(4))
    client.send(Cancel())
    client.send(Commit())
    client.send(End())
    assert client.take() == [
        error(2, "nothing_to_commit", "no speech is being heard"),
        where(DONE, 3, received_ms=448, silence_ms=448, refused_ms=0, errors=1),
    ]


@pytest.mark.parametrize("id", ["u1", None])
def test_cancel_in_mid_decode_drops_at_once_and_nothing_is_replayed(id: str | None) -> None:
    desk = ScriptedDesk(1, [Step(0.5, WorkerDied())])
    client = started_client(desk)
    speak(client)
    desk.advance(0.1)
    client.send(Cancel(utterance=id))
    assert client.take()[2:] == [where(DROPPED, 4)]
    client.send(End())
    desk.advance(10)
    assert client.take() == [where(DONE, 5, dropped=1)]
    assert len(desk.decodings) == 1


def test_cancel_while_it_waits_to_be_replayed_frees_the_worker() -> None:
    desk = ScriptedDesk(1, [Step(0.1, WorkerDied())])
    client = started_client(desk)
    speak(client)
    desk.advance(0.2)
    client.send(Cancel(utterance="u1"))
    assert desk.queue.in_flight is None
    assert client.take()[-1] == where(DROPPED, 5)


@pytest.mark.parametrize("id", ["u2", None])
def test_cancel_while_it_waits_gives_its_place_back(id: str | None) -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk)
    other = started_client(desk, id="s-2")
    speak(other)
    client.send(bytes(32_000))
    client.send(Cancel())
    speak(client)
    assert desk.queue.depth == 1
    client.send(Cancel(utterance=id))
    assert client.take()[-1] == where(DROPPED, 6, utterance="u2", audio_start_ms=1000, audio_end_ms=2000)
    assert desk.queue.depth == 0
    desk.advance(1)
    assert client.take() == []
    assert other.take()[-1] == where(FINAL, 4)


@pytest.mark.parametrize("id", ["u1", None])
def test_cancel_of_what_is_held_ends_its_hold(id: str | None) -> None:
    holds = Holds()
    desk = starting_desk(holds=holds)
    client = started_client(desk)
    speak(client)
    client.send(Cancel(utterance=id))
    assert client.take()[2:] == [where(DROPPED, 4)]
    assert holds.n_bytes == 0
    client.send(End())
    desk.advance(100)
    assert client.take() == [where(DONE, 5, busy=1, dropped=1)]


def test_cancel_without_id_drops_everything_in_order() -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk)
    for _ in range(3):
        speak(client)
    client.send(bytes(32_000))
    client.take()
    client.send(Cancel())
    assert client.take() == [
        where(DROPPED, 9 + n, utterance=f"u{n + 1}", audio_start_ms=n * 1000, audio_end_ms=n * 1000 + 1000)
        for n in range(4)
    ]
    client.send(End())
    assert client.take() == [where(DONE, 13, received_ms=4000, refused_ms=4000, busy=1, dropped=4)]


def test_cancel_of_one_leaves_the_others() -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk)
    speak(client)
    desk.advance(0)
    client.send(bytes(32_000))
    client.send(Cancel(utterance="u1"))
    client.send(Commit())
    assert client.take()[3:] == [
        where(DROPPED, 5),
        where(
            ACCEPTED,
            6,
            utterance="u2",
            position=1,
            estimated_wait_ms=500,
            estimated_final_ms=1000,
            audio_start_ms=1000,
            audio_end_ms=2000,
        ),
    ]


@pytest.mark.parametrize("id", ["u1", "u9", None])
def test_nothing_to_cancel_is_no_event(id: str | None) -> None:
    client = started_client(ScriptedDesk(1))
    client.send(Cancel(utterance=id))
    assert client.take() == []


def test_cancel_of_the_last_one_after_end_is_answered_by_done() -> None:
    client = started_client(ScriptedDesk(1))
    client.send(bytes(32_000))
    client.send(End())
    client.take()
    client.send(Cancel())
    assert client.take() == [where(DROPPED, 4), where(DONE, 5, dropped=1)]
    assert client.session.close == Close(1000)


# ---------------------------------------------------------------- end, close, drain


def test_end_of_an_empty_session_is_answered_at_once() -> None:
    client = open_client(ScriptedDesk(1))
    client.send(End())
    assert client.take()[1:] == [where(DONE, 1, received_ms=0, refused_ms=0)]
    assert client.session.close == Close(1000)
    client.send(Ping())
    client.send(b"\0\0")
    assert client.take() == []


def test_ping_is_answered_until_done() -> None:
    client = started_client(ScriptedDesk(1))
    client.send(bytes(32_000))
    client.send(End())
    client.take()
    client.send(Ping(id="p"))
    assert client.take() == [Pong(seq=4, id="p")]


def test_done_waits_for_every_outcome() -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk)
    for _ in range(2):
        speak(client)
    client.send(bytes(16_000))  # refused, held for 5.5 s
    client.send(End())
    assert client.session.close is None
    desk.advance(5.4)
    assert isinstance(client.take()[-1], Final)
    assert client.session.close is None
    desk.advance(0.2)
    done = where(DONE, 11, received_ms=2500, decoded_ms=2000, refused_ms=500, finals=2, busy=1, dropped=1)
    assert client.take()[-1] == done
    assert client.session.close == Close(1000)


def four_places(script: list[Step]) -> tuple[ScriptedDesk, DeskClient]:
    """u1 is decoded, u2 waits, u3 is held, u4 is heard; the last event was the seventh."""
    desk = ScriptedDesk(1, script)
    client = started_client(desk)
    for _ in range(3):
        speak(client)
    client.send(bytes(32_000))
    assert client.take()[-1] == speech_started(8, "u4", 3000)
    return desk, client


def not_held(seq: int, utterance: str, start_ms: int) -> ServerEvent:
    return where(
        DROPPED, seq, utterance=utterance, reason="not_held", audio_start_ms=start_ms, audio_end_ms=start_ms + 1000
    )


U2_FINAL: dict[str, Any] = {
    "utterance": "u2",
    "text": "u2",
    "audio_start_ms": 1000,
    "audio_end_ms": 2000,
    "wait_ms": 500,
    "segments": [FinalSegment("u2", 1000, 2000, -0.25, 0.0625)],
}


def test_fatal_error_stops_reading_and_lets_the_admitted_finish() -> None:
    desk, client = four_places([])
    fatal = ProtocolError("idle", "nothing came", "ping", close_code=1008)
    assert client.session.receive_failure(fatal) == [
        error(9, "idle", "nothing came", "ping", fatal=True),
        not_held(10, "u3", 2000),
        not_held(11, "u4", 3000),
    ]
    client.send(bytes(32_000))
    client.send(Ping())
    client.send("nonsense")
    assert client.take() == []
    desk.advance(0.6)
    assert client.session.close is None
    desk.advance(0.6)
    assert client.take() == [where(FINAL, 12), where(FINAL, 13, **U2_FINAL)]
    assert client.session.close == Close(1008, "idle")
    assert client.session.ledger.lost == 0


def test_who_is_unauthorized_meanwhile_is_not_told_what_was_admitted() -> None:
    desk, client = four_places([])
    client.session.receive_failure(ProtocolError("idle", "nothing came", "ping", close_code=1008))
    revoked = ProtocolError("unauthorized", "not valid any more", "another", close_code=1008)
    assert client.session.receive_failure(revoked) == [
        error(12, "unauthorized", "not valid any more", "another", fatal=True)
    ]
    assert client.session.close == Close(1008, "unauthorized")
    desk.advance(30)
    assert client.take() == []
    assert client.session.ledger.lost == 0


def test_what_expires_after_a_fatal_error_is_not_held() -> None:
    desk, client = four_places([Step(20)])
    client.session.receive_failure(ProtocolError("idle", "nothing came", "ping", close_code=1008))
    desk.advance(30)
    expired = Retry(
        seq=12,
        utterance="u2",
        attempt=1,
        commit=None,
        status=503,
        reason="deadline",
        retry_after_ms=1000,
        estimated_wait_ms=7500,
        queue_depth=0,
        queue_capacity=1,
        retryable=False,
        held_ms=0,
        waited_ms=8000,
    )
    assert client.take() == [expired, not_held(13, "u2", 1000), where(FINAL, 14, decode_ms=20_000)]
    assert client.session.close == Close(1008, "idle")


DRAINING = State(state="draining", partials="paused")


def test_drain_drops_the_held_and_closes_after_the_admitted() -> None:
    desk, client = four_places([])
    desk.drain()
    desk.advance(0)
    assert client.take() == [where(DRAINING, 9), not_held(10, "u3", 2000), not_held(11, "u4", 3000)]
    client.send(bytes(32_000))
    client.send(End())
    assert client.take() == []
    desk.advance(2)
    assert client.take() == [where(FINAL, 12), where(FINAL, 13, **U2_FINAL)]
    assert client.session.close == Close(1012, "the server stops")
    assert client.session.ledger.lost == 0


def test_drain_gives_sessions_that_sent_end_their_done() -> None:
    desk, client = four_places([])
    client.send(End())  # u4 is refused too, and held
    client.take()
    desk.drain()
    desk.advance(0)
    assert client.take() == [where(DRAINING, 10), not_held(11, "u3", 2000), not_held(12, "u4", 3000)]
    desk.advance(2)
    assert client.take() == [
        where(FINAL, 13),
        where(FINAL, 14, **U2_FINAL),
        where(DONE, 15, received_ms=4000, decoded_ms=2000, refused_ms=2000, finals=2, busy=2, dropped=2),
    ]
    assert client.session.close == Close(1000)


def test_what_expires_in_a_drain_is_not_held() -> None:
    desk, client = four_places([Step(20)])
    client.send(Cancel(utterance="u3"))
    client.send(Cancel(utterance="u4"))
    client.send(End())
    desk.drain()
    desk.advance(8.1)
    assert client.take() == [
        where(DROPPED, 9, utterance="u3", audio_start_ms=2000, audio_end_ms=3000),
        where(DROPPED, 10, utterance="u4", audio_start_ms=3000, audio_end_ms=4000),
        where(DRAINING, 11),
        Retry(
            seq=12,
            utterance="u2",
            attempt=1,
            commit=None,
            status=503,
            reason="deadline",
            retry_after_ms=1000,
            estimated_wait_ms=7500,
            queue_depth=0,
            queue_capacity=1,
            retryable=False,
            held_ms=0,
            waited_ms=8000,
        ),
        not_held(13, "u2", 1000),
    ]
    desk.advance(20)
    assert client.take() == [
        where(FINAL, 14, decode_ms=20_000),
        where(DONE, 15, received_ms=4000, decoded_ms=1000, refused_ms=3000, finals=1, busy=1, retries=1, dropped=3),
    ]
    assert client.session.close == Close(1000)


def test_offer_that_meets_the_drain_before_its_news_is_not_held() -> None:
    desk = ScriptedDesk(1)
    client = started_client(desk)
    client.send(bytes(32_000))
    desk.drain()
    client.send(Commit(id="c1"))
    draining = where(
        REFUSED,
        3,
        commit="c1",
        reason="draining",
        retry_after_ms=500,
        estimated_wait_ms=0,
        retryable=False,
        held_ms=0,
    )
    assert client.take() == [speech_started(2), draining, not_held(4, "u1", 0)]
    desk.advance(0)
    assert client.take() == [where(DRAINING, 5)]
    assert client.session.close == Close(1012, "the server stops")


def test_retry_that_meets_the_drain_before_its_news_ends_the_session_that_sent_end() -> None:
    desk = starting_desk()
    client = started_client(desk)
    speak(client)
    client.send(End())
    desk.advance(1)
    client.take()
    desk.drain()
    client.send(RetryUtterance("u1"))
    draining = where(
        REFUSED,
        4,
        attempt=2,
        reason="draining",
        retry_after_ms=500,
        estimated_wait_ms=200,
        retryable=False,
        held_ms=0,
    )
    assert client.take() == [draining, not_held(5, "u1", 0)]
    desk.advance(0)
    assert isinstance(client.events[-1], Done)
    assert client.session.close == Close(1000)


def test_session_opened_in_a_drain_is_refused_utterance_by_utterance() -> None:
    desk = ScriptedDesk(1)
    desk.drain()
    client = open_client(desk)
    client.send(Start(endpointing=MANUAL))
    client.send(bytes(32_000))
    client.send(End())
    ready, *events = client.take()
    assert isinstance(ready, Ready)
    assert ready.state == "draining"
    draining = where(REFUSED, 3, reason="draining", retry_after_ms=500, estimated_wait_ms=0, retryable=False, held_ms=0)
    assert events == [
        where(STARTED, 1),
        speech_started(2),
        draining,
        not_held(4, "u1", 0),
        where(DONE, 5, busy=1, dropped=1),
    ]


def test_state_is_told_to_sessions_before_start_and_after_end_and_not_after_done() -> None:
    desk = ScriptedDesk(1)
    fresh, ending, closed = open_client(desk, "s-1"), started_client(desk, id="s-2"), open_client(desk, "s-3")
    ending.send(bytes(32_000))
    ending.send(End())
    closed.send(End())
    desk.advance(0)
    for client in (fresh, ending, closed):
        client.take()
    desk.worker_changed(ServiceState.UNAVAILABLE)
    desk.advance(0)
    unavailable = State(state="unavailable", partials="paused")
    assert (fresh.take(), ending.take(), closed.take()) == ([where(unavailable, 1)], [where(unavailable, 4)], [])


# ---------------------------------------------------------------- seq, disconnect


def test_seq_counts_every_event_after_ready() -> None:
    desk, client = four_places([Step(0.1, WorkerDied())])
    client.send(Ping())
    client.send("{}")
    client.send(End())
    desk.advance(20)
    assert [event.seq for event in client.events[1:]] == list(range(1, len(client.events)))
    assert client.events[0].seq is msgspec.UNSET
    assert isinstance(client.events[-1], Done)


def test_disconnect_withdraws_everything_and_closes_the_ledger() -> None:
    holds = Holds()
    desk = ScriptedDesk(1, [Step(0.5, WorkerDied())], holds=holds)
    client = started_client(desk)
    for _ in range(3):
        speak(client)
    client.send(bytes(32_000))
    desk.advance(0)
    client.take()
    assert holds.n_bytes == 64_000
    client.disconnect()
    assert (desk.queue.depth, holds.n_bytes) == (0, 0)
    desk.advance(100)
    assert (client.take(), desk.queue.in_flight, len(desk.decodings)) == ([], None, 1)
    ledger = client.session.ledger
    assert (ledger.received, ledger.refused, ledger.lost) == (64_000, 64_000, 0)


def test_disconnect_in_mid_speech_of_a_detected_session_closes_the_ledger() -> None:
    client = started_client(ScriptedDesk(1), endpointing=Endpointing())
    client.send(quiet(20) + loud(20))
    client.disconnect()
    ledger = client.session.ledger
    assert (ledger.received, ledger.silence, ledger.refused, ledger.lost) == (40 * 512, 5440, 15_040, 0)


def test_nothing_is_heard_of_a_session_after_its_disconnect() -> None:
    client = started_client(ScriptedDesk(1))
    client.disconnect()
    client.send(Ping())
    client.send(b"\0\0")
    assert client.session.receive_status(ServiceStatus(ServiceState.DRAINING, False)) == []
    assert client.take() == []


# ---------------------------------------------------------------- rates other than 16 kHz


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
@pytest.mark.parametrize("mode", ["manual", "server"])
def test_commit_and_cancel_act_after_all_audio_sent_before_them(rate: int, mode: str) -> None:
    """Regression: the last milliseconds stayed in the resampler and became an utterance of their own at `end`."""
    desk = ScriptedDesk(1)
    client = open_client(desk, make_resampler=AvResampler)
    client.send(Start(audio=AudioFormat("pcm_s16le", rate), endpointing=Endpointing(mode=mode)))  # type: ignore[arg-type]
    tone = (np.sin(np.arange(rate) * (2 * np.pi * 440 / rate)) * 30_000).astype("<i2").tobytes()
    for last in (Commit(), Cancel("u2")):
        client.send(tone)
        client.send(last)
    client.send(End())
    desk.advance(1)
    outcomes = [event for event in client.take() if isinstance(event, (Final, Dropped, Done))]
    assert [(type(event), event.audio_end_ms) for event in outcomes[:-1]] == [(Dropped, 2000), (Final, 1000)]  # type: ignore[union-attr]
    done = outcomes[-1]
    assert isinstance(done, Done)
    assert (done.received_ms, done.lost_ms, done.finals, done.dropped) == (2000, 0, 1, 1)


# ---------------------------------------------------------------- text before the endpoint

# Windows of 32 ms; an utterance that begins at 20 has its pre-roll at 640 - 300 ms. A partial takes 125 ms.
DETECTED = Endpointing(silence_ms=500)


def drafting_client(**changes: Any) -> tuple[ScriptedDesk, DeskClient]:
    desk = ScriptedDesk(1, **{"partials": True, "speculation": True, **changes})
    client = open_client(desk)
    client.send(Start(endpointing=DETECTED))
    assert client.take()[1:] == [msgspec.structs.replace(STARTED, partials=desk.drafts.partials, endpointing=DETECTED)]
    return desk, client


@pytest.mark.parametrize("mode", ["server", "manual"])
def test_a_session_without_drafts_tells_the_desk_of_none(mode: Literal["server", "manual"]) -> None:
    desk = ScriptedDesk(1, partials=True, speculation=True)
    service = Service("0.1.0", "tiny.en", ("en",), LIMITS, partials=True, speculation=mode == "manual")
    client = DeskClient(desk, Session(SessionId("s-1"), service, desk, ScriptedDetector, RepeatingResampler))
    client.send(Start(partials=False, endpointing=Endpointing(mode=mode)))
    client.send(loud(60))
    assert client.take()[-1] == SpeechStarted(seq=2, utterance="u1", audio_start_ms=0)
    assert desk.drafts.begin(desk.now) is None


def partial(seq: int, stable: str, unstable: str, audio_end_ms: int) -> Partial:
    return Partial(seq=seq, utterance="u1", stable=stable, unstable=unstable, audio_end_ms=audio_end_ms)


def told_of_one_utterance(**changes: Any) -> list[ServerEvent]:
    """Two seconds of speech in real time, then silence."""
    desk, client = drafting_client(**changes)
    for audio in [quiet(20), *[loud(5)] * 12, *[quiet(4)] * 5]:
        client.send(audio)
        desk.advance(len(audio) / 32_000)
    desk.advance(1)
    return client.take()


def test_text_grows_while_it_is_spoken_and_its_stable_part_never_changes() -> None:
    events = told_of_one_utterance(script=[Step(0.125)] * 8, speculation=False)
    texts = [event for event in events if isinstance(event, Partial)]
    assert [(event.stable, event.unstable, event.audio_end_ms) for event in texts] == [
        ("", "u1 u1 u1", 1280),
        ("u1 u1 u1", " u1 u1", 1600),
        ("u1 u1 u1 u1 u1", " u1", 1920),
        ("u1 u1 u1 u1 u1 u1", " u1", 2240),
        ("u1 u1 u1 u1 u1 u1 u1", " u1", 2560),
        ("u1 u1 u1 u1 u1 u1 u1 u1", " u1", 2760),
    ]
    assert [event.__struct_config__.tag for event in events] == [
        "speech_started",
        *["partial"] * 6,
        "accepted",
        "final",
    ]


def test_speculation_changes_neither_the_final_nor_its_audio() -> None:
    without = told_of_one_utterance(partials=False, speculation=False)
    events = told_of_one_utterance()
    accepted, final = events[-2:]
    assert isinstance(final, Final)
    assert final == where(without[-1], final.seq)  # type: ignore[arg-type]
    assert isinstance(accepted, Accepted)
    assert (accepted.position, accepted.estimated_wait_ms, accepted.endpoint) == (0, 0, "silence")
    assert msgspec.structs.replace(accepted, seq=3, estimated_final_ms=500) == without[-2]


def test_final_is_there_at_the_endpoint_where_the_decode_fits_into_the_silence() -> None:
    desk, client = drafting_client(partials=False, script=[Step(0.25)])
    for audio in (quiet(20), loud(20), quiet(8)):
        client.send(audio)
        desk.advance(0.256)
    assert [type(event) for event in client.take()] == [SpeechStarted]
    client.send(quiet(8))
    desk.advance()
    accepted, final = client.take()
    assert (type(accepted), type(final)) == (Accepted, Final)
    assert accepted.estimated_final_ms == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("message", [Commit(), End()])
def test_commit_or_end_after_the_tail_finds_the_speculation(message: Commit | End) -> None:
    desk, client = drafting_client()
    client.send(quiet(20) + loud(20) + quiet(7))
    desk.advance(0.5)
    n_decodes = len(desk.decodings)
    client.send(message)
    desk.advance(0)
    assert "final" in [event.__struct_config__.tag for event in client.take()]
    assert (n_decodes, len(desk.decodings)) == (1, 1)


def test_partial_after_its_utterance_was_accepted_is_not_told() -> None:
    desk, client = drafting_client()
    client.send(quiet(20) + loud(20))
    desk.advance(0.1)
    client.send(Commit())
    desk.advance(2)
    assert [event.__struct_config__.tag for event in client.take()] == ["speech_started", "accepted", "final"]
    assert [decoding.work.options.partial for decoding in desk.decodings] == [True, False]


def test_partial_of_a_cancelled_utterance_is_not_told() -> None:
    desk, client = drafting_client()
    client.send(quiet(20) + loud(20))
    desk.advance(0.1)
    client.send(Cancel("u1"))
    desk.advance(2)
    assert [event.__struct_config__.tag for event in client.take()] == ["speech_started", "dropped"]


def test_manual_mode_has_partials_and_no_speculation() -> None:
    desk = ScriptedDesk(1, [Step(0.125)] * 3, partials=True, speculation=True)
    client = started_client(desk)
    for _ in range(4):
        client.send(bytes(250 * 32))
        desk.advance(0.25)
    client.send(Commit())
    desk.advance(1)
    assert [event.__struct_config__.tag for event in client.take()] == [
        "speech_started",
        *["partial"] * 2,
        "accepted",
        "final",
    ]
    assert [decoding.work.options.partial for decoding in desk.decodings] == [True, True, False]


def test_deaths_before_the_endpoint_count_towards_poison() -> None:
    desk, client = drafting_client(script=[Step(0.125, WorkerDied()), Step(0.125, WorkerDied())])
    client.send(quiet(20) + loud(20))
    desk.advance(1.5)
    client.send(loud(20) + quiet(16))
    desk.advance(3)
    told = [event for event in client.take() if isinstance(event, (Partial, Accepted, Error, Final))]
    assert [event.__struct_config__.tag for event in told] == ["accepted", "error"]
    assert told[1] == error(
        told[1].seq, "poison_audio", "the recognizer died 2 times under this utterance", utterance="u1"
    )


def test_load_that_stops_partials_is_told_once() -> None:
    desk, client = drafting_client(script=[Step(5.0)])
    other = started_client(desk, id="s-2")
    speak(other)
    desk.advance(0)
    client.send(quiet(20) + loud(20))
    desk.advance(4.9)
    desk.advance(2)
    assert [event for event in client.take() if isinstance(event, State)] == [
        State(seq=3, state="ready", partials="paused"),
        State(seq=4, state="ready", partials="on"),
    ]
