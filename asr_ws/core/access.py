"""Who may come in: origins of web pages, tokens, and whose address a request bears.

A web page may open sessions if it comes from this server itself, or if its origin is listed. "From this server" is a
matter of names: the page's origin must be the host that the request is for. That alone proves nothing where strangers
choose the name: a page of evil.example, whose name is then made to point to 127.0.0.1, asks for evil.example (DNS
rebinding). So without a token the host must be an address, ``localhost``, or a name of this machine. That it came by a
trusted proxy proves no more: most answer to any name.

Addresses follow nginx' real_ip_recursive: from the right, the first that is no trusted proxy's.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import itertools
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from asr_ws.config import DEFAULT_PORTS, is_loopback, origin
from asr_ws.errors import UsageError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MIN_TOKEN_CHARS: Final = 16  # of random letters: 95 bits; what a person makes up can be guessed
NEW_TOKEN_HINT: Final = "make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, b64token: fits into a header
MAX_PROXIES: Final = 16  # that a request comes through: what is claimed beyond is not looked at
NEIGHBOURHOOD: Final = 64  # bits of an IPv6 address that its owner does not choose: the rest he changes at will


class AccessRefusal(StrEnum):
    """Why somebody was not let in, for the log, the metrics, and (the two limits of sessions) the close's reason."""

    ORIGIN = "origin"
    UNAUTHORIZED = "unauthorized"  # no token, or none that is valid
    PER_ADDRESS = "max_sessions_per_address"
    PER_TOKEN = "max_sessions_per_token"
    UNIDENTIFIED = "unidentified"  # too many of one address that are no sessions, and one more without a token
    HANDSHAKES = "handshakes"  # too many that are no sessions, and one more that would find no room
    CONNECTIONS = "connections"  # too many of any kind


# ---------------------------------------------------------------- tokens


@dataclass(frozen=True, slots=True)
class Token:
    """One that was given out; the token itself is not kept. ``name`` is what the log calls it."""

    digest: bytes
    name: str = field(compare=False)


class Tokens:
    """Those that are valid now.

    Args:
        text: of the file: a token a line, and after it, if you like, a name for the log; ``#`` begins a comment.
    Raises:
        UsageError: no token at all, one that a header cannot carry, or that is too short.
    """

    def __init__(self, text: str) -> None:
        self._tokens: list[Token] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not (words := line.partition("#")[0].split()):
                continue
            if not _TOKEN.fullmatch(words[0]):
                raise UsageError(f"line {number}: a token is letters, digits and -._~+/", NEW_TOKEN_HINT)
            if len(words[0]) < MIN_TOKEN_CHARS:
                raise UsageError(f"line {number}: a token has at least {MIN_TOKEN_CHARS} characters", NEW_TOKEN_HINT)
            self._tokens.append(Token(_digest(words[0]), " ".join(words[1:]) or f"line {number}"))
        if not self._tokens:
            raise UsageError("no token in it", NEW_TOKEN_HINT)

    def find(self, candidate: str) -> Token | None:
        """Which it is; takes equally long for each, so that nothing is learnt by timing."""
        digest, found = _digest(candidate), None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def __contains__(self, token: Token) -> bool:
        return token in self._tokens


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def bearer(authorization: str | None) -> str | None:
    """The token of an ``Authorization`` header; None: there is none of this kind."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


# ---------------------------------------------------------------- origins


@dataclass(frozen=True, slots=True)
class Origins:
    """Args:
    allowed: as `asr_ws.config.origin` writes them.
    own_names: of this machine, lower case.
    any_name: whether whoever asks needs a token anyway, so that no name of the host is suspicious.
    own_ports: where sessions have one and pages another: by the same name, the one's pages may use the other.
    """

    allowed: tuple[str, ...]
    own_names: frozenset[str]
    any_name: bool
    own_ports: frozenset[int] = frozenset()

    def admit(self, sent: Sequence[str], host: str | None) -> bool:
        """Whether the page may open a session.

        Args:
            sent: the ``Origin`` headers; none: it is no web page's.
            host: the ``Host`` header.
        """
        if not sent:
            return True
        if len(sent) > 1:
            return False
        if "*" in self.allowed:
            return True
        with suppress(ValueError):
            page = origin(sent[0])
            return page != "*" and (page in self.allowed or self._is_own(page, host or ""))
        return False

    def _is_own(self, page: str, host: str) -> bool:
        scheme = page.partition("://")[0]
        if scheme not in DEFAULT_PORTS:
            return False
        name, port = _name_and_port(page)
        asked_name, asked_port = _name_and_port(origin(f"{scheme}://{host}"))
        if name != asked_name or (port != asked_port and not {port, asked_port} <= self.own_ports):
            return False
        return self.any_name or _is_address(name) or is_loopback(name) or name in self.own_names


def _name_and_port(page: str) -> tuple[str, int]:
    """Of an origin of http or https."""
    scheme, _, host = page.partition("://")
    match = re.fullmatch(r"\[?(.*?)\]?(?::(\d+))?", host)
    assert match is not None
    return match[1], int(match[2] or DEFAULT_PORTS[scheme])


def _is_address(name: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return False


# ---------------------------------------------------------------- addresses


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request comes from: the address, and whether a trusted proxy said so."""

    address: str
    by_proxy: bool = False

    @property
    def is_this_machine(self) -> bool:
        return not self.by_proxy and is_loopback(self.address)


def owner(address: str) -> str:
    """The address, or of IPv6 the network, that one party has to itself."""
    with suppress(ValueError):
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(parsed, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((int(parsed) >> NEIGHBOURHOOD << NEIGHBOURHOOD, NEIGHBOURHOOD)))
    return address


def client_of(peer: str, forwarded: Sequence[str], proxies: Sequence[Network]) -> Client:
    """Whose request it is.

    Args:
        peer: address of the socket's other end.
        forwarded: the ``X-Forwarded-For`` headers, in order.
        proxies: whose word is taken.
    """
    client, by_proxy = _plain(peer), False
    claims = (claim for header in reversed(forwarded) for claim in reversed(header.rsplit(",", MAX_PROXIES)))
    for claim in itertools.islice(claims, MAX_PROXIES):
        if not is_proxy(client, proxies) or (claimed := _plain(claim)) is None:
            break
        client, by_proxy = claimed, True
    return Client(client or peer, by_proxy)


def _plain(text: str) -> str | None:
    """An address in its one spelling, without a port; None: it is none."""
    text = text.strip().strip('"')
    if match := re.fullmatch(r"\[([^\]]+)\](?::\d+)?|([\d.]+):\d+", text):
        text = match[1] or match[2]
    with suppress(ValueError):
        address = ipaddress.ip_address(text.partition("%")[0])
        return str(getattr(address, "ipv4_mapped", None) or address)
    return None


def is_proxy(address: str | None, proxies: Sequence[Network]) -> bool:
    """Whether its word is taken."""
    with suppress(ValueError):  # no address is known, of who has gone
        return address is not None and any(ipaddress.ip_address(address) in proxy for proxy in proxies)
    return False
