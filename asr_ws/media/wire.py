"""What the media process says: a line of JSON, `Opened` or `Refused`, and behind the former PCM to the audio's end.

The PCM is float32, little-endian, mono, at 16 kHz, finite, in [-1, 1]. The exit status says how it ended: 0, by the end
of the audio or `Refused`; one of those below; or whatever befell it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

EXIT_TOO_LONG = 4  # behind `Opened`: there was more than it may decode
EXIT_OUT_OF_MEMORY = 5  # its limit, not the machine's


class Reason(StrEnum):
    """Why there is no audio."""

    EMPTY_FILE = "empty_file"
    TOO_LARGE = "too_large"
    NO_SPACE = "no_space"  # the server's fault, the rest are the file's
    UNSUPPORTED_MEDIA = "unsupported_media"
    UNDECODABLE_MEDIA = "undecodable_media"
    NO_AUDIO = "no_audio"
    TOO_LONG = "too_long"


class Opened(msgspec.Struct, frozen=True, tag_field="type", tag="opened"):
    """There is audio, and some of it has been decoded already.

    Attributes:
        duration_s: as the file says, which may be wrong; None: it does not, or nobody would believe it.
        format: FFmpeg's names of the container and the codec, such as ``"ogg opus"``.
    """

    duration_s: float | None
    format: str


class Refused(msgspec.Struct, frozen=True, tag_field="type", tag="refused"):
    error: Reason
    message: str  # for people


def encode(header: Opened | Refused) -> bytes:
    return msgspec.json.encode(header) + b"\n"


def decode(line: bytes) -> Opened | Refused:
    """Raises: msgspec.DecodeError: it is neither."""
    return _decoder.decode(line)


_decoder = msgspec.json.Decoder(Opened | Refused)
