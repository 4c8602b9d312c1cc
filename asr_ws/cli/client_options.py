"""The options of every command that talks to a server. Not in `options`, since the client's libraries take a while."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from asr_ws.client.address import DEFAULT_URL, read_token
from asr_ws.client.http_route import http_url


def for_clients(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --url, --token-file and --language; it takes ``url``, ``token`` and ``language``."""

    @functools.wraps(command)
    def with_token(url: str, token_file: Path | None, **given: Any) -> None:
        http_url(url, "")  # what is no address is a wrong call, whatever else is wrong
        command(url=url, token=read_token(token_file), **given)

    decorated = click.option("--language", help="Of the speech, such as en; detected if not given.")(with_token)
    decorated = click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        help="File with the token that the server asks for; or the token itself in ASR_WS_TOKEN.",
    )(decorated)
    return click.option("--url", default=DEFAULT_URL, show_default=True, help="Where the server is.")(decorated)
