"""What the server and its worker process say to each other, and its framing.

MessagePack structs over the worker's stdin and stdout, each behind a 4-byte little-endian length. No pickle: nothing
that arrives can run code. One request is in flight at a time, so one frame bounds what is buffered.
"""

from __future__ import annotations

import struct
from typing import Annotated, BinaryIO

import msgspec

from asr_ws.core.types import DecodeOptions, Segment

MAX_FRAME_BYTES = 16 * 1024 * 1024  # 30 s of float32 are 1.9 MB; anything near this is a broken stream
LENGTH = struct.Struct("<I")


class _Struct(msgspec.Struct, tag=True, frozen=True):
    pass


class DecodeRequest(_Struct, frozen=True):
    id: int
    samples: bytes  # float32 little-endian, mono, 16 kHz
    options: DecodeOptions
    dump_after_s: float  # when the worker, still at it, dumps its stacks to standard error


class Loading(_Struct, frozen=True):
    """Sent before the model is touched, so that a native abort can be laid at a device's door."""

    device: str


class Loaded(_Struct, frozen=True):
    """The model is in memory and has passed its self-test: requests may come."""

    pid: Annotated[int, msgspec.Meta(gt=0, lt=2**31)]  # not that of the spawned one, where Windows' python is two
    device: str
    compute_type: str
    load_s: float
    self_test_audio_s: float
    self_test_decode_s: float


class LoadFailed(_Struct, frozen=True):
    """The last word of a worker that cannot serve."""

    message: str
    retryable: bool


class SegmentDecoded(_Struct, frozen=True):
    """Sent as soon as it is known, and enough to go by if nothing comes after it."""

    request: int
    segment: Segment
    last: bool  # there are no others
    language: str
    language_probability: float


class DecodeDone(_Struct, frozen=True):
    request: int
    language: str
    language_probability: float
    filtered: str | None
    decode_s: float


class DecodeError(_Struct, frozen=True):
    """This decode raised; the worker lives."""

    request: int
    message: str


Reply = Loading | Loaded | LoadFailed | SegmentDecoded | DecodeDone | DecodeError

_encoder = msgspec.msgpack.Encoder()
decode_request = msgspec.msgpack.Decoder(DecodeRequest).decode
_reply_decoder = msgspec.msgpack.Decoder(Reply)


def frame(message: DecodeRequest | Reply) -> bytes:
    payload = _encoder.encode(message)
    return LENGTH.pack(len(payload)) + payload


class Garbled(ValueError):
    """The stream is broken: what arrives is no frame, or holds no reply."""


def frame_length(header: bytes) -> int:
    """Raises: Garbled."""
    (n_bytes,) = LENGTH.unpack(header)
    if n_bytes > MAX_FRAME_BYTES:
        raise Garbled(f"a frame of {n_bytes} bytes")
    return int(n_bytes)


def decode_reply(payload: bytes) -> Reply:
    """Raises: Garbled."""
    try:
        reply: Reply = _reply_decoder.decode(payload)
        return reply
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Garbled(str(error)) from error


def read_payload(stream: BinaryIO) -> bytes | None:
    """Blocking, for the worker's side. Returns: None at the end of the stream, also inside a frame."""
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    n_bytes = frame_length(header)
    payload = stream.read(n_bytes)
    return payload if len(payload) == n_bytes else None
