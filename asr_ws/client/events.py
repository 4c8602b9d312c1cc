"""What the client itself has to say, beside the server's events: the connection, and audio that it could not keep."""

from __future__ import annotations

from typing import Final as Constant

from msgspec import Struct

from asr_ws import messages

CONNECTION_LOST: Constant = "connection_lost"  # the reason of a `Retry` that is not the server's
OWN: Constant = "asr_ws.client"  # the id of commits, and the beginning of those of pings, that its user did not ask for


class Reconnecting(Struct, frozen=True, tag_field="type", tag="reconnecting"):
    """The connection is gone; it is made anew, and what has no outcome yet is sent again.

    Attributes:
        attempt: 1, 2, ... in a row.
        delay_s: until then.
        reason: a word of the server's, or what went wrong.
    """

    attempt: int
    delay_s: float
    reason: str


class Reconnected(Struct, frozen=True, tag_field="type", tag="reconnected"):
    """The connection is back."""


class Gap(Struct, frozen=True, tag_field="type", tag="gap"):
    """Audio without an outcome: it was gone from the ring before it could be sent, or sent again.

    Attributes:
        audio_start_ms, audio_end_ms: from the session's first byte of audio.
    """

    audio_start_ms: int
    audio_end_ms: int


Event = messages.ServerEvent | messages.Unknown | Reconnecting | Reconnected | Gap


def is_lost(event: Event) -> bool:
    """Whether audio has come to no text by this: dropped (at its user's wish too), failed, or gone.

    An utterance that was heard as part of another one is `Dropped` with no audio of its own: that is not lost.
    """
    match event:
        case messages.Dropped() | Gap():
            return event.audio_start_ms < event.audio_end_ms
        case messages.Error():
            return event.code in messages.ENDS_UTTERANCE
    return False
