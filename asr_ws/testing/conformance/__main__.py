"""Ask a server that runs whether it keeps the protocol's promises, or hear whether a client does; print a table."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from asr_ws.client.address import DEFAULT_URL, read_token
from asr_ws.errors import ClientError, ProtocolError, UsageError
from asr_ws.testing.conformance import clients, table
from asr_ws.testing.conformance.live import REFUSALS, Server
from asr_ws.testing.conformance.promises import PROMISES, Check
from asr_ws.testing.conformance.relay import Heard, Relay
from asr_ws.testing.conformance.table import BROKEN, Broken, NotTested, Promise, Result

URL: Final = "{url}"  # in a command
PATIENCES: Final = 4  # for all of a promise: so many times what one answer may take
UNREADABLE: Final = (LookupError, TypeError, ValueError, AttributeError, ProtocolError)  # raised over what came


async def judged(server: Server, promises: Iterable[Promise[Check]] = PROMISES) -> AsyncIterator[Result]:
    """Each promise in its turn."""
    for promise in promises:
        raised: Broken | NotTested | None = None
        limit_s = PATIENCES * server.patience_s
        try:
            async with asyncio.timeout(limit_s):
                await promise.check(server)
        except (Broken, NotTested) as told:
            raised = told
        except TimeoutError:
            is_busy = server.last.get("type") in REFUSALS
            busy = NotTested(f"the server was busy for {limit_s:g} s")
            raised = busy if is_busy else Broken(f"an end within {limit_s:g} s", server.last)
        except (OSError, InvalidHandshake, ConnectionClosed) as error:
            raised = Broken("a session", f"{type(error).__name__}: {error}")
        except UNREADABLE as error:
            came = f"{type(error).__name__}: {error}, at or before {json.dumps(server.last)}"
            raised = Broken("events as the schema has them", came)
        yield promise.result(raised)


async def ask(server: Server, promises: Iterable[Promise[Check]]) -> list[Result]:
    """Raises: ClientError: no server is there."""
    await server.greet()
    results: list[Result] = []
    with Console(stderr=True).status("...") as status:
        async for result in judged(server, promises):
            results.append(result)
            status.update(f"{len(results)}: {result.name} {result.result}")
    return results


async def hear(server: Server, port: int, command: Sequence[str], *, cuts: bool) -> list[Heard]:
    """What clients say to the server through a relay, until the command ends, or Ctrl-C.

    Raises: ClientError: no server is there, or no client came; UsageError: the port is taken, or no such command.
    """
    await server.greet()
    relay = Relay(server.address, cuts=cuts)
    run: asyncio.subprocess.Process | None = None
    try:
        async with relay.listening(port) as listener:
            click.echo(f"clients may speak to {relay.url}{'' if command else '; Ctrl-C prints the table'}", err=True)
            try:
                if command:
                    run = await asyncio.create_subprocess_exec(*(word.replace(URL, relay.url) for word in command))
                    click.echo(f"the command ended with {await run.wait()}", err=True)
                else:
                    await listener.serve_forever()
            except asyncio.CancelledError:  # Ctrl-C
                if run is not None and run.returncode is None:
                    run.kill()
                    await run.wait()
    except OSError as error:
        raise UsageError(f"--listen {port}: {error}", "0 is a free port; a command is run as it stands") from error
    if not relay.sessions:
        raise ClientError("no client came", f"give it the address {relay.url}; in a command {URL} becomes that")
    return relay.sessions


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
@click.option("--listen", type=click.IntRange(0, 65535), metavar="PORT", help="Judge the clients that come there.")
@click.option("--cut", "cuts", is_flag=True, help="With --listen: cut a client's connection in mid-utterance.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def main(
    url: str,
    token_file: Path | None,
    names: tuple[str, ...],
    lists: bool,
    as_json: bool,
    patience: float,
    allow_faults: bool,
    listen: int | None,
    cuts: bool,
    command: tuple[str, ...],
) -> None:
    """Ask a server that runs whether it keeps the promises of asr-ws.v1.

    With --listen judge clients in its place: those that come to that port, from where all goes on to the server, until
    Ctrl-C, or while the COMMAND runs, in which {url} is the address to come to.

    Exit codes: 0 none is broken; 1 one is; 2 the call was wrong, or no server is there.
    """
    if listen is None and (cuts or command):
        raise click.UsageError("--cut and a command go with --listen PORT")
    there: Sequence[Promise[Any]] = PROMISES if listen is None else clients.PROMISES
    if unknown := set(names) - {promise.name for promise in there}:
        raise click.UsageError(f"no promise {', '.join(sorted(unknown))}: --list has them all")
    if lists:
        click.echo("\n".join(f"{promise.name:22}{promise.text} ({promise.section})" for promise in there))
        return
    try:
        server = Server.at(url, token=read_token(token_file), patience_s=patience, allow_faults=allow_faults)
        if listen is None:
            results = asyncio.run(ask(server, [each for each in PROMISES if not names or each.name in names]))
        else:
            heard = asyncio.run(hear(server, listen, command, cuts=cuts))
            results = [each for each in clients.judged(heard) if not names or each.name in names]
    except (ClientError, UsageError) as error:
        click.echo(f"error: {error.message}\nhint: {error.hint}", err=True)
        sys.exit(2)
    if as_json:
        click.echo(table.as_json(results, url=server.url, ready=server.ready))
    else:
        model = server.ready.get("model", "a server")
        table.show(f"{'' if listen is None else 'clients of '}{model} at {server.url}", results)
    sys.exit(int(any(each.result == BROKEN for each in results)))


if __name__ == "__main__":
    main(prog_name="python -m asr_ws.testing.conformance")
