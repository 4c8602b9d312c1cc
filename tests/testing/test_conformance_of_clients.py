"""What the kit hears of a client that keeps its promises, of ours, and of some that break one each."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from asr_ws import client as ours
from asr_ws import messages
from asr_ws.client.address import session_url
from asr_ws.messages import MAX_BINARY_BYTES, MAX_TEXT_BYTES, PROTOCOL
from asr_ws.server.app import App
from asr_ws.testing.conformance import clients
from asr_ws.testing.conformance.live import Event
from asr_ws.testing.conformance.promises import SPEECH, pcm
from asr_ws.testing.conformance.relay import Heard, Relay, Said
from asr_ws.testing.conformance.table import BROKEN, KEPT, NOT_TESTED
from asr_ws.testing.conservation import Conservation
from asr_ws.testing.proxy import Proxy
from asr_ws.worker.supervisor import WorkerSpec
from tests.browser.driver import js_client
from tests.conftest import SPEECH as SPEECH_FILES
from tests.server.running import MANUAL, serving
from tests.test_docs import PROTOCOL as PROTOCOL_DOCUMENT
from tests.test_docs import sections
from tests.testing.test_conformance import invoke

AUDIO = pcm(SPEECH[:16_000])
START: Event = {**MANUAL, "partials": False}
COMMIT: Event = {"type": "commit"}
END: Event = {"type": "end"}
Message = Event | bytes | str


# ---------------------------------------------------------------- a client, and what it may do wrong


@dataclass(frozen=True)
class Lie:
    """What a client does otherwise: nothing, if it is not told to.

    Attributes:
        promise: the one that it breaks.
        sent: the messages that become of one.
        wait: seconds before it answers a refusal; inf: it does not.
        leaves: at which event it goes, with which close code; 1006: without a word.
        comes_back: after a cut.
    """

    promise: str
    sent: Callable[[Message], list[Message]] = lambda message: [message]
    wait: Callable[[Event], float] = lambda busy: max(busy["retry_after_ms"], busy["estimated_wait_ms"]) / 1000
    leaves: Callable[[Event], int | None] = lambda event: None
    comes_back: bool = True
    offered: str | None = PROTOCOL
    cuts: bool = False


async def speak(url: str, lie: Lie) -> None:
    """Two utterances, in as many connections as it takes."""
    while True:
        async with connect(url, subprotocols=[Subprotocol(lie.offered)] if lie.offered else None) as socket:
            with suppress(ConnectionClosed):
                for message in (START, AUDIO, COMMIT, AUDIO[: len(AUDIO) // 2], END):
                    await _send(socket, lie, message)
            while True:
                try:
                    event = json.loads(await socket.recv())
                except ConnectionClosed:
                    break
                if (code := 1000 if event["type"] == "done" else lie.leaves(event)) is not None:
                    await (socket.close(code) if code != 1006 else _abort(socket))
                    return
                if event["type"] == "busy" and (wait_s := lie.wait(event)) < math.inf:
                    await asyncio.sleep(wait_s)
                    if event["utterance"] is not None:
                        await _send(socket, lie, {"type": "retry", "utterance": event["utterance"]})
        if not lie.comes_back or not lie.cuts:
            return


async def _abort(socket: ClientConnection) -> None:
    socket.transport.abort()


async def _send(socket: ClientConnection, lie: Lie, message: Message) -> None:
    for each in lie.sent(message):
        await socket.send(json.dumps(each) if isinstance(each, dict) else each)


async def heard(app: App, lie: Lie) -> list[Heard]:
    relay = Relay(app.url, cuts=lie.cuts)
    async with relay.listening():
        await speak(relay.url, lie)
    return relay.sessions


def by_result(sessions: list[Heard], result: str) -> list[str]:
    return [each.name for each in clients.judged(sessions) if each.result == result]


def instead_of(message: Message, *others: Message) -> Callable[[Message], list[Message]]:
    return lambda each: list(others) if each == message else [each]


def retries(*ids: str) -> Callable[[Message], list[Message]]:
    def sent(message: Message) -> list[Message]:
        is_retry = isinstance(message, dict) and message["type"] == "retry"
        return [{"type": "retry", "utterance": id} for id in ids] if is_retry else [message]

    return sent


def later_without_its_end() -> Callable[[Message], list[Message]]:
    """The audio, once it was sent whole."""
    sent: list[Message] = []

    def later(message: Message) -> list[Message]:
        shorter = message[:-200] if isinstance(message, bytes) and message in sent else message
        sent.append(message)
        return [shorter]

    return later


LIES = [
    Lie("subprotocol", offered="asr-ws.v2"),
    Lie("frames", instead_of(AUDIO, bytes(MAX_BINARY_BYTES + 1))),
    Lie("frames", instead_of(COMMIT, json.dumps({**COMMIT, "id": "x" * MAX_TEXT_BYTES}))),
    Lie("messages", instead_of(COMMIT, {**COMMIT, "idd": "c1"})),
    Lie("messages", instead_of(COMMIT, "commit")),
    Lie("messages", instead_of(START, {**START, "max_wait_ms": -1})),
    Lie("start", instead_of(COMMIT, START, COMMIT)),
    Lie("start", instead_of(AUDIO, AUDIO, START)),
    Lie("after_end", instead_of(END, END, AUDIO)),
    Lie("after_end", instead_of(END, END, END)),
    Lie("errors", instead_of(END, b"\0", END)),
    Lie("errors", instead_of(START, {**START, "language": "xx"})),
    Lie("tolerance", instead_of(END), leaves=lambda event: 1011 if event["type"].startswith("news") else None),
    Lie("tolerance", leaves=lambda event: 1006 if "field_of_a_newer_server" in event else None),
    Lie("done", leaves=lambda event: 1000 if event["type"] == "busy" else None),
    Lie("retry", retries("u1", "u1")),
    Lie("retry", retries("u1", "u9")),
    Lie("hints", wait=lambda busy: 0.5),
    Lie("hints", wait=lambda busy: busy["retry_after_ms"] / 1000),
    Lie("comes_back", comes_back=False, cuts=True),
    Lie("comes_back", wait=lambda busy: 0.5 if busy["utterance"] is None else 1.5, cuts=True),
    Lie("resends", later_without_its_end(), cuts=True),
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.promise)
async def test_a_lie_is_found_where_it_is_told_and_nowhere_else(scripted: WorkerSpec, lie: Lie) -> None:
    async with serving(scripted) as app:
        sessions = await heard(app, lie)
    assert by_result(sessions, BROKEN) == [lie.promise], clients.judged(sessions)


async def test_every_promise_can_be_broken_and_names_a_heading() -> None:
    assert {lie.promise for lie in LIES} == {each.name for each in clients.PROMISES}
    headings = {heading.strip("`") for level in (2, 3) for heading in sections(PROTOCOL_DOCUMENT, level)}
    assert {each.section for each in clients.PROMISES} - headings == set()


@pytest.mark.parametrize("cuts", [False, True])
async def test_who_tells_no_lie_keeps_them_all(scripted: WorkerSpec, cuts: bool) -> None:
    async with serving(scripted) as app:
        sessions = await heard(app, Lie("", cuts=cuts))
    assert by_result(sessions, BROKEN) == []
    assert by_result(sessions, NOT_TESTED) == ([] if cuts else ["comes_back", "resends"])
    assert lawful(sessions[-1]).breaches == []


async def test_who_hears_little_is_not_said_to_have_kept_it(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        relay = Relay(app.url, cuts=False)
        async with relay.listening(), connect(relay.url) as socket:
            await socket.recv()
    assert by_result(relay.sessions, KEPT) == ["subprotocol", "frames", "messages", "start", "errors"]
    assert by_result(relay.sessions, BROKEN) == []


async def test_of_who_broke_one_the_others_are_not_said_to_be_kept(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        sessions = await heard(app, Lie("start", instead_of(COMMIT, START, COMMIT)))
    assert by_result(sessions, KEPT) == ["subprotocol", "frames", "messages"]


async def test_who_breaks_off_while_it_is_told_a_lot_is_found(scripted: WorkerSpec) -> None:
    """Once, it was taken for the server that had gone."""
    async with serving(scripted) as app:
        relay = Relay(app.url, cuts=False)
        async with relay.listening():
            async with connect(relay.url) as socket:
                for n in range(200):
                    await socket.send(json.dumps({"type": "ping", "id": n}))
                socket.transport.abort()
            while relay.sessions[0].left_with is None:
                await asyncio.sleep(0)
    assert by_result(relay.sessions, BROKEN) == ["tolerance"]


async def test_a_server_that_is_far_away_changes_nothing(scripted: WorkerSpec) -> None:
    """Once, a client that came back at once was not refused, because the server's end of the cut was waited for."""
    async with serving(scripted) as app, Proxy(app.url).listening() as link:
        relay = Relay(session_url(link.url)[0], cuts=True)
        async with relay.listening():
            await speak(relay.url, Lie("", cuts=True))
    assert by_result(relay.sessions, BROKEN) == []


async def test_a_server_that_is_gone_is_no_fault_of_the_client(
    scripted: WorkerSpec, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(scripted) as app, Proxy(app.url).listening() as link:
        relay = Relay(session_url(link.url)[0], cuts=False)
        async with relay.listening(), connect(relay.url) as socket:
            await socket.recv()
            link.cut()
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await socket.recv()
    assert closed.value.rcvd is None
    assert relay.sessions[0].left_with is None
    assert "handler failed" not in caplog.text


async def test_a_relay_that_ends_is_no_fault_of_the_client(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        relay = Relay(app.url, cuts=False)
        async with relay.listening():
            socket = await connect(relay.url)
            for message in (START, AUDIO, COMMIT, END):
                await _send(socket, Lie(""), message)
            while json.loads(await socket.recv())["type"] != "busy":
                pass
        await socket.close()
    assert by_result(relay.sessions, BROKEN) == []


def test_a_newer_servers_format_is_understood() -> None:
    audio = {"encoding": "pcm_f32le", "sample_rate": 8000, "channels": 2, "endianness": "little"}
    heard = Heard(0.0, [], [Said(0.0, False, {"type": "started", "audio": audio})])
    assert heard.format == messages.AudioFormat("pcm_f32le", 8000, 2)


# ---------------------------------------------------------------- what the relay tells is lawful


def lawful(heard: Heard) -> Conservation:
    """What the client was told, judged as what a server tells."""
    law = Conservation()
    for event in heard.told:
        law.receive(messages.decode_event(json.dumps(event)))
    law.close(1000)
    return law


@pytest.mark.parametrize(
    "lie",
    [
        Lie("it is dropped at the end", wait=lambda busy: math.inf),
        Lie("it is cancelled", lambda each: [{**each, "type": "cancel"}] if _is_retry(each) else [each]),
        Lie("all are", lambda each: [{"type": "cancel"}] if _is_retry(each) else [each]),
        Lie("before the server has its text", instead_of(COMMIT, COMMIT, {"type": "cancel"})),
    ],
    ids=lambda lie: lie.promise,
)
async def test_what_the_relay_refused_has_one_outcome_too(scripted: WorkerSpec, lie: Lie) -> None:
    async with serving(scripted) as app:
        [session] = await heard(app, lie)
    law = lawful(session)
    assert law.breaches == []
    assert [event["utterance"] for event in session.told if event["type"] == "dropped"][:1] == ["u1"]


def _is_retry(message: Any) -> bool:
    return isinstance(message, dict) and message["type"] == "retry"


# ---------------------------------------------------------------- ours


@pytest.mark.parametrize("cuts", [False, True])
async def test_the_python_client_keeps_them_all(scripted: WorkerSpec, cuts: bool) -> None:
    async with serving(scripted) as app:
        relay = Relay(app.url, cuts=cuts)
        async with relay.listening(), ours.connect(relay.url, endpointing={"mode": "manual"}) as session:
            await session.send(AUDIO)
            await session.commit()
            events = [event async for event in session.stream(AUDIO)]
    assert by_result(relay.sessions, BROKEN) == []
    assert by_result(relay.sessions, NOT_TESTED) == ([] if cuts else ["comes_back", "resends"])
    assert len([event for event in events if isinstance(event, messages.Final)]) == 2


@pytest.mark.parametrize("cuts", [False, True])
async def test_the_javascript_client_keeps_them_all(scripted: WorkerSpec, cuts: bool, tmp_path: Path) -> None:
    (tmp_path / "speech.pcm").write_bytes(AUDIO)
    async with serving(scripted) as app:
        relay = Relay(app.url, cuts=cuts)
        async with relay.listening(), js_client(relay.url, start={"endpointing": {"mode": "manual"}}) as js:
            js.checks_told = False  # a newer server's news are not in the schema
            await js.call("open")
            for _ in range(2):
                await js.call("feed", str(tmp_path / "speech.pcm"), 0, 16_000, 1600)
                await js.call("commit")
            result = await js.call("stop")
    assert by_result(relay.sessions, BROKEN) == []
    assert by_result(relay.sessions, NOT_TESTED) == ([] if cuts else ["comes_back", "resends"])
    assert len(result["finals"]) == 2


# ---------------------------------------------------------------- the command


PROGRAM = str(Path(__file__).parents[2] / "clients" / "python" / "stream_file.py")


async def test_a_command_is_judged(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app:
        listen = ("--url", app.url, "--listen", "0", "--cut")
        code, table, said = await invoke(
            *listen, "--", sys.executable, PROGRAM, "--url", "{url}", str(SPEECH_FILES / "jfk.wav")
        )
        assert (code, table.splitlines()[-1]) == (0, "12 kept, 0 broken, 0 not tested"), table
        assert "the command ended with 0\n" in said
        code, out, said = await invoke(*listen, "--json", "--only", "start", "--", sys.executable, "-c", "")
        assert (code, out) == (2, "")
        assert "error: no client came\nhint: give it the address ws://127.0.0.1:" in said
        code, out, said = await invoke(*listen, "--", "no-such-command")
        assert (code, out) == (2, "")
        assert "no-such-command" in said


async def test_the_promises_of_clients_are_listed() -> None:
    listed = (await invoke("--listen", "0", "--list"))[1]
    assert [line.split()[0] for line in listed.splitlines()] == [promise.name for promise in clients.PROMISES]
    assert (await invoke("--cut"))[0] == 2
