"""`asr-ws completion`: what makes a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that makes SHELL complete commands and options.

    Save it, and let the shell read it: `. FILE` in ~/.bashrc or ~/.zshrc; for fish it is
    ~/.config/fish/completions/asr-ws.fish. There is none for PowerShell.
    """
    made = get_completion_class(shell)
    assert made is not None  # click has these three
    group = ctx.find_root()
    # The variable is the one that click looks for by itself.
    click.echo(made(group.command, {}, "asr-ws", "_ASR_WS_COMPLETE").source(), nl=False)
