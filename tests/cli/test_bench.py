"""`asr-ws bench`: what it refuses, what it says, and two small runs: their times are this machine's and not judged."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from matplotlib.figure import Figure

from asr_ws.cli.bench import HEADER, Course, draw, row, sentence
from asr_ws.cli.options import as_arguments
from asr_ws.config import Access, Listen, Model, Settings, without_settings
from asr_ws.testing.figures import Spread
from asr_ws.testing.served import ServerProcess
from asr_ws.testing.talkers import Step
from asr_ws.worker.supervisor import WorkerSpec
from tests.cli.test_cli import Run, no_settings_in_the_environment, run
from tests.server.running import HANG_S, serving

__all__ = ["no_settings_in_the_environment", "run"]

GOOD = Step(
    talkers=8,
    seconds=30.0,
    max_wait_ms=8000,
    utterances=50,
    finals=50,
    refusals=6,
    partials=25,
    wait_ms=Spread(50, p50=410.0, p95=2900.0, p99=3300.0, max=3300.0),
    text_ms=Spread(48, p50=1210.0, p95=3900.0, p99=4400.0, max=4400.0),
    decode_ms=480.0,
    load=0.81,
    worker=0.97,
    late_ms=Spread(2400, p50=0.4, p95=1.0, p99=2.0, max=9.0),
)
BAD = replace(GOOD, talkers=9, finals=49)
LATE = Spread(2700, p50=0.4, p95=150.0, p99=180.0, max=200.0)
COMMAND = (sys.executable, "-m", "asr_ws", "bench")


# ---------------------------------------------------------------- what it is asked


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--talkers", "4,x"], "'4,x' is not a list of numbers such as 4,8,16"),
        (["--talkers", "0"], "'0': 1 to 10000"),
        (["--plot", "a.pdf"], "a.pdf: a name that ends in .png or .svg"),
        (["--plot", "no-such-folder/a.png"], "a.png: there is no such folder"),
        (["--url", "http://127.0.0.1:1", "--model", "tiny.en"], "--model: of a server that is started"),
    ],
)
def test_a_wrong_call_is_told_before_anything_is_measured(args: list[str], said: str, run: Run) -> None:
    code, out, err = run("bench", *args)
    assert (code, out) == (2, "")
    assert said in err


def test_a_picture_that_cannot_be_drawn_is_told_before_anything_is_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr_ws.cli.bench.find_spec", lambda _: None)
    assert run("bench", "--plot", "a.png") == (
        2,
        "",
        "error: asr-ws bench --plot needs the optional dependencies 'bench'\nhint: pip install 'asr-ws[bench]'\n",
    )


def test_the_server_is_given_what_is_not_the_default() -> None:
    settings = Settings(
        listen=Listen(tls_self_signed=True),
        access=Access(allow_origin=("https://a.example", "null")),
        model=Model(model="tiny.en", cpu_threads=2),
    )
    assert as_arguments(settings) == [
        *["--tls-self-signed", "--allow-origin", "https://a.example", "--allow-origin", "null"],
        *["--model", "tiny.en", "--cpu-threads", "2"],
    ]
    environ = {"ASR_WS_PORT": "1", "ASR_WS_CONFIG": "a.toml", "ASR_WS_CACHE_DIR": "models", "PATH": "bin"}
    assert without_settings(environ) == {"ASR_WS_CACHE_DIR": "models", "PATH": "bin"}


# ---------------------------------------------------------------- what it says


def test_a_row_lines_up_with_its_header() -> None:
    nothing = replace(GOOD, utterances=0, finals=0, wait_ms=None, text_ms=None, decode_ms=None, load=0.0, worker=None)
    assert [*HEADER.splitlines(), row(GOOD), row(nothing)] == [
        "                            wait for the model, s  speech to text, s  decode",
        "talkers utterances  texts       p50    p95    max         p50    p95       s  load  worker  refused  partials",
        "      8         50     50      0.41   2.90   3.30        1.21   3.90    0.48   81%     97%     0.12       0.5"
        "  carried",
        "      8          0      0         -      -      -           -      -       -    0%       -     6.00      25.0"
        "  not carried",
    ]


@pytest.mark.parametrize(
    ("steps", "ended", "expected"),
    [
        (
            [GOOD, BAD],
            "found",
            "This machine carries 8 people who speak without pause with tiny.en (cpu). 95 of 100 utterances waited "
            "2.9 s at most for the model. With 9: 1 of 50 utterances came to no text.",
        ),
        (
            [GOOD, replace(GOOD, talkers=9, late_ms=LATE)],
            "found",
            "This machine carries at least 8 people who speak without pause with tiny.en (cpu). 95 of 100 utterances "
            "waited 2.9 s at most for the model. With 9: the measuring side was the limit: it sent audio 180 ms late "
            "(p99).",
        ),
        (
            [replace(GOOD, talkers=1)],
            "interrupted",
            "This machine carries at least 1 person who speaks without pause with tiny.en (cpu). 95 of 100 utterances "
            "waited 2.9 s at most for the model. It was interrupted.",
        ),
        (
            [replace(BAD, talkers=1)],
            "found",
            "This machine carries nobody who speaks without pause with tiny.en (cpu). "
            "With 1: 1 of 50 utterances came to no text.",
        ),
        (
            [replace(BAD, talkers=25)],
            "given",
            "This machine does not carry 25 people who speak without pause with tiny.en (cpu); fewer were not tried. "
            "With 25: 1 of 50 utterances came to no text.",
        ),
        (
            [replace(GOOD, utterances=0, finals=0, wait_ms=None)],
            "given",
            "No utterance ended in the time measured: try a longer --seconds, or more --talkers.",
        ),
        ([], "interrupted", "Nothing was measured."),
    ],
)
def test_people_are_told_in_a_sentence(steps: list[Step], ended: str, expected: str) -> None:
    assert sentence(Course("tiny.en (cpu)", steps, ended), 1.0, this_machine=True) == expected


@pytest.mark.parametrize(
    ("steps", "talkers"),
    [([], None), ([replace(BAD, talkers=1)], 0), ([replace(BAD, talkers=25)], None), ([GOOD, BAD], GOOD.talkers)],
)
def test_fewer_than_were_tried_are_not_judged(steps: list[Step], talkers: int | None) -> None:
    assert Course(steps=steps).talkers == talkers


def test_the_share_of_the_time_is_told() -> None:
    said = sentence(Course("base", [GOOD], "most"), 0.25, this_machine=False)
    assert said.startswith("This server carries at least 8 people who speak 25% of the time with base. ")


def test_the_picture_has_waits_the_limit_and_refusals() -> None:
    figure = Figure()
    steps = [step.figures() for step in (BAD, GOOD)]
    draw(figure, {"model": "m", "max_wait_ms": 8000, "machine": {"cpu": "c", "cores": 2, "os": "o"}, "steps": steps})
    lines = {line.get_label(): [*line.get_ydata()] for axes in figure.axes for line in axes.get_lines()}  # type: ignore[call-overload]
    assert lines == {
        "wait, p95": [2.9, 2.9],
        "wait, p50": [0.41, 0.41],
        "not carried": [2.9],
        "longest wait allowed": [8.0, 8.0],
        "refusals": [0.12, 0.12],
    }


# ---------------------------------------------------------------- small runs


async def test_a_server_that_runs_is_measured(scripted: WorkerSpec, tmp_path: Path) -> None:
    """It says that its model is the default one."""
    async with serving(scripted) as app:
        url = app.url
        arguments = ("--url", url, "--talkers", "1", "--seconds", "1.5", "--plot", str(tmp_path / "a.svg"))
        pipe = asyncio.subprocess.PIPE
        done = await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdout=pipe, stderr=pipe)
        out, err = await done.communicate()
    *table, _, said, last = out.decode().splitlines()
    told: dict[str, Any] = json.loads(last)
    (step,) = told["steps"]
    assert (done.returncode, err) == (0 if step["carried"] else 1, b"")
    assert (told["talkers"], told["ended"], told["server"]) == (int(step["carried"]), "given", ["--url", url])
    assert (step["talkers"], step["untold_share"], 0 < step["sent_late_ms"]["n"] <= 15) == (1, 0.0, True)
    assert (table[0], table[-1].split()[:2]) == ("base", ["1", f"{step['utterances']}"])
    assert said.startswith("This server carries ")
    assert (tmp_path / "a.svg").read_text("utf-8").startswith("<?xml")


async def test_what_was_measured_before_the_server_was_lost_is_told() -> None:
    server = await ServerProcess.start(program=("benchmarks.scripted",))
    try:
        arguments = ("--url", server.url, "--talkers", "1,1,1,1", "--seconds", "1.5")
        pipe = asyncio.subprocess.PIPE
        measuring = await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdout=pipe, stderr=pipe)
        assert measuring.stdout is not None
        for _ in range(5):
            await measuring.stdout.readline()
    finally:
        await server.kill()
    out, err = await measuring.communicate()
    *_, said, last = out.decode().splitlines()
    told: dict[str, Any] = json.loads(last)
    assert (measuring.returncode, told["ended"], len(told["steps"]) >= 1) == (1, "lost", True)
    assert said.endswith("Then the server was lost.")
    assert err.decode().startswith("error: ")


@pytest.mark.model
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the server is left over")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_however_it_is_ended_in_the_background_no_server_is_left(name: str, tiny_en: Path) -> None:
    command = [*COMMAND, "--model", str(tiny_en), "--seconds", "60", "--talkers", "1"]
    ignoring = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # as a shell has it
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=ignoring) as measuring:
        assert measuring.stdout is not None
        measuring.stdout.readline()
        server = psutil.Process(measuring.pid).children(recursive=True)
        measuring.send_signal(getattr(signal, name))
    assert (len(server) >= 2, psutil.wait_procs(server, HANG_S)[1]) == (True, [])


@pytest.mark.model
@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent Ctrl-C alone")
def test_ctrl_c_ends_the_server_and_tells_what_there_is(tiny_en: Path) -> None:
    command = [*COMMAND, "--model", str(tiny_en), "--seconds", "1.5", "--talkers", ",".join("1" * 100)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as measuring:
        assert measuring.stdout is not None
        table = [measuring.stdout.readline() for _ in range(5)]
        server = psutil.Process(measuring.pid).children(recursive=True)
        measuring.send_signal(signal.SIGINT)
        *_, said, last = measuring.stdout.read().splitlines()
        measuring.wait(HANG_S)
    assert table[0].startswith(f"{tiny_en} (cpu, ")
    assert said.endswith("It was interrupted.")
    assert {each["talkers"] for each in json.loads(last)["steps"]} == {1}
    assert (measuring.returncode, len(server) >= 2, psutil.wait_procs(server, HANG_S)[1]) == (1, True, [])
