"""Ask a server that runs whether it keeps the protocol's promises, and print a table."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from asr_ws.client.address import DEFAULT_URL, read_token
from asr_ws.errors import ClientError, ProtocolError, UsageError
from asr_ws.testing.conformance.live import REFUSALS, Broken, NotTested, Server
from asr_ws.testing.conformance.promises import PROMISES, Promise

KEPT, BROKEN, NOT_TESTED = "kept", "broken", "not tested"
STYLES: Final = {KEPT: "green", BROKEN: "bold red", NOT_TESTED: "yellow"}
PATIENCES: Final = 4  # for all of a promise: so many times what one answer may take
MAX_SHOWN: Final = 600  # characters of what came
UNREADABLE: Final = (LookupError, TypeError, ValueError, AttributeError, ProtocolError)  # raised over what came


@dataclass(frozen=True, slots=True)
class Result:
    """``came`` is an event, or what else there is to say; ``section`` is of docs/reference/protocol.md."""

    name: str
    section: str
    promise: str
    result: str
    expected: str = ""
    came: str = ""


async def judged(server: Server, promises: Iterable[Promise] = PROMISES) -> AsyncIterator[Result]:
    """Each promise in its turn."""
    for promise in promises:
        facts = promise.name, promise.section, promise.text
        limit_s = PATIENCES * server.patience_s
        try:
            async with asyncio.timeout(limit_s):
                await promise.check(server)
            yield Result(*facts, KEPT)
        except NotTested as why:
            yield Result(*facts, NOT_TESTED, came=str(why))
        except Broken as broken:
            yield Result(*facts, BROKEN, broken.expected, broken.came)
        except TimeoutError:
            if server.last.get("type") in REFUSALS:
                yield Result(*facts, NOT_TESTED, came=f"the server was busy for {limit_s:g} s")
            else:
                yield Result(*facts, BROKEN, f"an end within {limit_s:g} s", json.dumps(server.last))
        except (OSError, InvalidHandshake, ConnectionClosed) as error:
            yield Result(*facts, BROKEN, "a session", f"{type(error).__name__}: {error}")
        except UNREADABLE as error:
            came = f"{type(error).__name__}: {error}, at or before {json.dumps(server.last)}"
            yield Result(*facts, BROKEN, "events as the schema has them", came)


async def run(server: Server, promises: Iterable[Promise]) -> list[Result]:
    """Raises: ClientError: no server is there."""
    await server.greet()
    results: list[Result] = []
    with Console(stderr=True).status("...") as status:
        async for result in judged(server, promises):
            results.append(result)
            status.update(f"{len(results)}: {result.name} {result.result}")
    return results


def show(console: Console, server: Server, results: list[Result]) -> None:
    """The table; below it what was expected and what came."""
    title = f"{server.ready.get('model', 'a server')} at {server.url}"
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


@click.command()
@click.option("--url", default=DEFAULT_URL, show_default=True, help="Where the server is.")
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="File with the token, or the token itself in ASR_WS_TOKEN."
)
@click.option("--only", "names", multiple=True, metavar="NAME", help="This promise. May be given several times.")
@click.option("--list", "lists", is_flag=True, help="Print the promises, and ask nobody.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and no table.")
@click.option("--patience", default=30.0, show_default=True, type=click.FloatRange(1), help="Seconds for any answer.")
@click.option("--allow-faults", is_flag=True, help="Break the worker too, of a server with --fault-injection.")
def main(
    url: str,
    token_file: Path | None,
    names: tuple[str, ...],
    lists: bool,
    as_json: bool,
    patience: float,
    allow_faults: bool,
) -> None:
    """Ask a server that runs whether it keeps the promises of asr-ws.v1.

    Exit codes: 0 none is broken; 1 one is; 2 the call was wrong, or no server is there.
    """
    if unknown := set(names) - {promise.name for promise in PROMISES}:
        raise click.UsageError(f"no promise {', '.join(sorted(unknown))}: --list has them all")
    promises = [promise for promise in PROMISES if not names or promise.name in names]
    if lists:
        click.echo("\n".join(f"{promise.name:22}{promise.text} ({promise.section})" for promise in promises))
        return
    try:
        server = Server.at(url, token=read_token(token_file), patience_s=patience, allow_faults=allow_faults)
        results = asyncio.run(run(server, promises))
    except (ClientError, UsageError) as error:
        click.echo(f"error: {error.message}\nhint: {error.hint}", err=True)
        sys.exit(2)
    if as_json:
        said = {"url": server.url, "ready": server.ready, "results": [asdict(each) for each in results]}
        click.echo(json.dumps(said, indent=2))
    else:
        show(Console(), server, results)
    sys.exit(int(any(each.result == BROKEN for each in results)))


if __name__ == "__main__":
    main(prog_name="python -m asr_ws.testing.conformance")
