"""What both ways of `asr-ws transcribe` have in common: where text goes, what is said on stderr, and a bar there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from asr_ws.cli import with_hint
from asr_ws.client import Unreachable
from asr_ws.errors import ClientError, UsageError, printable
from asr_ws.subtitles import clock

if TYPE_CHECKING:
    from rich.progress import Progress

LONG_MS = 600_000  # a wait that a server names when it does not expect to decode anything: no restart takes so long
NO_RECOGNIZER = ("the server has no recognizer, and does not expect one", "its log says why")


class Output:
    """Where the text of a file goes: printed, a line as soon as it is there or all of it at the end, or written."""

    def __init__(self, file: Path, as_json: bool, format_: str, path: Path | None, *, has_heading: bool) -> None:
        self.file = file
        self.as_json = as_json
        self.format = format_
        self.is_by_line = format_ == "text" and path is None and not as_json
        self._path = path
        self._has_heading = has_heading

    def print_line(self, text: str) -> None:
        if self.is_by_line and text:
            heading = f"==> {self.file} <==\n" if self._has_heading else ""
            self._has_heading = False
            print(heading + shown(text), flush=True)  # not by click, which goes around a bar on Windows

    def give(self, whole: str) -> None:
        """Where it did not go by lines, or as events."""
        if self.is_by_line or self.as_json:
            return
        if self._path is None:
            click.echo(shown(whole), nl=False)
            return
        with writing(self._path):
            self._path.write_text(whole, "utf-8")


def shown(text: str) -> str:
    """As it is for a file or a pipe; a terminal does not do what it says."""
    return printable(text, None, lines=True) if sys.stdout.isatty() else text


@contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"--output-dir: cannot write {path}: {error.strerror}") from error


@contextmanager
def complaining(file: Path) -> Iterator[None]:
    """A file that fails is said, and does not stop the next one. Raises: Unreachable: nor will that be there for it."""
    try:
        yield
    except ClientError as error:
        where = "" if isinstance(error, Unreachable) or error.message.startswith(f"{file}: ") else f"{file}: "
        say(f"error: {where}{error.message}", error.hint)
        if isinstance(error, Unreachable):
            raise


def say(line: str, hint: str = "") -> None:
    click.echo(with_hint(line, hint), err=True)


def say_end(file: Path, end_ms: int) -> None:
    say(f"warning: {file}: the text ends at {clock(end_ms)}")


class Bar:
    """Make it with `bar`. ``progress``: None: nobody looks."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None) if progress is not None else None

    def begin(self, what: str, total: float | None) -> None:
        """From 0; a total that is unknown moves to and fro."""
        if self._progress is not None and self._task is not None:
            self._progress.reset(self._task, description=what, total=total)

    def advance(self, done: float, total: float | None = None) -> None:
        """Never back: what was retried comes late. ``total``: it is known now."""
        if self._progress is not None and self._task is not None:
            done = max(self._progress.tasks[self._task].completed, done)
            self._progress.update(self._task, completed=done, total=total)


@contextmanager
def bar(*, shown: bool) -> Iterator[Bar]:
    """On stderr."""
    if not shown:
        yield Bar(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    # What a terminal shows goes above the bar, by its way, and a line remains one; what a pipe waits for must not.
    above, console = sys.stdout.isatty(), Console(stderr=True, soft_wrap=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=above) as progress:
        yield Bar(progress)
