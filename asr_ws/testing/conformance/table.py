"""What became of each promise, as a table for people or as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

KEPT, BROKEN, NOT_TESTED = "kept", "broken", "not tested"
STYLES: Final = {KEPT: "green", BROKEN: "bold red", NOT_TESTED: "yellow"}
MAX_SHOWN: Final = 600  # characters of what came


@dataclass(frozen=True, slots=True)
class Result:
    """``came`` is an event, or what else there is to say; ``section`` is of docs/reference/protocol.md."""

    name: str
    section: str
    promise: str
    result: str
    expected: str = ""
    came: str = ""


def show(title: str, results: Sequence[Result]) -> None:
    """The table; below it what was expected and what came."""
    console = Console()
    table = Table("name", "result", "promise (section)", box=SIMPLE_HEAD, title=title)
    for each in results:
        table.add_row(each.name, Text(each.result, STYLES[each.result]), Text(f"{each.promise} ({each.section})"))
    console.print(table)
    for each in results:
        if each.result != KEPT:
            console.print(Text.assemble(f"{each.name}: ", (each.result, STYLES[each.result])))
            lines = [each.came] if not each.expected else [f"expected: {each.expected}", f"came: {each.came}"]
            console.print(Text("\n".join(f"  {line[:MAX_SHOWN]}" for line in lines)), soft_wrap=True)
    counts = (f"{sum(each.result == kind for each in results)} {kind}" for kind in STYLES)
    console.print(Text(", ".join(counts)))


def as_json(results: Sequence[Result], **facts: Any) -> str:
    return json.dumps({**facts, "results": [asdict(each) for each in results]}, indent=2)
