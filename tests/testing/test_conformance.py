"""The kit on a server that keeps its promises, and on one behind a proxy that tells lies: one each time."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from asr_ws import messages
from asr_ws.server.app import App
from asr_ws.testing.conformance.__main__ import judged
from asr_ws.testing.conformance.live import Event, Server
from asr_ws.testing.conformance.promises import PROMISES, SECOND, SPEECH, pcm
from asr_ws.testing.conformance.table import Result
from asr_ws.testing.recognizer import scripted_worker
from tests.server.running import HANG_S, get, serving, stats
from tests.test_docs import PROTOCOL, sections

pytestmark = pytest.mark.asyncio(loop_scope="module")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

TOKEN = "kitchen-token-of-enough-letters"
PATIENCE_S = 20.0
# What a real recognizer has, and the scripted one has not: a decode takes time, the more the longer the audio, so that
# some are refused; and a prompt may be text.
SLOW = """
import time
from dataclasses import replace
from asr_ws.testing.recognizer import ScriptedRecognizer

class Slow(ScriptedRecognizer):
    def transcribe(self, samples, options):
        time.sleep(0.3 if len(samples) >= 48_000 and not options.partial else 0.03)
        prompt = options.prompt or ""
        script = prompt.removeprefix("fault: ") if prompt.startswith("fault: ") else None
        return super().transcribe(samples, replace(options, prompt=script))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the scripted model, and of the module that the worker imports."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.py").write_text(SLOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
        yield folder


@asynccontextmanager
async def slow_server(folder: Path, **changes: Any) -> AsyncIterator[App]:
    spec = replace(scripted_worker(folder), recognizer="slow:Slow")
    async with serving(spec, **{"partials": "on", **changes}) as app:
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(folder: Path) -> AsyncIterator[App]:
    """One server for all lies; in a task of its own, because a fixture begins in one and ends in another."""
    up: asyncio.Future[App] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def run() -> None:
        async with slow_server(folder) as app:
            up.set_result(app)
            await over.wait()

    running = asyncio.create_task(run(), name="server")
    either: list[asyncio.Future[Any]] = [running, up]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    yield up.result()
    over.set()
    await running


async def results(url: str, *names: str, **options: Any) -> list[Result]:
    server = Server.at(url, patience_s=PATIENCE_S, **options)
    await server.greet()
    return [result async for result in judged(server, [each for each in PROMISES if not names or each.name in names])]


def by_result(found: list[Result], result: str) -> dict[str, str]:
    return {each.name: f"{each.expected} {each.came}" for each in found if each.result == result}


# ---------------------------------------------------------------- a server that keeps them


@posix
async def test_our_server_keeps_every_promise(app: App) -> None:
    found = await results(app.url, allow_faults=True)
    assert by_result(found, "broken") == {}
    assert by_result(found, "not tested") == {"unauthorized": " no --token-file"}


async def test_a_server_without_partials_that_wants_a_token_is_judged_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"{TOKEN} kitchen")
    async with slow_server(folder, partials="off", auth_token_file=str(tmp_path / "tokens")) as app:
        found = await results(app.url, token=TOKEN)
    assert by_result(found, "broken") == {}
    assert set(by_result(found, "not tested")) == {"no_start", "partials", "crash", "poison_audio", "decode_failed"}


async def test_a_full_server_is_asked_again(folder: Path) -> None:
    async with slow_server(folder, max_sessions=1) as app, connect(app.url) as other:
        asking = asyncio.create_task(results(app.url, "ping", "busy"), name="asking")
        while not (await stats(app))["busy_by_reason"].get("max_sessions"):
            await asyncio.sleep(0)
        await other.close()
        ping, busy = sorted(await asking, key=lambda each: each.name, reverse=True)
    assert (ping.result, busy.result) == ("kept", "not tested"), busy
    assert busy.came == "the queue takes 3 utterances, which is more than are sent here"


async def test_a_server_that_breaks_nothing_when_asked_to_is_not_said_to_have_kept_it(app: App) -> None:
    plain = replace(LIES[0], promise="", sent=lambda message, _: _changed(message, "start", prompt="once x sleep 0"))
    async with lying(app, plain) as url:
        found = await results(url, "crash", "poison_audio", allow_faults=True)
    assert [each.came.partition(":")[0] for each in found] == ["nothing crashed", "nothing failed"]


async def test_every_promise_names_a_heading_and_has_a_name_of_its_own() -> None:
    headings = {heading.strip("`") for level in (2, 3) for heading in sections(PROTOCOL, level)}
    assert {each.section for each in PROMISES} - headings == set()
    assert len({each.name for each in PROMISES}) == len(PROMISES)


# ---------------------------------------------------------------- lies

ODD: Event = {"code": "odd"}
Message = str | bytes
Memory = dict[str, Any]  # of one session: ``last``, the event before; ``sent``, types of messages


@dataclass(frozen=True)
class Lie:
    """What a proxy makes of what goes through it: nothing, if it is not told to.

    Attributes:
        promise: the one that it breaks.
        told: the events that become of one.
        sent: the message that becomes of one; None: it is swallowed.
        code: the close code that becomes of one.
        got: status and body that become of those of a path.
    """

    promise: str
    told: Callable[[Event, Memory], list[Event]] = lambda event, memory: [event]
    sent: Callable[[Message, Memory], Message | None] = lambda message, memory: message
    code: Callable[[int, Memory], int] = lambda code, memory: code
    got: Callable[[str, int, str], tuple[int, str]] = lambda path, status, body: (status, body)
    subprotocol: bool = True
    beside: tuple[str, ...] = field(default=())  # promises that it takes to be seen


@asynccontextmanager
async def lying(app: App, lie: Lie) -> AsyncIterator[str]:
    """A proxy in front of the server. Yields: its address."""

    async def relay(client: ServerConnection) -> None:
        memory: Memory = {"last": {}, "sent": []}
        options: dict[str, Any] = {"compression": None, "max_size": None, "max_queue": None}
        async with connect(app.url, **options) as real, asyncio.TaskGroup() as tasks:

            async def send() -> None:
                with suppress(ConnectionClosed):
                    async for message in client:
                        if isinstance(message, str):
                            memory["sent"].append(message)
                        if (changed := lie.sent(message, memory)) is not None:
                            await real.send(changed)
                await real.close()

            tasks.create_task(send(), name="send")
            n_more = 0  # events than the server has told
            with suppress(ConnectionClosed):
                while True:
                    try:
                        event = json.loads(await real.recv())
                    except ConnectionClosed as closed:
                        await client.close(lie.code(closed.rcvd.code if closed.rcvd else 1011, memory))
                        raise
                    changed = lie.told(event, memory)
                    memory["last"] = event
                    for n, each in enumerate(changed):
                        numbered = "seq" in each and each["seq"] == event.get("seq")
                        await client.send(json.dumps({**each, "seq": each["seq"] + n_more + n} if numbered else each))
                    n_more += len(changed) - 1 if "seq" in event else 0

    async def answer(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == messages.PATH:
            return None
        status, body = lie.got(request.path, *await get(app, request.path))
        return connection.respond(HTTPStatus(status), body)

    def select(_: ServerConnection, offered: Any) -> Subprotocol | None:
        return Subprotocol(messages.PROTOCOL) if offered and lie.subprotocol else None

    options: dict[str, Any] = {"compression": None, "max_size": None, "max_queue": None}
    async with serve(relay, "127.0.0.1", 0, process_request=answer, select_subprotocol=select, **options) as proxy:
        yield f"ws://127.0.0.1:{proxy.sockets[0].getsockname()[1]}{messages.PATH}"


def tells(type: str, where: Event | None = None, /, **changes: Any) -> Callable[[Event, Memory], list[Event]]:
    """Events of this type, and with these fields, get others; a function is of what was there."""

    def told(event: Event, _: Memory) -> list[Event]:
        if event["type"] != type or not (where or {}).items() <= event.items():
            return [event]
        return [event | {name: new(event[name]) if callable(new) else new for name, new in changes.items()}]

    return told


def _read(message: Message) -> Event:
    """Nothing of what is no message."""
    with suppress(ValueError):
        return json.loads(message) if isinstance(message, str) else {}
    return {}


def _changed(message: Message, type: str, /, **changes: Any) -> Message:
    read = _read(message)
    return json.dumps(read | changes) if read.get("type") == type else message


def twice(in_done: str, **fields: Any) -> Callable[[Event, Memory], list[Event]]:
    """Each event with these fields is told twice, and `done` counts both."""

    def told(event: Event, memory: Memory) -> list[Event]:
        is_meant = fields.items() <= event.items()
        memory["n_more"] = memory.get("n_more", 0) + is_meant
        if event["type"] == "done" and in_done:
            return [{**event, in_done: event[in_done] + memory["n_more"]}]
        return [event, event] if is_meant else [event]

    return told


def swallows(type: str) -> Callable[[Event, Memory], list[Event]]:
    return lambda event, _: [] if event["type"] == type else [event]


def without(type: str, name: str) -> Callable[[Event, Memory], list[Event]]:
    return lambda event, _: [{key: event[key] for key in event if key != name or event["type"] != type}]


def unnumbered(event: Event, _: Memory) -> list[Event]:
    return [{name: event[name] for name in event if name != "seq"}]


def odd_where(n_starts: int) -> Callable[[Event, Memory], list[Event]]:
    """`unexpected_message` is told by another code, in sessions with so many of `start`."""

    def told(event: Event, memory: Memory) -> list[Event]:
        n_sent = sum('"start"' in message for message in memory["sent"])
        return [event | ODD if event.get("code") == "unexpected_message" and n_sent == n_starts else event]

    return told


def doubles_what_has_no_start(event: Event, memory: Memory) -> list[Event]:
    if event["type"] == "done" and not any("start" in message for message in memory["sent"]):
        return [event | {name: 2 * event[name] for name in ("received_ms", "silence_ms")}]
    return [event]


def says_another_thing(event: Event, memory: Memory) -> list[Event]:
    """Its second partial takes back the first one's text."""
    if event["type"] != "partial":
        return [event]
    memory["partials"] = memory.get("partials", 0) + 1
    return [{**event, "stable": ["one", "two"][memory["partials"] % 2]}]


def speaks_after_accepted(event: Event, _: Memory) -> list[Event]:
    if event["type"] != "accepted":
        return [event]
    partial = {"utterance": event["utterance"], "stable": "", "unstable": "late", "audio_end_ms": event["audio_end_ms"]}
    return [event, {"type": "partial", **partial, "seq": event["seq"]}]


def loses_what_crashed(event: Event, memory: Memory) -> list[Event]:
    memory["crashed"] = memory.get("crashed") or event["type"] == "state"
    if event["type"] == "done" and memory["crashed"]:
        moved = {"decoded_ms": 0, "refused_ms": event["decoded_ms"], "finals": 0, "errors": 1}
        return [event | moved]
    if event["type"] == "final" and memory["crashed"]:
        error = {"code": "decode_failed", "message": "gone", "hint": "", "fatal": False, "commit": None}
        return [{"type": "error", **error, "utterance": event["utterance"], "seq": event["seq"]}]
    return [event]


def swaps_the_first_two(event: Event, _: Memory) -> list[Event]:
    """Of the manual mode, where their audio lies."""
    names, spans = ("audio_start_ms", "audio_end_ms"), [(0, 1000), (1000, 1500)]
    span = tuple(map(event.get, names))
    is_one = event["type"] in ("accepted", "final") and span in spans
    return [event | dict(zip(names, spans[span == spans[0]], strict=True)) if is_one else event]


def forgets(fate: str) -> Callable[[Event, Memory], list[Event]]:
    return lambda event, _: [{**event, fate: event[fate] + 1} if event["type"] == "done" else event]


def swallows_message(*, with_id: bool) -> Callable[[Message, Memory], Message | None]:
    def sent(message: Message, _: Memory) -> Message | None:
        read = _read(message)
        return None if read.get("type") == "cancel" and ("utterance" in read) == with_id else message

    return sent


def retries_another(message: Message, memory: Memory) -> Message:
    """From the second on: the first is too early."""
    memory["retries"] = memory.get("retries", 0) + (_read(message).get("type") == "retry")
    return _changed(message, "retry", utterance="none") if memory["retries"] > 1 else message


def waits_all_the_same(message: Message, _: Memory) -> Message:
    return message if isinstance(message, bytes) else message.replace('"max_wait_ms": 0', '"max_wait_ms": 5000')


def takes_8_for_16_khz(message: Message, _: Memory) -> Message:
    return message if isinstance(message, bytes) else message.replace('"sample_rate": 8000', '"sample_rate": 16000')


def closes(code: int, instead_of: int, after: str) -> Callable[[int, Memory], int]:
    """Where the last event was of this type or code."""
    return lambda was, memory: (
        code if was == instead_of and after in (memory["last"].get("type"), memory["last"].get("code")) else was
    )


def lacks(path: str, name: str) -> Callable[[str, int, str], tuple[int, str]]:
    return lambda asked, status, body: (status, body.replace(f'"{name}"', '"x"') if asked == path else body)


LIES = [
    Lie("subprotocol", subprotocol=False),
    Lie("started", tells("started", max_wait_ms=1)),
    Lie("no_start", doubles_what_has_no_start),
    Lie("formats", sent=takes_8_for_16_khz),
    Lie("chunking", sent=lambda message, _: None if isinstance(message, bytes) and len(message) == 1 else message),
    Lie("speech", tells("speech_started", {"audio_start_ms": 3028}, audio_start_ms=3029)),
    Lie("times", tells("final", segments=lambda parts: [{**part, "start_ms": 0} for part in parts])),
    Lie("times", without("final", "words")),
    Lie("silence", sent=lambda message, _: pcm(SPEECH)[: len(message)] if message == 3 * SECOND else message),
    Lie("manual", tells("speech_started", {"audio_start_ms": 1000}, audio_start_ms=1001)),
    Lie("max_length", tells("accepted", {"endpoint": "max_length"}, endpoint="silence")),
    Lie("commit", tells("accepted", {"commit": "c1"}, commit=None)),
    Lie("cancel_one", sent=swallows_message(with_id=True)),
    Lie("cancel_all", sent=swallows_message(with_id=False)),
    Lie("ping", tells("pong", id="other")),
    Lie("busy", tells("busy", {"status": 503}, status=429)),
    Lie("busy", tells("busy", queue_capacity=9)),
    Lie("retry_early", tells("busy", {"reason": "retry_early"}, status=503)),
    Lie("retry", sent=retries_another),
    Lie("max_wait", sent=waits_all_the_same),
    Lie("unsupported_format", code=closes(1003, 1008, "unsupported_format")),
    Lie("unsupported_language", tells("error", {"code": "unsupported_language"}, code="unsupported_format")),
    Lie("bad_message", tells("error", {"code": "bad_message"}, message="no", hint="")),
    Lie("bad_message", code=closes(1003, 1008, "bad_message")),
    Lie("too_large", code=lambda code, _: 1008 if code == 1009 else code),
    Lie("unexpected_message", odd_where(n_starts=2)),
    Lie("late_audio", odd_where(n_starts=1)),
    Lie("nothing_to_commit", tells("error", {"code": "nothing_to_commit"}, commit=None)),
    Lie("unknown_utterance", tells("error", {"code": "unknown_utterance"}, **ODD)),
    Lie("truncated_pcm", tells("error", {"code": "truncated_pcm"}, **ODD)),
    Lie("audio_format_suspect", twice("errors", code="audio_format_suspect")),
    Lie("invalid_samples", tells("done", {"refused_ms": 100}, refused_ms=0, silence_ms=1000)),
    Lie("health", got=lambda path, status, body: (500 if path == "/livez" else status, body)),
    Lie("stats", got=lacks("/v1/stats", "avg_wait_ms")),
    Lie("stats", got=lambda path, status, body: (status, body.replace('decodes": 1', 'decodes": 2'))),
    Lie("crash", loses_what_crashed),
    Lie("poison_audio", tells("error", {"code": "poison_audio"}, code="decode_failed")),
    Lie("decode_failed", tells("error", {"code": "decode_failed"}, code="poison_audio")),
    Lie("ready", tells("ready", seq=1)),
    Lie("ready", twice("", type="ready")),
    Lie("events", without("accepted", "estimated_wait_ms")),
    Lie("events", tells("final", attempt="1")),
    Lie("events", tells("busy", retry_after_ms=99), beside=("busy", "retry")),
    Lie("numbers", unnumbered),
    Lie("numbers", tells("done", seq=99)),
    Lie("partials", says_another_thing),
    Lie("partials", speaks_after_accepted),
    Lie("end", swallows("done")),
    Lie("end", code=closes(1001, 1000, "done")),
    Lie("ledger", forgets("decoded_ms")),
    Lie("ledger", forgets("lost_ms")),
    Lie("ledger", forgets("finals")),
    Lie("outcomes", twice("finals", type="final")),
    Lie("outcomes", tells("final", {"audio_start_ms": 3028}, audio_end_ms=lambda ms: ms + 1)),
    Lie("outcomes", swaps_the_first_two),
]
SOME = ("speech", "times", "manual", "commit", "cancel_all", "ping", "unknown_utterance")
ALWAYS = ("ready", "events", "numbers", "end", "ledger", "outcomes")


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.promise)
async def test_a_lie_is_found_where_it_is_told_and_nowhere_else(app: App, lie: Lie) -> None:
    """Among all promises of every session, and some others."""
    async with lying(app, lie) as url:
        found = await results(url, lie.promise, *lie.beside, *SOME, *ALWAYS, allow_faults=True)
    assert list(by_result(found, "broken")) == [lie.promise], found


async def test_a_proxy_that_tells_no_lie_changes_nothing(app: App) -> None:
    async with lying(app, Lie("")) as url:
        found = await results(url, *({each.name for each in PROMISES} - {"partials", "crash", "poison_audio"}))
    assert by_result(found, "broken") == {}


async def test_every_promise_can_be_broken() -> None:
    assert {lie.promise for lie in LIES} | {"unauthorized"} == {each.name for each in PROMISES}


async def test_who_lets_strangers_in_is_found_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"{TOKEN} kitchen")
    polite = Lie("unauthorized", code=closes(1000, 1008, "unauthorized"))
    async with slow_server(folder, auth_token_file=str(tmp_path / "tokens")) as app, lying(app, polite) as url:
        found = await results(url, "unauthorized", "ping", token=TOKEN)
    assert [(each.name, each.result, each.came) for each in found] == [
        ("unauthorized", "broken", "close 1000"),
        ("ping", "kept", ""),
    ]


async def test_what_says_nothing_is_waited_for_as_long_as_was_said(app: App) -> None:
    deaf = Lie("", sent=lambda message, _: None if _read(message).get("type") == "end" else message)
    async with lying(app, deaf) as url:
        server = Server.at(url, patience_s=0.5)
        await server.greet()
        [ping] = [each async for each in judged(server, [each for each in PROMISES if each.name == "ping"])]
    assert (ping.result, ping.expected) == ("broken", "a close")
    assert ping.came.startswith('nothing for 0.5 s after {"type": "pong"')


# ---------------------------------------------------------------- the command


async def invoke(*arguments: str) -> tuple[int, str, str]:
    """As its users do. Returns: exit code, standard output, standard error."""
    command = [sys.executable, "-m", "asr_ws.testing.conformance", *arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, encoding="utf-8", timeout=HANG_S)
    return done.returncode, done.stdout, done.stderr


async def test_the_table_says_what_is_kept_and_what_was_expected_instead(app: App) -> None:
    code, table, _ = await invoke("--url", app.url, "--only", "ping", "--only", "crash")
    assert (code, table.splitlines()[-1]) == (0, "1 kept, 0 broken, 1 not tested")
    assert "crash: not tested\n  no --allow-faults\n" in table
    async with lying(app, Lie("ping", tells("pong", id="other"))) as url:
        code, table, _ = await invoke("--url", url, "--only", "ping")
    assert (code, table.splitlines()[-1]) == (1, "0 kept, 1 broken, 0 not tested")
    assert 'ping: broken\n  expected: p1, 7, null\n  came: [{"type": "pong", "id": "other"' in table


async def test_json_is_one_object(app: App) -> None:
    code, said, _ = await invoke("--url", app.listener.url, "--only", "ping", "--json")
    told = json.loads(said)
    assert (code, told["url"], told["ready"]["protocol"]) == (0, app.url, "asr-ws.v1")
    assert told["results"] == [
        {
            "name": "ping",
            "section": "ping",
            "promise": "`ping` is answered by `pong` with the same id",
            "result": "kept",
            "expected": "",
            "came": "",
        }
    ]


async def test_the_promises_are_listed_without_a_server() -> None:
    code, listed, _ = await invoke("--list")
    assert code == 0
    assert "ping                  `ping` is answered by `pong` with the same id (ping)" in listed.splitlines()
    assert [line.split()[0] for line in listed.splitlines()] == [promise.name for promise in PROMISES]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def test_where_no_server_is_that_is_said_with_a_hint(app: App, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"{TOKEN} kitchen")
    (tmp_path / "empty").touch()
    for arguments, error in (
        (("--url", f"ws://127.0.0.1:{free_port()}"), "no session at ws://127.0.0.1:"),
        (("--url", f"{app.listener.url}/nowhere"), "no session at ws://127.0.0.1:"),
        (("--url", "ftp://127.0.0.1"), "ftp://127.0.0.1 is no address of a server"),
        (("--url", "ws://[::1"), "ws://[::1 is no address of a server"),
        (("--url", "ws://a..b/"), "no session at ws://a..b/v1/stream: "),
        (("--url", f"{app.url}#x"), "no session at ws://127.0.0.1:"),
        (("--token-file", str(tmp_path / "empty")), "--token-file: no token in "),
    ):
        code, out, said = await invoke(*arguments)
        assert (code, out) == (2, "")
        assert said.startswith(f"error: {error}")
        assert "\nhint: " in said
        assert "Traceback" not in said
    async with slow_server(folder, auth_token_file=str(tmp_path / "tokens")) as locked:
        code, _, said = await invoke("--url", locked.url)
    assert (code, said.splitlines()[-1]) == (2, "hint: name a file with a token that it knows: --token-file FILE")


@pytest.mark.parametrize("said", ['{"type": "busy"}', '{"type": "busy", "retry_after_ms": "1"}', "[" * 100_000])
async def test_what_is_no_server_of_this_protocol_is_told(said: str) -> None:
    async def converse(socket: ServerConnection) -> None:
        await socket.send(said)
        await socket.wait_closed()

    async with serve(converse, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/stream"
        code, out, told = await invoke("--url", url, "--only", "ping", "--json", "--patience", "1")
    if said.startswith("["):  # it goes on, without knowing of a limit
        assert (code, json.loads(out)["results"][0]["result"]) == (1, "broken")
    else:
        assert (code, out) == (2, "")
        assert told.startswith(f"error: {url} says nothing that is known: ")


async def test_a_user_is_not_shown_and_is_for_plain_http_too() -> None:
    server = Server.at("http://joe:se%40cret@127.0.0.1:8765/asr/")
    assert (server.url, server.http) == ("ws://127.0.0.1:8765/asr/v1/stream", "http://127.0.0.1:8765/asr")
    assert server.address == "ws://joe:se%40cret@127.0.0.1:8765/asr/v1/stream"


async def test_a_promise_that_there_is_not_is_bad_usage() -> None:
    code, _, said = await invoke("--only", "happiness")
    assert code == 2
    assert "no promise happiness: --list has them all" in said
