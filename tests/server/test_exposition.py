"""/metrics of a whole server with a scripted worker, read as Prometheus reads it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from asr_ws.client.http_frames import form
from asr_ws.core.access import AccessRefusal
from asr_ws.core.types import RefusalReason
from asr_ws.metrics import BOUNDS_S, Histogram
from asr_ws.server import exposition as exposition_module
from asr_ws.server.app import App, build
from asr_ws.server.exposition import Exposition, _buckets
from asr_ws.testing.recognizer import Gate
from asr_ws.worker.supervisor import WorkerSpec
from asr_ws.worker.system import Cause
from tests.conftest import SPEECH
from tests.server.running import MANUAL, SECOND, Client, get, serving, settings

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
PROMISED = """queue_depth queue_capacity in_flight_tasks queue_wait_seconds decode_seconds final_latency_seconds
first_partial_seconds sessions sessions_total utterances_total refusals_total audio_seconds_total decode_failures_total
worker_up worker_restarts_total worker_resident_bytes worker_load_seconds event_loop_lag_seconds
log_records_dropped_total http_requests_total jobs build_info"""  # the protocol's
OURS = ("access_refused_total", "background_depth", "max_concurrent_decodes", "partials_total", "speculations_total")
STANDARD = "process_resident_memory_bytes"
Samples = dict[tuple[str, ...], float]


async def scrape(app: App) -> dict[str, Samples]:
    """Values by sample name and label values, `le` excluded."""
    status, body = await get(app, "/metrics")
    assert status == 200
    samples: dict[str, Samples] = {}
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            labels = tuple(value for name, value in sample.labels.items() if name != "le")
            samples.setdefault(sample.name, {})[labels] = sample.value
    return samples


def exposition_of(app: App) -> Exposition:
    return app.listener.http._pages["/metrics"].__self__  # type: ignore[attr-defined,no-any-return]


async def test_what_happened_is_exposed(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        async with Client(app) as client:
            await client.send({**MANUAL, "prompt": "say hello"}, SECOND, {"type": "commit"}, SECOND, {"type": "end"})
            assert await client.rest() == 1000
        async with Client(app) as client:
            await client.send({**MANUAL, "prompt": "crash SEGV"}, SECOND, {"type": "commit"})
            assert (await client.until("error"))["code"] == "poison_audio"
            await client.until("state", state="ready")
            assert (await get(app, "/nowhere?at=all"))[0] == 404
            seen = await scrape(app)
    assert seen["asr_ws_sessions"] == {(): 1}
    assert seen["asr_ws_sessions_total"] == {(): 2}
    assert seen["asr_ws_utterances_total"] == {("final",): 2, ("error",): 1, ("dropped",): 0}
    assert seen["asr_ws_audio_seconds_total"] == {("decoded",): 2, ("refused",): 1, ("silence",): 0, ("lost",): 0}
    assert seen["asr_ws_refusals_total"] == {(reason,): 0 for reason in RefusalReason}
    assert seen["asr_ws_access_refused_total"] == {(reason,): 0 for reason in AccessRefusal}
    assert seen["asr_ws_decode_failures_total"] == {("worker_crashed",): 2, ("worker_hung",): 0, ("decode_failed",): 0}
    assert seen["asr_ws_decode_seconds_count"] == {("final",): 2, ("partial",): 0, ("job",): 0}
    assert seen["asr_ws_queue_wait_seconds_count"] == {(): 2}
    assert seen["asr_ws_final_latency_seconds_count"] == {(): 2}
    assert seen["asr_ws_worker_restarts_total"] == {(cause,): 2 if cause == "segv" else 0 for cause in Cause}
    assert (seen["asr_ws_worker_up"], seen["asr_ws_queue_depth"], seen["asr_ws_queue_capacity"]) == (
        {(): 1},
        {(): 0},
        {(): 3},
    )
    assert seen["asr_ws_http_requests_total"] == {("/v1/stream", "101"): 2, ("other", "404"): 1}
    assert seen["asr_ws_worker_resident_bytes"][()] > 1e6
    assert seen["asr_ws_worker_load_seconds"][()] > 0


async def test_names_types_and_labels_are_those_of_the_reference(scripted: WorkerSpec) -> None:
    rows = re.findall(r"^### `(\w+)`\n\n(\w+)(?: by (.*?))?\. ", REFERENCE.read_text("utf-8"), flags=re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(
        (*(f"asr_ws_{name}" for name in (*PROMISED.split(), *OURS)), STANDARD)
    )
    async with serving(scripted) as app:
        app.supervisor.restarts["segv"] += 1  # labels are seen on a value only
        await get(app, "/livez")
        _, body = await get(app, "/metrics")
    body = re.sub(r"^(# \w+ )?process_(?!resident).*\n", "", body, flags=re.MULTILINE)  # told of in one place
    assert dict(re.findall(r"^# TYPE (\w+) (\w+)$", body, flags=re.MULTILINE)) == {
        name: kind.lower() for name, kind, _ in rows
    }
    labels = {
        re.sub("_(bucket|sum|count)$", "", sample.name): set(sample.labels) - {"le"}
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }
    assert labels == {name: set(re.findall(r"`(\w+)`", described)) for name, _, described in rows}
    [refused] = re.findall(r"`asr_ws_access_refused_total`\n\nCounter by `reason`\.(.*)", REFERENCE.read_text("utf-8"))
    assert set(re.findall(r"`(\w+)`", refused)) == set(AccessRefusal)


async def test_storm_of_scrapes_renders_once_a_second(scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    n_rendered = 0
    generate_latest = exposition_module.generate_latest

    def count(collector: Any) -> bytes:
        nonlocal n_rendered
        n_rendered += 1
        return generate_latest(collector)

    monkeypatch.setattr(exposition_module, "generate_latest", count)
    async with serving(scripted, ready=False) as app:
        now = 1000.0
        exposition_of(app)._clock = lambda: now
        for _ in range(20):
            pages = await asyncio.gather(*(get(app, "/metrics") for _ in range(10)))
            assert {status for status, _ in pages} == {200}
        assert n_rendered == 1
        now = 1000.999
        await get(app, "/metrics")
        assert n_rendered == 1
        now = 1001.0
        await get(app, "/metrics")
        assert n_rendered == 2
        assert app.listener.http.requests == {("/metrics", 200): 202}


async def test_labels_are_ours_whatever_clients_ask_for(scripted: WorkerSpec) -> None:
    async with serving(scripted, ready=False) as app:
        for n in range(20):
            await get(app, f"/{n}/metrics?{n}")
            await get(app, f"/livez?{n}")
        await get(app, "/livez", "OPTIONS")
        await get(app, "/v1/stream/")
        assert app.listener.http.requests == {("other", 404): 21, ("/livez", 200): 20, ("/livez", 405): 1}


async def test_worker_that_is_not_there_has_no_size(scripted: WorkerSpec) -> None:
    app = build(settings(), scripted)  # which does not run yet
    _, _, body = exposition_of(app).page()
    values = [line for line in body.splitlines() if line.startswith("asr_ws_worker_") and "{" not in line]
    assert values == ["asr_ws_worker_up 0.0"]


def test_buckets_are_cumulative_and_end_with_all() -> None:
    histogram = Histogram()
    for seconds in (0.0005, 0.0015, 0.0015, 99.0):
        histogram.observe(seconds)
    buckets, sum_s = _buckets(histogram)
    assert (buckets[:3], buckets[-2:]) == ([("0.001", 1), ("0.002", 3), ("0.005", 3)], [("30.0", 3), ("+Inf", 4)])
    assert (len(buckets), sum_s) == (len(BOUNDS_S) + 1, pytest.approx(99.0035))


async def test_jobs_are_counted_also_while_one_is_being_done(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with serving(scripted, state_dir=str(tmp_path)) as app, Gate() as gate:
        for _ in range(2):
            await asyncio.to_thread(post_job, app, gate.script)
        await gate.entered()
        seen = await scrape(app)
    assert seen["asr_ws_jobs"] == {
        ("queued",): 1,
        ("running",): 1,
        ("succeeded",): 0,
        ("failed",): 0,
        ("cancelled",): 0,
    }
    assert seen["asr_ws_http_requests_total"] == {("/v1/jobs", "202"): 2}


def post_job(app: App, prompt: str) -> None:
    framed = form({"prompt": prompt}, "jfk.wav", "boundary")
    body = framed.head + (SPEECH / "jfk.wav").read_bytes() + framed.tail
    request = Request(f"{app.listener.url}/v1/jobs", body, {"Content-Type": framed.content_type})
    with urlopen(request, timeout=30) as response:
        assert response.status == 202
