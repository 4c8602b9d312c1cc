"""structlog, set up once. Events are constant ``noun.past_verb``, facts are keys with units, all to standard error.

Whoever logs only renders the line; a thread writes it. So a standard error that nobody reads (a full pipe, a stopped
terminal) costs lines, which are counted and told of; it neither holds up the event loop nor keeps the process alive.
The libraries' own logging, from warnings on, goes the same way as `library.logged`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

import structlog

CAPACITY = 4096  # lines that wait to be written: about a megabyte, and the worst second of a crash loop
BATCH = 256  # of them in one write: a busy loop lets another thread have its turn some 200 times a second only
FLUSH_S = 1.0  # for what still waits when the process ends; a reader that stands still must not keep it alive
# What a library prints, or an error quotes, would reach a terminal as commands: all but lines, tabs and colours.
_CONTROLS = re.compile(r"(?!\x1b\[[\d;]*m)[\x00-\x08\x0b-\x1f\x7f-\x9f]")
TELL_EVERY_S = 1.0  # between two lines about dropped ones
RETRY_S = 0.05  # a non-blocking standard error is full


def configure(format: str = "console", level: str = "info") -> None:
    """Args: format: ``console`` or ``json``, one object a line. level: the least that is written."""
    global _writer
    json = format == "json"
    colors = sys.stderr is not None and sys.stderr.isatty()
    close()
    _writer = Writer(sys.stderr, on_dropped=_render_dropped)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *(_json_renderers() if json else [_last_words_last, _console_renderer(colors)]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_QueueLogger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, _LibraryLog) for handler in root.handlers):
        root.addHandler(_LibraryLog(logging.WARNING))


def dropped() -> int:
    """Lines that were not written since `configure`: nobody read standard error fast enough, or at all."""
    return _writer.n_dropped if _writer is not None else 0


def close(timeout_s: float = FLUSH_S) -> None:
    """Write what waits, as far as that is possible in ``timeout_s``; what is logged afterwards is dropped."""
    if _writer is not None:
        _writer.close(timeout_s)


class Writer:
    """A thread that writes lines to a stream, in order, behind a queue of at most ``capacity``.

    Args:
        stream: standard error or its like; None (no console): all is dropped.
        on_dropped: renders the line about that many dropped ones, or None: nothing is to be said.
    """

    def __init__(
        self,
        stream: TextIO | None,
        *,
        capacity: int = CAPACITY,
        on_dropped: Callable[[int], str | None] = lambda n: None,
    ) -> None:
        self.n_dropped = 0
        self._stream = stream
        # Below the buffers: a thread that is stuck in one holds its lock, over which the interpreter aborts at its end.
        buffer = getattr(stream, "buffer", None)
        self._raw = getattr(buffer, "raw", buffer)
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._on_dropped = on_dropped
        self._n_told = 0
        self._told_at = -TELL_EVERY_S
        self._closed = False
        self._counting = threading.Lock()
        self._lines = queue.Queue[str | None](capacity)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Never waits."""
        if self._closed:
            return self._drop()
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._drop()

    def close(self, timeout_s: float) -> None:
        self._closed = True
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=timeout_s)
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        ended = False
        while not ended:
            taken = self._take()
            ended = None in taken
            if lines := [line for line in taken if line is not None]:
                self._write(lines)
            if ended or time.monotonic() - self._told_at >= TELL_EVERY_S:
                self._tell_dropped()

    def _take(self) -> list[str | None]:
        """What waits, or what comes first; nothing, where there may be something to tell of dropped lines instead."""
        taken: list[str | None] = []
        with contextlib.suppress(queue.Empty):
            taken.append(self._lines.get(timeout=TELL_EVERY_S if self.n_dropped > self._n_told else None))
            while len(taken) < BATCH:
                taken.append(self._lines.get_nowait())
        return taken

    def _tell_dropped(self) -> None:
        n_dropped = self.n_dropped
        if n_dropped > self._n_told:
            line = self._on_dropped(n_dropped - self._n_told)
            self._n_told, self._told_at = n_dropped, time.monotonic()
            if line is not None:
                self._write([line])

    def _write(self, lines: list[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        data = text.encode(self._encoding, "backslashreplace")  # lone surrogates, or a console of few letters
        try:
            if self._raw is not None:
                while data:
                    n_written = self._raw.write(data)
                    if not n_written:
                        time.sleep(RETRY_S)
                    data = data[n_written or 0 :]
            elif self._stream is not None:
                self._stream.write(data.decode(self._encoding))
                self._stream.flush()
            else:
                self._drop(len(lines))
        except (OSError, ValueError):  # the reader has gone, the disk is full; or it was closed under us
            self._drop(len(lines))

    def _drop(self, n_lines: int = 1) -> None:
        with self._counting:
            self.n_dropped += n_lines


_writer: Writer | None = None
atexit.register(close)


class _QueueLogger:
    """What structlog hands its rendered lines to."""

    def __init__(self, *_: Any) -> None:
        pass

    def msg(self, line: str) -> None:
        if _writer is not None:
            _writer.put(_CONTROLS.sub(lambda found: ascii(found[0])[1:-1], line))

    debug = info = warning = error = critical = msg


# To a peer that has gone: asyncio says it of each write, as often as a stranger likes.
WRITTEN_IN_VAIN = ("socket.send() raised exception.", "SSL connection is closed")


class _LibraryLog(logging.Handler):
    """asyncio and websockets log by the standard library, which would write to standard error at once."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # its arguments do not fit its format
            message = str(record.msg)
        if record.name == "asyncio" and message in WRITTEN_IN_VAIN:
            return
        log = structlog.get_logger()
        tell = log.error if record.levelno >= logging.ERROR else log.warning
        tell("library.logged", logger=record.name, message=message, exc_info=record.exc_info)


def _render_dropped(n: int) -> str | None:
    """The line itself, for the thread that writes: by way of the queue it might be dropped in its turn."""
    line: str | None = structlog.wrap_logger(structlog.ReturnLogger()).warning("log.records_dropped", n=n)
    return line


# Neither form shows a traceback's locals, which would hold audio, text and tokens.


def _json_renderers() -> list[structlog.types.Processor]:
    transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(transformer), structlog.processors.JSONRenderer()]


def _last_words_last(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A person reads the stacks of a worker that died as lines, below the event."""
    if words := event.pop("stderr", None):
        event["stack"] = words
    return event


def _console_renderer(colors: bool) -> structlog.types.Processor:
    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
