"""`asr-ws config`: what the server would run with, and why."""

from __future__ import annotations

import json
import sys

import click

from asr_ws.cli.options import with_settings
from asr_ws.config import SETTINGS, Loaded


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@with_settings
def config(loaded: Loaded, as_json: bool) -> None:
    """Show every setting, its value and where that comes from.

    Takes the options of `asr-ws serve` and starts nothing.
    """
    if as_json:
        click.echo(
            json.dumps(
                {
                    setting.name: {
                        "table": setting.group,
                        "value": setting.of(loaded.settings),
                        "source": loaded.sources[setting.name].kind,
                        "where": loaded.sources[setting.name].where,
                    }
                    for setting in SETTINGS
                },
                indent=2,
            )
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("TABLE", "SETTING", "VALUE", "FROM", box=None, pad_edge=False, header_style="bold")
    for setting in SETTINGS:
        table.add_row(
            f"[{setting.group}]",
            setting.name,
            setting.shown(setting.of(loaded.settings)),
            loaded.sources[setting.name].where,
        )
    width = None if sys.stdout.isatty() else 10_000  # into a pipe: one setting a line, however long
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)
