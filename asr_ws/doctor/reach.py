"""How the server would be reached: its ports, who may come in, and what browsers allow."""

from __future__ import annotations

import asyncio
import errno
import json
import ssl
import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection

import psutil

from asr_ws.config import Settings, is_loopback
from asr_ws.doctor import Finding, Question, failed, ok, probe, warning
from asr_ws.errors import UsageError
from asr_ws.server import entrance
from asr_ws.server.answer import HEADERS
from asr_ws.server.door import Door

ANSWER_S = 3.0  # of whoever has the port
ANSWER_BYTES = 65_536
ENCRYPT = "--tls-self-signed, --tls-cert, or a proxy that encrypts: docs/howto/expose-it.md"


def questions(settings: Settings) -> dict[str, Question]:
    listen = settings.listen
    ports = {"port": listen.port}
    if listen.http_port not in (-1, listen.port):
        ports["http port"] = listen.http_port
    return {
        **{name: partial(port, number=number) for name, number in ports.items()},
        "encryption": encryption,
        "tokens": tokens,
        "access": access,
        "browsers": browsers,
        "microphone": microphone,
        "connections": connections,
    }


def port(settings: Settings, number: int) -> Finding:
    """Whether it can be listened on, found out as the server does; who has it otherwise."""
    host = settings.listen.host
    try:
        for bound in asyncio.run(_door(settings).open(host, number)):
            bound.close()
    except (OSError, UnicodeError) as error:
        hint = "choose another --host, --port or --http-port"
        if getattr(error, "errno", None) != errno.EADDRINUSE:
            return failed(f"cannot listen on {host}:{number}: {getattr(error, 'strerror', None) or error}", hint)
        holder = _holder(number)
        if (served := served_at(entrance.hosts(host)[0], number)) is None:
            return failed(f"{host}:{number} is taken by {holder}, which is no asr_ws server", hint)
        return warning(
            f"{host}:{number} is taken by an asr_ws server that runs already: {', '.join([holder, *served])}",
            f"stop it first, or {hint}; what follows is measured beside it",
        )
    return ok(f"{host}:{number} is free" if number else f"{host}, any port that is free")


def served_at(host: str, port: int) -> list[str] | None:
    """What a server of ours says of itself, plain or with TLS; None: nobody answers as ours does."""
    trusting = ssl.create_default_context()  # whoever it is: nothing is told him
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    for connection in (
        HTTPConnection(host, port, timeout=ANSWER_S),
        HTTPSConnection(host, port, timeout=ANSWER_S, context=trusting),
    ):
        try:
            connection.request("GET", "/v1/stats")
            response = connection.getresponse()
            body = response.read(ANSWER_BYTES)
        except (OSError, HTTPException):
            continue
        finally:
            connection.close()
        if response.headers["Server"] == HEADERS["Server"]:
            with suppress(ValueError, KeyError, TypeError):  # it wants a token, or has HTTP elsewhere
                stats = json.loads(body)
                return [f"{stats['model']!r}", f"{stats['state']!r}"]
            return []
    return None


def _holder(port: int) -> str:
    with suppress(psutil.Error, OSError):  # which macOS tells root only
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid:
                return f"{psutil.Process(each.pid).name()} (process {each.pid})"
    return "another program"


def encryption(settings: Settings) -> Finding:
    listen = settings.listen
    with tempfile.TemporaryDirectory() as scratch:
        if listen.tls_self_signed:  # one that is not kept: that of the state folder is made, or renewed, at the start
            settings = replace(settings, storage=replace(settings.storage, state_dir=scratch))
        try:
            certificate = entrance.certificate(settings)
            entrance.encryption(certificate)
        except UsageError as error:
            return failed(error.message, error.hint)
    if certificate is None:
        return ok("none")
    return ok("a certificate of our own" if listen.tls_self_signed else f"{certificate.cert} and its key")


def tokens(settings: Settings) -> Finding:
    try:
        is_asked_for = entrance.tokens(settings) is not None
    except UsageError as error:
        return failed(error.message, error.hint)
    return ok(f"of {settings.access.auth_token_file}" if is_asked_for else "nobody needs one")


def access(settings: Settings) -> Finding:
    if not (warnings := entrance.warnings(settings)):
        return ok(
            "from this machine only" if is_loopback(settings.listen.host) else "no stranger comes in, or reads along"
        )
    facts, _, hints = zip(*(each.partition(": ") for each in warnings), strict=True)
    return warning("; ".join(facts), "; ".join(hints))


def browsers(settings: Settings) -> Finding:
    if entrance.CLEAR_WARNING in entrance.warnings(settings):
        return warning("pages get a microphone on this machine only: elsewhere it takes https", ENCRYPT)
    return ok("pages may ask for a microphone")


def microphone(_: Settings) -> Finding:
    """Asked of the command itself: PortAudio may well crash."""
    asked = probe("-m", "asr_ws", "mic", "--devices", "--json")
    if asked.returncode == 0:
        n_devices = len(asked.stdout.splitlines())
        return ok(f"PortAudio for asr-ws mic, microphones: {n_devices}", microphones=n_devices)
    said = dict(line.partition(": ")[::2] for line in asked.stderr.splitlines())
    return warning(
        f"asr-ws mic would not run: {said.get('error', f'exit status {asked.returncode}')}",
        f"{said.get('hint', 'asr-ws mic --devices')}; a server needs none",
    )


def connections(settings: Settings) -> Finding:
    wanted, per_address = settings.session.max_sessions, settings.access.max_sessions_per_address
    door = _door(settings)
    if door.max_connections < wanted or door.max_per_address < per_address:
        return warning(
            f"room for {door.max_connections} connections, fewer than --max-sessions {wanted} may need",
            "allow the process more open files (ulimit -n, LimitNOFILE), or lower --max-sessions",
            max_connections=door.max_connections,
        )
    return ok(f"room for {door.max_connections}, sessions: {wanted}", max_connections=door.max_connections)


def _door(settings: Settings) -> Door:
    """Which nobody comes through."""
    sessions = settings.session.max_sessions
    return Door(sessions, encrypted=False, is_shared=lambda _: False, on_turned_away=lambda _: None)
