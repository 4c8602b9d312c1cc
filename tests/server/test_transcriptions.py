"""OpenAI's routes of a whole server with a scripted worker and real media processes."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import psutil
import pytest
from structlog.testing import capture_logs

from asr_ws.core.files import FileRequest, FileSlice
from asr_ws.core.types import Hypothesis, ServiceState
from asr_ws.errors import MediaError
from asr_ws.server import media, transcriptions
from asr_ws.server.app import App
from asr_ws.server.files import MAX_FILES
from asr_ws.server.http import Visit
from asr_ws.testing.recognizer import Gate, scripted_worker
from asr_ws.worker.supervisor import WorkerSpec
from tests.media.files import KIND, encoded, film, tone
from tests.openapi import check, check_response, events
from tests.server.asking import (
    FORM,
    JOBS,
    LONG,
    TRANSCRIPTIONS,
    TRANSLATIONS,
    WAV,
    Answer,
    answer_to,
    ask,
    ask_by_head,
    busy,
    form,
    head,
    media_processes,
    nothing_is_left,
    token_of,
    tokens,
    transcribe,
    until,
    uploading,
)
from tests.server.raw import raw
from tests.server.running import MANUAL, PATIENT_MS, SECOND, Client, get, serving, stats
from tests.server.test_faults import IMPATIENT
from tests.server.test_shutdown import server

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
USAGE = {"type": "duration", "seconds": 1}
HELLO = {"prompt": "say Hello there."}
PAGE = "https://page.example"


@pytest.fixture(autouse=True)
def no_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a request is counted."""
    monkeypatch.setattr(media, "REFILL_S", 3600.0)


@pytest.fixture
def multilingual(tmp_path: Path) -> WorkerSpec:
    folder = tmp_path / "multilingual"
    folder.mkdir()
    return scripted_worker(folder, multilingual=True)


# ---------------------------------------------------------------- what is answered


SEGMENT = {
    "id": 0,
    "seek": 0,
    "start": 0.0,
    "end": 1.0,
    "text": " Hello there.",
    "tokens": [],
    "temperature": 0.0,
    "avg_logprob": -0.1,
    "compression_ratio": 1.0,
    "no_speech_prob": 0.0,
}
WORD = {"word": "Hello there.", "start": 0.0, "end": 1.0}
VERBOSE = {"task": "transcribe", "language": "english", "duration": 1.0, "text": "Hello there.", "usage": USAGE}


@pytest.mark.parametrize(
    ("response_format", "content_type", "body"),
    [
        ("json", "application/json", {"text": "Hello there.", "usage": USAGE}),
        ("verbose_json", "application/json", {**VERBOSE, "segments": [SEGMENT]}),
        ("text", "text/plain", "Hello there.\n"),
        ("srt", "text/plain", "1\n00:00:00,000 --> 00:00:01,000\nHello there.\n\n"),
        ("vtt", "text/vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nHello there.\n\n"),
    ],
)
async def test_file_in_text_out_in_each_format(
    scripted: WorkerSpec, response_format: str, content_type: str, body: object
) -> None:
    async with serving(scripted) as app:
        answer = await transcribe(app, **HELLO, response_format=response_format)
    assert (answer.status, answer.headers["content-type"]) == (200, f"{content_type}; charset=utf-8")
    assert (answer.json if content_type == "application/json" else answer.body) == body


@pytest.mark.parametrize(
    ("granularities", "more"),
    [
        (["word"], {"words": [WORD]}),
        (["segment"], {"segments": [SEGMENT]}),
        (["segment", "word"], {"segments": [SEGMENT], "words": [WORD]}),
    ],
)
async def test_times_of_what_was_asked_for(
    scripted: WorkerSpec, granularities: list[str], more: dict[str, Any]
) -> None:
    async with serving(scripted) as app:
        answer = await transcribe(app, **HELLO, response_format="verbose_json", timestamp_granularities=granularities)
    assert answer.json == {**VERBOSE, **more}


@pytest.mark.parametrize("kind", ["flac-44k-stereo", "mp3-44k-stereo", "ogg-opus-48k", "m4a-aac-44k-stereo"])
async def test_other_files_than_wav(scripted: WorkerSpec, kind: str) -> None:
    async with serving(scripted) as app:
        answer = await transcribe(app, encoded(KIND[kind], tone(1.0, KIND[kind].rate)), **HELLO)
    assert (answer.status, answer.json["text"]) == (200, "Hello there.")


async def test_any_model_is_the_one_that_is_served(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        for model in ("whisper-1", "gpt-4o-transcribe", "no such model", ""):
            assert (await transcribe(app, model=model)).json["text"] == "country 16000"
        answer = await ask(app, "GET", "/v1/models")
    assert [model["id"] for model in answer.json["data"]] == ["base", "whisper-1"]


async def test_translation_says_so(multilingual: WorkerSpec) -> None:
    async with serving(multilingual) as app:
        answer = await transcribe(app, path=TRANSLATIONS, response_format="verbose_json", language="german")
    assert (answer.json["task"], answer.json["language"]) == ("translate", "english")


async def test_english_model_translates_nothing(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        assert (await transcribe(app, path=TRANSLATIONS)).said == (400, "unsupported_language")


# ---------------------------------------------------------------- long files, and streams


async def test_long_file_comes_in_slices_and_its_deltas_are_its_text(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        whole = await transcribe(app, LONG)
        streamed = await transcribe(app, LONG, stream="true")
        seen = await stats(app)
    *deltas, done = streamed.events
    assert len(deltas) == 2
    assert "".join(delta["delta"] for delta in deltas) == done["text"] == whole.json["text"]
    assert done["usage"] == whole.json["usage"] == {"type": "duration", "seconds": 45}
    assert (seen["finals"], seen["background_depth"]) == (0, 0)


async def test_first_delta_is_there_while_the_second_slice_is_decoded(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app, aiohttp.ClientSession() as session:
        body = form(LONG, prompt=gate.script, stream="true", response_format="verbose_json")

        async def post() -> aiohttp.ClientResponse:
            return await session.post(app.listener.url + TRANSCRIPTIONS, data=body, headers=FORM)

        asking = asyncio.create_task(post())
        gate.release(await gate.entered())
        response = await asking
        first = await response.content.readuntil(b"\n\n")
        second = await gate.entered()
        assert app.dispatcher.queue.in_flight is not None
        gate.release(second)
        rest = await response.content.read()
    assert response.headers["Content-Type"] == "text/event-stream"
    check_response("POST", TRANSCRIPTIONS, 200, (first + rest).decode(), "text/event-stream")
    delta, _, done = events((first + rest).decode())
    assert 0 < delta["progress"]["seconds"] < delta["progress"]["duration"]
    assert len(done["result"]["segments"]) == 2


async def test_comments_come_between_the_first_event_and_the_last(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcriptions, "BEAT_S", 0.01)
    async with Gate() as gate, serving(scripted) as app:
        body = form(LONG, prompt=gate.script, stream="true")
        async with uploading(app, body=body) as socket:
            await socket.send(body[-1:])
            gate.release(await gate.entered())
            before = await socket.reader.readuntil(b"data: ")
            second = await gate.entered()
            for _ in range(3):
                await socket.reader.readuntil(transcriptions.BEAT)
            gate.release(second)
            rest = await socket.reader.readuntil(b'"transcript.text.done"')
    assert transcriptions.BEAT not in before
    assert b'"transcript.text.delta"' in rest


async def test_comment_that_cannot_be_written_is_no_task_without_an_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcriptions, "BEAT_S", 0.0)
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    tried = asyncio.Event()

    class Gone:
        async def write(self, data: bytes) -> None:
            if data == transcriptions.BEAT:
                tried.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    raise ConnectionResetError

    class Visitor:
        async def stream(self, _: str) -> Gone:
            return Gone()

    async def parts() -> AsyncIterator[FileSlice]:
        yield FileSlice(0, 16_000, Hypothesis("", "en", 1.0, (), None, 0.0))
        await tried.wait()
        await asyncio.sleep(0)
        raise ConnectionResetError("of the handler")

    file: Any = SimpleNamespace(parts=[], duration_s=None)
    with suppress(ConnectionResetError):  # `raises` would keep the task
        await transcriptions._stream(cast(Visit, Visitor()), file, FileRequest(), parts())
    assert "beat" not in {task.get_name() for task in asyncio.all_tasks()}
    gc.collect()
    assert told == []


async def test_stream_of_a_short_file_and_of_one_without_a_text(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        short = await transcribe(app, **HELLO, stream="true")
        silent = await transcribe(app, encoded(KIND["flac-16k"], tone(31.0, 16_000) * 0), stream="true")
    progress = {"seconds": 1.0, "duration": 1.0}
    assert short.events == [
        {"type": "transcript.text.delta", "delta": "Hello there.", "progress": progress},
        {"type": "transcript.text.done", "text": "Hello there.", "usage": USAGE},
    ]
    assert silent.events == [{"type": "transcript.text.done", "text": "", "usage": {"type": "duration", "seconds": 31}}]


async def test_error_in_mid_stream_is_its_last_event(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app:
        asking = asyncio.create_task(transcribe(app, LONG, prompt=gate.script, stream="true"))
        await gate.open()
        for _ in range(2):
            await gate.entered()
            assert app.supervisor.pid is not None
            os.kill(app.supervisor.pid, signal.SIGSEGV if sys.platform != "win32" else signal.SIGTERM)
        answer = await asking
        delta, error = answer.events
        assert (answer.status, delta["type"], error["error"]["code"]) == (
            200,
            "transcript.text.delta",
            "poison_audio",
        )
        assert (await transcribe(app)).status == 200


async def test_error_before_the_first_delta_has_its_status(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        assert (await transcribe(app, stream="true", prompt="raise no")).said == (422, "decode_failed")
        assert (await transcribe(app, b"no audio", stream="true")).said == (415, "unsupported_media")


async def test_live_final_waits_for_one_slice_at_most(scripted: WorkerSpec) -> None:
    decoded: list[bool] = []  # whether it was of the background
    async with Gate() as gate, serving(scripted) as app:

        async def at_the_gate() -> asyncio.StreamWriter:
            decode = await gate.entered()
            assert app.dispatcher.queue.in_flight is not None
            decoded.append(app.dispatcher.queue.in_flight.background)
            return decode

        asking = [asyncio.create_task(transcribe(app, LONG, prompt=gate.script)) for _ in range(2)]
        slice = await at_the_gate()
        await until(lambda: app.dispatcher.queue.background_depth == 1)
        async with Client(app) as client:
            await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
            assert (await client.until("accepted"))["position"] == 1
            gate.release(slice)
            live = await at_the_gate()
            await client.send(SECOND, {"type": "commit"})
            await client.until("accepted", utterance="u2")
            await until(lambda: app.dispatcher.queue.background_depth == 2)
            gate.release(live)
            gate.release(await at_the_gate())
            await client.until("final", utterance="u2")
        for _ in range(3):
            gate.release(await at_the_gate())
        assert [answer.status for answer in await asyncio.gather(*asking)] == [200, 200]
    assert decoded == [True, False, False, True, True, True]


# ---------------------------------------------------------------- who goes away


async def test_who_goes_away_while_he_sends_leaves_nothing(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        await transcribe(app)  # whatever is opened once
        await until(lambda: not media_processes())
        files = app.jobs._files
        with nothing_is_left(app):
            for _ in range(3):
                async with uploading(app):
                    await until(media_processes)
                    assert len(files._expected) == 1
                await until(lambda: not files._here)
                await until(lambda: not media_processes())
        await until(lambda: app.listener.http.requests == {(TRANSCRIPTIONS, 200): 1, (TRANSCRIPTIONS, 400): 3})


async def test_who_goes_away_in_the_queue_leaves_his_place(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, busy(app):
        queue, files = app.dispatcher.queue, app.jobs._files
        with nothing_is_left(app):
            for body, depth in ((form(), "depth"), (form(LONG), "background_depth")):
                async with uploading(app, body=body) as socket:
                    await socket.send(body[-1:])
                    await until(lambda depth=depth: getattr(queue, depth))
                await until(lambda depth=depth: not getattr(queue, depth))
                await until(lambda: not files._here)
                await until(lambda: not media_processes())
        assert app.listener.tally.outcomes()["dropped"] == 2


async def test_who_goes_away_in_mid_decode_costs_no_worker(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app:
        queue, files = app.dispatcher.queue, app.jobs._files
        with nothing_is_left(app):
            body = form(prompt=gate.script)
            async with uploading(app, body=body) as socket:
                await socket.send(body[-1:])
                decode = await gate.entered()
            await until(lambda: queue.in_flight is not None and queue.in_flight.abandoned)
            await until(lambda: not files._here)
            await until(lambda: not media_processes())
            gate.release(decode)
            await until(lambda: queue.in_flight is None)
        assert (await transcribe(app, **HELLO)).json["text"] == "Hello there."
        assert app.listener.tally.outcomes() == {"final": 1, "error": 0, "dropped": 1}


async def test_who_goes_away_in_mid_stream_leaves_nothing(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app:
        queue, files = app.dispatcher.queue, app.jobs._files
        with nothing_is_left(app):
            body = form(LONG, prompt=gate.script, stream="true")
            async with uploading(app, body=body) as socket:
                await socket.send(body[-1:])
                await gate.open()
                await socket.reader.readuntil(b"data: ")
                decode = await gate.entered()
            await until(lambda: queue.in_flight is not None and queue.in_flight.abandoned)
            await until(lambda: not files._here)
            await until(lambda: not media_processes())
            gate.release(decode)
            await until(lambda: queue.in_flight is None)


# ---------------------------------------------------------------- what this machine has no room for


async def test_full_disk_is_logged_and_not_to_be_tried_again_at_once(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: media.Media) -> None:
        raise MediaError("no_space", "there is no room for it")

    monkeypatch.setattr(media.Media, "end", full)
    async with serving(scripted) as app:
        with capture_logs() as logs:
            answer = await transcribe(app)
    assert (answer.said, answer.headers["x-should-retry"]) == ((507, "no_space"), "false")
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["media.no_space"]


@pytest.mark.parametrize("error", [OSError(12, "no memory"), RuntimeError("can't start a thread")])
async def test_process_that_cannot_be_started_is_a_refusal(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Regression: it was 500, a bug of the server's."""

    async def none(self: media.Media) -> media.Media:
        raise error

    monkeypatch.setattr(media.Media, "__aenter__", none)
    async with serving(scripted) as app:
        with capture_logs() as logs:
            answer = await transcribe(app)
        assert not app.jobs._files._here
    assert (answer.said, answer.headers["x-should-retry"]) == ((503, "queue_full"), "true")
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["media.not_started"]


# ---------------------------------------------------------------- refusals, before the body is read


async def refused_by_head(app: App, path: str = TRANSCRIPTIONS) -> Answer:
    """It says the same to who asks before he sends."""
    answer = await ask_by_head(app, path)
    expecting = await ask_by_head(app, path, "Expect: 100-continue")
    assert answer.said == expecting.said
    return answer


async def test_full_queue(scripted: WorkerSpec) -> None:
    async with serving(scripted, queue_capacity=1) as app, busy(app), Client(app) as client:
        await client.send(MANUAL, SECOND, {"type": "commit"})
        await client.until("accepted")
        answer = await refused_by_head(app)
        assert (answer.said, answer.json["queue_depth"]) == ((503, "queue_full"), 1)
        assert app.dispatcher.queue.depth == 1


async def test_files_on_their_way_count_and_one_caller_has_his_share(scripted: WorkerSpec) -> None:
    async with serving(scripted, queue_capacity=2) as app, busy(app), uploading(app):
        await until(lambda: app.jobs._files._expected)
        assert (await refused_by_head(app)).said == (429, "fair_share")


async def test_wait_that_would_be_too_long(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, busy(app):
        running = app.dispatcher.queue.in_flight
        assert running is not None
        assert running.decode_began_at is not None
        running.decode_began_at -= 1000.0  # as if it ran so long already
        answer = await refused_by_head(app)
        assert answer.said == (503, "predicted_wait")
        assert answer.json["estimated_wait_ms"] > 900_000


async def test_model_that_is_being_loaded(tmp_path: Path) -> None:
    async with Gate() as gate, serving(scripted_worker(tmp_path, load=gate.script), ready=False) as app:
        load = await gate.entered()
        assert (await refused_by_head(app)).said == (503, "starting")
        gate.release(load)
        await app.dispatcher.wait_ready()
        assert (await transcribe(app)).status == 200


async def test_model_that_is_being_loaded_again(tmp_path: Path) -> None:
    async with Gate() as gate, serving(scripted_worker(tmp_path), queue_capacity=1) as app, Client(app) as client:
        scripted_worker(tmp_path, load=gate.script)
        assert app.supervisor.pid is not None
        psutil.Process(app.supervisor.pid).kill()
        load = await gate.entered()
        await client.send(MANUAL, SECOND, {"type": "commit"})
        await client.until("accepted")
        answer = await refused_by_head(app)
        assert answer.said == (503, "restarting")
        gate.release(load)
        await client.until("final")
        assert (await transcribe(app)).status == 200


async def test_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    async with serving(scripted_worker(tmp_path, load="raise no memory"), ready=False) as app:
        await app.dispatcher.wait_for(ServiceState.UNAVAILABLE)
        assert (await refused_by_head(app)).said == (503, "unavailable")


async def test_server_that_stops(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        app.dispatcher.drain()
        assert (await refused_by_head(app)).said == (503, "draining")


async def test_wait_that_was_too_long(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, busy(app):
        asking = asyncio.create_task(transcribe(app))
        await until(lambda: app.dispatcher.queue.depth)
        app.dispatcher._settle(asyncio.get_running_loop().time() + PATIENT_MS / 1000)  # that moment has come
        assert (await asking).said == (503, "deadline")
        assert app.listener.tally.outcomes()["dropped"] == 1


async def test_body_is_asked_for_once_it_is_wanted(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, raw(app) as socket:
        body = form(**HELLO)
        await socket.send(head(TRANSCRIPTIONS, len(body), "Expect: 100-continue"))
        assert await socket.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await socket.send(body)
        answer = await answer_to(socket)
    assert (answer.status, answer.json["text"]) == (200, "Hello there.")


async def test_too_many_files_at_once(scripted: WorkerSpec, tmp_path: Path) -> None:
    """One has his half; each of the others may have one that is not there yet, because somebody else wants in too."""
    callers = [*["ann"] * (MAX_FILES // 2), "bob", "cleo", "dora", "emil"]
    file = tokens(tmp_path, *dict.fromkeys(callers), "fay")
    async with serving(scripted, queue_capacity=100, auth_token_file=file) as app, AsyncExitStack() as uploads:
        for n, name in enumerate(callers, 1):
            bearer = f"Authorization: Bearer {token_of(name)}"
            await uploads.enter_async_context(uploading(app, TRANSCRIPTIONS, bearer))
            await until(lambda n=n: len(app.jobs._files._here) == n)
        own = await ask_by_head(app, TRANSCRIPTIONS, f"Authorization: Bearer {token_of('ann')}")
        full = await ask_by_head(app, TRANSCRIPTIONS, f"Authorization: Bearer {token_of('fay')}")
        assert (own.said, full.said) == ((429, "fair_share"), (503, "queue_full"))


async def test_wrong_address_is_told_the_right_one(scripted: WorkerSpec) -> None:
    async def asked(app: App, path: str) -> tuple[int, str]:
        async with raw(app) as socket:
            body = form()
            await socket.send(head(path, len(body)) + body)
            answer = await answer_to(socket)
            return answer.status, answer.body

    async with serving(scripted) as app:
        for path in ("/audio/transcriptions", "/v1/audio/transcription", "/v1/audio/transcriptions/"):
            status, body = await asked(app, path)
            meant = f"there is no {path} (did you mean /v1/audio/transcriptions?)"
            assert (status, json.loads(body)["error"]["message"]) == (404, meant)
        status, body = await asked(app, f"{TRANSCRIPTIONS}?response_format=text")
        assert (status, json.loads(body)["error"]["code"]) == (400, "unknown_parameter")
        assert await asked(app, "/v1/stream") == (426, "sessions are opened here by a GET\n")


async def test_who_was_let_in_waits_behind_who_came_while_he_sent(scripted: WorkerSpec) -> None:
    body = form(**HELLO)
    async with (
        serving(scripted, queue_capacity=1) as app,
        uploading(app, body=body) as upload,
        busy(app) as gate,
        Client(app) as live,
    ):
        await live.send({**MANUAL, "prompt": "say live"}, SECOND, {"type": "commit"})
        await live.until("accepted")  # the last place
        await upload.send(body[-1:])
        await until(lambda: app.dispatcher.queue.background_depth == 1)
        for decode in gate._entered:
            gate.release(decode)
        answer, final = await answer_to(upload), await live.until("final")
        assert (answer.status, answer.json["text"], final["text"]) == (200, "Hello there.", "live")
        assert app.metrics.refusals == {}


async def test_caller_may_wait_less_but_not_more(scripted: WorkerSpec) -> None:
    async with serving(scripted, max_wait_ms=5000) as app:
        assert (await transcribe(app, max_wait_ms="5000")).status == 200
        assert (await transcribe(app, max_wait_ms="0")).status == 200  # nobody is ahead
        answer = await transcribe(app, max_wait_ms="5001")
        assert (answer.said, answer.json["error"]["param"]) == ((400, "invalid_value"), "max_wait_ms")
        async with busy(app):
            assert (await transcribe(app, max_wait_ms="0")).said == (503, "predicted_wait")


# ---------------------------------------------------------------- what is wrong with a request


async def test_body_that_is_too_large_by_its_head_is_not_asked_for(scripted: WorkerSpec) -> None:
    async with serving(scripted, max_upload_mb=1) as app:
        for headers in ((), ("Expect: 100-continue",)):
            answer = await ask_by_head(app, TRANSCRIPTIONS, *headers, n_bytes=1_000_001)
            assert answer.said == (413, "too_large")


async def test_body_that_turns_out_too_large(scripted: WorkerSpec) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield form(WAV)[: -len("--x--\r\n") - 2]
        while True:
            yield bytes(100_000)

    async with serving(scripted, max_upload_mb=1) as app:
        assert (await ask(app, "POST", TRANSCRIPTIONS, chunks())).said == (413, "too_large")
        assert (await transcribe(app, prompt="x" * 20_000)).said == (413, "too_large")


async def test_body_of_another_kind(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        for header in ({"Content_Type": "audio/wav"}, {"Content_Encoding": "gzip"}):
            answer = await ask(app, "POST", TRANSCRIPTIONS, WAV, Expect="100-continue", **header)
            assert answer.said == (415, "unsupported_media_type")
        assert media_processes() == []


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"file": None}, "missing_file", "file"),
        ({"langauge": "en"}, "unknown_parameter", "langauge"),
        ({"response_format": "xml"}, "unsupported_response_format", "response_format"),
        ({"language": "klingon"}, "unsupported_language", "language"),
        ({"temperature": "2"}, "invalid_value", "temperature"),
        ({"stream": "perhaps"}, "invalid_value", "stream"),
        ({"timestamp_granularities": ["word"]}, "invalid_value", "timestamp_granularities"),
        ({"prompt": "x" * 801}, "invalid_value", "prompt"),
    ],
)
async def test_form_that_is_wrong(scripted: WorkerSpec, fields: dict[str, Any], code: str, param: str) -> None:
    async with serving(scripted) as app:
        answer = await transcribe(app, **fields)
        assert (answer.said, answer.json["error"]["param"]) == ((400, code), param)


async def test_form_that_breaks_off(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        assert (await ask(app, "POST", TRANSCRIPTIONS, form()[:-20])).said == (400, "bad_multipart")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", (422, "empty_file")),
        (b"hello " * 1000, (415, "unsupported_media")),
        (encoded(KIND["wav-s16-16k"], tone(0.0, 16_000)), (422, "no_audio")),
        (film("mp4", sound=False), (422, "no_audio")),
    ],
)
async def test_file_without_audio(scripted: WorkerSpec, file: bytes, said: tuple[int, str]) -> None:
    async with serving(scripted) as app:
        answer = await transcribe(app, file)
    assert answer.said == said


async def test_paths_and_methods_that_are_not_there(scripted: WorkerSpec) -> None:
    async with serving(scripted, ready=False) as app:
        for method in ("GET", "POST", "DELETE"):
            for path in ("/v1/chat/completions", "/v1/jobs/", "/v1/jobs/a/b", "/v1/audio/transcriptions/"):
                async with aiohttp.request(method, app.listener.url + path) as response:
                    answer = Answer(response.status, {}, await response.text())
                    check("Error", answer.json)
                    assert answer.said == (404, "not_found")
        answer = await ask(app, "GET", TRANSCRIPTIONS)
        assert (answer.said, answer.headers["allow"]) == ((405, "method_not_allowed"), "OPTIONS, POST")
        answer = await ask(app, "POST", "/v1/models")
        assert (answer.said, answer.headers["allow"]) == ((405, "method_not_allowed"), "GET, HEAD, OPTIONS")
        async with aiohttp.request("HEAD", app.listener.url + "/v1/models") as response:
            assert (response.status, await response.read()) == (200, b"")
        async with aiohttp.request("HEAD", app.listener.url + TRANSCRIPTIONS) as response:
            assert (response.status, await response.read()) == (405, b"")


# ---------------------------------------------------------------- who may


async def test_token_is_needed_where_there_are_some(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with serving(scripted, auth_token_file=tokens(tmp_path, "ann")) as app:
        for method, path in (
            ("POST", TRANSCRIPTIONS),
            ("GET", "/v1/models"),
            ("POST", "/v1/jobs"),
            ("GET", "/v1/jobs/1"),
        ):
            body = form() if method == "POST" else None
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {token_of('ann')}"}):
                answer = await ask(app, method, path, body, **headers)
                assert (answer.said, answer.headers["www-authenticate"]) == ((401, "unauthorized"), "Bearer")
        assert (await ask_by_head(app, TRANSCRIPTIONS, "Expect: 100-continue")).status == 401
        assert (await transcribe(app, token=token_of("ann"))).status == 200


async def test_pages_of_other_origins(scripted: WorkerSpec) -> None:
    async with serving(scripted, allow_origin=(PAGE,)) as app:
        for method, path in (("POST", TRANSCRIPTIONS), ("GET", "/v1/models"), ("OPTIONS", TRANSCRIPTIONS)):
            body = form() if method == "POST" else None
            answer = await ask(app, method, path, body, Origin="https://other.example")
            assert answer.said == (403, "origin")
            assert "access-control-allow-origin" not in answer.headers
        answer = await ask(app, "GET", "/v1/models", Origin=PAGE)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        assert answer.headers["vary"] == "Origin"
        assert (await ask(app, "GET", "/v1/models", Origin=app.listener.url)).status == 200


async def test_page_may_ask_before(scripted: WorkerSpec, tmp_path: Path) -> None:
    """Also where a token is needed, which a browser does not send with this."""
    async with serving(scripted, allow_origin=(PAGE,), auth_token_file=tokens(tmp_path, "ann")) as app:
        asked = {"Origin": PAGE, "Access_Control_Request_Method": "POST"}
        answer = await ask(app, "OPTIONS", "/v1/jobs", None, **asked, Access_Control_Request_Headers="authorization")
        assert (answer.status, answer.body) == (204, "")
        found = {
            name: answer.headers[f"access-control-{name}"]
            for name in ("allow-origin", "allow-methods", "allow-headers")
        }
        assert found == {"allow-origin": PAGE, "allow-methods": "OPTIONS, POST", "allow-headers": "authorization"}
        refused = await ask(app, "GET", "/v1/models", Origin=PAGE)
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, PAGE)


async def test_page_sees_how_a_stream_goes_and_when_to_ask_again(scripted: WorkerSpec) -> None:
    async with serving(scripted, allow_origin=(PAGE,)) as app:
        stream = await ask(app, "POST", TRANSCRIPTIONS, form(stream="true"), Origin=PAGE)
        assert (stream.status, stream.headers["access-control-allow-origin"]) == (200, PAGE)
        app.dispatcher.drain()
        refused = await ask(app, "POST", TRANSCRIPTIONS, form(), Origin=PAGE)
        exposed = refused.headers["access-control-expose-headers"]
        assert {"Retry-After", "retry-after-ms"} <= set(exposed.split(", "))


# ---------------------------------------------------------------- what dies


async def test_worker_that_dies_once_is_not_noticed(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with serving(scripted) as app:
        answer = await transcribe(app, prompt=f"crash-once {tmp_path / 'crashed'}")
        assert (answer.status, answer.json["text"]) == (200, "country 16000")
        assert (await stats(app))["worker_restart_count"] == 1


async def test_worker_that_dies_once_under_a_slice_is_not_noticed(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with serving(scripted) as app:
        answer = await transcribe(app, LONG, prompt=f"crash-once {tmp_path / 'crashed'}")
        assert (answer.status, answer.json["text"].count("country")) == (200, 2)


@pytest.mark.parametrize("file", [WAV, LONG], ids=["short", "long"])
async def test_worker_that_dies_twice_ends_it_and_nothing_else(scripted: WorkerSpec, file: bytes) -> None:
    async with serving(scripted) as app:
        assert (await transcribe(app, file, prompt="crash SEGV")).said == (422, "poison_audio")
        await app.dispatcher.wait_ready()
        assert (await transcribe(app)).status == 200
        assert (await stats(app))["worker_restart_count"] == 2


async def test_worker_that_hangs(scripted: WorkerSpec) -> None:
    async with serving(replace(scripted, limits=IMPATIENT)) as app:
        assert (await transcribe(app, prompt="hang")).said == (503, "worker_hung")
        await app.dispatcher.wait_ready()
        assert (await transcribe(app, LONG, prompt="hang")).said == (422, "poison_audio")


async def test_decode_that_fails(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        for file in (WAV, LONG):
            assert (await transcribe(app, file, prompt="raise no")).said == (422, "decode_failed")
        assert (await transcribe(app)).status == 200
        assert (await stats(app))["worker_restart_count"] == 0


@posix
async def test_media_process_that_dies_harms_nobody_else(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, Client(app) as client:
        await client.send({**MANUAL, "prompt": "say still here"}, SECOND)
        async with uploading(app) as socket:
            await until(media_processes)
            os.kill(media_processes()[0], signal.SIGSEGV)
            await until(lambda: not media_processes())
            await socket.send(form()[-1:])
            assert (await answer_to(socket)).said == (422, "media_crashed")
        await client.send({"type": "commit"})
        assert (await client.until("final"))["text"] == "still here"
        assert (await stats(app))["worker_restart_count"] == 0


# ---------------------------------------------------------------- the end, and the sum


@posix
async def test_what_is_admitted_is_finished_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    async with Gate() as gate, server(tmp_path, state_dir=str(tmp_path)) as running:
        app = await running.listening()
        url = app.url.replace("ws", "http", 1).replace("/v1/stream", "")
        await running.says("  ready ")
        async with aiohttp.ClientSession() as session, Client(app) as client:
            await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
            decode = await gate.entered()

            async def post() -> Answer:
                async with session.post(url + TRANSCRIPTIONS, data=form(**HELLO), headers=FORM) as response:
                    return Answer(response.status, dict(response.headers), await response.text())

            queued = asyncio.create_task(post())

            async def is_queued() -> bool:
                async with session.get(f"{url}/v1/stats") as response:
                    return bool((await response.json())["queue_depth"])

            while not await is_queued():
                pass
            running.process.send_signal(signal.SIGTERM)
            await client.until("state", state="draining")
            assert (await post()).said == (503, "draining")
            gate.release(decode)
            answer = await queued
            assert (answer.status, answer.json["text"]) == (200, "Hello there.")
        assert await running.process.wait() == 0


@pytest.mark.parametrize("path", [TRANSCRIPTIONS, JOBS])
async def test_upload_on_its_way_is_refused_as_soon_as_the_server_stops(
    scripted: WorkerSpec, tmp_path: Path, path: str
) -> None:
    async with serving(scripted, state_dir=str(tmp_path)) as app, uploading(app, path, body=form(LONG)) as socket:
        await until(lambda: app.jobs._uploading or app.jobs._files._here)
        await app.drain()  # to its end: it waits for no upload
        assert (await answer_to(socket)).said == (503, "draining")
        assert await asyncio.to_thread(lambda: not [*tmp_path.glob("jobs/spool/*")])


async def test_who_waits_for_the_process_that_decodes_his_file_is_told_when_the_server_ends(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the connection was closed without a word."""
    opening = asyncio.Event()

    async def open(_: object) -> None:
        opening.set()
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(media.Media, "open", open)
    async with serving(scripted) as app:
        asked = asyncio.create_task(transcribe(app))
        await opening.wait()
    assert (await asked).said == (503, "draining")


async def test_each_second_that_was_sent_has_its_fate(scripted: WorkerSpec) -> None:
    async with Gate() as gate, serving(scripted) as app:
        assert (await transcribe(app)).status == 200
        assert (await transcribe(app, LONG)).status == 200
        assert (await transcribe(app, prompt="raise no")).status == 422
        assert (await transcribe(app, b"no audio")).status == 415
        body = form(prompt=gate.script)
        async with uploading(app, body=body) as socket:
            await socket.send(body[-1:])
            await gate.entered()
        await until(lambda: not app.jobs._files._here)
        outcomes, audio_s = app.listener.tally.outcomes(), app.listener.tally.audio_s()
        long_s = (len(LONG) - 44) / 32_000
        assert outcomes == {"final": 3, "error": 1, "dropped": 1}
        assert (audio_s["refused"], audio_s["lost"]) == (2.0, 0.0)
        assert sum(audio_s.values()) == pytest.approx(1.0 + long_s + 2.0, abs=1e-6)
        assert audio_s["decoded"] > 0.8 * long_s
        _, body_text = await get(app, "/metrics")
        assert 'asr_ws_utterances_total{outcome="final"} 3.0' in body_text
