"""The Python client: connect, stream audio, read typed events. Needs nothing of the server.

`asr_ws.client.sync` is the same without `async`.
"""

from asr_ws.client.address import DEFAULT_URL, ConnectionLost, SessionRefused, Unreachable
from asr_ws.client.events import CONNECTION_LOST, Event, Gap, Reconnected, Reconnecting, is_lost
from asr_ws.client.session import Session, SessionFailed, connect
from asr_ws.client.sources import AudioSource
from asr_ws.client.transcript import Transcript, collect, transcribe

__all__ = [
    "CONNECTION_LOST",
    "DEFAULT_URL",
    "AudioSource",
    "ConnectionLost",
    "Event",
    "Gap",
    "Reconnected",
    "Reconnecting",
    "Session",
    "SessionFailed",
    "SessionRefused",
    "Transcript",
    "Unreachable",
    "collect",
    "connect",
    "is_lost",
    "transcribe",
]
