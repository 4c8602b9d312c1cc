"""`asr-ws top`: how a running server does, at a terminal, until somebody has seen enough.

Looks at the server in a thread of its own, since it may be silent for a while, and the keys in another one: what both
find comes to the main thread, which draws.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

import click
import msgspec
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from asr_ws.cli.gauges import ASCII_BLOCKS, BLOCKS, LOOKS, Look, Missed, Stats, fit, page, whole_metrics
from asr_ws.cli.keys import END, Keys, signals
from asr_ws.cli.numbers import FloatRange
from asr_ws.client.address import DEFAULT_URL, NO_SERVER, read_token
from asr_ws.client.http_get import Unauthorized, get
from asr_ws.client.http_route import http_url
from asr_ws.errors import ClientError, printable

T = TypeVar("T")
DRAW_S = 0.25  # at least so often, for a window that changes its size; also the longest wait for Ctrl-C on Windows
TIMEOUT_S = 5.0


@click.command()
@click.option("--url", default=DEFAULT_URL, show_default=True, help="Where the server is.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the token that the server asks for; or the token itself in ASR_WS_TOKEN.",
)
@click.option(
    "--interval-s",
    type=FloatRange(1, 3600),  # /metrics is made anew once a second
    default=1.0,
    show_default=True,
    help="Pause between two looks.",
)
@click.option("--once", is_flag=True, help="Look once, and print it; so it is where this is no terminal.")
def top(url: str, token_file: Path | None, interval_s: float, once: bool) -> None:
    """Watch a server: queue, waits, decodes, outcomes. `q` ends it, as Ctrl-C does."""
    token, console = read_token(token_file), Console(highlight=False)
    view = _View(look(url, token), http_url(url, "")[0], console)
    if once or not sys.stdout.isatty() or console.is_dumb_terminal:
        for line in view.lines(is_live=False):
            console.print(line, soft_wrap=True)
        return
    _watch(view, lambda: look(url, token), interval_s)


def look(url: str, token: str | None) -> Look:
    """Raises: ClientError: it cannot be seen."""

    def ask(path: str, read: Callable[[str], T]) -> T:
        answer = get(url, path, token=token, timeout_s=TIMEOUT_S)
        try:
            return read(answer.text)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            why = printable(str(error))
            raise ClientError(f"{answer.url} does not answer as this server does: {why}", NO_SERVER) from error

    stats = ask("/v1/stats", partial(msgspec.json.decode, type=Stats))
    metrics = ask("/metrics", whole_metrics)
    return Look(time.monotonic(), stats, metrics)


class _View:
    """What was seen, drawn for the terminal as it is at the moment."""

    def __init__(self, first: Look, url: str, console: Console) -> None:
        self.console = console
        self._last = first
        self._seen = deque[Look | Missed]([first], maxlen=LOOKS)
        self._url = url

    def receive(self, seen: Look | Missed) -> None:
        self._seen.append(seen)
        if isinstance(seen, Look):
            self._last = seen

    def lines(self, *, is_live: bool) -> list[Text]:
        blocks = ASCII_BLOCKS if self.console.options.ascii_only else BLOCKS
        width, height = self.console.size
        lines = page(self._last, list(self._seen), time.monotonic(), self._url, width, is_live=is_live, blocks=blocks)
        return [line.text for line in (fit(lines, height) if is_live else lines)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text in self.lines(is_live=True):
            text.no_wrap, text.overflow = True, "crop"
            yield text


def _watch(view: _View, look_again: Callable[[], Look], interval_s: float) -> None:
    """Until a key, or a signal, ends it. Raises: Unauthorized: the token is no longer good."""
    news: SimpleQueue[Look | Missed | Exception | None] = SimpleQueue()
    keys = Keys()

    def look_on() -> None:
        while True:
            time.sleep(interval_s)
            try:
                news.put(look_again())
            except Exception as error:
                if isinstance(error, Unauthorized) or not isinstance(error, ClientError):
                    news.put(error)
                    return
                news.put(Missed(error.message.rpartition(": ")[2]))  # it restarts, say, or a proxy has words for it

    def listen() -> None:
        while keys.read() != END:
            pass
        news.put(None)

    with ExitStack() as stack:
        stack.enter_context(signals(lambda: news.put(None)))
        if sys.stdin is not None and sys.stdin.isatty():
            stack.enter_context(keys)
            threading.Thread(target=listen, name="asr_ws keys", daemon=True).start()
        live = stack.enter_context(Live(view, console=view.console, screen=True, auto_refresh=False))
        threading.Thread(target=look_on, name="asr_ws looks", daemon=True).start()
        while True:
            live.refresh()
            try:
                seen = news.get(timeout=DRAW_S)
            except Empty:
                continue
            if seen is None:
                return
            if isinstance(seen, Exception):
                raise seen
            view.receive(seen)
