"""What plain GETs are answered with: the front page, liveness, readiness, and the numbers."""

from __future__ import annotations

import html
import json
import time
from collections import Counter
from http import HTTPStatus
from typing import Protocol

from asr_ws import __version__, messages, schema
from asr_ws.core.types import ServiceState
from asr_ws.metrics import Metrics
from asr_ws.server.dispatcher import Dispatcher
from asr_ws.server.listener import Listener, Page

_FRONT = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>asr_ws</title>
<link rel="stylesheet" href="style.css">
<h1>asr_ws {version}</h1>
<p>A streaming speech-recognition server: audio in over a WebSocket, text out, and a clear word when it is busy.</p>
<p>The model is <b>{model}</b>; the server is <b>{state}</b>.</p>
<ul><li>Sessions are WebSockets at <code>{path}</code> below this page's address (<code>{protocol}</code>)
<li><a href="v1/stats">v1/stats</a>: queue, waits and outcomes as JSON
<li><a href="metrics">metrics</a>: the same and more, for Prometheus; a server that wants tokens wants one for both
<li><a href="readyz">readyz</a>: whether it can decode now · <a href="livez">livez</a>: whether it lives</ul>
<p>From a shell: <code>asr-ws transcribe FILE --url ADDRESS</code>, this page's address; with
<code>--token-file FILE</code> where tokens are wanted</p></html>
"""

# Apart, because the Content-Security-Policy allows no style within the page.
_STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem }
code { background: #8882; padding: .1em .3em }
"""


class WorkerFacts(Protocol):
    """What is told of the worker."""

    @property
    def pid(self) -> int | None: ...

    @property
    def n_restarts(self) -> int: ...

    @property
    def restarts(self) -> Counter[str]:
        """By the cause of the end before."""

    @property
    def causes(self) -> tuple[str, ...]:
        """Those that there are."""

    @property
    def resident_bytes(self) -> int | None:
        """Of memory; None: there is no process."""

    @property
    def load_s(self) -> float | None:
        """From its start to READY, the last time; None: it has not been ready yet."""

    @property
    def max_concurrent_decodes(self) -> int: ...


class Pages:
    """The answers, by path. ``listener`` is known only once it listens. Args: exposition: answers /metrics."""

    listener: Listener

    def __init__(
        self, model: str, dispatcher: Dispatcher, worker: WorkerFacts, metrics: Metrics, exposition: Page
    ) -> None:
        self._model = model
        self._dispatcher = dispatcher
        self._worker = worker
        self._metrics = metrics
        self._exposition = exposition
        self._began = time.monotonic()
        self._schema_text = schema.FILE.read_text("utf-8")

    def by_path(self) -> dict[str, Page]:
        return {
            "/": self._front,
            "/style.css": lambda: (HTTPStatus.OK, "text/css", _STYLE),
            "/livez": self._live,
            "/healthz": self._live,
            "/readyz": self._ready,
            "/metrics": self._exposition,
            "/v1/stats": self._stats,
            "/v1/schema.json": self._schema,
        }

    def _front(self) -> tuple[HTTPStatus, str, str]:
        values = {
            "version": __version__,
            "model": self._model,
            "state": self._dispatcher.queue.state.value,
            "path": messages.PATH.removeprefix("/"),
            "protocol": messages.PROTOCOL,
        }
        return HTTPStatus.OK, "text/html", _FRONT.format(**{key: html.escape(text) for key, text in values.items()})

    def _live(self) -> tuple[HTTPStatus, str, str]:
        return HTTPStatus.OK, "text/plain", "alive\n"

    def _ready(self) -> tuple[HTTPStatus, str, str]:
        """A full queue is normal service and does not count against it."""
        state = self._dispatcher.queue.state
        status = HTTPStatus.OK if state is ServiceState.READY else HTTPStatus.SERVICE_UNAVAILABLE
        return status, "text/plain", f"{state.value}\n"

    def _schema(self) -> tuple[HTTPStatus, str, str]:
        return HTTPStatus.OK, "application/schema+json", self._schema_text

    def _stats(self) -> tuple[HTTPStatus, str, str]:
        queue, drafts, metrics, worker = self._dispatcher.queue, self._dispatcher.drafts, self._metrics, self._worker
        stats = {
            "state": queue.state.value,
            "model": self._model,
            "uptime_s": round(time.monotonic() - self._began, 1),
            "queue_depth": queue.depth,
            "queue_capacity": queue.capacity,
            "avg_wait_ms": round(metrics.avg_wait_s * 1000),
            "p95_wait_ms": round(metrics.p95_wait_s * 1000),
            "in_flight_tasks": int(queue.in_flight is not None or queue.aside is not None),
            "decode_fail_rate": round(metrics.decode_fail_rate, 4),
            "worker_restart_count": worker.n_restarts,
            "worker_pid": worker.pid,
            "sessions": self.listener.n_sessions,
            "partials": metrics.partials,
            "finals": metrics.finals,
            "finals_speculated": metrics.finals_speculated,
            "speculations_wasted": drafts.n_wasted,
            "busy": metrics.refusals.total(),
            "busy_by_reason": dict(metrics.refusals),
            "retries": metrics.retries,
            "max_concurrent_decodes": worker.max_concurrent_decodes,
        }
        return HTTPStatus.OK, "application/json", json.dumps(stats) + "\n"
