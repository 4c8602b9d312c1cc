"""The wire vocabulary against the literal JSON of docs/reference/protocol.md."""

from __future__ import annotations

import json

import msgspec
import pytest

from asr_ws import messages
from asr_ws.errors import ProtocolError
from asr_ws.messages import (
    Accepted,
    AudioFormat,
    AudioInForce,
    Busy,
    Cancel,
    ClientMessage,
    Commit,
    Done,
    Dropped,
    End,
    Endpointing,
    EndpointingInForce,
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
    Unknown,
    decode_event,
    decode_message,
    encode,
)

FULL_START = """{
    "type": "start", "token": "secret", "audio": {"encoding": "pcm_f32le", "sample_rate": 48000, "channels": 2},
    "language": "de", "task": "translate", "prompt": "Names:", "hotwords": "Ada, Grace",
    "partials": false, "words": true,
    "endpointing": {"mode": "manual", "silence_ms": 100, "prefix_ms": 0, "min_speech_ms": 30, "max_utterance_ms": 1000,
                    "threshold": 0.05},
    "max_wait_ms": 0, "client": "test/1"
}"""

MESSAGES: list[tuple[str, ClientMessage]] = [
    ('{"type":"start"}', Start()),
    ('{"type":"start","language":"en"}', Start(language="en")),
    (
        '{"type":"start","audio":{"encoding":"pcm_s16le","sample_rate":8000,"channels":1}}',
        Start(audio=AudioFormat("pcm_s16le", 8000)),
    ),
    ('{"type":"commit"}', Commit()),
    ('{"type":"commit","id":"c1"}', Commit(id="c1")),
    ('{"type":"retry","utterance":"u2"}', RetryUtterance(utterance="u2")),
    ('{"type":"cancel"}', Cancel()),
    ('{"type":"cancel","utterance":"u2"}', Cancel(utterance="u2")),
    ('{"type":"end"}', End()),
    ('{"type":"ping"}', Ping()),
    ('{"type":"ping","id":"p"}', Ping(id="p")),
    ('{"type":"ping","id":7}', Ping(id=7)),
]

EVENTS: list[tuple[str, ServerEvent]] = [
    (
        '{"type":"ready","protocol":"asr-ws.v1","session":"s-7f3a","server":"0.1.0","model":"tiny.en","languages":["en"],'
        '"state":"ready","limits":{"queue_capacity":3,"max_wait_ms":8000,"max_utterance_ms":30000,'
        '"max_message_bytes":262144,"max_sessions":64,"hold_ms":60000}}',
        Ready(
            protocol="asr-ws.v1",
            session="s-7f3a",
            server="0.1.0",
            model="tiny.en",
            languages=["en"],
            state="ready",
            limits=Limits(3, 8000, 30_000, 262_144, 64, 60_000),
        ),
    ),
    (
        '{"type":"started","seq":1,"audio":{"encoding":"pcm_s16le","sample_rate":16000,"channels":1},"language":"en",'
        '"task":"transcribe","partials":true,"words":false,"endpointing":{"mode":"server","silence_ms":600,'
        '"prefix_ms":300,"min_speech_ms":150,"max_utterance_ms":30000,"threshold":0.5},"max_wait_ms":8000}',
        Started(
            seq=1,
            audio=AudioInForce("pcm_s16le", 16_000, 1),
            language="en",
            task="transcribe",
            partials=True,
            words=False,
            endpointing=EndpointingInForce("server", 600, 300, 150, 30_000, 0.5),
            max_wait_ms=8000,
        ),
    ),
    (
        '{"type":"speech_started","seq":2,"utterance":"u1","audio_start_ms":320}',
        SpeechStarted(seq=2, utterance="u1", audio_start_ms=320),
    ),
    (
        '{"type":"partial","seq":3,"utterance":"u1","stable":"Turn on","unstable":" the kit","audio_end_ms":1180}',
        Partial(seq=3, utterance="u1", stable="Turn on", unstable=" the kit", audio_end_ms=1180),
    ),
    (
        '{"type":"accepted","seq":4,"utterance":"u1","attempt":1,"commit":null,"position":0,"estimated_wait_ms":0,'
        '"estimated_final_ms":150,"audio_start_ms":320,"audio_end_ms":1610,"endpoint":"silence"}',
        Accepted(
            seq=4,
            utterance="u1",
            attempt=1,
            commit=None,
            position=0,
            estimated_wait_ms=0,
            estimated_final_ms=150,
            audio_start_ms=320,
            audio_end_ms=1610,
            endpoint="silence",
        ),
    ),
    (
        '{"type":"final","seq":5,"utterance":"u1","attempt":1,"text":"Hi.","language":"en","language_probability":1.0,'
        '"audio_start_ms":320,"audio_end_ms":1610,"wait_ms":1,"decode_ms":143,'
        '"segments":[{"text":"Hi.","start_ms":320,"end_ms":900,"avg_logprob":-0.25,"no_speech_prob":0.01}],'
        '"words":[{"word":"Hi.","start_ms":320,"end_ms":900,"probability":0.9}],"filtered":null,"recovered":false}',
        Final(
            seq=5,
            utterance="u1",
            attempt=1,
            text="Hi.",
            language="en",
            language_probability=1.0,
            audio_start_ms=320,
            audio_end_ms=1610,
            wait_ms=1,
            decode_ms=143,
            segments=[FinalSegment("Hi.", 320, 900, -0.25, 0.01)],
            words=[FinalWord("Hi.", 320, 900, 0.9)],
        ),
    ),
    (
        '{"type":"final","seq":6,"utterance":"u2","attempt":2,"text":"","language":"en","language_probability":0.5,'
        '"audio_start_ms":0,"audio_end_ms":1,"wait_ms":0,"decode_ms":1,"segments":[],"filtered":"no_speech","recovered":false}',
        Final(
            seq=6,
            utterance="u2",
            attempt=2,
            text="",
            language="en",
            language_probability=0.5,
            audio_start_ms=0,
            audio_end_ms=1,
            wait_ms=0,
            decode_ms=1,
            segments=[],
            filtered="no_speech",
        ),
    ),
    (
        '{"type":"busy","seq":7,"utterance":"u2","attempt":1,"commit":"c9","status":503,"reason":"queue_full",'
        '"retry_after_ms":830,"estimated_wait_ms":1720,"queue_depth":3,"queue_capacity":3,"retryable":true,"held_ms":60000}',
        Busy(
            seq=7,
            utterance="u2",
            attempt=1,
            commit="c9",
            status=503,
            reason="queue_full",
            retry_after_ms=830,
            estimated_wait_ms=1720,
            queue_depth=3,
            queue_capacity=3,
            retryable=True,
            held_ms=60_000,
        ),
    ),
    (
        '{"type":"busy","utterance":null,"attempt":0,"commit":null,"status":503,"reason":"max_sessions",'
        '"retry_after_ms":830,"estimated_wait_ms":0,"queue_depth":0,"queue_capacity":3,"retryable":true,"held_ms":0}',
        Busy(
            utterance=None,
            attempt=0,
            commit=None,
            status=503,
            reason="max_sessions",
            retry_after_ms=830,
            estimated_wait_ms=0,
            queue_depth=0,
            queue_capacity=3,
            retryable=True,
            held_ms=0,
        ),
    ),
    (
        '{"type":"retry","seq":10,"utterance":"u2","attempt":2,"commit":null,"status":503,"reason":"worker_crashed",'
        '"retry_after_ms":1210,"estimated_wait_ms":1720,"queue_depth":3,"queue_capacity":3,"retryable":true,'
        '"held_ms":60000,"waited_ms":310}',
        Retry(
            seq=10,
            utterance="u2",
            attempt=2,
            commit=None,
            status=503,
            reason="worker_crashed",
            retry_after_ms=1210,
            estimated_wait_ms=1720,
            queue_depth=3,
            queue_capacity=3,
            retryable=True,
            held_ms=60_000,
            waited_ms=310,
        ),
    ),
    (
        '{"type":"dropped","seq":11,"utterance":"u2","reason":"hold_expired","audio_start_ms":0,"audio_end_ms":900}',
        Dropped(seq=11, utterance="u2", reason="hold_expired", audio_start_ms=0, audio_end_ms=900),
    ),
    (
        '{"type":"error","seq":12,"code":"nothing_to_commit","message":"m","hint":"h","fatal":false,"utterance":null,'
        '"commit":"c1"}',
        Error(seq=12, code="nothing_to_commit", message="m", hint="h", fatal=False, utterance=None, commit="c1"),
    ),
    (
        '{"type":"state","seq":13,"state":"restarting","partials":"paused"}',
        State(seq=13, state="restarting", partials="paused"),
    ),
    ('{"type":"pong","seq":14,"id":"p"}', Pong(seq=14, id="p")),
    (
        '{"type":"done","seq":15,"received_ms":10,"decoded_ms":4,"silence_ms":3,"refused_ms":3,"lost_ms":0,"finals":1,'
        '"busy":2,"retries":3,"dropped":4,"errors":5}',
        Done(
            seq=15,
            received_ms=10,
            decoded_ms=4,
            silence_ms=3,
            refused_ms=3,
            lost_ms=0,
            finals=1,
            busy=2,
            retries=3,
            dropped=4,
            errors=5,
        ),
    ),
]


def refusal(text: str) -> str:
    """The message of the `bad_message` that reading ``text`` gives."""
    with pytest.raises(ProtocolError) as caught:
        decode_message(text)
    assert (caught.value.code, caught.value.close_code) == ("bad_message", None)
    encode(Error(code="bad_message", message=caught.value.message, hint=caught.value.hint, fatal=False))  # can be said
    return caught.value.message


def start_with(fields: str) -> str:
    return f'{{"type":"start",{fields}}}'


# ---------------------------------------------------------------- client -> server


@pytest.mark.parametrize(("text", "message"), MESSAGES)
def test_message_round_trips_with_its_literal_json(text: str, message: ClientMessage) -> None:
    assert decode_message(text) == message
    assert decode_message(encode(message)) == message
    assert json.loads(encode(message)) == json.loads(text)


def test_start_takes_every_field_of_the_table() -> None:
    start = Start(
        token="secret",
        audio=AudioFormat("pcm_f32le", 48_000, 2),
        language="de",
        task="translate",
        prompt="Names:",
        hotwords="Ada, Grace",
        partials=False,
        words=True,
        endpointing=Endpointing("manual", 100, 0, 30, 1000, 0.05),
        max_wait_ms=0,
        client="test/1",
    )
    assert decode_message(FULL_START) == start
    assert json.loads(encode(start)) == json.loads(FULL_START)


def test_start_defaults_are_the_tables() -> None:
    assert decode_message(start_with('"audio":{},"endpointing":{}')) == Start()
    assert msgspec.to_builtins(AudioFormat()) == {"encoding": "pcm_s16le", "sample_rate": 16_000, "channels": 1}
    assert msgspec.to_builtins(Endpointing()) == {
        "mode": "server",
        "silence_ms": 600,
        "prefix_ms": 300,
        "min_speech_ms": 150,
        "max_utterance_ms": 30_000,
        "threshold": 0.5,
    }
    start = Start()
    assert {name: getattr(start, name) for name in Start.__struct_fields__} == {
        "token": None,
        "audio": AudioFormat(),
        "language": None,
        "task": "transcribe",
        "prompt": None,
        "hotwords": None,
        "partials": True,
        "words": False,
        "endpointing": Endpointing(),
        "max_wait_ms": None,
        "client": None,
    }


def test_limits_of_the_wire_are_the_documents() -> None:
    assert (messages.PROTOCOL, messages.PATH) == ("asr-ws.v1", "/v1/stream")
    assert (messages.MAX_TEXT_BYTES, messages.MAX_BINARY_BYTES) == (16_384, 262_144)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (start_with('"samplerate":8000'), "Object contains unknown field `samplerate`"),
        (start_with('"audio":{"samplerate":8000}'), "Object contains unknown field `samplerate` - at `$.audio`"),
        (start_with('"endpointing":{"silence":1}'), "Object contains unknown field `silence` - at `$.endpointing`"),
        ('{"type":"commit","utterance":"u1"}', "Object contains unknown field `utterance`"),
        ('{"type":"end","id":"x"}', "Object contains unknown field `id`"),
        ('{"type":"retry"}', "Object missing required field `utterance`"),
        ('{"type":"final"}', "Invalid value 'final' - at `$.type`"),
        ('{"type":5}', "Expected `str` - at `$.type`"),
        ("{}", "Object missing required field `type`"),
        ("[]", "Expected `object`, got `array`"),
        ("null", "Expected `object`, got `null`"),
        (start_with('"audio":null'), "Expected `object`, got `null` - at `$.audio`"),
        (start_with('"audio":{"sample_rate":"16000"}'), "Expected `int`, got `str` - at `$.audio.sample_rate`"),
        (start_with('"audio":{"sample_rate":16000.5}'), "Expected `int`, got `float` - at `$.audio.sample_rate`"),
        (start_with('"audio":{"channels":true}'), "Expected `int`, got `bool` - at `$.audio.channels`"),
        (start_with('"audio":{"encoding":16}'), "Expected `str`, got `int` - at `$.audio.encoding`"),
        (start_with('"partials":1'), "Expected `bool`, got `int` - at `$.partials`"),
        (start_with('"language":["en"]'), "Expected `str | null`, got `array` - at `$.language`"),
        (start_with('"task":"summarize"'), "Invalid enum value 'summarize' - at `$.task`"),
        (start_with('"endpointing":{"mode":"auto"}'), "Invalid enum value 'auto' - at `$.endpointing.mode`"),
        (start_with('"max_wait_ms":-1'), "Expected `int` >= 0 - at `$.max_wait_ms`"),
        ('{"type":"commit","id":""}', "Expected `str` of length >= 1 - at `$.id`"),
        ('{"type":"commit","id":"' + "x" * 129 + '"}', "Expected `str` of length <= 128 - at `$.id`"),
        ('{"type":"ping","id":1.5}', "Expected `int | str | null`, got `float` - at `$.id`"),
    ],
)
def test_refused_message_names_its_path(text: str, message: str) -> None:
    assert refusal(text) == message


RANGES = [
    ("silence_ms", 100, 5000, 1),
    ("prefix_ms", 0, 1000, 1),
    ("min_speech_ms", 30, 1000, 1),
    ("max_utterance_ms", 1000, 30_000, 1),
    ("threshold", 0.05, 0.95, 0.001),
]


@pytest.mark.parametrize(("name", "low", "high", "step"), RANGES)
def test_endpointing_range_includes_its_edges_and_nothing_beyond(
    name: str, low: float, high: float, step: float
) -> None:
    for value in (low, high):
        message = decode_message(start_with(f'"endpointing":{{"{name}":{value}}}'))
        assert message == Start(endpointing=msgspec.convert({name: value}, Endpointing))
    for value, bound in ((low - step, f">= {low}"), (high + step, f"<= {high}")):
        refused = refusal(start_with(f'"endpointing":{{"{name}":{value}}}'))
        assert refused.endswith(f"{bound} - at `$.endpointing.{name}`")


@pytest.mark.parametrize(
    "audio",
    [AudioFormat("pcm_s16le", 8000, 1), AudioFormat("pcm_f32le", 192_000, 2), AudioFormat(), AudioFormat(channels=2)],
)
def test_audio_format_inside_its_limits_passes(audio: AudioFormat) -> None:
    audio.check()


@pytest.mark.parametrize(
    ("audio", "text"),
    [
        ('{"encoding":"opus"}', "audio.encoding is 'opus' (send pcm_s16le or pcm_f32le)"),
        ('{"encoding":""}', "audio.encoding is '' (send pcm_s16le or pcm_f32le)"),
        ('{"sample_rate":7999}', "audio.sample_rate is 7999 (send 8000..192000)"),
        ('{"sample_rate":192001}', "audio.sample_rate is 192001 (send 8000..192000)"),
        ('{"sample_rate":-16000}', "audio.sample_rate is -16000 (send 8000..192000)"),
        ('{"channels":0}', "audio.channels is 0 (send 1..2)"),
        ('{"channels":3}', "audio.channels is 3 (send 1..2)"),
    ],
)
def test_audio_format_outside_its_limits_is_unsupported_not_bad(audio: str, text: str) -> None:
    start = decode_message(start_with(f'"audio":{audio}'))
    assert isinstance(start, Start)
    with pytest.raises(ProtocolError) as caught:
        start.audio.check()
    assert (caught.value.code, caught.value.close_code, str(caught.value)) == ("unsupported_format", 1008, text)


def test_prompt_and_hotwords_share_800_characters() -> None:
    longest = Start(prompt="é" * 500, hotwords="h" * 300)
    assert decode_message(encode(longest)) == longest
    for too_long in (Start(prompt="p" * 801), Start(hotwords="h" * 801), Start(prompt="p" * 400, hotwords="h" * 401)):
        assert refusal(encode(too_long)) == "prompt and hotwords are 801 characters together - at `$.prompt`"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        '{"type":"ping"',
        '{"type":"ping"} {"type":"end"}',
        "{'type':'ping'}",
        '\ufeff{"type":"ping"}',
        '{"type":"ping","id":"\x00"}',
        '{"type":"ping","id":"\\ud800"}',
        '{"type":"ping","id":"\\udc00\\ud800"}',
        '{"type":"ping","id":"\ud800"}',
        start_with('"endpointing":{"threshold":NaN}'),
        start_with('"endpointing":{"threshold":Infinity}'),
    ],
)
def test_what_is_not_json_is_a_bad_message(text: str) -> None:
    assert refusal(text).startswith("not JSON: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (start_with('"endpointing":{"threshold":1e999}'), "Number out of range - at `$.endpointing.threshold`"),
        (start_with('"endpointing":{"silence_ms":1e999}'), "Number out of range - at `$.endpointing.silence_ms`"),
        (
            start_with(f'"endpointing":{{"silence_ms":{"9" * 5000}}}'),
            "Integer value out of range - at `$.endpointing.silence_ms`",
        ),
        (
            start_with(f'"audio":{{"sample_rate":{"9" * 5000}}}'),
            "Integer value out of range - at `$.audio.sample_rate`",
        ),
        (start_with(f'"max_wait_ms":{"9" * 5000}'), "Integer value out of range - at `$.max_wait_ms`"),
        (f'{{"type":"ping","id":{"9" * 5000}}}', "Integer value out of range - at `$.id`"),
    ],
)
def test_number_beyond_any_machine_is_a_bad_message(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 16_000, "Expected `object`, got `array`"),
        ('{"type":"ping","id":' + "[" * 16_000, "Expected `int | str | null`, got `array` - at `$.id`"),
        ('{"id":' + "[" * 8000 + "]" * 8000 + ',"type":"ping"}', "JSON nested too deep"),
        ('{"a":' * 3000, "JSON nested too deep"),
    ],
)
def test_message_nested_as_deep_as_it_may_be_long_is_a_bad_message(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize("id", ["", "ü\u2028\U0001f600", "\x00\x1f", 0, -1, 2**53 + 1, -(2**63) - 1, 2**64, None])
def test_pong_can_carry_every_id_that_a_ping_may_have(id: str | int | None) -> None:
    assert decode_message(json.dumps({"type": "ping", "id": id})) == Ping(id=id)
    assert json.loads(encode(Pong(seq=1, id=id))) == {"type": "pong", "seq": 1, "id": id}


# ---------------------------------------------------------------- server -> client


@pytest.mark.parametrize(("text", "event"), EVENTS)
def test_event_round_trips_with_its_literal_json(text: str, event: ServerEvent) -> None:
    assert json.loads(encode(event)) == json.loads(text)
    assert decode_event(text) == event
    assert decode_event(text.encode()) == event


def test_every_event_type_has_its_literal() -> None:
    assert {type(event) for _, event in EVENTS} == set(ServerEvent.__args__)


def widened(value: object) -> object:
    """A newer server's: every object has a field more."""
    match value:
        case dict():
            return {"a_new_field": [1], **{name: widened(field) for name, field in value.items()}}
        case list():
            return [widened(item) for item in value]
        case _:
            return value


@pytest.mark.parametrize(("text", "event"), EVENTS)
def test_fields_of_a_newer_server_are_ignored_at_every_level(text: str, event: ServerEvent) -> None:
    assert decode_event(json.dumps(widened(json.loads(text)))) == event


def test_event_of_a_newer_server_comes_back_as_unknown() -> None:
    text = '{"type":"diarized","seq":3,"speakers":[{"id":"a"}]}'
    assert decode_event(text) == Unknown("diarized", {"seq": 3, "speakers": [{"id": "a"}]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nope",
        "[]",
        "{}",
        '{"type":5}',
        '{"type":"pong"}',
        '{"type":"state","state":"sleepy","partials":"on"}',
        '{"type":"diarized","speakers": nul',
        '{"type":"diarized","x":1e999}',
        '{"type":"diarized","x":NaN}',
        f'{{"type":"diarized","x":{"9" * 400}}}',
        f'{{"type":"pong","id":-{"9" * 400}}}',
        f'{{"type":"pong","id":{"9" * 5000}}}',
        '{"type":"diarized","x":"\ud800"}',
        '{"type":"diarized","x":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"x":' + "[" * 100_000 + "]" * 100_000 + ',"type":"pong","id":1}',
        b'{"type":"pong","id":"\xff"}',
        b'{"type":"diarized","x":"\xff"}',
    ],
)
def test_what_is_not_an_event_is_a_protocol_error(text: str | bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_event(text)
    assert caught.value.code == "bad_message"
    assert caught.value.message == f"the server sent {str(text[:200])!r}"


def test_digits_in_a_text_are_no_number() -> None:
    said = "0" * 400
    assert decode_event(f'{{"type":"pong","id":"{said}"}}') == Pong(id=said)
