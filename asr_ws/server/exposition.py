"""/metrics: everything that is counted, in Prometheus' text format.

Nothing is counted here: the values are read where they are kept, when somebody asks, and that once a second at most.
The values of labels are ours, whatever clients send.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from asr_ws import __version__, log
from asr_ws.core.access import AccessRefusal
from asr_ws.core.types import RefusalReason, ServiceState
from asr_ws.errors import DecodeFailed, WorkerDied, WorkerHung
from asr_ws.metrics import BOUNDS_S, Histogram, Metrics
from asr_ws.server.dispatcher import Dispatcher
from asr_ws.server.jobs import Jobs
from asr_ws.server.listener import Listener
from asr_ws.server.pages import WorkerFacts

RENDER_EVERY_S = 1.0  # who asks more often gets the same text: a storm of scrapes costs no more than one
CONTENT_TYPE = CONTENT_TYPE_LATEST.partition("; charset")[0]


class Exposition(Collector):
    """``listener`` is known only once it listens, and ``jobs`` with it. Args: clock: monotonic seconds."""

    listener: Listener
    jobs: Jobs

    def __init__(
        self,
        dispatcher: Dispatcher,
        worker: WorkerFacts,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dispatcher = dispatcher
        self._worker = worker
        self._metrics = metrics
        self._clock = clock
        self._standard = ProcessCollector(registry=None)  # of the server's own process; nothing where there is no /proc
        self._text = ""
        self._rendered_at = float("-inf")

    def page(self) -> tuple[HTTPStatus, str, str]:
        """As `asr_ws.server.listener.Page`."""
        now = self._clock()
        if now - self._rendered_at >= RENDER_EVERY_S:
            self._text, self._rendered_at = generate_latest(self).decode(), now
        return HTTPStatus.OK, CONTENT_TYPE, self._text

    def collect(self) -> Iterator[Metric]:
        yield from self._queue()
        yield from self._sessions()
        yield from self._decodes()
        yield from self._process()
        yield from self._standard.collect()

    def _queue(self) -> Iterator[Metric]:
        queue, metrics = self._dispatcher.queue, self._metrics
        yield GaugeMetricFamily("asr_ws_queue_depth", "Utterances that wait for the model", queue.depth)
        yield GaugeMetricFamily("asr_ws_queue_capacity", "Utterances that may wait", queue.capacity)
        yield GaugeMetricFamily(
            "asr_ws_background_depth",
            "Slices of files, and short files, that wait behind the queue",
            queue.background_depth,
        )
        yield GaugeMetricFamily(
            "asr_ws_in_flight_tasks",
            "Decodes in progress, partials included: 0 or 1",
            queue.in_flight is not None or queue.aside is not None,
        )
        yield _histogram("asr_ws_queue_wait_seconds", "Waits of admitted attempts in the queue", metrics.wait_s)
        refusals = dict.fromkeys(RefusalReason, 0) | metrics.refusals + metrics.unfinished
        yield _counter("asr_ws_refusals", "Attempts and sessions that were told busy or retry", "reason", refusals)

        refused = dict.fromkeys(AccessRefusal, 0) | metrics.access_refused
        yield _counter("asr_ws_access_refused", "Connections and requests that were not let in", "reason", refused)

    def _sessions(self) -> Iterator[Metric]:
        tally = self.listener.tally
        yield GaugeMetricFamily("asr_ws_sessions", "Open sessions", self.listener.n_sessions)
        yield CounterMetricFamily("asr_ws_sessions", "Sessions that were opened", tally.n_sessions)
        yield _counter("asr_ws_utterances", "Utterances, by their outcome", "outcome", tally.outcomes())
        yield _counter("asr_ws_audio_seconds", "Audio, by what became of it", "fate", tally.audio_s())
        requests = CounterMetricFamily(
            "asr_ws_http_requests", "HTTP requests, WebSocket handshakes included", labels=["route", "status"]
        )
        for (route, status), n in self.listener.http.requests.items():
            requests.add_metric([route, str(status)], n)
        yield requests
        jobs = GaugeMetricFamily("asr_ws_jobs", "HTTP jobs that are kept, by their status", labels=["status"])
        for job_status, n in self.jobs.counts.items():
            jobs.add_metric([job_status.value], n)
        yield jobs

    def _decodes(self) -> Iterator[Metric]:
        metrics, worker = self._metrics, self._worker
        decode_s = HistogramMetricFamily("asr_ws_decode_seconds", "Decodes that succeeded", labels=["kind"])
        for kind, histogram in metrics.decode_s.items():
            decode_s.add_metric([kind], *_buckets(histogram))
        yield decode_s
        yield _histogram("asr_ws_final_latency_seconds", "From the end of speech to the final", metrics.final_latency_s)
        yield _histogram(
            "asr_ws_first_partial_seconds", "From the onset of speech to the first partial", metrics.first_partial_s
        )
        yield CounterMetricFamily("asr_ws_partials", "Partials that were sent", metrics.partials)
        speculations = {"promoted": metrics.finals_speculated, "wasted": self._dispatcher.drafts.n_wasted}
        yield _counter("asr_ws_speculations", "Decodes begun before the endpoint", "outcome", speculations)
        yield GaugeMetricFamily(
            "asr_ws_max_concurrent_decodes", "The most decodes that ever ran at once", worker.max_concurrent_decodes
        )
        failures = {error.code: 0 for error in (DecodeFailed, WorkerDied, WorkerHung)} | metrics.decode_failures
        yield _counter("asr_ws_decode_failures", "Decodes that failed", "code", failures)
        restarts = dict.fromkeys(worker.causes, 0) | worker.restarts
        up = self._dispatcher.queue.worker_state is ServiceState.READY
        yield GaugeMetricFamily("asr_ws_worker_up", "Whether the model's process can decode", up)
        yield _counter("asr_ws_worker_restarts", "Starts after an end, by what ended it", "cause", restarts)
        # Without a value where there is nothing to measure.
        yield GaugeMetricFamily("asr_ws_worker_resident_bytes", "Memory of the model's process", worker.resident_bytes)
        yield GaugeMetricFamily("asr_ws_worker_load_seconds", "The latest load, from start to ready", worker.load_s)

    def _process(self) -> Iterator[Metric]:
        lag_s = self._metrics.loop_lag_s
        yield _histogram("asr_ws_event_loop_lag_seconds", "By how much the event loop's timer came late", lag_s)
        yield CounterMetricFamily("asr_ws_log_records_dropped", "Log lines that nobody read in time", log.dropped())
        build = {"version": __version__, "python_version": platform.python_version()}
        yield InfoMetricFamily("asr_ws_build", "What runs here", build)


def _counter(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, help, labels=[label])
    for value, n in values.items():
        family.add_metric([str(value)], n)
    return family


def _histogram(name: str, help: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(name, help)
    family.add_metric([], *_buckets(histogram))
    return family


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative, as Prometheus wants them."""
    bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.sum_s
