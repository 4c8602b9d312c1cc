"""Whether a server with these settings would run well on this machine: a `Finding` for each question.

- Nothing stays: what is written to try a folder is gone at once, a port is bound for a moment and never listened on.
- What has native code that may crash, or hang, is asked in a process of its own; the recognizer is the server's own
  worker process, under its own supervisor.
- Every question has a deadline.
- What was seen and what it means are functions apart: the second are pure.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from asr_ws.config import Settings

if TYPE_CHECKING:
    from asr_ws.worker.supervisor import WorkerSpec

QUESTION_S: Final = 30.0  # the longest takes two: a process that imports the recognizer's libraries from a cold disk
PROBE_S: Final = 20.0  # a process that is asked, within that
TRIAL_S: Final = 300.0  # the worker: a large model's load, and its first decodes


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it runs, but
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """Attributes: numbers: the fact's, for programs; names have units."""

    status: Status
    fact: str
    hint: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)


def ok(fact: str, **numbers: Any) -> Finding:
    return Finding(Status.OK, fact, "", numbers)


def warning(fact: str, hint: str, **numbers: Any) -> Finding:
    return Finding(Status.WARNING, fact, hint, numbers)


def failed(fact: str, hint: str = "", **numbers: Any) -> Finding:
    return Finding(Status.FAILED, fact, hint, numbers)


Question = Callable[[Settings], Finding]  # blocking


async def examine(
    settings: Settings,
    spec: WorkerSpec | None = None,
    *,
    begin: Callable[[str], object] = lambda what: None,
    tell: Callable[[str, Finding], object] = lambda name, finding: None,
) -> dict[str, Finding]:
    """All findings, by the check's name. What cannot be asked, because of one that failed, is left out.

    Args:
        spec: the worker to try, where it is not the one that the settings name.
        begin: told what is looked at next.
        tell: told each finding as it comes.
    """
    found: dict[str, Finding] = {}

    async def ask(questions: Mapping[str, Question]) -> None:
        for name, question in questions.items():
            begin(name)
            found[name] = await answer(question, settings)
            tell(name, found[name])

    from asr_ws.doctor import installation

    await ask(installation.QUESTIONS)
    if found["packages"].status is Status.FAILED:
        return found

    from asr_ws.doctor import machine, reach, trial  # only now: they import those packages

    await ask(reach.questions(settings) | machine.QUESTIONS | trial.QUESTIONS)
    if spec is None:
        if any(found[name].status is Status.FAILED for name in trial.QUESTIONS):
            return found
        from asr_ws.server.app import worker_spec  # which loads what the detector needs

        spec = worker_spec(settings)
    begin(f"the worker, which loads {settings.model.model} and decodes")
    tried = await trial.tried(spec, has_cuda=found["engine"].numbers.get("cuda_devices", 0) > 0)
    for name, finding in trial.findings(tried, settings).items():
        found[name] = finding
        tell(name, finding)
    return found


async def answer(question: Question, settings: Settings, within_s: float = QUESTION_S) -> Finding:
    """In a thread that a disk or a driver which never answers does not let live on."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Finding] = loop.create_future()

    def tell(finding: Finding) -> None:
        if not answered.done():
            answered.set_result(finding)

    def ask() -> None:
        try:
            finding = question(settings)
        except subprocess.TimeoutExpired as error:
            finding = failed(f"no answer within {error.timeout:g} s")
        except Exception as error:  # the boundary of one check: the others are as good as before
            finding = failed(f"{type(error).__name__}: {error}")
        with suppress(RuntimeError):  # it came too late: the loop is closed
            loop.call_soon_threadsafe(tell, finding)

    threading.Thread(target=ask, name="question", daemon=True).start()
    try:
        async with asyncio.timeout(within_s):
            return await answered
    except TimeoutError:
        return failed(f"no answer within {within_s:g} s")


def probe(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask a Python process of its own. Raises: subprocess.TimeoutExpired."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=PROBE_S,
    )
