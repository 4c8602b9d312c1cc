"""Dashboard and alerts, held to what a live server exposes; and promtool's own checks, where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from asr_ws.worker.supervisor import WorkerSpec
from tests.server.running import get, serving

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "asr_ws.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
[GROUP] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text("utf-8"))["groups"]
RULES = GROUP["rules"]
EVERYWHERE = {"job", "instance"}  # Prometheus adds them
Exposed = dict[str, dict[str, set[str]]]
"""Values by label, by the sample's name."""


def queries() -> Iterator[tuple[str, str]]:
    """Where it stands, and the query."""
    for panel in PANELS:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from ((rule["alert"], rule["expr"]) for rule in RULES)
    for variable in DASHBOARD["templating"]["list"]:
        yield variable["name"], re.sub(r"label_values\((\w+), (\w+)\)", r"sum by (\2) (\1)", variable["query"])


def strange(query: str, exposed: Exposed) -> set[str]:
    """Metrics, labels and values of it that are not exposed."""
    names = set(re.findall(r"\basr_ws_\w+", query))
    known: dict[str, set[str]] = {label: set() for label in EVERYWHERE}
    for name in names:
        known |= exposed.get(name, {})
    used = {label for labels in re.findall(r"\bby \(([^)]*)\)", query) for label in labels.split(", ")}
    wrong = (names - set(exposed)) | (used - set(known))
    for name, matchers in re.findall(r"\b(asr_ws_\w+)\{([^}]*)\}", query):
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
            if label not in EVERYWHERE:
                wrong |= set(values.split("|")) - exposed.get(name, {}).get(label, set())
    return wrong


async def exposed_by(spec: WorkerSpec) -> Exposed:
    exposed: Exposed = {}
    async with serving(spec) as app:
        await get(app, "/livez")  # requests have labels once there was one
        _, body = await get(app, "/metrics")
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            labels = exposed.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return exposed


async def test_every_query_names_only_what_a_server_exposes(scripted: WorkerSpec) -> None:
    exposed = await exposed_by(scripted)
    assert {where: wrong for where, query in queries() if (wrong := strange(query, exposed))} == {}


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("sum by (reason, le) (rate(a_total[5m]))", {"reason", "le"}),
        ("rate(asr_ws_decode_seconds_total[5m])", {"asr_ws_decode_seconds_total"}),
        ('asr_ws_jobs{status=~"queued|lost", instance=~"$instance"}', {"lost"}),
        ("sum by (instance, status) (asr_ws_jobs)", set()),
    ],
)
def test_strange_names_are_found(query: str, wrong: set[str]) -> None:
    assert strange(query, {"asr_ws_jobs": {"status": {"queued", "running"}}}) == wrong


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_has_a_title_a_unit_words_and_queries(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert [target["expr"] for target in panel["targets"] if target["expr"]]


def test_no_two_panels_have_one_id_or_one_place() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (place["x"] + dx, place["y"] + dy) for place in places for dx in range(place["w"]) for dy in range(place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
    assert rule["annotations"]["description"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool, of Prometheus")
@pytest.mark.parametrize("check", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts.test.yml")])
def test_promtool_accepts_them(tmp_path: Path, check: tuple[str, ...]) -> None:
    for file in PROMETHEUS.glob("*.yml"):
        (tmp_path / file.name).write_text(file.read_text("utf-8").replace("/run/secrets/prometheus_token", "token"))
    (tmp_path / "token").touch()  # which it looks for
    done = subprocess.run(["promtool", *check], cwd=tmp_path, text=True, stdout=-1, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert f"{len(RULES)} rules found" in done.stdout or "Unit Testing" in done.stdout
