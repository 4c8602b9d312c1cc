"""TLS by a certificate and its key in two files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from asr_ws.errors import UsageError

RECORD_BYTES: Final = 5 + (1 << 14) + 2048  # the longest: it may be there in part (RFC 5246, 6.2.3)
OVERHEAD_BYTES: Final = 96  # of a record beyond its data, at most


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files; ``fingerprint`` is of our own, SHA-256 as browsers write it."""

    cert: Path
    key: Path
    fingerprint: str = ""


class Connection(ssl.SSLObject):
    """One that ends where its peer sends what carries nothing.

    OpenSSL takes all key updates that there are before it returns, each for the time of many records of data; and
    nothing comes of them that could be counted, or waited with.
    """

    incoming: ssl.MemoryBIO
    _n_empty = 0  # bytes taken, that nothing has come of yet

    def read(self, n_bytes: int = 1024, buffer: Any = None) -> Any:  # as `ssl` has it
        n_before, n_data = self.incoming.pending, 0
        try:
            data = super().read(n_bytes, buffer)
            n_data = data if isinstance(data, int) else len(data)
            return data
        finally:
            n_beside = n_before - self.incoming.pending - n_data - OVERHEAD_BYTES * bool(n_data)
            self._n_empty = max(0, self._n_empty + n_beside)
            if self._n_empty > RECORD_BYTES:
                raise ssl.SSLError("the peer's records carry nothing")


class Context(ssl.SSLContext):
    """A server's, whose connections from now on may be another context's, whole or not at all."""

    sslobject_class = Connection
    _newest: Context | None = None

    def renew(self, newest: Context) -> None:
        self._newest = newest

    def wrap_bio(self, incoming: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """As asyncio asks for each connection."""
        wrapped = ssl.SSLContext.wrap_bio(self._newest or self, incoming, *args, **kwargs)
        cast(Connection, wrapped).incoming = incoming
        return wrapped


def context_for(certificate: Certificate) -> Context:
    """Raises: UsageError: the files do not belong together, or the key has a passphrase."""
    context = Context(ssl.PROTOCOL_TLS_SERVER)
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
