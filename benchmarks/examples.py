"""What is sent to a server that one should not, as Hypothesis draws it, and what the server must answer.

Three kinds, of one connection each: `Talk` keeps to WebSocket frames and says anything in them; `Frames` does not;
`Request` is no handshake. Each raises `Broken` where the server breaks the protocol.
"""

from __future__ import annotations

import copy
import itertools
import json
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st

from asr_ws import messages
from asr_ws.errors import ProtocolError
from asr_ws.testing.conservation import Conservation
from benchmarks.common import speech_pcm
from benchmarks.wire import (
    BINARY,
    CLOSE,
    CONT,
    HANDSHAKE,
    PING,
    PLAIN,
    PONG,
    TEXT,
    Frame,
    Wire,
    event_of,
    expect,
)

Strategy = st.SearchStrategy


class Ending(Enum):
    """How an example goes, after all that it sends."""

    END = auto()  # `end`, and what comes until the server closes
    CLOSE = auto()  # by a close frame
    HALF = auto()  # it sends no more, and reads on
    RESET = auto()  # it reads nothing at all

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Text:
    data: bytes

    @property
    def frames(self) -> list[Frame]:
        return [Frame(TEXT, self.data)]


@dataclass(frozen=True)
class Audio:
    """``n_bytes`` in so many pieces. ``of``: a pattern to repeat; noise, by its seed; or from where in the speech."""

    n_bytes: int
    of: bytes | int | slice
    n_pieces: int = 1

    @property
    def frames(self) -> list[Frame]:
        match self.of:
            case bytes(pattern):
                data = (pattern * (self.n_bytes // len(pattern) + 1))[: self.n_bytes]
            case slice(start=at):
                data = SPEECH[at : at + self.n_bytes]
            case number:
                data = np.random.default_rng(number).bytes(self.n_bytes)
        step = max(len(data) // self.n_pieces, 1)
        return [Frame(BINARY, data[at : at + step]) for at in range(0, len(data), step)] or [Frame(BINARY)]


SPEECH: Final = speech_pcm()
OWN_CODE: Final = 4321  # of a client's close
PROBE: Final = "probe"
SESSION_CODES: Final = (1000, 1007, 1008, 1009)  # by which the server closes on who frames as one should
CODES: Final = (*SESSION_CODES, 1002, 1006)


def said(message: messages.ClientMessage) -> Frame:
    return Frame(TEXT, messages.encode(message).encode())


def is_end(text: bytes) -> bool:
    with suppress(ProtocolError, UnicodeDecodeError):
        return isinstance(messages.decode_message(text.decode()), messages.End)
    return False


@dataclass(frozen=True)
class Talk:
    """Frames as they should be; what is in them is another matter."""

    parts: tuple[Text | Audio, ...]
    ending: Ending

    def run(self, port: int, told: Counter[str]) -> None:
        """Raises: Broken, TimeoutError."""
        with Wire(port) as wire:
            wire.open()
            for part in self.parts:
                for frame in part.frames:
                    wire.send(frame)
            if self.ending is Ending.RESET:
                wire.abort()
                return
            wire.send(said(messages.Ping(id=PROBE)))
            law, code, audio, asked = Conservation(), 1006, messages.AudioInForce(), False
            for opcode, payload in wire.frames():
                expect(opcode in (TEXT, CLOSE), f"a frame with opcode {opcode}: {payload!r}")
                if opcode == CLOSE:
                    code = int.from_bytes(payload[:2], "big") if payload else 1005
                    wire.send(Frame(CLOSE, payload[:2]))
                    break
                law.receive(event := event_of(payload))
                told[_name(event)] += 1
                match event:
                    case messages.Pong(id=id) if id == PROBE:
                        asked = True
                        self._leave(wire)
                    case messages.Started():
                        audio = event.audio
                    case messages.Busy(utterance=str(id)) | messages.Retry(utterance=str(id)):
                        if self.ending is Ending.END:  # else its hold is waited for
                            wire.send(said(messages.Cancel(utterance=id)))
            told[f"close {code}"] += 1
            self._judge(law, code, audio, asked)

    def _leave(self, wire: Wire) -> None:
        match self.ending:
            case Ending.END:
                wire.send(said(messages.End()))
            case Ending.CLOSE:
                wire.send(Frame(CLOSE, struct.pack("!H", OWN_CODE)))
            case _:
                wire.half_close()

    def _judge(self, law: Conservation, code: int, audio: messages.AudioInForce, asked: bool) -> None:
        own = {Ending.CLOSE: (OWN_CODE,), Ending.HALF: (1006,)}.get(self.ending, ()) if asked else ()
        expect(code in (*SESSION_CODES, *own), f"closed {code}")
        if code not in own:
            law.close(code)
        expect(not law.breaches, "; ".join(law.breaches))
        if law.done is not None:
            ms = self._ms(audio)
            expect(law.done.received_ms == ms, f"{ms} ms were sent: {law.done}")

    def _ms(self, audio: messages.AudioInForce) -> int:
        """Of the audio before `end`."""
        n_bytes = 0
        for part in self.parts:
            if isinstance(part, Audio):
                n_bytes += sum(len(frame.payload) for frame in part.frames)
            elif is_end(part.data):
                break
        n_frames = n_bytes // (messages.ENCODINGS[audio.encoding] * audio.channels)
        return round(n_frames * 1000 / audio.sample_rate)


def _name(event: messages.ServerEvent) -> str:
    """Of what is counted."""
    kind = str(event.__struct_config__.tag)
    match event:
        case messages.Error(code=what) | messages.Busy(reason=what) | messages.Dropped(reason=what):
            return f"{kind} {what}"
        case messages.Accepted(endpoint=what):
            return f"{kind} {what}"
    return kind


@dataclass(frozen=True)
class Frames:
    """Frames, and what is none, cut at these bytes."""

    parts: tuple[Frame | bytes, ...]
    cuts: tuple[int, ...]
    ending: Ending

    def run(self, port: int, told: Counter[str]) -> None:
        """Raises: Broken, TimeoutError."""
        with Wire(port) as wire:
            wire.open()
            data = b"".join(map(bytes, self.parts))
            if self.ending is Ending.CLOSE:
                data += bytes(Frame(CLOSE, struct.pack("!H", OWN_CODE)))
            cuts = sorted({0, len(data), *(cut % (len(data) + 1) for cut in self.cuts)})
            for start, end in itertools.pairwise(cuts):
                wire.send(data[start:end])
            if self.ending is Ending.RESET:
                wire.abort()
                return
            wire.half_close()
            law, code = Conservation(), 1006
            for opcode, payload in wire.frames():
                expect(opcode in (TEXT, CLOSE, PONG), f"a frame with opcode {opcode}: {payload!r}")
                if opcode == CLOSE:
                    code = int.from_bytes(payload[:2], "big") if payload else 1005
                    break
                if opcode == TEXT:
                    law.receive(event := event_of(payload))
                    told[_name(event)] += 1
            told[f"close {code}" if code in (*CODES, 1005) else "close, the client's code"] += 1
            own = {int.from_bytes(part.payload[:2], "big") for part in self.parts if isinstance(part, Frame)}
            expect(code in CODES or 3000 <= code < 5000 or code in (1001, 1003, 1005) or code in own, f"closed {code}")
            expect(not law.breaches, "; ".join(law.breaches))


@dataclass(frozen=True)
class Request:
    """Bytes where a handshake is due."""

    data: bytes
    ending: Ending

    def run(self, port: int, told: Counter[str]) -> None:
        """Raises: Broken, TimeoutError."""
        with Wire(port) as wire:
            wire.send(self.data)
            if self.ending is Ending.RESET:
                wire.abort()
                return
            wire.half_close()
            answer = wire.rest()
            status = answer[9:12].decode("latin-1") if answer else "none"
            told[f"status {status}"] += 1
            expect(not answer or answer.startswith(b"HTTP/1."), f"it was answered by {answer[:200]!r}")
            expect(status != "500", f"it was answered by {answer[:200]!r}")


Example = Talk | Frames | Request


# ---------------------------------------------------------------- messages


@dataclass(frozen=True)
class Literal:
    """JSON, or nearly, as it is written."""

    text: str


def written(value: object) -> str:
    """JSON with `Literal`, and with what JSON has no words for."""
    match value:
        case Literal(text):
            return text
        case dict():
            return "{" + ",".join(f"{json.dumps(key)}:{written(each)}" for key, each in value.items()) + "}"
        case list():
            return "[" + ",".join(map(written, value)) + "]"
        case _:
            return json.dumps(value)


MESSAGES: Final[tuple[dict[str, Any], ...]] = (
    {"type": "start"},
    {
        "type": "start",
        "token": None,
        "audio": {"encoding": "pcm_s16le", "sample_rate": 16000, "channels": 1},
        "language": "en",
        "task": "transcribe",
        "prompt": "say hello",
        "hotwords": "hello",
        "partials": True,
        "words": True,
        "endpointing": {
            "mode": "manual",
            "silence_ms": 600,
            "prefix_ms": 300,
            "min_speech_ms": 150,
            "max_utterance_ms": 1000,
            "threshold": 0.5,
        },
        "max_wait_ms": 8000,
        "client": "fuzz",
    },
    {"type": "commit"},
    {"type": "commit", "id": "c"},
    {"type": "retry", "utterance": "u1"},
    {"type": "cancel"},
    {"type": "cancel", "utterance": "u1"},
    {"type": "end"},
    {"type": "ping", "id": 1},
    {"type": "ping", "id": "p"},
)
LITERALS: Final = tuple(
    map(
        Literal,
        (
            *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "-0", "-0.0", "01", "1.", "0x10", "+1"),
            *("9" * 400, "1" + "0" * 5000, "1e" + "9" * 100, "0." + "1" * 1000, "1e308", "5e-324"),
            *("[" * 500 + "]" * 500, '{"a":' * 500 + "1" + "}" * 500, "[" * 5000, ""),
            *(r'"\ud800"', r'"\udc00\ud800"', r'"\u0000"', '"\u0000"', r'"\x"', '"', "'a'", "tru", "/**/1", "\ufeff1"),
        ),
    )
)
ODD: Final = (
    *(0, -1, 1, 1.0, 1.5, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 1e308),
    *(True, None, "", "u1", "x" * 128, "x" * 129, "x" * 800, "x" * 801, "\ud800", "é" * 8200, "\U0001f600" * 800),
    *("pcm_f32le", "translate", "de", "server", 8000, 192_000, 30_000),
)


def either(*choices: Strategy[Any]) -> Strategy[Any]:
    """Each as often as it stands here; `st.one_of` would take apart those that are one of several themselves."""
    return st.integers(0, len(choices) - 1).flatmap(choices.__getitem__)


# Made once: a strategy takes longer to be made than to be drawn from.
JSON: Final = either(
    st.sampled_from((*LITERALS, *ODD)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=4,
    ),
)
KEYS: Final = st.integers(0, 10) | st.sampled_from(  # a number: the place's own
    (
        *("type", "seq", "id", "utterance", "audio", "sample_rate", "prompt", "max_wait_ms"),
        *("Type", "", "\ud800", "__class__", "é"),
    )
)
CHANGES: Final = st.lists(st.tuples(st.integers(0, 2), KEYS, st.none() | st.tuples(JSON)), max_size=3)


def changed(message: dict[str, Any], changes: list[tuple[int, int | str, tuple[Any] | None]]) -> str:
    """Its JSON, with some of its fields changed, taken away, or beside others."""
    message = copy.deepcopy(message)
    for where, which, value in changes:
        places = [message, *(each for each in message.values() if isinstance(each, dict))]
        place = places[where % len(places)]
        key = (list(place) or [""])[which % max(len(place), 1)] if isinstance(which, int) else which
        if value is None:
            place.pop(key, None)
        else:
            (place[key],) = value
    return written(message)


def mangled(message: dict[str, Any], start: int, end: int, instead: str) -> str:
    """Its JSON, a piece of which is something else."""
    text = written(message)
    start, end = sorted((start % (len(text) + 1), end % (len(text) + 1)))
    return text[:start] + instead + text[end:]


def nested(opening: str, n: int, closing: str) -> str:
    return opening * n + "1" + closing * n


CHANGED: Final = st.builds(changed, st.sampled_from(MESSAGES), CHANGES)
PLACES: Final = st.integers(0, 400)
MANGLED: Final = st.builds(
    mangled, st.sampled_from(MESSAGES), PLACES, PLACES, st.text(max_size=5) | st.sampled_from('{}[]",:\\')
)
NESTED: Final = st.builds(
    nested, st.sampled_from(("[", '{"type":', '{"a":[')), st.integers(1, 3000), st.sampled_from(("]", "}", "]}", ""))
)
LONG: Final = st.integers(16_340, 16_400).map(lambda n: written({"type": "ping", "id": "x" * n}))
UNPAIRED: Final = st.text(st.characters(), max_size=50)  # surrogates too
TEXTS: Final = either(
    either(CHANGED, CHANGED, CHANGED, MANGLED, JSON.map(written), UNPAIRED, either(NESTED, LONG)).map(
        lambda text: Text(text.encode("utf-8", "surrogatepass"))
    ),
    *[st.sampled_from(MESSAGES).map(lambda message: Text(written(message).encode()))] * 2,
    st.binary(max_size=20).map(Text),
)


# ---------------------------------------------------------------- audio

FLOATS: Final = (float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-45, 0.5, -1.0, 2.0)
PATTERNS: Final = (
    bytes(1),
    *(struct.pack("<f", number) for number in FLOATS),
    struct.pack("<9f", *FLOATS),
    struct.pack("<4h", 0, 32767, 0, -32768),
    *(b"RIFF\xff\xff\xff\xffWAVEfmt ", b"fLaC", b"OggS", b"ID3\x03", b"\x1a\x45\xdf\xa3"),
)
RATES: Final = (8000, 11_025, 16_000, 22_050, 44_100, 48_000, 192_000)
MOST_BYTES: Final = 40_000
AUDIO: Final = st.builds(
    Audio,
    st.integers(0, 40) | st.integers(0, 4000) | st.integers(4000, MOST_BYTES),
    either(
        st.binary(min_size=1, max_size=8),
        st.sampled_from(PATTERNS),
        st.just(bytes(1)),
        st.integers(0, 1 << 16),
        *[st.integers(0, (len(SPEECH) - MOST_BYTES) // 2).map(lambda n: slice(2 * n, None))] * 3,
    ),
    st.integers(1, 6),
)
FORMAT: Final = st.fixed_dictionaries(
    {},
    optional={
        "encoding": st.sampled_from(("pcm_s16le", "pcm_f32le", "pcm_f32le")),
        "sample_rate": either(st.sampled_from(RATES), st.integers(messages.MIN_RATE, messages.MAX_RATE)),
        "channels": st.integers(1, messages.MAX_CHANNELS),
    },
)
ENDPOINTING: Final = st.fixed_dictionaries(
    {"mode": st.sampled_from(("server", "manual", "manual"))},
    optional={
        "silence_ms": st.integers(100, 5000),
        "prefix_ms": st.integers(0, 1000),
        "min_speech_ms": st.integers(30, 1000),
        "max_utterance_ms": st.integers(1000, 30_000),
        "threshold": st.floats(0.05, 0.95),
    },
)


def wrong(*fields: str) -> Strategy[dict[str, Any]]:
    numbers = st.integers(-1, 300_000) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3)
    return st.dictionaries(st.sampled_from(fields), numbers, min_size=1)


START: Final = st.fixed_dictionaries(
    {
        "type": st.just("start"),
        "endpointing": either(*[ENDPOINTING] * 9, wrong("mode", "silence_ms", "prefix_ms", "threshold")),
    },
    optional={
        "audio": either(*[FORMAT] * 9, wrong("encoding", "sample_rate", "channels")),
        "partials": st.booleans(),
        "words": st.booleans(),
        "max_wait_ms": st.integers(0, 8000),
        "prompt": st.sampled_from(("say hello", "sleep 0.03", "no such fault")),
        "language": st.sampled_from(("de", None)),
    },
).map(lambda start: Text(written(start).encode()))
UTTERANCE: Final = st.integers(1, 4).map(lambda n: f"u{n}")
COMMAND: Final = either(
    *[st.just(messages.Commit())] * 3,
    st.just(messages.Commit(id="c")),
    st.builds(messages.Cancel, st.none() | UTTERANCE),
    st.builds(messages.RetryUtterance, UTTERANCE),
    st.builds(messages.Ping, st.integers(0, 9)),
    st.just(messages.End()),
).map(lambda message: Text(messages.encode(message).encode()))


# ---------------------------------------------------------------- frames

LENGTHS: Final = (0, 125, 126, 65_535, 65_536, 2**31, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
SIZES: Final = (125, 126, 65_535, 65_536, 262_144, 262_145)
PAYLOAD: Final = either(
    st.binary(max_size=140),
    TEXTS.map(lambda text: text.data),
    st.builds(lambda code, reason: struct.pack("!H", code) + reason, st.integers(0, 5000), st.binary(max_size=5)),
    st.sampled_from([bytes(n) for n in SIZES]),
)
FRAME: Final = st.builds(
    Frame,
    st.sampled_from((TEXT, BINARY, CONT, CLOSE, PING, PONG)) | st.integers(0, 15),
    PAYLOAD,
    fin=st.sampled_from((True, True, True, False)),
    rsv=st.sampled_from((0,) * 8 + (0x10, 0x20, 0x40, 0x70)),
    mask=either(st.just(PLAIN), st.just(PLAIN), st.binary(min_size=4, max_size=4), st.none()),
    claims=either(*[st.none()] * 4, st.sampled_from(LENGTHS), st.integers(0, 300)),
)
GOOD_FRAME: Final = st.builds(Frame, st.sampled_from((TEXT, BINARY, PING)), PAYLOAD)
FRAMES: Final = st.builds(
    Frames,
    st.lists(either(FRAME, GOOD_FRAME, GOOD_FRAME, st.binary(max_size=60)), max_size=8).map(tuple),
    st.lists(st.integers(0, 1 << 19), max_size=6).map(tuple),
    st.sampled_from((Ending.HALF, Ending.CLOSE, Ending.RESET)),
)

METHODS: Final = (b"GET", b"GET", b"GET", b"HEAD", b"POST", b"OPTIONS", b"get", b"CONNECT", b"PRI")
TARGETS: Final = (
    *(messages.PATH.encode(), b"/", b"/livez", b"/readyz", b"/metrics", b"/v1/stats", b"/v1/schema.json", b"*", b""),
    *(b"http://localhost/v1/stream", b"/v1/stream?a=b#c", b"/../etc/passwd", b"//", b"/%00", b"/" + b"x" * 9000),
)
GOOD_HEADERS: Final = HANDSHAKE.split(b"\r\n")[1:-2]
HEADERS: Final = (
    *(b"Host: evil.example", b"Host:", b"Upgrade: h2c", b"Connection: close"),
    *(b"Origin: null", b"Origin: http://[::1", b"Origin: http://localhost", b"Origin:"),
    *(b"Sec-WebSocket-Key: \xff", b"Sec-WebSocket-Version: 8", b"Sec-WebSocket-Extensions: permessage-deflate"),
    *(b"Sec-WebSocket-Protocol: asr-ws.v1", b"Sec-WebSocket-Protocol: ,"),
    *(b"Authorization: Bearer \xe9", b"Authorization:", b"X-Forwarded-For: ::1, %, 1.2.3.4:99999", b"Forwarded: for=_"),
    *(b"Content-Length: 5", b"Content-Length: -1", b"Transfer-Encoding: chunked", b"Expect: 100-continue"),
    *(b"X: " + b"x" * 9000, b" folded", b"no colon", b": no name", b"\x00: 1"),
)
LINE: Final = st.builds(
    lambda *words: b" ".join(words),
    st.sampled_from(METHODS),
    either(st.sampled_from(TARGETS), st.just(messages.PATH.encode())),
    st.sampled_from((b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"")),
)


def head(line: bytes, good: Sequence[bytes], headers: Sequence[bytes], then: bytes, cut: int | None) -> bytes:
    return (b"\r\n".join((line, *good, *headers, b"", b"")) + then)[:cut]


HEAD: Final = st.builds(
    head,
    either(LINE, st.just(HANDSHAKE.split(b"\r\n")[0])),
    st.sampled_from(((), GOOD_HEADERS, GOOD_HEADERS, GOOD_HEADERS[1:])),
    st.lists(either(st.sampled_from(HEADERS), st.binary(max_size=20)), max_size=4),
    either(st.just(b""), st.binary(max_size=40), GOOD_FRAME.map(bytes)),
    either(st.none(), st.none(), st.integers(0, 300)),
)
REQUEST: Final = st.builds(
    Request,
    either(HEAD, HEAD, HEAD, st.binary(max_size=200)),
    st.sampled_from((Ending.HALF, Ending.HALF, Ending.RESET)),
)


def talk(parts: Strategy[Sequence[Text | Audio]]) -> Strategy[Talk]:
    return st.builds(Talk, parts.map(tuple), st.sampled_from((Ending.END, Ending.END, *Ending)))


KINDS: Final[dict[str, Strategy[Any]]] = {
    "messages": talk(st.lists(either(*[TEXTS] * 5, AUDIO), min_size=1, max_size=6)),
    "frames": either(FRAMES, FRAMES, REQUEST),
    "pcm": talk(
        st.builds(lambda start, then: [start, *then], START, st.lists(either(AUDIO, COMMAND), min_size=1, max_size=12))
    ),
}
