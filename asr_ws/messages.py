"""The wire vocabulary of asr-ws.v1: every message and event, and their JSON. The first file to read.

Inbound messages are strict (an unknown field is an error that names its path, because a misspelt ``sample_rate``
would otherwise decode to garbage); events are read tolerantly, because a server may add to them. All times are
integer milliseconds from the session's first audio byte, durations are integer milliseconds. The prose reference
is docs/reference/protocol.md; `asr_ws.schema` makes a JSON Schema of what is here, docstrings included. What is only in
an ``extra_json_schema`` the schema says and nothing here checks.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal
from typing import Final as Constant

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from asr_ws.errors import ProtocolError

PROTOCOL: Constant = "asr-ws.v1"  # also the WebSocket subprotocol, offered and not required
PATH: Constant = "/v1/stream"
HTTP_ELSEWHERE: Constant = "HTTP has a port of its own: "  # begins a 404 of the sessions' port; the address follows
MAX_TEXT_BYTES: Constant = 16 * 1024
MAX_BINARY_BYTES: Constant = 256 * 1024
MAX_PROMPT_CHARS: Constant = 800  # prompt and hotwords together
ENDS_UTTERANCE: Constant = ("decode_failed", "poison_audio")  # the error codes that are an utterance's outcome
AWAITS_LOAD: Constant = ("starting", "restarting", "unavailable")  # the reasons for which a model is waited for
MAX_LOAD_WAIT_S: Constant = 10.0  # at most so long, before the next try

ENCODINGS: Constant = {"pcm_s16le": 2, "pcm_f32le": 4}  # bytes a sample
MIN_RATE, MAX_RATE, MAX_CHANNELS = 8000, 192_000, 2

Id = Annotated[str, Meta(min_length=1, max_length=128)]
Prompt = Annotated[
    str,
    Meta(
        description=f"`prompt` and `hotwords` have at most {MAX_PROMPT_CHARS} characters together.",
        extra_json_schema={"maxLength": MAX_PROMPT_CHARS},
    ),
]

# Of events: a client takes any number.
Count = Annotated[int, Meta(extra_json_schema={"minimum": 0})]
DurationMs = Annotated[Count, Meta(description="Milliseconds.")]
PositionMs = Annotated[Count, Meta(description="Milliseconds from the session's first byte of audio.")]
HintMs = Annotated[int, Meta(description="Milliseconds.", extra_json_schema={"minimum": 500, "maximum": 1500})]
Probability = Annotated[float, Meta(extra_json_schema={"minimum": 0, "maximum": 1})]
Seq = Annotated[
    int,
    Meta(
        description="1, 2, 3 ... per session; absent from `ready` and from a session's own refusal.",
        extra_json_schema={"minimum": 1},
    ),
]


# ---------------------------------------------------------------- client -> server


class _Message(Struct, tag_field="type", forbid_unknown_fields=True, omit_defaults=True):
    pass


class AudioInForce(Struct, frozen=True):
    """As `started` tells it: a newer server may tell more."""

    encoding: Annotated[str, Meta(extra_json_schema={"enum": list(ENCODINGS)})] = "pcm_s16le"
    sample_rate: Annotated[int, Meta(extra_json_schema={"minimum": MIN_RATE, "maximum": MAX_RATE})] = 16_000  # Hz
    channels: Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": MAX_CHANNELS})] = 1


class AudioFormat(AudioInForce, forbid_unknown_fields=True, frozen=True):
    """What the binary frames hold. Outside these limits it is `unsupported_format`, not `bad_message`."""

    @property
    def bytes_per_s(self) -> int:
        return self.sample_rate * self.channels * ENCODINGS[self.encoding]

    def check(self) -> None:
        """Raises: ProtocolError: ``unsupported_format``, with the allowed values in the hint."""
        for name, value, allowed, fits in (
            ("encoding", self.encoding, " or ".join(ENCODINGS), self.encoding in ENCODINGS),
            ("sample_rate", self.sample_rate, f"{MIN_RATE}..{MAX_RATE}", MIN_RATE <= self.sample_rate <= MAX_RATE),
            ("channels", self.channels, f"1..{MAX_CHANNELS}", 1 <= self.channels <= MAX_CHANNELS),
        ):
            if not fits:
                raise ProtocolError(
                    "unsupported_format", f"audio.{name} is {value!r}", f"send {allowed}", close_code=1008
                )


class EndpointingInForce(Struct, frozen=True):
    """As `started` tells it: a newer server may tell more."""

    mode: Literal["server", "manual"] = "server"
    silence_ms: Annotated[int, Meta(ge=100, le=5000)] = 600
    prefix_ms: Annotated[int, Meta(ge=0, le=1000)] = 300
    min_speech_ms: Annotated[int, Meta(ge=30, le=1000)] = 150
    max_utterance_ms: Annotated[int, Meta(ge=1000, le=30_000)] = 30_000
    threshold: Annotated[float, Meta(ge=0.05, le=0.95)] = 0.5


class Endpointing(EndpointingInForce, forbid_unknown_fields=True, frozen=True):
    """Where utterances end."""


class Start(_Message, tag="start"):
    """Optional, first, once; answered by `started`."""

    token: str | None = None
    audio: AudioFormat = AudioFormat()
    language: Annotated[str | None, Meta(description="One of `ready.languages`; null: detected.")] = None
    task: Literal["transcribe", "translate"] = "transcribe"
    prompt: Prompt | None = None
    hotwords: Prompt | None = None
    partials: bool = True
    words: bool = False
    endpointing: Endpointing = Endpointing()
    max_wait_ms: Annotated[int, Meta(ge=0, description="At most the server's, in `ready.limits`.")] | None = None
    client: str | None = None


class Commit(_Message, tag="commit"):
    """The utterance ends here, after all audio sent before it."""

    id: Id | None = None


class RetryUtterance(_Message, tag="retry"):
    """Offers a held utterance again, without its audio."""

    utterance: str


class Cancel(_Message, tag="cancel"):
    """Drops that utterance wherever it is; without an id everything unfinished."""

    utterance: str | None = None


class End(_Message, tag="end"):
    """No more audio; every outstanding utterance gets its outcome, then `done`."""


class Ping(_Message, tag="ping"):
    """Answered by `pong`, for programs that cannot send WebSocket pings."""

    id: Annotated[str, Meta(max_length=128)] | int | None = None


ClientMessage = Start | Commit | RetryUtterance | Cancel | End | Ping


# ---------------------------------------------------------------- server -> client


class _Event(Struct, tag_field="type", kw_only=True):
    seq: Seq | UnsetType = UNSET


class Limits(Struct, frozen=True):
    """The server's."""

    queue_capacity: Count
    max_wait_ms: DurationMs
    max_utterance_ms: DurationMs
    max_message_bytes: Count
    max_sessions: Count
    hold_ms: DurationMs


State_ = Literal["starting", "ready", "restarting", "unavailable", "draining"]


class Ready(_Event, tag="ready"):
    """The session is open. Audio may be sent before it."""

    protocol: Annotated[str, Meta(extra_json_schema={"const": PROTOCOL})]
    session: str
    server: str
    model: str
    languages: list[str]
    state: State_
    limits: Limits


class Started(_Event, tag="started"):
    """The settings in force."""

    audio: AudioInForce
    language: str | None
    task: str
    partials: bool
    words: bool
    endpointing: EndpointingInForce
    max_wait_ms: DurationMs


class SpeechStarted(_Event, tag="speech_started"):
    """Speech has lasted `min_speech_ms`: an utterance is being heard."""

    utterance: str
    audio_start_ms: PositionMs


class Partial(_Event, tag="partial"):
    """The text so far is ``stable + unstable``; within an utterance ``stable`` only ever grows."""

    utterance: str
    stable: str
    unstable: str
    audio_end_ms: PositionMs


class Accepted(_Event, tag="accepted"):
    """Admitted; ``position`` counts the decodes ahead, 0 goes to the worker now."""

    utterance: str
    attempt: Count
    commit: str | None
    position: Count
    estimated_wait_ms: DurationMs
    estimated_final_ms: DurationMs
    audio_start_ms: PositionMs
    audio_end_ms: PositionMs
    endpoint: Literal["silence", "commit", "max_length", "end"]


class FinalSegment(Struct, frozen=True):
    """Part of the text, with what the recognizer thinks of it."""

    text: str
    start_ms: PositionMs
    end_ms: PositionMs
    avg_logprob: float
    no_speech_prob: Probability


class FinalWord(Struct, frozen=True):
    """One word, with the space before it where there is one."""

    word: str
    start_ms: PositionMs
    end_ms: PositionMs
    probability: Probability


class Final(_Event, tag="final"):
    """Done; it replaces every partial, ``stable`` included."""

    utterance: str
    attempt: Count
    text: str
    language: str
    language_probability: Probability
    audio_start_ms: PositionMs
    audio_end_ms: PositionMs
    wait_ms: DurationMs
    decode_ms: DurationMs
    segments: list[FinalSegment]
    words: Annotated[list[FinalWord], Meta(description="Only with `start.words`.")] | UnsetType = UNSET
    filtered: Annotated[str | None, Meta(description="Why the text was emptied; null: it was not.")] = None
    recovered: Annotated[bool, Meta(description="The recognizer died after the text, before it had said so.")] = False


class _Refusal(_Event):
    utterance: Annotated[str | None, Meta(description="Null: the session itself.")]
    attempt: Count
    commit: str | None
    status: Literal[429, 503]
    reason: str
    retry_after_ms: HintMs
    estimated_wait_ms: Annotated[Count, Meta(description="Milliseconds, honest and unclamped.")]
    queue_depth: Count
    queue_capacity: Count
    retryable: bool
    held_ms: Annotated[Count, Meta(description="Milliseconds that the audio stays on the server; 0: not held.")]


class Busy(_Refusal, tag="busy"):
    """Not admitted."""


class Retry(_Refusal, tag="retry"):
    """Was admitted, could not be finished, may be tried again."""

    waited_ms: DurationMs


class Dropped(_Event, tag="dropped"):
    """The utterance is gone, without text."""

    utterance: str
    reason: Literal["cancelled", "hold_expired", "evicted", "not_held"]
    audio_start_ms: PositionMs
    audio_end_ms: PositionMs


class Error(_Event, tag="error"):
    """The client, or the server, did something wrong; the session ends by it if it is ``fatal``."""

    code: str
    message: str
    hint: str
    fatal: bool
    utterance: str | None = None
    commit: str | None = None


class State(_Event, tag="state"):
    """Sent on change only."""

    state: State_
    partials: Literal["on", "paused"]


class Pong(_Event, tag="pong"):
    """The answer to `ping`, with its id."""

    id: str | int | None


class Done(_Event, tag="done"):
    """The ledger: ``received = decoded + silence + refused + lost``, and lost is always 0 or our bug."""

    received_ms: DurationMs
    decoded_ms: DurationMs
    silence_ms: DurationMs
    refused_ms: DurationMs
    lost_ms: int
    finals: Count
    busy: Count
    retries: Count
    dropped: Count
    errors: Count


class Unknown(Struct, frozen=True):
    """An event of a newer server; a client ignores it."""

    type: str
    fields: dict[str, Any]


ServerEvent = (
    Ready | Started | SpeechStarted | Partial | Accepted | Final | Busy | Retry | Dropped | Error | State | Pong | Done
)


def retry_wait_s(reason: str, retry_after_s: float, estimated_wait_s: float) -> float:
    """Seconds that a client is to wait before it offers a refused utterance again."""
    return max(retry_after_s, min(estimated_wait_s, MAX_LOAD_WAIT_S) if reason in AWAITS_LOAD else 0.0)


_encoder = msgspec.json.Encoder()
_message_decoder = msgspec.json.Decoder(ClientMessage)
_event_decoder = msgspec.json.Decoder(ServerEvent)


def encode(message: ClientMessage | ServerEvent) -> str:
    return _encoder.encode(message).decode()


def decode_message(text: str) -> ClientMessage:
    """Strictly read one client message.

    Raises:
        ProtocolError: ``bad_message`` with the offending path; ``too_large``.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_TEXT_BYTES:
        raise ProtocolError("too_large", "text frame too large", f"at most {MAX_TEXT_BYTES} bytes", close_code=1009)
    try:
        message: ClientMessage = _message_decoder.decode(text)
    except msgspec.ValidationError as error:
        raise ProtocolError("bad_message", str(error), "see docs/reference/protocol.md for the fields") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ProtocolError("bad_message", f"not JSON: {error}", "text frames are JSON objects") from error
    except RecursionError as error:
        raise ProtocolError("bad_message", "JSON nested too deep", "no message nests deeper than 2") from error
    if isinstance(message, Start):
        length = len(message.prompt or "") + len(message.hotwords or "")
        if length > MAX_PROMPT_CHARS:
            raise ProtocolError(
                "bad_message",
                f"prompt and hotwords are {length} characters together - at `$.prompt`",
                f"send at most {MAX_PROMPT_CHARS}",
            )
    return message


class _Introduction(msgspec.Struct, tag_field="type", tag="start"):
    token: str | None = None


_introduction_decoder = msgspec.json.Decoder(_Introduction)


def token_of(text: str) -> str | None:
    """The token of a `start`, however wrong the rest of it is; None: there is none."""
    try:
        return _introduction_decoder.decode(text).token
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def decode_event(text: str | bytes) -> ServerEvent | Unknown:
    """Read one server event; what this version does not know comes back as `Unknown`.

    Raises:
        ProtocolError: ``bad_message``: not an event at all.
    """
    try:
        if _HUGE.search(str(text)):
            json.loads(text, parse_int=lambda digits: float(int(digits)))
        try:
            event: ServerEvent = _event_decoder.decode(text)
            return event
        except msgspec.ValidationError:
            fields = msgspec.json.decode(text)
            if isinstance(fields, dict) and isinstance(kind := fields.pop("type", None), str) and kind not in _KNOWN:
                return Unknown(kind, fields)
            raise
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError("bad_message", f"the server sent {str(text[:200])!r}") from error


_HUGE = re.compile(r"\d{300}")  # what might be no float, with which nothing can be reckoned
_KNOWN = frozenset(str(event.__struct_config__.tag) for event in ServerEvent.__args__)
