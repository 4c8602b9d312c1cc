"""HTTP jobs on disk: what was acknowledged outlives the server, and ends exactly once.

Rules:
- `JobStore.add` returns, and so the caller is told 202, only when the audio and its row would survive a loss of power:
  the file is flushed, then its folder, then the row is committed. Cut off anywhere, there is a row with its whole file,
  or there is no row; a file without one was never acknowledged, and is deleted at the next start.
- A file is written under its job's id, which is new: no row knows it yet, so nobody takes it for a whole one, and
  there is no rename to be lost.
- A job ends by one UPDATE of what has not ended; whoever comes later is told so by False. Its audio is deleted after
  that commit: a row whose job has not ended always has its file. What cannot be deleted then (on Windows, because it is
  still being read) is deleted by `expire` or at the next start.
- What has been decoded is kept slice by slice, so that a restart goes on where the last life ended.
- Times are the wall clock's, which alone goes on while the server does not run; a jump of it moves an expiry, and
  nothing else. Order is that of arrival, not of time.
- Nothing that a caller sent becomes part of a path.

SQLite in WAL mode with ``synchronous=FULL`` flushes its log at each commit (https://sqlite.org/wal.html; with NORMAL,
the usual choice, the last commits may be lost), and undoes what was cut off when it is opened again. A database beside
the audio, not in it: files of hundreds of megabytes are written once, and neither copied into a log nor vacuumed.

One server a folder: a transaction that is never ended holds SQLite's lock on a file of its own, which the system lets
go when the process ends, however it does, on each platform. The database itself cannot serve, since it is put aside
when it is damaged, and by one server only.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from errno import EDQUOT, EFBIG, ENOSPC
from itertools import count
from pathlib import Path
from typing import IO, Any, Final, NewType

import msgspec

from asr_ws.core.files import FileRequest, FileSlice
from asr_ws.core.types import SAMPLE_RATE, RefusalReason
from asr_ws.errors import IdempotencyMismatch, StorageError

JobId = NewType("JobId", str)  # one that this store has made

SCHEMA: Final = 1  # user_version; a change of the tables needs the next number, and what leads there from this one
TOMBSTONE_TTLS: Final = 7  # an expired job is still known as such for so many times the life of its result
PRAGMAS: Final = (
    "locking_mode = EXCLUSIVE",  # no other process reads here: the log needs no shared memory
    "synchronous = FULL",  # before WAL, so that its own header is flushed too
    "fullfsync = ON",  # macOS: through the drive's cache
    "checkpoint_fullfsync = ON",
    "journal_mode = WAL",
    "secure_delete = ON",  # what somebody said is overwritten when it is deleted; in the log: `_overwrite_log`
)
TABLES: Final = (
    """
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY,  -- order of arrival, but for those that were put behind
        id TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL,
        owner TEXT NOT NULL,
        idempotency_key TEXT,  -- NULL: none, or expired
        request TEXT NOT NULL,
        n_bytes INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        has_started INTEGER NOT NULL DEFAULT 0,  -- in this life or an earlier one
        finished_at REAL,
        done_samples INTEGER NOT NULL DEFAULT 0,
        n_samples INTEGER,
        n_failed_tries INTEGER NOT NULL DEFAULT 0,
        result TEXT,
        error_code TEXT,
        error_message TEXT,
        is_tombstone INTEGER NOT NULL DEFAULT 0,
        UNIQUE (owner, idempotency_key)
    )
    """,
    "CREATE INDEX unfinished ON jobs (has_started, seq) WHERE status IN ('queued', 'running')",
    "CREATE INDEX finished ON jobs (is_tombstone, finished_at)",
    """
    CREATE TABLE slices (
        job TEXT NOT NULL,  -- unfinished
        end_sample INTEGER NOT NULL,
        slice BLOB NOT NULL,  -- MessagePack
        PRIMARY KEY (job, end_sample)
    )
    """,
    f"PRAGMA user_version = {SCHEMA}",
)
UNFINISHED: Final = "status IN ('queued', 'running')"

_ID = re.compile(r"job-[A-Za-z0-9_-]{22}")
_FULL = (ENOSPC, EDQUOT, EFBIG)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# The world's doing. Any other is a mistake in a statement, and ours.
_WORLD = {
    **dict.fromkeys((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED), "storage_in_use"),
    sqlite3.SQLITE_FULL: "storage_full",
    **dict.fromkeys(
        (
            *_DAMAGED,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_NOLFS,
            sqlite3.SQLITE_PERM,
            sqlite3.SQLITE_PROTOCOL,
            sqlite3.SQLITE_READONLY,
        ),
        "storage_unavailable",
    ),
}
_HINTS = {
    "storage_full": "make room, or choose another --state-dir",
    "storage_unavailable": "look at the folder, or choose another --state-dir",
    "storage_in_use": "choose another --state-dir",
}


_BURY = (
    "UPDATE jobs SET is_tombstone = 1, idempotency_key = NULL, request = '{}', sha256 = '', "
    "result = NULL, error_code = NULL, error_message = NULL WHERE NOT is_tombstone"
)


class JobStatus(StrEnum):
    """The values are the wire's."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Job:
    """As it was when it was read. An expired one has no result, no error, and after `expire` no request."""

    id: JobId
    status: JobStatus
    owner: str
    request: FileRequest | None  # None: what is kept of it cannot be read
    finished_at: float | None
    result: str | None  # JSON
    error_code: str | None
    error_message: str | None
    done_s: float  # of its audio
    duration_s: float | None  # None: not known yet
    is_expired: bool


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found when the store was opened, to be logged."""

    put_aside: Path | None  # a damaged database; its audio is beside it, as ``spool`` in place of ``jobs.db``
    n_resumed: int  # jobs that ran when the last life ended
    n_lost: int  # jobs that have failed, because their audio is gone
    n_strays: int  # files that belonged to no job, and were deleted


class Upload:
    """Audio that is on its way to be a job: a file that `JobStore.add` keeps, and `discard` deletes.

    To make one opens nothing. Whoever writes to it discards it at the end, in any case.
    """

    def __init__(self, id: JobId, path: Path, writing: set[Upload]) -> None:
        self.id = id  # the job's, if it becomes a new one
        self.size = 0  # bytes
        self._path = path
        self._writing = writing
        self._file: IO[bytes] | None = None
        self._hash = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Raises: StorageError: there is no room; all that is left to do is `discard`."""
        with _translated(self._path):
            self._opened().write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def discard(self) -> None:
        """Delete it, unless it was kept. Does no harm, and raises nothing, however often and whenever it is called."""
        if self._file is not None:
            with suppress(OSError):  # what waits to be written, to a full disk
                self._file.close()
            _delete(self._path)
        self._let_go()

    def flush(self) -> None:
        """For `JobStore.add`: to the disk itself, with its name."""
        with _translated(self._path), self._opened() as file:
            file.flush()
            _sync(file.fileno())
            _sync_folder(self._path.parent)

    def keep(self) -> None:
        """For `JobStore.add`: it is a job's now."""
        self._let_go()

    def _let_go(self) -> None:
        self._file = None
        self._writing.discard(self)

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = open(self._path, "xb", opener=_open_for_us_only)  # noqa: SIM115 it outlives this call
            self._writing.add(self)
        return self._file


class JobStore:
    """Opens the folder, or makes it. All of it, the making included, happens on `asr_ws.server.disk.Disk`'s thread.

    What changes a job returns whether it had not ended before: False is no error, since jobs are cancelled at any time.

    Args:
        folder: its own; what lies in ``folder/spool`` and is no job's is deleted.
        capacity: unfinished jobs at a time, of all owners.
        owner_capacity: of one.
        ttl_s: from a job's end until it expires.
        now: the wall clock, s.
    Attributes:
        recovery: what was found.
    Raises:
        StorageError: as each method does. Another server has the folder; it cannot be written; or it was made by
            another version. After a failed method the store is as it was before, and goes on.
    """

    def __init__(
        self, folder: Path, *, capacity: int, owner_capacity: int, ttl_s: float, now: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._file = folder / "jobs.db"
        self._spool = folder / "spool"
        self._capacity = capacity
        self._owner_capacity = owner_capacity
        self._ttl_s = ttl_s
        self._now = now
        self._writing = set[Upload]()
        with ExitStack() as opened, _translated(folder):
            _make_folder(folder)
            opened.enter_context(closing(_lock(folder)))
            put_aside = None
            if (db := _connect(self._file)) is None:
                put_aside = self._put_aside()
                if (db := _connect(self._file)) is None:
                    raise StorageError("storage_unavailable", f"{self._file} is damaged as soon as it is made")
            self._db = opened.enter_context(closing(db))
            _make_folder(self._spool)
            self._check_schema()
            self.recovery = self._recover(put_aside)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Uploads that were not kept are discarded."""
        for upload in tuple(self._writing):
            upload.discard()
        with _translated(self._folder):
            self._opened.close()

    # Taking jobs.

    def full(self, owner: str) -> RefusalReason | None:
        """Whether `add` would refuse a new job now: asked before its audio is read."""
        [(n_all, n_own)] = self._read(
            f"SELECT count(*), coalesce(sum(owner = ?), 0) FROM jobs WHERE {UNFINISHED}", owner
        )
        if n_own >= self._owner_capacity:
            return RefusalReason.FAIR_SHARE
        return RefusalReason.QUEUE_FULL if n_all >= self._capacity else None

    def new_upload(self) -> Upload:
        id = JobId(f"job-{secrets.token_urlsafe(16)}")
        return Upload(id, self.path(id), self._writing)

    def add(
        self, upload: Upload, request: FileRequest, *, owner: str, idempotency_key: str | None
    ) -> Job | RefusalReason:
        """A job of that audio, durable from now on; or the one that was made with this key before.

        Either way the upload is used up. A new job has the upload's id. If the caller is cancelled meanwhile there is
        a job that nobody was told of: it is done all the same, and a repeat with its key finds it.

        Raises:
            IdempotencyMismatch: the key was given to another request or other audio.
            ValueError: a string that is no Unicode, such as a lone surrogate.
        """
        try:
            if idempotency_key is not None and (known := self.find_key(owner, idempotency_key)) is not None:
                [(sha256,)] = self._read("SELECT sha256 FROM jobs WHERE id = ?", known.id)
                if (known.request, sha256) != (request, upload.sha256()):
                    raise IdempotencyMismatch
                return known
            if (full := self.full(owner)) is not None:
                return full
            row = {
                "id": upload.id,
                "status": JobStatus.QUEUED.value,
                "owner": owner,
                "idempotency_key": idempotency_key,
                "request": msgspec.json.encode(request).decode(),
                "n_bytes": upload.size,
                "sha256": upload.sha256(),
            }
            upload.flush()
            with self._transaction() as db:
                # Who still bears the key has expired, or would have been found.
                db.execute(
                    "UPDATE jobs SET idempotency_key = NULL WHERE owner = ? AND idempotency_key = ?",
                    (owner, idempotency_key),
                )
                marks = ", ".join("?" * len(row))
                db.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
            upload.keep()
        finally:
            upload.discard()
        job = self.get(upload.id)
        assert job is not None
        return job

    # Reading.

    def get(self, id: str) -> Job | None:
        """Args: id: any string. Returns: None if there never was such a job, or not for a long time."""
        return self._find("id = ?", id) if _ID.fullmatch(id) else None

    def find_key(self, owner: str, idempotency_key: str) -> Job | None:
        """A key lives as long as its job's result."""
        job = self._find("owner = ? AND idempotency_key = ?", owner, idempotency_key)
        return None if job is None or job.is_expired else job

    def next_unfinished(self) -> Job | None:
        """What was begun comes first, then the oldest. For the one that does them, while it does none."""
        return self._find(f"{UNFINISHED} ORDER BY has_started DESC, seq LIMIT 1")

    def slices(self, id: JobId) -> list[FileSlice]:
        """What is decoded already of an unfinished job, in order."""
        rows = self._read("SELECT slice FROM slices WHERE job = ? ORDER BY end_sample", id)
        return [msgspec.msgpack.decode(row, type=FileSlice) for (row,) in rows]

    def path(self, id: JobId) -> Path:
        """Where an unfinished job's audio is."""
        return self._spool / id

    def counts(self) -> dict[JobStatus, int]:
        """Of those that have not expired, or not been told so by `expire`; each status is there."""
        rows = self._read("SELECT status, count(*) FROM jobs WHERE NOT is_tombstone GROUP BY status")
        return dict.fromkeys(JobStatus, 0) | {JobStatus(status): n for status, n in rows}

    # What becomes of a job.

    def start(self, id: JobId) -> bool:
        return self._update(id, "status = 'running', has_started = 1")

    def put_behind(self, id: JobId) -> None:
        """Whatever else is unfinished comes before it."""
        self._update(id, "has_started = 0, seq = (SELECT max(seq) + 1 FROM jobs)")

    def save_slice(self, id: JobId, part: FileSlice, n_samples: int | None = None) -> bool:
        """The slices of a job come in order, each once; one that is saved again replaces itself.

        Args: n_samples: of all its audio, where that is known.
        """
        with self._transaction() as db:
            found = db.execute(
                "UPDATE jobs SET done_samples = max(done_samples, ?), n_samples = coalesce(?, n_samples) "
                f"WHERE id = ? AND {UNFINISHED}",
                (part.end_sample, n_samples, id),
            ).rowcount
            if found:
                row = (id, part.end_sample, msgspec.msgpack.encode(part))
                db.execute("INSERT OR REPLACE INTO slices VALUES (?, ?, ?)", row)
        return found == 1

    def add_failed_try(self, id: JobId) -> int:
        """The process that decodes its file has died, or hung. Returns: how often by now; 0 if the job has ended."""
        if not self._update(id, "n_failed_tries = n_failed_tries + 1"):
            return 0
        [(n_failed_tries,)] = self._read("SELECT n_failed_tries FROM jobs WHERE id = ?", id)
        return int(n_failed_tries)

    def succeed(self, id: JobId, result: str, n_samples: int) -> bool:
        """Args: n_samples: of all its audio."""
        changes = "result = ?, done_samples = ?, n_samples = ?"
        return self._end(id, JobStatus.SUCCEEDED, changes, result, n_samples, n_samples)

    def fail(self, id: JobId, code: str, message: str) -> bool:
        return self._end(id, JobStatus.FAILED, "error_code = ?, error_message = ?", code, message)

    def cancel(self, id: JobId) -> bool:
        return self._end(id, JobStatus.CANCELLED, "result = NULL")

    # Forgetting.

    def expire(self) -> int:
        """Delete the results, and all else that was said or sent, of jobs that ended `ttl_s` ago; later the rest.

        Returns: how many expired. To be called at `next_expiry`.
        """
        now = self._now()
        with self._transaction() as db:
            n_expired = db.execute(f"{_BURY} AND finished_at <= ?", (now - self._ttl_s,)).rowcount
            db.execute(
                "DELETE FROM jobs WHERE is_tombstone AND finished_at <= ?", (now - TOMBSTONE_TTLS * self._ttl_s,)
            )
        self._overwrite_log()
        self._sweep()
        return n_expired

    def forget(self, id: JobId) -> bool:
        """Let a job that has ended expire now. Returns: whether it was there."""
        with self._transaction() as db:
            was_there = db.execute(f"{_BURY} AND finished_at IS NOT NULL AND id = ?", (id,)).rowcount == 1
        self._overwrite_log()
        return was_there

    def next_expiry(self) -> float | None:
        """When `expire` has something to do next, by the wall clock, s."""
        rows = self._read("SELECT is_tombstone, min(finished_at) FROM jobs GROUP BY is_tombstone")
        due = [at + self._ttl_s * (TOMBSTONE_TTLS if dead else 1) for dead, at in rows if at is not None]
        return min(due, default=None)

    # At the start.

    def _check_schema(self) -> None:
        [(version,)] = self._read("PRAGMA user_version")
        [(n_tables,)] = self._read("SELECT count(*) FROM sqlite_master")
        if (version, n_tables) == (0, 0):
            with self._transaction() as db:
                for statement in TABLES:
                    db.execute(statement)
        elif version != SCHEMA:
            raise StorageError(
                "storage_unavailable",
                f"{self._file} is of version {version}, this server reads and writes version {SCHEMA}",
                "use the server that made it, or choose another --state-dir",
            )

    def _recover(self, put_aside: Path | None) -> Recovery:
        with self._transaction() as db:
            n_resumed = db.execute("UPDATE jobs SET status = 'queued' WHERE status = 'running'").rowcount
        n_lost = 0
        for id, n_bytes in self._read(f"SELECT id, n_bytes FROM jobs WHERE {UNFINISHED}"):
            try:
                size = self.path(id).stat().st_size
            except FileNotFoundError:
                size = None
            if size != n_bytes:
                n_lost += self.fail(
                    id, "spool_lost", "the audio was lost while the server did not run; send it as a new job"
                )
        return Recovery(put_aside, n_resumed, n_lost, self._sweep())

    def _put_aside(self) -> Path:
        """The damaged database and the audio, to names of their own: people may want to save what they can.

        The database last: after a crash on the way there is no new one, for which the audio would be stray. Its log is
        in it: SQLite has done that when it was closed.
        """
        n = next(n for n in count(1) if not any(self._folder.glob(f"*.broken-{n}*")))
        aside = self._file.with_name(f"jobs.db.broken-{n}")
        with suppress(FileNotFoundError):
            self._spool.rename(self._spool.with_name(f"spool.broken-{n}"))
        self._file.rename(aside)
        return aside

    # SQL.

    def _read(self, statement: str, *values: object) -> list[Any]:
        with _translated(self._file):
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Durable at its end; undone if anything fails."""
        with _translated(self._file):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # some failures have ended it already
                    self._db.execute("ROLLBACK")
                raise

    def _update(self, id: JobId, changes: str, *values: object) -> bool:
        with self._transaction() as db:
            return db.execute(f"UPDATE jobs SET {changes} WHERE id = ? AND {UNFINISHED}", (*values, id)).rowcount == 1

    def _end(self, id: JobId, status: JobStatus, changes: str, *values: object) -> bool:
        with self._transaction() as db:
            row = (status.value, self._now(), *values, id)
            statement = f"UPDATE jobs SET status = ?, finished_at = ?, {changes} WHERE id = ? AND {UNFINISHED}"
            if ended := db.execute(statement, row).rowcount == 1:
                db.execute("DELETE FROM slices WHERE job = ?", (id,))  # the result has them
        if ended:
            _delete(self.path(id))
            self._overwrite_log()
        return ended

    def _overwrite_log(self) -> None:
        """What was deleted from the database is still in its log, until that is written back and cut to nothing.

        Where the disk fails, the next one does it.
        """
        with suppress(StorageError):
            self._read("PRAGMA wal_checkpoint(TRUNCATE)")

    def _find(self, where: str, *values: object) -> Job | None:
        rows = self._read(
            "SELECT id, status, owner, request, finished_at, result, error_code, error_message, "
            f"done_samples, n_samples, is_tombstone FROM jobs WHERE {where}",
            *values,
        )
        if not rows:
            return None
        id, status, owner, request, finished_at, *rest = rows[0]
        *said, done_samples, n_samples, dead = rest
        is_expired = bool(dead) or (finished_at is not None and finished_at + self._ttl_s <= self._now())
        result, error_code, error_message = (None, None, None) if is_expired else said
        return Job(
            id,
            JobStatus(status),
            owner,
            _request(request),
            finished_at,
            result,
            error_code,
            error_message,
            done_samples / SAMPLE_RATE,
            None if n_samples is None else n_samples / SAMPLE_RATE,
            is_expired,
        )

    def _sweep(self) -> int:
        """Delete what belongs to no unfinished job and is not being written. Returns: how many files."""
        named = {id for (id,) in self._read(f"SELECT id FROM jobs WHERE {UNFINISHED}")}
        named |= {upload.id for upload in self._writing}
        with _translated(self._spool):
            strays = [name for name in os.listdir(self._spool) if name not in named]
        return sum(_delete(self._spool / name) for name in strays)


def _request(kept: str) -> FileRequest | None:
    """As it was asked for, maybe of another version of this server."""
    try:
        return msgspec.json.decode(kept, type=FileRequest)
    except msgspec.MsgspecError:
        return None


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """The world's errors, as StorageError."""
    try:
        yield
    except OSError as error:
        code = "storage_full" if error.errno in _FULL else "storage_unavailable"
        raise StorageError(code, f"{error.filename or path}: {error.strerror or error}", _HINTS[code]) from error
    except sqlite3.Error as error:
        # A write that fails for a quota or a limit of size is an I/O error to SQLite: it tells no errno.
        if (found := _WORLD.get(_primary(error))) is None:
            raise
        raise StorageError(found, f"{path}: {error}", _HINTS[found]) from error


def _primary(error: sqlite3.Error) -> int:
    """SQLite's code, less the byte of details; 0 for what Python itself has to say."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _lock(folder: Path) -> sqlite3.Connection:
    """Held until it is closed, or the process has ended. Raises: StorageError: another one holds it."""
    file = folder / "lock"
    _touch(file)
    lock = sqlite3.connect(file, isolation_level=None, timeout=0)
    try:
        lock.execute("PRAGMA journal_mode = OFF")  # there is nothing to undo, nor to be found by the next one
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        if _primary(error) != sqlite3.SQLITE_BUSY:
            raise
        message = f"another server keeps its jobs in {folder}"
        raise StorageError("storage_in_use", message, _HINTS["storage_in_use"]) from error
    return lock


def _connect(file: Path) -> sqlite3.Connection | None:
    """None: what is there is no database, or a damaged one."""
    _touch(file)
    db = sqlite3.connect(file, isolation_level=None, timeout=0)
    try:
        for pragma in PRAGMAS:
            db.execute(f"PRAGMA {pragma}")
        if db.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]:
            return db
    except sqlite3.DatabaseError as error:
        if _primary(error) not in _DAMAGED:
            db.close()
            raise
    db.close()
    return None


def _make_folder(folder: Path) -> None:
    """For us only: people's speech is in it."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True)
        _sync_folder(folder.parent)
    if stat.S_IMODE(folder.stat().st_mode) & 0o077 and os.name != "nt":  # there, a user's folders are the user's
        folder.chmod(0o700)


def _open_for_us_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _touch(file: Path) -> None:
    """SQLite would make a file that everybody may read; its logs get the rights of the database.

    One that exists is not even opened: to close it again would let go the locks that this process has on it.
    """
    with suppress(FileExistsError), open(file, "xb", opener=_open_for_us_only):
        pass


def _delete(path: Path) -> bool:
    """Returns: whether it is gone now, and was there; what cannot be deleted yet is tried again later."""
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _sync(fd: int) -> None:
    """To the disk itself; on macOS only F_FULLFSYNC is more than to the drive's cache."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # not every file system has it
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def _sync_folder(folder: Path) -> None:
    """The names in it. Windows opens no folders, and NTFS keeps its own journal of names."""
    if os.name != "nt":
        fd = os.open(folder, os.O_RDONLY)
        try:
            _sync(fd)
        finally:
            os.close(fd)
