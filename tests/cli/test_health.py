"""`asr-ws health`, on a real server and on one that says what it is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from asr_ws.cli import main
from asr_ws.worker.supervisor import WorkerSpec
from tests.cli.program import ROOT, program
from tests.client.plain import serving as plain
from tests.server.reach import Ports
from tests.server.running import serving


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def health(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    done = CliRunner().invoke(main, ["health", *args], prog_name="asr-ws")
    return done.exit_code, done.stdout, done.stderr


async def test_a_server_is_ready_once_its_worker_is_and_needs_no_token(scripted: WorkerSpec, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("0123456789abcdef0123456789abcdef kitchen\n")
    (scripted.model / "load.script").write_text("sleep 600")
    async with serving(scripted, ready=False, auth_token_file=str(tmp_path / "tokens")) as app:
        for args, said in (([], (1, "starting\n", "")), (["--live"], (0, "alive\n", ""))):
            assert await program("health", "--url", app.url, *args) == said
    (scripted.model / "load.script").write_text("")
    async with serving(scripted) as app:
        assert await program("health", "--url", app.listener.url) == (0, "ready\n", "")


@pytest.mark.parametrize("state", ["restarting", "unavailable", "draining"])
def test_a_server_that_cannot_decode_says_why(state: str) -> None:
    with plain({"/readyz": (503, "text/plain", f"{state}\n")}) as server:
        assert health("--url", server.url) == (1, f"{state}\n", "")


@pytest.mark.parametrize(
    "said", [(200, "text/html", "<html>hello"), (200, "text/plain", "starting\n"), (503, "", "No way")]
)
def test_what_another_server_says_is_no_health(said: tuple[int, str, str]) -> None:
    with plain({"/readyz": said}) as server:
        error = f"error: {server.url}/readyz answers {said[0]}, and not as this server does\n"
        assert health("--url", server.url) == (1, "", f"{error}hint: is this an asr_ws server?\n")


def test_without_a_server_it_fails_with_a_hint(closed_port: int) -> None:
    code, out, err = health("--url", f"http://127.0.0.1:{closed_port}")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: no answer at http://127.0.0.1:{closed_port}/readyz: ")
    assert err.endswith("\nhint: is the server running? asr-ws serve\n")


async def test_a_certificate_that_is_not_trusted_is_said(scripted: WorkerSpec, tmp_path: Path) -> None:
    async with Ports(has_two=True, is_encrypted=True).serving(scripted, tmp_path) as reach:
        url = f"https://127.0.0.1:{reach.app.listener.http_port}"
        code, out, err = await program("health", "--url", url)
    assert (code, out) == (1, "")
    assert err.endswith("\nhint: if its certificate is one of its own, name that file: SSL_CERT_FILE=self-signed.pem\n")


@pytest.mark.parametrize(
    "args", [["--url", "nowhere"], ["--timeout-s", "0"], ["--url", "ftp://127.0.0.1"], ["--url", "http://a b"]]
)
def test_a_wrong_call_is_told_apart(args: list[str]) -> None:
    code, out, _ = health(*args)
    assert (code, out) == (2, "")


def test_it_starts_with_little() -> None:
    heavy = ("numpy", "websockets", "asyncio", "rich", "soundfile", "concurrent.futures")
    script = f"import sys, asr_ws.cli.health; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
