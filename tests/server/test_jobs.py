"""Jobs of a whole server with a scripted worker: their life, and what may befall it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from asr_ws.core.files import FileRequest
from asr_ws.core.types import ServiceState
from asr_ws.errors import StorageError
from asr_ws.server import disk as disk_module
from asr_ws.server import jobs as jobs_module
from asr_ws.server.app import App
from asr_ws.server.job_store import Job, JobId, JobStore, Upload
from asr_ws.server.media import Media
from asr_ws.testing.recognizer import Gate, scripted_worker
from asr_ws.worker.supervisor import WorkerSpec
from tests.conftest import read_speech
from tests.media.files import KIND, encoded
from tests.server.asking import (
    JOBS,
    LONG,
    WAV,
    Answer,
    answer_to,
    ask,
    ask_by_head,
    form,
    media_processes,
    token_of,
    tokens,
    transcribe,
    until,
    uploading,
)
from tests.server.lives_of_jobs import part
from tests.server.running import MANUAL, SECOND, Client, get, serving, stats
from tests.server.test_shutdown import Server, server

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
ENDED = ("succeeded", "failed", "cancelled")
TEXT = {"text": "Hello there.", "usage": {"type": "duration", "seconds": 1}}
HELLO = {"prompt": "say Hello there."}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "RETRY_S", 0.05)


@asynccontextmanager
async def keeping(spec: WorkerSpec, folder: Path, **changes: Any) -> AsyncIterator[App]:
    async with serving(spec, state_dir=str(folder / "state"), **changes) as app:
        yield app


def spool(folder: Path) -> list[str]:
    return os.listdir(folder / "state" / "jobs" / "spool")


async def add(app: App, file: bytes = WAV, *, key: str = "", token: str = "", **fields: Any) -> Answer:
    headers = {"Idempotency_Key": key} if key else {}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return await ask(app, "POST", JOBS, form(file, **fields), **headers)


async def added(app: App, file: bytes = WAV, **fields: Any) -> str:
    answer = await add(app, file, **fields)
    assert answer.status == 202
    location: str = answer.headers["location"]
    assert location == f"{JOBS}/{answer.json['job_id']}"
    return location


@contextmanager
def earlier_life(folder: Path) -> Iterator[JobStore]:
    with closing(JobStore(folder / "state" / "jobs", capacity=4, owner_capacity=4, ttl_s=60.0, now=time.time)) as store:
        yield store


def keep(store: JobStore) -> JobId:
    upload = store.new_upload()
    upload.write(WAV)
    request = FileRequest(prompt=HELLO["prompt"])
    job = store.add(upload, request, owner="ann", idempotency_key=None)
    assert isinstance(job, Job)
    return job.id


async def shown(app: App, job: str, *, token: str = "") -> Answer:
    return await ask(app, "GET", job, **({"Authorization": f"Bearer {token}"} if token else {}))


async def ended(app: App, job: str) -> dict[str, Any]:
    """How it is shown once it has ended."""
    while (told := (await shown(app, job)).json)["status"] not in ENDED:
        await asyncio.sleep(0.005)
    assert isinstance(told, dict)
    return told


async def is_running(app: App, job: str) -> None:
    while (await shown(app, job)).json["status"] != "running":
        await asyncio.sleep(0.005)


# ---------------------------------------------------------------- a job's life


async def test_life_of_a_job(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with Gate() as gate, keeping(scripted, tmp_path) as app:
        answer = await add(app, prompt=gate.script)
        id = answer.json["job_id"]
        assert (answer.status, answer.json["status"]) == (202, "queued")
        assert answer.headers["location"] == f"{JOBS}/{id}"
        decode = await gate.entered()
        running = (await shown(app, f"{JOBS}/{id}")).json
        assert running == {"job_id": id, "status": "running", "progress": {"seconds": 0.0, "duration": None}}
        assert spool(tmp_path) == [id]
        assert (await stats(app))["jobs"]["running"] == 1
        gate.release(decode)
        told = await ended(app, f"{JOBS}/{id}")
        assert told == {
            "job_id": id,
            "status": "succeeded",
            "progress": {"seconds": 1.0, "duration": 1.0},
            "result": {"text": "country 16000", "usage": TEXT["usage"]},
        }
        assert spool(tmp_path) == []
        await until(lambda: app.jobs.counts["succeeded"])
        assert 'asr_ws_jobs{status="succeeded"} 1.0' in (await get(app, "/metrics"))[1]
        assert (await ask(app, "DELETE", f"{JOBS}/{id}")).status == 204
        for method in ("GET", "DELETE"):
            assert (await ask(app, method, f"{JOBS}/{id}")).said == (410, "expired")
        assert app.listener.http.requests["/v1/jobs/{job_id}", 204] == 1


@pytest.mark.parametrize(
    ("response_format", "result"),
    [
        ("json", TEXT),
        ("text", "Hello there.\n"),
        ("srt", "1\n00:00:00,000 --> 00:00:01,000\nHello there.\n\n"),
        ("vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nHello there.\n\n"),
    ],
)
async def test_result_is_what_a_transcription_answers(
    scripted: WorkerSpec, tmp_path: Path, response_format: str, result: object
) -> None:
    async with keeping(scripted, tmp_path) as app:
        asked = {**HELLO, "response_format": response_format, "stream": "true", "max_wait_ms": "999999"}
        assert (await ended(app, await added(app, **asked)))["result"] == result


async def test_long_job_is_shown_as_it_goes_on(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with Gate() as gate, keeping(scripted, tmp_path) as app:
        job = await added(app, LONG, prompt=gate.script, response_format="verbose_json")
        await gate.open()
        decode = await gate.entered()
        progress = (await shown(app, job)).json["progress"]
        assert 0 < progress["seconds"] < progress["duration"]
        gate.release(decode)
        told = await ended(app, job)
        assert told["progress"]["seconds"] == told["progress"]["duration"] == round(told["result"]["duration"], 3)


async def test_live_speech_goes_first(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with Gate() as gate, keeping(scripted, tmp_path) as app, Client(app) as client:
        queue = app.dispatcher.queue
        job = await added(app, LONG, prompt=gate.script)
        decode = await gate.entered()
        await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
        await client.until("accepted")
        gate.release(decode)
        decode = await gate.entered()
        assert queue.in_flight is not None
        assert not queue.in_flight.background
        await until(lambda: queue.background_depth == 1)
        gate.release(decode)
        await client.until("final")
        await gate.open()
        assert (await ended(app, job))["status"] == "succeeded"


async def test_result_of_a_job_is_neither_made_nor_parsed_on_the_loop(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: of four hours of speech each stalled the loop for 200 ms and more."""
    made_by, whole = list[str](), jobs_module.result

    def result(*args: Any) -> Any:
        made_by.append(threading.current_thread().name)
        return whole(*args)

    monkeypatch.setattr(jobs_module, "result", result)
    async with keeping(scripted, tmp_path) as app:
        job = await added(app, prompt="say Höhe", response_format="verbose_json")
        assert (await ended(app, job))["result"]["text"] == "Höhe"
        kept = await app.jobs._disk.run((await app.jobs._opened()).get, job.rpartition("/")[2])
        assert kept is not None
        assert str(kept.result) in (await shown(app, job)).body
    assert made_by
    assert threading.main_thread().name not in made_by


# ---------------------------------------------------------------- repeats


async def test_repeat_with_its_key_is_the_same_job(scripted: WorkerSpec, tmp_path: Path) -> None:
    file = tokens(tmp_path, "ann", "bob")
    ann, bob = token_of("ann"), token_of("bob")
    async with Gate() as gate, keeping(scripted, tmp_path, auth_token_file=file, max_jobs=2) as app:
        asked: dict[str, Any] = {"key": "k-1", "prompt": gate.script}
        first = await add(app, token=ann, **asked)
        repeat = await add(app, token=ann, **asked)  # also where there is no room for another
        assert (repeat.status, repeat.json["job_id"]) == (202, first.json["job_id"])
        assert (await add(app, LONG, token=ann, **asked)).said == (422, "idempotency_mismatch")
        assert (await add(app, token=ann, key="k-1")).said == (422, "idempotency_mismatch")
        other = await add(app, token=bob, **asked)
        assert other.json["job_id"] != first.json["job_id"]


async def test_repeat_while_the_first_is_being_sent(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with keeping(scripted, tmp_path) as app:
        async with uploading(app, JOBS, "Idempotency-Key: k-1"):
            await until(lambda: app.jobs._uploading)
            assert (await add(app, key="k-1")).said == (409, "idempotency_in_progress")
            assert (await add(app, key="k-2")).status == 202
        await until(lambda: not app.jobs._uploading)
        assert (await add(app, key="k-1")).status == 202


@pytest.mark.parametrize("key", ["x" * 256, "a\tb"])
async def test_key_that_is_none(scripted: WorkerSpec, tmp_path: Path, key: str) -> None:
    async with keeping(scripted, tmp_path) as app:
        answer = await add(app, key=key)
        assert (answer.said, answer.json["error"]["param"]) == ((400, "invalid_value"), "Idempotency-Key")


# ---------------------------------------------------------------- who may, and how many


async def test_job_of_another_token_is_not_there(scripted: WorkerSpec, tmp_path: Path) -> None:
    file = tokens(tmp_path, "ann", "bob")
    async with keeping(scripted, tmp_path, auth_token_file=file) as app:
        job = (await add(app, token=token_of("ann"))).headers["location"]
        for method in ("GET", "DELETE"):
            answer = await ask(app, method, job, Authorization=f"Bearer {token_of('bob')}")
            assert answer.said == (404, "not_found")
            assert (await ask(app, method, job)).said == (401, "unauthorized")
        assert (await shown(app, job, token=token_of("ann"))).status == 200


@pytest.mark.parametrize("id", ["1", "job-AAAAAAAAAAAAAAAAAAAAAA", "job-"])
async def test_job_that_never_was(scripted: WorkerSpec, tmp_path: Path, id: str) -> None:
    async with keeping(scripted, tmp_path) as app:
        for method in ("GET", "DELETE"):
            assert (await ask(app, method, f"{JOBS}/{id}")).said == (404, "not_found")


async def test_full_backlog(scripted: WorkerSpec, tmp_path: Path) -> None:
    file = tokens(tmp_path, "ann", "bob", "cleo")
    async with Gate() as gate, keeping(scripted, tmp_path, auth_token_file=file, max_jobs=2) as app:
        bearers = [f"Authorization: Bearer {token_of(name)}" for name in ("ann", "cleo")]
        for name in ("ann", "bob"):
            assert (await add(app, token=token_of(name), prompt=gate.script)).status == 202
            for more in ((), ("Expect: 100-continue",)):
                own = await ask_by_head(app, JOBS, bearers[0], *more)
                assert own.said == (429, "fair_share")
        for more in ((), ("Expect: 100-continue",)):
            full = await ask_by_head(app, JOBS, bearers[1], *more)
            assert full.said == (503, "queue_full")
        await until(lambda: app.jobs.counts["queued"] + app.jobs.counts["running"] == 2)
        assert (await ask_by_head(app, JOBS, bearers[1])).json["queue_depth"] == 2


async def test_too_many_uploads_at_once(scripted: WorkerSpec, tmp_path: Path) -> None:
    file = tokens(tmp_path, "ann", "bob", "cleo")
    async with keeping(scripted, tmp_path, auth_token_file=file) as app:
        uploads = []
        for name in ("ann", "bob"):
            for _ in range(jobs_module.MAX_UPLOADS // 2):
                uploads.append(uploading(app, JOBS, f"Authorization: Bearer {token_of(name)}"))
                await uploads[-1].__aenter__()
        await until(lambda: len(app.jobs._uploading) == jobs_module.MAX_UPLOADS)
        said = [
            (await ask_by_head(app, JOBS, f"Authorization: Bearer {token_of(name)}")).said for name in ("ann", "cleo")
        ]
        assert said == [(429, "fair_share"), (503, "queue_full")]
        for upload in uploads:
            await upload.__aexit__(None, None, None)
        await until(lambda: not app.jobs._uploading)
        await until(lambda: not spool(tmp_path))


async def test_server_that_stops_takes_none(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with keeping(scripted, tmp_path) as app:
        app.dispatcher.drain()
        assert (await ask_by_head(app, JOBS, "Expect: 100-continue")).said == (503, "draining")


async def test_upload_under_which_the_disk_is_closed_is_told_to_come_again(
    scripted: WorkerSpec, tmp_path: Path
) -> None:
    """Regression: as at a shutdown, where it was told that it need not."""
    async with keeping(scripted, tmp_path) as app:
        body = form(LONG)
        async with uploading(app, JOBS, body=body) as socket:
            await until(lambda: list(tmp_path.glob("state/jobs/spool/*")))
            await app.jobs._disk.aclose(60, app.jobs._close)
            await socket.send(body[-1:])
            assert (await answer_to(socket)).said == (503, "draining")
        assert spool(tmp_path) == []
        assert (await shown(app, f"{JOBS}/job-AAAAAAAAAAAAAAAAAAAAAA")).said == (503, "draining")


async def test_disk_that_does_not_answer_is_no_reason_not_to_stop(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "CLOSE_TIMEOUT_S", 0.01)
    answers = threading.Event()
    try:
        async with asyncio.timeout(60), keeping(scripted, tmp_path) as app:
            stuck = asyncio.create_task(app.jobs._disk.run(answers.wait))
            await asyncio.sleep(0)
    finally:
        answers.set()
    assert await stuck is True


async def test_file_for_a_disk_that_hangs_is_refused_and_leaves_its_place(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the answer waited until the file could be deleted."""
    monkeypatch.setattr(jobs_module, "DISCARD_TIMEOUT_S", 0.01)
    answers = threading.Event()
    async with keeping(scripted, tmp_path) as app:
        with monkeypatch.context() as hangs:
            hangs.setattr(Upload, "flush", lambda _: answers.wait())
            hangs.setattr(disk_module, "ASK_TIMEOUT_S", 0.5)
            assert (await add(app)).said == (507, "storage_unavailable")
        assert app.jobs._uploading == []
        answers.set()


async def test_too_many_who_wait_for_the_disk_are_told_to_come_again(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with keeping(scripted, tmp_path) as app:
        job = await added(app)
        monkeypatch.setattr(disk_module, "MAX_CALLS", 0)
        assert (await shown(app, job)).said == (503, "queue_full")


# ---------------------------------------------------------------- cancelled, forgotten, expired


async def test_cancelled_while_it_runs_and_while_it_waits(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with Gate() as gate, keeping(scripted, tmp_path) as app:
        worker = app.supervisor.pid
        runs, waits = [await added(app, prompt=gate.script) for _ in range(2)]
        last = await added(app, **HELLO)
        decode = await gate.entered()
        for job in (waits, runs):
            assert (await ask(app, "DELETE", job)).status == 204
            assert (await shown(app, job)).json["status"] == "cancelled"
        await until(lambda: not app.jobs._doing or app.jobs._doing[0] == last.rpartition("/")[2])
        assert app.dispatcher.queue.in_flight is not None
        assert app.dispatcher.queue.in_flight.abandoned
        gate.release(decode)
        assert (await ended(app, last))["result"] == TEXT
        assert app.supervisor.pid == worker
        assert spool(tmp_path) == []
        await until(lambda: media_processes() == [])
        assert app.listener.tally.outcomes() == {"final": 1, "error": 0, "dropped": 1}


async def test_result_expires_and_is_forgotten(scripted: WorkerSpec, tmp_path: Path) -> None:
    now = 1000.0
    async with keeping(scripted, tmp_path, job_ttl_s=60.0) as app:
        app.jobs._now = lambda: now
        job = await added(app)
        await ended(app, job)
        now = 1059.0
        assert (await shown(app, job)).status == 200
        now = 1060.0
        assert (await shown(app, job)).said == (410, "expired")
        app.jobs._touched.set()  # as it looks by itself, once a minute
        await until(lambda: not app.jobs.counts["succeeded"])
        assert (await shown(app, job)).said == (410, "expired")
        now = 1000.0 + 60.0 * 7
        app.jobs._touched.set()
        while (await shown(app, job)).status == 410:
            pass
        assert (await shown(app, job)).said == (404, "not_found")


async def test_result_expires_while_another_job_runs(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: what was said stayed on the disk until that one had ended."""
    monkeypatch.setattr(jobs_module, "LOOK_EVERY_S", 0.01)
    now = 1000.0
    async with Gate() as gate, keeping(scripted, tmp_path, job_ttl_s=60.0) as app:
        app.jobs._now = lambda: now
        await ended(app, await added(app))
        await added(app, prompt=gate.script)
        decode = await gate.entered()
        now = 1060.0
        await until(lambda: not app.jobs.counts["succeeded"])
        gate.release(decode)


async def test_log_says_how_each_job_ended(scripted: WorkerSpec, tmp_path: Path) -> None:
    with capture_logs() as logs:
        await _three_jobs(scripted, tmp_path)
    said = [entry["status"] for entry in logs if entry["event"] == "job.ended"]
    assert said == ["succeeded", "failed", "cancelled"]


async def _three_jobs(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with Gate() as gate, keeping(scripted, tmp_path) as app:
        for job in (await added(app), await added(app, b"")):
            await ended(app, job)
        held = await added(app, prompt=gate.script)
        await gate.entered()
        assert (await ask(app, "DELETE", held)).status == 204
        await until(lambda: app.jobs.counts["cancelled"] == 1)


async def test_jobs_are_counted_while_one_is_being_done_and_the_count_costs_none_its_answer(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Gate() as gate, keeping(scripted, tmp_path) as app:
        await added(app, prompt=gate.script)
        decode = await gate.entered()
        job = await added(app)
        await until(lambda: app.jobs.counts["queued"] == 1)
        gate.release(decode)
        await ended(app, job)
        monkeypatch.setattr(JobStore, "counts", no_disk)
        await added(app)


def no_disk(*_: object) -> None:
    raise StorageError("storage_unavailable", "no")


# ---------------------------------------------------------------- the disk


async def test_state_folder_that_cannot_be_made_costs_jobs_alone(scripted: WorkerSpec, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    async with keeping(scripted, tmp_path) as app, Client(app) as client:
        answer = await ask_by_head(app, JOBS, "Expect: 100-continue")
        assert answer.said == (507, "storage_unavailable")
        assert str(tmp_path) not in answer.body
        assert (await shown(app, f"{JOBS}/job-AAAAAAAAAAAAAAAAAAAAAA")).said == (507, "storage_unavailable")
        assert (await transcribe(app)).status == 200
        await client.send(MANUAL, SECOND, {"type": "commit"})
        await client.until("final")


async def test_disk_that_is_full_in_the_middle_of_an_upload(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, n_left = Upload.write, 2

    def write_some(upload: Upload, chunk: bytes) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise StorageError("storage_full", "no space left on device")
        write(upload, chunk)

    async with keeping(scripted, tmp_path) as app:
        with monkeypatch.context() as patched:
            patched.setattr(Upload, "write", write_some)
            assert (await add(app, LONG, key="k-1")).said == (507, "storage_full")
        assert (spool(tmp_path), app.jobs._uploading) == ([], [])
        assert (await ended(app, await added(app, LONG, key="k-1")))["status"] == "succeeded"


@posix
async def test_limit_on_the_size_of_files(tmp_path: Path) -> None:
    visit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))"
    async with server(tmp_path, visit=visit, state_dir=str(tmp_path / "state")) as running:
        app = await reached(running)
        answer = await add(app, LONG)
        assert answer.said == (507, "storage_full")
        assert spool(tmp_path) == []
        assert (await transcribe(app)).status == 200
        assert (await ended(app, await added(app)))["status"] == "succeeded"


def failing_twice(monkeypatch: pytest.MonkeyPatch, method: str, error: Exception) -> list[Any]:
    """A method of the store. Returns: what it is called with, which grows."""
    whole, calls = getattr(JobStore, method), list[Any]()

    def call(*args: Any) -> Any:
        calls.append(args)
        if len(calls) <= 2:
            raise error
        return whole(*args)

    monkeypatch.setattr(JobStore, method, call)
    return calls


@pytest.mark.parametrize("method", ["start", "save_slice", "succeed", "slices", "next_unfinished"])
async def test_disk_that_fails_a_job_that_runs_is_tried_again(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    calls = failing_twice(monkeypatch, method, StorageError("storage_unavailable", "no"))
    async with keeping(scripted, tmp_path) as app:
        told = await ended(app, await added(app, **HELLO))
        assert (told["status"], told["result"]) == ("succeeded", TEXT)
        assert (len(calls) > 2, spool(tmp_path)) == (True, [])


async def test_bug_ends_the_job_and_not_the_server(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def result(*_: object) -> None:
        raise ZeroDivisionError

    async with keeping(scripted, tmp_path) as app:
        with monkeypatch.context() as patched:
            patched.setattr(jobs_module, "result", result)
            told = await ended(app, await added(app))
        assert (told["status"], told["error"]["code"]) == ("failed", "internal")
        assert (await ended(app, await added(app)))["status"] == "succeeded"


async def test_job_that_cannot_be_read_fails_and_the_next_one_is_done(scripted: WorkerSpec, tmp_path: Path) -> None:
    """Regression: it ended the server, at every start."""
    with earlier_life(tmp_path) as store:
        ids = [keep(store), keep(store)]
        store._db.execute("UPDATE jobs SET request = ? WHERE id = ?", ('{"response_format": "new"}', ids[0]))
    async with keeping(scripted, tmp_path) as app:
        told = [await ended(app, f"{JOBS}/{id}") for id in ids]
        assert (told[0]["status"], told[0]["error"]["code"], told[1]["result"]) == ("failed", "internal", TEXT)


async def test_slices_that_were_cut_otherwise_are_decoded_again(scripted: WorkerSpec, tmp_path: Path) -> None:
    """As those of another version may be: words would be lost, or said twice."""
    with earlier_life(tmp_path) as store:
        id = keep(store)
        store.save_slice(id, part(0, 8_000, "stale"))
    async with keeping(scripted, tmp_path) as app:
        assert (await ended(app, f"{JOBS}/{id}"))["result"] == TEXT


async def test_slices_that_are_kept_are_not_decoded_again(scripted: WorkerSpec, tmp_path: Path) -> None:
    with earlier_life(tmp_path) as store:
        id = keep(store)
        store.save_slice(id, part(0, 16_000, "kept"))
    async with keeping(scripted, tmp_path) as app:
        assert (await ended(app, f"{JOBS}/{id}"))["result"]["text"] == "kept"


@pytest.mark.parametrize("method", ["counts", "next_unfinished", "start"])
async def test_bug_of_the_store_ends_nothing(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    with earlier_life(tmp_path) as store:
        id = keep(store)
    calls = failing_twice(monkeypatch, method, ZeroDivisionError())
    async with keeping(scripted, tmp_path) as app:
        assert (await ended(app, f"{JOBS}/{id}"))["result"] == TEXT
        assert len(calls) > 2


async def test_job_that_can_never_be_done_now_lets_the_others_go_first(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter, never = Media.__aenter__, [Path("/none")]

    async def no_process(media: Media) -> Media:
        if media._file is not None and media._file.name == never[0].name:
            raise OSError(11, "Resource temporarily unavailable")
        return await enter(media)

    monkeypatch.setattr(Media, "__aenter__", no_process)
    async with Gate() as gate, keeping(scripted, tmp_path) as app:
        held = await added(app, prompt=gate.script)
        decode = await gate.entered()
        first, second = await added(app, **HELLO), await added(app, **HELLO)
        never[0] = Path(first)
        gate.release(decode)
        assert (await ended(app, second))["result"] == TEXT
        assert (await shown(app, held)).json["status"] == "succeeded"
        assert (await shown(app, first)).json["status"] == "running"
        never[0] = Path("/none")
        assert (await ended(app, first))["result"] == TEXT


@pytest.mark.parametrize("error", [OSError, RuntimeError])
async def test_error_of_the_systems_in_a_job_that_has_its_process_ends_it(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Regression: it was tried again for ever."""

    def result(*_: object) -> None:
        raise error

    monkeypatch.setattr(jobs_module, "result", result)
    async with keeping(scripted, tmp_path) as app:
        assert (await ended(app, await added(app)))["error"]["code"] == "internal"


async def test_job_of_a_folder_that_is_usable_at_last_is_done_at_once(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("a file")
    monkeypatch.setattr(jobs_module, "LOOK_EVERY_S", 1e9)
    async with keeping(scripted, tmp_path) as app:
        assert (await ask_by_head(app, JOBS)).said == (507, "storage_unavailable")
        (tmp_path / "state").unlink()
        (tmp_path / "state" / "jobs").mkdir(parents=True)
        assert (await ended(app, await added(app, **HELLO)))["result"] == TEXT


# ---------------------------------------------------------------- what dies


async def test_poison_file_fails_and_the_next_job_runs(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with keeping(scripted, tmp_path) as app:
        poison, good = await added(app, prompt="crash SEGV"), await added(app, **HELLO)
        told = await ended(app, poison)
        assert (told["status"], told["error"]["code"], "result" in told) == ("failed", "poison_audio", False)
        assert (await ended(app, good))["result"] == TEXT
        assert (await stats(app))["worker_restart_count"] == 2


@pytest.mark.parametrize(
    ("file", "fields", "code"),
    [
        (WAV, {"prompt": "raise no"}, "decode_failed"),
        (b"no audio at all", {}, "unsupported_media"),
        (b"", {}, "empty_file"),
    ],
)
async def test_job_that_cannot_be_done_says_why(
    scripted: WorkerSpec, tmp_path: Path, file: bytes, fields: dict[str, str], code: str
) -> None:
    async with keeping(scripted, tmp_path) as app:
        told = await ended(app, await added(app, file, **fields))
        assert (told["status"], told["error"]["code"]) == ("failed", code)


@posix
@pytest.mark.parametrize(("n_deaths", "status"), [(1, "succeeded"), (2, "failed")])
async def test_media_process_that_dies_under_a_job(
    scripted: WorkerSpec, tmp_path: Path, n_deaths: int, status: str
) -> None:
    """It has not read the file to its end, while the first slice is held."""
    async with Gate() as gate, keeping(scripted, tmp_path) as app:
        speech = np.tile((read_speech("long-two-cities.wav") * 32767).astype(np.int16), 4)
        job = await added(app, encoded(KIND["wav-s16-16k"], speech), prompt=gate.script)
        held = []
        for _ in range(n_deaths):
            held.append(await gate.entered())
            os.kill(media_processes()[0], signal.SIGSEGV)
            gate.release(held[-1])
        ending = asyncio.create_task(ended(app, job))
        while not ending.done():
            opening = asyncio.create_task(gate.open())
            await asyncio.wait([ending, opening], return_when=asyncio.FIRST_COMPLETED)
            opening.cancel()
        told = await ending
        assert told["status"] == status
        assert told.get("error", {}).get("code") == (None if status == "succeeded" else "media_crashed")


async def test_job_waits_for_a_worker(tmp_path: Path) -> None:
    spec = scripted_worker(tmp_path, load="raise no memory")
    async with keeping(spec, tmp_path, ready=False) as app:
        await app.dispatcher.wait_for(ServiceState.UNAVAILABLE)
        job = await added(app, **HELLO)
        await is_running(app, job)
        scripted_worker(tmp_path)  # the operator has done something
        assert (await ended(app, job))["result"] == TEXT


# ---------------------------------------------------------------- restarts


async def reached(running: Server) -> App:
    """What `ask` needs of an App."""
    app: Any = await running.listening()
    app.listener = type("", (), {"url": app.url.replace("ws", "http", 1).replace("/v1/stream", "")})
    await running.says("  ready ")
    return app  # type: ignore[no-any-return]


async def test_job_that_is_given_up_is_left_for_later(scripted: WorkerSpec, tmp_path: Path) -> None:
    """Regression: as in a drain that takes too long, where it ended the server with a traceback."""
    async with Gate() as gate, keeping(scripted, tmp_path) as app:
        job = await added(app, prompt=gate.script)
        decode = await gate.entered()
        app.dispatcher.give_up()
        await until(lambda: not media_processes())
        assert (await shown(app, job)).json["status"] == "running"
        gate.release(decode)
        await gate.open()
        assert (await ended(app, job))["status"] == "succeeded"


@posix
async def test_second_signal_while_a_job_runs(tmp_path: Path) -> None:
    """Its decode is given up, and the next life does it."""
    state = {"state_dir": str(tmp_path / "state")}
    async with Gate() as gate:
        async with server(tmp_path, **state) as running:
            app = await reached(running)
            job = await added(app, prompt=gate.script)
            await gate.entered()
            async with Client(app) as client:
                await client.send(MANUAL, SECOND, {"type": "commit"})
                await client.until("accepted")
                running.process.send_signal(signal.SIGTERM)
                await client.until("state", state="draining")
                running.process.send_signal(signal.SIGTERM)
                await client.rest()
            assert await running.process.wait() == 0
        async with server(tmp_path, **state) as running:
            app = await reached(running)
            await gate.open()
            assert (await ended(app, job))["status"] == "succeeded"


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
async def test_what_was_acknowledged_is_done_once_whenever_the_server_ends(tmp_path: Path, name: str) -> None:
    """Three lives, each ended at a moment of its own; the last one finishes what is left."""
    number = getattr(signal, name)
    chance, state = random.Random(f"{number}"), {"state_dir": str(tmp_path / "state")}
    jobs: dict[str, str] = {}
    results: dict[str, Any] = {}

    async def look(app: App) -> None:
        """What has ended stays as it is."""
        for job in jobs:
            told = (await shown(app, job)).json
            if told["status"] in ENDED:
                assert results.setdefault(job, told) == told

    for life in range(3):
        async with server(tmp_path, **state) as running:
            app = await reached(running)
            await look(app)
            for n in range(3):
                text = f"life {life} job {n}"
                jobs[await added(app, LONG if n == 1 else WAV, prompt=f"say {text}")] = text
            for _ in range(chance.randrange(12)):
                await look(app)
            running.process.send_signal(number)
            assert await running.process.wait() == (0 if number == signal.SIGTERM else -number)
    async with server(tmp_path, **state) as running:
        app = await reached(running)
        for job, text in jobs.items():
            told = await ended(app, job)
            assert results.get(job, told) == told
            assert told["status"] == "succeeded"
            assert told["result"]["text"] in (text, f"{text} {text}")
    assert len(jobs) == 9


async def test_second_server_on_a_folder_keeps_no_jobs_and_serves_the_rest(
    scripted: WorkerSpec, tmp_path: Path
) -> None:
    async with keeping(scripted, tmp_path) as first:
        job = await added(first)
        await ended(first, job)
        async with keeping(scripted, tmp_path) as second:
            assert (await ask_by_head(second, JOBS)).said == (507, "storage_in_use")
            assert (await shown(second, job)).said == (507, "storage_in_use")
            assert (await transcribe(second)).status == 200
        assert (await shown(first, job)).status == 200
