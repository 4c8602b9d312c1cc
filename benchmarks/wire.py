"""A client that keeps no rules: WebSocket frames by hand over a blocking socket, and a check of what comes back."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Self

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from asr_ws import messages, schema
from asr_ws.errors import ProtocolError

LIMIT_S: Final = 30.0  # of a connection


class Broken(Exception):
    """The server did what it must never do."""


def expect(holds: bool, sentence: str) -> None:
    """Raises: Broken: it does not hold."""
    if not holds:
        raise Broken(sentence)


CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
PLAIN: Final = bytes(4)  # a mask that changes nothing
HANDSHAKE: Final = (
    f"GET {messages.PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()


@dataclass(frozen=True)
class Frame:
    """A client's, as wrong as it is wanted. ``claims``: the length that it says it has; None: its own."""

    opcode: int
    payload: bytes = b""
    fin: bool = True
    rsv: int = 0
    mask: bytes | None = PLAIN
    claims: int | None = None

    def __bytes__(self) -> bytes:
        length, masked = len(self.payload) if self.claims is None else self.claims, 0x80 if self.mask else 0
        if length < 126:
            head = struct.pack("!B", masked | length)
        elif length < 1 << 16:
            head = struct.pack("!BH", masked | 126, length)
        else:
            head = struct.pack("!BQ", masked | 127, length)
        mask, payload = self.mask or b"", self.payload
        if self.mask and self.mask != PLAIN:
            payload = bytes(byte ^ self.mask[at % 4] for at, byte in enumerate(payload))
        return bytes([(0x80 if self.fin else 0) | self.rsv | self.opcode]) + head + mask + payload


class Wire:
    """One TCP connection to the server, whose every wait is limited."""

    def __init__(self, port: int) -> None:
        self._until = monotonic() + LIMIT_S
        self._socket = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._incoming.close()
        self._socket.close()

    def send(self, data: bytes | Frame) -> None:
        """The server may have closed. Raises: TimeoutError."""
        with suppress(ConnectionError):
            self._socket.settimeout(self._left_s())
            self._socket.sendall(bytes(data))

    def open(self) -> None:
        """The handshake."""
        self.send(HANDSHAKE)
        status = self._line()
        expect(status.startswith(b"HTTP/1.1 101 "), f"the handshake was answered by {status!r}")
        while self._line().strip():
            pass

    def half_close(self) -> None:
        with suppress(OSError):  # the server has closed
            self._socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Closing becomes a reset, whatever is still under way."""
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload of all that the server sends until it closes. Raises: Broken, TimeoutError."""
        while len(head := self._read(2)) == 2:
            first, length = head
            expect(first & 0x80 == 0x80 and not first & 0x70 and length < 0x80, f"a frame begins with {head!r}")
            if length >= 126:
                length = int.from_bytes(self._read(2 if length == 126 else 8), "big")
            if len(payload := self._read(length)) < length:
                return
            yield first & 0x0F, payload

    def rest(self) -> bytes:
        """Raises: TimeoutError: the server does not close."""
        return b"".join(iter(lambda: self._read(1 << 16), b""))

    def _left_s(self) -> float:
        return max(self._until - monotonic(), 0.001)

    def _line(self) -> bytes:
        self._socket.settimeout(self._left_s())
        return self._incoming.readline(1 << 16)

    def _read(self, n: int) -> bytes:
        with suppress(ConnectionError):
            self._socket.settimeout(self._left_s())
            return self._incoming.read(n)
        return b""


DOCUMENT: Final[dict[str, Any]] = json.loads(schema.FILE.read_text("utf-8"))
VALIDATORS: Final = {
    kind.__struct_config__.tag: Draft202012Validator({"$ref": f"#/$defs/{kind.__name__}", "$defs": DOCUMENT["$defs"]})
    for kind in messages.ServerEvent.__args__
}


def event_of(text: bytes) -> messages.ServerEvent:
    """Raises: Broken: no event that a server of this version sends."""
    try:
        event = messages.decode_event(text)
    except ProtocolError as error:
        raise Broken(str(error)) from error
    if isinstance(event, messages.Unknown):
        raise Broken(f"an unknown event: {text!r}")
    for breach in VALIDATORS[event.__struct_config__.tag].iter_errors(json.loads(text)):
        raise Broken(f"{text!r} does not conform at {breach.json_path}: {breach.message}")
    return event
