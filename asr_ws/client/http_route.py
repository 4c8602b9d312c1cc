"""The way to a server's HTTP: its address, the proxy before it, and what a failure there means.

On the standard library alone, and little of it: a program that only asks after the server's health is to start at once.
"""

from __future__ import annotations

import http.client
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http import HTTPStatus
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from asr_ws import messages
from asr_ws.client.address import (
    ADDRESS_HINTS,
    NO_SERVER,
    PROXY_HINT,
    Unreachable,
    is_host,
    no_address,
    not_reached,
    session_url,
)
from asr_ws.errors import ClientError, printable

CONNECT_S = 10.0
CUT = "the connection ended in the middle of an answer"
GATEWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


class RequestLost(ClientError):
    """The connection ended before the answer did."""

    code = "connection_lost"


def http_url(url: str, path: str) -> tuple[str, str]:
    """Where ``path`` is, of a server whose sessions are at ``url``, or below it; see `session_url`."""
    shown, user = session_url(url)
    parts = urlsplit(shown)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise no_address(shown)
    path = parts.path.removesuffix(messages.PATH).removesuffix(path).rstrip("/") + path
    path, query = (quote(part, safe="/%:@!$&'()*+,;=~?") for part in (path, parts.query))
    return parts._replace(scheme=scheme, path=path, query=query, fragment="").geturl(), user


def route(url: str, timeout_s: float = CONNECT_S) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """By the proxy that the environment names for it, or none. Returns: also what to ask for, and headers for that."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    target = parts._replace(scheme="", netloc="").geturl()
    kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
    proxy = _proxy(parts.scheme, f"{parts.hostname}:{port}")
    if proxy is None:
        return kind(parts.hostname, port, timeout=timeout_s), target, {}
    if proxy.scheme != "http" or not (proxy.hostname and is_host(proxy.hostname)):
        what = f"no way to {url} by {proxy.scheme}://{proxy.netloc.rpartition('@')[2]}"
        raise ClientError(f"{what}: HTTP goes by http:// proxies only", PROXY_HINT)
    known = {}
    if proxy.username is not None:
        known["Proxy-Authorization"] = _basic(proxy.username, proxy.password or "")
    connection = kind(proxy.hostname, proxy.port or 80, timeout=timeout_s)
    if not is_tls:
        return connection, url, known
    connection.set_tunnel(parts.hostname, port, known)
    return connection, target, {}


def _proxy(scheme: str, host: str) -> SplitResult | None:
    proxies = getproxies()
    named = next((proxies[each] for each in (scheme, "all", "socks") if proxies.get(each)), None)
    if named is None or proxy_bypass(host):
        return None
    return urlsplit(named if "://" in named else f"http://{named}")


def _basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()


def authorization(user: str, token: str | None) -> dict[str, str]:
    """Args: user: ``USER:PASSWORD@``, a proxy's; there is one header for both."""
    if user:
        return {"Authorization": _basic(*user.removesuffix("@").partition(":")[::2])}
    return {"Authorization": f"Bearer {token}"} if token is not None else {}


def connect(connection: http.client.HTTPConnection, url: str) -> None:
    host = urlsplit(url).hostname
    by = "" if connection.host == host else f" by the proxy {connection.host}:{connection.port}"
    what = f"no answer at {url}{by}"
    try:
        connection.connect()
    except TimeoutError as error:
        hint = PROXY_HINT if by else "something listens there, which may be no asr_ws server"
        raise Unreachable(f"{what} within {connection.timeout:g} s", hint) from error
    except OSError as error:
        failure = not_reached(what, error)
        if by and isinstance(failure, Unreachable):
            failure.hint = PROXY_HINT
        raise failure from error
    except http.client.HTTPException as error:  # the proxy's
        raise Unreachable(f"{what}: {error!r}", PROXY_HINT) from error
    except ValueError as error:  # a name that none can have
        raise no_address(url) from error


@contextmanager
def breaking(url: str) -> Iterator[None]:
    """What it means where a connection does that, or carries something else."""
    try:
        yield
    except TimeoutError as error:
        raise RequestLost("the server is silent") from error
    except http.client.RemoteDisconnected as error:
        message = "the server ended the connection without an answer"
        hint = "is its HTTP on this port? see its --http-port"
        raise RequestLost(message, hint + "; or does it want https://?" * url.startswith("http:")) from error
    except http.client.IncompleteRead as error:
        raise RequestLost(CUT) from error
    except http.client.HTTPException as error:
        hint = "it may want TLS: https:// or wss://" if url.startswith("http:") else NO_SERVER
        raise ClientError(f"{url} does not answer as HTTP does: {error!r}", hint) from error
    except OSError as error:
        raise RequestLost(str(error)) from error


def no_answer(url: str, status: int, headers: Message, body: bytes) -> ClientError:
    """What an answer means that is none of this server's."""
    if leads_to := headers.get("Location"):
        return ClientError(f"{url} leads to {printable(leads_to)}", "give the address it leads to")
    is_text = headers.get("Content-Type", "").startswith("text/plain")
    words = ": " + printable(body.decode(errors="replace").partition("\n")[0]) if is_text else ""
    hint = ADDRESS_HINTS.get(status, "is this an asr_ws server, and its HTTP on this port? see --http-port")
    if words.startswith(f": {messages.HTTP_ELSEWHERE}"):
        hint = "give that address"
    kind = Unreachable if status in GATEWAY else ClientError
    return kind(f"no answer at {url}: HTTP {status}{words}", hint)
