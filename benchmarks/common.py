"""What several benchmarks need: recordings, the machine, percentiles, limits, and the report's last line.

Every benchmark is a command, ``python -m benchmarks.NAME``. It prints a table for people, and as its last line one JSON
object: ``benchmark``, ``machine``, ``settings``, the figures, and ``passed``: whether they keep the target, or null
where there is none. Exit code 1: the target was missed. Progress goes to standard error, on a terminal only. With
``--report FILE`` the object is written there too, and beside it, as .png, the module's ``draw`` of it.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from rich.console import Console
from rich.progress import Progress

from asr_ws import config
from asr_ws.config import Settings
from asr_ws.testing.bare import BareSession, Event, connect
from asr_ws.testing.figures import Spread as Spread
from asr_ws.testing.figures import machine as machine
from asr_ws.testing.figures import percentile as percentile
from asr_ws.testing.served import state_dir as state_dir
from asr_ws.testing.talkers import PCM_BYTES_PER_S as PCM_BYTES_PER_S
from asr_ws.testing.talkers import speech_pcm as speech_pcm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_SPEECH: Final = "none"

_E = TypeVar("_E", bound=Event)
_F = TypeVar("_F", bound=Callable[..., Any])
_REPORT: Final = "report"

Report = Mapping[str, Any]  # what `report` writes, as it is read again
Draw = Callable[["Figure", Report], None]


@dataclass(frozen=True, slots=True)
class Recording:
    file: Path
    language: str  # a code, or NO_SPEECH
    said: str


@contextmanager
def speech_folder(folder: Path | None) -> Iterator[Path]:
    """The folder itself, or the bundled recordings where there is none."""
    if folder is not None:
        yield folder
    else:
        with as_file(files("asr_ws") / "assets" / "speech") as bundled:
            yield bundled


def read_manifest(folder: Path) -> list[Recording]:
    """Raises: click.ClickException: no manifest, a column missing, or a file that is not there."""
    try:
        with (folder / "manifest.tsv").open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        recordings = [Recording(folder / row["file"], row["language"], row["transcript"]) for row in rows]
    except (OSError, KeyError) as error:
        raise click.ClickException(f"{folder / 'manifest.tsv'}: {error!r}") from error
    if missing := [each.file.name for each in recordings if not each.file.is_file()]:
        raise click.ClickException(f"{folder} lacks {', '.join(missing)}")
    return recordings


@asynccontextmanager
async def within(limit_s: float, what: str) -> AsyncIterator[None]:
    """Raises: click.ClickException: it took longer."""
    try:
        async with asyncio.timeout(limit_s) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():  # some other limit, inside
            raise
        raise click.ClickException(f"waited {limit_s:g} s for {what}") from error


@contextmanager
def told_plainly() -> Iterator[None]:
    """Raises: click.ClickException: one that came from within task groups, and nothing else did."""
    try:
        yield
    except BaseExceptionGroup as group:
        told: BaseException | None
        told, other = group.split(click.ClickException)
        if told is None or other is not None:
            raise
        while isinstance(told, BaseExceptionGroup):
            told = told.exceptions[0]
        raise told from group


async def until(events: AsyncIterator[Event], kind: type[_E]) -> _E:
    """The next event of this kind. Raises: click.ClickException: the session ended before."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise click.ClickException(f"the session ended without {kind.__name__}")


def progress(*, still: bool = False) -> Progress:
    """Bars on standard error, gone when done; nothing where that is no terminal.

    Args:
        still: drawn only by ``refresh``, for where the drawing thread would take time from what is measured.
    """
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal, auto_refresh=not still)


def settings_of(**flags: object) -> Settings:
    """The defaults on a free port, changed as these flags say; no environment and no file. Raises: ConfigError."""
    return config.load({"port": 0, "state_dir": state_dir(), **flags}, {}, None).settings


def numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...]:
    """A click callback: positive numbers with commas between them, as ``0.5,2``; nothing for nothing."""
    try:
        found = tuple(float(each) for each in text.split(",")) if text else ()
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.5,2") from error
    if any(each <= 0 for each in found):
        raise click.BadParameter(f"{text!r}: more than 0")
    return found


Cores = frozenset[int]


def split_cores() -> tuple[Cores, Cores]:
    """One core for what is measured, and the others for the rest; none at all where that cannot be had."""
    if sys.platform == "linux" and len(cores := sorted(os.sched_getaffinity(0))) > 1:
        return Cores(cores[:1]), Cores(cores[1:])
    return Cores(), Cores()


def pin(cores: Cores) -> None:
    """Keep this thread, and what it starts from now on, to these cores; none: leave it."""
    if sys.platform == "linux" and cores:
        os.sched_setaffinity(0, cores)


def _waited_s() -> float | None:
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:  # another platform
        return None


@dataclass(slots=True)
class CoreUse:
    """What this thread had of its core since this was made.

    Other programs on the machine spoil a timing: `waited_share` shows how much.
    """

    _began: float = field(default_factory=time.perf_counter)
    _used_s: float = field(default_factory=time.thread_time)
    _waited_s: float | None = field(default_factory=_waited_s)

    @property
    def used_s(self) -> float:
        return time.thread_time() - self._used_s

    @property
    def used_share(self) -> float:
        return self.used_s / (time.perf_counter() - self._began)

    @property
    def waited_share(self) -> float | None:
        """Of the time, in which it was ready to run and something else had the core; only Linux tells."""
        now_s = _waited_s()
        if now_s is None or self._waited_s is None:
            return None
        return (now_s - self._waited_s) / (time.perf_counter() - self._began)


@contextmanager
def other_process(cores: Cores) -> Iterator[ProcessPoolExecutor]:
    """One more process, for what must not run in the one that is measured; what it is to call is sent by name."""
    with ProcessPoolExecutor(1, get_context("spawn"), pin, (cores,)) as pool:
        yield pool


@asynccontextmanager
async def sessions(
    url: str, n: int, *, partials: bool = False, **start_fields: Any
) -> AsyncIterator[list[BareSession]]:
    """That many open sessions. Raises: ClientError: see `asr_ws.testing.bare.connect`."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connect(url, partials=partials, **start_fields)) for _ in range(n)]


def reported(command: _F) -> _F:
    """Give a benchmark's command --report, which `report` finds by itself."""

    def keep(context: click.Context, parameter: click.Parameter, file: Path | None) -> None:
        context.meta[_REPORT] = file

    return click.option(
        f"--{_REPORT}",
        type=click.Path(path_type=Path, dir_okay=False, writable=True),
        callback=keep,
        expose_value=False,
        help="write the last line there too, and beside it, as .png, its picture if there is one",
    )(command)


def report(
    benchmark: str,
    *,
    settings: Mapping[str, object],
    figures: Mapping[str, object],
    passed: bool | None,
    draw: Draw | None = None,
) -> int:
    """Print the last line, and write and draw it where --report says so. Returns: the exit code."""
    line = {"benchmark": benchmark, "machine": machine(), "settings": settings, **figures, "passed": passed}
    click.echo(json.dumps(line))
    context = click.get_current_context(silent=True)
    if context is not None and (file := context.meta.get(_REPORT)) is not None:
        written = json.dumps(line, indent=2) + "\n"
        if draw is not None:
            picture(draw, json.loads(written), file.with_suffix(".png"))
        part = file.with_suffix(".part")
        part.write_text(written, "utf-8")
        part.replace(file)  # where it is, it is whole, and so is the picture
    return 1 if passed is False else 0


def picture(draw: Draw, line: Report, file: Path) -> None:
    """What a report looks like, as PNG; below it, where it was measured."""
    from matplotlib.figure import Figure  # slow to import, and not needed by who only wants the table

    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    draw(figure, line)
    machine = line["machine"]
    figure.supxlabel(f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}", fontsize=8, color="0.4")
    figure.savefig(file, metadata={"Software": None})  # the same report gives the same bytes


async def narrow_socket(url: str) -> socket.socket:
    """Connected, with room for little that is not read."""
    host, _, port = url.rpartition("/")[2].rpartition(":")
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow, (host, int(port)))
    return narrow
