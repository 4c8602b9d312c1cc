"""The Python client: connect, stream audio, read typed events. Needs nothing of the server.

`asr_ws.client.sync` is the same without `async`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = ("address", "events", "session", "sources", "transcript")


def __getattr__(name: str) -> Any:
    """Import what a program names, when it does: `asr-ws health`, say, is to start at once, and streams nothing."""
    if name in __all__:
        for module in _MODULES:
            found = vars(import_module(f"{__name__}.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
