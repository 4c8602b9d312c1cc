"""TLS by a certificate and its key in two files."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from asr_ws.errors import UsageError


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files; ``fingerprint`` is of our own, SHA-256 as browsers write it."""

    cert: Path
    key: Path
    fingerprint: str = ""


def context_for(certificate: Certificate) -> ssl.SSLContext:
    """Raises: UsageError: the files do not belong together, or the key has a passphrase."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate.cert, certificate.key, password=lambda: "")  # else it asks at a terminal
    except (OSError, ValueError) as error:  # of which ssl.SSLError is one
        hint = "PEM files: the certificate with its chain, and its private key without a passphrase"
        raise UsageError(
            f"{certificate.cert} and {certificate.key} are no certificate and its key: {_reason(error)}", hint
        ) from error
    return context


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return next((said for part, said in REASONS.items() if part in reason), reason)


# What OpenSSL says, by what it means here.
REASONS = {
    "KEY_VALUES_MISMATCH": "the key is another certificate's",
    "NO_START_LINE": "one of them is not PEM",
    "PEM lib": "one of them is not PEM, or the key has a passphrase",
    "BAD_DECRYPT": "the key has a passphrase",
}


def renewable(context: ssl.SSLContext) -> Callable[[ssl.SSLContext], None]:
    """Returns: a function that has connections from now on served by another context, whole or not at all."""
    newest = context

    def choose(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = newest

    def renew(renewed: ssl.SSLContext) -> None:
        nonlocal newest
        newest = renewed

    context.sni_callback = choose  # called for each, also those that ask for no name
    return renew
