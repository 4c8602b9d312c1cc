"""The promises: functions that raise `Broken` or `NotTested`; what their docstrings say is promised.

What holds for every session (the last ones) is judged over all sessions that were opened for the others. A session in
which one of these is broken is not judged by those after it, which could only say the same again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from itertools import chain, pairwise
from typing import Any, Final
from uuid import uuid4

import msgspec
import numpy as np
import soundfile
from numpy.typing import NDArray
from websockets.exceptions import InvalidHandshake

from asr_ws import messages, schema
from asr_ws.errors import ProtocolError
from asr_ws.messages import MAX_BINARY_BYTES, MAX_TEXT_BYTES, PROTOCOL
from asr_ws.testing.conformance.live import COUNTS, START, Event, Server, Session
from asr_ws.testing.conformance.table import Broken, NotTested, Promise, expect
from asr_ws.testing.conservation import SETTLED, Conservation

RATE: Final = 16_000  # Hz, the protocol's default
SPEECH, _ = soundfile.read(str(files("asr_ws") / "assets" / "speech" / "jfk.wav"), dtype="float32")
SPEECH_MS: Final = len(SPEECH) * 1000 // RATE
CLIP: Final = np.concatenate([SPEECH[: RATE * 26 // 10], np.zeros(RATE, np.float32)])  # one utterance, and silence
CLIP_MS: Final = len(CLIP) * 1000 // RATE
SECOND: Final = bytes(2 * RATE)  # of silence, which manual mode takes as it takes anything
MANUAL: Final[Event] = {**START, "endpointing": {"mode": "manual"}}
COMMIT: Final[Event] = {"type": "commit"}

RANGE_MS: Final = 150  # by so much, some windows, a detector may differ on the same sound at another rate
MAX_CROWD: Final = 20  # sessions at once: a longer queue is not filled
TALK_S: Final = 4  # of audio in real time, for partials
ONES_DOING: Final = ("fair_share", "retry_early")  # the reasons that are 429
STATS = """state model uptime_s queue_depth queue_capacity avg_wait_ms p95_wait_ms in_flight_tasks decode_fail_rate
    worker_restart_count worker_pid sessions finals busy retries max_concurrent_decodes"""
FATES: Final = ("decoded_ms", "silence_ms", "refused_ms", "lost_ms")
DEFINITIONS: Final[dict[str, Any]] = schema.document()["$defs"]


def pcm(samples: NDArray[np.float32]) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def resampled(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """By its spectrum: exact enough for a signal that ends in silence."""
    n = len(samples) * rate // RATE
    return (np.fft.irfft(np.fft.rfft(samples)[: n // 2 + 1], n) * (n / len(samples))).astype(np.float32)


# ---------------------------------------------------------------- sessions, some of which several look at


async def play(server: Server, *sent: Event | str | bytes, start: Event | None = START) -> Session:
    """A session in which this is sent, then `end`; read to its close."""
    async with server.session(start) as session:
        await session.send(*sent)
        await session.end()
    return session


async def spoken(server: Server) -> Session:
    audio = pcm(SPEECH)
    return await play(server, audio[:MAX_BINARY_BYTES], audio[MAX_BINARY_BYTES:], start={**START, "words": True})


async def clip(server: Server) -> Session:
    return await play(server, pcm(CLIP))


async def committed(server: Server) -> Session:
    return await play(server, SECOND, {**COMMIT, "id": "c1"}, SECOND[:RATE], start=MANUAL)


async def dictated(server: Server) -> Session:
    """Speech as fast as it is spoken, with partials."""
    loop = asyncio.get_running_loop()
    async with server.session({**MANUAL, "partials": True}) as session:
        began = loop.time()
        for n, at in enumerate(range(0, TALK_S * RATE, RATE // 10), 1):
            await session.send(pcm(SPEECH[at : at + RATE // 10]))
            await asyncio.sleep(began + n / 10 - loop.time())
        await session.end()
    return session


async def refused(server: Server) -> list[Session]:
    """Some more sessions than have room in the queue commit at once: those that are refused, who retry too early first,
    and then as the hints say."""
    n = server.limit("queue_capacity", 3) + 3
    if n > min(MAX_CROWD, server.limit("max_sessions", 64)):
        raise NotTested(f"the queue takes {n - 3} utterances, which is more than are sent here")

    async def press(session: Session) -> None:
        await session.send(COMMIT)
        if (answer := await session.until("accepted", "busy"))["type"] == "busy":
            await session.send({"type": "retry", "utterance": answer["utterance"]})
            await session.until("accepted", "busy", "error")
        await session.end()

    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(server.session(MANUAL)) for _ in range(n)]
        for session in sessions:
            await session.send(pcm(SPEECH[: 3 * RATE]))
        for session in sessions:
            await session.until("speech_started")
        await asyncio.gather(*(press(session) for session in sessions))
    if not (found := [session for session in sessions if session.all("busy")]):
        raise NotTested(f"{n} utterances at once, and none was refused")
    return found


# ---------------------------------------------------------------- opening


async def subprotocol(server: Server) -> None:
    """The subprotocol asr-ws.v1 is confirmed where it is offered, and not required"""
    async with server.session() as session:
        await session.end()
    expect(session.socket.subprotocol == PROTOCOL, PROTOCOL, f"subprotocol {session.socket.subprotocol}")
    try:
        async with server.session(subprotocols=None) as session:
            await session.end()
    except InvalidHandshake as error:
        raise Broken("a session without a subprotocol", str(error)) from error


async def unauthorized(server: Server) -> None:
    """Who has no token that the server knows gets `unauthorized`, and close 1008"""
    if server.token is None:
        raise NotTested("no --token-file")
    for first in (SECOND, {**START, "token": "none-that-anybody-knows"}):
        session = await server.connect()
        try:
            await session.send(first)
            error = await session.until()
            if error.get("type") == "ready":
                raise NotTested("the server wants no token")
            expect({"code": "unauthorized", "fatal": True}.items() <= error.items(), "unauthorized, fatal", error)
            expect((code := await session.rest()) == 1008, "close 1008", f"close {code}")
        finally:
            await session.socket.close()


async def started(server: Server) -> None:
    """`start` is answered by `started`: the settings in force, at their defaults where they were left out"""
    max_wait_ms, languages = server.limit("max_wait_ms", 8000), server.ready.get("languages") or [None]
    asked = {
        "audio": {"encoding": "pcm_f32le", "sample_rate": 48_000, "channels": 2},
        "endpointing": msgspec.to_builtins(messages.Endpointing("manual", 700, 200, 100, 20_000, 0.625)),
        "max_wait_ms": max_wait_ms // 2,
    } | {"language": languages[0], "task": "transcribe", "words": True, "partials": False}
    defaults = {
        "audio": msgspec.to_builtins(messages.AudioInForce()),
        "endpointing": msgspec.to_builtins(messages.EndpointingInForce()),
        "max_wait_ms": max_wait_ms,
    } | {"task": "transcribe", "words": False}
    unseen = {"prompt": "Names.", "hotwords": "words", "client": "conformance"}
    for start, in_force in (({**asked, **unseen}, asked), ({}, defaults)):
        session = await play(server, start={"type": "start", **start})
        event = (session.all("started") or session.events)[0]
        expect(_holds(in_force, event), f"started with {json.dumps(in_force)}", event)


def _holds(asked: object, told: object) -> bool:
    """Whether all of it is there; there may be more."""
    if not isinstance(asked, dict) or not isinstance(told, dict):
        return asked == told
    return all(name in told and _holds(value, told[name]) for name, value in asked.items())


async def no_start(server: Server) -> None:
    """Without `start` the defaults hold: audio is 16 kHz, mono, 16 bits"""
    session = await play(server, SECOND, start=None)
    expect(not session.all("started"), "no started", session.all("started"))
    expect(session.done["received_ms"] == 1000, "received_ms 1000", session.done)


async def formats(server: Server) -> None:
    """Audio at other rates, in stereo and as floats is taken, and its times are right"""
    whole = (await server.once(clip)).ranges_ms
    for encoding, rate, channels in (("pcm_s16le", 8000, 1), ("pcm_s16le", 44_100, 2), ("pcm_f32le", 48_000, 1)):
        samples, audio = np.repeat(resampled(CLIP, rate), channels), (encoding, rate, channels)
        data = samples.tobytes() if encoding == "pcm_f32le" else pcm(samples)
        frames = [data[at : at + MAX_BINARY_BYTES] for at in range(0, len(data), MAX_BINARY_BYTES)]
        declared = dict(zip(("encoding", "sample_rate", "channels"), audio, strict=True))
        session = await play(server, *frames, start={**START, "audio": declared})
        expect(abs(session.done["received_ms"] - CLIP_MS) <= 1, f"{CLIP_MS} ms received of {audio}", session.done)
        same = len(session.ranges_ms) == len(whole) and np.allclose(session.ranges_ms, whole, 0, RANGE_MS)
        expect(same, f"about {whole} of {audio}", session.ranges_ms)


# ---------------------------------------------------------------- utterances


async def chunking(server: Server) -> None:
    """It makes no difference how audio is cut into frames"""
    whole, audio = (await server.once(clip)).ranges_ms, pcm(CLIP)
    cuts = [*range(2001), *range(2001, len(audio), 997), len(audio), len(audio)]
    session = await play(server, *(audio[a:b] for a, b in pairwise(cuts)))
    expect(session.ranges_ms == whole, f"ranges {whole}", session.ranges_ms)


async def speech(server: Server) -> None:
    """Speech is cut into utterances: their audio is in order, apart, and begins where `speech_started` said"""
    session = await server.once(spoken)
    ranges, begun = session.ranges_ms, [event["audio_start_ms"] for event in session.all("speech_started")]
    ends = [0, *chain.from_iterable(ranges), SPEECH_MS]
    expect(ends == sorted(ends) and all(a < b for a, b in ranges), f"ranges in order in 0..{SPEECH_MS} ms", ranges)
    expect(begun == [start for start, _ in ranges], f"speech_started where finals begin: {ranges}", begun)


async def times(server: Server) -> None:
    """Times of segments and words count from the session's beginning; words come where they were asked for"""
    session = await server.once(spoken)
    if not session.ranges_ms or not any(final["segments"] for final in session.all("final")):
        raise NotTested("the finals have no segments")
    for final in session.all("final"):
        expect("words" in final, "words in each final", final)
        for part in final["segments"] + final["words"]:
            in_order = final["audio_start_ms"] <= part["start_ms"] <= min(part["end_ms"], final["audio_end_ms"])
            expect(in_order, "segments and words that begin within the utterance", final)


async def silence(server: Server) -> None:
    """What is not speech is in no utterance"""
    session = await play(server, 3 * SECOND)
    expect(not session.all("speech_started"), "no utterance", session.all("speech_started"))
    expect(session.done["silence_ms"] == 3000, "silence_ms 3000", session.done)


async def manual(server: Server) -> None:
    """In manual mode utterances follow one another without a gap, and nothing is trimmed"""
    session = await server.once(committed)
    begun = [event["audio_start_ms"] for event in session.all("speech_started")]
    expect(session.ranges_ms == [(0, 1000), (1000, 1500)], "finals of 0..1000, 1000..1500 ms", session.ranges_ms)
    expect(begun == [0, 1000], "speech_started at 0 and 1000 ms", begun)


async def max_length(server: Server) -> None:
    """What is longer than `max_utterance_ms` is cut, endpoint `max_length`; the rest is the next utterance"""
    for mode, audio in (("manual", SECOND + SECOND[: RATE // 2]), ("server", pcm(CLIP))):
        rules = {"mode": mode, "max_utterance_ms": 1000}
        session = await play(server, audio, start={**START, "endpointing": rules})
        ranges, endpoints = session.ranges_ms, [event["endpoint"] for event in session.all("accepted")]
        expect(all(end - start <= 1000 for start, end in ranges), "no utterance over 1000 ms", ranges)
        expect("max_length" in endpoints, "the endpoint max_length", endpoints)
        expect(mode == "server" or ranges == [(0, 1000), (1000, 1250)], "0..1000, 1000..1250 ms", ranges)


async def commit(server: Server) -> None:
    """The id of a `commit` comes back in the `accepted` or `busy` that answers it, and in no other"""
    events = (await server.once(committed)).all("accepted", "busy")
    first = events[0]["utterance"] if events else None
    wrong = [event for event in events if event["commit"] != ("c1" if event["utterance"] == first else None)]
    expect(bool(events) and not wrong, "commit c1 in the answers to the first utterance, null in others", wrong)


async def cancel_one(server: Server) -> None:
    """`cancel` of an utterance that was committed drops it at once, and nothing more is said of it"""
    async with server.session(MANUAL) as session:
        await session.send(SECOND)
        id = (await session.until("speech_started"))["utterance"]
        await session.send(COMMIT, {"type": "cancel", "utterance": id}, {"type": "ping", "id": "after it"})
        await session.end()
    if session.all("final", "pong")[0]["type"] == "final":
        raise NotTested("its text came before the cancel was there")
    _expect_cancelled(session, id)


async def cancel_all(server: Server) -> None:
    """`cancel` without an id drops what is being heard; the next utterance begins there"""
    async with server.session(MANUAL) as session:
        await session.send(SECOND)
        id = (await session.until("speech_started"))["utterance"]
        await session.send({"type": "cancel"}, SECOND)
        await session.end()
    _expect_cancelled(session, id)
    expect(session.ranges_ms == [(1000, 2000)], "one final, of 1000..2000 ms", session.ranges_ms)


def _expect_cancelled(session: Session, id: str) -> None:
    of_it = [event for event in session.events if event.get("utterance") == id]
    dropped = [event for event in of_it if event["type"] == "dropped" and event["reason"] == "cancelled"]
    expect(dropped == of_it[-1:], "one dropped, cancelled, as its last event", of_it[-1])


async def ping(server: Server) -> None:
    """`ping` is answered by `pong` with the same id"""
    pings = [{"type": "ping", "id": id} for id in ("p1", 7, None)]
    session = await play(server, *pings)
    expect([pong["id"] for pong in session.all("pong")] == ["p1", 7, None], "p1, 7, null", session.all("pong"))


# ---------------------------------------------------------------- overload


async def busy(server: Server) -> None:
    """An utterance that has no room gets `busy`: a reason with its status, the queue, attempt 1"""
    for session in await server.once(refused):
        first = session.all("busy")[0]
        wanted = {"status": 429 if first["reason"] in ONES_DOING else 503, "retryable": first["held_ms"] > 0}
        wanted |= {"attempt": 1, "queue_capacity": server.limit("queue_capacity", first["queue_capacity"])}
        expect(wanted.items() <= first.items(), f"busy with {json.dumps(wanted)}", first)
        expect(first["queue_depth"] <= first["queue_capacity"], "no more waiting than may", first)


async def retry_early(server: Server) -> None:
    """A `retry` before its hint gets `busy`, `retry_early`, 429, and is no attempt"""
    for session in await server.once(refused):
        first, *later = session.all("busy", "accepted")
        wanted = {"type": "busy", "reason": "retry_early", "status": 429, "attempt": first["attempt"]}
        kept = bool(later) and wanted.items() <= later[0].items()
        expect(kept or not first["held_ms"], json.dumps(wanted), later[:1])


async def retry(server: Server) -> None:
    """A refused utterance is offered again by its id alone, after its hint, and gets its `final`"""
    for session in await server.once(refused):
        expect(not session.all("error"), "accepted or busy as the answer to retry", session.all("error"))
        expect(len(session.ranges_ms) == 1, "one final", session.last)


async def max_wait(server: Server) -> None:
    """With `max_wait_ms` 0 an utterance is decoded now or refused, never queued"""
    async with server.session(MANUAL) as first, server.session({**MANUAL, "max_wait_ms": 0}) as second:
        for session in (first, second):
            await session.send(pcm(SPEECH[: 3 * RATE]))
            await session.until("speech_started")
        await first.send(COMMIT)
        await first.until("accepted", "busy")
        await second.send(COMMIT)
        answer = await second.until("accepted", "busy")
        await second.send({"type": "cancel"})
        await second.end()
        await first.end()
    expect(answer["type"] == "busy" or answer["position"] == 0, "busy, or accepted with position 0", answer)
    if answer["type"] == "accepted":
        raise NotTested("the model was free")


# ---------------------------------------------------------------- mistakes


@dataclass(frozen=True, slots=True)
class Mistake:
    """What a client does wrong, and what it is told: once, and fatal where the session is closed with another code."""

    code: str
    sent: tuple[Event | bytes, ...] = ()
    start: Mapping[str, Any] = field(default_factory=dict)
    close_code: int = 1000
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the error


async def told(server: Server, *mistakes: Mistake) -> None:
    for mistake in mistakes:
        fatal = mistake.close_code != 1000
        wanted = {"code": mistake.code, "fatal": fatal, **mistake.fields}
        async with server.session({**START, **mistake.start}) as session:
            await session.send(*mistake.sent)
            code = await (session.rest() if fatal else session.end())
        errors = session.all("error")
        expect(len(errors) == 1 and wanted.items() <= errors[0].items(), f"one error {json.dumps(wanted)}", errors)
        expect(code == mistake.close_code or not fatal, f"close {mistake.close_code}", f"close {code}")


async def unsupported_format(server: Server) -> None:
    """A format outside the table is fatal: close 1008"""
    for wrong in ({"sample_rate": 7999}, {"sample_rate": 192_001}, {"channels": 3}, {"encoding": "opus"}):
        await told(server, Mistake("unsupported_format", start={"audio": wrong}, close_code=1008))


async def unsupported_language(server: Server) -> None:
    """A language or task that the model does not know is fatal: close 1008"""
    english_only = server.ready.get("languages") == ["en"]
    for wrong in [{"language": "de"}, {"task": "translate"}] if english_only else [{"language": "xx"}]:
        await told(server, Mistake("unsupported_language", start=wrong, close_code=1008))


WAV: Final = b"RIFF\x24\x7d\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x80\x3e\x00\x00\x00\x7d\x00\x00"
HARMLESS: Final = {
    "A second `start`": Mistake("unexpected_message", (START,)),
    "A `commit` with nothing to end": Mistake("nothing_to_commit", ({**COMMIT, "id": "c9"},), fields={"commit": "c9"}),
    "`retry` of an utterance that never was": Mistake("unknown_utterance", ({"type": "retry", "utterance": "none"},)),
    "A stream that ends inside a sample": Mistake("truncated_pcm", (SECOND, b"odd")),
    "A WAV file's header in the audio": Mistake("audio_format_suspect", (WAV + SECOND, SECOND)),
}


async def bad_message(server: Server) -> None:
    """What is no message gets `bad_message`; an unknown field is named; the third is fatal: close 1008"""
    async with server.session() as session:
        await session.send({"type": "commit", "idd": "c1"}, "{", {"type": "nonsense"})
        code = await session.rest()
    other = await play(server, '{"type": "ping", "id": NaN}', start={**START, "endpointing": {"silence_ms": 99}})
    for errors, fatal in ((session.all("error"), (False, False, True)), (other.all("error"), (False, False))):
        said = [(error["code"], error["fatal"]) for error in errors]
        expect(said == [("bad_message", each) for each in fatal], f"bad_message, fatal {fatal}", errors)
    named = session.all("error")[0]
    expect("idd" in named["message"] + named["hint"], "the name of the unknown field, idd", named)
    expect(code == 1008, "close 1008", f"close {code}")


async def too_large(server: Server) -> None:
    """A frame may be as large as the protocol says; a larger one is fatal: close 1009"""
    session = await play(server, bytes(MAX_BINARY_BYTES))
    expect(session.done["received_ms"] == MAX_BINARY_BYTES // 32, "all of it received", session.done)
    for frame in (bytes(MAX_BINARY_BYTES + 1), json.dumps({"type": "ping", "id": "x" * MAX_TEXT_BYTES})):
        async with server.session() as session:
            await session.send(frame)
            code = await session.rest()
        expect(code == 1009, f"close 1009 for a frame of {len(frame)} bytes", f"close {code} after {session.last}")


async def late_audio(server: Server) -> None:
    """Audio after `end` is an error, `unexpected_message`, which is not fatal"""
    async with server.session(MANUAL) as session:
        await session.send(5 * SECOND)
        await session.end(SECOND)
    if not (errors := session.all("error")) and session.all("done"):
        raise NotTested("the session was done before it was there")
    said = [(error["code"], error["fatal"]) for error in errors]
    expect(said == [("unexpected_message", False)], "one error unexpected_message, not fatal", errors)


async def invalid_samples(server: Server) -> None:
    """NaN in float audio is told, is not fatal, and counts as time and as refused"""
    samples = np.zeros(RATE, "<f4")
    samples[: RATE // 10] = np.nan
    session = await play(server, samples.tobytes(), start={**START, "audio": {"encoding": "pcm_f32le"}})
    said = [(error["code"], error["fatal"]) for error in session.all("error")]
    expect(said == [("invalid_samples", False)], "one error invalid_samples, not fatal", session.all("error"))
    wanted = {"received_ms": 1000, "refused_ms": 100, "silence_ms": 900}
    expect(wanted.items() <= session.done.items(), f"done with {json.dumps(wanted)}", session.done)


# ---------------------------------------------------------------- HTTP


async def health(server: Server) -> None:
    """/livez and /healthz answer 200, /readyz 200 or 503"""
    for path, allowed in (("/livez", (200,)), ("/healthz", (200,)), ("/readyz", (200, 503))):
        status, body = await server.get(path)
        expect(status in allowed, f"{path}: {' or '.join(map(str, allowed))}", f"{status} {body[:200]}")


async def stats(server: Server) -> None:
    """/v1/stats is JSON with the numbers that are promised; never more than one decode at once"""
    status, body = await server.get("/v1/stats")
    expect(status == 200, "/v1/stats: 200", f"{status} {body[:200]}")
    told = json.loads(body)
    expect(not (missing := set(STATS.split()) - set(told)), f"the numbers {', '.join(sorted(missing))}", body)
    expect(told["max_concurrent_decodes"] in (0, 1), "max_concurrent_decodes 1", body)  # 0: nothing decoded yet
    expect(told["in_flight_tasks"] in (0, 1), "in_flight_tasks 0 or 1", body)


# ---------------------------------------------------------------- a worker that is broken on purpose


async def with_fault(server: Server, fault: str) -> Session:
    """A session whose utterance does that to the worker, and which is alive afterwards."""
    if not server.allow_faults:
        raise NotTested("no --allow-faults")
    async with server.session({**MANUAL, "prompt": f"fault: {fault}"}) as session:
        await session.send(SECOND, COMMIT)
        await session.until("final", "error")
        await session.send({"type": "ping", "id": "alive"})
        await session.until("pong")
        await session.end()
    return session


async def crash(server: Server) -> None:
    """A worker that dies in mid-decode costs no text: it comes all the same, or `retry` and then it comes"""
    session = await with_fault(server, f"once {uuid4().hex} crash SEGV")
    if not session.all("state", "retry"):
        raise NotTested("nothing crashed: was the server started with --fault-injection?")
    expect(session.ranges_ms == [(0, 1000)], "one final", session.last)


async def fails(fault: str, code: str, server: Server) -> None:
    session = await with_fault(server, fault)
    if session.all("final"):
        raise NotTested("nothing failed: was the server started with --fault-injection?")
    wanted = {"code": code, "fatal": False, "utterance": session.all("speech_started")[0]["utterance"]}
    errors = session.all("error")
    expect(len(errors) == 1 and wanted.items() <= errors[0].items(), f"one error {json.dumps(wanted)}", errors)
    expect(session.done["refused_ms"] == 1000, "refused_ms 1000", session.done)
    other = await play(server, SECOND, start=MANUAL)
    expect(other.ranges_ms == [(0, 1000)], "the final of another session", other.last)


# ---------------------------------------------------------------- of every session: what came that breaks it, or None


async def judge(breach: Callable[[Session], object], server: Server) -> None:
    await server.once(spoken)
    sessions = [session for session in server.heard if session.events and not session.condemned]
    wrong = [(session, what) for session in sessions if (what := breach(session)) is not None]
    for session, _ in wrong:
        session.condemned = True
    if wrong:
        raise Broken(str(breach.__doc__), wrong[0][1])
    if not sessions:
        raise NotTested("no session kept the promises above")


def ready(session: Session) -> object:
    """The first event is `ready`, and no other: the protocol's name, the limits, no `seq`"""
    first = session.events[0]
    is_it = first.get("type") == "ready" and "seq" not in first and len(session.all("ready")) == 1
    return None if is_it and out_of_schema(session.texts[0]) is None else first


def events(session: Session) -> object:
    """Every event is as the JSON Schema says: fields, types, ranges (`retry_after_ms` 500 to 1500)"""
    return next((f"{why}: {text!r}" for text in session.texts if (why := out_of_schema(text))), None)


def out_of_schema(text: str | bytes) -> str | None:
    """What is wrong with an event; None: nothing, or it is one of a newer server."""
    try:
        event = messages.decode_event(text)
    except ProtocolError as error:
        return str(error.__cause__)
    unknown = isinstance(event, messages.Unknown)
    return None if unknown else _out_of_range(json.loads(text), DEFINITIONS[type(event).__name__], "$")


def _out_of_range(value: Any, rule: Event, path: str) -> str | None:
    """What msgspec does not look at: the limits that only the schema has."""
    if "$ref" in rule:
        rule = DEFINITIONS[rule["$ref"].rpartition("/")[2]]
    low, high, allowed = rule.get("minimum"), rule.get("maximum"), rule.get("enum") or [rule.get("const", value)]
    if value not in allowed or (low is not None and value < low) or (high is not None and value > high):
        return f"{path} is {value!r}"
    inner = [
        (value[name], part, f"{path}.{name}") for name, part in rule.get("properties", {}).items() if name in value
    ]
    inner += [(item, rule["items"], f"{path}[{n}]") for n, item in enumerate(value)] if "items" in rule else []
    return next((why for part in inner if (why := _out_of_range(*part))), None)


def numbers(session: Session) -> object:
    """`seq` is 1, 2, 3 and so on in each session"""
    numbered = [event for event in session.events if event.get("type") != "ready"]
    return next((event for n, event in enumerate(numbered, 1) if event.get("seq") != n), None)


def grows(session: Session) -> object:
    """Of an utterance's partials `stable` only grows, and none comes after its `accepted`"""
    stable: dict[str, str | None] = {}  # None: it was accepted
    for event in session.all("partial", "accepted"):
        before = stable.get(event["utterance"], "")
        stable[event["utterance"]] = event.get("stable")
        if event["type"] == "partial" and (before is None or not event["stable"].startswith(before)):
            return event
    return None


async def partials(server: Server) -> None:
    await server.once(dictated)
    await judge(grows, server)
    if not any(session.all("partial") for session in server.heard):
        raise NotTested("no partial came: the server sends none, or had no time for any")


def end(session: Session) -> object:
    """After `end` comes `done`, as the last event, and then close 1000"""
    types = [event.get("type") for event in session.events]
    if not session.has_ended or session.close_code is None or any(error["fatal"] for error in session.all("error")):
        return session.last if "done" in types else None
    kept = types[-1] == "done" and types.count("done") == 1 and session.close_code == 1000
    return None if kept else f"close {session.close_code} after {', '.join(map(str, types[-3:]))}"


def ledger(session: Session) -> object:
    """`done` adds up (received = decoded + silence + refused), has lost nothing, and counts what was told"""
    for told in session.all("done"):
        counted = {name: len(session.all(kind)) for name, kind in COUNTS.items()}
        adds_up = told["received_ms"] == sum(told[fate] for fate in FATES) and told["lost_ms"] == 0
        if not adds_up or not counted.items() <= told.items():
            return told
    return None


def outcomes(session: Session) -> object:
    """Each attempt and each utterance has exactly one outcome, and its audio is in exactly one place"""
    law = Conservation()
    for text in session.texts:
        law.receive(messages.decode_event(text))
    if session.close_code is not None:
        law.close(session.close_code)
    if (spans_ms := law.spans_ms(*SETTLED)) != sorted(spans_ms):
        law.breaches.append(f"heard in another order than it was said: {spans_ms}")
    return law.breaches[0] if law.breaches else None


# ---------------------------------------------------------------- all of them


Check = Callable[[Server], Awaitable[None]]


def _of(section: str, *checks: Check) -> list[Promise[Check]]:
    return [Promise(check.__name__, section, str(check.__doc__), check) for check in checks]


def _always(section: str, *laws: Callable[[Session], object]) -> list[Promise[Check]]:
    return [Promise(law.__name__, section, str(law.__doc__), partial(judge, law)) for law in laws]


def _harmless(what: str, mistake: Mistake) -> Promise[Check]:
    return Promise(mistake.code, mistake.code, f"{what} is an error, not fatal", lambda server: told(server, mistake))


def _failing(code: str, fault: str, what: str) -> Promise[Check]:
    text = f"{what} ends as `{code}`; its session, and others, go on"
    return Promise(code, code, text, partial(fails, fault, code))


PROMISES: Final[tuple[Promise[Check], ...]] = (
    *_of("Connecting", subprotocol, unauthorized),
    *_of("start", started, no_start, formats),
    *_of("Frames", chunking),
    *_of("Rules", speech, times, silence, manual, max_length),
    *_of("commit", commit),
    *_of("cancel", cancel_one, cancel_all),
    *_of("ping", ping),
    *_of("busy", busy),
    *_of("Rules", retry_early, retry, max_wait),
    *_of("Error codes", unsupported_format, unsupported_language, bad_message, too_large),
    *(_harmless(what, mistake) for what, mistake in HARMLESS.items()),
    *_of("Error codes", late_audio, invalid_samples),
    *_of("Plain GET", health, stats),
    *_of("Rules", crash),
    _failing("poison_audio", "crash SEGV", "An utterance under which the worker dies twice"),
    _failing("decode_failed", "raise told to", "An utterance that cannot be decoded"),
    *_always("ready", ready),
    *_always("Events from the server", events, numbers),
    Promise("partials", "partial", str(grows.__doc__), partials),
    *_always("done", end, ledger),
    *_always("Rules", outcomes),
)
