from __future__ import annotations

import io

import pytest

from asr_ws.core.types import DecodeOptions, Segment, Word
from asr_ws.worker import ipc

SEGMENT = Segment(" hi", 0.0, 0.5, -0.2, 0.01, 1.0, (Word(" hi", 0.1, 0.4, 0.9),))


@pytest.mark.parametrize(
    "reply",
    [
        ipc.Loading("cuda"),
        ipc.Loaded(7, "cpu", "float32", 0.4, 11.0, 0.5),
        ipc.LoadFailed("no such file", retryable=False),
        ipc.SegmentDecoded(7, SEGMENT, True, "en", 1.0),
        ipc.DecodeDone(7, "en", 1.0, "no_speech", 0.3),
        ipc.DecodeError(7, "ValueError: odd"),
    ],
)
def test_replies_survive_the_pipe(reply: ipc.Reply) -> None:
    payload = ipc.read_payload(io.BytesIO(ipc.frame(reply)))
    assert payload is not None
    assert ipc.decode_reply(payload) == reply


def test_request_survives_the_pipe_byte_for_byte() -> None:
    request = ipc.DecodeRequest(1, bytes(range(256)), DecodeOptions(None, "translate", "p", "h", True), 7.0)
    payload = ipc.read_payload(io.BytesIO(ipc.frame(request)))
    assert payload is not None
    assert ipc.decode_request(payload) == request


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5, -1])
def test_stream_that_ends_inside_a_frame_has_ended(cut: int) -> None:
    assert ipc.read_payload(io.BytesIO(ipc.frame(ipc.Loading("cpu"))[:cut])) is None


def test_absurd_length_is_a_broken_stream() -> None:
    with pytest.raises(ValueError, match="a frame of 4294967295 bytes"):
        ipc.read_payload(io.BytesIO(b"\xff\xff\xff\xff"))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        ipc.frame(ipc.Loading("cpu"))[4:].replace(b"cpu", b"c\xffu"),
        b"\x91" * 5000,
        ipc.frame(ipc.Loaded(-1, "cpu", "float32", 0.4, 11.0, 0.5))[4:],
    ],
    ids=["nothing", "no type", "no text", "too deep", "no process"],
)
def test_what_is_no_reply_is_a_broken_stream(payload: bytes) -> None:
    with pytest.raises(ipc.Garbled):
        ipc.decode_reply(payload)
