"""A certificate of our own, for where no authority gives one, as on a local network.

It bears this machine's names and addresses, is kept in the state folder, and is used again at each start as long as it
lives and bears the names and the IPv4 addresses of then: who trusted it once (a phone) is not asked again. Of IPv6 a
machine has new ones every day.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from asr_ws.errors import UsageError
from asr_ws.server.entrance import addresses
from asr_ws.server.tls import Certificate

VALID: Final = datetime.timedelta(days=820)  # Apple's devices take no more than 825
RENEW_BEFORE: Final = datetime.timedelta(days=30)
CLOCK_SKEW: Final = datetime.timedelta(days=1)  # a phone's clock may be late


def self_signed(folder: Path) -> Certificate:
    """The one that is kept in the folder, or a new one. Raises: UsageError: the folder cannot be written."""
    names = machine_names()
    kept = Certificate(folder / "self-signed.pem", folder / "self-signed.key")
    with suppress(OSError, ValueError, TypeError, x509.ExtensionNotFound):  # TypeError: the key has a passphrase
        found = x509.load_pem_x509_certificate(kept.cert.read_bytes())
        lives = found.not_valid_after_utc - RENEW_BEFORE > datetime.datetime.now(datetime.UTC)
        if lives and {name for name in names if ":" not in name} <= _names_of(found) and _owns(kept.key, found):
            return Certificate(kept.cert, kept.key, _fingerprint(found))
    made, key = _make(names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(kept.key, key)
        _write(kept.cert, made.public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise UsageError(f"cannot write {error.filename}: {error.strerror}", "choose another --state-dir") from error
    return Certificate(kept.cert, kept.key, _fingerprint(made))


def machine_names() -> list[str]:
    """What others may call this machine: its names, and the addresses of its interfaces."""
    name = socket.gethostname().rstrip(".")
    names = ["localhost", *([name, f"{name.partition('.')[0]}.local"] if name and name.isascii() else [])]
    return list(dict.fromkeys([*names, *addresses(loopback=True)]))


def _make(names: list[str]) -> tuple[x509.Certificate, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"asr_ws on {names[1] if len(names) > 1 else names[0]}"[:64])]
    )
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("content_commitment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"), False
    )
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        # No authority: who trusts it trusts this server, not whatever its key may sign.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_encipherment=False, encipher_only=False, decipher_only=False, **usage
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return made, key.private_bytes(*encoding)


def _general_name(name: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def _names_of(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def _owns(key: Path, certificate: x509.Certificate) -> bool:
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    return bool(loaded.public_key() == certificate.public_key())


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all, readable by us only."""
    partial = file.with_suffix(f".{os.getpid()}")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(content)
    os.replace(partial, file)
