"""Who may come in, on real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog
from websockets.exceptions import InvalidStatus

from asr_ws import log
from asr_ws.errors import UsageError
from asr_ws.server import entrance, listener, reception, reload
from asr_ws.server.app import App
from asr_ws.testing.recognizer import Gate
from asr_ws.worker.supervisor import WorkerSpec
from benchmarks.wire import BINARY, CLOSE
from tests.server.raw import frame, raw, request
from tests.server.running import MANUAL, SECOND, Client, serving, settings

KITCHEN, GARDEN = "kitchen-token-of-enough-letters", "garden-token-of-enough-letters"
BEARER = {"Authorization": f"Bearer {KITCHEN}"}
END = {"type": "end"}


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"{KITCHEN} kitchen\n{GARDEN} garden\n", "utf-8")
    return file


async def status_of(app: App, **options: Any) -> int:
    """Of a handshake: 101, or what it was refused with."""
    try:
        async with Client(app, **options):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def forwarded(address: str) -> dict[str, Any]:
    return {"additional_headers": {"X-Forwarded-For": address}}


# ---------------------------------------------------------------- origins


async def test_pages_of_this_server_and_of_listed_origins_open_sessions_and_no_others(scripted: WorkerSpec) -> None:
    with structlog.testing.capture_logs() as logs:
        await _try_origins(scripted)
    refused = [entry for entry in logs if entry["event"] == "access.refused"]
    assert sum(entry["n"] for entry in refused) == 6
    assert refused[-1]["origin"] == "https://www.example.com:8443"


async def _try_origins(scripted: WorkerSpec) -> None:
    async with serving(scripted, ready=False, allow_origin=("https://www.example.com",)) as app:
        own = app.listener.url
        statuses = {
            origin: await status_of(app, origin=origin)
            for origin in (
                None,
                own,
                "https://www.example.com",
                "https://evil.example",
                "null",
                f"{own}0",
                f"{own}.evil.example",
                f"https{own[4:]}",
                "http://localhost",
                "https://www.example.com:8443",
            )
        }
        assert statuses == {
            None: 101,
            own: 101,
            "https://www.example.com": 101,
            "https://evil.example": 403,
            "null": 403,
            f"{own}0": 403,
            f"{own}.evil.example": 403,
            f"https{own[4:]}": 101,  # a proxy may have taken the encryption away
            "http://localhost": 403,
            "https://www.example.com:8443": 403,
        }


async def test_a_name_made_to_point_here_is_not_this_servers_own(scripted: WorkerSpec) -> None:
    """DNS rebinding: the attacker's page is of evil.example, and so is its request."""
    page = "Origin: http://evil.example:8765"
    upgrade = "GET /v1/stream HTTP/1.1\r\nHost: evil.example:8765"
    rest = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13"
    async with serving(scripted, ready=False) as app:
        assert (await request(app, f"{upgrade}\r\n{page}\r\n{rest}"))[0] == 403
        assert (await request(app, f"{upgrade}\r\n{page}\r\n{page}\r\n{rest}"))[0] == 403
        assert (await request(app, f"{upgrade}\r\nHost: localhost\r\n{page}\r\n{rest}"))[0] == 403
        status, _, body = await request(app, f"{upgrade}\r\nX-Forwarded-For: 203.0.113.5\r\n{page}\r\n{rest}")
        assert (status, "--allow-origin" in body) == (403, True)


# ---------------------------------------------------------------- tokens


async def test_a_token_in_the_header_opens_the_session_at_once(scripted: WorkerSpec, token_file: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with (
            serving(scripted, auth_token_file=str(token_file)) as app,
            Client(app, additional_headers=BEARER) as client,
        ):
            await client.send(SECOND, END)
            assert await client.rest() == 1000
    assert client.types() == ["ready", "done"]
    (opened,) = (entry for entry in logs if entry["event"] == "session.opened")
    assert (opened["client"], opened["token"]) == ("127.0.0.1", "kitchen")


async def test_a_token_in_start_opens_the_session_then(scripted: WorkerSpec, token_file: Path) -> None:
    async with serving(scripted, auth_token_file=str(token_file)) as app, Client(app) as client:
        await client.send({**MANUAL, "token": GARDEN}, SECOND, {"type": "commit"}, END)
        assert await client.rest() == 1000
    assert client.types() == ["ready", "started", "speech_started", "accepted", "final", "done"]
    assert [event.get("seq") for event in client.events] == [None, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"type": "start", "token": "x" * 31}, "this token is not valid"),
        ({"type": "start", "token": KITCHEN[:-1]}, "this token is not valid"),
        ({"type": "start"}, "the first message must be `start`, with a token"),
        ({"type": "start", "token": None}, "the first message must be `start`, with a token"),
        ({"type": "ping"}, "the first message must be `start`, with a token"),
        ({"type": "end"}, "the first message must be `start`, with a token"),
        ({"type": "start", "tokn": KITCHEN}, "the first message is none: Object contains unknown field `tokn`"),
        ("[]", "the first message is none: Expected `object`, got `array`"),
        (SECOND, "audio came before the token"),
        (b"", "audio came before the token"),
    ],
)
async def test_anything_else_first_is_unauthorized(
    scripted: WorkerSpec, token_file: Path, first: dict[str, Any] | bytes | str, message: str
) -> None:
    async with serving(scripted, ready=False, auth_token_file=str(token_file)) as app, Client(app) as client:
        await client.send(first)
        assert await client.rest() == 1008
        assert client.socket.close_reason == "unauthorized"
        assert client.events == [
            {
                "type": "error",
                "code": "unauthorized",
                "message": message,
                "hint": reception.OTHER_TOKEN_HINT if "not valid" in message else reception.TOKEN_HINT,
                "fatal": True,
                "utterance": None,
                "commit": None,
            }
        ]


async def test_a_valid_token_beside_a_mistake_opens_the_session_which_says_the_mistake(
    scripted: WorkerSpec, token_file: Path
) -> None:
    async with serving(scripted, ready=False, auth_token_file=str(token_file)) as app, Client(app) as client:
        await client.send({"type": "start", "token": KITCHEN, "langage": "en"})
        assert (await client.until("error"))["message"] == "Object contains unknown field `langage`"
        assert client.types() == ["ready", "error"]


async def test_who_says_nothing_is_not_waited_for_and_takes_no_session(
    scripted: WorkerSpec, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        serving(scripted, ready=False, auth_token_file=str(token_file), max_sessions=1) as app,
        Client(app) as silent,
    ):
        async with Client(app, additional_headers=BEARER) as client:
            assert (await client.next())["type"] == "ready"
        monkeypatch.setattr(reception, "TOKEN_TIMEOUT_S", 0.1)
        async with Client(app) as late:
            assert await late.rest() == 1008
        assert late.events[0]["message"] == "no token came within 0.1 s"
        await silent.send({"type": "start", "token": KITCHEN})
        assert (await silent.next())["type"] == "ready"


async def test_a_start_that_is_too_large_is_said_to_be(scripted: WorkerSpec, token_file: Path) -> None:
    async with serving(scripted, ready=False, auth_token_file=str(token_file)) as app, Client(app) as client:
        await client.send({"type": "start", "token": "x" * 17_000})
        assert await client.rest() == 1009
        assert client.events[0]["code"] == "too_large"


async def test_a_wrong_token_in_the_header_is_refused_at_the_handshake(scripted: WorkerSpec, token_file: Path) -> None:
    async with serving(scripted, ready=False, auth_token_file=str(token_file)) as app:
        for header in (f"Bearer {KITCHEN}x", "Bearer ", f"Bearer {GARDEN[:-1]}", f"bearer {KITCHEN.upper()}"):
            assert await status_of(app, additional_headers={"Authorization": header}) == 401
        twice = [("Authorization", f"Bearer {KITCHEN}"), ("Authorization", f"Bearer {KITCHEN}")]
        assert await status_of(app, additional_headers=twice) == 401
        # Somebody else's, such as a proxy's: the token may still come in `start`.
        assert await status_of(app, additional_headers={"Authorization": "Basic dXNlcjpwYXNz"}) == 101


async def test_numbers_are_behind_the_token_unless_opened_and_health_is_not(
    scripted: WorkerSpec, token_file: Path
) -> None:
    async def statuses(app: App, *headers: str) -> dict[str, int]:
        paths = ("/metrics", "/v1/stats", "/livez", "/healthz", "/", f"/v1/stats?token={KITCHEN}")
        heads = {path: "\r\n".join([f"GET {path} HTTP/1.1", *headers]) for path in paths}
        return {path: (await request(app, head))[0] for path, head in heads.items()}

    everything = dict.fromkeys(("/metrics", "/v1/stats", "/livez", "/healthz", "/", f"/v1/stats?token={KITCHEN}"), 200)
    guarded = everything | dict.fromkeys(("/metrics", "/v1/stats", f"/v1/stats?token={KITCHEN}"), 401)
    async with serving(scripted, ready=False, auth_token_file=str(token_file)) as app:
        assert await statuses(app) == guarded
        assert await statuses(app, "Authorization: Bearer wrong-token-of-enough-letters") == guarded
        assert await statuses(app, f"Authorization: Bearer {GARDEN}") == everything
        _, headers, _ = await request(app, "GET /metrics HTTP/1.1")
        assert headers["www-authenticate"] == "Bearer"
    async with serving(scripted, ready=False, auth_token_file=str(token_file), open_stats=True) as app:
        assert await statuses(app) == everything
    async with serving(scripted, ready=False) as app:
        assert await statuses(app) == everything


async def test_a_token_in_the_address_is_not_taken(scripted: WorkerSpec, token_file: Path) -> None:
    async with serving(scripted, ready=False, auth_token_file=str(token_file)) as app:
        client = Client(app)
        client.url += f"?token={KITCHEN}"
        async with client:
            await client.send(SECOND)
            assert await client.rest() == 1008


async def test_no_token_gets_into_the_log(
    scripted: WorkerSpec, token_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Wherever it is sent, right or wrong, at the most talkative level."""
    wrong = "wrong-canary-of-enough-letters"
    log.configure("json", "debug")
    try:
        async with serving(scripted, auth_token_file=str(token_file)) as app:
            for token in (KITCHEN, wrong):
                header = {"Authorization": f"Bearer {token}"}
                await status_of(app, additional_headers=header)
                await status_of(app, additional_headers={"Authorization": f"Basic {token}"})
                for first in (
                    {"type": "start", "token": token},
                    {"type": "start", "token": token, "tokn": token},
                    token,
                ):
                    client = Client(app)
                    client.url += f"?token={token}"
                    async with client:
                        await client.send(first)
                        await client.send(END)
                        await client.rest()
                await request(app, f"GET /metrics?token={token} HTTP/1.1\r\nAuthorization: Bearer {token}")
                await request(app, f"GET /{token} HTTP/1.1\r\nX-Forwarded-For: {token}\r\nOrigin: {token}")
                await request(app, f"nonsense {token}")
    finally:
        log.close()
    written = "".join(capfd.readouterr())
    assert "session.opened" in written
    assert "access.refused" in written
    assert KITCHEN not in written
    assert wrong not in written


# ---------------------------------------------------------------- reload


def write(file: Path, text: str) -> None:
    file.write_text(text, "utf-8")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def test_tokens_are_read_again_and_the_sessions_of_a_revoked_one_end(
    scripted: WorkerSpec, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "LOOK_EVERY_S", 0.02)
    new = "brand-new-token-of-enough-letters"
    with structlog.testing.capture_logs() as logs:
        async with (
            Gate() as gate,
            serving(scripted, auth_token_file=str(token_file)) as app,
            Client(app, additional_headers=BEARER) as revoked,
            Client(app, additional_headers={"Authorization": f"Bearer {GARDEN}"}) as kept,
        ):
            await kept.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
            decode = await gate.entered()
            await revoked.send(MANUAL, SECOND, {"type": "commit"})
            await revoked.until("accepted")
            assert app.dispatcher.queue.depth == 1
            write(token_file, f"{GARDEN} renamed\n{new}\n")
            assert await revoked.rest() == 1008
            assert (revoked.events[-1]["code"], revoked.events[-1]["seq"]) == ("unauthorized", 4)
            assert app.dispatcher.queue.depth == 0, "what it had waiting is nobody's"
            assert await status_of(app, additional_headers=BEARER) == 401
            assert await status_of(app, additional_headers={"Authorization": f"Bearer {new}"}) == 101
            gate.release(decode)
            assert (await kept.until("final"))["utterance"] == "u1"
            write(token_file, "# nobody\n")  # as an editor leaves it for a moment
            await until(lambda: any(entry["event"] == "file.not_reloaded" for entry in logs))
            assert await status_of(app, additional_headers={"Authorization": f"Bearer {new}"}) == 101
            os.remove(token_file)
            await until(lambda: sum(entry["event"] == "file.not_reloaded" for entry in logs) == 2)
            write(token_file, f"{new}\n")
            assert await kept.rest() == 1008
    (said, _) = (entry for entry in logs if entry["event"] == "file.not_reloaded")
    assert said["message"] == f"{token_file}: no token in it"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read {file}: No such file or directory"),
        (b"", "{file}: no token in it"),
        (b"secret", "{file}: line 1: a token has at least 16 characters"),
        (b"\xff\xfe\x00", "{file} is no text"),
        (b"#" * (1 << 20) + b"\n", "{file} is longer than 1024 KiB"),
    ],
)
def test_a_token_file_that_cannot_be_used_stops_the_start(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        entrance.tokens(settings(auth_token_file=str(file)))
    assert caught.value.message == f"--auth-token-file: {message.format(file=file)}"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read|is no regular file"):
        entrance.tokens(settings(auth_token_file=str(tmp_path)))


# ---------------------------------------------------------------- addresses and limits


async def test_an_address_has_half_of_the_sessions_and_is_told_so(scripted: WorkerSpec) -> None:
    with structlog.testing.capture_logs() as logs:
        async with (
            serving(scripted, ready=False, max_sessions=4, trusted_proxy=("127.0.0.1",)) as app,
            Client(app, **forwarded("203.0.113.5")),
            Client(app, **forwarded("6.6.6.6, 203.0.113.5")),  # the left one it has made up itself
            Client(app, **forwarded("203.0.113.5")) as third,
            Client(app, **forwarded("203.0.113.6")) as neighbour,
        ):
            assert await third.rest() == 1013
            assert third.socket.close_reason == "max_sessions_per_address"
            (busy,) = third.events
            assert (busy["status"], busy["reason"], busy["utterance"], busy["retryable"]) == (
                429,
                "max_sessions",
                None,
                True,
            )
            assert 500 <= busy["retry_after_ms"] <= 1500
            assert (await neighbour.next())["type"] == "ready"
    opened = [entry["client"] for entry in logs if entry["event"] == "session.opened"]
    assert opened == ["203.0.113.5", "203.0.113.5", "203.0.113.6"]


async def test_this_machines_own_programs_may_have_all_sessions_and_nobody_is_believed(scripted: WorkerSpec) -> None:
    async with (
        serving(scripted, ready=False, max_sessions=4) as app,
        Client(app, **forwarded("203.0.113.5")) as one,
        Client(app, **forwarded("203.0.113.5")) as two,
        Client(app, **forwarded("203.0.113.5")) as three,
    ):
        for client in (one, two, three):
            assert (await client.next())["type"] == "ready"
    async with (
        serving(scripted, ready=False, max_sessions=4, max_sessions_per_address=1) as app,
        Client(app),
        Client(app) as second,
    ):
        assert await second.rest() == 1013, "a limit that was given holds for everybody"


async def test_a_token_has_its_own_limit(scripted: WorkerSpec, token_file: Path) -> None:
    async with (
        serving(scripted, ready=False, auth_token_file=str(token_file), max_sessions_per_token=1) as app,
        Client(app, additional_headers=BEARER) as first,
    ):
        assert (await first.next())["type"] == "ready"
        async with Client(app) as second:
            await second.send({"type": "start", "token": KITCHEN})
            assert await second.rest() == 1013
        assert (second.socket.close_reason, second.types()) == ("max_sessions_per_token", ["busy"])
        async with Client(app) as other:
            await other.send({"type": "start", "token": GARDEN})
            assert (await other.next())["type"] == "ready"


async def test_who_keeps_others_waiting_at_the_door_keeps_out_his_own_address_only(
    scripted: WorkerSpec, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: who had no token, and did not answer the close, had everybody answered 503."""
    monkeypatch.setattr(listener, "UNKNOWN_OF_ADDRESS", 3)
    monkeypatch.setattr(listener, "REFUSALS_AT_ONCE", 1)
    monkeypatch.setattr(listener, "TURN_AWAY_TIMEOUT_S", 1e6)
    options = {"auth_token_file": str(token_file), "trusted_proxy": ("127.0.0.1",)}
    async with serving(scripted, ready=False, **options) as app, AsyncExitStack() as stack:
        for at in range(3):
            stranger = await stack.enter_async_context(raw(app))
            assert "101" in await stranger.upgrade("X-Forwarded-For: 6.6.6.6")
            if at:
                await stranger.send(frame(BINARY, b"no token"))
                await stranger.next()
        assert await status_of(app, **forwarded("6.6.6.6")) == 503
        assert await status_of(app, additional_headers=BEARER | {"X-Forwarded-For": "6.6.6.6"}) == 101
        async with Client(app, **forwarded("203.0.113.5")) as other:
            await other.send({"type": "start", "token": KITCHEN})
            assert (await other.next())["type"] == "ready"
        for _ in range(4):
            assert "101" in await (await stack.enter_async_context(raw(app))).upgrade(), "many come by loopback"
        assert app.metrics.access_refused == {"unauthorized": 2, "unidentified": 1}


async def test_a_refusals_close_is_seen_behind_messages_that_nobody_takes(
    scripted: WorkerSpec, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "TURN_AWAY_TIMEOUT_S", 1e6)
    monkeypatch.setattr(listener, "CLOSE_TIMEOUT_S", 1e6)
    async with serving(scripted, ready=False, auth_token_file=str(token_file)) as app, raw(app) as stranger:
        await stranger.upgrade()
        await stranger.send(frame(BINARY, b"no token") * 50 + frame(CLOSE, b"\x03\xe8"))
        await stranger.rest()
        stranger.writer.close()
        while app.listener._beside:
            await asyncio.sleep(0)


async def test_who_does_not_take_his_refusal_is_cut_off(
    scripted: WorkerSpec, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "TURN_AWAY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(listener, "CLOSE_TIMEOUT_S", 1e6)
    async with serving(scripted, ready=False, auth_token_file=str(token_file)) as app, raw(app) as stranger:
        await stranger.upgrade()
        await stranger.send(frame(BINARY, b"no token"))
        assert await stranger.close_code() == 1008
        await stranger.rest()
        assert not app.listener._beside


# ---------------------------------------------------------------- root path


async def test_a_proxys_prefix_may_be_there_or_not(scripted: WorkerSpec) -> None:
    async with serving(scripted, ready=False, root_path="/asr") as app:
        expected = {
            "/": 200,
            "/asr/": 200,
            "/livez": 200,
            "/asr/livez": 200,
            "/asr/v1/stats?x=1": 200,
            "/asr": 308,
            "/asrx/livez": 404,
            "/asr/asr/livez": 404,
            "/asr//livez": 404,
        }
        assert {path: (await request(app, f"GET {path} HTTP/1.1"))[0] for path in expected} == expected
        for asked, location in (("/asr", "/asr/"), ("/asr?lang=zh&x=/asr", "/asr/?lang=zh&x=/asr")):
            assert (await request(app, f"GET {asked} HTTP/1.1"))[1]["location"] == location
        client = Client(app)
        client.url = client.url.replace("/v1", "/asr/v1")
        async with client:
            assert (await client.next())["type"] == "ready"


# ---------------------------------------------------------------- pages


async def test_every_response_has_the_headers_and_a_page_has_no_parts_from_elsewhere(scripted: WorkerSpec) -> None:
    wanted = {
        "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
        "connection": "close",
    }
    async with serving(scripted, ready=False) as app:
        for path in ("/", "/page/page.css", "/v1/stats", "/v1/schema.json", "/nothing", "/readyz"):
            _, headers, _ = await request(app, f"GET {path} HTTP/1.1")
            assert wanted.items() <= headers.items(), path
            assert headers["server"] == "asr-ws"  # which version, and of what, is nobody's business
        _, _, page = await request(app, "GET / HTTP/1.1")
        assert "<style" not in page
        assert "<script" in page
        assert re.findall(r"<script(?![^>]* src=)|\sstyle=|\son\w+=", page) == []


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%5c..%5cwindows/win.ini",
        "/..\\..\\windows\\win.ini",
        "//host/share",
        "/C:/windows/win.ini",
        "/page/page.css%00.png",
        "/page/page.css/",
        "/page/page.css/../page/page.css",
        "/PAGE/PAGE.CSS",
        "/./page/page.css",
        "//page/page.css",
        "/page%2fpage.css",
    ],
)
async def test_no_path_leads_anywhere_but_to_the_pages(scripted: WorkerSpec, path: str) -> None:
    async with serving(scripted, ready=False) as app:
        status, _, body = await request(app, f"GET {path} HTTP/1.1")
        assert (status, body) == (404, "nothing here; sessions are at /v1/stream\n")


@pytest.mark.parametrize("path", ["\\\\host\\share", "/\x1b[31m", "*", "page/page.css", "/a b"])
async def test_what_is_no_path_is_no_request_and_not_logged(
    scripted: WorkerSpec, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(scripted, ready=False) as app:
        status, _, body = await request(app, f"GET {path} HTTP/1.1")
        assert (status, json.loads(body)["error"]["code"]) == (400, "bad_request")
        assert app.listener.http.requests == {("other", 400): 1}
    assert not caplog.records


# ---------------------------------------------------------------- what is said at the start


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"host": "localhost"}, []),
        ({"trusted_proxy": ("127.0.0.1/32",)}, [entrance.PROXY_WARNING]),
        ({"root_path": "/asr"}, [entrance.PROXY_WARNING]),
        ({"trusted_proxy": ("127.0.0.1/32",), "auth_token_file": "f"}, []),
        ({"allow_origin": ("*",)}, [entrance.ANY_PAGE_WARNING]),
        ({"allow_origin": ("*",), "auth_token_file": "f"}, []),
        ({"host": "0.0.0.0"}, [entrance.OPEN_WARNING, entrance.CLEAR_WARNING]),
        ({"host": "192.168.0.5", "auth_token_file": "f"}, [entrance.CLEAR_WARNING]),
        ({"host": "::", "auth_token_file": "f", "tls_self_signed": True}, []),
        ({"host": "::", "tls_cert": "c", "tls_key": "k"}, [entrance.OPEN_WARNING]),
        ({"host": "0.0.0.0", "auth_token_file": "f", "trusted_proxy": ("10.0.0.0/8",)}, []),
    ],
)
def test_what_is_dangerous_is_said(changes: dict[str, Any], said: list[str]) -> None:
    assert entrance.warnings(settings(**changes)) == said


def test_listening_everywhere_is_told_with_the_machines_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "addresses", lambda: ["192.168.0.5", "fd00::5"])
    assert entrance.hosts("0.0.0.0") == ["127.0.0.1", "192.168.0.5"]
    assert entrance.hosts("::") == ["::1", "fd00::5"]
    assert entrance.hosts("192.168.0.7") == ["192.168.0.7"]
