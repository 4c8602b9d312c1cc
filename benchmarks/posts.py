"""A file by HTTP over a socket of our own, to see when its bytes went out and when the answer was there."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final
from urllib.parse import urlsplit

from asr_ws.client.http_frames import form

PIECE_BYTES: Final = 64 * 1024
NOTHING: Final[Mapping[str, str]] = {}


class NoAnswer(Exception):
    """The connection ended, or nothing came in time."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A request's body."""

    content_type: str
    body: bytes

    @classmethod
    def of(cls, audio: bytes, file_name: str, fields: Mapping[str, str]) -> Upload:
        framed = form({"model": "whisper-1", **fields}, file_name, secrets.token_hex(16))
        return cls(framed.content_type, framed.head + audio + framed.tail)


@dataclass(frozen=True, slots=True)
class Answer:
    """Attributes:
    headers: by their names in lower case.
    from_head_ms: from the request's head having been sent to all of this having been read.
    from_body_ms: the same from the body's last byte; None: it was answered before that.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    from_head_ms: float
    from_body_ms: float | None

    @property
    def json(self) -> Any:
        """Raises: ValueError."""
        return json.loads(self.body)


async def ask(
    url: str,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] = NOTHING,
    upload: Upload | None = None,
    pause_s: float = 0.0,
    limit_s: float = 120.0,
) -> Answer:
    """One request on a connection of its own, whose answer is read while the body goes out.

    Args:
        url: ``http://HOST:PORT``.
        pause_s: after each `PIECE_BYTES` of the body.
    Raises:
        NoAnswer
    """
    place = urlsplit(url)
    try:
        async with asyncio.timeout(limit_s):
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            try:
                return await _exchange(
                    reader, writer, _head(place.netloc, method, path, headers, upload), upload, pause_s
                )
            finally:
                writer.transport.abort()
    except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
        raise NoAnswer(repr(error)) from error


def _head(host: str, method: str, path: str, headers: Mapping[str, str], upload: Upload | None) -> bytes:
    every = {"Host": host, **headers}
    if upload is not None:
        every |= {"Content-Type": upload.content_type, "Content-Length": str(len(upload.body))}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in every.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, upload: Upload | None, pause_s: float
) -> Answer:
    writer.transport.set_write_buffer_limits(0)  # to be drained is to be with the system
    writer.write(head)
    await writer.drain()
    head_sent_at = perf_counter()
    body_sent_at: float | None = None if upload is not None else head_sent_at

    async def send(body: bytes) -> None:
        nonlocal body_sent_at
        with suppress(ConnectionError):  # who refuses need not read on; the answer says so
            for start in range(0, len(body), PIECE_BYTES):
                writer.write(body[start : start + PIECE_BYTES])
                await writer.drain()
                if pause_s:
                    await asyncio.sleep(pause_s)
            body_sent_at = perf_counter()

    sending = asyncio.create_task(send(upload.body if upload is not None else b""), name="body")
    try:
        status, headers, answered = await _read(reader)
        read_at = perf_counter()
    finally:
        sending.cancel()
        await asyncio.wait([sending])
    return Answer(
        status,
        headers,
        answered,
        (read_at - head_sent_at) * 1000,
        None if body_sent_at is None or body_sent_at > read_at else (read_at - body_sent_at) * 1000,
    )


async def _read(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines if line]
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    status = int(first.split(" ", 2)[1])
    if headers.get("transfer-encoding") == "chunked":
        chunks = []
        while n_bytes := int(await reader.readline(), 16):
            chunks.append((await reader.readexactly(n_bytes + 2))[:-2])
        return status, headers, b"".join(chunks)
    return status, headers, await reader.readexactly(int(headers.get("content-length", 0)))
