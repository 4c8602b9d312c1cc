"""The options of every command that talks to a server. Not in `options`, since the client's libraries take a while."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from asr_ws.client import DEFAULT_URL
from asr_ws.errors import UsageError


def for_clients(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --url, --token-file and --language; it takes ``url``, ``token`` and ``language``."""

    @functools.wraps(command)
    def with_token(token_file: Path | None, **given: Any) -> None:
        command(token=_token(token_file), **given)

    decorated = click.option("--language", help="Of the speech, such as en; detected if not given.")(with_token)
    decorated = click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        help="File with the token that the server asks for; or the token itself in ASR_WS_TOKEN.",
    )(decorated)
    return click.option("--url", default=DEFAULT_URL, show_default=True, help="Where the server is.")(decorated)


def _token(file: Path | None) -> str | None:
    """Not from an option itself, which everybody on the machine can see. Raises: UsageError: no such file, or empty."""
    if file is None:
        return os.environ.get("ASR_WS_TOKEN") or None
    try:
        words = re.sub("#.*", "", file.read_text("utf-8-sig")).split()  # as the server reads its own
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file: cannot read {file}: {getattr(error, 'strerror', 'it is no text')}") from error
    if not words:
        raise UsageError(f"--token-file: no token in {file}")
    return words[0]
