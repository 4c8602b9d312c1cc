"""`asr-ws bench`: how many people can speak at once, by trying: more and more of them, until it is too many."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from asr_ws.cli.numbers import FloatRange
from asr_ws.cli.options import as_arguments, require_server, with_settings
from asr_ws.config import Access, Listen, Loaded, Settings, Storage
from asr_ws.errors import AsrError, ClientError, MissingExtra, ServerFailed, UsageError, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from asr_ws.testing.talkers import Step

PICTURES: Final = (".png", ".svg")
TICK_S: Final = 0.5
MOST: Final = 10_000  # talkers
HEADER: Final = (
    f"{'':>7}{'':>11}{'':>7}{'wait for the model, s':>24}{'speech to text, s':>19}{'decode':>8}\n"
    f"{'talkers':>7}{'utterances':>11}{'texts':>7}{'p50':>10}{'p95':>7}{'max':>7}{'p50':>12}{'p95':>7}{'s':>8}"
    f"{'load':>6}{'worker':>8}{'refused':>9}{'partials':>10}"
)


@dataclass(slots=True)
class Course:
    """What has been measured so far.

    Attributes:
        what: the model, and what it runs on where that is known.
        ended: why there are no more steps: ``found`` (the least that is too many), ``most`` (all were carried),
            ``given`` (those asked for), ``sessions`` (the server takes no more), ``lost`` (it ended), ``interrupted``.
        lost: how the server was, with the end of its log if it was ours.
    """

    what: str = ""
    steps: list[Step] = field(default_factory=list)
    ended: str = "interrupted"
    lost: AsrError | None = None

    @property
    def talkers(self) -> int | None:
        """The most that were carried; None: not known, because fewer were not tried."""
        from asr_ws.testing.talkers import most_carried

        return most_carried(self.tried) or (0 if any(n == 1 for n, _ in self.tried) else None)

    @property
    def tried(self) -> list[tuple[int, bool]]:
        return [(step.talkers, step.is_carried) for step in self.steps]


def counts(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    """A click callback: whole numbers with commas between them; nothing for nothing."""
    try:
        found = tuple(int(each) for each in text.split(",")) if text else ()
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 4,8,16") from error
    if not all(1 <= each <= MOST for each in found):
        raise click.BadParameter(f"{text!r}: 1 to {MOST}")
    return found


def _picture(context: click.Context, parameter: click.Parameter, file: Path | None) -> Path | None:
    """What would fail after the measurement, fails before."""
    if file is not None:
        if file.suffix not in PICTURES:
            raise click.BadParameter(f"{file}: a name that ends in {' or '.join(PICTURES)}")
        if not file.absolute().parent.is_dir():
            raise click.BadParameter(f"{file}: there is no such folder")
        if find_spec("matplotlib") is None:
            raise MissingExtra("asr-ws bench --plot", "bench")
    return file


@click.command()
@click.option("--seconds", type=FloatRange(1, 3600), default=30.0, show_default=True, help="Of each step.")
@click.option("--talkers", "given", metavar="N,N...", callback=counts, help="Measure these, and look for no limit.")
@click.option(
    "--max-talkers", type=click.IntRange(1, MOST), default=64, show_default=True, help="Look for no limit above."
)
@click.option(
    "--speaking-share",
    type=FloatRange(0.05, 1),
    default=1.0,
    show_default=True,
    help="Of the time in which each of them speaks.",
)
@click.option("--url", help="Measure a server that runs, and start none.")
@click.option("--token-file", type=click.Path(path_type=Path), help="With --url: file with the token that it asks for.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), callback=_picture, help="Draw it: .png, .svg.")
@click.option("--json", "as_json", is_flag=True, help="Print the last line only, one JSON object.")
@with_settings
def bench(
    loaded: Loaded,
    seconds: float,
    given: tuple[int, ...],
    max_talkers: int,
    speaking_share: float,
    url: str | None,
    token_file: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """How many people can speak at once on this machine, with these settings?

    Starts a server of its own with the settings that `asr-ws serve` would have, but on a free port of the loopback
    address and without TLS and tokens, and has 1, 2, 4 ... people speak to it until it is too many.
    """
    from asr_ws.client.address import read_token, session_url
    from asr_ws.testing.figures import machine

    server: Settings | None = None
    if url is None:
        require_server("asr-ws bench")
        from asr_ws.cli.serve import have_model

        have_model(loaded.settings.model.model)
        n_sessions = max(loaded.settings.session.max_sessions, max_talkers, *given)
        server = replace(
            loaded.settings,
            listen=Listen(),
            access=Access(),
            storage=Storage(),
            session=replace(loaded.settings.session, max_sessions=n_sessions),
            worker=replace(loaded.settings.worker, on_crash_loop="exit"),
        )
        token, arguments = None, as_arguments(server)
    else:
        if flags := [source.where for source in loaded.sources.values() if source.kind == "flag"]:
            said = f"{', '.join(flags)}: of a server that is started, not of one that runs"
            raise UsageError(said, "leave out --url")
        token, arguments = read_token(token_file), ["--url", session_url(url)[0]]

    course = Course()
    with suppress(KeyboardInterrupt):  # before there was anything to measure
        asyncio.run(_measure(course, server, url, token, seconds, given, max_talkers, speaking_share, quiet=as_json))
    told = {
        "machine": machine(),
        "server": arguments,
        "settings": {"seconds": seconds, "speaking_share": speaking_share, "max_talkers": max_talkers},
        "model": course.what,
        "steps": [step.figures() for step in course.steps],
        "max_wait_ms": course.steps[0].max_wait_ms if course.steps else None,
        "ended": course.ended,
        "talkers": course.talkers,
    }
    if not as_json:
        click.echo("\n" + sentence(course, speaking_share, this_machine=server is not None))
    click.echo(json.dumps(told))
    if plot is not None and course.steps:
        try:
            _draw(told, plot)
        except OSError as error:
            raise ClientError(f"{plot} cannot be written: {error.strerror or error}") from error
    if course.lost is not None:
        raise course.lost
    sys.exit(1 if course.ended == "interrupted" or not course.talkers else 0)


async def _measure(
    course: Course,
    server: Settings | None,
    url: str | None,
    token: str | None,
    seconds: float,
    given: Sequence[int],
    max_talkers: int,
    share: float,
    *,
    quiet: bool,
) -> None:
    """Into ``course``, also when it is cancelled.

    Raises: AsrError: the server cannot be started or reached, or ends before there is anything to tell.
    """
    from asr_ws.client.address import SessionRefused
    from asr_ws.testing.bare import connect
    from asr_ws.testing.served import ServerProcess, as_ctrl_c
    from asr_ws.testing.talkers import WARM_UP_S, least_talkers, talk

    as_ctrl_c()  # which cancels this, and so ends the server
    process: ServerProcess | None = None
    try:
        if server is not None:
            process = await ServerProcess.start(*as_arguments(server))
            url = process.url
            course.what = f"{server.model.model} ({await process.wait_ready()})"
        assert url is not None
        if process is None:
            async with connect(url, token=token) as session:
                course.what = printable(session.ready.model)
        if not quiet:
            click.echo(f"{course.what}\n\n{HEADER}")
        for n in _talkers(course, given, max_talkers, least_talkers(share, seconds)):
            try:
                speaking = talk(url, n, seconds=seconds, share=share, token=token)
                step = await _with_bar(n, speaking, seconds + min(seconds, WARM_UP_S))
            except SessionRefused as refused:
                click.echo(f"{n} talkers: {printable(refused.message)}", err=True)
                course.ended = "sessions"
                return
            course.steps.append(step)
            if not quiet:
                click.echo(row(step))
        course.ended = "given" if given else "found" if not all(carried for _, carried in course.tried) else "most"
    except asyncio.CancelledError:  # what has been measured is told
        pass
    except ClientError as lost:
        course.ended = "lost"
        course.lost = lost if process is None else ServerFailed(lost.message, process.log_tail)
        if not course.steps:
            raise course.lost from lost
    finally:
        if process is not None:
            await process.stop()


def _talkers(course: Course, given: Sequence[int], most: int, least: int) -> Iterator[int]:
    """Those asked for; else by what has been measured meanwhile."""
    from asr_ws.testing.talkers import next_talkers

    yield from given
    while not given and (n := next_talkers(course.tried, most, first=least)) is not None:
        yield n


async def _with_bar(n: int, step: Coroutine[Any, Any, Step], seconds: float) -> Step:
    """On a terminal, until it is measured; drawn by this loop, so that it does not hold the talkers up."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, disable=not console.is_terminal, auto_refresh=False, redirect_stdout=False
    ) as bars:
        bar = bars.add_task(f"{n} {_people(n)}", total=seconds)

        async def advance() -> None:
            while True:
                await asyncio.sleep(TICK_S)
                bars.update(bar, advance=TICK_S, refresh=True)

        ticking = asyncio.create_task(advance(), name="bar")
        try:
            return await step
        finally:
            ticking.cancel()
            await asyncio.wait([ticking])


def row(step: Step) -> str:
    """A line for people."""
    n = max(step.utterances, 1)
    wait = [step.wait_ms.p50, step.wait_ms.p95, step.wait_ms.max] if step.wait_ms else [None] * 3
    text = [step.text_ms.p50, step.text_ms.p95] if step.text_ms else [None] * 2
    seconds = ["-" if ms is None else f"{ms / 1000:.2f}" for ms in (*wait, *text, step.decode_ms)]
    worker = "-" if step.worker is None else f"{step.worker:.0%}"
    return (
        f"{step.talkers:>7}{step.utterances:>11}{step.finals:>7}{seconds[0]:>10}{seconds[1]:>7}{seconds[2]:>7}"
        f"{seconds[3]:>12}{seconds[4]:>7}{seconds[5]:>8}{step.load:>6.0%}{worker:>8}{step.refusals / n:>9.2f}"
        f"{step.partials / n:>10.1f}  {'carried' if step.is_carried else 'not carried'}"
    )


def sentence(course: Course, share: float, *, this_machine: bool) -> str:
    """For people."""
    if not course.steps:
        return "Nothing was measured."
    n, steps = course.talkers, {step.talkers: step for step in course.steps}
    too_many = steps.get(min((step.talkers for step in course.steps if not step.is_carried), default=0))
    is_most = course.ended == "found" and too_many is not None and too_many.kept_real_time
    where = "This machine" if this_machine else "This server"
    how = f"{'without pause' if share == 1 else f'{share:.0%} of the time'} with {course.what}"
    lines = [f"{where} carries nobody who speaks {how}."]
    if n is None:
        lines = [f"{where} does not carry {min(steps)} people who speak {how}; fewer were not tried."]
    if too_many is not None and too_many.wait_ms is None:
        lines, too_many = ["No utterance ended in the time measured: try a longer --seconds, or more --talkers."], None
    if n:
        wait = steps[n].wait_ms
        assert wait is not None
        who = f"{'' if is_most else 'at least '}{n} {_people(n)} who {'speaks' if n == 1 else 'speak'}"
        lines = [
            f"{where} carries {who} {how}.",
            f"95 of 100 utterances waited {wait.p95 / 1000:.1f} s at most for the model.",
        ]
    if too_many is not None:
        lines.append(f"With {too_many.talkers}: {'; '.join(too_many.faults)}.")
    if course.ended == "interrupted":
        lines.append("It was interrupted.")
    if course.ended == "lost":
        lines.append("Then the server was lost.")
    return " ".join(lines)


def _people(n: int) -> str:
    return "person" if n == 1 else "people"


def _draw(told: Mapping[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    draw(figure, told)
    figure.savefig(file)


def draw(figure: Figure, told: Mapping[str, Any]) -> None:
    """Waits and refusals over talkers, from the last line alone."""
    steps = sorted((step for step in told["steps"] if step["wait_ms"]), key=lambda step: step["talkers"])
    talkers = [step["talkers"] for step in steps]
    axes = figure.add_subplot()
    for name, line in (("p95", "o-"), ("p50", "o--")):
        axes.plot(talkers, [step["wait_ms"][name] / 1000 for step in steps], line, color="C0", label=f"wait, {name}")
    too_many = [(step["talkers"], step["wait_ms"]["p95"] / 1000) for step in steps if not step["carried"]]
    axes.plot(*zip(*too_many, strict=True), "x", color="C3", markersize=10, label="not carried") if too_many else None
    axes.axhline(told["max_wait_ms"] / 1000, color="C3", label="longest wait allowed")
    axes.set(xlabel="talkers", ylabel="wait for the model, s", ylim=(0, None), title=f"{told['model']}")
    refused = axes.twinx()
    refused.plot(talkers, [step["refusals_per_utterance"] for step in steps], "s:", color="C1", label="refusals")
    refused.set(ylabel="refusals for each utterance", ylim=(0, None))
    axes.legend(handles=[*axes.get_lines(), *refused.get_lines()], loc="upper left")
    machine = told["machine"]
    figure.supxlabel(f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}", fontsize=8, color="0.4")
