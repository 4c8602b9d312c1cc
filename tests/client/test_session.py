"""The client against a real server with a scripted worker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asr_ws import messages
from asr_ws.client import (
    ConnectionLost,
    Event,
    Gap,
    SessionFailed,
    SessionRefused,
    collect,
    connect,
    transcribe,
)
from asr_ws.client.address import session_url
from asr_ws.errors import ClientError
from asr_ws.server import reception
from asr_ws.testing.recognizer import Gate
from asr_ws.worker.supervisor import WorkerSpec
from tests.server.running import PATIENT_MS, SECOND, serving

MANUAL: dict[str, Any] = {"endpointing": {"mode": "manual"}}


async def test_stream_of_samples_ends_with_done(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, connect(app.url, prompt="say hello", **MANUAL) as session:
        assert session.ready is not None
        assert session.ready.model == "base"
        events = [event async for event in session.stream(np.zeros(16_000, np.float32))]
    transcript = collect(events)
    assert (transcript.text, transcript.unfinished) == ("hello", [])
    assert isinstance(events[-1], messages.Done)
    assert events[-1].decoded_ms == 1000


async def test_long_source_gets_through_and_its_acknowledgements_are_not_shown(scripted: WorkerSpec) -> None:
    """Once, a source of more than 3 s stood still after its first utterance was accepted."""
    async with (
        serving(scripted) as app,
        connect(app.url, endpointing={"mode": "manual", "max_utterance_ms": 1000}) as s,
    ):
        events = [event async for event in s.stream(SECOND * 12)]
    assert collect(events).done is not None
    assert [final.audio_start_ms for final in collect(events).finals] == [n * 1000 for n in range(12)]
    assert not any(isinstance(event, messages.Pong) for event in events)


async def test_source_that_can_wait_has_no_more_under_way_than_the_server_would_hold(scripted: WorkerSpec) -> None:
    """Regression: a worker that hung cost such a source what was beyond that."""
    endpointing = {"mode": "manual", "max_utterance_ms": 1000}
    async with (
        serving(scripted) as app,
        connect(app.url, prompt="sleep 0.1", partials=False, endpointing=endpointing) as session,
    ):
        under_way = [0]
        async for event in session.stream(SECOND * 8):
            under_way.append(under_way[-1] + isinstance(event, messages.Accepted) - isinstance(event, messages.Final))
    assert (max(under_way), under_way[-1]) == (2, 0)


async def test_refused_utterance_is_offered_again_by_itself(scripted: WorkerSpec) -> None:
    async with (
        Gate() as gate,
        serving(scripted, queue_capacity=1) as app,
        connect(app.url, prompt=gate.script, **MANUAL) as session,
    ):
        for _ in range(3):
            await session.send(SECOND)
            await session.commit()
        await session.end()
        types = []
        async for event in session.events():
            types.append(type(event).__name__)
            if isinstance(event, messages.Busy):
                break
        opener = asyncio.create_task(open_times(gate, 3))
        events = [event async for event in session.events()]
        await opener
    assert [final.utterance for final in collect(events).finals] == ["u1", "u2", "u3"]
    done = collect(events).done
    assert done is not None
    assert (done.finals, done.refused_ms, done.lost_ms) == (3, 0, 0)


async def open_times(gate: Gate, n: int) -> None:
    for _ in range(n):
        await gate.open()


async def test_refused_session_says_when_to_come_back(scripted: WorkerSpec) -> None:
    async with serving(scripted, ready=False, max_sessions=1) as app, connect(app.url):
        with pytest.raises(SessionRefused) as refused:
            async with connect(app.url):
                pass
    assert 0.5 <= refused.value.retry_after_s <= 1.5


async def test_no_server_is_a_clear_error() -> None:
    with pytest.raises(ClientError, match=r"no session at ws://127.0.0.1:9.*asr-ws serve"):
        async with connect("ws://127.0.0.1:9/v1/stream"):
            pass


@pytest.mark.parametrize(
    "field",
    [
        {"langauge": "en"},
        {"endpointing": {"silence_ms": 1}},
        {"words": "yes"},
        {"token": 5},
        {"client": "\ud800"},
        {"prompt": "a" * 400, "hotwords": "b" * 401},
        {"language": "e" * 16_384},
    ],
)
async def test_wrong_start_field_is_told_before_anything_is_sent(field: dict[str, Any]) -> None:
    with pytest.raises(ClientError, match="start fields"):
        async with connect("ws://127.0.0.1:9/v1/stream", **field):
            pass


@pytest.mark.parametrize("id", ["", "c" * 129, "\ud800", 5])
async def test_a_commits_id_that_is_none_is_told_and_the_session_goes_on(scripted: WorkerSpec, id: Any) -> None:
    async with serving(scripted) as app, connect(app.url, prompt="say hello", **MANUAL) as session:
        await session.send(SECOND)
        with pytest.raises(ClientError, match="commit fields"):
            await session.commit(id)
        await session.close()
        events = [event async for event in session.events()]
    assert collect(events).text == "hello"


async def test_lost_connection_is_told_with_its_close_code(scripted: WorkerSpec) -> None:
    async with serving(scripted, ready=False) as app, connect(app.url, reconnects=0) as session:
        app.dispatcher.drain()
        with pytest.raises(ConnectionLost) as lost:
            [event async for event in session.stream(SECOND)]
    assert lost.value.close_code == 1012


async def test_fatal_error_is_the_last_event_and_raised(scripted: WorkerSpec) -> None:
    events: list[Event] = []
    async with serving(scripted, ready=False) as app, connect(app.url, language="tlh") as session:
        with pytest.raises(SessionFailed) as failed:
            async for event in session.stream(SECOND):
                events.append(event)
    last = [event for event in events if isinstance(event, messages.Error | Gap)]
    assert [type(event) for event in last] == [messages.Error, Gap]
    assert failed.value.code == "unsupported_language"


async def test_cancel_drops_what_is_heard(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, connect(app.url, **MANUAL) as session:
        await session.send(SECOND)
        events = session.events()
        async for event in events:
            if isinstance(event, messages.SpeechStarted):
                break
        await session.cancel()
        await session.close()
        rest = [event async for event in events]
    assert [type(event) for event in rest] == [messages.Dropped, messages.Done]


async def test_a_commit_that_was_not_sent_yet_is_cancelled_too(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, connect(app.url, **MANUAL) as session:
        await session.send(SECOND)
        await session.commit("a")
        await session.cancel()
        await session.close()
        events = [event async for event in session.events()]
    assert not [event for event in events if isinstance(event, messages.Error)]
    assert isinstance(events[-1], messages.Done)
    assert (events[-1].received_ms, events[-1].decoded_ms, events[-1].lost_ms) == (1000, 0, 0)


async def test_one_line_transcribes(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        transcript = await asyncio.to_thread(transcribe, SECOND, app.url, prompt="say one line", **MANUAL)
    assert transcript.text == "one line"


@pytest.mark.parametrize(
    ("start", "told"),
    [({"language": "xx"}, "unsupported_language: "), ({"max_wait_ms": PATIENT_MS + 1}, "bad_message: ")],
)
async def test_one_line_tells_why_there_is_no_text(scripted: WorkerSpec, start: dict[str, Any], told: str) -> None:
    async with serving(scripted) as app:
        with pytest.raises(ClientError, match=told):
            await asyncio.to_thread(transcribe, SECOND, app.url, **start)


async def test_source_that_fails_in_the_middle_is_told_and_ends_the_session(scripted: WorkerSpec) -> None:
    def failing() -> Iterator[bytes]:
        yield SECOND
        raise OSError("the cable was pulled")

    async with serving(scripted) as app, connect(app.url) as session:
        with pytest.raises(OSError, match="the cable was pulled"):
            [event async for event in session.stream(failing())]


# ---------------------------------------------------------------- servers that want to know who it is


async def refused(url: str, **options: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        async with connect(url, reconnects=0, **options):
            pass
    return caught.value


async def test_a_token_opens_the_session_and_one_that_is_not_valid_is_told(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "client-token-of-enough-letters"
    (tmp_path / "tokens").write_text(token, "utf-8")
    monkeypatch.setattr(reception, "TOKEN_TIMEOUT_S", 1e6)
    async with serving(scripted, auth_token_file=str(tmp_path / "tokens")) as app:
        proxys = app.url.replace("//", "//user:password@")  # in the header that is the token's otherwise
        for url in (app.url, proxys):
            async with connect(url, token=token, **MANUAL) as session:
                assert session.ready is not None
                events = [event async for event in session.stream(SECOND)]
                assert isinstance(events[-1], messages.Done)
        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(transcribe, SECOND, app.url, token="wrong" + token)
        assert ": HTTP 401: no valid token" in caught.value.message
        told = await refused(app.url)
        assert told.message == "unauthorized: the first message must be `start`, with a token"
        assert told.hint.startswith("give it a token: --token-file FILE, or ASR_WS_TOKEN")
        assert caught.value.hint == "the token that was given is none of the server's: ask whoever runs it"
        assert (await refused(proxys, token="wrong" + token)).message == "unauthorized: this token is not valid"
        assert (await refused(app.url, token="two words")).hint.startswith("the token alone: no name behind it")
        assert (await refused(app.url, token="")).message == "the token is empty"
        async with connect(app.url, token=f"{token}\n") as session:
            assert session.ready is not None


async def test_a_token_is_in_start_too_where_a_proxy_takes_the_header_away(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "client-token-of-enough-letters"
    (tmp_path / "tokens").write_text(token, "utf-8")
    monkeypatch.setattr(reception.Asked, "bearer", None)
    async with (
        serving(scripted, auth_token_file=str(tmp_path / "tokens")) as app,
        connect(app.url, token=token, **MANUAL) as session,
    ):
        events = [event async for event in session.stream(SECOND)]
    assert [type(event) for event in (events[0], events[-1])] == [messages.Ready, messages.Done]


async def test_a_token_is_not_for_the_host_that_a_redirect_names(scripted: WorkerSpec, tmp_path: Path) -> None:
    token = "client-token-of-enough-letters"
    (tmp_path / "tokens").write_text(token, "utf-8")

    async with serving(scripted, ready=False, auth_token_file=str(tmp_path / "tokens")) as app:

        async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {app.url}\r\nContent-Length: 0\r\n\r\n".encode())
            writer.close()

        async with await asyncio.start_server(redirect, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            for user in ("", "joe:secret@"):
                error = await refused(f"ws://{user}127.0.0.1:{port}/v1/stream", token=token)
                assert error.hint == "give the address it leads to"


async def test_a_limit_of_ones_own_is_told_by_its_name(scripted: WorkerSpec) -> None:
    async with serving(scripted, ready=False, max_sessions_per_address=1) as app, connect(app.url):
        error = await refused(app.url)
        with_password = app.url.replace("//", "//joe:secret@")  # `start` is sent at once, where nobody may read it
        refusals = [await refused(with_password, token="client-token-of-enough-letters") for _ in range(10)]
    assert {each.message for each in (error, *refusals)} == {"the server refused the session: max_sessions_per_address"}


async def test_what_answers_the_handshake_otherwise_is_told() -> None:
    answer = b""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(b"HTTP/1.1 " + answer)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        answer = b"503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: text/plain\r\n\r\ntoo many sessions\n"
        error = await refused(url)
        assert isinstance(error, SessionRefused)
        assert (error.message, error.retry_after_s) == ("the server refused the session: too many sessions", 1.0)
        answer = b"503 Service Unavailable\r\nRetry-After: 2\r\nContent-Type: text/plain\r\n\r\n"
        assert (await refused(url)).message == "the server refused the session: Service Unavailable"
        for answer in (b"502 Bad Gateway\r\n\r\n<h1>nginx", b"503 Service Unavailable\r\n\r\n"):
            error = await refused(url)
            assert error.message == f"no session at ws{url[4:]}v1/stream: HTTP {answer[:3].decode()}"
        answer = b"404 Not Found\r\n\r\n"
        assert (await refused(url)).hint.startswith("is this an asr_ws server? behind a proxy its prefix")
        none: Any
        for none in (
            "127.0.0.1:8765",
            "http://[::1",
            "http://127.0.0.1:87650",
            "http://127.0.0.1:x",
            None,
            b"ws://h",
            5,
        ):
            assert (await refused(none)).hint.startswith("such as http://")
        assert (await refused("http://nowhere.invalid")).hint == "is the name right, and the network there?"
        for none in ("a" * 70, "a..b", "h\0", "\ud800"):
            answer = f"302 Found\r\nLocation: ws://{none}/\r\n\r\n".encode("utf-8", "surrogatepass")
            for address in (f"ws://{none}/", url):
                assert (await refused(address)).message.startswith(("no session at ws://", f"{address} is no address"))
        answer = b"302 Found\r\nLocation: http://[\r\n\r\n"
        assert (await refused(url)).message.endswith("Invalid IPv6 URL")
        answer = b"401 Unauthorized\r\nWWW-Authenticate: Basic\r\n\r\n"
        error = await refused(url.replace("//", "//joe:secret@"), token="client-token-of-enough-letters")
        assert error.hint.startswith("the proxy in front wants a user and a password")
        assert "secret" not in error.message
        answer = b"garbage"
        assert (await refused(url)).hint == "it may want TLS: https:// or wss://"
        assert (await refused(url.replace("http", "https"))).hint == "it may speak no TLS: http:// or ws://"


@pytest.mark.parametrize("proxy", ["nonsense", "foo://h:1", "http://"])
async def test_a_proxy_that_is_none_is_told(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    assert (await refused("ws://example.invalid/")).hint.startswith("the environment names that proxy")


async def test_a_certificate_that_is_not_trusted_is_told_with_what_to_do(
    scripted: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(scripted, ready=False, host="0.0.0.0", tls_self_signed=True, state_dir=str(tmp_path)) as app:
        assert (await refused(app.url)).hint.endswith("SSL_CERT_FILE=self-signed.pem")
        assert app.certificate is not None
        monkeypatch.setenv("SSL_CERT_FILE", "elsewhere.pem")
        assert (await refused(app.url)).hint == "SSL_CERT_FILE names elsewhere.pem, which is no file"
        monkeypatch.setenv("SSL_CERT_FILE", str(app.certificate.cert))
        if sys.platform != "darwin":  # where this machine has no other address for certain
            other = app.url.replace("127.0.0.1", "127.0.0.9")
            assert (await refused(other)).hint == "call it by a name or an address that its certificate is for"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://h:1", "ws://h:1/v1/stream"),
        ("https://h/", "wss://h/v1/stream"),
        ("https://h/asr/", "wss://h/asr/v1/stream"),
        ("https://h/asr", "wss://h/asr/v1/stream"),
        ("https://h/asr/v1/stream", "wss://h/asr/v1/stream"),
        ("ws://h/", "ws://h/v1/stream"),
        ("ws://h/v1/stream", "ws://h/v1/stream"),
        ("wss://h/elsewhere", "wss://h/elsewhere"),
    ],
)
def test_a_servers_plain_address_will_do(given: str, url: str) -> None:
    assert session_url(given) == (url, "")
