"""Streaming speech detection: the Silero network (ONNX) that faster-whisper ships, with its state carried per session.

The file is found without importing faster-whisper, which would load CTranslate2 into the server process. The network
takes windows of 512 samples, each preceded by the last 64 of the window before, and an LSTM state (h, c). With both
carried from call to call the result equals faster-whisper's offline detector bit for bit, however the windows are
grouped: it runs the LSTM along the batch axis, so consecutive windows of one session can share a call (115 us a window
alone, 62 us in eights), windows of different sessions cannot.

One `SileroModel` serves every session; it is read-only and its calls may come from several threads. What a session owns
is 1.3 KB of state.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr_ws.core.types import Samples
from asr_ws.errors import MissingExtra, ModelError, not_imported

# What is said here is nobody else's business: since 1.32 onnxruntime reports to its makers where nothing forbids it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime
except ImportError as error:
    raise not_imported(error, "speech detection", "server") from error

WINDOW = 512  # samples, 32 ms: the only window Silero takes at 16 kHz
_CONTEXT = 64  # samples of the window before
_INPUTS = {"input": ["seq_len", WINDOW + _CONTEXT], "h": [1, 1, 128], "c": [1, 1, 128]}
_HINT = "pip install -U 'asr-ws[server]'"


class SileroModel:
    """The network, loaded once and shared by all sessions.

    Args:
        folder: where to look for ``silero_vad*.onnx`` (its name differs by version); None: faster-whisper's package.
    Raises:
        MissingExtra: faster-whisper is not installed.
        ModelError: no such file, or none with the inputs that we know.
    """

    def __init__(self, folder: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # a window is too small to share out
        options.enable_cpu_mem_arena = False  # as faster-whisper does: no arena that only ever grows
        options.log_severity_level = 4  # fatal only: it writes to stderr past our log
        self._session = _open(folder or _assets(), options)

    def detector(self) -> SileroDetector:
        """A new session's detector, with nothing heard yet."""
        return SileroDetector(self._session)


class SileroDetector:
    """One session's `asr_ws.core.types.Detector`; made by `SileroModel.detector`."""

    __slots__ = ("_c", "_context", "_h", "_session")

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        # Written in place. Keeping what each run returns instead would cost 20 to 60 KB a session, because small arrays
        # that outlive a run keep the memory between them, which its large ones leave, from being used again.
        self._h = np.zeros((1, 1, 128), np.float32)
        self._c = np.zeros((1, 1, 128), np.float32)
        self._context: Samples = np.zeros(_CONTEXT, np.float32)

    def reset(self) -> None:
        """Forget what was heard, as at a session's start."""
        for state in (self._h, self._c, self._context):
            state.fill(0)

    def probabilities(self, windows: Samples) -> NDArray[np.float32]:
        """Speech probability of each window.

        Args:
            windows: shape (n, 512), n >= 1, consecutive, and following the last call's.
        Returns:
            shape (n,), in [0, 1].
        """
        assert windows.shape[1:] == (WINDOW,), windows.shape
        inputs = np.empty((len(windows), _CONTEXT + WINDOW), np.float32)
        inputs[:, _CONTEXT:] = windows
        inputs[0, :_CONTEXT] = self._context
        inputs[1:, :_CONTEXT] = windows[:-1, -_CONTEXT:]
        result: NDArray[np.float32]
        result, h, c = self._session.run(None, {"input": inputs, "h": self._h, "c": self._c})
        self._h[:], self._c[:], self._context[:] = h, c, windows[-1, -_CONTEXT:]
        return result


def _assets() -> Path:
    spec = importlib.util.find_spec("faster_whisper")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("speech detection", "server")
    return Path(spec.submodule_search_locations[0], "assets")


def _open(folder: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    files = sorted(folder.glob("silero_vad*.onnx"), reverse=True)
    if not files:
        raise ModelError(f"there is no silero_vad*.onnx in {folder}", _HINT)
    for file in files:
        try:
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base of their own
            raise ModelError(f"{file} does not load: {error}", _HINT) from error
        if {value.name: value.shape for value in session.get_inputs()} == _INPUTS:
            return session
    raise ModelError(f"no {' or '.join(file.name for file in files)} in {folder} takes {_INPUTS}", _HINT)
