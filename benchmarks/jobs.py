"""Jobs on a server that is killed again and again: does each one that was acknowledged end once, with the right text?

    python -m benchmarks.jobs [--kills 50] [--seed 1] [--model tiny.en] [--scripted]

Files of 11 s to two minutes are posted to ``/v1/jobs`` of a server of its own, `UNFINISHED` of them under way at any
time, some slowly, each with an Idempotency-Key, and again with the same key until there is an answer, and now and then
after that. All are polled. Meanwhile, at random moments, also while it starts, the server is killed with SIGKILL: its
children are to be gone then, and it is started again on the same port, with the same ``--state-dir``. When all is over
it is stopped by SIGTERM, and its folder is looked at.

What it is compared with is what became of each file before the first kill.

Targets: every job that was acknowledged succeeds, and its text is that of the undisturbed run, whose word errors are
few; what it was once told to have ended as it is told for ever; one key is one job, and there is no other; nothing is
left in the spool, and SQLite finds nothing wrong; nothing of the log is a bug of ours; no child outlives its server.
"""

from __future__ import annotations

import asyncio
import io
import random
import socket
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Final

import click
import numpy as np
import psutil
import soundfile

from asr_ws.testing.wer import word_errors
from benchmarks.common import Spread, progress, read_manifest, report, reported, speech_folder, told_plainly, within
from benchmarks.posts import NoAnswer, Upload, ask
from benchmarks.served import LIBRARY_ERROR, STACKS, TRACEBACK, Served, is_running, send_signal

PATH: Final = "/v1/jobs"
UNFINISHED: Final = 4  # jobs under way: enough for one to be running and others to wait and to arrive
PAUSE_S: Final = (0.1, 6.0)  # from the server's listening to its next death: a model loads in 1 to 2 s
AGAIN_S: Final = 0.2  # before what had no answer is asked again
POLL_S: Final = 0.3
SLOWLY: Final = 0.25  # of the posts are sent in pieces with pauses,
PIECE_PAUSE_S: Final = 0.05  # as long as this
REPEATED: Final = 0.1  # of the polls are posts, with the same key
SHORT: Final = "11 s"
SHORT_SHARE: Final = 0.6  # of the jobs: the more there are, the more often one arrives or ends at a kill
ANSWER_LIMIT_S: Final = 30.0
JOB_LIMIT_S: Final = 300.0  # for a server that is not killed to end one
GONE_LIMIT_S: Final = 5.0
MAX_ERRORS: Final = 0.1
BUGS: Final = (TRACEBACK, STACKS, LIBRARY_ERROR, "http.failed", "session.failed")
SUCCEEDED: Final = "succeeded"
ENDS: Final = (SUCCEEDED, "failed", "cancelled")
SCRIPT: Final = "sleep 0.3"  # a decode's, where there is no model


@dataclass(frozen=True, slots=True)
class Sample:
    """A file that is posted."""

    name: str
    audio: bytes
    said: str


@dataclass(slots=True)
class Asked:
    """One key: what was answered to it, and what was told of its job."""

    key: str
    sample: str
    ids: list[str] = field(default_factory=list)  # in each 202
    ended: list[tuple[str, str | None]] = field(default_factory=list)  # status and text, each time that it had ended

    @property
    def id(self) -> str | None:
        return self.ids[0] if self.ids else None


@dataclass(slots=True)
class Kills:
    """What came of them."""

    n: int = 0
    gone_ms: list[float] = field(default_factory=list)  # from the kill until no child was left
    n_children: int = 0
    n_media: int = 0  # of those children
    left: int = 0  # children that were there after GONE_LIMIT_S


@dataclass(frozen=True, slots=True)
class Kept:
    """What the server's folder holds after it was stopped."""

    check: str  # SQLite's word on the database; ``ok``
    status_by_id: dict[str, str]
    n_slices: int
    spool: list[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Attributes:
    undisturbed: the text of each file before the first kill, by its name.
    resumed, lost: what the server said at its starts.
    ended_in_log: how often the log has it of a job, by id.
    """

    kills: Kills
    asked: list[Asked]
    samples: dict[str, Sample]
    undisturbed: dict[str, str]
    is_scripted: bool
    kept: Kept
    resumed: int
    lost: int
    ended_in_log: dict[str, int]
    bugs: dict[str, int]
    exit_code: int | None

    @property
    def faults(self) -> list[str]:
        """What should not be."""
        return list(self._faults())

    def _faults(self) -> Iterator[str]:
        for asked in self.asked:
            expected = (SUCCEEDED, self.undisturbed[asked.sample])
            if asked.id is None:
                yield f"{asked.key} was never acknowledged"
            elif len(set(asked.ids)) > 1:
                yield f"{asked.key} is more than one job: {asked.ids}"
            elif not asked.ended:
                yield f"{asked.id} is lost: it has not ended"
            elif wrong := [told for told in asked.ended if told != expected]:
                yield f"{asked.id} ({asked.sample}): {wrong[0]} is not {expected}"
        ids = [asked.id for asked in self.asked if asked.id is not None]
        if len(ids) != len(set(ids)):
            yield "two keys are one job"
        if more := set(self.kept.status_by_id) - set(ids):
            yield f"{len(more)} jobs that nobody was told of"
        if unlike := [id for id in ids if self.kept.status_by_id.get(id) != SUCCEEDED]:
            yield f"{len(unlike)} acknowledged jobs have not succeeded in the database"
        if self.kept.check != "ok":
            yield f"the database: {self.kept.check}"
        if self.kept.n_slices:
            yield f"{self.kept.n_slices} slices of no unfinished job"
        if self.kept.spool:
            yield f"{len(self.kept.spool)} files are left in the spool"
        if self.lost:
            yield f"the audio of {self.lost} jobs was lost"
        if twice := [id for id, n in self.ended_in_log.items() if n > 1]:
            yield f"{len(twice)} jobs ended twice, by the log"
        if self.kills.left:
            yield f"{self.kills.left} children outlived their server"
        if self.bugs:
            yield f"the log has {self.bugs}"
        if self.exit_code != 0:
            yield f"exit code {self.exit_code}"
        for name, text in self.undisturbed.items():
            rate = word_errors(self.samples[name].said, text).rate
            if not self.is_scripted and rate > MAX_ERRORS:
                yield f"{name}: word errors {rate:.1%}"

    def figures(self) -> dict[str, object]:
        """For the report."""
        kills = self.kills
        return {
            "kills_done": kills.n,
            "jobs": len(self.asked),
            "by_file": dict(Counter(asked.sample for asked in self.asked)),
            "acknowledgements": sum(len(asked.ids) for asked in self.asked),
            "succeeded": sum(status == SUCCEEDED for status in self.kept.status_by_id.values()),
            "resumed": self.resumed,
            "children": kills.n_children,
            "media_processes": kills.n_media,
            "children_gone_ms": Spread.of(kills.gone_ms).figures(1) if kills.gone_ms else None,
            "faults": self.faults[:20],
        }


def table(outcome: Outcome) -> list[str]:
    """Lines for people."""
    kills, asked = outcome.kills, outcome.asked
    by_file = ", ".join(f"{n} x {name}" for name, n in sorted(Counter(each.sample for each in asked).items()))
    gone = Spread.of(kills.gone_ms) if kills.gone_ms else None
    after = f"; gone after {gone.p50:.0f} ms (p50), {gone.max:.0f} ms at most" if gone else ""
    ended = sum(status == SUCCEEDED for status in outcome.kept.status_by_id.values())
    errors = [
        f"{name} {word_errors(sample.said, outcome.undisturbed[name]).rate:.1%}"
        for name, sample in outcome.samples.items()
    ]
    return [
        f"kills      {kills.n}, in {outcome.resumed} of them a job was being done",
        f"children   {kills.n_children}, {kills.n_media} of them decoded a file{after}",
        f"jobs       {len(asked)}: {by_file}",
        f"           acknowledged {sum(len(each.ids) for each in asked)} times, succeeded {ended}",
        *([] if outcome.is_scripted else [f"errors     {', '.join(errors)} of the words"]),
        f"kept       database {outcome.kept.check}, {len(outcome.kept.spool)} files in the spool",
        *(f"FAULT: {fault}" for fault in outcome.faults),
    ]


# ---------------------------------------------------------------- what is posted


def samples_of() -> dict[str, Sample]:
    """The bundled recordings, short, longer, and as long as several slices; by name."""
    with speech_folder(None) as folder:
        spoken = {
            each.file.stem: (soundfile.read(each.file, dtype="int16")[0], each.said) for each in read_manifest(folder)
        }
    short, longer = spoken["jfk"], spoken["long-two-cities"]
    every = {"11 s": [short], "44 s": [longer], "66 s": [short, longer, short], "100 s": [longer, short, longer]}
    return {name: _sample(name, parts) for name, parts in every.items()}


def _sample(name: str, parts: list[tuple[Any, str]]) -> Sample:
    file = io.BytesIO()
    soundfile.write(file, np.concatenate([pcm for pcm, _ in parts]), 16_000, format="FLAC")
    return Sample(name, file.getvalue(), " ".join(said for _, said in parts))


# ---------------------------------------------------------------- the run


@dataclass(frozen=True, slots=True)
class Plan:
    n_kills: int
    seed: int
    model: str
    is_scripted: bool


class Run:
    """One run. Make it, and await `outcome`. Args: step: called after each kill."""

    def __init__(self, plan: Plan, folder: Path, step: Callable[[], None]) -> None:
        self._plan = plan
        self._folder = folder
        self._step = step
        self._port = _free_port()
        self._server: Served
        self._samples = samples_of()
        self._asked: list[Asked] = []
        self._kills = Kills()
        self._log: list[dict[str, Any]] = []
        self._bugs: Counter[str] = Counter()
        self._rng = random.Random(plan.seed)

    async def outcome(self) -> Outcome:
        """Raises: click.ClickException: it cannot be run at all, or does not come to an end."""
        await self._start()
        try:
            undisturbed = await self._undisturbed()
            done = asyncio.Event()  # no more is posted
            async with asyncio.TaskGroup() as tasks:
                for n in range(UNFINISHED):
                    tasks.create_task(self._user(n, done), name=f"user {n}")
                await self._kill_again_and_again()
                done.set()
            async with within(JOB_LIMIT_S, "the jobs to be told once more"):
                for asked in self._asked:
                    await self._look(asked)
            exit_code = await self._server.stop()
            self._note_log()
        finally:
            await self._server.kill()
        opened = [line for line in self._log if line["event"] == "jobs.opened"]
        return Outcome(
            self._kills,
            self._asked,
            self._samples,
            undisturbed,
            self._plan.is_scripted,
            _kept(self._folder),
            sum(line["resumed"] for line in opened),
            sum(line["lost"] for line in opened),
            dict(Counter(line["job"] for line in self._log if line["event"] == "job.ended")),
            dict(self._bugs),
            exit_code,
        )

    async def _start(self) -> None:
        program = ("benchmarks.scripted",) if self._plan.is_scripted else ("asr_ws", "serve")
        model = () if self._plan.is_scripted else ("--model", self._plan.model)
        own = ("--port", str(self._port), "--state-dir", str(self._folder), *model)
        self._server = await Served.start(*own, program=program)

    async def _undisturbed(self) -> dict[str, str]:
        """The text of each file."""
        found = {}
        for name in self._samples:
            asked = Asked(f"undisturbed-{name.split()[0]}", name)
            self._asked.append(asked)
            await self._post(asked, self._rng)
            async with within(JOB_LIMIT_S, f"the job of {name}"):
                await self._until_ended(asked, self._rng)
            status, text = asked.ended[0]
            if text is None:
                raise click.ClickException(f"undisturbed, the job of {name} {status}")
            found[name] = text
        return found

    async def _user(self, n: int, done: asyncio.Event) -> None:
        """One job after the other."""
        rng = random.Random(f"{self._plan.seed} {n}")
        while not done.is_set():
            name = SHORT if rng.random() < SHORT_SHARE else rng.choice(list(self._samples))
            asked = Asked(f"key-{n}-{len(self._asked)}", name)
            self._asked.append(asked)
            await self._post(asked, rng)
            await self._until_ended(asked, rng, done)

    async def _post(self, asked: Asked, rng: random.Random) -> None:
        """Until it is acknowledged."""
        async with within(2 * JOB_LIMIT_S, f"{asked.key} to be acknowledged"):
            while not asked.ids:
                await asyncio.sleep(await self._post_once(asked, rng))

    async def _post_once(self, asked: Asked, rng: random.Random) -> float:
        """Returns: after how many seconds to do it again, if need be."""
        fields = {"response_format": "json", **({"prompt": SCRIPT} if self._plan.is_scripted else {})}
        upload = Upload.of(self._samples[asked.sample].audio, f"{asked.key}.flac", fields)
        pause_s = PIECE_PAUSE_S if rng.random() < SLOWLY else 0.0
        key = {"Idempotency-Key": asked.key}
        try:
            answer = await ask(
                self._url, "POST", PATH, headers=key, upload=upload, pause_s=pause_s, limit_s=ANSWER_LIMIT_S
            )
        except NoAnswer:
            return AGAIN_S
        if answer.status == 202:
            asked.ids.append(answer.json["job_id"])
        elif answer.status not in (409, 429, 503):  # the first: what was on its way is not known to be gone yet
            raise click.ClickException(f"{asked.key} was answered {answer.status} {answer.body.decode()}")
        return float(answer.headers.get("retry-after-ms", AGAIN_S * 1000)) / 1000

    async def _until_ended(
        self, asked: Asked, rng: random.Random, killing_is_over: asyncio.Event | None = None
    ) -> None:
        """However long that takes while the server is killed; then for JOB_LIMIT_S."""
        loop, since = asyncio.get_running_loop(), None
        while not asked.ended:
            await self._look(asked)
            if since is None and (killing_is_over is None or killing_is_over.is_set()):
                since = loop.time()
            if since is not None and loop.time() - since > JOB_LIMIT_S:
                return  # which is a fault of the outcome's
            await asyncio.sleep(POLL_S)
            if killing_is_over is not None and rng.random() < REPEATED:
                await self._post_once(asked, rng)

    async def _look(self, asked: Asked) -> None:
        """Note it if it has ended."""
        if asked.id is None:
            return
        try:
            answer = await ask(self._url, "GET", f"{PATH}/{asked.id}", limit_s=ANSWER_LIMIT_S)
        except NoAnswer:
            return
        if answer.status == 200:
            told = answer.json
            if told["status"] in ENDS:
                asked.ended.append((told["status"], told.get("result", {}).get("text")))
        elif answer.status != 503:
            asked.ended.append((f"status {answer.status}", None))  # 404 is what an acknowledged job never has

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    # ------------------------------------------------------------ the killer

    async def _kill_again_and_again(self) -> None:
        for _ in range(self._plan.n_kills):
            await asyncio.sleep(self._rng.uniform(*PAUSE_S))
            await self._kill()
            await self._start()
            self._step()

    async def _kill(self) -> None:
        """Stopped first, so that none is born between the count and the death."""
        send_signal(self._server.pid, "STOP")
        children = psutil.Process(self._server.pid).children(recursive=True)
        self._kills.n_media += sum(_is_media(child) for child in children)
        began = perf_counter()
        send_signal(self._server.pid, "KILL")
        left = [child.pid for child in children]
        while left and perf_counter() - began < GONE_LIMIT_S:
            await asyncio.sleep(0.002)
            left = [pid for pid in left if is_running(pid)]
        self._kills.n += 1
        self._kills.n_children += len(children)
        self._kills.left += len(left)
        self._kills.gone_ms += [(perf_counter() - began) * 1000] if children else []
        await self._server.kill()  # its log, to the end
        self._note_log()

    def _note_log(self) -> None:
        self._log += self._server.of_jobs
        for event in BUGS:
            if n := self._server.log[event]:
                self._bugs[event] += n


def _is_media(process: psutil.Process) -> bool:
    try:
        return "asr_ws.media" in process.cmdline()
    except psutil.Error:
        return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _kept(folder: Path) -> Kept:
    jobs = folder / "jobs"
    with closing(sqlite3.connect(f"{(jobs / 'jobs.db').as_uri()}?mode=ro", uri=True)) as db:
        check = "; ".join(row[0] for row in db.execute("PRAGMA integrity_check"))
        status_by_id = dict(db.execute("SELECT id, status FROM jobs").fetchall())
        [(n_slices,)] = db.execute("SELECT count(*) FROM slices").fetchall()
    return Kept(check, status_by_id, n_slices, sorted(each.name for each in (jobs / "spool").iterdir()))


@click.command()
@reported
@click.option("--kills", default=50, show_default=True, type=click.IntRange(1), help="how many")
@click.option("--seed", default=1, show_default=True, help="of the moments, and of what is posted")
@click.option("--model", default="tiny.en", show_default=True)
@click.option("--scripted", is_flag=True, help=f"no model, but a worker whose every decode is: {SCRIPT}")
def main(kills: int, seed: int, model: str, scripted: bool) -> None:
    """Kill a server again and again while it has jobs to do, and see whether each of them is done once."""
    model = "scripted" if scripted else model
    with progress() as bar, told_plainly(), TemporaryDirectory() as folder:
        task = bar.add_task("kills", total=kills)
        run = Run(Plan(kills, seed, model, scripted), Path(folder), lambda: bar.advance(task))
        outcome = asyncio.run(run.outcome())
    click.echo("\n".join(table(outcome)))
    settings = {"kills": kills, "seed": seed, "model": model}
    sys.exit(report("jobs", settings=settings, figures=outcome.figures(), passed=not outcome.faults))


if __name__ == "__main__":
    main()
