"""The recognizer, tried as the server runs it: a worker process under its supervisor, its self-test, some decodes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final

from structlog.testing import capture_logs

from asr_ws import models
from asr_ws.config import Settings
from asr_ws.core.admission import EXPECTED_AUDIO_S, all_are_reached
from asr_ws.core.service_time import LEAST_S
from asr_ws.core.types import SAMPLE_RATE, DecodeOptions, ServiceState
from asr_ws.doctor import TRIAL_S, Finding, Question, failed, machine, ok, probe, warning
from asr_ws.errors import DecodeFailed, ModelError, WorkerDied
from asr_ws.worker.child import self_test_clip
from asr_ws.worker.supervisor import CEILING_HEADROOM, Supervisor, WorkerSpec
from asr_ws.worker.system import Cause, cause_of

MB: Final = 1_000_000
LENGTHS_S: Final = (2.0, EXPECTED_AUDIO_S, 10.0)  # of the clip, from its beginning
ROUNDS, ROUNDS_S = 3, 20.0  # as many, unless they have taken so long
SERVER_BYTES: Final = 150 * MB  # the other process
LEAST_BESIDE_MB: Final = 250  # of a worker's memory is not its model: libraries, buffers
# Of people who speak a third of the time: each ends an utterance every so many seconds, as the bundled speech has it. A
# decode takes so many times as long as with its cores for itself (docs/howto/capacity.md). The worker is idle for the
# rest of its time, so that they seldom wait for each other.
SHARE, EVERY_S, BESIDE_OTHERS, UTILIZATION = 0.33, 11.0, 1.4, 0.7
REINSTALL: Final = "pip install --force-reinstall"
MEANS: Final = {
    Cause.SEGV: "it crashed (SIGSEGV)",
    Cause.ABRT: "it aborted (SIGABRT)",
    Cause.KILLED: "it was killed, possibly out of memory",
    Cause.ILLEGAL_INSTRUCTION: "it ran into an instruction that this processor does not have (SIGILL)",
    Cause.SLOW_START: "its start took too long",
    Cause.HUNG: "it hung",
    Cause.GROWN: "it grew over its ceiling (--worker-memory-mb)",
    Cause.NOT_STARTED: "it could not be started",
    Cause.MISSING_DLL: "it lacks a library",
}
LOG_HINT: Final = "asr-ws serve logs its last words; or try another --model, --device or --compute-type"


def detector(_: Settings) -> Finding:
    """What the server loads into its own process, and so what would end that."""
    if why := _asked("from asr_ws import detector, resampler; detector.SileroModel()")[1]:
        return failed(f"onnxruntime or PyAV cannot be used: {why}", f"{REINSTALL} onnxruntime av")
    return ok("Silero by onnxruntime, PyAV for other rates")


def engine(_: Settings) -> Finding:
    answer, why = _asked("import json; from asr_ws.worker.recognizer import abilities; print(json.dumps(abilities()))")
    if why:
        return failed(f"CTranslate2 cannot be used: {why}", f"{REINSTALL} ctranslate2")
    return able(json.loads(answer.splitlines()[-1]))


def _asked(code: str) -> tuple[str, str]:
    """What it prints, and why it could not run."""
    asked = probe("-c", code)
    last_words = asked.stderr.strip().rpartition("\n")[2]
    return asked.stdout, MEANS.get(cause_of(asked.returncode), last_words) if asked.returncode else ""


def able(found: Mapping[str, Any]) -> Finding:
    """Args: found: as of `asr_ws.worker.recognizer.abilities`."""
    cpu, cuda = (", ".join(found[f"{device}_compute_types"]) for device in ("cpu", "cuda"))
    fact = f"on the CPU {cpu}; " + (f"CUDA devices: {found['cuda_devices']}, {cuda}" if cuda else "no CUDA device")
    if missing := found["missing_libraries"]:
        hint = "pip install 'asr-ws[cuda]', and LD_LIBRARY_PATH: docs/howto/serve.md"
        return warning(f"{fact}; cannot load {', '.join(missing)}", hint, **found)
    return ok(fact, **found)


def model(settings: Settings) -> Finding:
    name = settings.model.model
    try:
        folder = models.resolve(name)
    except ModelError as error:
        return failed(error.message, error.hint)
    size_mb = (folder / "model.bin").stat().st_size // MB
    return fits(f"{name}, {size_mb} MB in {folder}", size_mb, machine.memory().available // MB)


def fits(fact: str, size_mb: int, available_mb: int) -> Finding:
    """What does not is not tried: the system might end the worker of a server that runs."""
    if size_mb + LEAST_BESIDE_MB > available_mb:
        hint = "a smaller --model, or end what takes the memory"
        return failed(f"{fact}; not tried, with {available_mb} MB of memory free", hint, size_mb=size_mb)
    return ok(fact, size_mb=size_mb)


QUESTIONS: Final[dict[str, Question]] = {"model": model, "detector": detector, "engine": engine}


@dataclass(frozen=True, slots=True)
class Trial:
    """What was seen.

    Attributes:
        failure: why it did not come to its end: a `Cause`'s value, or what the worker said.
        refused: why CUDA was given up for the CPU.
        load_s: from the start of the process until it is ready.
        decode_s: by the audio's length in seconds, the median.
    """

    failure: str = ""
    refused: str = ""
    device: str = ""
    compute_type: str = ""
    load_s: float = 0.0
    resident_bytes: int = 0
    decode_s: Mapping[float, float] = field(default_factory=dict)
    memory: machine.Memory | None = None


async def tried(spec: WorkerSpec, *, has_cuda: bool, within_s: float = TRIAL_S) -> Trial:
    """Args: has_cuda: the device ``auto`` may then fail once, before it is the CPU."""
    states: asyncio.Queue[ServiceState] = asyncio.Queue()
    with capture_logs():  # which nothing has set up here: what they say becomes findings
        supervisor = Supervisor(spec, on_state=lambda state, _: states.put_nowait(state))
        running = asyncio.create_task(supervisor.run(), name="worker")
        try:
            async with asyncio.timeout(within_s):
                return await _tried(supervisor, states, int(has_cuda and spec.device == "auto"))
        except TimeoutError:
            return Trial(f"it was not done within {within_s:g} s")
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def _tried(supervisor: Supervisor, states: asyncio.Queue[ServiceState], n_deaths: int) -> Trial:
    while (state := await states.get()) is not ServiceState.READY:
        if state is ServiceState.UNAVAILABLE or supervisor.n_restarts > n_deaths:
            return Trial(supervisor.last_failure)
    loaded = supervisor.loaded
    assert loaded is not None
    assert supervisor.load_s is not None
    refused = supervisor.last_failure if loaded.device == "cpu" else ""
    ready = Trial("", refused, loaded.device, loaded.compute_type, supervisor.load_s)
    try:
        decode_s = await _decodes(supervisor)
    except DecodeFailed as error:
        return replace(ready, failure=error.message)
    except WorkerDied:  # of what is known when the next one comes
        while await states.get() not in (ServiceState.READY, ServiceState.UNAVAILABLE):
            pass
        return replace(ready, failure=supervisor.last_failure)
    return replace(
        ready,
        decode_s=decode_s,
        resident_bytes=supervisor.resident_bytes or 0,
        memory=await asyncio.to_thread(machine.memory),
    )


async def _decodes(supervisor: Supervisor) -> dict[float, float]:
    """Raises: WorkerError."""
    clip, began = self_test_clip(), time.monotonic()
    seen: dict[float, list[float]] = {audio_s: [] for audio_s in LENGTHS_S}
    for n in range(ROUNDS):
        for audio_s, times in seen.items():
            if n == 0 or time.monotonic() - began < ROUNDS_S:
                if supervisor.state is not ServiceState.READY:  # replaced after the last decode
                    raise WorkerDied
                samples = clip[: round(audio_s * SAMPLE_RATE)]
                times.append((await supervisor.decode(samples, DecodeOptions(None), 0.0)).decode_s)
    return {audio_s: median(times) for audio_s, times in seen.items()}


# ---------------------------------------------------------------- what that means


def findings(trial: Trial, settings: Settings) -> dict[str, Finding]:
    if trial.failure:
        return {"worker": worker(trial)}
    expected_s = trial.decode_s[EXPECTED_AUDIO_S]
    return {
        "worker": worker(trial),
        "decode": decode(trial.decode_s),
        "memory": memory(trial, settings),
        "queue": queue(expected_s, settings),
        "people": people(expected_s, settings),
    }


def worker(trial: Trial) -> Finding:
    where = f"{trial.device}, {trial.compute_type}"
    if trial.failure:
        when = f"ready on {where}, then " if trial.device else ""
        return failed(f"{when}{_said(trial.failure)}", LOG_HINT)
    numbers = {"device": trial.device, "compute_type": trial.compute_type, "load_s": round(trial.load_s, 2)}
    fact = f"{where}: ready after {trial.load_s:.1f} s, self-test included"
    if trial.refused:
        return warning(f"{fact}; not on CUDA: {_said(trial.refused)}", "docs/howto/serve.md, Use a GPU", **numbers)
    return ok(fact, **numbers)


def _said(failure: str) -> str:
    return MEANS.get(Cause(failure), f"it ended ({failure})") if failure in tuple(Cause) else failure


def decode(decode_s: Mapping[float, float]) -> Finding:
    factor = decode_s[EXPECTED_AUDIO_S] / EXPECTED_AUDIO_S
    times = ", ".join(f"{audio_s:g} s in {each * 1000:.0f} ms" for audio_s, each in decode_s.items())
    fact = f"speech of {times}; real-time factor {factor:.2f} at {EXPECTED_AUDIO_S:g} s"
    numbers = {
        "decodes": [
            {"audio_s": audio_s, "decode_ms": round(each * 1000), "real_time_factor": round(each / audio_s, 3)}
            for audio_s, each in decode_s.items()
        ]
    }
    if factor > 1:
        return warning(fact, "slower than speech: a smaller --model, or a faster machine", **numbers)
    return ok(fact, **numbers)


def memory(trial: Trial, settings: Settings) -> Finding:
    """Of what is left beside the worker, which is loaded then."""
    assert trial.memory is not None
    seen, asked_mb, resident = trial.memory, settings.worker.worker_memory_mb, trial.resident_bytes
    fact = f"the worker takes {resident // MB} MB, {seen.available // MB} MB are free beside it"
    fact += f", {seen.swap_used // MB} MB of swap are used"
    numbers = {"worker_mb": resident // MB, "available_mb": seen.available // MB, "swap_used_mb": seen.swap_used // MB}
    if seen.limit is not None:
        fact += f", this control group may take {seen.limit // MB} MB"
        numbers["limit_mb"] = seen.limit // MB
    if seen.available < SERVER_BYTES + (CEILING_HEADROOM - 1) * resident:
        return warning(fact, "the system may kill the worker: a smaller --model, an int8 --compute-type", **numbers)
    if 0 < asked_mb * MB < CEILING_HEADROOM * resident:
        least_mb = round(CEILING_HEADROOM * resident / MB)
        hint = f"it is ignored below {least_mb}: docs/explanation/reliability.md"
        return warning(f"{fact}; --worker-memory-mb {asked_mb} is too little", hint, **numbers)
    return ok(fact, **numbers)


def queue(decode_s: float, settings: Settings) -> Finding:
    capacity, max_wait_ms = settings.admission.queue_capacity, settings.admission.max_wait_ms
    last_ms = round(capacity * decode_s * 1000)
    fact = f"{capacity} may wait, which takes {last_ms} ms"
    numbers = {"full_queue_ms": last_ms, "queue_capacity": capacity, "max_wait_ms": max_wait_ms}
    if all_are_reached(capacity, decode_s, max_wait_ms / 1000):
        return ok(f"{fact} of the {max_wait_ms} allowed", **numbers)
    return warning(
        f"{fact}, and {max_wait_ms} are allowed: some are refused before it is full, or have no text in time",
        "a smaller --model or --queue-capacity, a larger --max-wait-ms: docs/explanation/admission.md",
        **numbers,
    )


def people(decode_s: float, settings: Settings) -> Finding:
    n = int(UTILIZATION * EVERY_S / (BESIDE_OTHERS * max(decode_s, LEAST_S)))
    numbers = {"people": n, "speaking_share": SHARE, "every_s": EVERY_S, "utilization": UTILIZATION}
    max_sessions = settings.session.max_sessions
    most = f"asr-ws bench --model {settings.model.model} --speaking-share {SHARE:g} finds the most that can"
    assumed = f"who each speak a third of the time and seldom wait; an estimate: {most}"
    if n < 1:
        return warning(f"not even one, {assumed}", "a smaller --model, or a faster machine", **numbers)
    let_in = f"; --max-sessions lets in {max_sessions}" * (n > max_sessions)
    return ok(f"about {n} {assumed}{let_in}", **numbers)
