"""TLS by a certificate and its key in two files."""

from __future__ import annotations

import ssl
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
    """Raises: UsageError: the files cannot be read, do not belong together, or the key has a passphrase."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load(context, certificate)
    return context


def load(context: ssl.SSLContext, certificate: Certificate) -> None:
    """Let connections from now on have this certificate. Raises: UsageError: as `context_for`."""
    for file in (certificate.cert, certificate.key):
        try:
            file.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror}") from error
    try:
        context.load_cert_chain(certificate.cert, certificate.key, password=lambda: "")  # else it asks at a terminal
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        hint = "PEM files: the certificate with its chain, and its private key without a passphrase"
        raise UsageError(
            f"{certificate.cert} and {certificate.key} are no certificate and its key: {reason}", hint
        ) from error
