"""structlog, set up once. Events are constant ``noun.past_verb``, facts are keys with units, all to standard error."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(format: str = "console", level: str = "info") -> None:
    """Args: format: ``console`` or ``json``, one object a line. level: the least that is written."""
    json = format == "json"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
            if json  # locals would hold audio, text and tokens
            else structlog.processors.ExceptionPrettyPrinter(sys.stderr),
            structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
