"""The supervisor against really spawned children."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asr_ws.core.partials import PartialText
from asr_ws.core.types import DecodeOptions, ServiceState
from asr_ws.errors import DecodeFailed, WorkerDied
from asr_ws.testing.recognizer import Gate, scripted_worker
from asr_ws.worker import supervisor as module
from asr_ws.worker.supervisor import Supervisor, WorkerSpec, backoff_s, cause_of

SAMPLES = np.zeros(1600, dtype=np.float32)


class Watched:
    """A running supervisor and the states it has told."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.told: list[ServiceState] = []
        self.self_tests: list[tuple[float, float]] = []
        self._changed = asyncio.Condition()
        self.supervisor = Supervisor(
            spec,
            on_state=self._tell,
            on_self_test=lambda audio_s, decode_s: self.self_tests.append((audio_s, decode_s)),
        )
        self._new = asyncio.Event()

    def _tell(self, state: ServiceState, ready_in_s: float) -> None:
        assert ready_in_s >= 0
        self.told.append(state)
        self._new.set()

    async def until(self, state: ServiceState) -> None:
        """Until the state told last is this one."""
        while not self.told or self.told[-1] is not state:
            self._new.clear()
            await self._new.wait()

    async def decode(self, script: str = "", *, partial: bool = False) -> str:
        options = DecodeOptions("en", prompt=script, partial=partial, prefix="country" if partial else "")
        return (await self.supervisor.decode(SAMPLES, options)).text.strip()


@asynccontextmanager
async def supervised(spec: WorkerSpec) -> AsyncIterator[Watched]:
    watched = Watched(spec)
    task = asyncio.create_task(watched.supervisor.run())
    try:
        async with asyncio.timeout(60):
            yield watched
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_worker_becomes_ready_after_its_self_test(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        assert watched.told == [ServiceState.STARTING, ServiceState.READY]
        assert watched.supervisor.loaded is not None
        assert watched.supervisor.loaded.device == "cpu"
        [(audio_s, _)] = watched.self_tests
        assert audio_s == 11.0


async def test_decodes_follow_one_another_in_the_same_process(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        pid = watched.supervisor.pid
        assert [await watched.decode("say one"), await watched.decode()] == ["one", "country 1600"]
        assert watched.supervisor.pid == pid
        assert watched.supervisor.max_concurrent_decodes == 1


async def test_what_the_spec_says_reaches_the_recognizer(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "from asr_ws.testing.recognizer import ScriptedRecognizer",
        "class Telling(ScriptedRecognizer):",
        "    def __init__(self, model, **given):",
        "        super().__init__(model, **given)",
        "        self.compute_type = repr(given)",
    ]
    (tmp_path / "telling.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    spec = WorkerSpec(scripted.model, "cpu", "int8", 3, "full", recognizer="telling:Telling")
    async with supervised(spec) as watched:
        await watched.until(ServiceState.READY)
        given = {"device": "cpu", "compute_type": "int8", "cpu_threads": 3, "encoder_window": "full"}
        assert watched.supervisor.loaded is not None
        assert watched.supervisor.loaded.compute_type == repr(given)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_a_script_can_be_for_partials_only(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        for script in ("crash-partial SEGV", "raise-partial no such luck"):
            assert await watched.decode(script) == "country 1600"
        assert await watched.decode(partial=True) == "country 1600"
        with pytest.raises(DecodeFailed, match="no such luck"):
            await watched.decode("raise-partial no such luck", partial=True)
        with pytest.raises(WorkerDied, match="segv"):
            await watched.decode("crash-partial SEGV", partial=True)


async def test_text_keeps_the_blank_that_parts_it_from_a_prefix(scripted: WorkerSpec) -> None:
    """Regression: it was stripped, and partials said "And somy fellow"."""
    text = PartialText()
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        for said in ("And so my", "And so my fellow", "fellow Americans"):
            options = DecodeOptions("en", prompt=f"say {said}", partial=True, prefix=text.stable)
            text.receive((await watched.supervisor.decode(SAMPLES, options)).text)
    assert (text.stable, text.unstable) == ("And so my fellow", " Americans")


async def test_decode_that_raises_leaves_the_worker_alive(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        with pytest.raises(DecodeFailed, match="RuntimeError: no such luck"):
            await watched.decode("raise no such luck")
        assert await watched.decode("say fine") == "fine"
        assert watched.supervisor.n_restarts == 0


async def test_native_prints_do_not_corrupt_the_framing(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        assert await watched.decode("print loading cuDNN...\n") == "country 1600"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("signal_name", "cause"), [("SEGV", "segv"), ("ABRT", "abrt"), ("KILL", "killed")])
async def test_death_in_mid_decode_is_told_by_its_cause_and_healed(
    scripted: WorkerSpec, signal_name: str, cause: str
) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        pid = watched.supervisor.pid
        with pytest.raises(WorkerDied) as died:
            await watched.decode(f"crash {signal_name}")
        assert died.value.cause == cause
        assert watched.told[-1] is ServiceState.RESTARTING, "the state changes before the decode's caller learns"
        await watched.until(ServiceState.READY)
        assert watched.supervisor.pid != pid
        assert watched.supervisor.n_restarts == 1
        assert await watched.decode("say back") == "back"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_idle_worker_that_is_killed_is_replaced_without_traffic(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        assert watched.supervisor.pid is not None
        os.kill(watched.supervisor.pid, signal.SIGKILL)
        await watched.until(ServiceState.RESTARTING)
        await watched.until(ServiceState.READY)


async def test_three_failed_starts_make_it_unavailable_and_it_goes_on_trying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "backoff_s", lambda n_deaths: 0.0)
    spec = scripted_worker(tmp_path, load="raise CUDA out of memory")
    async with supervised(spec) as watched:
        await watched.until(ServiceState.UNAVAILABLE)
        assert watched.told == [ServiceState.STARTING] * 3 + [ServiceState.UNAVAILABLE]
        scripted_worker(tmp_path)  # the operator has freed the memory
        await watched.until(ServiceState.READY)


async def test_process_that_cannot_be_started_is_a_failed_start_like_any_other(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, a lack of file descriptors at a restart ended the server."""
    spawn, refused = asyncio.create_subprocess_exec, []

    async def refuse_once(*args: Any, **options: Any) -> asyncio.subprocess.Process:
        if not refused:
            refused.append(args)
            raise OSError(24, "Too many open files")
        return await spawn(*args, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse_once)
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        assert watched.supervisor.n_restarts == 1
        assert "Too many open files" in watched.supervisor.last_failure


async def test_failure_that_trying_again_cannot_help_is_not_retried(scripted: WorkerSpec) -> None:
    spec = replace(scripted, recognizer="asr_ws.testing.recognizer:NoSuchRecognizer")
    watched = Watched(spec)
    async with asyncio.timeout(60):
        await watched.supervisor.run()  # returns by itself
    assert watched.told == [ServiceState.STARTING, ServiceState.UNAVAILABLE]
    assert watched.supervisor.n_restarts == 0


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill(pid, 0) asks nothing there")
async def test_worker_does_not_outlive_its_supervisor(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        pid = watched.supervisor.pid
        assert pid is not None
        assert is_alive(pid)
    assert not is_alive(pid)


async def test_worker_ends_when_its_input_does_even_in_mid_decode(scripted: WorkerSpec) -> None:
    async with Gate() as gate, supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        decode = asyncio.create_task(watched.decode(gate.script))
        await gate.entered()
        life = watched.supervisor._life
        assert life is not None
        assert life.process.stdin is not None
        life.process.stdin.close()  # as when the server is killed
        with pytest.raises(WorkerDied, match="exit_0"):
            await decode


async def test_completed_decode_makes_the_next_death_the_first_again(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        for _ in range(2):  # were they two in a row, the second restart would wait
            with pytest.raises(WorkerDied):
                await watched.decode("crash ABRT")
            assert watched.supervisor._n_deaths == 1
            await watched.until(ServiceState.READY)
            await watched.decode()
            assert watched.supervisor._n_deaths == 0


def test_backoff_grows_from_nothing_to_its_limit() -> None:
    def middle(low: float, high: float) -> float:
        return (low + high) / 2

    delays = [backoff_s(n_deaths, middle) for n_deaths in (1, 2, 3, 4, 5, 9, 5000)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 30.0, 30.0]


@pytest.mark.parametrize(
    ("returncode", "cause"),
    [
        (-11, "segv"),
        (-6, "abrt"),
        (-9, "killed"),
        (-4, "illegal_instruction"),
        (-15, "term"),
        (-200, "signal_200"),
        (3, "exit_3"),
        (0, "exit_0"),
        (0xC0000005, "segv"),
        (0xC0000409, "abrt"),
        (0xC0000135, "missing_dll"),
    ],
)
def test_exit_status_is_mapped_to_a_cause(returncode: int, cause: str) -> None:
    assert cause_of(returncode) == cause
