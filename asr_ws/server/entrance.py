"""What the settings say of who may come in and how, made into the parts that see to it."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from asr_ws.config import Settings, is_loopback
from asr_ws.core.access import Origins, Tokens
from asr_ws.errors import UsageError
from asr_ws.metrics import Metrics
from asr_ws.server import tls
from asr_ws.server.reception import Reception
from asr_ws.server.reload import Contents, Reloaded, T
from asr_ws.server.tls import Certificate

OPEN_WARNING: Final = "anybody who reaches the port can use it: give it an --auth-token-file"
ANY_PAGE_WARNING: Final = (
    "any web page that somebody here has open can use it: --allow-origin * without an --auth-token-file"
)
PROXY_WARNING: Final = "anybody who reaches the proxy can use it: give it an --auth-token-file"
CLEAR_WARNING: Final = "tokens and speech are sent in clear: --tls-cert, --tls-self-signed, or a proxy that encrypts"


def reception(settings: Settings, metrics: Metrics, valid: Tokens | None) -> Reception:
    access = settings.access
    name = socket.gethostname().lower()
    own_names = frozenset({name, f"{name.partition('.')[0]}.local", settings.listen.host.lower()})
    proxies = tuple(ipaddress.ip_network(network) for network in access.trusted_proxy)
    origins = Origins(access.allow_origin, own_names, any_name=valid is not None)
    return Reception(origins, valid, proxies, metrics, open_stats=access.open_stats)


def tokens(settings: Settings) -> Reloaded[Tokens] | None:
    """None: nobody needs one. Raises: UsageError: the file cannot be read, or has no tokens."""
    if not settings.access.auth_token_file:
        return None
    file = Path(settings.access.auth_token_file)

    def parsed(contents: Contents) -> Tokens:
        try:
            return Tokens(contents[0].decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UsageError(f"{file} is no text") from error
        except UsageError as error:
            raise UsageError(f"{file}: {error.message}", error.hint) from error

    return _of("--auth-token-file", lambda: Reloaded([file], parsed))


def encryption(certificate: Certificate | None) -> Reloaded[tls.Context] | None:
    """None: there is none. Raises: UsageError: the certificate's files are not usable."""
    if certificate is None:
        return None
    files = [certificate.cert, certificate.key]
    options = "--tls-self-signed" if certificate.fingerprint else "--tls-cert, --tls-key"
    return _of(options, lambda: Reloaded(files, lambda _: tls.context_for(certificate)))


def _of(options: str, read: Callable[[], Reloaded[T]]) -> Reloaded[T]:
    try:
        return read()
    except UsageError as error:
        raise UsageError(f"{options}: {error.message}", error.hint) from error


def certificate(settings: Settings) -> Certificate | None:
    """Raises: UsageError: one of our own cannot be kept."""
    listen = settings.listen
    if listen.tls_self_signed:
        from asr_ws.server.self_signed import self_signed  # only then is the library needed

        try:
            return self_signed(state_dir(settings))
        except RuntimeError as error:  # of pathlib
            raise UsageError(f"no folder to keep a certificate in: {error}", "choose a --state-dir") from error
    return Certificate(Path(listen.tls_cert), Path(listen.tls_key)) if listen.tls_cert else None


def state_dir(settings: Settings) -> Path:
    if settings.storage.state_dir:
        return Path(settings.storage.state_dir).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "asr-ws"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "asr-ws"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "asr-ws"


def warnings(settings: Settings) -> list[str]:
    """What is dangerous about how the server is reached."""
    listen, access = settings.listen, settings.access
    any_page = [ANY_PAGE_WARNING] * ("*" in access.allow_origin and not access.auth_token_file)
    if is_loopback(listen.host):
        has_proxy = bool(access.trusted_proxy or listen.root_path)
        return any_page + [PROXY_WARNING] * (has_proxy and not access.auth_token_file)
    encrypted = listen.tls_cert or listen.tls_self_signed or access.trusted_proxy
    return any_page + [OPEN_WARNING] * (not access.auth_token_file) + [CLEAR_WARNING] * (not encrypted)


def hosts(host: str) -> list[str]:
    """What to call this machine by, listening there: where that is everywhere, its addresses."""
    if host not in ("0.0.0.0", "::"):
        return [host]
    reachable = [each for each in addresses() if (":" in each) == (host == "::")]
    return ["127.0.0.1" if host == "0.0.0.0" else "::1", *reachable]


def addresses(*, loopback: bool = False) -> Iterator[str]:
    """Of this machine's interfaces; not those that mean nothing without the interface's name."""
    found = (each.address for interface in psutil.net_if_addrs().values() for each in interface)
    for text in dict.fromkeys(found):
        with suppress(ValueError):  # a MAC address
            address = ipaddress.ip_address(text)
            if not address.is_link_local and (loopback or not address.is_loopback):
                yield str(address)
