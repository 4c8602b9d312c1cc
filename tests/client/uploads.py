"""A server that takes files over HTTP, by a script of one entry a connection. Raw, so that it can break off anywhere.

Unrealistic about it: it knows one request a connection, and does not look into the form.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
REFUSAL = {"retry_after_ms": 700, "estimated_wait_ms": 1500, "queue_depth": 3}

Script = Callable[[socket.socket, "Server"], None]


@dataclass
class Request:
    """``headers``: names in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """Attributes:
    scripts: one a connection, in turn.
    heard: the requests that were read whole.
    """

    url: str
    scripts: list[Script] = field(default_factory=list)
    heard: list[Request] = field(default_factory=list)

    def read_head(self, peer: socket.socket) -> tuple[Request, int]:
        """The request as far as it is here, and how much of its body is not."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += _some(peer, 65536)
        head, _, body = data.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Request(line, headers, body), int(headers["content-length"]) - len(body)

    def read(self, peer: socket.socket) -> Request:
        request, left = self.read_head(peer)
        parts = [request.body]
        while left:
            parts.append(_some(peer, min(left, 1 << 20)))
            left -= len(parts[-1])
        request.body = b"".join(parts)
        self.heard.append(request)
        return request


def _some(peer: socket.socket, n_bytes: int) -> bytes:
    if received := peer.recv(n_bytes):
        return received
    raise ConnectionResetError("it went away")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(text: str, seconds: float, duration: float | None = 60.0) -> bytes:
    return event(type="transcript.text.delta", delta=f" {text}", progress={"seconds": seconds, "duration": duration})


def done(text: str, **more: object) -> bytes:
    return event(type="transcript.text.done", text=text, usage={"type": "duration", "seconds": 60}, **more)


def says(*events: bytes) -> Script:
    """It reads the file, says that, and ends the answer as it should."""

    def script(peer: socket.socket, server: Server) -> None:
        server.read(peer)
        peer.sendall(STREAM + b"".join(map(chunk, events)) + b"0\r\n\r\n")

    return script


def breaks_off(*events: bytes) -> Script:
    """It reads the file, says that, and is gone; without events: before its answer."""

    def script(peer: socket.socket, server: Server) -> None:
        server.read(peer)
        if events:
            peer.sendall(STREAM + b"".join(map(chunk, events)))

    return script


def answer(status: str, body: object = b"", *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


def answers(status: str, body: object = b"", *headers: str) -> Script:
    def script(peer: socket.socket, server: Server) -> None:
        server.read(peer)
        peer.sendall(answer(status, body, *headers))

    return script


def error(code: str | None, message: str = "said so") -> dict[str, object]:
    return {"error": {"type": "server_error", "code": code, "message": message, "param": None}}


def refuses(code: str, **more: object) -> Script:
    """With its hint."""
    body = {**error(code), **REFUSAL, **more}
    return answers("503 Service Unavailable", body, "retry-after-ms: 700", "Retry-After: 1")


@contextmanager
def serving(wrap: Callable[[socket.socket], socket.socket] = lambda peer: peer) -> Iterator[Server]:
    """Args: wrap: makes TLS of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = Server(f"http://127.0.0.1:{port}")

        is_over = threading.Event()

        def serve() -> None:
            while True:
                peer, _ = listener.accept()
                if is_over.is_set():
                    peer.close()
                    return
                try:
                    with suppress(OSError), wrap(peer) as peer:  # the client went away
                        server.scripts.pop(0)(peer, server)
                except BaseException:
                    listener.close()  # or the client would come again, and wait
                    raise

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            is_over.set()
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()  # which wakes it on each platform
            thread.join()
