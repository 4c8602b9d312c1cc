"""OpenAI's own Python client against real servers: what a program written for OpenAI gets here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.audio import Transcription, TranscriptionVerbose

from asr_ws.server.app import App
from asr_ws.testing.recognizer import Gate
from asr_ws.testing.wer import word_errors
from asr_ws.worker.supervisor import WorkerSpec
from tests.conftest import SPEECH, read_speech
from tests.e2e.test_speech import JFK, LONG, said
from tests.media.files import Kind, encoded
from tests.server.running import MANUAL, SECOND, Client, get, serving

TRANSCRIPTIONS = "/v1/audio/transcriptions"
FILES = (
    Kind("speech.wav", "wav", "pcm_s16le", 16_000),
    Kind("speech.flac", "flac", "flac", 16_000),
    Kind("speech.ogg", "ogg", "libopus", 16_000),
    Kind("speech.mp3", "mp3", "libmp3lame", 16_000),
    Kind("speech.m4a", "mp4", "aac", 16_000),
    Kind("speech.webm", "webm", "libopus", 16_000),
)


def encoded_speech(kind: Kind) -> bytes:
    return encoded(kind, (read_speech(JFK) * 32768).astype("<i2"))


def is_right(text: str, name: str = JFK) -> bool:
    return word_errors(said(name), text).rate <= 0.05


# ---------------------------------------------------------------- on the real model


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="any")


@pytest.mark.model
def test_the_text_is_right_under_any_models_name(client: OpenAI) -> None:
    heard = client.audio.transcriptions.create(file=SPEECH / JFK, model="gpt-4o-transcribe")
    assert isinstance(heard, Transcription)
    assert is_right(heard.text)
    assert heard.usage is not None
    assert (heard.usage.type, heard.usage.seconds) == ("duration", 11)


@pytest.mark.model
@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.name)
def test_each_kind_of_file_gives_the_same_words(kind: Kind, client: OpenAI) -> None:
    heard = client.audio.transcriptions.create(file=(kind.name, encoded_speech(kind)), model="whisper-1")
    assert is_right(heard.text), heard.text


@pytest.mark.model
def test_text_and_subtitles_are_texts(client: OpenAI) -> None:
    text, srt, vtt = (
        client.audio.transcriptions.create(file=SPEECH / JFK, model="whisper-1", response_format=response_format)
        for response_format in ("text", "srt", "vtt")
    )
    assert is_right(text)
    assert srt.startswith("1\n00:00:0")
    assert " --> " in srt
    assert vtt.startswith("WEBVTT\n\n00:00:0")
    for subtitles in (srt, vtt):
        lines = [line for line in subtitles.removeprefix("WEBVTT").splitlines() if "-->" not in line]
        assert is_right(" ".join(line for line in lines if not line.isdecimal()))


@pytest.mark.model
def test_segments_and_words_have_their_times(client: OpenAI) -> None:
    def heard(*granularities: str) -> TranscriptionVerbose:
        return client.audio.transcriptions.create(
            file=SPEECH / JFK,
            model="whisper-1",
            language="english",
            response_format="verbose_json",
            timestamp_granularities=list(granularities),  # type: ignore[arg-type]
        )

    both, segments, words = heard("word", "segment"), heard("segment"), heard("word")
    assert both.words is not None
    assert both.segments is not None
    assert isinstance(both, TranscriptionVerbose)
    assert (both.language, float(both.duration)) == ("english", 11.0)
    assert is_right(both.text)
    assert is_right("".join(segment.text for segment in both.segments))
    assert is_right(" ".join(word.word for word in both.words))
    for timed in (both.words, both.segments):
        times = [time for each in timed for time in (each.start, each.end)]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= 11
    assert (segments.segments, segments.words) == (both.segments, None)
    assert (words.segments, words.words) == (None, both.words)


@pytest.mark.model
def test_a_long_file_streams_its_text(client: OpenAI) -> None:
    stream = client.audio.transcriptions.create(file=SPEECH / LONG, model="whisper-1", language="en", stream=True)
    *deltas, done = list(stream)
    assert [event.type for event in deltas] == ["transcript.text.delta"] * len(deltas)
    assert len(deltas) >= 2
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == done.text
    assert is_right(done.text, LONG)
    whole = client.audio.transcriptions.create(file=SPEECH / LONG, model="whisper-1", language="en")
    assert whole.text == done.text


@pytest.mark.model
async def test_the_client_without_blocking_does_the_same(url: str) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
        heard = await client.audio.transcriptions.create(file=SPEECH / JFK, model="whisper-1")
        stream = await client.audio.transcriptions.create(file=SPEECH / JFK, model="whisper-1", stream=True)
        events = [event async for event in stream]
    assert is_right(heard.text)
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert [getattr(event, "text", None) or getattr(event, "delta", None) for event in events] == [heard.text] * 2


@pytest.mark.model
def test_what_openai_knows_and_this_server_does_not_changes_nothing(client: OpenAI) -> None:
    heard = client.audio.transcriptions.create(
        file=SPEECH / JFK,
        model="whisper-1",
        temperature=0.7,
        include=["logprobs"],
        chunking_strategy="auto",
        prompt="An inauguration.",
    )
    assert is_right(heard.text)


@pytest.mark.model
def test_an_english_only_model_refuses_to_translate(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.audio.translations.create(file=SPEECH / JFK, model="whisper-1")
    assert (error.value.code, error.value.param) == ("unsupported_language", None)
    assert "an English-only model cannot translate (serve a multilingual model)" in error.value.message


@pytest.mark.model
def test_a_file_that_is_none_is_said_to_be(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as unknown:
        client.audio.transcriptions.create(file=("speech.wav", b"no audio, this"), model="whisper-1")
    assert (unknown.value.status_code, unknown.value.code) == (415, "unsupported_media")
    with pytest.raises(openai.UnprocessableEntityError) as damaged:
        client.audio.transcriptions.create(file=("speech.wav", b"RIFF\0\0\0\0WAVE"), model="whisper-1")
    assert damaged.value.code == "undecodable_media"
    with pytest.raises(openai.UnprocessableEntityError) as empty:
        client.audio.transcriptions.create(file=("speech.wav", b""), model="whisper-1")
    assert empty.value.code == "empty_file"


# ---------------------------------------------------------------- on a scripted one


@asynccontextmanager
async def connected(
    app: App, *, max_retries: int = 0, timeout: float = 60, key: str = "any"
) -> AsyncIterator[AsyncOpenAI]:
    """By default without a retry, so that what is refused is an error."""
    url = f"{app.listener.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=max_retries, timeout=timeout) as client:
        yield client


async def transcribe(client: AsyncOpenAI, prompt: str = "") -> str:
    heard = await client.audio.transcriptions.create(file=SPEECH / JFK, model="whisper-1", prompt=prompt)
    return heard.text


async def answered(app: App, status: int) -> None:
    """Until some request was."""
    while not app.listener.http.requests[TRANSCRIPTIONS, status]:
        await asyncio.sleep(0)


async def test_the_model_is_listed_under_its_name_and_openais(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, connected(app) as client:
        models = [model async for model in await client.models.list()]
    assert [model.id for model in models] == ["base", "whisper-1"]
    assert {model.object for model in models} == {"model"}


async def test_a_wrong_field_is_named(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, connected(app) as client:
        with pytest.raises(openai.BadRequestError) as error:
            await client.audio.transcriptions.create(file=SPEECH / JFK, model="whisper-1", language="Klingon")
    assert (error.value.code, error.value.param) == ("unsupported_language", "language")
    assert error.value.type == "invalid_request_error"


async def test_the_key_is_the_token(scripted: WorkerSpec, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("0123456789abcdef mine\n")
    async with serving(scripted, auth_token_file=str(tmp_path / "tokens")) as app:
        async with connected(app, key="fedcba9876543210") as stranger:
            with pytest.raises(openai.AuthenticationError) as error:
                await transcribe(stranger)
        assert error.value.code == "unauthorized"
        async with connected(app, key="0123456789abcdef") as client:
            assert await transcribe(client) == "country 176000"


async def test_who_has_his_share_is_told_so(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, Gate() as gate, connected(app) as client, asyncio.TaskGroup() as tasks:
        tasks.create_task(transcribe(client, gate.script))
        decode = await gate.entered()
        waiting = [tasks.create_task(transcribe(client)) for _ in range(2)]  # of three places
        while app.dispatcher.queue.depth < 2:
            await asyncio.sleep(0)
        with pytest.raises(openai.RateLimitError) as error:
            await transcribe(client)
        gate.release(decode)
    assert [each.result() for each in waiting] == ["country 176000"] * 2
    assert (error.value.code, error.value.type) == ("fair_share", "rate_limit_error")
    assert 500 <= int(error.value.response.headers["retry-after-ms"]) <= 1500


async def full(app: App, gate: Gate) -> Client:
    """One who speaks: an utterance of his stands at the gate, one waits in the only place that there is."""
    client = await Client(app).__aenter__()
    await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
    await client.until("accepted")
    await client.send(SECOND, {"type": "commit"}, {"type": "end"})
    await client.until("accepted")
    return client


async def test_a_full_server_is_a_server_error(scripted: WorkerSpec) -> None:
    async with serving(scripted, queue_capacity=1) as app, Gate() as gate, connected(app) as client:
        speaker = await full(app, gate)
        with pytest.raises(openai.InternalServerError) as error:
            await transcribe(client)
        await speaker.__aexit__(None, None, None)
    assert (error.value.status_code, error.value.code) == (503, "queue_full")


async def test_who_was_refused_asks_again_by_himself_and_gets_his_text(scripted: WorkerSpec) -> None:
    async with serving(scripted, queue_capacity=1) as app, Gate() as gate, connected(app, max_retries=2) as client:
        speaker = await full(app, gate)
        asking = asyncio.create_task(transcribe(client))
        await answered(app, 503)
        for _ in range(2):
            await gate.open()
        assert await speaker.rest() == 1000
        assert await asking == "country 176000"
        await speaker.__aexit__(None, None, None)
        _, metrics = await get(app, "/metrics")
    route = f'asr_ws_http_requests_total{{route="{TRANSCRIPTIONS}"'
    assert f'{route},status="503"}} 1.0' in metrics
    assert f'{route},status="200"}} 1.0' in metrics


async def test_who_does_not_wait_any_longer_leaves_his_place(scripted: WorkerSpec) -> None:
    async with (
        serving(scripted, queue_capacity=1) as app,
        Gate() as gate,
        connected(app) as patient,
        connected(app, timeout=1) as hasty,
        asyncio.TaskGroup() as tasks,
    ):
        first = tasks.create_task(transcribe(patient, gate.script))
        decode = await gate.entered()
        with pytest.raises(openai.APITimeoutError):
            await transcribe(hasty)
        await answered(app, 499)
        assert app.dispatcher.queue.depth == 0
        second = tasks.create_task(transcribe(patient))
        while not app.dispatcher.queue.depth:
            await asyncio.sleep(0)
        gate.release(decode)
        assert [await first, await second] == ["country 176000"] * 2
