"""A plain HTTP response, whichever library sends it, and the headers that every response has."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

POLICY: Final = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# Nothing of ours is for other sites' pages, and a page of ours has its parts from here only.
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "asr-ws",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Packed:
    """A body that never changes, so that it is compressed once."""

    plain: bytes
    gzipped: bytes

    @classmethod
    def of(cls, plain: bytes) -> Packed:
        return cls(plain, gzip.compress(plain))


@dataclass(frozen=True, slots=True)
class Answer:
    status: HTTPStatus
    body: str | Packed
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "text/plain"


Page = Callable[[], tuple[HTTPStatus, str, str | Packed]]  # status, content type, body
