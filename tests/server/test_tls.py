"""TLS: a given certificate, and one of our own."""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import datetime
import ipaddress
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from structlog.testing import capture_logs

from asr_ws.errors import UsageError
from asr_ws.server import entrance, reload, self_signed, tls
from asr_ws.worker.supervisor import WorkerSpec
from tests.server.raw import raw
from tests.server.running import MANUAL, SECOND, Client, serving, settings


def certificate(folder: Path) -> tls.Certificate:
    return self_signed.self_signed(folder)


def read(made: tls.Certificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(made.cert.read_bytes())


def trusting(made: tls.Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=made.cert)


# ---------------------------------------------------------------- our own


def test_our_own_is_for_this_machine_and_is_no_authority(tmp_path: Path) -> None:
    made = certificate(tmp_path / "new" / "state")
    found = read(made)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert ipaddress.ip_address("127.0.0.1") in names.get_values_for_type(x509.IPAddress)
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert found.not_valid_after_utc - found.not_valid_before_utc < datetime.timedelta(days=825)
    assert len(made.fingerprint) == 32 * 3 - 1
    if sys.platform != "win32":
        assert made.key.stat().st_mode & 0o777 == 0o600


def test_our_own_is_kept(tmp_path: Path) -> None:
    assert certificate(tmp_path) == certificate(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["self-signed.key", "self-signed.pem"]


def test_our_own_is_made_anew_when_it_does_not_serve_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints = [certificate(tmp_path).fingerprint]
    monkeypatch.setattr(self_signed, "addresses", lambda loopback=False: ["127.0.0.1", "192.0.2.7"])
    fingerprints.append(certificate(tmp_path).fingerprint)
    for others in (["127.0.0.1"], ["127.0.0.1", "192.0.2.7", "2001:db8::7"]):
        monkeypatch.setattr(self_signed, "addresses", lambda loopback=False, others=others: others)
        assert certificate(tmp_path).fingerprint == fingerprints[-1], "an address less, or of IPv6, is no reason"
    monkeypatch.setattr(self_signed, "RENEW_BEFORE", self_signed.VALID)
    fingerprints.append(certificate(tmp_path).fingerprint)
    monkeypatch.undo()
    (tmp_path / "self-signed.key").write_bytes(certificate(tmp_path / "other").key.read_bytes())
    fingerprints.append(certificate(tmp_path).fingerprint)
    for damaged in (b"damaged", other_kind(certificate(tmp_path))):
        (tmp_path / "self-signed.pem").write_bytes(damaged)
        fingerprints.append(certificate(tmp_path).fingerprint)
    key = serialization.load_pem_private_key(certificate(tmp_path).key.read_bytes(), None)
    (tmp_path / "self-signed.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"passphrase"))
    )
    fingerprints.append(certificate(tmp_path).fingerprint)
    assert len(set(fingerprints)) == 7


def other_kind(made: tls.Certificate) -> bytes:
    """A certificate of the same key, without names."""
    key = serialization.load_pem_private_key(made.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name, now = x509.Name([]), datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=800))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.skipif(sys.platform == "win32", reason="has no users' folders by name")
def test_a_folder_of_nobody_is_said() -> None:
    with pytest.raises(UsageError) as caught:
        entrance.certificate(settings(tls_self_signed=True, state_dir="~nosuchuser"))
    assert caught.value.hint == "choose a --state-dir"


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(UsageError) as caught:
        certificate(tmp_path / "file" / "state")
    assert caught.value.hint == "choose another --state-dir"


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_a_client_that_trusts_our_own_has_its_session(scripted: WorkerSpec, tmp_path: Path, name: str) -> None:
    async with serving(scripted, tls_self_signed=True, state_dir=str(tmp_path)) as app:
        assert app.url.startswith("wss://127.0.0.1:")
        assert app.certificate is not None
        client = Client(app, ssl=trusting(app.certificate))
        client.url = client.url.replace("127.0.0.1", name)
        async with client:
            await client.send(MANUAL, SECOND, {"type": "end"})
            assert await client.rest() == 1000
    assert client.types() == ["ready", "started", "speech_started", "accepted", "final", "done"]


async def test_what_is_no_tls_costs_nobody_else_anything(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with serving(scripted, tls_self_signed=True, state_dir=str(tmp_path)) as app:
        assert app.certificate is not None
        async with raw(app) as plain, raw(app) as garbage, raw(app) as vanishing:
            await vanishing.send(b"\x16\x03\x01\x02\x00")
            vanishing.writer.transport.abort()
            await plain.send(b"GET / HTTP/1.1\r\n\r\n")
            await garbage.send(bytes(range(256)) * 64)
            assert b"HTTP" not in await plain.rest()
            await garbage.rest()
            async with Client(app, ssl=trusting(app.certificate)) as client:
                assert (await client.next())["type"] == "ready"


async def test_a_host_name_that_is_none_is_not_written_about(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: Python calls a context's `sni_callback` with a name in ASCII, else writes to standard error."""
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    hello = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="wxyz").do_handshake()
    async with (
        serving(scripted, ready=False, tls_self_signed=True, state_dir=str(tmp_path)) as app,
        raw(app) as stranger,
    ):
        await stranger.send(hello.read().replace(b"wxyz", b"\xff\xfe\xfd\xfc"))
        assert await stranger.reader.read(1)
    assert unraisable == []


class OpenSSL:
    """A client by the library's own functions: Python has none for key updates."""

    def __init__(self) -> None:
        self.ssl = ctypes.CDLL(ctypes.util.find_library("ssl") or "libssl.so.3")
        for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
            getattr(self.ssl, name).restype = ctypes.c_void_p

    def send_key_updates(self, connected: socket.socket, n: int) -> int:
        """Returns: how many were sent until the server closed."""
        context = ctypes.c_void_p(self.ssl.SSL_CTX_new(ctypes.c_void_p(self.ssl.TLS_client_method())))
        connection = ctypes.c_void_p(self.ssl.SSL_new(context))
        self.ssl.SSL_set_fd(connection, connected.fileno())
        assert self.ssl.SSL_connect(connection) == 1
        for at in range(n):
            if self.ssl.SSL_key_update(connection, 0) != 1 or self.ssl.SSL_do_handshake(connection) != 1:
                return at
        return n


@pytest.mark.skipif(sys.platform != "linux", reason="another library has the functions there")
async def test_records_that_carry_nothing_end_their_connection(scripted: WorkerSpec, tmp_path: Path) -> None:
    """They are decrypted where no turn is waited for, each as long as a hundred bytes of audio."""
    async with serving(scripted, ready=False, tls_self_signed=True, state_dir=str(tmp_path)) as app:
        with socket.create_connection(("127.0.0.1", app.listener.port)) as connected:
            connected.settimeout(None)
            n_sent = await asyncio.to_thread(OpenSSL().send_key_updates, connected, 100_000)
        assert n_sent < 100_000
        assert app.certificate is not None
        async with Client(app, ssl=trusting(app.certificate)) as neighbour:
            assert (await neighbour.next())["type"] == "ready"


async def test_records_as_long_as_can_be_are_read(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with serving(scripted, tls_self_signed=True, state_dir=str(tmp_path)) as app:
        assert app.certificate is not None
        async with Client(app, ssl=trusting(app.certificate)) as client:
            await client.send(MANUAL, 5 * SECOND, 5 * SECOND, {"type": "end"})
            assert await client.rest() == 1000
    assert [event["text"] for event in client.events if event["type"] == "final"] == ["country 160000"]


# ---------------------------------------------------------------- given


def of_the_files(logs: list[Any]) -> list[Any]:
    return [log for log in logs if log["event"].startswith("file.")]


async def test_a_given_certificate_is_read_again_when_it_changes(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "LOOK_EVERY_S", 0.02)
    given, renewed = certificate(tmp_path), certificate(tmp_path / "renewed")
    old, new = trusting(given), trusting(renewed)
    async with (
        serving(scripted, ready=False, tls_cert=str(given.cert), tls_key=str(given.key)) as app,
        Client(app, ssl=old) as before,
    ):
        with capture_logs() as logs:
            os.replace(renewed.cert, given.cert)
            while not (said := of_the_files(logs)):
                await asyncio.sleep(0)
            async with Client(app, ssl=old) as meanwhile:
                assert (await meanwhile.next())["type"] == "ready", "its key is not there yet"
            os.replace(renewed.key, given.key)
            while len(said) < 2:
                await asyncio.sleep(0)
                said = of_the_files(logs)
        async with Client(app, ssl=new) as after:
            assert (await after.next())["type"] == "ready"
        with pytest.raises(ssl.SSLCertVerificationError):
            await Client(app, ssl=old).__aenter__()
        assert (await before.next())["type"] == "ready", "what is open stays open"
    assert [log["event"] for log in said] == ["file.not_reloaded", "file.reloaded"]
    assert said[0]["message"].endswith("the key is another certificate's")


ENCRYPTED_KEY = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAg=
-----END ENCRYPTED PRIVATE KEY-----
"""


def test_files_that_are_no_certificate_and_its_key_are_said(tmp_path: Path) -> None:
    made, other = certificate(tmp_path / "one"), certificate(tmp_path / "two")
    empty, encrypted = tmp_path / "empty.pem", tmp_path / "encrypted.pem"
    empty.write_text("", "utf-8")
    encrypted.write_text(ENCRYPTED_KEY, "utf-8")
    locked = "one of them is not PEM, or the key has a passphrase"
    for wrong, reason in (
        (tls.Certificate(tmp_path / "missing.pem", made.key), "No such file or directory"),
        (tls.Certificate(made.cert, tmp_path / "missing.key"), "No such file or directory"),
        (tls.Certificate(made.cert, other.key), "the key is another certificate's"),
        (tls.Certificate(made.key, made.cert), locked),
        (tls.Certificate(empty, made.key), locked),
        (tls.Certificate(made.cert, encrypted), locked),
    ):
        with pytest.raises(UsageError) as caught:
            tls.context_for(wrong)
        assert caught.value.message == f"{wrong.cert} and {wrong.key} are no certificate and its key: {reason}"
