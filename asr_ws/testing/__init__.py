"""Public doubles for tests of asr_ws, and of what is built on it. Each says what is unrealistic about it."""

from typing import TYPE_CHECKING, Any

from asr_ws.testing.detector import ScriptedDetector, scripted_audio

if TYPE_CHECKING:
    from asr_ws.testing.recognizer import ScriptedRecognizer

__all__ = ["ScriptedDetector", "ScriptedRecognizer", "scripted_audio"]


def __getattr__(name: str) -> Any:
    """`ScriptedRecognizer` needs the server's dependencies, which not everything here does."""
    if name == "ScriptedRecognizer":
        from asr_ws.testing.recognizer import ScriptedRecognizer

        return ScriptedRecognizer
    raise AttributeError(name)
