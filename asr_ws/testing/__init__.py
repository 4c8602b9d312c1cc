"""Public doubles for tests of asr_ws, and of what is built on it. Each says what is unrealistic about it."""

from asr_ws.testing.detector import ScriptedDetector, scripted_audio

__all__ = ["ScriptedDetector", "scripted_audio"]
