"""asr_ws: WebSocket streaming speech recognition with one bounded queue in front of one model."""

__version__ = "0.1.0"
