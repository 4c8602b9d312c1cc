"""Two ports: sessions alone on the first, everything else on the second (``--http-port``)."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from websockets.exceptions import InvalidStatus

from asr_ws.cli import main
from asr_ws.errors import UsageError
from asr_ws.server.app import announce
from asr_ws.worker.supervisor import WorkerSpec
from tests.server.asking import form
from tests.server.reach import GET, HOST, STREAM, Ports, Reach, body, head, post, status
from tests.server.running import MANUAL, SECOND, Client, get, serving

TWO = [Ports(has_two=True, is_encrypted=encrypted) for encrypted in (False, True)]
both = pytest.mark.parametrize("two", TWO, ids=str)


def headers_of(answer: bytes) -> dict[str, str]:
    lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return dict(line.lower().split(": ", 1) for line in lines)


async def at_sessions_port(reach: Reach, request: bytes) -> bytes:
    async with reach.sessions() as connected:
        await connected.send(request)
        return await connected.rest()


@both
async def test_each_port_serves_its_own_and_says_where_the_other_is(
    two: Ports, scripted: WorkerSpec, tmp_path: Path
) -> None:
    async with two.serving(scripted, tmp_path, ready=True) as reach:
        port, http_port = reach.app.listener.port, reach.app.listener.http_port
        s = "s" * two.is_encrypted
        assert port != http_port
        async with reach.client() as client:
            await client.send(MANUAL, SECOND, {"type": "end"})
            assert await client.rest() == 1000
        for path in ("/", "/livez", "/readyz", "/metrics", "/v1/stats", "/asr-client.js", "/v1/models"):
            assert status(await reach.exchange(head(f"GET {path} HTTP/1.1", HOST))) == 200
            answer = await at_sessions_port(reach, head(f"GET {path} HTTP/1.1", HOST))
            told = f"HTTP has a port of its own: http{s}://localhost:{http_port}\n"
            assert (status(answer), body(answer).decode()) == (404, told)
        assert status(await reach.exchange(post("/v1/jobs", form(b"RIFF")))) == 202
        assert reach.app.listener.http.requests["/v1/stream", 101] == 1
        for request in (STREAM, head("GET /v1/stream HTTP/1.1", HOST), head("POST /v1/stream HTTP/1.1", HOST)):
            answer = await reach.exchange(request)
            assert status(answer) == 426
            assert headers_of(answer)["upgrade"] == "websocket"
            assert body(answer).decode() == f"sessions are at ws{s}://localhost:{port}/v1/stream\n"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("192.168.0.7:9000", "192.168.0.7"),
        ("[::1]:9000", "[::1]"),
        ("Lab.local", "Lab.local"),
        ("x y", "localhost"),
        ("x;y", "localhost"),
        ("'none'", "localhost"),
        ("[::1", "localhost"),
        ("x:1:2", "localhost"),
        ("x" * 300, "localhost"),
    ],
)
async def test_the_other_port_is_named_as_the_client_calls_the_machine(
    scripted: WorkerSpec, asked: str, named: str
) -> None:
    async with TWO[0].serving(scripted, Path(scripted.model)) as reach:
        answer = await reach.exchange(head("GET /v1/stream HTTP/1.1", f"Host: {asked}"))
        assert body(answer).decode() == f"sessions are at ws://{named}:{reach.app.listener.port}/v1/stream\n"


# ---------------------------------------------------------------- the page


@both
async def test_the_page_is_told_both_ports_and_may_use_the_other(
    two: Ports, scripted: WorkerSpec, tmp_path: Path
) -> None:
    async with two.serving(scripted, tmp_path) as reach:
        port, http_port = reach.app.listener.port, reach.app.listener.http_port
        s = "s" * two.is_encrypted
        policies = {
            host: headers_of(await reach.exchange(head("GET / HTTP/1.1", f"Host: {host}")))["content-security-policy"]
            for host in ("localhost:1", "[::1]", "evil; script-src *")
        }
        own = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        assert policies == {
            "localhost:1": f"{own}; connect-src 'self' ws{s}://localhost:{port}",
            "[::1]": f"{own}; connect-src 'self' ws{s}://*:{port}",
            "evil; script-src *": f"{own}; connect-src 'self' ws{s}://localhost:{port}",
        }
        page = body(await reach.exchange(head("GET / HTTP/1.1", HOST))).decode()
        assert re.findall(r'<meta name="asr-ws-ports" content="(.*)">', page) == [f"{http_port} {port}"]
        other = await reach.exchange(head("GET /asr-client.js HTTP/1.1", HOST))
        assert headers_of(other)["content-security-policy"] == own


async def test_the_page_of_one_port_is_told_none(scripted: WorkerSpec) -> None:
    async with serving(scripted, ready=False) as app:
        _, page = await get(app, "/")
        assert "asr-ws-ports" not in page


@both
async def test_pages_of_our_own_ports_open_sessions_and_no_others(
    two: Ports, scripted: WorkerSpec, tmp_path: Path
) -> None:
    async with two.serving(scripted, tmp_path) as reach:
        port, http_port = reach.app.listener.port, reach.app.listener.http_port
        s = "s" * two.is_encrypted
        wanted = {
            f"http{s}://127.0.0.1:{http_port}": 101,
            f"http{s}://127.0.0.1:{port}": 101,
            f"http{s}://127.0.0.1:1": 403,
            f"http{s}://127.0.0.1": 403,
            f"http{s}://localhost:{http_port}": 403,
            f"http{s}://evil.example:{http_port}": 403,
            f"http{s}://127.0.0.1:{http_port}.evil.example": 403,
            "null": 403,
        }
        assert {page: await status_of(reach.client(origin=page)) for page in wanted} == wanted
        rebound = head(
            STREAM.decode().partition("\r\n")[0],
            f"Host: evil.example:{port}",
            f"Origin: http{s}://evil.example:{http_port}",
            *STREAM.decode().split("\r\n")[2:-2],
        )
        assert status(await at_sessions_port(reach, rebound)) == 403


async def status_of(client: Client) -> int:
    try:
        async with client:
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


# ---------------------------------------------------------------- the ports


async def test_a_second_port_that_is_taken_is_said_and_the_first_is_free_again(
    scripted: WorkerSpec, closed_port: int
) -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
    with pytest.raises(UsageError) as caught:
        async with serving(scripted, ready=False, port=port, http_port=closed_port):
            pass
    assert caught.value.message.startswith(f"cannot listen on 127.0.0.1:{closed_port}: ")
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_a_call_with_a_second_port_that_is_taken_exits_with_2(
    scripted: WorkerSpec, closed_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("asr_ws.cli.serve.have_model", lambda _: None)
    monkeypatch.setattr("asr_ws.server.app.worker_spec", lambda _: scripted)
    call = ["serve", "--model", str(scripted.model), "--port", "0", "--http-port", str(closed_port)]
    done = CliRunner().invoke(main, [*call, "--state-dir", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"error: cannot listen on 127.0.0.1:{closed_port}: " in done.stderr


async def test_the_same_port_twice_is_one_port(scripted: WorkerSpec) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    async with serving(scripted, ready=False, port=port, http_port=port) as app:
        assert (app.listener.port, app.listener.http_port, app.listener.has_two_ports) == (port, port, False)
        assert (await get(app, "/livez"))[0] == 200
        async with Client(app) as client:
            assert (await client.next())["type"] == "ready"


async def test_the_limit_of_connections_is_for_both_ports_together(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr_ws.server.door.CONNECTIONS_BESIDE", 0)
    async with (
        TWO[0].serving(scripted, tmp_path, max_sessions=1) as reach,
        reach.client() as client,
        reach.http() as waiting,
    ):
        assert (await client.next())["type"] == "ready"
        await waiting.send(GET[:-1])
        while reach.n_connections() < 2:
            await waiting.send(b"")
        assert status(await reach.exchange(GET)) == 503
        await waiting.send(GET[-1:])
        assert status(await waiting.rest()) == 200


@both
async def test_what_is_announced_is_where_it_is(
    two: Ports, scripted: WorkerSpec, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with two.serving(scripted, tmp_path) as reach:
        port, http_port = reach.app.listener.port, reach.app.listener.http_port
        announce(reach.app)
        s = "s" * two.is_encrypted
        lines = capfd.readouterr().out.splitlines()
        assert lines[0] == f"listening on http{s}://127.0.0.1:{http_port}"
        assert f"  page      http{s}://127.0.0.1:{http_port}/" in lines
        assert f"  sessions  ws{s}://127.0.0.1:{port}/v1/stream" in lines
        assert sum(str(port) in line for line in lines) == 1
