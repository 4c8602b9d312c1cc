"""What `pip install asr-ws` gives, without extras: a client, and no recognizer. A wheel of this tree, in a clean venv.

Needs the package index; skipped where there is none.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asr_ws.worker.supervisor import WorkerSpec
from tests.conftest import SPEECH, one_at_a_time
from tests.server.running import serving
from tests.test_docs import ROOT

INSTALL_S = 500
SERVERS_OWN = ("faster_whisper", "ctranslate2", "onnxruntime", "av", "aiohttp", "structlog", "sounddevice", "psutil")
# Of this process: the tree must not be found there, nor a setting that a developer has.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ASR_WS_"))}


def pip(python: Path, *arguments: str | Path) -> str:
    """Returns: what it complained of, if it failed."""
    command = [python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=INSTALL_S)
    return done.stderr if done.returncode else ""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its programs; one for all of pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "plain"
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    with one_at_a_time("plain", tmp_path_factory):
        if not (folder / "is-whole").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, timeout=INSTALL_S)
            failure = pip(programs / "python", "wheel", ROOT, "--no-deps", "--wheel-dir", folder / "wheels")
            if "No matching distribution found for hatchling" in failure:  # which there is wherever there is an index
                pytest.skip("no package index")
            assert failure == ""
            [wheel] = (folder / "wheels").iterdir()
            assert pip(programs / "python", "install", wheel) == ""
            (folder / "is-whole").touch()
    return programs


def run(program: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    command = [program, *arguments]
    done = subprocess.run(command, cwd=program.parent, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_there_is_nothing_of_the_server(installed: Path) -> None:
    script = f"import importlib.util as u; print([name for name in {SERVERS_OWN} if u.find_spec(name)])"
    assert run(installed / "python", "-c", script) == (0, "[]\n", "")


@pytest.mark.parametrize(
    "module",
    [
        "asr_ws.client",
        "asr_ws.client.http",
        "asr_ws.client.sync",
        "asr_ws.client.transcript",
        "asr_ws.cli.health",
        "asr_ws.cli.top",
        "asr_ws.testing.bare",
        "asr_ws.testing.conformance.__main__",
        "asr_ws.schema",
    ],
)
def test_a_client_has_what_it_imports(module: str, installed: Path) -> None:
    assert run(installed / "python", "-c", f"import {module}") == (0, "", "")


def test_serve_names_the_extra_that_it_needs(installed: Path) -> None:
    code, out, err = run(installed / "asr-ws", "serve")
    assert (code, out) == (2, "")
    assert err.endswith("hint: pip install 'asr-ws[server]'\n")


def test_a_microphone_names_the_extra_that_it_needs(installed: Path) -> None:
    code, _, err = run(installed / "python", "-c", "from asr_ws.client.microphone import Microphone; Microphone()")
    assert code == 1
    assert err.endswith("a microphone needs the optional dependencies 'mic' (pip install 'asr-ws[mic]')\n")


@pytest.mark.parametrize("more", [[], ["--http"]], ids=["session", "http"])
async def test_it_transcribes_by_a_server_elsewhere(more: list[str], installed: Path, scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        arguments = ["transcribe", str(SPEECH / "jfk.wav"), "--url", app.listener.url, *more]
        code, out, err = await asyncio.to_thread(run, installed / "asr-ws", *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("country ")
