"""Jobs on disk: what is acknowledged survives, ends once, and is forgotten in time."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asr_ws.core.files import FileRequest, FileSlice, Granularity, ResponseFormat
from asr_ws.core.types import Hypothesis, RefusalReason, Segment, Word
from asr_ws.errors import IdempotencyMismatch, StorageError
from asr_ws.server import job_store
from asr_ws.server.job_store import TOMBSTONE_TTLS, Job, JobId, JobStatus, JobStore, Recovery, Upload
from tests.server import lives_of_jobs
from tests.server.lives_of_jobs import part

NOTHING_FOUND = Recovery(put_aside=None, n_resumed=0, n_lost=0, n_strays=0)
GERMAN = FileRequest(
    "translate",
    "de",
    "Höhe",
    response_format=ResponseFormat.VERBOSE_JSON,
    granularities=frozenset({Granularity.WORD, Granularity.SEGMENT}),
)
posix = pytest.mark.skipif(os.name == "nt", reason="modes, SIGKILL and limits are POSIX's")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "jobs"


def opened(folder: Path, clock: Callable[[], float] = lambda: 1000.0) -> JobStore:
    return JobStore(folder, capacity=4, owner_capacity=2, ttl_s=60.0, now=clock)


@pytest.fixture
def store(folder: Path, clock: Clock) -> Iterator[JobStore]:
    with closing(opened(folder, clock)) as store:
        yield store


def uploaded(store: JobStore, content: bytes = b"speech") -> Upload:
    upload = store.new_upload()
    upload.write(content)
    return upload


def offer(
    store: JobStore,
    content: bytes = b"speech",
    request: FileRequest = FileRequest(),  # noqa: B008 frozen
    owner: str = "ann",
    key: str | None = None,
) -> Job | RefusalReason:
    return store.add(uploaded(store, content), request, owner=owner, idempotency_key=key)


def add(store: JobStore, content: bytes = b"speech", owner: str = "ann", key: str | None = None) -> Job:
    job = offer(store, content, owner=owner, key=key)
    assert isinstance(job, Job)
    return job


def got(store: JobStore, id: str) -> Job:
    job = store.get(id)
    assert job is not None
    return job


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "spool"))


def is_left(said: bytes, folder: Path) -> bool:
    return said in b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


@contextmanager
def database(folder: Path) -> Iterator[sqlite3.Connection]:
    """Of a store that is closed."""
    with closing(sqlite3.connect(folder / "jobs.db", isolation_level=None)) as db:
        yield db


# One job.


def test_job_is_what_was_added(store: JobStore) -> None:
    upload = store.new_upload()
    upload.write(b"RIFF")
    upload.write(b"")
    upload.write(b"more")
    assert (upload.size, upload.sha256()) == (8, hashlib.sha256(b"RIFFmore").hexdigest())
    job = store.add(upload, GERMAN, owner="ann", idempotency_key=None)
    assert job == Job(
        id=upload.id,
        status=JobStatus.QUEUED,
        owner="ann",
        request=GERMAN,
        finished_at=None,
        result=None,
        error_code=None,
        error_message=None,
        done_s=0.0,
        duration_s=None,
        is_expired=False,
    )
    assert re.fullmatch(r"job-[A-Za-z0-9_-]{22}", job.id)
    assert store.get(job.id) == store.next_unfinished() == job
    assert store.path(job.id).read_bytes() == b"RIFFmore"
    upload.discard()  # as its caller does in any case
    assert store.path(job.id).read_bytes() == b"RIFFmore"


def test_upload_of_nothing_is_a_job_too(store: JobStore) -> None:
    job = store.add(store.new_upload(), FileRequest(), owner="", idempotency_key=None)
    assert isinstance(job, Job)
    assert store.path(job.id).read_bytes() == b""


def test_discarded_upload_leaves_nothing_and_none_is_made_before_it_is_written(store: JobStore, folder: Path) -> None:
    upload = store.new_upload()
    assert files(folder) == []
    upload.write(b"half")
    assert files(folder) == [upload.id]
    assert (store.expire(), files(folder)) == (0, [upload.id])  # it is on its way, not a stray
    upload.discard()
    upload.discard()
    assert (files(folder), store.get(upload.id)) == ([], None)


def test_job_that_runs_tells_how_far_it_is_and_succeeds(store: JobStore, folder: Path, clock: Clock) -> None:
    job = add(store)
    assert store.start(job.id) is True
    assert store.next_unfinished() == replace(job, status=JobStatus.RUNNING)
    words = (Word("Hi", 0.1, 0.4, 0.9),)
    heard = Hypothesis(" Hi", "en", 0.98, (Segment(" Hi", 0.0, 0.5, -0.2, 0.01, 1.1, words),), None, 0.2)
    assert store.save_slice(job.id, FileSlice(0, 16_000, heard), 48_000) is True
    assert store.save_slice(job.id, part(16_000, 24_000)) is True
    assert store.save_slice(job.id, part(16_000, 24_000)) is True
    assert store.slices(job.id) == [FileSlice(0, 16_000, heard), part(16_000, 24_000)]
    running = replace(job, status=JobStatus.RUNNING, done_s=1.5, duration_s=3.0)
    assert got(store, job.id) == running
    clock.now = 1007.0
    assert store.succeed(job.id, '{"text": "Hi"}', 48_000) is True
    assert got(store, job.id) == replace(
        running, status=JobStatus.SUCCEEDED, result='{"text": "Hi"}', done_s=3.0, finished_at=1007.0
    )
    assert (files(folder), store.slices(job.id)) == ([], [])


@pytest.mark.parametrize("end", ["succeed", "fail", "cancel"])
def test_job_ends_once(store: JobStore, end: str) -> None:
    job = add(store)
    ends = {
        "succeed": lambda: store.succeed(job.id, "{}", 48_000),
        "fail": lambda: store.fail(job.id, "decode_failed", "no text"),
        "cancel": lambda: store.cancel(job.id),
    }
    assert ends[end]() is True
    ended = got(store, job.id)
    assert [each() for each in ends.values()] == [False, False, False]
    assert (store.start(job.id), store.save_slice(job.id, part(0, 1))) == (False, False)
    assert store.add_failed_try(job.id) == 0
    assert (got(store, job.id), store.slices(job.id)) == (ended, [])


def test_job_that_has_ended_is_forgotten_at_once(store: JobStore) -> None:
    job, other = add(store), add(store)
    assert (store.forget(job.id), store.forget(JobId("job-unknown"))) == (False, False)
    store.succeed(job.id, '{"text": "Hi"}', 48_000)
    store.succeed(other.id, "{}", 48_000)
    assert (store.forget(job.id), store.forget(job.id)) == (True, False)
    forgotten = got(store, job.id)
    assert (forgotten.is_expired, forgotten.result, got(store, other.id).is_expired) == (True, None, False)


def test_failed_job_says_why(store: JobStore) -> None:
    job = add(store)
    store.fail(job.id, "unsupported_media", "no audio in it")
    failed = got(store, job.id)
    assert (failed.status, failed.error_code, failed.error_message) == (
        JobStatus.FAILED,
        "unsupported_media",
        "no audio in it",
    )


def test_jobs_come_in_order_of_arrival_whatever_the_clock_does(store: JobStore, clock: Clock) -> None:
    first = add(store)
    clock.now = 10.0
    second = add(store, owner="bob")
    assert store.next_unfinished() == first
    store.cancel(first.id)
    assert store.next_unfinished() == second
    store.start(second.id)
    add(store)
    assert store.next_unfinished() == replace(second, status=JobStatus.RUNNING)
    assert store.counts() == {"queued": 1, "running": 1, "succeeded": 0, "failed": 0, "cancelled": 1}


def test_failed_tries_are_counted_over_restarts(folder: Path) -> None:
    with closing(opened(folder)) as store:
        id = add(store).id
        assert store.add_failed_try(id) == 1
    with closing(opened(folder)) as store:
        assert store.add_failed_try(id) == 2


@pytest.mark.parametrize("id", ["", "../x", "job-../../../../../etc/pas", "job-" + "ä" * 22, "job-\udce4", "a\x00b"])
def test_any_string_may_be_asked_for(store: JobStore, id: str) -> None:
    assert store.get(id) is None


def test_unknown_job_has_no_slices_and_cannot_change(store: JobStore) -> None:
    id = store.new_upload().id
    assert (store.slices(id), store.start(id), store.save_slice(id, part(0, 1)), store.cancel(id)) == (
        [],
        False,
        False,
        False,
    )


# How many.


def test_backlog_is_bounded_and_an_owner_has_a_share_of_it(store: JobStore, folder: Path) -> None:
    jobs = [add(store, owner="ann"), add(store, owner="ann")]
    assert (store.full("ann"), store.full("bob")) == (RefusalReason.FAIR_SHARE, None)
    assert offer(store, owner="ann") is RefusalReason.FAIR_SHARE
    jobs += [add(store, owner="bob"), add(store, owner="cleo")]
    assert (store.full("ann"), store.full("dan")) == (RefusalReason.FAIR_SHARE, RefusalReason.QUEUE_FULL)
    assert offer(store, owner="dan") is RefusalReason.QUEUE_FULL
    assert files(folder) == sorted(job.id for job in jobs)
    store.start(jobs[0].id)
    assert store.full("dan") is RefusalReason.QUEUE_FULL  # it has not ended
    store.cancel(jobs[0].id)
    assert (store.full("ann"), store.full("dan")) == (None, None)


# Sent again.


def test_repeat_is_the_same_job_even_when_the_backlog_is_full_and_after_a_restart(folder: Path) -> None:
    with closing(opened(folder)) as store:
        job = offer(store, b"speech", GERMAN, key="k-1")
        assert isinstance(job, Job)
        add(store)
        assert offer(store, b"speech", GERMAN, key="k-1") == job
        assert (store.find_key("ann", "k-1"), store.find_key("bob", "k-1")) == (job, None)
        assert len(files(folder)) == 2
    with closing(opened(folder)) as store:
        assert offer(store, b"speech", GERMAN, key="k-1") == job
        store.succeed(job.id, "{}", 48_000)
        assert offer(store, b"speech", GERMAN, key="k-1") == got(store, job.id)
        assert got(store, job.id).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize(("content", "request_"), [(b"other", GERMAN), (b"speech", replace(GERMAN, language="fr"))])
def test_key_belongs_to_one_request(store: JobStore, folder: Path, content: bytes, request_: FileRequest) -> None:
    job = offer(store, b"speech", GERMAN, key="k-1")
    assert isinstance(job, Job)
    with pytest.raises(IdempotencyMismatch) as raised:
        offer(store, content, request_, key="k-1")
    assert raised.value.code == "idempotency_mismatch"
    assert (got(store, job.id), files(folder)) == (job, [job.id])


def test_key_is_an_owners_own(store: JobStore) -> None:
    assert add(store, b"one", owner="ann", key="k-1").id != add(store, b"two", owner="bob", key="k-1").id


def test_key_is_free_again_when_its_job_has_expired(store: JobStore, clock: Clock) -> None:
    first = add(store, b"one", key="k-1")
    store.cancel(first.id)
    clock.now = 1060.0  # and nobody called `expire`
    assert store.find_key("ann", "k-1") is None
    second = add(store, b"two", key="k-1")
    assert second.id != first.id
    assert store.find_key("ann", "k-1") == second


def test_string_that_is_no_unicode_leaves_nothing(store: JobStore, folder: Path) -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        offer(store, request=FileRequest(prompt="\udce4"))
    with pytest.raises(ValueError, match="surrogates not allowed"):
        offer(store, owner="\udce4")
    assert (files(folder), store.next_unfinished()) == ([], None)


# Forgotten.


def test_result_expires_then_its_tombstone(store: JobStore, clock: Clock) -> None:
    job = offer(store, b"speech", GERMAN, key="k-1")
    assert isinstance(job, Job)
    assert store.next_expiry() is None
    clock.now = 1010.0
    store.succeed(job.id, '{"text": "Hi"}', 48_000)
    assert store.next_expiry() == 1070.0
    clock.now = 1069.9
    assert (store.expire(), got(store, job.id).result) == (0, '{"text": "Hi"}')
    clock.now = 1070.0
    expired = got(store, job.id)  # also before `expire` is called
    assert (expired.status, expired.is_expired, expired.result) == (JobStatus.SUCCEEDED, True, None)
    assert (store.expire(), store.expire()) == (1, 0)
    assert got(store, job.id) == replace(expired, request=FileRequest())
    assert store.counts()[JobStatus.SUCCEEDED] == 0
    assert store.next_expiry() == 1010.0 + 7 * 60.0
    clock.now = 1010.0 + 7 * 60.0
    assert (store.expire(), store.get(job.id), store.next_expiry()) == (0, None, None)


def test_job_that_has_not_ended_never_expires(store: JobStore, folder: Path, clock: Clock) -> None:
    job = add(store)
    clock.now = 1e9
    assert (store.expire(), got(store, job.id), files(folder)) == (0, job, [job.id])


def test_what_was_said_is_not_left_in_the_files(folder: Path, clock: Clock) -> None:
    with closing(opened(folder, clock)) as store:
        job = add(store)
        store.save_slice(job.id, part(0, 1, "a secret" * 1000))
        store.succeed(job.id, "a secret" * 1000, 48_000)
        clock.now = 1060.0
        store.expire()
    assert not is_left(b"a secret", folder)


@pytest.mark.parametrize("end", ["expire", "forget", "cancel"])
def test_what_was_said_is_not_left_in_the_files_of_a_server_that_runs(folder: Path, clock: Clock, end: str) -> None:
    """Regression: it was in the database's log until the server stopped."""
    with closing(opened(folder, clock)) as store:
        job = add(store)
        store.save_slice(job.id, part(0, 1, "a secret" * 1000))
        if end == "cancel":
            store.cancel(job.id)
        else:
            store.succeed(job.id, "a secret" * 1000, 48_000)
            assert is_left(b"a secret", folder)
            clock.now = 1060.0
            store.expire() if end == "expire" else store.forget(job.id)
        assert not is_left(b"a secret", folder)


def test_audio_that_could_not_be_deleted_is_deleted_later(
    store: JobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, while another process still reads it."""
    job = add(store)
    with monkeypatch.context() as busy:
        busy.setattr(Path, "unlink", lambda _: (_ for _ in ()).throw(PermissionError(13, "Access is denied")))
        assert store.cancel(job.id) is True
    assert files(folder) == [job.id]
    store.expire()
    assert files(folder) == []


# At the next start.


def test_restart_goes_on_where_the_last_life_ended(folder: Path) -> None:
    with closing(opened(folder)) as store:
        first, second = add(store), add(store, owner="bob")
        store.start(second.id)
        store.save_slice(second.id, part(0, 16_000))
        unfinished = uploaded(store)
        shutil.copy(folder / "spool" / unfinished.id, folder / "spool" / "stray")  # as a SIGKILL leaves one
    with closing(opened(folder)) as store:
        assert store.recovery == replace(NOTHING_FOUND, n_resumed=1, n_strays=1)
        assert store.next_unfinished() == replace(second, done_s=1.0)
        assert store.slices(second.id) == [part(0, 16_000)]
        store.succeed(second.id, "{}", 48_000)
        assert store.next_unfinished() == first
        assert files(folder) == [first.id]


def test_job_without_its_audio_fails(folder: Path) -> None:
    with closing(opened(folder)) as store:
        gone, cut, whole = add(store), add(store, b"speech"), add(store, owner="bob")
    (folder / "spool" / gone.id).unlink()
    (folder / "spool" / cut.id).write_bytes(b"spee")
    with closing(opened(folder)) as store:
        assert store.recovery == replace(NOTHING_FOUND, n_lost=2)
        assert [got(store, job.id).error_code for job in (gone, cut, whole)] == ["spool_lost", "spool_lost", None]
        assert got(store, gone.id).error_message == (
            "the audio was lost while the server did not run; send it as a new job"
        )
        assert files(folder) == [whole.id]


def test_database_that_is_none_is_put_aside_with_its_audio(folder: Path) -> None:
    with closing(opened(folder)) as store:
        job = add(store)
    (folder / "jobs.db").write_bytes(b"no database" * 1000)
    with closing(opened(folder)) as store:
        assert store.recovery == replace(NOTHING_FOUND, put_aside=folder / "jobs.db.broken-1")
        assert (store.get(job.id), files(folder)) == (None, [])
        add(store)
    assert (folder / "jobs.db.broken-1").read_bytes() == b"no database" * 1000
    assert (folder / "spool.broken-1" / job.id).read_bytes() == b"speech"
    (folder / "jobs.db").write_bytes(b"no database" * 1000)
    with closing(opened(folder)) as store:
        assert store.recovery == replace(NOTHING_FOUND, put_aside=folder / "jobs.db.broken-2")
    assert len(os.listdir(folder / "spool.broken-2")) == 1


def test_database_with_a_damaged_page_is_put_aside(folder: Path) -> None:
    with closing(opened(folder)) as store:
        store.succeed(add(store).id, "x" * 50_000, 48_000)
    with open(folder / "jobs.db", "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    with closing(opened(folder)) as store:
        assert store.recovery.put_aside == folder / "jobs.db.broken-1"
        add(store)


@pytest.mark.parametrize("version", [0, 2])
def test_database_of_another_version_is_refused_and_left_as_it_is(folder: Path, version: int) -> None:
    with closing(opened(folder)) as store:
        job = add(store)
    with database(folder) as db:
        db.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StorageError) as raised:
        opened(folder)
    assert (raised.value.code, str(raised.value)) == (
        "storage_unavailable",
        f"{folder / 'jobs.db'} is of version {version}, this server reads and writes version 1 "
        "(use the server that made it, or choose another --state-dir)",
    )
    with database(folder) as db:
        db.execute("PRAGMA user_version = 1")
    with closing(opened(folder)) as store:
        assert store.next_unfinished() == job


# One server.


def test_folder_has_one_store(store: JobStore, folder: Path) -> None:
    with pytest.raises(StorageError) as raised:
        opened(folder)
    assert (raised.value.code, str(raised.value)) == (
        "storage_in_use",
        f"another server keeps its jobs in {folder} (choose another --state-dir)",
    )
    add(store)


def test_folder_of_a_process_that_was_killed_is_free_and_until_then_it_is_not(folder: Path) -> None:
    script = f"""
from pathlib import Path
from asr_ws.errors import StorageError
from tests.server.lives_of_jobs import opened
store = opened(Path({str(folder)!r}))
try:
    opened(Path({str(folder)!r}))  # closes files again, by which POSIX might let go the locks of the first
except StorageError:
    print("opened", flush=True)
input()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"opened\n"
        for _ in range(2):  # to be refused lets go nothing
            with pytest.raises(StorageError, match="another server keeps its jobs"):
                opened(folder)
        process.kill()
        process.wait()
    opened(folder).close()


@posix
def test_only_the_servers_user_may_read_what_people_said(folder: Path) -> None:
    folder.mkdir(mode=0o755, parents=True)
    with closing(opened(folder)) as store:
        add(store)
        modes = {path.relative_to(folder): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes.pop(Path("spool")) == 0o700
    assert {path.name for path in modes} >= {"jobs.db", "jobs.db-wal", "lock"}
    assert set(modes.values()) == {0o600}


# The disk fails.


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """Writes beyond it fail with EFBIG: a real failure of the system, in the middle of a write."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def not_as_root() -> Iterator[None]:
    """Modes do not stop root, as whom tests run in a container."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(user)


def no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


@posix
def test_upload_that_finds_no_room_leaves_nothing(store: JobStore, folder: Path) -> None:
    upload = store.new_upload()
    with file_size_limit(100_000), pytest.raises(StorageError) as raised:
        upload.write(b"x" * 1_000_000)
    upload.discard()
    assert (raised.value.code, str(raised.value)) == (
        "storage_full",
        f"{store.path(upload.id)}: File too large (make room, or choose another --state-dir)",
    )
    assert isinstance(raised.value.__cause__, OSError)
    assert (files(folder), store.get(upload.id)) == ([], None)
    add(store)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_room_that_runs_out_at_the_last_flush_leaves_neither_file_nor_job(
    store: JobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(job_store, "_open_for_us_only", lambda path, flags: os.open("/dev/full", os.O_WRONLY))
        upload = uploaded(store)  # into Python's buffer
        with pytest.raises(StorageError) as raised:
            store.add(upload, FileRequest(), owner="", idempotency_key=None)
    assert raised.value.code == "storage_full"
    assert (files(folder), store.next_unfinished()) == ([], None)
    add(store)


@pytest.mark.parametrize("step", ["_sync", "_sync_folder"])
def test_flush_that_fails_leaves_neither_file_nor_job(
    store: JobStore, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as full:
        full.setattr(job_store, step, no_room)
        with pytest.raises(StorageError) as raised:
            add(store, key="k-1")
    assert raised.value.code == "storage_full"
    assert (files(folder), store.next_unfinished(), store.find_key("ann", "k-1")) == ([], None, None)
    add(store, key="k-1")


def test_full_database_leaves_all_as_it_was(store: JobStore, folder: Path) -> None:
    job = add(store)
    store.start(job.id)
    [(n_pages,)] = store._db.execute("PRAGMA page_count").fetchall()
    store._db.execute(f"PRAGMA max_page_count = {n_pages}")
    refused = [
        lambda: store.add(uploaded(store), FileRequest(prompt="x" * 99_999), owner="", idempotency_key=None),
        lambda: store.save_slice(job.id, part(0, 1, "x" * 99_999)),
        lambda: store.succeed(job.id, "x" * 99_999, 48_000),
    ]
    for each in refused:
        with pytest.raises(StorageError) as raised:
            each()
        assert (raised.value.code, str(raised.value)) == (
            "storage_full",
            f"{folder / 'jobs.db'}: database or disk is full (make room, or choose another --state-dir)",
        )
    assert (got(store, job.id), store.slices(job.id)) == (replace(job, status=JobStatus.RUNNING), [])
    assert files(folder) == [job.id]
    assert store.succeed(job.id, "{}", 48_000) is True  # what is small has room
    store._db.execute("PRAGMA max_page_count = 1000000")
    add(store)


@posix
def test_log_that_cannot_be_written_leaves_all_as_it_was(folder: Path) -> None:
    """SQLite says of a limit, or a quota, only that there was an I/O error."""
    with closing(opened(folder)) as store:
        job = add(store)
        with file_size_limit((folder / "jobs.db-wal").stat().st_size + 5000), pytest.raises(StorageError) as raised:
            store.succeed(job.id, "x" * 99_999, 48_000)
        assert (raised.value.code, got(store, job.id), files(folder)) == ("storage_unavailable", job, [job.id])
        other = add(store)
    with closing(opened(folder)) as store:
        assert [store.get(each.id) for each in (job, other)] == [job, other]


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as raised:
        opened(tmp_path / "file" / "jobs")
    assert raised.value.code == "storage_unavailable"
    assert raised.value.hint == "look at the folder, or choose another --state-dir"


@pytest.mark.parametrize("name", ["lock", "jobs.db", "spool"])
def test_what_is_in_the_way_is_said_and_the_folder_is_free_again(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    in_the_way = folder / name
    in_the_way.write_bytes(b"") if name == "spool" else in_the_way.mkdir()
    for _ in range(2):
        with pytest.raises(StorageError) as raised:
            opened(folder)
        assert raised.value.code == "storage_unavailable"
    in_the_way.unlink() if name == "spool" else in_the_way.rmdir()
    opened(folder).close()


@posix
def test_folder_that_is_read_only_is_said() -> None:
    with tempfile.TemporaryDirectory() as outside:  # pytest's folders are closed to others
        os.chmod(outside, 0o555)
        with not_as_root(), pytest.raises(StorageError) as raised:
            opened(Path(outside) / "jobs")
    assert (raised.value.code, raised.value.message) == ("storage_unavailable", f"{outside}/jobs: Permission denied")


def test_mistake_of_ours_is_no_failure_of_the_disk(store: JobStore) -> None:
    with pytest.raises(sqlite3.OperationalError):
        store._read("SELECT nothing FROM nowhere")


# The server is killed.


def test_audio_and_its_name_are_flushed_before_the_row_is_committed(
    store: JobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loss of power needs, and no SIGKILL can show."""
    order = list[str]()
    real_sync, real_sync_folder = job_store._sync, job_store._sync_folder

    def sync(fd: int) -> None:
        order.append("file" if stat.S_ISREG(os.fstat(fd).st_mode) else "names")
        real_sync(fd)

    def sync_folder(path: Path) -> None:
        order.append(path.name)
        real_sync_folder(path)

    monkeypatch.setattr(job_store, "_sync", sync)
    monkeypatch.setattr(job_store, "_sync_folder", sync_folder)
    upload = uploaded(store)
    store._db.set_trace_callback(lambda statement: order.append(statement.split()[0]))
    store.add(upload, FileRequest(), owner="", idempotency_key=None)
    durable = [each for each in order if each in ("file", "spool", "INSERT", "COMMIT")]
    assert durable == ["file", "spool", "INSERT", "COMMIT"]
    assert [store._read(f"PRAGMA {name}") for name in ("synchronous", "journal_mode")] == [[(2,)], [("wal",)]]


def acknowledged(said: str) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Returns: hashes of what was added; how jobs ended, which none does twice."""
    added, ended = dict[str, str](), dict[str, tuple[str, str]]()
    for kind, id, *what in map(str.split, said.splitlines()):
        if kind == "added":
            added[id] = what[0]
        else:
            assert id not in ended
            ended[id] = (what[0], what[1])
    return added, ended


def check(folder: Path, said: str) -> int:
    """That the store keeps its word. Returns: how many jobs it has."""
    added, ended = acknowledged(said)
    with closing(lives_of_jobs.opened(folder)) as store:
        assert replace(store.recovery, n_resumed=0, n_strays=0) == NOTHING_FOUND
        assert store.recovery.n_strays <= 1  # what was being written
        rows = store._read("SELECT id, sha256, status IN ('queued', 'running') FROM jobs")
        n_jobs = sum(store.counts().values())
        assert {id: (job.status, str(job.result)) for id in ended if (job := store.get(id))} == ended
        audio = {id: hashlib.sha256(store.path(JobId(id)).read_bytes()).hexdigest() for id in files(folder)}
    assert added.items() <= {id: sha256 for id, sha256, _ in rows}.items()
    assert audio == {id: sha256 for id, sha256, unfinished in rows if unfinished}
    assert len(rows) == n_jobs
    return n_jobs


@posix
def test_what_was_acknowledged_survives_sigkill(folder: Path) -> None:
    """Twenty lives in one folder, each killed after some of its acknowledgements, at what it does just then."""
    chance, said = random.Random(20), ""
    command = [sys.executable, "-m", "tests.server.lives_of_jobs", str(folder)]
    for life in range(20):
        with subprocess.Popen([*command, str(life)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said += "".join(process.stdout.readline() for _ in range(chance.randrange(40)))
            process.kill()
            said += process.stdout.read()
        assert process.returncode == -signal.SIGKILL
        n_jobs = check(folder, said)
        # One that was kept, and not told of any more, a life.
        assert len(acknowledged(said)[0]) <= n_jobs <= len(acknowledged(said)[0]) + life + 1
    assert n_jobs > 100


def test_what_was_acknowledged_survives_an_end_at_any_line_of_the_store(tmp_path: Path) -> None:
    """A killed process leaves its files as they are: so each state that they are ever in is such an end."""
    folder, said = tmp_path / "life", list[str]()
    states = list[tuple[str, dict[Path, bytes]]]()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != job_store.__file__:
            return None
        found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        state = "\n".join(said), found
        if event == "line" and state not in states[-1:]:
            states.append(state)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        lives_of_jobs.short_life(folder, said.append)
    finally:
        sys.settrace(before)
    for n, (told, found) in enumerate(states):
        for name, content in found.items():
            file = tmp_path / str(n) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        n_added = len(acknowledged(told)[0])
        assert n_added <= check(tmp_path / str(n), told) <= n_added + 1
    assert len(acknowledged("\n".join(said))[1]) == 3
    assert len(states) > 30


# Anything in any order.


class AnyLife(RuleBasedStateMachine):
    """The store does what a dict would do that is never lost."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="jobs-"))
        self.clock = Clock()
        self.store = opened(self.folder, self.clock)
        self.jobs: dict[JobId, Job] = {}  # the model, in order of arrival
        self.begun: list[JobId] = []  # in this life or an earlier one
        self.keys: dict[tuple[str, str], tuple[JobId, bytes]] = {}
        self.parts: dict[JobId, list[FileSlice]] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def unfinished(self, owner: str | None = None) -> list[Job]:
        return [job for job in self.jobs.values() if job.finished_at is None and owner in (None, job.owner)]

    @rule(
        owner=st.sampled_from(["ann", "bob", "cleo"]),
        key=st.sampled_from([None, "k-1", "k-2"]),
        content=st.sampled_from([b"", b"one", b"two" * 30_000]),
    )
    def add(self, owner: str, key: str | None, content: bytes) -> None:
        known = self.keys.get((owner, key or ""))
        if known and known[1] != content:
            with pytest.raises(IdempotencyMismatch):
                offer(self.store, content, owner=owner, key=key)
            return
        answer = offer(self.store, content, owner=owner, key=key)
        if known:
            assert answer == self.jobs[known[0]]
        elif len(self.unfinished(owner)) >= 2:
            assert answer is RefusalReason.FAIR_SHARE
        elif len(self.unfinished()) >= 4:
            assert answer is RefusalReason.QUEUE_FULL
        else:
            assert isinstance(answer, Job)
            self.jobs[answer.id] = answer
            self.parts[answer.id] = []
            if key:
                self.keys[owner, key] = answer.id, content

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), what=st.sampled_from(["start", "slice", "failed try", "succeed", "fail", "cancel"]))
    def change(self, data: st.DataObject, what: str) -> None:
        job = self.jobs[data.draw(st.sampled_from(list(self.jobs)))]
        n = len(self.parts[job.id])
        after = {
            "start": replace(job, status=JobStatus.RUNNING),
            "slice": replace(job, done_s=n + 1.0),
            "failed try": job,
            "succeed": replace(
                job, status=JobStatus.SUCCEEDED, result="{}", finished_at=self.clock.now, done_s=3.0, duration_s=3.0
            ),
            "fail": replace(
                job, status=JobStatus.FAILED, error_code="c", error_message="m", finished_at=self.clock.now
            ),
            "cancel": replace(job, status=JobStatus.CANCELLED, finished_at=self.clock.now),
        }
        done = {
            "start": lambda: self.store.start(job.id),
            "slice": lambda: self.store.save_slice(job.id, part(n * 16_000, (n + 1) * 16_000)),
            "failed try": lambda: self.store.add_failed_try(job.id) > 0,
            "succeed": lambda: self.store.succeed(job.id, "{}", 48_000),
            "fail": lambda: self.store.fail(job.id, "c", "m"),
            "cancel": lambda: self.store.cancel(job.id),
        }
        assert done[what]() is (job.finished_at is None)
        if job.finished_at is not None:
            return
        self.jobs[job.id] = after[what]
        if what == "start":
            self.begun.append(job.id)
        elif what == "slice":
            self.parts[job.id].append(part(n * 16_000, (n + 1) * 16_000))
        elif after[what].finished_at is not None:
            self.parts[job.id] = []

    @rule(by_s=st.sampled_from([1.0, 60.0, 400.0]), then_expire=st.booleans())
    def let_time_pass(self, by_s: float, then_expire: bool) -> None:
        self.clock.now += by_s
        for job in list(self.jobs.values()):
            if job.finished_at is not None and job.finished_at + 60.0 <= self.clock.now:
                expired = replace(job, result=None, error_code=None, error_message=None, is_expired=True)
                self.jobs[job.id] = expired
                self.keys = {key: known for key, known in self.keys.items() if known[0] != job.id}
                if then_expire:
                    self.jobs[job.id] = expired
                    if job.finished_at + TOMBSTONE_TTLS * 60.0 <= self.clock.now:
                        del self.jobs[job.id]
        if then_expire:
            self.store.expire()
            due = self.store.next_expiry()
            assert due is None or due > self.clock.now

    @rule(stray=st.booleans())
    def restart(self, stray: bool) -> None:
        upload = self.store.new_upload()
        self.store.close()
        if stray:
            (self.folder / "spool" / upload.id).write_bytes(b"cut o")
        self.store = opened(self.folder, self.clock)
        ran = [job for job in self.unfinished() if job.status is JobStatus.RUNNING]
        assert self.store.recovery == replace(NOTHING_FOUND, n_resumed=len(ran), n_strays=int(stray))
        self.jobs |= {job.id: replace(job, status=JobStatus.QUEUED) for job in ran}

    @invariant()
    def all_is_kept(self) -> None:
        assert {id: self.store.get(id) for id in self.jobs} == self.jobs
        assert {id: self.store.slices(id) for id in self.jobs} == {id: self.parts[id] for id in self.jobs}
        assert files(self.folder) == sorted(job.id for job in self.unfinished())

    @invariant()
    def next_is_what_was_begun_then_what_came_first(self) -> None:
        unfinished = sorted(self.unfinished(), key=lambda job: job.id not in self.begun)
        assert self.store.next_unfinished() == (unfinished[0] if unfinished else None)


AnyLife.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestAnyLife = AnyLife.TestCase
