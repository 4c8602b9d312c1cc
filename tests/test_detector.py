"""SileroModel against faster-whisper's offline detector, on the bundled recordings."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from faster_whisper.vad import get_vad_model
from numpy.typing import NDArray

import asr_ws
from asr_ws.core.types import Detector, Samples
from asr_ws.detector import SileroModel
from asr_ws.errors import MissingExtra, ModelError

SPEECH = Path(asr_ws.__file__).parent / "assets" / "speech"


@pytest.fixture(scope="module")
def model() -> SileroModel:
    return SileroModel()


def windows_of(name: str) -> Samples:
    """Shape (n, 512); the last one is all zeros, because the offline detector silences the end of the last window."""
    samples, _rate = soundfile.read(SPEECH / name, dtype="float32")
    n = len(samples) // 512
    return np.concatenate([samples[: n * 512], np.zeros(512, np.float32)]).reshape(-1, 512)


def heard(detector: Detector, windows: Samples, size: int) -> NDArray[np.float32]:
    return np.concatenate([detector.probabilities(windows[i : i + size]) for i in range(0, len(windows), size)])


@pytest.mark.parametrize("size", [1, 3, 8, 10_000])
@pytest.mark.parametrize("name", ["jfk.wav", "long-two-cities.wav"])
def test_streamed_it_equals_the_offline_detector_exactly(model: SileroModel, name: str, size: int) -> None:
    windows = windows_of(name)
    offline = get_vad_model()(windows.copy().reshape(-1))
    streamed = heard(model.detector(), windows, size)
    assert (streamed.shape, streamed.dtype) == ((len(windows),), np.float32)
    assert np.array_equal(streamed, offline)
    assert (streamed > 0.5).mean() > 0.5  # it is speech: an array of zeros would not do


def test_interleaved_sessions_hear_what_they_would_hear_alone(model: SileroModel) -> None:
    jfk, cities = windows_of("jfk.wav")[:200], windows_of("long-two-cities.wav")[:200]
    first, second = model.detector(), model.detector()
    turns = [(first.probabilities(jfk[i : i + 2]), second.probabilities(cities[i : i + 2])) for i in range(0, 200, 2)]
    assert np.array_equal(np.concatenate([a for a, _ in turns]), heard(model.detector(), jfk, 200))
    assert np.array_equal(np.concatenate([b for _, b in turns]), heard(model.detector(), cities, 200))


def test_reset_forgets(model: SileroModel) -> None:
    windows = windows_of("jfk.wav")[:60]
    detector = model.detector()
    fresh = heard(detector, windows, 8)
    carried_on = heard(detector, windows, 8)
    detector.reset()
    assert np.array_equal(heard(detector, windows, 8), fresh)
    assert not np.array_equal(carried_on, fresh)


def test_the_callers_buffer_may_be_reused(model: SileroModel) -> None:
    windows = windows_of("jfk.wav")[:60]
    detector, buffer = model.detector(), np.empty((1, 512), np.float32)
    probabilities = []
    for window in windows:
        buffer[:] = window
        probabilities.append(detector.probabilities(buffer)[0])
    assert np.array_equal(probabilities, heard(model.detector(), windows, 60))


@pytest.mark.parametrize(
    "signal",
    [
        np.zeros(5 * 16_000),
        np.random.default_rng(0).normal(0, 0.001, 5 * 16_000),
        0.3 * np.sin(2 * np.pi * 440 * np.arange(5 * 16_000) / 16_000),
    ],
    ids=["silence", "room noise", "tone"],
)
def test_what_is_no_speech_is_not_taken_for_it(model: SileroModel, signal: NDArray[np.float64]) -> None:
    windows = signal[: 156 * 512].reshape(-1, 512).astype(np.float32)
    probabilities = heard(model.detector(), windows, 8)
    assert probabilities.min() >= 0
    assert probabilities.max() < 0.35  # the default threshold's lower one


def test_a_window_of_another_size_is_a_bug(model: SileroModel) -> None:
    with pytest.raises(AssertionError):
        model.detector().probabilities(np.zeros((1, 480), np.float32))


def test_a_detector_adds_little_to_the_model(model: SileroModel) -> None:
    detector = model.detector()
    state = [getattr(detector, name) for name in detector.__slots__ if name != "_session"]
    detector.probabilities(np.ones((500, 512), np.float32))
    kept = [getattr(detector, name) for name in detector.__slots__ if name != "_session"]
    assert sum(array.nbytes for array in state) == 4 * (128 + 128 + 64)
    assert [new is old for new, old in zip(kept, state, strict=True)] == [True] * 3  # nothing outlives a call


def test_a_missing_package_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtra) as raised:
        SileroModel()
    assert str(raised.value) == (
        "speech detection needs the optional dependencies 'server' (pip install 'asr-ws[server]')"
    )


@pytest.mark.parametrize("content", [None, b"", b"not a network"], ids=["absent", "empty", "garbage"])
def test_a_missing_or_broken_file_is_a_model_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "silero_vad_v6.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"silero_vad.*pip install -U"):
        SileroModel(tmp_path)


def test_a_network_with_other_inputs_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Input:
        name, shape = "input", [1, 512]

    class OtherNetwork:
        def __init__(self, *_arguments: object, **_options: object) -> None: ...
        def get_inputs(self) -> list[Input]:
            return [Input()]

    (tmp_path / "silero_vad.onnx").touch()
    monkeypatch.setattr("onnxruntime.InferenceSession", OtherNetwork)
    with pytest.raises(ModelError, match=r"no silero_vad\.onnx in .* takes"):
        SileroModel(tmp_path)


def test_detection_loads_no_recognizer() -> None:
    program = """
import sys
from asr_ws.detector import SileroModel
SileroModel().detector()
print(sorted({"faster_whisper", "ctranslate2", "torch"} & set(sys.modules)))
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert printed.stdout == "[]\n"


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """onnxruntime would keep a device id in the user's cache, and a database of what it will send."""
    code = "from asr_ws.detector import SileroModel; SileroModel()"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    homes = dict.fromkeys(("HOME", "USERPROFILE", "LOCALAPPDATA", "XDG_CACHE_HOME"), str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment, **homes})
    assert list(tmp_path.iterdir()) == []
