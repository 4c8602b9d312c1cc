"""The Python client: connect, stream audio, read typed events. Needs nothing of the server."""

from asr_ws.client.session import (
    DEFAULT_URL,
    ConnectionLost,
    Event,
    Session,
    SessionRefused,
    Transcript,
    collect,
    connect,
    transcribe,
)
from asr_ws.client.sources import AudioSource

__all__ = [
    "DEFAULT_URL",
    "AudioSource",
    "ConnectionLost",
    "Event",
    "Session",
    "SessionRefused",
    "Transcript",
    "collect",
    "connect",
    "transcribe",
]
