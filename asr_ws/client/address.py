"""Where a server is, and what is wrong where there is none."""

from __future__ import annotations

import os
import re
import ssl
from http import HTTPStatus
from pathlib import Path
from socket import gaierror
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from asr_ws import messages
from asr_ws.errors import ClientError, NoAddress, UsageError, printable

if TYPE_CHECKING:  # a program that only asks after the server's health needs nothing of it
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Response

DEFAULT_URL = f"ws://127.0.0.1:8765{messages.PATH}"
NO_SERVER = "is this an asr_ws server?"
WHERE = f"sessions are at {DEFAULT_URL} or alike"
PROXY_HINT = "the environment names that proxy, by http_proxy, https_proxy, socks_proxy or all_proxy"
TOKEN_HINT = "give it a token: --token-file FILE, or ASR_WS_TOKEN; in Python connect(url, token=...)"
OTHER_TOKEN_HINT = "the token that was given is none of the server's: ask whoever runs it"
OTHER_NAME = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH
NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")  # OpenSSL's reasons for a plain answer


class Unreachable(ClientError):
    """No server answers there, now."""

    code = "unreachable"


class SessionRefused(ClientError):
    """The server takes no more sessions now; ``retry_after_s`` is its hint."""

    code = "session_refused"

    def __init__(self, reason: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"the server refused the session: {reason}", f"try again in {retry_after_s:.1f} s")


class ConnectionLost(ClientError):
    """The connection ended before the session did."""

    code = "connection_lost"

    def __init__(self, closed: ConnectionClosed | None, reason: str = "no close frame") -> None:
        rcvd = closed.rcvd if closed is not None else None
        self.close_code, self.reason = (rcvd.code, rcvd.reason) if rcvd else (1006, reason)
        super().__init__(f"the connection ended with {self.close_code} {self.reason}".rstrip())


# What else an answer to the handshake says of the address, by its status.
ADDRESS_HINTS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "the proxy in front wants a user and a password: https://USER:PASSWORD@example.com/asr/",
    HTTPStatus.SERVICE_UNAVAILABLE: "the proxy in front has no room, or no server: try again later",
    HTTPStatus.NOT_FOUND: f"{NO_SERVER} behind a proxy its prefix belongs to the address, as in https://example.com/asr/",
    HTTPStatus.BAD_GATEWAY: "the proxy answers, the server behind it does not",
    HTTPStatus.GATEWAY_TIMEOUT: "the proxy answers, the server behind it does not",
}


def not_let_in(url: str, response: Response, token: str | None) -> ClientError:
    """What an answer to the handshake means that is none of a WebSocket server."""
    said = printable(bytes(response.body or b"").decode(errors="replace").partition("\n")[0])
    is_text = response.headers.get("Content-Type", "").startswith("text/plain")
    message = f"no session at {url}: HTTP {response.status_code}" + (f": {said}" if said and is_text else "")
    match response.status_code:
        case HTTPStatus.UNAUTHORIZED if response.headers.get("WWW-Authenticate", "").startswith("Bearer"):
            return ClientError(message, TOKEN_HINT if token is None else OTHER_TOKEN_HINT)
        case HTTPStatus.SERVICE_UNAVAILABLE if (after := response.headers.get("Retry-After", "")).isdecimal():
            return SessionRefused((said if is_text else "") or response.reason_phrase, float(after))
        case status:
            kind = Unreachable if status >= HTTPStatus.INTERNAL_SERVER_ERROR else ClientError
            return kind(message, ADDRESS_HINTS.get(status, WHERE))


def not_reached(what: str, error: OSError) -> ClientError:
    """Why no connection came about. ``what``: there is not, such as "no session at URL"."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ClientError(f"{what}: {error.verify_message}", trust_hint(error))
    hint = "is the server running? asr-ws serve"
    if isinstance(error, gaierror):
        hint = "is the name right, and the network there?"
    elif getattr(error, "reason", None) in NO_TLS:
        hint = "it may speak no TLS: http:// or ws://"
    elif isinstance(error, ConnectionResetError):
        hint = "it may have too many connections, or speak no TLS"
    return Unreachable(f"{what}: {str(error) or 'the connection was cut off'}", hint)


def trust_hint(error: ssl.SSLCertVerificationError) -> str:
    if (trusted := os.environ.get("SSL_CERT_FILE")) and not os.path.isfile(trusted):
        return f"SSL_CERT_FILE names {trusted}, which is no file"
    if error.verify_code in OTHER_NAME:
        return "call it by a name or an address that its certificate is for"
    return "if its certificate is one of its own, name that file: SSL_CERT_FILE=self-signed.pem"


def session_url(url: str) -> tuple[str, str]:
    """The server's plain address will do, also with a proxy's path: http is ws here, and the sessions are below it.

    Returns: the address to show, and what is not to be shown: ``USER:PASSWORD@``, or nothing.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
        user, at, host = parts.netloc.rpartition("@")
    except (ValueError, TypeError, AttributeError) as error:  # the latter: it is no text
        raise no_address(url) from error
    if not is_host(parts.hostname or ""):
        raise no_address(parts._replace(netloc=host).geturl())
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    is_plain = scheme != parts.scheme or parts.path in ("", "/")
    path = parts.path.removesuffix(messages.PATH).rstrip("/") + messages.PATH if is_plain else parts.path
    return parts._replace(scheme=scheme, netloc=host, path=path).geturl(), user + at


def is_host(name: str) -> bool:
    """As far as the standard library looks, which raises where it is to connect to another one."""
    return name.isprintable() and " " not in name


def no_address(url: str) -> NoAddress:
    return NoAddress(f"{url} is no address of a server", f"such as http://127.0.0.1:8765 or {DEFAULT_URL}")


def read_token(file: Path | None) -> str | None:
    """The first word of a file, comments apart; without one, ASR_WS_TOKEN. Raises: UsageError: no such file, or empty.

    Not an option's value, which everybody on the machine can see.
    """
    if file is None:
        return os.environ.get("ASR_WS_TOKEN") or None
    try:
        words = re.sub("#.*", "", file.read_text("utf-8-sig")).split()  # as the server reads its own
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file: cannot read {file}: {getattr(error, 'strerror', 'it is no text')}") from error
    if not words:
        raise UsageError(f"--token-file: no token in {file}")
    return words[0]


def checked_token(token: str | None) -> str | None:
    """Without the line's end. Raises: ClientError: it is none."""
    token = token.strip() if token is not None else None
    if token == "":
        raise ClientError("the token is empty", TOKEN_HINT)
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise ClientError(
            "a token has no spaces, and letters of ASCII only", "the token alone: no name behind it, no second line"
        )
    return token
