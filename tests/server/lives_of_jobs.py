"""Lives of a server that keeps jobs; what they say is acknowledged, ``added ID SHA256`` or ``ended ID STATUS RESULT``.

python -m tests.server.lives_of_jobs FOLDER SEED    jobs come and end until somebody kills it
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

from asr_ws.core.files import FileRequest, FileSlice
from asr_ws.core.types import Hypothesis, RefusalReason
from asr_ws.server.job_store import Job, JobId, JobStatus, JobStore

Say = Callable[[str], None]


def opened(folder: Path) -> JobStore:
    return JobStore(folder, capacity=8, owner_capacity=8, ttl_s=60.0, now=lambda: 1000.0)


def part(start_sample: int, end_sample: int, text: str = " one") -> FileSlice:
    return FileSlice(start_sample, end_sample, Hypothesis(text, "en", 0.9, (), None, 0.1))


class Life:
    def __init__(self, folder: Path, say: Say) -> None:
        self.store = opened(folder)
        self.say = say

    def add(self, content: bytes, key: str | None = None) -> JobId | None:
        upload = self.store.new_upload()
        try:
            for start in range(0, len(content), 40_000):
                upload.write(content[start : start + 40_000])
            job = self.store.add(upload, FileRequest(), owner="ann", idempotency_key=key)
        finally:
            upload.discard()
        if isinstance(job, RefusalReason):
            return None
        self.say(f"added {job.id} {upload.sha256()}")
        return job.id

    def run(self, job: Job, n_slices: int) -> None:
        self.store.start(job.id)
        for n in range(len(self.store.slices(job.id)), n_slices):
            self.store.save_slice(job.id, part(16_000 * n, 16_000 * (n + 1)), 16_000 * n_slices)

    def end(self, id: JobId, status: JobStatus) -> None:
        result = f"{id}:{len(self.store.slices(id))}"
        end = {
            JobStatus.SUCCEEDED: lambda: self.store.succeed(id, result, 48_000),
            JobStatus.FAILED: lambda: self.store.fail(id, "decode_failed", "no"),
            JobStatus.CANCELLED: lambda: self.store.cancel(id),
        }
        if end[status]():
            self.say(f"ended {id} {status} {result if status is JobStatus.SUCCEEDED else None}")


def loop(folder: Path, seed: str, say: Say) -> None:
    life, chance = Life(folder, say), random.Random(seed)
    while True:
        if chance.random() < 0.6:
            life.add(chance.randbytes(chance.choice([0, 1, 100, 200_000])))
        elif (job := life.store.next_unfinished()) is not None:
            life.run(job, chance.randrange(4))
            life.end(job.id, chance.choice([JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED]))


def short_life(folder: Path, say: Say) -> None:
    """Everything once, and a restart."""
    life = Life(folder, say)
    first, second = life.add(b"one" * 20_000, "key"), life.add(b"two")
    assert first is not None
    assert second is not None
    job = life.store.next_unfinished()
    assert job is not None
    life.run(job, 2)
    life.end(second, JobStatus.CANCELLED)
    life.end(first, JobStatus.SUCCEEDED)
    third = life.add(b"three")
    assert third is not None
    life.store.start(third)
    life.store.expire()
    life.store.close()
    again = Life(folder, say)
    again.end(third, JobStatus.FAILED)
    again.store.close()


if __name__ == "__main__":
    loop(Path(sys.argv[1]), sys.argv[2], lambda line: print(line, flush=True))
