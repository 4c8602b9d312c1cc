"""A server of plain GETs, which says what it is told to until it is told otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Plain:
    """Attributes:
    says: by path: status, type, body. Any other path is 404.
    heard: path and Authorization of each request.
    """

    url: str
    says: dict[str, tuple[int, str, str]]
    headers: dict[str, str] = field(default_factory=dict)
    heard: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving(says: dict[str, tuple[int, str, str]]) -> Iterator[Plain]:

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            plain.heard.append((self.path, self.headers["Authorization"]))
            status, kind, body = plain.says.get(self.path, (404, "text/plain", "nothing here\n"))
            self.send_response(status)
            for name, value in ({"Content-Type": kind} | plain.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        plain = Plain(f"http://127.0.0.1:{server.server_port}", says)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield plain
        finally:
            server.shutdown()
            thread.join()
