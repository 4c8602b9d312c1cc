"""How a file goes out over HTTP, multipart/form-data, and how events come back, server-sent events. No I/O.

After RFC 7578 and the WHATWG's HTML standard, as browsers do both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from asr_ws.errors import ClientError

MAX_EVENT_BYTES = 64 << 20  # ten hours of words with their times have a tenth
_LINE_END = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Form:
    """What stands around a file; the whole body is ``head``, the file, ``tail``."""

    content_type: str
    head: bytes
    tail: bytes


def form(fields: Mapping[str, str], file_name: str, boundary: str) -> Form:
    """Args: boundary: in none of the fields, nor in the file; so it is random."""
    parts = [_part(boundary, f'name="{name}"') + f"{value}\r\n" for name, value in fields.items()]
    # As browsers quote it; a control character would end the header, or be refused in it.
    quoted = re.sub(r'["\x00-\x1f\x7f]', lambda found: f"%{ord(found[0]):02X}", file_name)
    parts.append(_part(boundary, f'name="file"; filename="{quoted}"', "Content-Type: application/octet-stream\r\n"))
    head = "".join(parts).encode(errors="replace")  # a name need not be UTF-8
    return Form(f"multipart/form-data; boundary={boundary}", head, f"\r\n--{boundary}--\r\n".encode())


def _part(boundary: str, names: str, headers: str = "") -> str:
    return f"--{boundary}\r\nContent-Disposition: form-data; {names}\r\n{headers}\r\n"


class EventStream:
    """Server-sent events of which only `data` counts: the events of this server have their type in it."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._after_cr = False  # a line feed that comes next belongs to it
        self._data: list[bytes] = []
        self._n_bytes = 0  # of the event

    def feed(self, received: bytes) -> list[str]:
        """What events carry that end in it, however it was cut; an event that never ends is none.

        Raises:
            ClientError: an event of more than MAX_EVENT_BYTES.
        """
        if not received:
            return []
        is_rest = self._after_cr and received.startswith(b"\n")
        self._after_cr = received.endswith(b"\r")
        *ends, rest = _LINE_END.split(received[is_rest:])
        events = []
        for end in ends:
            line = bytes(self._line + end)
            self._line.clear()
            self._n_bytes += len(line)
            if line:
                self._take(line)
                continue
            if self._data:
                events.append(b"\n".join(self._data).decode(errors="replace"))
            self._data, self._n_bytes = [], 0
        self._line += rest
        if self._n_bytes + len(self._line) > MAX_EVENT_BYTES:
            raise ClientError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return events

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")  # a comment has no name
        if name.removeprefix(b"\xef\xbb\xbf") == b"data":
            self._data.append(value.removeprefix(b" "))
