"""All checks together, and the deadline of one."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from asr_ws.config import DEFAULTS, Settings
from asr_ws.doctor import Finding, Status, answer, examine, failed, ok
from asr_ws.doctor.installation import QUESTIONS
from asr_ws.testing.recognizer import scripted_worker
from tests.server.running import settings


async def test_a_question_without_an_answer_is_a_failure() -> None:
    gate = threading.Event()

    def question(_: Settings) -> Finding:
        gate.wait()
        return ok("too late")

    assert await answer(question, DEFAULTS, 0.01) == failed("no answer within 0.01 s")
    gate.set()


async def test_a_question_that_raises_is_a_failure_of_its_own() -> None:
    def raising(_: Settings) -> Finding:
        raise OSError(5, "Input/output error")

    def slow(_: Settings) -> Finding:
        raise subprocess.TimeoutExpired([], 20.0)

    assert await answer(raising, DEFAULTS) == failed("OSError: [Errno 5] Input/output error")
    assert await answer(slow, DEFAULTS) == failed("no answer within 20 s")


async def test_a_crash_of_the_worker_is_one_failed_check(tmp_path: Path) -> None:
    told: list[tuple[str, Finding]] = []
    spec = scripted_worker(tmp_path, load="crash SEGV")
    found = await examine(settings(), spec, tell=lambda name, finding: told.append((name, finding)))
    assert list(found.items()) == told
    assert found["worker"].fact == "it crashed (SIGSEGV)"
    assert list(found)[-1] == "worker"


async def test_without_its_packages_nothing_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUESTIONS, "packages", lambda _: failed("not installed: structlog"))
    assert [(name, each.status) for name, each in (await examine(settings())).items()] == [
        ("python", Status.OK),
        ("packages", Status.FAILED),
    ]
