"""What plain GETs are answered with: the page and its client, liveness, readiness, and the numbers."""

from __future__ import annotations

import json
import time
from collections import Counter
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Final, Protocol

from asr_ws import schema
from asr_ws.core.types import ServiceState
from asr_ws.metrics import Metrics
from asr_ws.server.answer import Packed, Page
from asr_ws.server.dispatcher import Dispatcher
from asr_ws.server.jobs import Jobs
from asr_ws.server.listener import Listener

OPENAPI: Final = Path(str(files("asr_ws"))) / "assets" / "openapi.json"

# Of clients/browser: what the page and other programs load, by the end of its name.
BROWSER_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".d.ts": "text/plain",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}


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
    """The answers, by path. ``listener`` and ``jobs`` are made later. Args: exposition: answers /metrics."""

    listener: Listener
    jobs: Jobs

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
        self._openapi_text = OPENAPI.read_text("utf-8")

    def by_path(self) -> dict[str, Page]:
        browser_files = _browser_files()
        self._page = browser_files["/"]
        return {
            **browser_files,
            "/": self._page_with_ports,
            "/livez": self._live,
            "/healthz": self._live,
            "/readyz": self._ready,
            "/metrics": self._exposition,
            "/v1/stats": self._stats,
            "/v1/schema.json": self._schema,
            "/openapi.json": self._openapi,
        }

    def _page_with_ports(self) -> tuple[HTTPStatus, str, str | Packed]:
        """Sessions may have another: page/address.js reads it."""
        if not self.listener.has_two_ports:
            return self._page()
        status, content_type, body = self._page()
        assert isinstance(body, Packed)
        ports = f'<meta name="asr-ws-ports" content="{self.listener.http_port} {self.listener.port}">'
        return status, content_type, body.plain.decode().replace("</title>\n", f"</title>\n{ports}\n", 1)

    def _live(self) -> tuple[HTTPStatus, str, str]:
        return HTTPStatus.OK, "text/plain", "alive\n"

    def _ready(self) -> tuple[HTTPStatus, str, str]:
        """A full queue is normal service and does not count against it."""
        state = self._dispatcher.queue.state
        status = HTTPStatus.OK if state is ServiceState.READY else HTTPStatus.SERVICE_UNAVAILABLE
        return status, "text/plain", f"{state.value}\n"

    def _schema(self) -> tuple[HTTPStatus, str, str]:
        return HTTPStatus.OK, "application/schema+json", self._schema_text

    def _openapi(self) -> tuple[HTTPStatus, str, str]:
        return HTTPStatus.OK, "application/json", self._openapi_text

    def _stats(self) -> tuple[HTTPStatus, str, str]:
        queue, drafts, metrics, worker = self._dispatcher.queue, self._dispatcher.drafts, self._metrics, self._worker
        now = time.monotonic()  # the loop's clock too
        stats = {
            "state": queue.state.value,
            "model": self._model,
            "uptime_s": round(now - self._began, 1),
            "queue_depth": queue.depth,
            "queue_capacity": queue.capacity,
            "background_depth": queue.background_depth,
            "avg_wait_ms": round(metrics.waits_s.mean(now=now) * 1000),
            "p95_wait_ms": round(metrics.waits_s.p95(now=now) * 1000),
            "in_flight_tasks": int(queue.in_flight is not None or queue.aside is not None),
            "decoding": self._dispatcher.decoding,
            "decode_fail_rate": round(metrics.failed.mean(now=now), 4),
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
            "jobs": dict(self.jobs.counts),
        }
        return HTTPStatus.OK, "application/json", json.dumps(stats) + "\n"


def browser_folder() -> Path:
    """Where the page is: a wheel carries it; in a checkout it is where it is written."""
    package = Path(str(files("asr_ws")))
    installed = package / "assets" / "browser"
    return installed if installed.is_dir() else package.parent / "clients" / "browser"


def _browser_files() -> dict[str, Page]:
    """The page and the modules of the JavaScript client, by the paths that their links name; read once."""
    folder, found = browser_folder(), dict[str, Page]()
    for file in sorted((*folder.glob("*.*"), *folder.glob("page/*"))):
        kind = next((kind for end, kind in BROWSER_TYPES.items() if file.name.endswith(end)), None)
        if kind is not None:
            found[f"/{file.relative_to(folder).as_posix()}"] = _fixed(kind, Packed.of(file.read_bytes()))
    found["/"] = found.pop("/index.html")
    return found


def _fixed(content_type: str, body: Packed) -> Page:
    return lambda: (HTTPStatus.OK, content_type, body)
