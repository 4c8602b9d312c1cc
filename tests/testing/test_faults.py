"""Each fault does what it says: in this process where it survives that, else in one of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asr_ws.core.types import DecodeOptions, Segment
from asr_ws.server.app import announce, worker_spec
from asr_ws.testing import marks
from asr_ws.testing.faults import Fault, FaultyRecognizer, next_load
from asr_ws.testing.recognizer import ScriptedRecognizer
from asr_ws.worker.recognizer import FilteredTranscription
from asr_ws.worker.supervisor import WorkerSpec
from tests.conftest import read_speech
from tests.server.running import serving, settings

SAMPLES = np.zeros(16_000, dtype=np.float32)
ANSWER_S = 3.0  # a process that answers does so in less; a machine so slow that it does not hides a failure
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What outlives workers is kept in the test's folder, also by the processes that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return marks.folder(os.getppid())


def in_a_process(code: str) -> subprocess.CompletedProcess[bytes]:
    script = f"from asr_ws.testing.faults import *; from asr_ws.testing.faults import _leaked; {code}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)


def loaded(folder: Path) -> ScriptedRecognizer:
    return ScriptedRecognizer(folder, device="cpu", compute_type="default", cpu_threads=0, encoder_window="auto")


@posix
@pytest.mark.parametrize(("line", "number"), [("crash SEGV", 11), ("crash KILL", 9), ("crash ABRT", 6)])
def test_a_crash_is_a_death_by_that_signal(line: str, number: int) -> None:
    assert in_a_process(f"Fault.of({line!r}).commit()").returncode == -number


@posix
@pytest.mark.parametrize(
    ("verb", "handed_over"),
    [("crash", []), ("mid-crash", [" one two ", 1.0]), ("late-crash", [" one two three four", 2.0])],
)
def test_a_crash_comes_before_amid_or_after_the_text(verb: str, handed_over: list[object]) -> None:
    died = in_a_process(
        "from asr_ws.core.types import Segment; from asr_ws.worker.recognizer import FilteredTranscription;"
        "segment = Segment(' one two three four', 0.0, 2.0, -0.1, 0.0, 1.0);"
        f"fault = Fault.of('{verb} SEGV'); fault.commit();"
        "[print([each.text, each.end_s], flush=True)"
        " for each in fault.follow(FilteredTranscription(iter([segment]), 'en', 1.0))]"
    )
    assert died.returncode == -signal.SIGSEGV
    assert died.stdout.decode().strip() == (repr(handed_over) if handed_over else "")


async def answers(line: str, n_times: int) -> list[bool]:
    """Whether another thread of a process that commits this fault answers, asked so often, or until it does not."""
    code = (
        "import sys, threading; from asr_ws.testing.faults import Fault\n"
        "def echo():\n"
        "    for line in sys.stdin: print(line, end='', flush=True)\n"
        "threading.Thread(target=echo, daemon=True).start()\n"
        f"print(flush=True); Fault.of({line!r}).commit()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answered = []
    try:
        await process.stdout.readline()  # it has begun, or is about to
        for n in range(n_times):
            process.stdin.write(b"%d\n" % n)
            try:
                async with asyncio.timeout(ANSWER_S):
                    answered.append(bool(await process.stdout.readline()))
                await asyncio.sleep(0.05)
            except TimeoutError:
                answered.append(False)
                break
        assert process.returncode is None
    finally:
        process.kill()
        await process.wait()
    return answered


async def test_a_hang_leaves_the_other_threads_alone() -> None:
    assert await answers("hang", 20) == [True] * 20


async def test_a_hang_that_holds_the_lock_stops_them() -> None:
    assert not (await answers("hang-gil", 1000))[-1]


def test_what_is_leaked_stays_and_is_really_there() -> None:
    done = in_a_process("Fault.of('leak 3').commit(); Fault.of('leak 2').commit(); print([len(x) for x in _leaked])")
    assert done.stdout.decode().strip() == "[3000000, 2000000]"


def test_a_flood_comes_by_both_outputs() -> None:
    flooded = in_a_process("Fault.of('flood 1').commit()")
    assert len(flooded.stdout) == len(flooded.stderr)
    assert 900_000 < len(flooded.stdout) <= 1_000_000


@pytest.mark.parametrize(
    ("line", "error", "text"),
    [
        ("raise no such luck", RuntimeError, "no such luck"),
        ("cuda", RuntimeError, "CUDA failed with error out of memory"),
        ("crush SEGV", ValueError, "no fault 'crush': there are sleep, hang"),
        ("leak", ValueError, "leak '': invalid literal"),
        ("next-load raise x", ValueError, "next-load 'raise x': of how many loads"),
        ("next-load 2 crush x", ValueError, "for a load there are sleep"),
        ("once crash SEGV", ValueError, "no fault 'SEGV'"),
        ("once ../x crash SEGV", ValueError, "a name is letters and digits"),
    ],
)
def test_what_raises_says_what(line: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Fault.of(line).commit()


def test_nothing_is_no_fault() -> None:
    Fault.of("").commit()
    assert Fault.of("  ") == Fault()


def test_a_fault_for_partials_spares_the_finals() -> None:
    assert Fault.of("raise-partial x") == Fault()
    assert Fault.of("raise-partial x", partial=True) == Fault("raise", "x")
    assert Fault.of("raise x", partial=True) == Fault("raise", "x")


def test_once_is_once_for_each_name_until_it_is_forgotten() -> None:
    lines = ["once 1 raise x", "once 1 raise x", "once 2 sleep 0", "once 1 crash SEGV"]
    assert [Fault.of(line) for line in lines] == [Fault("raise", "x"), Fault(), Fault("sleep", "0"), Fault()]
    marks.forget(os.getppid())
    assert Fault.of("once 1 raise x") == Fault("raise", "x")


def test_once_in_partials_is_not_used_up_by_a_final() -> None:
    assert Fault.of("once 1 raise-partial x") == Fault()
    assert Fault.of("once 1 raise-partial x", partial=True) == Fault("raise", "x")


@posix
def test_the_next_loads_commit_what_was_left_for_them(tmp_path: Path, folder: Path) -> None:
    died = in_a_process(
        "import os, pathlib; import asr_ws.testing.faults as f;"
        f"f.marks.folder = lambda server: pathlib.Path({str(folder)!r});"
        "Fault.of('next-load 2 raise no memory').commit()"
    )
    assert died.returncode == -signal.SIGSEGV
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            loaded(tmp_path)
    assert loaded(tmp_path).device == "cpu"
    assert next_load() == Fault()


@pytest.mark.model
def test_the_real_recognizer_takes_the_fault_out_of_the_prompt(tiny_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = FaultyRecognizer(tiny_en, device="cpu", compute_type="default", cpu_threads=1, encoder_window="auto")
    prompts: list[str | None] = []

    def transcribe(samples: object, options: DecodeOptions) -> FilteredTranscription:
        prompts.append(options.prompt)
        segments: list[Segment] = []
        return FilteredTranscription(iter(segments), "en", 1.0)

    real = recognizer._real.transcribe
    monkeypatch.setattr(recognizer._real, "transcribe", transcribe)
    for prompt in (None, "Names: Ada.", "fault: sleep 0", "fault: sleep 0\nNames: Ada."):
        recognizer.transcribe(SAMPLES, DecodeOptions("en", prompt=prompt))
    assert prompts == [None, "Names: Ada.", None, "Names: Ada."]
    with pytest.raises(RuntimeError, match="told to"):
        recognizer.transcribe(SAMPLES, DecodeOptions("en", prompt="fault: raise told to"))

    monkeypatch.setattr(recognizer._real, "transcribe", real)
    heard = recognizer.transcribe(read_speech("jfk.wav"), DecodeOptions("en", prompt="fault: sleep 0"))
    assert "country" in "".join(segment.text for segment in heard)


@pytest.mark.model
def test_only_a_server_that_was_told_to_lets_clients_break_its_worker(tiny_en: Path) -> None:
    spec = {on: worker_spec(settings(model="tiny.en", fault_injection=on)) for on in (False, True)}
    assert [spec[False].recognizer, spec[True].recognizer] == [
        "asr_ws.worker.recognizer:FasterWhisperRecognizer",
        "asr_ws.testing.faults:FaultyRecognizer",
    ]


@pytest.mark.parametrize("on", [False, True])
async def test_a_server_that_was_told_to_says_so(
    on: bool, scripted: WorkerSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(scripted, ready=False, fault_injection=on) as app:
        announce(app)
    assert ("every client can break the worker: --fault-injection" in capsys.readouterr().out) == on
