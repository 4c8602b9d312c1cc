"""The command line. One module per command, imported when that command runs, so that `asr-ws --help` stays quick.

Exit codes: 0 done, 1 it failed, 2 the call was wrong (click's usage errors, `UsageError`); `serve` exits with the
server's own.
"""

from __future__ import annotations

import os
import sys
from errno import ENOSPC
from importlib import import_module
from io import TextIOWrapper
from typing import Any, Final, cast

import click
from click.shell_completion import CompletionItem

from asr_ws import __version__
from asr_ws.errors import AsrError, UsageError, printable

MAX_SAID: Final = 10_000  # characters of an error, or of its hint
COMMANDS: Final = {  # name -> where it is, what --help says of it
    "serve": ("asr_ws.cli.serve:serve", "Run the server."),
    "health": ("asr_ws.cli.health:health", "Say whether a server can decode now, by the exit code."),
    "top": ("asr_ws.cli.top:top", "Watch a server: queue, waits, decodes, outcomes."),
    "transcribe": ("asr_ws.cli.transcribe:transcribe", "Send an audio file to a server and print the text."),
    "mic": ("asr_ws.cli.mic:mic", "Speak, and see the text while you do."),
    "demo": ("asr_ws.cli.demo:demo", "See everything at work in one minute, without a microphone."),
    "bench": ("asr_ws.cli.bench:bench", "How many people can speak at once on this machine?"),
    "pull": ("asr_ws.cli.pull:pull", "Download a model."),
    "doctor": ("asr_ws.cli.doctor:doctor", "Check whether the server would run well here."),
    "config": ("asr_ws.cli.config:config", "Show every setting and where its value comes from."),
    "completion": ("asr_ws.cli.completion:completion", "Print a script that makes a shell complete all of this."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name][0].split(":")
        return cast(click.Command, getattr(import_module(module), function))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):  # click's own would import every command for its help
            formatter.write_dl([(name, short_help) for name, (_, short_help) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        options = click.Command.shell_complete(self, ctx, incomplete)  # the group's own would import every command
        return options + [
            CompletionItem(name, help=short_help)
            for name, (_, short_help) in COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def invoke(self, ctx: click.Context) -> Any:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # it was closed, as `>&-` does
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 to the program's end
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper) and not stream.isatty():
                # A pipe on Windows has a code page that lacks most scripts. Without `errors` they would become strict.
                stream.reconfigure(encoding="utf-8", errors=stream.errors)
        try:
            return super().invoke(ctx)
        except AsrError as error:
            click.echo(with_hint(f"error: {error.message}", error.hint), err=True)
            ctx.exit(2 if isinstance(error, UsageError) else 1)
        except OSError as error:
            if error.errno != ENOSPC:
                raise
            click.echo(f"error: {error.strerror}", err=True)
            ctx.exit(1)


def with_hint(line: str, hint: str) -> str:
    """The hint in a line of its own, without what it has for programs. In both may be what a server wrote, or a log."""
    line, hint = (printable(each, MAX_SAID, lines=True) for each in (line, hint.partition("; in Python ")[0]))
    return f"{line}\nhint: {hint}" if hint else line


@click.group(name="asr-ws", cls=_LazyGroup)
@click.version_option(__version__, prog_name="asr-ws", message="%(prog)s %(version)s")
def main() -> None:
    """Streaming speech recognition over WebSockets, on your own machine."""
