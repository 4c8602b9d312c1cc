"""What Dockerfile, compose files and systemd's unit say of the program, held to the program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from asr_ws.cli import COMMANDS
from asr_ws.config import DEFAULTS, NOT_SETTINGS, SETTINGS
from asr_ws.server.app import GRACE_S, LAST_WORDS_S
from asr_ws.server.watch import WatchLimits
from asr_ws.worker.supervisor import ENDING_LIMIT_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
UNIT_FILE = DEPLOY / "asr-ws.service"
UNIT = dict(re.findall(r"^(\w+)=(.*)$", UNIT_FILE.read_text("utf-8"), flags=re.MULTILINE))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TEXTS = [path for path in (*DEPLOY.rglob("*"), ROOT / "docs" / "howto" / "deploy.md") if path.is_file()]
PORT = DEFAULTS.listen.port


def in_dockerfile(instruction: str) -> list[str]:
    [last] = re.findall(rf"^{instruction} (.*)$", DOCKERFILE, flags=re.MULTILINE)[-1:]
    words: list[str] = json.loads(last[last.index("[") :]) if "[" in last else last.split()
    return words


def environment() -> dict[str, str]:
    return dict(re.findall(r"^(?:ENV)? +(\w+)=(\S+)", DOCKERFILE, flags=re.MULTILINE))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_of_our_variables_is_a_setting_and_each_extra_is_there(path: Path) -> None:
    text = path.read_text("utf-8")
    known = {setting.variable for setting in SETTINGS} | set(NOT_SETTINGS)
    assert set(re.findall(r"ASR_WS_[A-Z_]+", text)) - known - {"ASR_WS_NAME"} == set()
    extras = {extra for extras in re.findall(r"EXTRAS[=:] ?\"?([a-z,]+)", text) for extra in extras.split(",")}
    assert extras - set(PROJECT["project"]["optional-dependencies"]) == set()


@pytest.mark.parametrize(
    "call",
    [
        in_dockerfile("CMD"),
        in_dockerfile("HEALTHCHECK")[1:],
        UNIT["ExecStart"].split()[1:],
        *(SERVICES[name]["command"] for name in ("pull", "asr-ws")),
    ],
    ids=" ".join,
)
def test_each_call_of_the_program_is_one_that_it_takes(call: list[str]) -> None:
    name, *arguments = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in call]
    module, function = COMMANDS[name][0].split(":")
    command: click.Command = getattr(import_module(module), function)
    command.make_context(name, arguments)  # raises for what it does not know


def test_the_image_starts_the_program_and_asks_it_for_its_health() -> None:
    assert in_dockerfile("ENTRYPOINT") == ["asr-ws"]
    assert in_dockerfile("HEALTHCHECK") == ["asr-ws", "health"]
    assert in_dockerfile("STOPSIGNAL") == ["SIGTERM"]
    assert in_dockerfile("USER") == ["10001:10001"]


def test_ports_are_the_servers_and_published_to_this_machine_only() -> None:
    assert in_dockerfile("EXPOSE") == [str(PORT)]
    assert SERVICES["asr-ws"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert {port.split(":")[0] for service in SERVICES.values() for port in service.get("ports", [])} == {"127.0.0.1"}
    [scraped] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": [f"asr-ws:{PORT}"]}]


def test_what_is_kept_is_in_a_volume() -> None:
    kept = [environment()["ASR_WS_CACHE_DIR"], environment()["ASR_WS_STATE_DIR"]]
    assert in_dockerfile("VOLUME") == kept
    assert [volume.split(":")[1] for volume in SERVICES["asr-ws"]["volumes"]] == kept
    assert SERVICES["pull"]["volumes"] == SERVICES["asr-ws"]["volumes"][:1]
    assert all(folder in UNIT_FILE.read_text("utf-8") for folder in kept)


def test_a_drain_is_let_finish_and_a_stuck_loop_writes_its_stacks_before_it_is_killed() -> None:
    longest_s = GRACE_S + LAST_WORDS_S + ENDING_LIMIT_S
    assert int(UNIT["TimeoutStopSec"]) > longest_s
    assert int(SERVICES["asr-ws"]["stop_grace_period"].removesuffix("s")) > longest_s
    assert int(UNIT["WatchdogSec"]) > 2 * WatchLimits().dump_s


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "asr_ws.yml").read_text("utf-8"))["providers"]
    assert source["url"] == "http://prometheus:" + SERVICES["prometheus"]["ports"][0].split(":")[-1]
    folders = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert folders["./grafana/dashboards"] == provider["options"]["path"]
    assert (DEPLOY / "grafana" / "dashboards" / "asr_ws.json").is_file()


def test_what_the_package_is_made_of_is_not_ignored() -> None:
    let_in = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text("utf-8"), flags=re.MULTILINE)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = PROJECT["project"]
    needed = [*wheel["packages"], *wheel["force-include"], project["readme"], *project["license-files"]]
    assert [path for path in needed if not any(f"{path}/".startswith(f"{each}/") for each in let_in)] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_accepts_the_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    unit = tmp_path / UNIT_FILE.name
    program = UNIT["ExecStart"].split()[0]
    unit.write_text(UNIT_FILE.read_text("utf-8").replace(program, sys.executable))  # which must be there
    verify = ["systemd-analyze", "verify", "--man=no", str(unit)]
    verified = subprocess.run(verify, text=True, stdout=-1, stderr=subprocess.STDOUT)
    said = [line for line in verified.stdout.splitlines() if unit.name in line]  # others' units may be named too
    assert (verified.returncode, said) == (0, [])
    judged = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", str(unit)]  # of 100, which is exposed
    assert subprocess.run(judged, stdout=subprocess.DEVNULL).returncode == 0
