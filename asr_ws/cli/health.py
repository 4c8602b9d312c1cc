"""`asr-ws health`: whether a server can decode now, as an exit code. A container asks often, so it is quick."""

from __future__ import annotations

import re
import sys
from http import HTTPStatus

import click

from asr_ws.cli.numbers import FloatRange
from asr_ws.client.address import DEFAULT_URL, NO_SERVER
from asr_ws.client.http_get import get
from asr_ws.errors import ClientError


@click.command()
@click.option("--url", default=DEFAULT_URL, show_default=True, help="Where the server is.")
@click.option(
    "--timeout-s",
    type=FloatRange(0, 3600, min_open=True),
    default=5.0,
    show_default=True,
    help="Longest wait for the answer, all in all.",
)
@click.option("--live", is_flag=True, help="Ask whether the server lives, not whether it can decode.")
def health(url: str, timeout_s: float, live: bool) -> None:
    """Say whether a server can decode now: exit code 0 if it can, else 1."""
    path, good = ("/livez", "alive") if live else ("/readyz", "ready")
    answer = get(url, path, timeout_s=timeout_s, also=[HTTPStatus.SERVICE_UNAVAILABLE])
    state, is_good = answer.text.removesuffix("\n"), answer.status == HTTPStatus.OK
    if is_good != (state == good) or not re.fullmatch("[a-z]{1,20}", state):
        raise ClientError(f"{answer.url} answers {answer.status}, and not as this server does", NO_SERVER)
    click.echo(state)
    sys.exit(not is_good)
