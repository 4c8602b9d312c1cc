"""Promises, what became of each, and a table of it for people, or JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Generic, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

KEPT, BROKEN, NOT_TESTED = "kept", "broken", "not tested"
STYLES: Final = {KEPT: "green", BROKEN: "bold red", NOT_TESTED: "yellow"}
MAX_SHOWN: Final = 600  # characters of what came

CheckT = TypeVar("CheckT", bound=Callable[..., Any])


class Broken(Exception):
    """A promise is not kept: what was expected, if that is more than the promise says, and what came."""

    def __init__(self, expected: str, came: object) -> None:
        super().__init__(expected)
        self.expected = expected
        self.came = came if isinstance(came, str) else json.dumps(came)


class NotTested(Exception):
    """Why nothing can be said of a promise here, and now."""


def expect(holds: bool, expected: str, came: object) -> None:
    """Raises: Broken: it does not hold."""
    if not holds:
        raise Broken(expected, came)


@dataclass(frozen=True, slots=True)
class Result:
    """``came`` is an event, or what else there is to say; ``section`` is of docs/reference/protocol.md."""

    name: str
    section: str
    promise: str
    result: str
    expected: str = ""
    came: str = ""


@dataclass(frozen=True, slots=True)
class Promise(Generic[CheckT]):
    """``section`` is a heading of docs/reference/protocol.md; ``check`` raises `Broken` or `NotTested`."""

    name: str
    section: str
    text: str
    check: CheckT

    def result(self, raised: Broken | NotTested | None) -> Result:
        facts = self.name, self.section, self.text
        match raised:
            case None:
                return Result(*facts, KEPT)
            case NotTested():
                return Result(*facts, NOT_TESTED, came=str(raised))
            case Broken(expected=expected, came=came):
                return Result(*facts, BROKEN, expected, came)


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
