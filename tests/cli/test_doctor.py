from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asr_ws.cli import main
from asr_ws.doctor import Finding, failed, ok, warning


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *args], prog_name="asr-ws")
    return int(caught.value.code or 0)


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def finds(**findings: Finding) -> None:
        async def examine(settings: Any, *, begin: Any, tell: Any) -> dict[str, Finding]:
            for name, finding in findings.items():
                begin(name)
                tell(name, finding)
            return findings

        monkeypatch.setattr("asr_ws.doctor.examine", examine)

    return finds


def test_a_check_is_a_line_into_a_pipe_and_a_hint_another(
    finds: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    finds(python=ok("3.11 " * 40), cores=warning("all busy", "wait"), port=failed("taken"))
    assert run() == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "ok       python        " + ("3.11 " * 40).strip(),
        "warning  cores         all busy",
        "                       hint: wait",
        "failed   port          taken",
        "",
        "1 failed, 1 warning",
    ]
    assert err == ""


@pytest.mark.parametrize(
    ("found", "last"),
    [
        ({"cores": warning("busy", "wait"), "port": warning("taken", "wait")}, "2 warnings"),
        ({"port": ok("free")}, "all is well"),
    ],
)
def test_warnings_are_no_failure(
    found: dict[str, Finding], last: str, finds: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    finds(**found)
    assert run() == 0
    assert capsys.readouterr().out.endswith(f"\n\n{last}\n")


def test_json_is_one_object(finds: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    finds(cores=warning("all busy", "wait", load=3.5), port=failed("taken"))
    assert run("--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "checks": [
            {"name": "cores", "status": "warning", "fact": "all busy", "hint": "wait", "load": 3.5},
            {"name": "port", "status": "failed", "fact": "taken", "hint": ""},
        ],
    }


def test_a_wrong_setting_is_a_wrong_call() -> None:
    assert run("--port", "70000") == 2


@pytest.mark.model
def test_the_real_model_is_tried(tiny_en: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--model", "tiny.en", "--port", "0") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    checks = {check["name"]: check for check in found["checks"]}
    assert [name for name, check in checks.items() if check["status"] == "failed"] == []
    assert [each["audio_s"] for each in checks["decode"]["decodes"]] == [2.0, 5.0, 10.0]
    assert all(each["decode_ms"] > 0 for each in checks["decode"]["decodes"])
    assert checks["memory"]["worker_mb"] > 50
