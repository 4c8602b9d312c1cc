"""Jobs: files whose caller does not wait. They are kept on disk, and done one after the other in the background.

Rules:

- A job that was answered with 202 is on the disk (`asr_ws.server.job_store`). It ends once, whatever dies meanwhile:
  what is decoded of it is kept slice by slice, and the server's next life goes on from there.
- Its slices wait behind all that is spoken live, for as long as it takes; nothing else is waited for.
- Two deaths of the worker under a slice, or two of the process that decodes the file, end it as failed.
- A disk that does not take what is to be kept costs new jobs a 507, and one for which too many wait a 503. A job that
  is being done is tried again; after `MAX_TRIES` those behind it come first. Nothing that is wrong with a job ends
  the server.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import msgspec
import structlog
from aiohttp import web

from asr_ws.core.files import FileRequest, FileTranscript
from asr_ws.core.types import SAMPLE_RATE, RefusalReason, ServiceState, SessionId
from asr_ws.errors import MediaError, RequestError, StorageError
from asr_ws.server.disk import Disk
from asr_ws.server.dispatcher import Dispatcher
from asr_ws.server.failures import Refused
from asr_ws.server.files import File, Files
from asr_ws.server.form import BodyLimits, check_head, parse_fields, read_form
from asr_ws.server.http import Route, Visit
from asr_ws.server.job_store import Job, JobStatus, JobStore, Upload
from asr_ws.server.media import CRASHED, HUNG, Media, MediaLimits
from asr_ws.server.shapes import dumps, error_body, result

P = ParamSpec("P")
T = TypeVar("T")

PATH: Final = "/v1/jobs"
MAX_UPLOADS: Final = 8  # at once; half of them of one caller
MAX_KEY_CHARS: Final = 255
MAX_FAILED_TRIES: Final = 2  # of the process that decodes the file
RETRY_S: Final = 5.0  # after the disk, or the system, failed a job that is being done
MAX_TRIES: Final = 5  # that fail for what may pass; then the others come first
LOOK_EVERY_S: Final = 60.0  # for what has expired, and whether the folder is usable
CLOSE_TIMEOUT_S: Final = 2.0
DISCARD_TIMEOUT_S: Final = 1.0  # in which it is waited for: it is done in any case
OUR_FAULT: Final = ("internal", "spool_lost")  # of codes of jobs: another file would fare no better


class Jobs:
    """Args:
    folder: theirs alone; made when somebody asks for one.
    languages: that the model can be told.
    capacity: of the backlog; half of it for one caller.
    ttl_s: from a job's end until its result is gone.
    now: the wall clock, s, which goes on while there is no server.
    root_path: what a proxy has before each path.
    """

    def __init__(
        self,
        folder: Path,
        files: Files,
        dispatcher: Dispatcher,
        limits: MediaLimits,
        languages: tuple[str, ...],
        *,
        capacity: int,
        ttl_s: float,
        now: Callable[[], float],
        root_path: str = "",
    ) -> None:
        self._folder = folder
        self._files = files
        self._dispatcher = dispatcher
        self._limits = limits
        self._body_limits = BodyLimits(limits.max_bytes)
        self._languages = languages
        self._capacity = capacity
        self._ttl_s = ttl_s
        self._now = now
        self._root_path = root_path
        self._log = structlog.get_logger()
        self._disk = Disk()
        self._store: JobStore | None = None  # of the disk's thread
        self._touched = asyncio.Event()
        self._uploading: list[tuple[SessionId, str | None]] = []  # whose, and the Idempotency-Key
        self._n_postponed = Counter[str]()  # in this life, by job
        self._doing: tuple[str, asyncio.Task[None]] | None = None
        self.counts: Mapping[JobStatus, int] = dict.fromkeys(JobStatus, 0)

    def routes(self) -> list[Route]:
        return [
            Route("POST", PATH, self._create),
            Route("GET", f"{PATH}/{{job_id}}", self._show),
            Route("DELETE", f"{PATH}/{{job_id}}", self._delete),
        ]

    # ------------------------------------------------------------ the API

    async def _create(self, visit: Visit, _: str) -> web.StreamResponse:
        check_head(visit.request, self._body_limits)
        key = _key(visit)
        if self._dispatcher.status.state is ServiceState.DRAINING:
            raise self._refused(RefusalReason.DRAINING)
        if key is not None and (visit.caller, key) in self._uploading:
            raise RequestError(
                409, "idempotency_in_progress", "another request with this Idempotency-Key is on its way"
            )
        if sum(caller == visit.caller for caller, _ in self._uploading) >= MAX_UPLOADS // 2:
            raise self._refused(RefusalReason.FAIR_SHARE)
        if len(self._uploading) >= MAX_UPLOADS:
            raise self._refused(RefusalReason.QUEUE_FULL)
        here = (visit.caller, key)
        self._uploading.append(here)
        try:
            store = await self._opened()
            known = await self._ask(store.find_key, visit.caller, key) if key is not None else None
            if known is None and (full := await self._ask(store.full, visit.caller)) is not None:
                raise self._refused(full)
            await visit.want_body()
            job = await self._receive(visit, store, key)
        finally:
            self._uploading.remove(here)
            self._touched.set()
        where = {"Location": f"{self._root_path}{PATH}/{job.id}"}
        return visit.respond(202, json.dumps({"job_id": job.id, "status": job.status}), headers=where)

    async def _receive(self, visit: Visit, store: JobStore, key: str | None) -> Job:
        upload = store.new_upload()

        async def on_file() -> _Spool:
            return _Spool(self._ask, upload)

        try:
            fields = await read_form(visit.request, limits=self._body_limits, on_file=on_file)
            request = parse_fields(fields, task="transcribe", languages=self._languages)
            job = await self._ask(store.add, upload, request, owner=visit.caller, idempotency_key=key)
        finally:
            with suppress(StorageError, TimeoutError):  # the disk is closed, and the store has done it; or it hangs
                async with asyncio.timeout(DISCARD_TIMEOUT_S):
                    await self._disk.run(upload.discard)
        if isinstance(job, RefusalReason):
            raise self._refused(job)
        return job

    async def _show(self, visit: Visit, id: str) -> web.StreamResponse:
        return visit.respond(200, msgspec.json.encode(_shown(await self._found(visit, id))))

    async def _delete(self, visit: Visit, id: str) -> web.StreamResponse:
        """Of one that has ended the result is gone, as when it expires."""
        job = await self._found(visit, id)
        store = await self._opened()
        if await self._ask(store.cancel, job.id):
            if self._doing is not None and self._doing[0] == job.id:
                self._doing[1].cancel()
            self._log.info("job.ended", job=job.id, status=JobStatus.CANCELLED.value, audio_s=round(job.done_s, 1))
        else:
            await self._ask(store.forget, job.id)
        self._touched.set()
        return visit.respond(204)

    async def _found(self, visit: Visit, id: str) -> Job:
        """Whoever has a token sees his own; where nobody needs one, the id is as good as that."""
        store = await self._opened()
        job = await self._ask(store.get, id)
        if job is None or (visit.is_known and job.owner != visit.caller):
            raise RequestError(404, "not_found", "there is no such job")
        if job.is_expired:
            raise RequestError(410, "expired", "the job's result has expired, or was deleted")
        return job

    def _refused(self, reason: RefusalReason) -> Refused:
        shed = self._dispatcher.shed(reason, now=asyncio.get_running_loop().time())
        return Refused(replace(shed, queue_depth=self.counts[JobStatus.QUEUED] + self.counts[JobStatus.RUNNING]))

    # ------------------------------------------------------------ the store

    async def _ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`Disk.ask`, for who comes by HTTP: the log says why the disk did not.

        Raises: Refused: the server stops, or too many wait for the disk; and what the function does.
        """
        if self._disk.is_closed:
            raise self._refused(RefusalReason.DRAINING)
        if self._disk.is_full:
            raise self._refused(RefusalReason.QUEUE_FULL)
        try:
            return await self._disk.ask(function, *args, **kwargs)
        except StorageError as error:
            self._log.warning("jobs.storage_failed", code=error.code, error=str(error))
            raise

    async def _opened(self) -> JobStore:
        """Raises: Refused, StorageError."""
        return self._store if self._store is not None else await self._ask(self._open)

    def _open(self) -> JobStore:
        """In the disk's thread."""
        if self._store is None:
            self._store = JobStore(
                self._folder,
                capacity=self._capacity,
                owner_capacity=max(1, self._capacity // 2),
                ttl_s=self._ttl_s,
                now=self._now,
            )
            found = self._store.recovery
            log = self._log.warning if found.put_aside or found.n_lost else self._log.info
            put_aside = {"put_aside": str(found.put_aside)} if found.put_aside else {}
            log("jobs.opened", resumed=found.n_resumed, lost=found.n_lost, strays=found.n_strays, **put_aside)
        return self._store

    def _may_have_jobs(self) -> bool:
        """In the disk's thread."""
        try:
            return self._folder.exists()
        except OSError:  # nobody knows
            return True

    def _close(self) -> None:
        """In the disk's thread."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _tidy(self) -> Mapping[JobStatus, int]:
        """In the disk's thread: what has expired is gone. Returns: how many there are."""
        if self._store is None:
            return self.counts
        expiry = self._store.next_expiry()
        if expiry is not None and expiry <= self._now():
            try:
                self._store.expire()
            except StorageError as error:  # which is no reason not to count
                self._log.warning("jobs.storage_failed", code=error.code, error=str(error))
        return self._store.counts()

    def _next(self) -> Job | None:
        """In the disk's thread: what is to be done next."""
        return self._store.next_unfinished() if self._store is not None else None

    # ------------------------------------------------------------ the one that does them

    async def run(self) -> None:
        """Do what is there, one job after the other, until cancelled; nothing else ends it."""
        try:
            while True:
                self._touched.clear()
                try:
                    if await self._do_next():
                        continue
                except (Postponed, StorageError) as error:
                    self._log.warning("job.postponed", error=str(error))
                    await asyncio.sleep(RETRY_S)
                    continue
                except Exception:  # which would end the server, and its next life too
                    self._log.exception("jobs.failed")
                    await asyncio.sleep(RETRY_S)
                    continue
                await self._wait_touched()
        finally:
            await self._disk.aclose(CLOSE_TIMEOUT_S, self._close)

    async def _wait_touched(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._touched.wait()

    async def _do_next(self) -> bool:
        """Returns: whether there was one. Raises: Postponed, StorageError: it could not be done now."""
        if self._store is None:
            try:  # there may be jobs of an earlier life, which wait for the folder to be usable
                if not await self._disk.run(self._may_have_jobs):
                    return False
                await self._disk.run(self._open)
            except StorageError as error:
                self._log.warning("jobs.storage_failed", code=error.code, error=str(error))
                return False
        self.counts = await self._disk.run(self._tidy)
        job = await self._disk.run(self._next)
        if job is None:
            return False
        store = await self._disk.run(self._open)
        try:
            await self._do(job, store)
        except Exception:
            self._n_postponed[job.id] += 1
            if self._n_postponed[job.id] % MAX_TRIES == 0:
                await self._disk.run(store.put_behind, job.id)
            raise
        self._n_postponed.pop(job.id, None)
        return True

    async def _do(self, job: Job, store: JobStore) -> None:
        doing = asyncio.create_task(self._decode(job, store), name=f"job {job.id}")
        self._doing = job.id, doing
        doing.add_done_callback(lambda _: self._touched.set())
        try:
            while not doing.done():
                await self._wait_touched()
                self._touched.clear()
                with suppress(StorageError):  # which is no reason to end the job
                    self.counts = await self._disk.run(self._tidy)
            if not doing.cancelled():
                doing.result()
        finally:
            self._doing = None
            doing.cancel()
            await asyncio.wait([doing])

    async def _decode(self, job: Job, store: JobStore) -> None:
        if not await self._disk.run(store.start, job.id):
            return  # cancelled meanwhile
        self._touched.set()  # to be counted
        file = File(SessionId(job.owner))
        try:
            if job.request is None:
                raise ValueError("what was asked for cannot be read")
            kept = await self._disk.run(store.slices, job.id)
            known = {(part.start_sample, part.end_sample): part for part in kept}
            async with AsyncExitStack() as opened:
                try:
                    media = await opened.enter_async_context(Media(self._limits, store.path(job.id)))
                except (OSError, RuntimeError) as error:  # the system has no process for it
                    raise Postponed(str(error)) from error
                transcribed = self._files.transcribe(media, file, job.request, is_job=True, known=known)
                async for part in await opened.enter_async_context(aclosing(transcribed)):
                    if (part.start_sample, part.end_sample) in known:
                        continue
                    n_samples = None if file.duration_s is None else round(file.duration_s * SAMPLE_RATE)
                    await self._disk.run(store.save_slice, job.id, part, n_samples)
            # Of hours of speech it takes long: not on the loop.
            text = await asyncio.to_thread(_encoded_result, file.transcript, job.request)
            if await self._disk.run(store.succeed, job.id, text, file.n_samples):
                self._log_end(job, JobStatus.SUCCEEDED, file)
        except MediaError as error:
            is_accident = error.code in (CRASHED, HUNG)
            if is_accident and await self._disk.run(store.add_failed_try, job.id) < MAX_FAILED_TRIES:
                self._log.warning("job.tried_again", job=job.id, code=error.code)
                raise Postponed(str(error)) from error
            await self._fail(store, job, file, error.code, str(error))
        except RequestError as error:
            await self._fail(store, job, file, error.code, str(error))
        except Refused as error:  # the server stops
            raise Postponed(str(error)) from error
        except (StorageError, Postponed):
            raise
        except Exception:  # which would end the server, and its next life too
            self._log.exception("job.failed", job=job.id)
            await self._fail(store, job, file, "internal", "a bug of the server's; its log says more")

    async def _fail(self, store: JobStore, job: Job, file: File, code: str, message: str) -> None:
        if await self._disk.run(store.fail, job.id, code, message):
            self._log_end(job, JobStatus.FAILED, file, code=code)

    def _log_end(self, job: Job, status: JobStatus, file: File, **why: str) -> None:
        audio_s = round(file.n_samples / SAMPLE_RATE, 1)
        self._log.info("job.ended", job=job.id, status=status.value, audio_s=audio_s, **why)


class Postponed(Exception):
    """A job is to be tried once more."""


class _Spool:
    """What a job's file is written to as it comes."""

    def __init__(self, ask: Callable[[Callable[[bytes], None], bytes], Awaitable[None]], upload: Upload) -> None:
        self._ask = ask
        self._upload = upload

    async def write(self, data: bytes) -> None:
        await self._ask(self._upload.write, data)


def _key(visit: Visit) -> str | None:
    """Raises: RequestError."""
    keys = visit.request.headers.getall("Idempotency-Key", ())
    if not keys:
        return None
    if len(keys) > 1 or not 0 < len(keys[0]) <= MAX_KEY_CHARS or not keys[0].isprintable():
        message = f"Idempotency-Key is one text of 1 to {MAX_KEY_CHARS} characters"
        raise RequestError(400, "invalid_value", message, param="Idempotency-Key")
    return keys[0]


def _encoded_result(transcript: FileTranscript, request: FileRequest) -> str:
    return dumps(result(transcript, request))


def _shown(job: Job) -> dict[str, Any]:
    progress = {"seconds": round(job.done_s, 3), "duration": job.duration_s and round(job.duration_s, 3)}
    shown: dict[str, Any] = {"job_id": job.id, "status": job.status, "progress": progress}
    if job.result is not None:
        shown["result"] = msgspec.Raw(job.result.encode())  # megabytes, which nobody parses
    if job.error_code is not None:
        status = 500 if job.error_code in OUR_FAULT else 422
        shown |= error_body(status, job.error_code, job.error_message or "")
    return shown
