"""`asr-ws doctor`: would the server run well here?"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import click

from asr_ws.cli.options import with_settings
from asr_ws.config import Loaded, Settings

if TYPE_CHECKING:
    from asr_ws.doctor import Finding

COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "red"}
MARK_WIDTH, NAME_WIDTH = 7, 12


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@with_settings
def doctor(loaded: Loaded, as_json: bool) -> None:
    """Check whether the server would run well here, by trying it: ports, folders, model, decodes, memory.

    Takes the options of `asr-ws serve`. Disturbs no server that runs.
    """
    import asyncio

    sys.exit(asyncio.run(_examine(loaded.settings, as_json)))


async def _examine(settings: Settings, as_json: bool) -> int:
    """Returns: the exit code."""
    from rich.console import Console

    from asr_ws.doctor import Status, examine

    looking = Console(stderr=True).status("")

    def begin(what: str) -> None:
        looking.update(f"looking at {what} ...")
        if sys.stderr.isatty():
            looking.start()

    def tell(name: str, finding: Finding) -> None:
        looking.stop()
        if not as_json:
            _print(name, finding)

    try:
        found = await examine(settings, begin=begin, tell=tell)
    finally:
        looking.stop()
    is_ok = all(finding.status is not Status.FAILED for finding in found.values())
    if as_json:
        checks = [
            {"name": name, "status": each.status, "fact": each.fact, "hint": each.hint, **each.numbers}
            for name, each in found.items()
        ]
        click.echo(json.dumps({"ok": is_ok, "checks": checks}, indent=2))
    else:
        click.echo(f"\n{_in_all(found.values())}")
    return 0 if is_ok else 1


def _in_all(found: Collection[Finding]) -> str:
    n = Counter(str(finding.status) for finding in found)
    counts = {"failed": n["failed"], "warning" if n["warning"] == 1 else "warnings": n["warning"]}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "all is well"


def _print(name: str, finding: Finding) -> None:
    # Into a pipe: a fact a line, however long.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    head = f"{finding.status:{MARK_WIDTH}}  {name:{NAME_WIDTH}}  "
    indent = " " * len(head)
    for begin, text in ((head, finding.fact), (indent, f"hint: {finding.hint}" if finding.hint else "")):
        wrapped = textwrap.wrap(text, width, initial_indent=begin, subsequent_indent=indent, break_on_hyphens=False)
        for line in wrapped:
            mark = click.style(line[:MARK_WIDTH], fg=COLOURS[finding.status], bold=True)
            click.echo(mark + line[MARK_WIDTH:])
