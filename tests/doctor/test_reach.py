from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from asr_ws.doctor import Status, ok, reach, warning
from asr_ws.worker.supervisor import WorkerSpec
from tests.server.running import serving, settings

OTHER = "choose another --host, --port or --http-port"


def test_a_free_port_is_left_free(closed_port: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    assert [reach.port(settings(), number) for _ in range(2)] == [ok(f"127.0.0.1:{number} is free")] * 2


def test_a_port_that_another_program_has_is_a_failure_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr_ws.doctor.reach.ANSWER_S", 0.01)  # it never does
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        found = reach.port(settings(), number)
    assert (found.status, found.hint) == (Status.FAILED, OTHER)
    assert f"(process {os.getpid()}), which is no asr_ws server" in found.fact


def test_an_address_of_another_machine_is_a_failure() -> None:
    found = reach.port(settings(host="192.0.2.1"), 8765)  # TEST-NET-1
    assert (found.status, found.hint) == (Status.FAILED, OTHER)
    assert found.fact.startswith("cannot listen on 192.0.2.1:8765: ")


@pytest.mark.parametrize("tls", [False, True])
async def test_a_port_that_a_server_of_ours_has_is_a_warning(tls: bool, scripted: WorkerSpec, tmp_path: Path) -> None:
    async with serving(scripted, http_port=0, tls_self_signed=tls, state_dir=str(tmp_path)) as app:
        listener = app.listener
        for_http = await asyncio.to_thread(reach.port, app.settings, listener.http_port)
        for_sessions = await asyncio.to_thread(reach.port, app.settings, listener.port)
        assert listener.n_sessions == 0
    assert (for_http.status, for_sessions.status) == (Status.WARNING, Status.WARNING)
    assert for_http.fact.endswith(f"(process {os.getpid()}), 'base', 'ready'")
    assert for_sessions.fact.endswith(f"(process {os.getpid()})")


def test_http_has_a_check_where_it_has_a_port() -> None:
    assert ["http port" in reach.questions(settings(port=8765, http_port=port)) for port in (-1, 8765, 0, 8766)] == [
        False,
        False,
        True,
        True,
    ]


def test_a_certificate_of_our_own_is_tried_and_none_is_kept(tmp_path: Path) -> None:
    given = settings(tls_self_signed=True, state_dir=str(tmp_path))
    assert (reach.encryption(given), list(tmp_path.iterdir())) == (ok("a certificate of our own"), [])


def test_files_that_are_not_usable_fail_as_at_the_start(tmp_path: Path) -> None:
    (wrong := tmp_path / "wrong").touch()
    given = settings(tls_cert=str(wrong), tls_key=str(wrong), auth_token_file=str(wrong))
    found = [reach.encryption(given), reach.tokens(given)]
    assert [each.status for each in found] == [Status.FAILED] * 2
    assert [each.fact.partition(":")[0] for each in found] == ["--tls-cert, --tls-key", "--auth-token-file"]


def test_what_the_server_warns_of_is_warned_of() -> None:
    assert reach.access(settings(host="0.0.0.0")) == warning(
        "anybody who reaches the port can use it; tokens and speech are sent in clear",
        "give it an --auth-token-file; --tls-cert, --tls-self-signed, or a proxy that encrypts",
    )
    assert reach.access(settings()) == ok("from this machine only")


@pytest.mark.parametrize(
    ("host", "tls", "status"),
    [("127.0.0.1", False, Status.OK), ("0.0.0.0", True, Status.OK), ("0.0.0.0", False, Status.WARNING)],
)
def test_browsers_want_https_from_elsewhere(host: str, tls: bool, status: Status) -> None:
    assert reach.browsers(settings(host=host, tls_self_signed=tls)).status is status


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (CompletedProcess([], 0, "{}\n{}\n", ""), ok("PortAudio for asr-ws mic, microphones: 2", microphones=2)),
        (
            CompletedProcess([], 2, "", "error: it needs 'mic'\nhint: pip install it\n"),
            warning("asr-ws mic would not run: it needs 'mic'", "pip install it; a server needs none"),
        ),
        (
            CompletedProcess([], -11, "", "Fatal Python error\n"),
            warning("asr-ws mic would not run: exit status -11", "asr-ws mic --devices; a server needs none"),
        ),
    ],
)
def test_the_microphone_command_is_asked(asked: object, found: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr_ws.doctor.reach.probe", lambda *arguments: asked)
    assert reach.microphone(settings()) == found


@pytest.mark.parametrize(("n_files", "status"), [(10_000, Status.OK), (100, Status.WARNING)])
def test_sessions_need_open_files(n_files: int, status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr_ws.server.door.descriptors_for", lambda n: n_files)
    assert reach.connections(settings(max_sessions=64)).status is status
