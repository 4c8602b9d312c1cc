"""The JSON Schema that ships: that it is the code's, and that it says of the wire what the server does."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.request import urlopen

import msgspec
import pytest
from jsonschema import Draft202012Validator

from asr_ws import messages, schema
from asr_ws.errors import ProtocolError
from asr_ws.messages import ClientMessage, ServerEvent, Start, decode_message
from asr_ws.testing.bare import connect
from asr_ws.testing.recognizer import Gate, scripted_worker
from asr_ws.worker.supervisor import WorkerSpec
from tests.schema import CLIENT_MESSAGE, DOCUMENT, SERVER_EVENT, check_event
from tests.server.running import MANUAL, SECOND, Client, serving
from tests.test_messages import EVENTS, FULL_START, MESSAGES

REGENERATE = "messages.py has changed: python -m asr_ws.schema > asr_ws/assets/asr-ws.v1.schema.json"
Fields = dict[str, Any]


def struct_schema(struct: type) -> Fields:
    found: Fields = DOCUMENT["$defs"][struct.__name__]
    return found


# ---------------------------------------------------------------- the document


def test_shipped_file_is_what_the_command_prints() -> None:
    command = [sys.executable, "-m", "asr_ws.schema"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert schema.FILE.read_text("utf-8") == printed, REGENERATE


def test_document_is_a_schema_and_takes_either_side() -> None:
    Draft202012Validator.check_schema(DOCUMENT)
    assert {key: DOCUMENT[key] for key in DOCUMENT if key not in ("$defs", "description")} == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:asr-ws:v1",
        "title": "asr-ws.v1",
        "oneOf": [{"$ref": "#/$defs/ClientMessage"}, {"$ref": "#/$defs/ServerEvent"}],
    }
    either = Draft202012Validator(DOCUMENT)
    assert [either.is_valid({"type": kind, "id": 1}) for kind in ("ping", "pong", "pang")] == [True, True, False]


@pytest.mark.parametrize("union", [ClientMessage, ServerEvent])
def test_entry_point_names_each_type_once_by_its_tag(union: type) -> None:
    [entry] = [name for name in ("ClientMessage", "ServerEvent") if getattr(messages, name) is union]
    structs = get_args(union)
    assert DOCUMENT["$defs"][entry]["oneOf"] == [{"$ref": f"#/$defs/{struct.__name__}"} for struct in structs]
    for struct in structs:
        assert struct_schema(struct)["properties"]["type"] == {"enum": [struct.__struct_config__.tag]}
        assert struct_schema(struct)["required"][0] == "type"


def test_everything_says_what_it_is() -> None:
    assert [name for name, each in DOCUMENT["$defs"].items() if not each.get("description")] == []


async def test_server_gives_it_out(scripted: WorkerSpec) -> None:
    async with serving(scripted, ready=False) as app:
        with await asyncio.to_thread(urlopen, f"{app.listener.url}/v1/schema.json") as answer:
            assert (answer.headers.get_content_type(), answer.read().decode()) == (
                "application/schema+json",
                schema.text(),
            )


# ---------------------------------------------------------------- client messages


def accepted(text: str) -> bool:
    """Whether the server takes the message's shape, whoever sends it and whenever."""
    try:
        message = decode_message(text)
        if isinstance(message, Start):
            message.audio.check()
    except ProtocolError:
        return False
    return True


@pytest.mark.parametrize("text", [FULL_START, *(text for text, _ in MESSAGES)])
def test_message_of_the_document_conforms_and_with_another_field_does_not(text: str) -> None:
    message = json.loads(text)
    CLIENT_MESSAGE.validate(message)
    assert not CLIENT_MESSAGE.is_valid({**message, "extra": None})


def start_with(**fields: Any) -> Fields:
    return {"type": "start", **fields}


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        "start",
        {},
        {"type": 5},
        {"type": "final"},
        {"id": "c1"},
        {"type": "retry"},
        {"type": "commit", "utterance": "u1"},
        {"type": "end", "id": "x"},
        {"type": "ping", "id": True},
        start_with(samplerate=8000),
        start_with(audio={"samplerate": 8000}),
        start_with(audio={"encoding": "opus"}),
        start_with(task="summarize"),
        start_with(prompt="x" * 801),
        start_with(endpointing={"silence_ms": 99}),
        start_with(max_wait_ms=-1),
    ],
)
def test_shape_that_the_server_refuses_does_not_conform(message: Any) -> None:
    assert (accepted(json.dumps(message)), CLIENT_MESSAGE.is_valid(message)) == (False, False)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(start_with(prompt="x" * 400, hotwords="x" * 401)),
        '{"type":"start","audio":{"sample_rate":16000.0}}',
        '{"type":"start","max_wait_ms":1e3}',
        '{"type":"ping","id":1e30}',
    ],
)
def test_what_the_schema_cannot_say_is_no_more_than_this(text: str) -> None:
    """Limits of two fields together, and integers that are written as fractions."""
    assert (accepted(text), CLIENT_MESSAGE.is_valid(json.loads(text))) == (False, True)


# Every default and word of the protocol, both sides of every limit, and every other type.
VALUES: list[Any] = [
    *(None, True, False, {}, [], "", "u1", "x" * 128, "x" * 129, "x" * 800, "x" * 801),
    *("pcm_s16le", "pcm_f32le", "server", "manual", "transcribe", "translate"),
    *(-1, 0, 1, 2, 3, 29, 30, 99, 100, 150, 300, 600, 999, 1000, 1001, 5000, 5001, 7999, 8000, 16_000, 30_000, 30_001),
    *(192_000, 192_001, 2**64, 0.049, 0.05, 0.5, 0.95, 0.951, 1.5),
]


def objects(struct: type[msgspec.Struct]) -> Iterator[Fields]:
    """With none of its fields, and with one, or one that it has not, at each value; objects within likewise."""
    yield {}
    hints = get_type_hints(struct)
    for name in (*struct.__struct_fields__, "samplerate"):
        yield from ({name: value} for value in VALUES)
        if isinstance(inner := hints.get(name), type) and issubclass(inner, msgspec.Struct):
            yield from ({name: fields} for fields in objects(inner))


@pytest.mark.parametrize("struct", get_args(ClientMessage))
def test_message_conforms_exactly_if_the_server_takes_its_shape(struct: type[msgspec.Struct]) -> None:
    tried = [{"type": struct.__struct_config__.tag, **fields} for fields in objects(struct)]
    conforming = [message for message in tried if CLIENT_MESSAGE.is_valid(message)]
    assert conforming == [message for message in tried if accepted(json.dumps(message))]
    assert 0 < len(conforming) < len(tried)


async def until(kind: type[ServerEvent], events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Up to the next event of that kind, with it."""
    async for event in events:
        yield event
        if isinstance(event, kind):
            return


async def test_everything_that_the_python_client_sends_conforms(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Fields] = []

    def read(text: str) -> ClientMessage:
        sent.append(json.loads(text))
        return decode_message(text)

    monkeypatch.setattr(messages, "decode_message", read)
    full: Fields = {key: value for key, value in json.loads(FULL_START).items() if key not in ("type", "token")}
    english = {**full, "language": "en", "task": "transcribe", "max_wait_ms": 8000}
    async with (
        Gate() as gate,
        serving(scripted, queue_capacity=1) as app,
        connect(app.url, token="secret", **{**english, "prompt": gate.script}) as session,
    ):
        for n in range(3):  # one is decoded, one waits, one is refused and will be offered again
            await session.send(SECOND * 4)
            await session.commit(f"c{n}")
        await session.ping(7)
        events = session.events()
        before_pong = [event async for event in until(messages.Pong, events)]
        assert [event.utterance for event in before_pong if isinstance(event, messages.Busy)] == ["u3"]
        await session.cancel("u2")  # the place is free for the one that comes back
        [*_, back] = [event async for event in until(messages.Accepted, events)]
        assert (back.utterance, back.attempt) == ("u3", 2)
        await session.end()
        for _ in range(2):
            await gate.open()
        assert isinstance([event async for event in events][-1], messages.Done)
    for message in sent:
        CLIENT_MESSAGE.validate(message)
    assert {message["type"] for message in sent} == {"start", "commit", "ping", "cancel", "retry", "end"}
    assert full.keys() - sent[0].keys() == {"task"}, "which is the default's"


# ---------------------------------------------------------------- server events


@pytest.mark.parametrize("text", [text for text, _ in EVENTS])
def test_event_of_the_document_conforms_and_so_does_a_newer_servers(text: str) -> None:
    event = json.loads(text)
    check_event(event)
    check_event({**event, "extra": {"any": "thing"}})


@pytest.mark.parametrize("struct", get_args(ServerEvent))
def test_event_without_a_required_field_does_not_conform(struct: Any) -> None:
    tag = struct.__struct_config__.tag
    event = next(event for event in (json.loads(text) for text, _ in EVENTS) if event["type"] == tag)
    required = {name for name in event if not SERVER_EVENT.is_valid({key: event[key] for key in event if key != name})}
    assert required == set(struct_schema(struct)["required"])
    optional = {"seq", "words", "filtered", "recovered"} | ({"utterance", "commit"} if tag == "error" else set())
    assert set(event) - required <= optional


@pytest.mark.parametrize(
    ("event", "why"),
    [
        ({}, "$: 'type' is a required property"),
        ({"type": "pang"}, "unknown type"),
        ({"type": "pong", "id": None, "seq": 0}, "$.seq: 0 is less than the minimum of 1"),
        (
            {"type": "speech_started", "utterance": "u1", "audio_start_ms": 20.5},
            "$.audio_start_ms: 20.5 is not of type 'integer'",
        ),
        (
            {"type": "speech_started", "utterance": "u1", "audio_start_ms": -1},
            "$.audio_start_ms: -1 is less than the minimum of 0",
        ),
        ({"type": "state", "state": "ready", "partials": "off"}, "$.partials: 'off' is not one of ['on', 'paused']"),
        ({"type": "speech_started", "audio_start_ms": 0}, "$: 'utterance' is a required property"),
    ],
)
def test_event_that_no_server_sends_is_told_why(event: Fields, why: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_event(event)
    assert why in str(caught.value).partition(" does not conform: ")[2].split("; ")


async def test_live_session_sends_every_type_of_event_and_all_conform(tmp_path: Path) -> None:
    async with Gate() as gate, serving(scripted_worker(tmp_path, load=gate.script), ready=False) as app:
        load = await gate.entered()
        async with Client(app) as client:  # checks each event
            start = {**MANUAL, "prompt": gate.script, "words": True, "partials": False, "max_wait_ms": 1000}
            await client.send(start, SECOND, {"type": "commit"})
            await client.until("busy", reason="starting")
            gate.release(load)
            await client.until("state", state="ready")
            commit = {"type": "commit"}
            await client.send({"type": "ping"}, commit, SECOND, commit, SECOND, commit)
            decode = await gate.entered()
            await client.until("retry", utterance="u3", reason="deadline")
            gate.release(decode)
            await client.until("final", utterance="u2")
            await client.send({"type": "cancel"})
            await client.until("dropped", utterance="u3")
            await client.send({"type": "end"})
            assert await client.rest() == 1000
    assert set(client.types()) == {
        "ready",
        "started",
        "speech_started",
        "busy",
        "state",
        "pong",
        "error",
        "accepted",
        "retry",
        "final",
        "dropped",
        "done",
    }
