"""`asr-ws serve`: check what the server needs, then run it."""

from __future__ import annotations

import sys

import click

from asr_ws.cli.options import require_server, with_settings
from asr_ws.cli.pull import pull_with_bar
from asr_ws.config import Loaded
from asr_ws.errors import ModelNotDownloaded


@click.command()
@with_settings
def serve(loaded: Loaded) -> None:
    """Run the server until SIGINT or SIGTERM.

    A flag beats its ASR_WS_* environment variable, that beats the --config file; `asr-ws config` shows the outcome.
    """
    require_server("asr-ws serve")
    have_model(loaded.settings.model.model)
    from asr_ws.server.app import run

    sys.exit(run(loaded.settings))


def have_model(name: str) -> None:
    """Offer to download a missing model, if somebody is there to answer.

    Raises:
        ModelNotDownloaded: nobody is, or the answer was no.
    """
    from asr_ws.models import resolve

    try:
        resolve(name)
    except ModelNotDownloaded as error:
        someone_is_there = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
        question = f"The model {name!r} is not downloaded. Download it now?"
        if not (someone_is_there and click.confirm(question, default=True, err=True)):
            raise error
        pull_with_bar(name)
