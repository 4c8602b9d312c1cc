"""Clients of the HTTP side: whole requests, whose answers are held against the OpenAPI document, and ones that stop."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from asr_ws.server.app import App
from asr_ws.testing.recognizer import Gate
from tests.conftest import SPEECH
from tests.media.files import KIND, encoded, tone
from tests.openapi import check, check_response, events
from tests.server.raw import Raw, raw
from tests.server.running import MANUAL, SECOND, Client

TRANSCRIPTIONS, TRANSLATIONS, JOBS = "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/jobs"
BOUNDARY = "x"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
WAV = encoded(KIND["wav-s16-16k"], tone(1.0, 16_000))
LONG = (SPEECH / "long-two-cities.wav").read_bytes()  # 44 s: two slices
REFUSAL = {"error", "retry_after_ms", "estimated_wait_ms", "queue_depth"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # whose names are lower case
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        code: str = self.json["error"]["code"]
        return code

    @property
    def said(self) -> tuple[int, str]:
        """Of an error."""
        return self.status, self.code

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(events(self.body))


def form(file: bytes | None = WAV, **fields: str | list[str]) -> bytes:
    """A multipart body. Args: fields: a list is one that is repeated, as OpenAI's clients write it."""
    parts = [
        f'Content-Disposition: form-data; name="{name}{"[]" * isinstance(value, list)}"\r\n\r\n{each}\r\n'.encode()
        for name, value in fields.items()
        for each in (value if isinstance(value, list) else [value])
    ]
    if file is not None:
        parts.append(b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + file + b"\r\n")
    return b"".join(b"--%s\r\n%s" % (BOUNDARY.encode(), part) for part in parts) + f"--{BOUNDARY}--\r\n".encode()


async def ask(
    app: App, method: str, path: str, body: bytes | AsyncIterator[bytes] | None = None, **headers: str
) -> Answer:
    """A whole request, and its answer, which is as the document says; 405 and paths that are not there it knows not."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {**(FORM if body is not None else {}), **names}
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.request(method, app.listener.url + path, data=body, headers=sent) as response,
    ):
        answer = Answer(
            response.status, {name.lower(): value for name, value in response.headers.items()}, await response.text()
        )
    checked(method, path, answer)
    return answer


def checked(method: str, path: str, answer: Answer) -> None:
    content_type = answer.headers.get("content-type", "").partition(";")[0]
    if answer.status == 405:
        check("Error", answer.json)
    elif method != "OPTIONS":
        check_response(
            method, re.sub("^/v1/jobs/.+", "/v1/jobs/{job_id}", path), answer.status, answer.body, content_type
        )
    if answer.status in (429, 503):
        check_refusal(answer)


def check_refusal(answer: Answer) -> None:
    """Its headers say the same as its body."""
    told, headers = answer.json, answer.headers
    assert set(told) == REFUSAL
    assert headers["retry-after-ms"] == str(told["retry_after_ms"])
    assert headers["retry-after"] == str(math.ceil(told["retry_after_ms"] / 1000))
    assert headers["x-should-retry"] == "true"
    assert told["retry_after_ms"] >= 500


async def transcribe(
    app: App, file: bytes | None = WAV, *, path: str = TRANSCRIPTIONS, token: str = "", **fields: Any
) -> Answer:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return await ask(app, "POST", path, form(file, **fields), **headers)


def head(path: str, n_bytes: int, *headers: str) -> bytes:
    kind = f"Content-Type: {FORM['Content-Type']}"
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {n_bytes}", kind, *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def answer_to(socket: Raw) -> Answer:
    """Read to its end."""
    start, _, body = (await socket.rest()).partition(b"\r\n\r\n")
    status, *lines = start.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return Answer(int(status.split()[1]), {name.lower(): value for name, _, value in pairs}, body.decode())


async def ask_by_head(app: App, path: str, *headers: str, n_bytes: int = 1_000_000) -> Answer:
    """What is answered to who has not sent his body yet."""
    async with raw(app) as socket:
        await socket.send(head(path, n_bytes, *headers))
        answer = await answer_to(socket)
    checked("POST", path, answer)
    return answer


@asynccontextmanager
async def uploading(
    app: App, path: str = TRANSCRIPTIONS, *headers: str, body: bytes | None = None
) -> AsyncIterator[Raw]:
    """A request whose last byte has not been sent yet; leaving is going away."""
    body = form() if body is None else body
    async with raw(app) as socket:
        await socket.send(head(path, len(body), *headers) + body[:-1])
        yield socket


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def media_processes() -> list[int]:
    found = []
    for child in psutil.Process().children():
        try:
            if "asr_ws.media" in child.cmdline():
                found.append(child.pid)
        except psutil.Error:  # it has ended
            pass
    return found


@asynccontextmanager
async def busy(app: App) -> AsyncIterator[Gate]:
    """The worker is at a live utterance, which the gate holds."""
    async with Gate() as gate, Client(app) as client:
        await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
        await client.until("accepted")
        await gate.entered()
        yield gate


@contextmanager
def nothing_is_left(app: App) -> Iterator[None]:
    """What is counted before is counted after, as soon as it is looked at."""
    before = psutil.Process().num_fds()
    worker = app.supervisor.pid
    yield
    files = app.jobs._files
    assert (files._here, files._expected, files._waiting) == ([], [], {})
    assert media_processes() == []
    assert app.supervisor.pid == worker
    assert psutil.Process().num_fds() <= before


def tokens(folder: Path, *names: str) -> str:
    """A file of tokens; each is its name twenty times."""
    file = folder / "tokens"
    file.write_text("".join(f"{token_of(name)} {name}\n" for name in names))
    return str(file)


def token_of(name: str) -> str:
    return name * 20
