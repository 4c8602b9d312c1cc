"""Frames that break RFC 6455, or bend it: the close code, and a neighbour who notices nothing.

The cases follow Autobahn's testsuite: framing, pings and pongs, reserved bits, opcodes, fragments, UTF-8, closes.
"""

from __future__ import annotations

import struct

import pytest

from asr_ws import messages
from asr_ws.testing.recognizer import Gate
from asr_ws.worker.supervisor import WorkerSpec
from benchmarks.wire import BINARY, CLOSE, CONT, PING, PONG, TEXT
from tests.server.raw import Raw, frame, head, raw
from tests.server.running import MANUAL, SECOND, Client, serving

CUT = "é".encode()[:1]  # the first byte of two
GOING_ON = b'{"type":"ping","id":1}'
BYE = frame(CLOSE, struct.pack("!H", 1000))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


# What is sent, and the code that the server closes with; where all is well, it goes on, until it is told to close.
CASES = {
    # framing
    "unmasked text": (frame(TEXT, GOING_ON, masked=False), 1002),
    "unmasked binary": (frame(BINARY, b"1234", masked=False), 1002),
    "unmasked ping": (frame(PING, masked=False), 1002),
    "reserved bit 1": (frame(TEXT, GOING_ON, rsv=0x40), 1002),
    "reserved bit 2": (frame(BINARY, b"12", rsv=0x20), 1002),
    "reserved bit 3 of a ping": (frame(PING, rsv=0x10), 1002),
    "reserved opcode 3": (frame(0x3, b"x"), 1002),
    "reserved opcode 7": (frame(0x7), 1002),
    "reserved control opcode B": (frame(0xB), 1002),
    "reserved control opcode F": (frame(0xF, b"x"), 1002),
    "head of a frame of 64 MiB": (head(BINARY, 1 << 26), 1009),
    "head of a frame of 2^63 bytes": (b"\x82\xff" + (1 << 63).to_bytes(8, "big") + b"mask", 1009),
    "head of a text of 64 MiB": (head(TEXT, 1 << 26), 1009),
    "frame of just too many bytes": (frame(BINARY, bytes(messages.MAX_BINARY_BYTES + 1)), 1009),
    "frame of just so many bytes": (frame(BINARY, bytes(messages.MAX_BINARY_BYTES)) + BYE, 1000),
    # control frames
    "ping of 125 bytes": (frame(PING, bytes(125)) + BYE, 1000),
    "ping of 126 bytes": (head(PING, 126) + bytes(126), 1002),
    "fragmented ping": (frame(PING, fin=False), 1002),
    "pong that nobody asked for": (frame(PONG, b"?") + BYE, 1000),
    # fragments
    "text in two fragments": (frame(TEXT, GOING_ON[:9], fin=False) + frame(CONT, GOING_ON[9:]) + BYE, 1000),
    "ping between two fragments": (
        frame(TEXT, GOING_ON[:9], fin=False) + frame(PING) + frame(CONT, GOING_ON[9:]) + BYE,
        1000,
    ),
    "continuation of nothing": (frame(CONT, b"x"), 1002),
    "last continuation of nothing": (frame(CONT, b"x", fin=False), 1002),
    "text between two fragments": (frame(BINARY, b"12", fin=False) + frame(TEXT, GOING_ON), 1002),
    "binary fragments that are too many bytes": (
        frame(BINARY, bytes(messages.MAX_BINARY_BYTES), fin=False) + frame(CONT, b"12"),
        1009,
    ),
    "fragments without end": (frame(BINARY, fin=False) + frame(CONT, fin=False) * 5000, 1009),
    # UTF-8
    "text that is no UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "text that is cut in a letter": (frame(TEXT, CUT), 1007),
    "letter cut between two fragments": (
        frame(TEXT, b'{"type":"ping","id":"' + CUT, fin=False) + frame(CONT, "é".encode()[1:] + b'"}') + BYE,
        1000,
    ),
    "surrogate as UTF-8": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "overlong UTF-8": (frame(TEXT, b"\xc0\xaf"), 1007),
    # closes
    "close without a code": (frame(CLOSE), 1005),
    "close with half a code": (frame(CLOSE, b"\x03"), 1002),
    "close with a code that is reserved": (close(1005), 1002),
    "close with a code that nobody has": (close(999), 1002),
    "close with a code of ours": (close(4000, b"bye"), 4000),
    "close with a reason that is no UTF-8": (close(1000, b"\xff"), 1007),
    "close with a reason that is too long": (head(CLOSE, 126) + bytes(126), 1002),
    "frames after the close": (BYE + frame(TEXT, b"\xff"), 1000),
}


async def code_of(socket: Raw, sent: bytes, n_bytes: int) -> int:
    assert (await socket.upgrade()).startswith("HTTP/1.1 101 ")
    await socket.send(sent, n_bytes)
    return await socket.close_code()


@pytest.mark.parametrize("n_bytes", [0, 1])
async def test_each_frame_has_its_close_code_and_costs_no_neighbour_anything(
    scripted: WorkerSpec, n_bytes: int
) -> None:
    """Whole, and byte by byte, as far as that does not take all day."""
    cases = {name: case for name, case in CASES.items() if n_bytes == 0 or len(case[0]) < 10_000}
    async with Gate() as gate, serving(scripted) as app, Client(app) as neighbour:
        await neighbour.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"}, SECOND, {"type": "end"})
        decode = await gate.entered()
        codes = {}
        for name, (sent, _) in cases.items():
            async with raw(app) as socket:
                codes[name] = await code_of(socket, sent, n_bytes)
        assert codes == {name: code for name, (_, code) in cases.items()}
        gate.release(decode)
        await gate.open()
        assert await neighbour.rest() == 1000
        assert (neighbour.events[-1]["finals"], neighbour.events[-1]["lost_ms"]) == (2, 0)
        await app.listener.wait_empty()
