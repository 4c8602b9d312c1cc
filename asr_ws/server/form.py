"""The multipart form of an upload: OpenAI's fields, ours, and one file, which goes on as it comes and is never kept.

What is asked is strict where a misspelt name would silently give another result, and lenient where OpenAI's clients
say something that means nothing here (`IGNORED`). aiohttp's `MultipartReader` does the parsing. Beside it there are
limits on what a client may send, and on how slowly: a body must come at `BodyLimits.min_bytes_s` on average after
a grace, and within `BodyLimits.max_s`, else it would hold its place for hours. What counts is the time
that is spent waiting for the client; what our own side takes to write is none of it.
"""

from __future__ import annotations

import asyncio
import difflib
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from enum import StrEnum
from typing import Any, Final, Protocol, TypeVar, cast

from aiohttp import (
    BadContentDispositionHeader,
    BadContentDispositionParam,
    BodyPartReader,
    MultipartReader,
    StreamReader,
    web,
)
from aiohttp.http_exceptions import HttpProcessingError

from asr_ws.core.files import FileRequest, Granularity, ResponseFormat
from asr_ws.core.languages import code_of, objection
from asr_ws.errors import RequestError
from asr_ws.messages import MAX_PROMPT_CHARS

FILE: Final = "file"
MAX_MS: Final = 999_999_999  # eleven days: beyond any server's, and no number of a thousand digits

IGNORED: Final = {  # accepted, because clients of OpenAI's send them, and why nothing comes of them
    "chunking_strategy": "long audio is always cut at its pauses",
    "include": "the log probabilities of tokens are not kept",
    "languages": "the language is either told or detected among all",
    "known_speaker_names": "speakers are not told apart",
    "known_speaker_references": "speakers are not told apart",
}
SINGLE: Final = (
    "model",  # any: one is served, under whatever name it is asked for
    "language",
    "prompt",
    "hotwords",
    "response_format",
    "temperature",
    "stream",
    "max_wait_ms",
)
REPEATED: Final = ("timestamp_granularities", "keywords")  # also with [], as OpenAI's clients write lists
NAMES: Final = (FILE, *SINGLE, *REPEATED, *IGNORED)

E = TypeVar("E", bound=StrEnum)


# ---------------------------------------------------------------- what is asked


def parse_fields(fields: Iterable[tuple[str, str]], *, task: str, languages: tuple[str, ...]) -> FileRequest:
    """What the text fields ask for.

    Args:
        fields: name and value as they came; an empty value is none, because HTML forms send one for an untouched input.
        task: ``transcribe`` or ``translate``, by the address.
        languages: what the model can be told, as of `asr_ws.models.languages`.
    Raises:
        RequestError: 400, with the field's name.
    """
    given: dict[str, list[str]] = {}
    for name, value in fields:
        plain = known_name(name)
        if value:
            given.setdefault(plain, []).append(value)
    for name in SINGLE:
        if len(given.get(name, [])) > 1:
            raise RequestError(400, "duplicate_parameter", f"{name} is given more than once", param=name)
    single = {name: values[0] for name, values in given.items() if name in SINGLE}

    language = code_of(single["language"]) if "language" in single else None
    if refusal := objection(language, task, languages):
        raise RequestError(400, "unsupported_language", *refusal, param="language" if language else None)
    prompt = single.get("prompt")
    hotwords = ", ".join([*filter(None, [single.get("hotwords")]), *given.get("keywords", [])]) or None
    if (length := len(prompt or "") + len(hotwords or "")) > MAX_PROMPT_CHARS:
        message = f"prompt and hotwords are {length} characters together"
        param = "prompt" if prompt else "hotwords"
        raise RequestError(400, "invalid_value", message, f"send at most {MAX_PROMPT_CHARS}", param=param)
    format_ = _choice(ResponseFormat, "response_format", single.get("response_format", "json"))
    name = "timestamp_granularities"
    granularities = frozenset(_choice(Granularity, name, value) for value in given.get(name, []))
    if granularities and format_ is not ResponseFormat.VERBOSE_JSON:
        raise RequestError(
            400, "invalid_value", f"{name} needs response_format {ResponseFormat.VERBOSE_JSON}", param=name
        )
    _check_temperature(single.get("temperature", "0"))  # decoding is at 0, the wrong ones are said all the same
    max_wait_ms = single.get("max_wait_ms")
    return FileRequest(
        task=task,
        language=language if len(languages) > 1 else languages[0],
        prompt=prompt,
        hotwords=hotwords,
        response_format=format_,
        granularities=granularities or frozenset({Granularity.SEGMENT}),
        stream=_truth("stream", single.get("stream", "false")),
        max_wait_ms=None if max_wait_ms is None else _whole("max_wait_ms", max_wait_ms),
    )


def known_name(name: str) -> str:
    """A field's name, less the ``[]`` that makes it a list's item. Raises: RequestError: there is none such."""
    plain = name.removesuffix("[]")
    if name in SINGLE or plain in REPEATED or name.partition("[")[0] in IGNORED:
        return plain
    close = difflib.get_close_matches(plain.lower()[:100], NAMES, 1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(NAMES)}"
    raise RequestError(400, "unknown_parameter", f"unknown parameter {name[:40]!r}", hint, param=name[:40])


def _choice(kind: type[E], name: str, value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        code = "unsupported_response_format" if kind is ResponseFormat else "invalid_value"
        raise _wrong(name, value, f"one of {', '.join(kind)}", code) from None


def _check_temperature(value: str) -> None:
    with suppress(ValueError):
        if 0 <= float(value) <= 1:  # which NaN is not either
            return
    raise _wrong("temperature", value, "a number from 0 to 1")


def _whole(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= len(str(MAX_MS))):
        raise _wrong(name, value, f"a whole number from 0 to {MAX_MS}")
    return int(value)


def _truth(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise _wrong(name, value, "true or false")
    return value.lower() == "true"


def _wrong(name: str, value: str, wanted: str, code: str = "invalid_value") -> RequestError:
    return RequestError(400, code, f"{name} is {value[:40]!r}", f"it is {wanted}", param=name)


# ---------------------------------------------------------------- how it comes

CHUNK_BYTES: Final = 64 * 1024  # of the file, handed on at a time
TURN_S: Final = 0.002  # what is here already keeps nobody else waiting for longer: lines of one byte, for one
MAX_HEADER_CHARS: Final = 1024  # the standard library's parser takes the square of it: 0.1 s for 8 KB
PLAIN: Final = ("7bit", "8bit", "binary")  # transfer encodings that encode nothing, which some clients name

# It says on stderr, once for each wrong header, what was in it: names of files, as many as somebody likes to send.
warnings.simplefilter("ignore", BadContentDispositionHeader)
warnings.simplefilter("ignore", BadContentDispositionParam)


@dataclass(frozen=True, slots=True)
class BodyLimits:
    max_bytes: int  # of the whole body, headers of its parts and boundaries included
    max_fields: int = 64
    max_field_bytes: int = 16 * 1024  # as a text frame of the WebSocket
    max_lines: int = 2048  # boundaries and headers: clients send some four a part
    min_bytes_s: int = 8192  # a slow modem's; speech in 64 kbit/s comes in real time
    grace_s: float = 10.0
    max_silence_s: float = 30.0  # without a byte: else a fast start would buy hours of it
    max_s: float = 600.0  # in all: at the least speed 100 MB would hold a place for 3.4 h


@dataclass(slots=True)
class Pace:
    """How long a body may still keep us waiting: ``received >= min_bytes_s * (waited_s - grace_s)`` must hold,
    and ``waited_s <= max_s``."""

    limits: BodyLimits
    waited_s: float = 0.0

    def patience_s(self, received_bytes: int) -> float:
        """Until its next byte; below 0 it is too slow already."""
        earned_s = self.limits.grace_s + received_bytes / self.limits.min_bytes_s
        return min(earned_s - self.waited_s, self.limits.max_silence_s, self.limits.max_s - self.waited_s)


class Sink(Protocol):
    async def write(self, data: bytes, /) -> None: ...


async def read_form(
    request: web.BaseRequest,
    *,
    limits: BodyLimits,
    on_file: Callable[[], Awaitable[Sink]],
    clock: Callable[[], float] = time.monotonic,
) -> list[tuple[str, str]]:
    """Read a request's body to its end.

    Args:
        request: `check_head` has nothing against it.
        on_file: called where the file's content begins, which its sink then gets, at most `CHUNK_BYTES` at a time. A
            file that was begun may turn out to be half: discard it when this raises.
    Returns:
        The fields, as they came.
    Raises:
        RequestError: 400, 408 or 413; the rest of the body is unread.
        OSError: the client is gone.
    """
    body = cast(StreamReader, _Body(request.content, limits, clock))
    with _as_bad_multipart():
        reader = MultipartReader(request.headers, body)
    fields: list[tuple[str, str]] = []
    has_file = False
    while True:
        with _as_bad_multipart():
            part = await reader.next()
        if part is None:
            break
        if not isinstance(part, BodyPartReader):
            raise _bad_multipart("a part is a multipart of its own")
        name, is_file = _name(part)
        if name != FILE:
            if is_file:
                raise RequestError(
                    400, "unknown_parameter", f"a file in {name[:40]!r}", f"it goes into {FILE!r}", param=name[:40]
                )
            known_name(name)
            if len(fields) == limits.max_fields:
                raise _bad_multipart(f"more than {limits.max_fields} fields")
            fields.append((name, await _text(part, name, limits)))
        elif has_file:
            raise RequestError(400, "duplicate_parameter", "more than one file", param=FILE)
        else:
            has_file = True
            await _pass_on(part, await on_file())
    if not has_file:
        raise RequestError(400, "missing_file", "there is no file", "curl: -F file=@speech.wav", param=FILE)
    return fields


class _Body:
    """Stands where aiohttp's reader has its stream: every byte is counted, every wait timed.

    Nothing less would do: before the first boundary, and behind a part, the reader goes on for as long as bytes come.
    """

    def __init__(self, content: StreamReader, limits: BodyLimits, clock: Callable[[], float]) -> None:
        self._content = content
        self._limits = limits
        self._pace = Pace(limits)
        self._clock = clock
        self._turn_began = clock()
        self._n_lines = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)  # what awaits nothing

    async def read(self, n: int = -1) -> bytes:
        return await self._receive(self._content.read(n))

    async def readline(self, **limits: Any) -> bytes:
        """Of what is in no field or file: what ends one, and says what comes next."""
        self._n_lines += 1
        if self._n_lines > self._limits.max_lines:
            raise _bad_multipart(f"more than {self._limits.max_lines} lines beside its fields")
        return await self._receive(self._content.readline(**limits))

    async def _receive(self, reading: Awaitable[bytes]) -> bytes:
        began = self._clock()
        if began - self._turn_began > TURN_S:
            await asyncio.sleep(0)
            self._turn_began = began = self._clock()
        patience_s = self._pace.patience_s(self._content.total_bytes)
        try:
            # Also where it is below 0, what is here already is read: a timeout ends only what has to wait.
            async with asyncio.timeout(patience_s):
                received = await reading
        except TimeoutError:
            raise RequestError(408, "slow_body", "the body comes too slowly") from None
        self._pace.waited_s += self._clock() - began
        if self._content.total_bytes > self._limits.max_bytes:
            raise _too_large(self._limits)
        return received


def check_head(request: web.BaseRequest, limits: BodyLimits) -> None:
    """What is wrong already, before the body is asked for. Raises: RequestError: 400, 413 or 415."""
    if request.query_string:
        hint = "send them as fields of the form"
        raise RequestError(400, "unknown_parameter", "the address has parameters, which would be ignored", hint)
    if len(request.headers.get("Content-Type", "")) > MAX_HEADER_CHARS:
        raise RequestError(415, "unsupported_media_type", f"Content-Type is more than {MAX_HEADER_CHARS} characters")
    if request.content_type != "multipart/form-data":
        hint = "send multipart/form-data, as curl -F does"
        raise RequestError(415, "unsupported_media_type", f"the body is {_utf8(request.content_type)[:40]}", hint)
    if (encoding := request.headers.get("Content-Encoding", "identity").lower()) != "identity":
        hint = "send it as it is; audio hardly gets smaller"
        raise RequestError(415, "unsupported_media_type", f"the body's encoding is {_utf8(encoding)[:40]!r}", hint)
    if request.content_length is not None and request.content_length > limits.max_bytes:
        raise _too_large(limits)


def _name(part: BodyPartReader) -> tuple[str, bool]:
    """Of the field, and whether it is a file.

    By the standard library: aiohttp refuses a header whose file's name has two semicolons.
    """
    header, text = Message(), part.headers.get("Content-Disposition", "")
    if len(text) > MAX_HEADER_CHARS:
        raise _bad_multipart(f"a part's header is more than {MAX_HEADER_CHARS} characters")
    with _as_bad_multipart():
        header["Content-Disposition"] = _utf8(text)
        name, file_name = header.get_param("name", header="Content-Disposition"), header.get_filename()
    if not isinstance(name, str) or header.get_content_disposition() != "form-data":
        raise _bad_multipart("a part has no name")
    if part.headers.get("Content-Transfer-Encoding", "binary").strip().lower() not in PLAIN:
        raise _bad_multipart(f"{name[:40]!r} is encoded for mail", "send its bytes as they are")
    return _utf8(name), file_name is not None


def _utf8(text: str) -> str:
    """With question marks for what could not be written into an answer or a log."""
    return text.encode(errors="replace").decode()


async def _text(part: BodyPartReader, name: str, limits: BodyLimits) -> str:
    value = bytearray()
    async for chunk in _chunks(part):
        value += chunk
        if len(value) > limits.max_field_bytes:
            raise RequestError(413, "too_large", f"{name} is more than {limits.max_field_bytes} bytes", param=name)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RequestError(400, "invalid_value", f"{name} is not UTF-8", param=name) from None


async def _pass_on(part: BodyPartReader, sink: Sink) -> None:
    pending = bytearray()
    async for chunk in _chunks(part):  # of a few bytes each where the client sends so
        if len(pending) + len(chunk) > CHUNK_BYTES:
            await sink.write(bytes(pending))
            pending.clear()
        pending += chunk
    if pending:
        await sink.write(bytes(pending))


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while not part.at_eof():  # an empty chunk does not say so
        with _as_bad_multipart():
            chunk = await part.read_chunk(CHUNK_BYTES)
        yield chunk


@contextmanager
def _as_bad_multipart() -> Iterator[None]:
    """Around the parsers' calls alone: what else raises these is our own fault."""
    try:
        yield
    # aiohttp asserts where a field `_charset_` meets a long boundary; the standard library sorts what cannot be sorted.
    except (ValueError, RuntimeError, AssertionError, TypeError, HttpProcessingError) as error:
        raise _bad_multipart(_utf8(str(error))[:200]) from error


def _bad_multipart(message: str, hint: str = "") -> RequestError:
    return RequestError(400, "bad_multipart", f"the form is broken: {message}", hint)


def _too_large(limits: BodyLimits) -> RequestError:
    hint = "the server's --max-upload-mb; compressed, as FLAC, MP3 or Opus, audio is smaller"
    return RequestError(413, "too_large", f"the body is larger than {limits.max_bytes} bytes", hint)
