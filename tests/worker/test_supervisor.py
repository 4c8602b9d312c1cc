"""The supervisor against really spawned children."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from structlog.testing import capture_logs

from asr_ws.core.partials import PartialText
from asr_ws.core.types import DecodeOptions, Hypothesis, ServiceState
from asr_ws.errors import DecodeFailed, WorkerDied, WorkerHung
from asr_ws.testing.recognizer import Gate, scripted_worker
from asr_ws.worker import supervisor as module
from asr_ws.worker.process import ENVIRONMENT
from asr_ws.worker.supervisor import Limits, Supervisor, WorkerSpec, backoff_s
from asr_ws.worker.system import Cause
from benchmarks.recovery import shared_memory
from benchmarks.served import is_running

SAMPLES = np.zeros(1600, dtype=np.float32)


class Watched:
    """A running supervisor and the states it has told."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.told: list[ServiceState] = []
        self.self_tests: list[tuple[float, float]] = []
        self.supervisor = Supervisor(
            spec,
            on_state=self._tell,
            on_self_test=lambda audio_s, decode_s: self.self_tests.append((audio_s, decode_s)),
        )
        self._new = asyncio.Event()

    def _tell(self, state: ServiceState, ready_in_s: float) -> None:
        assert ready_in_s >= 0
        self.ready_in_s = ready_in_s
        self.told.append(state)
        self._new.set()

    async def until(self, state: ServiceState) -> None:
        """Until the state told last is this one."""
        while not self.told or self.told[-1] is not state:
            self._new.clear()
            await self._new.wait()

    async def decode(self, script: str = "", *, partial: bool = False) -> str:
        return (await self.hypothesis(script, partial=partial)).text.strip()

    async def hypothesis(self, script: str = "", *, partial: bool = False) -> Hypothesis:
        options = DecodeOptions("en", prompt=script, partial=partial, prefix="country" if partial else "")
        return await self.supervisor.decode(SAMPLES, options, 0.0)


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


def importable(name: str, lines: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a module for workers."""
    (folder / f"{name}.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(folder))


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


async def test_libraries_are_told_by_the_environment_unless_the_user_has(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        assert watched.supervisor.pid is not None
        seen = psutil.Process(watched.supervisor.pid).environ()
    assert {name: seen[name] for name in ENVIRONMENT} == {**ENVIRONMENT, "OMP_WAIT_POLICY": "active"}


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
    importable("telling", lines, tmp_path, monkeypatch)
    spec = WorkerSpec(scripted.model, "cpu", "int8", 3, "full", recognizer="telling:Telling")
    async with supervised(spec) as watched:
        await watched.until(ServiceState.READY)
        given = {"device": "cpu", "compute_type": "int8", "cpu_threads": 3, "encoder_window": "full"}
        assert watched.supervisor.loaded is not None
        assert watched.supervisor.loaded.compute_type == repr(given)


@pytest.mark.parametrize(
    "what",
    [
        "(replace(each, avg_logprob=float('nan')) for each in transcription), 'en', 1.0",
        "transcription, 'en', float('inf')",
        "iter(()), 'en', float('nan')",
    ],
)
async def test_numbers_that_are_none_fail_the_decode_and_leave_the_worker_alive(
    what: str, scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "from dataclasses import replace",
        "from asr_ws.testing.recognizer import ScriptedRecognizer",
        "from asr_ws.worker.recognizer import FilteredTranscription",
        "class Overflowing(ScriptedRecognizer):",
        "    def transcribe(self, samples, options):",
        "        transcription = super().transcribe(samples, options)",
        "        if not options.prompt:",
        "            return transcription",
        f"        return FilteredTranscription({what})",
    ]
    importable("overflowing", lines, tmp_path, monkeypatch)
    async with supervised(replace(scripted, recognizer="overflowing:Overflowing")) as watched:
        await watched.until(ServiceState.READY)
        with pytest.raises(DecodeFailed) as failed:
            await watched.decode("say one")
        assert str(failed.value) == "ArithmeticError: the model's numbers are not finite"  # its text is nobody's
        assert await watched.decode() == "country 1600"
        assert watched.supervisor.n_restarts == 0


async def test_modules_are_looked_for_where_the_server_would(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the worker ran in another folder, and a relative PYTHONPATH meant another one."""
    lines = ["from asr_ws.testing.recognizer import ScriptedRecognizer as Here"]
    importable("found_here", lines, tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    async with supervised(replace(scripted, recognizer="found_here:Here")) as watched:
        await watched.until(ServiceState.READY)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
async def test_folder_that_the_server_was_started_in_may_go(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the model was named from there."""
    gone = tmp_path / "release"
    gone.mkdir()
    monkeypatch.chdir(gone)
    relative = Path("..") / scripted.model.relative_to(tmp_path)
    async with supervised(replace(scripted, model=relative)) as watched:
        await watched.until(ServiceState.READY)
        gone.rmdir()
        with pytest.raises(WorkerDied):
            await watched.decode("crash ABRT")
        await watched.until(ServiceState.READY)
        assert watched.supervisor.pid is not None
        assert psutil.Process(watched.supervisor.pid).cwd() == "/"
        monkeypatch.chdir(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_a_script_can_be_for_partials_only(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        for script in ("crash-partial SEGV", "raise-partial no such luck"):
            assert await watched.decode(script) == "country 1600"
        assert await watched.decode(partial=True) == "country 1600"
        with pytest.raises(DecodeFailed, match="no such luck"):
            await watched.decode("raise-partial no such luck", partial=True)
        with pytest.raises(WorkerDied):
            await watched.decode("crash-partial SEGV", partial=True)


async def test_text_keeps_the_blank_that_parts_it_from_a_prefix(scripted: WorkerSpec) -> None:
    """Regression: it was stripped, and partials said "And somy fellow"."""
    text = PartialText()
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        for said in ("And so my", "And so my fellow", "fellow Americans"):
            options = DecodeOptions("en", prompt=f"say {said}", partial=True, prefix=text.stable)
            text.receive((await watched.supervisor.decode(SAMPLES, options, 0.0)).text)
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
        with pytest.raises(WorkerDied):
            await watched.decode(f"crash {signal_name}")
        assert watched.told[-1] is ServiceState.RESTARTING, "the state changes before the decode's caller learns"
        await watched.until(ServiceState.READY)
        assert watched.supervisor.pid != pid
        assert watched.supervisor.restarts == {cause: 1}
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


async def test_failure_that_trying_again_cannot_help_is_not_retried(scripted: WorkerSpec) -> None:
    spec = replace(scripted, recognizer="asr_ws.testing.recognizer:NoSuchRecognizer")
    watched = Watched(spec)
    async with asyncio.timeout(60):
        await watched.supervisor.run()  # returns by itself
    assert watched.told == [ServiceState.STARTING, ServiceState.UNAVAILABLE]
    assert watched.supervisor.n_restarts == 0
    assert watched.ready_in_s > 600, "nobody knows when somebody does something"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_worker_does_not_outlive_its_supervisor(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        pid = watched.supervisor.pid
        assert pid is not None
        assert is_running(pid)
    assert not is_running(pid)


async def test_worker_ends_when_its_input_does_even_in_mid_decode(scripted: WorkerSpec) -> None:
    async with Gate() as gate, supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        decode = asyncio.create_task(watched.decode(gate.script))
        await gate.entered()
        assert watched.supervisor._process is not None
        watched.supervisor._process.stdin.close()  # as when the server is killed
        with pytest.raises(WorkerDied):
            await decode
        await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.EXITED: 1}


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


# ---------------------------------------------------------------- limits

IMPATIENT = Limits(start_s=60, decode_s=0.5, decode_estimates=0, first_decode_s=0, n_first_decodes=0)


async def test_what_hangs_is_ended_after_a_dump_of_its_stacks(scripted: WorkerSpec) -> None:
    """With the interpreter's lock held or not."""
    async with supervised(replace(scripted, limits=IMPATIENT)) as watched:
        for n, script in enumerate(("hang", "hang-gil"), 1):
            await watched.until(ServiceState.READY)
            with pytest.raises(WorkerHung):
                await watched.decode(script)
            assert watched.told[-1] is ServiceState.RESTARTING
            with capture_logs() as logs:
                await watched.until(ServiceState.READY)
            assert watched.supervisor.restarts == {Cause.HUNG: n}
            [died] = [log for log in logs if log["event"] == "worker.died"]
            assert (died["cause"], died["decoding"]) == ("hung", True)
            if sys.platform != "win32":
                assert died["stderr"].count("_hang") == 1, "by SIGABRT"
        assert await watched.decode("say back") == "back"


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="POSIX signals")
async def test_time_in_which_the_server_itself_stood_still_is_not_the_decodes(scripted: WorkerSpec) -> None:
    """Regression: after Ctrl-Z and `fg` the limit was due in the same turn of the loop as the reply."""
    async with supervised(replace(scripted, limits=IMPATIENT)) as watched:
        await watched.until(ServiceState.READY)
        decode = asyncio.create_task(watched.decode())
        await asyncio.sleep(0)
        time.sleep(2 * IMPATIENT.decode_s)  # noqa: ASYNC251 - the event loop stands still
        assert await decode == "country 1600"
        assert watched.supervisor.n_restarts == 0


async def test_cancelled_waiting_for_the_end_does_not_pass_for_the_end(scripted: WorkerSpec) -> None:
    """Regression: the worker outlived a supervisor that was stopped just then."""
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        process = watched.supervisor._process
        assert process is not None
        waiting = asyncio.create_task(process.ended())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await process.kill()
        assert not is_running(process.pid)


async def test_process_that_is_stopped_is_ended_like_one_that_hangs(scripted: WorkerSpec) -> None:
    """And a request that fills its pipe keeps nobody waiting."""
    async with supervised(replace(scripted, limits=IMPATIENT)) as watched:
        await watched.until(ServiceState.READY)
        assert watched.supervisor.pid is not None
        os.kill(watched.supervisor.pid, signal.SIGSTOP)
        samples = np.zeros(30 * 16_000, dtype=np.float32)  # 1.9 MB
        with pytest.raises(WorkerHung):
            await watched.supervisor.decode(samples, DecodeOptions("en"), 0.0)
        await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.HUNG: 1}


async def test_start_that_takes_too_long_is_ended_and_the_next_may_take_longer(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "backoff_s", lambda n_deaths: 0.0)
    script = scripted.model / "load.script"
    script.write_text("sleep 600")
    asked: list[int] = []

    class Limited(Limits):
        def start(self, expected_s: float, n_slow_starts: int) -> float:
            asked.append(n_slow_starts)
            if n_slow_starts < 2:
                return 0.5
            script.write_text("")
            return 60.0

    async with supervised(replace(scripted, limits=Limited())) as watched:
        await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.SLOW_START: 2}
        assert asked == [0, 1, 2]


def test_limits_are_those_of_the_documents() -> None:
    limits = Limits()
    assert [limits.start(expected_s, n) for expected_s, n in ((1, 0), (100, 0), (1, 2))] == [60, 500, 240]
    decodes = ((0.4, 0), (0.4, 2), (60, 0), (0.4, 3), (3, 3))
    assert [limits.decode(expected_s, n) for expected_s, n in decodes] == [120, 120, 600, 10, 30]


# ---------------------------------------------------------------- what is left of it


async def test_text_that_was_complete_is_salvaged(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        hypothesis = await watched.hypothesis("late-crash ABRT")
        assert (hypothesis.text, hypothesis.language, hypothesis.recovered) == (" country 1600", "en", True)
        await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.ABRT: 1}
        assert not (await watched.hypothesis()).recovered


async def test_half_a_text_is_not_salvaged(scripted: WorkerSpec) -> None:
    """However short it is."""
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        with pytest.raises(WorkerDied):
            await watched.decode("mid-crash ABRT")


async def test_last_words_are_in_the_log_however_much_it_said(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        assert await watched.decode("flood 3") == "country 1600"
        with pytest.raises(WorkerDied):
            await watched.decode("crash ABRT")
        with capture_logs() as logs:
            await watched.until(ServiceState.READY)
        [died] = [log for log in logs if log["event"] == "worker.died"]
        assert "Fatal Python error: Aborted" in died["stderr"]
        assert "no play" in died["stderr"], "the flood's end"
        assert len(died["stderr"]) <= 8192


async def test_error_that_sticks_to_the_process_ends_it(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        with pytest.raises(WorkerDied):
            await watched.decode("cuda")
        with capture_logs() as logs:
            await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.CUDA: 1}
        [died] = [log for log in logs if log["event"] == "worker.died"]
        assert died["stderr"] == "RuntimeError: CUDA failed with error out of memory"


async def test_worker_that_prints_without_end_can_be_ended(scripted: WorkerSpec) -> None:
    """Regression: its standard error, full and not read any more, kept the server from stopping."""
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        decode = asyncio.create_task(watched.decode("flood 100000"))
        process = watched.supervisor._process
        assert process is not None
        while not process.last_words:
            await asyncio.sleep(0.01)
        pid = process.pid
    decode.cancel()
    assert not is_running(pid)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError(24, "Too many open files")])
async def test_restart_that_cannot_help_itself_is_tried_again(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        loop, spawn, refused = asyncio.get_running_loop(), asyncio.get_running_loop().subprocess_exec, []

        async def refuse_once(*args: Any, **options: Any) -> Any:
            if not refused:
                refused.append(error)
                raise error
            return await spawn(*args, **options)

        monkeypatch.setattr(loop, "subprocess_exec", refuse_once)
        with pytest.raises(WorkerDied):
            await watched.decode("crash ABRT")
        await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.ABRT: 1, Cause.NOT_STARTED: 1}


@pytest.mark.skipif(sys.platform == "win32", reason="asyncio's watchers of children")
async def test_process_that_cannot_be_watched_is_not_left_running(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: asyncio starts the process first, and then the thread that waits for it; there were two models."""
    watchers = [each for name, each in vars(asyncio.unix_events).items() if name.endswith("ChildWatcher")]
    watched_pids: list[int] = []
    for watcher in watchers:
        if (watch := vars(watcher).get("add_child_handler")) is None:
            continue

        def refuse_second(self: Any, pid: int, *given: Any, watch: Any = watch) -> None:
            watched_pids.append(pid)
            if len(watched_pids) == 2:
                raise RuntimeError("can't start new thread")
            watch(self, pid, *given)

        monkeypatch.setattr(watcher, "add_child_handler", refuse_second)
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        with pytest.raises(WorkerDied):
            await watched.decode("crash ABRT")
        await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.ABRT: 1, Cause.NOT_STARTED: 1}
        unwatched = watched_pids[1]
        assert watched.supervisor.pid == watched_pids[2]
        while psutil.pid_exists(unwatched):
            await asyncio.sleep(0.01)


async def test_process_that_the_system_does_not_end_is_said_and_not_replaced_before_it_has(
    scripted: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that waits in a driver. Unrealistic: it is not signalled at all."""
    monkeypatch.setattr(module, "ENDING_LIMIT_S", 0.1)
    async with supervised(replace(scripted, limits=IMPATIENT)) as watched:
        await watched.until(ServiceState.READY)
        process = watched.supervisor._process
        assert process is not None
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(process, "_send_signal", lambda number: None)
            with pytest.raises(WorkerHung):
                await watched.decode("hang")
            await watched.until(ServiceState.UNAVAILABLE)
        assert is_running(process.pid)
        assert [log["pid"] for log in logs if log["event"] == "worker.not_ended"] == [process.pid]
        told = [log["error"] for log in logs if log["event"] == "worker.unavailable"]
        assert told == ["its process does not end"]  # not what was wrong before
        process._kill_now()
        await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.HUNG: 1}


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_signal_to_what_is_just_dying_does_not_take_the_cause_of_its_death(scripted: WorkerSpec) -> None:
    """Regression: asyncio's own `send_signal` reaped it, and reported exit status 255."""
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        process = watched.supervisor._process
        assert process is not None
        os.kill(process.pid, signal.SIGSEGV)
        while is_running(process.pid):  # while asyncio, which could see it, does not run
            pass
        process._kill_now()
        await watched.until(ServiceState.RESTARTING)
        await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.SEGV: 1}


async def test_what_has_been_ready_is_not_given_up_for_one_bad_start(scripted: WorkerSpec) -> None:
    """Regression: a model folder that was gone for a moment, or an illegal instruction, was final."""
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        for load, cause in (("no such fault", Cause.CANNOT_LOAD), ("crash ILL", Cause.ILLEGAL_INSTRUCTION)):
            (scripted.model / "load.script").write_text(load)
            with pytest.raises(WorkerDied):
                await watched.decode("crash ABRT")
            while cause not in watched.supervisor.restarts:
                await asyncio.sleep(0.01)
            (scripted.model / "load.script").write_text("")
            await watched.until(ServiceState.READY)
            await watched.decode()


async def test_bug_of_ours_is_not_laid_at_the_workers_door(scripted: WorkerSpec) -> None:
    def on_self_test(audio_s: float, decode_s: float) -> None:
        raise ValueError("ours")

    supervisor = Supervisor(scripted, on_state=lambda state, ready_in_s: None, on_self_test=on_self_test)
    with pytest.raises(ValueError, match="ours"):
        await supervisor.run()


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
async def test_death_is_seen_also_where_another_process_holds_its_pipes(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "import os, time",
        "from asr_ws.testing.recognizer import ScriptedRecognizer",
        "class Forking(ScriptedRecognizer):",
        "    def __init__(self, model, **given):",
        "        super().__init__(model, **given)",
        "        self.folder = model",
        "    def transcribe(self, samples, options):",
        "        if options.prompt and not (child := os.fork()):",
        "            time.sleep(600)",
        "        if options.prompt:",
        "            (self.folder / 'forked').write_text(str(child))",
        "        return super().transcribe(samples, options)",
    ]
    importable("forking", lines, tmp_path, monkeypatch)
    async with supervised(replace(scripted, recognizer="forking:Forking")) as watched:
        await watched.until(ServiceState.READY)
        with pytest.raises(WorkerDied):
            await watched.decode("crash ABRT")
        await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.ABRT: 1}
    os.kill(int((scripted.model / "forked").read_text()), signal.SIGKILL)


async def test_what_is_no_reply_ends_it(scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "import contextlib, os",
        "from asr_ws.testing.recognizer import ScriptedRecognizer",
        "class Garbling(ScriptedRecognizer):",
        "    def transcribe(self, samples, options):",
        "        for descriptor in range(3, 20):",
        "            with contextlib.suppress(OSError):",
        "                os.write(descriptor, bytes(range(200, 216)))",
        "        return super().transcribe(samples, options)",
    ]
    importable("garbling", lines, tmp_path, monkeypatch)
    async with supervised(replace(scripted, recognizer="garbling:Garbling")) as watched:
        with capture_logs() as logs:
            while Cause.GARBLED not in watched.supervisor.restarts:  # the self-test's reply is garbled
                await asyncio.sleep(0.01)
        assert "a frame of" in next(log["error"] for log in logs if log["event"] == "worker.garbled")


# ---------------------------------------------------------------- memory


async def test_worker_that_has_grown_is_replaced_between_two_decodes(scripted: WorkerSpec) -> None:
    async with supervised(replace(scripted, max_bytes=400_000_000)) as watched:
        await watched.until(ServiceState.READY)
        pid = watched.supervisor.pid
        for text in ("country 1600", "country 1600"):
            assert await watched.decode("leak 150") == text
        assert watched.supervisor.pid == pid
        assert await watched.decode("leak 150") == "country 1600"
        assert watched.told[-1] is ServiceState.RESTARTING, "before another decode can begin"
        await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.GROWN: 1}
        assert watched.supervisor._n_deaths == 0
        assert watched.supervisor.pid != pid


async def test_worker_that_grows_while_its_decodes_fail_is_replaced_too(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        assert watched.supervisor._life is not None
        watched.supervisor._life.max_bytes = 1  # of them all
        with pytest.raises(DecodeFailed):
            await watched.decode("raise no memory")
        assert watched.told[-1] is ServiceState.RESTARTING
        await watched.until(ServiceState.READY)
        assert watched.supervisor.restarts == {Cause.GROWN: 1}


async def test_ceiling_below_what_it_needs_is_said_and_ignored(scripted: WorkerSpec) -> None:
    with capture_logs() as logs:
        async with supervised(replace(scripted, max_bytes=1)) as watched:
            await watched.until(ServiceState.READY)
            assert await watched.decode() == await watched.decode()
            assert watched.supervisor.restarts == {}
    assert [log["asked_bytes"] for log in logs if log["event"] == "worker.ceiling_ignored"] == [1]


# ---------------------------------------------------------------- manners


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
async def test_worker_gives_way_leaves_no_core_and_obeys_its_server_only(scripted: WorkerSpec) -> None:
    async with supervised(scripted) as watched:
        await watched.until(ServiceState.READY)
        pid = watched.supervisor.pid
        assert pid is not None
        process = psutil.Process(pid)
        assert process.nice() == psutil.Process().nice() + 5
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert first_to_go(pid)
        assert os.getpgid(pid) == pid, "Ctrl-C goes to the server alone"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        assert await watched.decode("say here") == "here"
        assert watched.supervisor.pid == pid


def first_to_go(pid: int) -> bool:
    return Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "500"


ORPHAN = """
import asyncio, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from asr_ws.core.types import DecodeOptions
from asr_ws.testing.recognizer import ScriptedRecognizer, scripted_worker
from asr_ws.worker.supervisor import Supervisor

folder = Path(__file__).parent

class Telling(ScriptedRecognizer):
    def transcribe(self, samples, options):
        if options.prompt:
            (folder / "begun").touch()
        return super().transcribe(samples, options)

async def main():
    ready = asyncio.Event()

    def on_state(state, ready_in_s):
        if state.value == "ready":
            ready.set()

    supervisor = Supervisor(replace(scripted_worker(folder), recognizer="orphan:Telling"), on_state=on_state)
    running = asyncio.create_task(supervisor.run())
    await ready.wait()
    (folder / "pid").write_text(str(supervisor.pid))
    await supervisor.decode(np.zeros(1600, np.float32), DecodeOptions("en", prompt=sys.argv[1]), 0.0)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    "script",
    [
        "hang",
        pytest.param(
            "hang-gil", marks=pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
        ),
    ],
)
async def test_worker_ends_with_a_server_that_is_killed(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan, begun = tmp_path / "orphan.py", tmp_path / "begun"
    orphan.write_text(ORPHAN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with asyncio.timeout(60):
        server = await asyncio.create_subprocess_exec(sys.executable, str(orphan), script)
        while not begun.exists():
            await asyncio.sleep(0.01)
        pid = int((tmp_path / "pid").read_text())
        assert is_running(pid)
        server.kill()
        await server.wait()
        while is_running(pid):
            await asyncio.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_worker_that_has_just_been_started_ends_with_its_server_too(tmp_path: Path) -> None:
    """Before it has imported anything, let alone read its input."""
    code = (
        "import asyncio, sys\n"
        "from asr_ws.worker.process import WorkerProcess\n"
        "async def main():\n"
        "    worker = await WorkerProcess.launch([sys.argv[1]])\n"
        "    print(worker.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    async with asyncio.timeout(60):
        pipe = asyncio.subprocess.PIPE
        server = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(tmp_path), stdout=pipe)
        assert server.stdout is not None
        pid = int(await server.stdout.readline())
        server.kill()
        await server.wait()
        while is_running(pid):
            await asyncio.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, /dev/shm")
async def test_crash_cycles_leave_nothing_behind(scripted: WorkerSpec) -> None:
    def left() -> tuple[int, int, int, int]:
        me = psutil.Process()
        return me.num_fds(), me.num_threads(), len(me.children()), shared_memory()

    async with supervised(replace(scripted, limits=IMPATIENT)) as watched:
        await watched.until(ServiceState.READY)
        await watched.decode()
        before = left()
        for script in ("crash SEGV", "late-crash ABRT", "hang", "crash KILL", "leak 1"):
            with suppress(WorkerDied):
                await watched.decode(script)
            await watched.until(ServiceState.READY)
            await watched.decode()
        assert left() == before


@pytest.mark.model
async def test_model_that_is_cut_short_is_said_and_not_tried_again(tiny_en: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        (tmp_path / name).write_bytes((tiny_en / name).read_bytes())
    with (tiny_en / "model.bin").open("rb") as whole:
        (tmp_path / "model.bin").write_bytes(whole.read(10_000_000))
    watched = Watched(WorkerSpec(tmp_path, "cpu"))
    async with asyncio.timeout(60):
        await watched.supervisor.run()  # returns by itself
    assert watched.told == [ServiceState.STARTING, ServiceState.UNAVAILABLE]
    assert "payload size" in watched.supervisor.last_failure
