"""Whether anything kills it: a real server, many sessions, and a seeded schedule of faults between.

    python -m benchmarks.chaos [--seconds 60] [--seed 1] [--model tiny.en] [--sessions N] [--load N] [--clean]
                               [--without hang,stop] [--report FILE]

The server is a process of its own, started as users start it, with ``--fault-injection``. First some utterances are
decoded one by one: that gives the capacity, and the server an idea of how long decodes take. Then users open sessions
one after the other, speak some utterances of the bundled speech, in either endpointing mode, and hear out what becomes
of them; together they offer ``--load`` times the capacity, as far as ``--sessions`` of them can. A SIGSEGV hits the
worker every 20 s, and one other fault, drawn by the seed, comes between any two. Some clients vanish, cancel or never
read. At last, when all is quiet again, sessions are in mid-speech when the server is told to stop by SIGTERM.

``--clean`` is the same without faults, at 5 times the capacity.

Targets: every session that stayed was told all that the protocol promises (`asr_ws.testing.conservation`): no outcome
and no millisecond is lost. The server never ends before it is told to, and then with exit code 0. There is one worker
at most, and one decode at a time. At the end the server has no more open files and threads than at the beginning. Its
memory grows by less than 1 MB a minute, which is judged after the first fifth and in runs of 300 s and more: shorter
ones are all warm-up.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from statistics import linear_regression, mean
from typing import TYPE_CHECKING, Any, Final

import click
import psutil
from rich.progress import Progress, TaskID

from asr_ws import messages
from asr_ws.errors import ClientError
from asr_ws.testing import marks
from asr_ws.testing.bare import BareSession, Event, connect
from asr_ws.testing.faults import PREFIX
from asr_ws.testing.served import as_ctrl_c
from benchmarks.common import Report, progress, report, reported, speech_pcm, told_plainly, until, within
from benchmarks.crowd import STAYS, WAYS, Account, Crowd
from benchmarks.offered import spoken_cuts
from benchmarks.served import LIBRARY_ERROR, STACKS, TRACEBACK, Sample, Served, send_signal, stats_with

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEGV_EVERY_S: Final = 20.0
N_WARM_UP: Final = 6  # decodes: the server knows after three how long one may take
LOADS: Final = {False: 1.0, True: 5.0}  # by default, clean or not
SESSIONS: Final = {False: 16, True: 64}  # likewise: those that it takes to offer as much
MAX_SLOPE_MB_PER_MIN: Final = 1.0
SLOPE_SECONDS: Final = 300.0  # the shortest run whose slope is judged
SLOPE_FROM: Final = 0.2  # of the run: what comes before is warm-up
SAMPLE_EVERY_S: Final = 1.0
FINISH_LIMIT_S: Final = 240.0  # for sessions to end that began in time
FLAT_LIMIT_S: Final = 10.0  # for the last connections to be taken apart
WORKER_LIMIT_S: Final = 20.0  # for a worker to be there that a signal can hit
N_AT_THE_END: Final = 6  # sessions open when the server is told to stop
COURSE_POINTS: Final = 20
MIN_SHARE_OF_FAULTS: Final = 0.5  # of those planned: refused like anybody's utterance, some do not come about
DEATH_LIMIT_S: Final = 30.0  # from a signal to another worker: a stopped one is found out by its next decode's limit
TOLD_SHOWN: Final = 20  # breaches in the report
BUGS: Final = (  # in the log
    *("session.failed", "session.audio_lost", "worker.garbled", "worker.not_ended"),
    *(LIBRARY_ERROR, TRACEBACK, STACKS),
)

SEGV: Final = "segv"
SIGNALS: Final = {SEGV: "SEGV", "kill": "KILL", "stop": "STOP"}  # to the worker, from outside
PROMPTS: Final = {  # by `asr_ws.testing.faults`, {n} is another number each time
    "crash": "crash SEGV",  # again when it is decoded again: poison
    "crash-once": "once {n} crash SEGV",
    "mid-crash": "once {n} mid-crash SEGV",
    "late-crash": "once {n} late-crash SEGV",
    "raise": "raise as it was told to",
    "cuda": "once {n} cuda",
    "sleep": "once {n} sleep 3",
    "hang": "once {n} hang",
    "hang-gil": "once {n} hang-gil",
    "leak": "once {n} leak 768",  # above the memory ceiling of a small model
    "flood": "once {n} flood 4",
    "refuse-load": "once {n} next-load 2 raise no memory",
    "crash-load": "once {n} next-load 1 crash SEGV",
    "slow-load": "once {n} next-load 1 sleep 3",
}
SLOW: Final = "once {n} sleep 0.5"  # for clients that vanish in mid-decode
OTHERS: Final = (*(name for name in SIGNALS if name != SEGV), *PROMPTS)
CLIENTS: Final = tuple(way for way in WAYS if way != STAYS)
FAULTS: Final = (SEGV, *OTHERS, *CLIENTS)


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault of the schedule."""

    at_s: float  # from the beginning of the run
    name: str


def schedule(seconds: float, seed: int, without: Iterable[str] = ()) -> list[Planned]:
    """A SIGSEGV every 20 s (in runs of less than 60 s every third of them) and another fault in each of the gaps.

    The others come early in their gaps, so that the worker is back before the next signal, and each of them once before
    any comes again.
    """
    rng = random.Random(seed)
    others = [name for name in OTHERS if name not in set(without)]
    bag: list[str] = []
    every_s = min(SEGV_EVERY_S, seconds / 3)
    planned: list[Planned] = []
    for n in range(round(seconds / every_s)):
        if n and SEGV not in without:
            planned.append(Planned(n * every_s, SEGV))
        if others:
            bag = bag or rng.sample(others, len(others))
            planned.append(Planned((n + rng.uniform(0.2, 0.35)) * every_s, bag.pop()))
    return planned


def slope_mb_per_min(samples: Sequence[Sample], seconds: float) -> float | None:
    """Least squares over the resident memory after the first fifth of the run; None: too few samples to tell."""
    if not samples:
        return None
    late = [each for each in samples if each.at_s >= samples[0].at_s + SLOPE_FROM * seconds]
    if len(late) < 3:
        return None
    return linear_regression([each.at_s for each in late], [each.rss_mb for each in late]).slope * 60


def course_mb(samples: Sequence[Sample]) -> list[float]:
    """At COURSE_POINTS moments, evenly over the run; fewer where there are fewer."""
    step = max(len(samples) // COURSE_POINTS, 1)
    return [round(each.rss_mb, 1) for each in samples[step - 1 :: step]][:COURSE_POINTS]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. ``exit_code`` None: it did not end when it was told to."""

    seconds: float
    clean: bool
    decode_s: float  # of an utterance on the idle server, on average
    planned: int  # faults of the schedule
    faults: dict[str, int]  # that came about
    account: Account
    parent_crashes: int
    worker_restarts: int  # of the last server
    max_workers: int
    max_concurrent_decodes: int
    slope_mb_per_min: float | None
    before: Sample  # quiet moments
    after: Sample
    course_mb: list[float]  # resident memory, COURSE_POINTS times over the run
    bugs: dict[str, int]  # of BUGS, in the log
    exit_code: int | None

    @property
    def failures(self) -> list[str]:
        """Why it is not ok; nothing: it is."""
        account, slope = self.account, self.slope_mb_per_min
        came = sum(n for name, n in self.faults.items() if name not in CLIENTS)
        grows = slope is not None and self.seconds >= SLOPE_SECONDS and slope >= MAX_SLOPE_MB_PER_MIN
        broken = {
            f"{account.lost_outcomes} outcomes lost": account.lost_outcomes,
            f"{account.lost_ms} ms of audio lost": account.lost_ms,
            f"{len(account.breaches)} breaches of the protocol": account.breaches,
            "no final at all": not account.finals,
            f"the server could not be reached {account.unreachable} times": account.unreachable,
            f"{came} of {self.planned} faults came about": came < MIN_SHARE_OF_FAULTS * self.planned,
            f"the server ended {self.parent_crashes} times": self.parent_crashes,
            f"{self.worker_restarts} restarts of the worker without a fault": self.clean and self.worker_restarts,
            f"{self.max_workers} workers at once": self.max_workers > 1,
            f"{self.max_concurrent_decodes} decodes at once": self.max_concurrent_decodes > 1,
            f"memory grows by {slope or 0:.2f} MB a minute": grows,
            f"{self.before.n_fds} open files became {self.after.n_fds}": self.after.n_fds > self.before.n_fds,
            f"{self.before.n_threads} threads became {self.after.n_threads}": self.after.n_threads
            > self.before.n_threads,
            f"the log has {self.bugs}": self.bugs,
            f"exit code {self.exit_code}": self.exit_code != 0,
        }
        return [what for what, is_so in broken.items() if is_so]

    @property
    def offered(self) -> float:
        """Utterances of the sessions that stayed, in capacities: each once, however often it was offered again."""
        return self.account.utterances * self.decode_s / self.seconds

    @property
    def ok(self) -> bool:
        return not self.failures

    def figures(self) -> dict[str, Any]:
        """For the report."""
        account, slope = self.account, self.slope_mb_per_min
        return {
            "planned": self.planned,
            "faults": self.faults,
            "utterances": account.utterances,
            "finals": account.finals,
            "lost_outcomes": account.lost_outcomes,
            "lost_ms": account.lost_ms,
            "parent_crashes": self.parent_crashes,
            "worker_restarts": self.worker_restarts,
            "rss_slope_mb_per_min": None if slope is None else round(slope, 3),
            "ok": self.ok,
            "failures": self.failures,
            "breaches": account.breaches[:TOLD_SHOWN],
            "sessions": dict(account.sessions),
            "closes": dict(account.closes),
            "refusals": dict(account.refusals),
            "unreachable": account.unreachable,
            "offered": round(self.offered, 2),
            "decode_ms": round(self.decode_s * 1000),
            "max_workers": self.max_workers,
            "max_concurrent_decodes": self.max_concurrent_decodes,
            "rss_mb": [round(self.before.rss_mb, 1), round(self.after.rss_mb, 1)],
            "rss_course_mb": self.course_mb,
            "fds": [self.before.n_fds, self.after.n_fds],
            "threads": [self.before.n_threads, self.after.n_threads],
            "exit_code": self.exit_code,
        }


def table(outcome: Outcome) -> list[str]:
    """Lines for people."""
    account, before, after = outcome.account, outcome.before, outcome.after
    slope = outcome.slope_mb_per_min
    growth = "" if slope is None else f", {slope:+.2f} MB a minute"
    judged = "" if outcome.seconds >= SLOPE_SECONDS else " (not judged in so short a run)"
    faults = [f"{name} {n}" for name, n in sorted(outcome.faults.items())]
    planned = "" if outcome.clean else f" ({outcome.planned} planned, beside those of clients)"
    return [
        f"utterances      {account.utterances}, {outcome.offered:.1f} times the capacity; finals {account.finals}",
        f"lost            {account.lost_outcomes} outcomes, {account.lost_ms} ms of audio",
        f"faults          {', '.join(faults) or 'none'}{planned}",
        f"the server      ended {outcome.parent_crashes} times; exit code {outcome.exit_code}",
        f"the worker      {outcome.worker_restarts} restarts, {outcome.max_workers} at once at most",
        f"memory          {before.rss_mb:.0f} -> {after.rss_mb:.0f} MB{growth}{judged}",
        f"open files      {before.n_fds} -> {after.n_fds}",
        f"threads         {before.n_threads} -> {after.n_threads}",
        *(f"NOT OK          {failure}" for failure in outcome.failures),
        *(f"  {breach}" for breach in account.breaches[:TOLD_SHOWN]),
    ]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for."""

    seconds: float
    seed: int
    model: str
    sessions: int
    load: float
    clean: bool
    without: tuple[str, ...]


class Run:
    """One run. Make it, and await `outcome`."""

    def __init__(self, plan: Plan, bar: Progress) -> None:
        self._plan = plan
        self._bar = bar
        self._server: Served
        self._parent_crashes = 0
        self._samples: list[Sample] = []
        self._faults: Counter[str] = Counter()
        self._bugs: Counter[str] = Counter()
        self._pcm, self._cuts = speech_pcm(), spoken_cuts()
        self._crowd = Crowd(lambda: self._server.url, self._pcm, self._cuts, self._slow)
        self._names = count(1)
        self._schedule = [] if plan.clean else schedule(plan.seconds, plan.seed, plan.without)

    async def outcome(self) -> Outcome:
        """Raises: click.ClickException: it cannot be run at all."""
        plan = self._plan
        as_ctrl_c()  # so end `timeout` and CI what takes too long
        await self._start()
        try:
            decode_s = await self._warm_up()
            before = await self._quiet()
            async with asyncio.TaskGroup() as tasks:
                keeper = tasks.create_task(self._keep(), name="keeper")
                await self._storm(decode_s)
                after = await self._quiet(no_more_than=before)
                stats = await self._server.stats()
                keeper.cancel()
            exit_code = await self._stop_amid_speech()
        finally:
            await self._server.kill()
        self._note_log()
        self._faults += self._crowd.account.faults
        return Outcome(
            seconds=plan.seconds,
            clean=plan.clean,
            decode_s=decode_s,
            planned=len(self._schedule),
            faults=dict(self._faults),
            account=self._crowd.account,
            parent_crashes=self._parent_crashes,
            worker_restarts=stats["worker_restart_count"],
            max_workers=max(each.n_workers for each in (*self._samples, after)),
            max_concurrent_decodes=stats["max_concurrent_decodes"],
            slope_mb_per_min=slope_mb_per_min(self._samples, plan.seconds),
            before=before,
            after=after,
            course_mb=course_mb(self._samples),
            bugs=dict(self._bugs),
            exit_code=exit_code,
        )

    async def _start(self) -> None:
        arguments = ["--model", self._plan.model, "--max-sessions", "512", "--ingest-speed", "20"]
        self._server = await Served.start(*arguments, *([] if self._plan.clean else ["--fault-injection"]))

    async def _warm_up(self) -> float:
        """Returns: seconds that a decode takes, on average."""
        waiting = self._bar.add_task(f"{self._plan.model}: loading, and some decodes", total=None)
        await self._server.until(state="ready")
        took_s = []
        async with connect(self._server.url, partials=False, endpointing={"mode": "manual"}) as session:
            events = session.events()
            for n in range(N_WARM_UP):
                await session.send(self._pcm[self._cuts[n % len(self._cuts)]])
                await session.commit()
                async with within(FINISH_LIMIT_S, "a decode"):
                    took_s.append((await until(events, messages.Final)).decode_ms / 1000)
        self._bar.remove_task(waiting)
        return max(mean(took_s[1:]), 0.001)

    async def _quiet(self, *, no_more_than: Sample | None = None) -> Sample:
        """A moment without sessions, when all that they had has been taken apart, as far as that happens."""
        await stats_with(lambda: self._server, sessions=0, state="ready", in_flight_tasks=0)
        sample = self._server.sample()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLAT_LIMIT_S):
                while no_more_than and (sample.n_fds > no_more_than.n_fds or sample.n_threads > no_more_than.n_threads):
                    await asyncio.sleep(SAMPLE_EVERY_S)
                    sample = self._server.sample()
        return sample

    async def _storm(self, decode_s: float) -> None:
        plan, loop = self._plan, asyncio.get_running_loop()
        began = loop.time()
        stop_at = began + plan.seconds
        ways = {STAYS: 1} if plan.clean else {way: n for way, n in WAYS.items() if way not in plan.without}
        rate = plan.load / decode_s / plan.sessions
        doing = self._bar.add_task("clean load" if plan.clean else "chaos", total=plan.seconds)
        sampler = asyncio.create_task(self._sample(doing, began), name="sampler")
        try:
            async with within(plan.seconds + FINISH_LIMIT_S, "the sessions to end"), asyncio.TaskGroup() as tasks:
                for n in range(plan.sessions):
                    rng = random.Random(f"{plan.seed} {n}")
                    tasks.create_task(self._crowd.user(rng, ways, rate, stop_at), name=f"user {n}")
                for fault in self._schedule:
                    tasks.create_task(self._commit(fault, began), name=fault.name)
        finally:
            sampler.cancel()

    async def _sample(self, doing: TaskID, began: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with suppress(psutil.NoSuchProcess):
                self._samples.append(self._server.sample())
            account = self._crowd.account
            text = f"{account.finals} finals, {account.lost_outcomes} lost, {self._faults.total()} faults"
            self._bar.update(doing, completed=loop.time() - began, description=text)
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def _commit(self, fault: Planned, began: float) -> None:
        """One fault at its time; one that does not show is not counted."""
        await asyncio.sleep(began + fault.at_s - asyncio.get_running_loop().time())
        with suppress(ClientError, OSError, TimeoutError):
            if fault.name in SIGNALS:
                victim = await self._worker()
                send_signal(victim, SIGNALS[fault.name])
                async with asyncio.timeout(DEATH_LIMIT_S):
                    while (await self._server.stats())["worker_pid"] == victim:
                        await asyncio.sleep(SAMPLE_EVERY_S)
                self._faults[fault.name] += 1
            else:
                prompt, committed = self._fault(PROMPTS[fault.name])
                rng = random.Random(f"{self._plan.seed} {fault.at_s}")
                told = await self._crowd.commit_one(rng, prompt)
                failed = any(isinstance(event, messages.Error) for event in told)  # a fault that is not once
                self._faults[fault.name] += failed or committed()

    def _fault(self, template: str) -> tuple[str, Callable[[], bool]]:
        """A prompt, with a name of its own, and what tells whether that has been committed, if it is for once."""
        n, server = next(self._names), self._server.pid
        mark = marks.folder(server) / f"once-{n}"
        return PREFIX + template.format(n=n), mark.exists

    def _slow(self) -> tuple[str, Callable[[], bool]]:
        return self._fault(SLOW)

    async def _worker(self) -> int:
        """The pid of one that is ready. Raises: TimeoutError: there is none for long."""
        async with asyncio.timeout(WORKER_LIMIT_S):
            pid: int = (await stats_with(lambda: self._server, state="ready"))["worker_pid"]
            return pid

    async def _keep(self) -> None:
        """Another server where one ended that should not have."""
        while True:
            await self._server.wait()
            self._parent_crashes += 1
            await self._server.kill()  # its log, to the end
            self._note_log()
            await self._start()

    def _note_log(self) -> None:
        for event in BUGS:
            if n := self._server.log[event]:
                self._bugs[event] += n

    async def _stop_amid_speech(self) -> int | None:
        """SIGTERM while sessions have something to be told. Returns: the exit code; None: it took too long."""
        loud: list[asyncio.Event] = [asyncio.Event() for _ in range(N_AT_THE_END)]

        async def last(n: int) -> None:
            async def speak(session: BareSession) -> None:
                for cut in self._cuts[n : n + 2]:
                    await self._crowd.utter(session, cut, manual=True)
                if n % 2:
                    await session.end()

            def heard(event: Event) -> None:
                if isinstance(event, messages.Accepted | messages.Busy):
                    loud[n].set()

            start = {"endpointing": {"mode": "manual"}}
            await self._crowd.hear_out(speak, start, allowed=(1000, 1012), heard=heard)

        async with asyncio.TaskGroup() as tasks:
            for n in range(N_AT_THE_END):
                tasks.create_task(last(n), name=f"last session {n}")
            async with within(FINISH_LIMIT_S, "the last sessions to be heard"):
                await asyncio.gather(*(each.wait() for each in loud))
            return await self._server.stop()


def names_of(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    """A click callback: faults with commas between them."""
    names = tuple(text.split(",")) if text else ()
    if unknown := [name for name in names if name not in FAULTS]:
        raise click.BadParameter(f"{', '.join(unknown)}: there are {', '.join(FAULTS)}")
    return names


def draw(figure: Figure, report: Report) -> None:
    """The server's memory in the course of the run."""
    course, seconds = report["rss_course_mb"], report["seconds"]
    what = "overload" if report["settings"]["clean"] else "faults"
    axes = figure.add_subplot(
        title=f"Memory of the server in {seconds / 60:.0f} minutes of {what}", xlabel="s", ylabel="MB"
    )
    axes.plot([seconds * (n + 1) / len(course) for n in range(len(course))], course, "o-")
    axes.set_ylim(0, 1.3 * max(course, default=1))
    told = (
        f"{report['utterances']} utterances, {report['lost_outcomes']} outcomes lost, {report['lost_ms']} ms lost, "
        f"{report['worker_restarts']} restarts of the worker, {report['parent_crashes']} of the server"
    )
    axes.annotate(told, (0.02, 0.05), xycoords="axes fraction")


@click.command()
@reported
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(6), help="how long there is load")
@click.option("--seed", default=1, show_default=True, help="of the schedule and of what clients do")
@click.option("--model", default="tiny.en", show_default=True)
@click.option("--sessions", type=click.IntRange(1), help="at once, at most [16; with --clean 64]")
@click.option("--load", type=click.FloatRange(0.01), help="what is offered, in capacities [1; with --clean 5]")
@click.option("--clean", is_flag=True, help="no faults")
@click.option("--without", callback=names_of, metavar="FAULT,...", help="leave these faults out")
def main(
    seconds: float,
    seed: int,
    model: str,
    sessions: int | None,
    load: float | None,
    clean: bool,
    without: tuple[str, ...],
) -> None:
    """Break a server in all ways there are, while many clients use it, and see whether any of them is harmed."""
    plan = Plan(seconds, seed, model, sessions or SESSIONS[clean], load or LOADS[clean], clean, without)
    with progress() as bar, told_plainly():
        outcome = asyncio.run(Run(plan, bar).outcome())
    click.echo("\n".join(table(outcome)))
    settings = {"model": model, "sessions": plan.sessions, "load": plan.load, "clean": clean, "without": without}
    figures = {"seconds": seconds, "seed": seed, **outcome.figures()}
    sys.exit(report("chaos", settings=settings, figures=figures, passed=outcome.ok, draw=draw))


if __name__ == "__main__":
    main()
