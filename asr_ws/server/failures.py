"""What who asks by HTTP is told when it cannot be done: status, body and headers of each kind of failure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from asr_ws.core.types import RefusalReason, Shed
from asr_ws.errors import AsrError, RequestError, StorageError
from asr_ws.server.answer import HEADERS
from asr_ws.server.shapes import error_body, refusal_headers

# Of what is wrong with a file or the disk, by code: else 422, which no repetition of the same file would change.
STATUS_BY_CODE: Final = {
    "unsupported_media": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "too_long": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "no_space": HTTPStatus.INSUFFICIENT_STORAGE,
}
RETRY_NEVER: Final = {"x-should-retry": "false"}  # as OpenAI's clients would, of any 5xx

MESSAGES: Final = {
    RefusalReason.QUEUE_FULL: "others have all the room now",
    RefusalReason.PREDICTED_WAIT: "it would have to wait for longer than it may",
    RefusalReason.FAIR_SHARE: "you have as many here already as you may: send fewer at once",
    RefusalReason.RETRY_EARLY: "it is too early",
    RefusalReason.STARTING: "the model is being loaded",
    RefusalReason.RESTARTING: "the model is being loaded again",
    RefusalReason.UNAVAILABLE: "the model cannot be loaded",
    RefusalReason.DRAINING: "the server is stopping",
    RefusalReason.MAX_SESSIONS: "there are too many connections",
    RefusalReason.DEADLINE: "it waited for as long as it may",
    RefusalReason.WORKER_CRASHED: "the recognizer crashed",
    RefusalReason.WORKER_HUNG: "the recognizer hung",
}


class Refused(Exception):
    """Not admitted, or not finished: overload, as it is told to who asked by HTTP."""

    def __init__(self, shed: Shed) -> None:
        super().__init__(shed.reason)
        self.shed = shed


@dataclass(frozen=True, slots=True)
class Failure:
    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def response(self) -> bytes:
        """All of it, for where no library writes it; the connection ends with it."""
        body = json.dumps(self.body).encode() + b"\n"
        own = {"Content-Type": "application/json; charset=utf-8", "Content-Length": len(body), "Connection": "close"}
        headers = "".join(f"{name}: {value}\r\n" for name, value in {**HEADERS, **own, **self.headers}.items())
        return f"HTTP/1.1 {self.status:d} {HTTPStatus(self.status).phrase}\r\n{headers}\r\n".encode() + body


def failure(error: AsrError | Refused) -> Failure:
    if isinstance(error, Refused):
        shed, status = error.shed, error.shed.reason.status
        body = error_body(status, shed.reason, MESSAGES[shed.reason], shed=shed)
        return Failure(status, body, refusal_headers(shed))
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, RequestError):
        return Failure(error.status, error_body(error.status, error.code, message, error.param))
    if isinstance(error, StorageError):  # whose message has paths, for who runs the server
        status = HTTPStatus.INSUFFICIENT_STORAGE
        body = error_body(status, error.code, "the server cannot keep jobs now; its log says why")
        return Failure(status, body, RETRY_NEVER)
    status = STATUS_BY_CODE.get(error.code, HTTPStatus.UNPROCESSABLE_ENTITY)
    hint = RETRY_NEVER if status == HTTPStatus.INSUFFICIENT_STORAGE else {}
    return Failure(status, error_body(status, error.code, message), hint)
