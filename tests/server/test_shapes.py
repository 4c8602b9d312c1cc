"""What HTTP answers, whole, held against the document that ships and against OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from openai import APIError, AsyncOpenAI, BadRequestError, InternalServerError, RateLimitError

from asr_ws.core.files import FileRequest, FileSlice, FileTranscript, Granularity, ResponseFormat
from asr_ws.core.languages import NAMES
from asr_ws.core.types import Hypothesis, RefusalReason, Segment, Shed, Word
from asr_ws.errors import RequestError
from asr_ws.server.form import BodyLimits, parse_fields, read_form
from asr_ws.server.shapes import (
    body,
    delta_event,
    done_event,
    error_body,
    models_body,
    refusal_headers,
    result,
    sse,
)
from tests.openapi import check, check_response, events

TRANSCRIPTIONS = "/v1/audio/transcriptions"


def heard(*words: tuple[str, float, float], start_s: float, end_s: float, language: str = "en") -> FileSlice:
    """A slice as the recognizer gives it: one segment, or none where nothing was said."""
    text = "".join(word for word, _, _ in words)
    segment = Segment(text, 0.0, end_s - start_s, -0.25, 0.125, 1.5, tuple(Word(*word, 1.0) for word in words))
    hypothesis = Hypothesis(text, language, 0.9, (segment,) if words else (), None, 0.1)
    return FileSlice(round(start_s * 16_000), round(end_s * 16_000), hypothesis)


FIRST = heard((" Well!", 0.5, 0.75), (" Hello", 1.0, 1.25), (" <there>.", 1.25, 2.0), start_s=0.0, end_s=2.5)
SILENT = heard(start_s=2.5, end_s=4.0, language="nn")
LAST = heard((" Übrigens", 0.125, 0.5), (" 水", 0.5, 1.0), start_s=31.0, end_s=32.5)
WHOLE = FileTranscript((FIRST, SILENT, LAST), 32 * 16_000 + 8_000)
NOTHING = FileTranscript((), 16_000)
TEXT = "Well! Hello <there>. Übrigens 水"
USAGE = {"type": "duration", "seconds": 33}
THOUGHT = {"tokens": [], "temperature": 0.0, "avg_logprob": -0.25, "compression_ratio": 1.5, "no_speech_prob": 0.125}


def asking(format_: ResponseFormat, **fields: Any) -> FileRequest:
    return FileRequest(response_format=format_, **fields)


# ---------------------------------------------------------------- a transcript


def test_json() -> None:
    media_type, text = body(WHOLE, asking(ResponseFormat.JSON))
    assert (media_type, text) == (
        "application/json",
        '{"text":"Well! Hello <there>. Übrigens 水","usage":{"type":"duration","seconds":33}}',
    )
    check_response("POST", TRANSCRIPTIONS, 200, text)


def test_text() -> None:
    assert body(WHOLE, asking(ResponseFormat.TEXT)) == ("text/plain", f"{TEXT}\n")


def test_srt() -> None:
    assert body(WHOLE, asking(ResponseFormat.SRT)) == (
        "text/plain",
        "1\n00:00:00,500 --> 00:00:00,750\nWell!\n\n"
        "2\n00:00:01,000 --> 00:00:02,000\nHello <there>.\n\n"
        "3\n00:00:31,125 --> 00:00:32,000\nÜbrigens 水\n\n",
    )


def test_vtt() -> None:
    assert body(WHOLE, asking(ResponseFormat.VTT)) == (
        "text/vtt",
        "WEBVTT\n\n"
        "00:00:00.500 --> 00:00:00.750\nWell!\n\n"
        "00:00:01.000 --> 00:00:02.000\nHello &lt;there&gt;.\n\n"
        "00:00:31.125 --> 00:00:32.000\nÜbrigens 水\n\n",
    )


SEGMENTS = [
    {"id": 0, "seek": 0, "start": 0.5, "end": 0.75, "text": " Well!", **THOUGHT},
    {"id": 1, "seek": 0, "start": 1.0, "end": 2.0, "text": " Hello <there>.", **THOUGHT},
    {"id": 2, "seek": 3100, "start": 31.125, "end": 32.0, "text": " Übrigens 水", **THOUGHT},
]
WORDS = [
    {"word": "Well!", "start": 0.5, "end": 0.75},
    {"word": "Hello", "start": 1.0, "end": 1.25},
    {"word": "<there>.", "start": 1.25, "end": 2.0},
    {"word": "Übrigens", "start": 31.125, "end": 31.5},
    {"word": "水", "start": 31.5, "end": 32.0},
]


@pytest.mark.parametrize(
    ("granularities", "asked_for"),
    [
        ({Granularity.SEGMENT}, {"segments": SEGMENTS}),
        ({Granularity.WORD}, {"words": WORDS}),
        ({Granularity.SEGMENT, Granularity.WORD}, {"segments": SEGMENTS, "words": WORDS}),
    ],
)
def test_verbose_json(granularities: set[Granularity], asked_for: dict[str, Any]) -> None:
    media_type, text = body(WHOLE, asking(ResponseFormat.VERBOSE_JSON, granularities=frozenset(granularities)))
    assert (media_type, json.loads(text)) == (
        "application/json",
        {"task": "transcribe", "language": "english", "duration": 32.5, "text": TEXT, "usage": USAGE, **asked_for},
    )
    check_response("POST", TRANSCRIPTIONS, 200, text)


def test_nothing_heard_is_an_answer_too() -> None:
    verbose = {"task": "transcribe", "language": "", "duration": 1.0, "text": "", "segments": []}
    usage = {"type": "duration", "seconds": 1}
    assert [result(NOTHING, asking(each)) for each in ResponseFormat] == [
        {"text": "", "usage": usage},
        "\n",
        {**verbose, "usage": usage},
        "",
        "WEBVTT\n\n",
    ]
    for format_ in (ResponseFormat.JSON, ResponseFormat.VERBOSE_JSON):
        check_response("POST", TRANSCRIPTIONS, 200, body(NOTHING, asking(format_))[1])


def test_text_that_was_filtered_has_no_cues() -> None:
    """A recognizer may tell what it filtered; there is no text in any format."""
    filtered = replace(FIRST, hypothesis=replace(FIRST.hypothesis, text="", filtered="no_speech"))
    assert body(FileTranscript((filtered,), 40_000), asking(ResponseFormat.SRT)) == ("text/plain", "")


def test_what_is_too_short_for_words_is_one_cue() -> None:
    segment = Segment(" Yes.", 0.0, 0.25, -0.25, 0.125, 1.5)
    short = FileSlice(16_000, 20_000, Hypothesis(" Yes.", "en", 0.9, (segment,), None, 0.1))
    transcript = FileTranscript((short,), 20_000)
    assert body(transcript, asking(ResponseFormat.SRT))[1] == "1\n00:00:01,000 --> 00:00:01,250\nYes.\n\n"
    verbose = result(transcript, asking(ResponseFormat.VERBOSE_JSON, granularities=frozenset({Granularity.WORD})))
    assert isinstance(verbose, dict)
    assert verbose["words"] == [{"word": "Yes.", "start": 1.0, "end": 1.25}]


@pytest.mark.parametrize(
    ("fields", "parts", "language"),
    [
        ({}, (FIRST, LAST), "english"),
        ({}, (SILENT, FIRST), "english"),
        ({}, (heard((" a", 0, 1), start_s=0, end_s=1, language="de"), FIRST), "english"),
        ({}, (heard((" a", 0, 1), start_s=0, end_s=9, language="de"), FIRST), "german"),
        ({}, (heard((" a", 0, 1), start_s=0, end_s=9, language="xx"),), "xx"),
        ({"language": "yue"}, (FIRST,), "cantonese"),
        ({"language": "de"}, (), "german"),
        ({"language": "de", "task": "translate"}, (FIRST,), "english"),
    ],
)
def test_language_is_named(fields: dict[str, Any], parts: tuple[FileSlice, ...], language: str) -> None:
    found = result(FileTranscript(parts, 160_000), asking(ResponseFormat.VERBOSE_JSON, **fields))
    assert isinstance(found, dict)
    assert found["language"] == language


def test_number_that_json_has_not_is_our_fault() -> None:
    segment = replace(FIRST.hypothesis.segments[0], avg_logprob=float("nan"))
    broken = replace(FIRST, hypothesis=replace(FIRST.hypothesis, segments=(segment,)))
    with pytest.raises(ValueError, match="not JSON compliant"):
        body(FileTranscript((broken,), 40_000), asking(ResponseFormat.VERBOSE_JSON))


# ---------------------------------------------------------------- a stream


def streamed(request: FileRequest) -> list[dict[str, Any]]:
    deltas, text = [], ""
    for part in WHOLE.slices:
        event = delta_event(part, is_first=not text, done_s=part.end_sample / 16_000, duration_s=32.5)
        text += event["delta"]
        deltas.append(event)
    return [*deltas, done_event(WHOLE, request)]


DELTAS = [
    ("Well! Hello <there>.", 2.5),
    ("", 4.0),
    (" Übrigens 水", 32.5),
]


@pytest.mark.parametrize("format_", ResponseFormat)
def test_stream(format_: ResponseFormat) -> None:
    request = asking(format_, stream=True)
    asked_for = {} if format_ in ("json", "text") else {"result": result(WHOLE, request)}
    stream = b"".join(map(sse, streamed(request))).decode()
    assert list(events(stream)) == [
        *(
            {
                "type": "transcript.text.delta",
                "delta": delta,
                "progress": {"seconds": seconds, "duration": 32.5},
            }
            for delta, seconds in DELTAS
        ),
        {"type": "transcript.text.done", "text": TEXT, "usage": USAGE, **asked_for},
    ]
    check_response("POST", TRANSCRIPTIONS, 200, stream, "text/event-stream")


def test_deltas_are_the_text_also_where_the_first_slice_is_silent() -> None:
    deltas = [delta_event(part, is_first=True, done_s=1, duration_s=None) for part in (SILENT, LAST)]
    check("StreamEvent", deltas[0])
    assert "".join(event["delta"] for event in deltas) == FileTranscript((SILENT, LAST), 1).text


# ---------------------------------------------------------------- an error

FULL = Shed(RefusalReason.QUEUE_FULL, 1.0004, 4.2, 3, 3)


@pytest.mark.parametrize(
    ("status", "type_"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "invalid_request_error"),
        (409, "conflict_error"),
        (410, "not_found_error"),
        (413, "invalid_request_error"),
        (415, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_error(status: int, type_: str) -> None:
    found = error_body(status, "no", "it is wrong", "language")
    assert found == {"error": {"message": "it is wrong", "type": type_, "param": "language", "code": "no"}}
    check("Error", found)


def test_refusal() -> None:
    found = error_body(503, "queue_full", "the queue is full", shed=FULL)
    assert found == {
        "error": {"message": "the queue is full", "type": "server_error", "param": None, "code": "queue_full"},
        "retry_after_ms": 1000,
        "estimated_wait_ms": 4200,
        "queue_depth": 3,
    }
    check_response("POST", TRANSCRIPTIONS, 503, json.dumps(found))


@pytest.mark.parametrize(
    ("shed", "seconds", "milliseconds"),
    [
        (FULL, "1", "1000"),
        (replace(FULL, retry_after_s=0.5), "1", "500"),
        (replace(FULL, retry_after_s=1.001), "2", "1001"),
        (replace(FULL, reason=RefusalReason.STARTING), "5", "4200"),
        (replace(FULL, reason=RefusalReason.UNAVAILABLE, estimated_wait_s=600.0), "10", "10000"),
    ],
)
def test_hints_of_a_refusal_agree(shed: Shed, seconds: str, milliseconds: str) -> None:
    assert refusal_headers(shed) == {
        "Retry-After": seconds,
        "retry-after-ms": milliseconds,
        "x-should-retry": "true",
    }
    assert error_body(503, "x", "y", shed=shed)["retry_after_ms"] == int(milliseconds)


def test_models() -> None:
    common = {"object": "model", "created": 1_760_000_000, "owned_by": "asr-ws"}
    found = models_body("base", 1_760_000_000)
    assert found == {"object": "list", "data": [{"id": "base", **common}, {"id": "whisper-1", **common}]}
    check_response("GET", "/v1/models", 200, json.dumps(found))


# ---------------------------------------------------------------- OpenAI's own client


@asynccontextmanager
async def talking_to(
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], *, max_retries: int = 0
) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client of a server that answers with ``handle``."""
    server = web.Server(handle, auto_decompress=False, lingering_time=0)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        async with (
            asyncio.timeout(30),
            AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=max_retries) as client,
        ):
            yield client
    finally:
        listener.close()
        await server.shutdown(1.0)


class Nowhere:
    async def write(self, data: bytes) -> None:
        pass


async def transcribed(request: web.BaseRequest) -> web.StreamResponse:
    """As the server will, less what it hears."""

    async def on_file() -> Nowhere:
        return Nowhere()

    try:
        fields = await read_form(request, limits=BodyLimits(1_000_000), on_file=on_file)
        task = "translate" if request.path.endswith("translations") else "transcribe"
        asked = parse_fields(fields, task=task, languages=tuple(NAMES))
    except RequestError as error:
        refusal = error_body(error.status, error.code, str(error), error.param)
        return web.json_response(refusal, status=error.status)
    if asked.stream:
        return web.Response(body=b"".join(map(sse, streamed(asked))), content_type="text/event-stream")
    content_type, text = body(WHOLE, asked)
    return web.Response(text=text, content_type=content_type, charset="utf-8")


SPEECH = ("speech.wav", b"RIFF" * 1000, "audio/wav")


async def test_sdk_reads_every_format() -> None:
    async with talking_to(transcribed) as client:
        create = client.audio.transcriptions.create
        plain = await create(file=SPEECH, model="whisper-1", prompt="Ä", temperature=0.2)
        assert (plain.text, plain.usage and plain.usage.type) == (TEXT, "duration")
        for format_ in ("text", "srt", "vtt"):
            found = await create(file=SPEECH, model="whisper-1", response_format=format_)
            assert found == result(WHOLE, asking(ResponseFormat(format_)))
        verbose = await create(
            file=SPEECH,
            model="whisper-1",
            language="de",
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        )
        assert (verbose.language, verbose.duration, verbose.text) == ("german", 32.5, TEXT)
        assert [segment.model_dump() for segment in verbose.segments or ()] == SEGMENTS
        assert [word.model_dump() for word in verbose.words or ()] == WORDS


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK's word on its own method
async def test_sdk_reads_a_translation() -> None:
    async with talking_to(transcribed) as client:
        found = await client.audio.translations.create(file=SPEECH, model="whisper-1", response_format="verbose_json")
        assert (found.language, found.text) == ("english", TEXT)


async def test_sdk_reads_the_stream() -> None:
    async with talking_to(transcribed) as client:
        stream = await client.audio.transcriptions.create(
            file=SPEECH, model="whisper-1", stream=True, include=["logprobs"], chunking_strategy={"type": "server_vad"}
        )
        found = [event async for event in stream]
    assert [event.type for event in found] == ["transcript.text.delta"] * 3 + ["transcript.text.done"]
    assert "".join(event.delta for event in found if event.type == "transcript.text.delta") == TEXT
    assert [event.text for event in found if event.type == "transcript.text.done"] == [TEXT]


async def test_sdk_raises_what_the_stream_breaks_off_with() -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        first = delta_event(FIRST, is_first=True, done_s=2.5, duration_s=None)
        error = error_body(503, "worker_crashed", "the worker died", shed=FULL)
        check("StreamEvent", error)
        return web.Response(body=sse(first) + sse(error), content_type="text/event-stream")

    async with talking_to(handle) as client:
        stream = await client.audio.transcriptions.create(file=SPEECH, model="whisper-1", stream=True)
        seen = []
        with pytest.raises(APIError) as caught:
            async for event in stream:
                seen.append(event.type)
    assert seen == ["transcript.text.delta"]
    error = caught.value
    assert (error.message, error.code, error.type) == ("the worker died", "worker_crashed", "server_error")


async def test_sdk_raises_what_is_wrong() -> None:
    async with talking_to(transcribed) as client:
        with pytest.raises(BadRequestError) as caught:
            await client.audio.transcriptions.create(file=SPEECH, model="whisper-1", language="klingon")
    error = caught.value
    assert (error.code, error.param, error.type) == ("unsupported_language", "language", "invalid_request_error")


@pytest.mark.parametrize(("status", "kind"), [(429, RateLimitError), (503, InternalServerError)])
async def test_sdk_asks_again_when_it_is_told(status: int, kind: type[APIError]) -> None:
    shed = replace(FULL, retry_after_s=0.001)
    refused = 0

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal refused
        await request.read()
        refused += 1
        return web.json_response(
            error_body(status, "full", "try later", shed=shed), status=status, headers=refusal_headers(shed)
        )

    async with talking_to(handle, max_retries=2) as client:
        with pytest.raises(kind) as caught:
            await client.audio.transcriptions.create(file=SPEECH, model="whisper-1")
    assert (refused, caught.value.code) == (3, "full")


async def test_sdk_lists_the_models() -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response(models_body("base", 1))

    async with talking_to(handle) as client:
        assert [model.id async for model in await client.models.list()] == ["base", "whisper-1"]
