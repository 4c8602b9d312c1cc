"""The options of every command that needs the server's settings, made from their declarations."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from asr_ws.config import CONFIG_VARIABLE, SETTINGS, Setting, Settings, load, nearest_to
from asr_ws.errors import MissingExtra

# What the extra [server] brings.
SERVER_MODULES = (
    "structlog",
    "aiohttp",
    "faster_whisper",
    "onnxruntime",
    "av",
    "prometheus_client",
    "psutil",
    "cryptography",
)


def require_server(command: str) -> None:
    """Raises: MissingExtra: this installation is a client's."""
    if not all(find_spec(module) for module in SERVER_MODULES):
        raise MissingExtra(command, "server")


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --config and one option per setting; its first argument becomes what they load to.

    Values stay text here: `asr_ws.config` parses them, so that a flag's error reads as a variable's or a file's does.
    """

    @functools.wraps(command)
    def with_loaded(config_file: Path | None, **given: Any) -> None:
        flags = {setting.name: given.pop(setting.name) for setting in SETTINGS}
        flags = {name: None if value == () else value for name, value in flags.items()}  # of several: none was given
        loaded = load(flags, os.environ, config_file)
        for variable in loaded.unknown_environment:
            nearest = nearest_to(variable)
            click.echo(
                f"warning: {variable} is not a setting" + (f"; did you mean {nearest}?" if nearest else ""), err=True
            )
        command(loaded, **given)

    decorated: Callable[..., None] = with_loaded
    for setting in reversed(SETTINGS):
        decorated = _option(setting)(decorated)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"TOML file with settings; also {CONFIG_VARIABLE}.",
    )(decorated)


def as_arguments(settings: Settings) -> list[str]:
    """The options that give these settings to a command, where no file and no environment does."""
    arguments: list[str] = []
    for setting in SETTINGS:
        value = setting.of(settings)
        if value != setting.default:
            values = value if isinstance(value, tuple) else (value,)
            for each in values:
                arguments += [setting.flag] if setting.type is bool else [setting.flag, str(each)]
    return arguments


def _option(setting: Setting) -> Callable[[Callable[..., None]], Callable[..., None]]:
    if setting.type is bool:
        help = f"{setting.help[0].upper()}{setting.help[1:]}."
        return click.option(setting.flag, setting.name, is_flag=True, default=None, help=help)
    return click.option(
        setting.flag,
        setting.name,
        multiple=setting.several,
        metavar="TEXT" if setting.several or setting.type is str else "N",
        help=f"{setting.help[0].upper()}{setting.help[1:]}. Allowed: {setting.allowed}. "
        f"Default: {setting.shown(setting.default)}.{' May be given several times.' * setting.several}",
    )
