"""The form of an upload: what its fields ask for, and how a body is read, however it comes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from aiohttp import StreamReader, web

from asr_ws.core.files import FileRequest, Granularity, ResponseFormat
from asr_ws.core.languages import CODES, NAMES, code_of
from asr_ws.errors import RequestError
from asr_ws.server.form import (
    CHUNK_BYTES,
    IGNORED,
    TURN_S,
    BodyLimits,
    Pace,
    _Body,
    check_head,
    parse_fields,
    read_form,
)

# The module's own filters are undone by pytest.
pytestmark = [
    pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader"),
    pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionParam"),
]
ALL = tuple(NAMES)
SEGMENT, WORD = Granularity.SEGMENT, Granularity.WORD
VERBOSE = ("response_format", "verbose_json")
Fields = list[tuple[str, str]]


def parse(*fields: tuple[str, str], task: str = "transcribe", languages: tuple[str, ...] = ALL) -> FileRequest:
    return parse_fields(fields, task=task, languages=languages)


# ---------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], FileRequest()),
        ([("model", "whisper-1")], FileRequest()),
        ([("language", "de")], FileRequest(language="de")),
        ([("language", "German")], FileRequest(language="de")),
        ([("language", "FLEMISH")], FileRequest(language="nl")),
        ([("language", "")], FileRequest()),
        ([("prompt", "Berlin"), ("hotwords", "Spree")], FileRequest(prompt="Berlin", hotwords="Spree")),
        ([("keywords[]", "Spree"), ("keywords[]", "Havel")], FileRequest(hotwords="Spree, Havel")),
        ([("hotwords", "Oder"), ("keywords", "Spree")], FileRequest(hotwords="Oder, Spree")),
        ([("prompt", "é" * 800)], FileRequest(prompt="é" * 800)),
        *[([("response_format", value)], FileRequest(response_format=value)) for value in ResponseFormat],
        ([("temperature", "0.4")], FileRequest()),
        ([("stream", "true")], FileRequest(stream=True)),
        ([("stream", "True")], FileRequest(stream=True)),
        ([("stream", "false")], FileRequest()),
        ([("max_wait_ms", "0")], FileRequest(max_wait_ms=0)),
        ([("max_wait_ms", "999999999")], FileRequest(max_wait_ms=999_999_999)),
        (
            [VERBOSE, ("timestamp_granularities[]", "word")],
            FileRequest(response_format=ResponseFormat.VERBOSE_JSON, granularities=frozenset({WORD})),
        ),
        (
            [("timestamp_granularities", "word"), ("timestamp_granularities[]", "segment"), VERBOSE],
            FileRequest(response_format=ResponseFormat.VERBOSE_JSON, granularities=frozenset({WORD, SEGMENT})),
        ),
        ([("include[]", "logprobs"), ("include[]", "logprobs")], FileRequest()),
        ([("chunking_strategy[type]", "server_vad"), ("chunking_strategy[threshold]", "0.5")], FileRequest()),
        *[([(name, "x")], FileRequest()) for name in IGNORED],
    ],
)
def test_fields(fields: Fields, expected: FileRequest) -> None:
    assert parse(*fields) == expected


@pytest.mark.parametrize(
    ("fields", "code", "param", "said"),
    [
        (
            [("lenguage", "de")],
            "unknown_parameter",
            "lenguage",
            "unknown parameter 'lenguage' (did you mean language?)",
        ),
        (
            [("Stream", "true")],
            "unknown_parameter",
            "Stream",
            "unknown parameter 'Stream' (did you mean stream?)",
        ),
        (
            [("timestamp_granularities[0]", "word")],
            "unknown_parameter",
            "timestamp_granularities[0]",
            "unknown parameter 'timestamp_granularities[0]' (did you mean timestamp_granularities?)",
        ),
        (
            [("language", "de"), ("language", "de")],
            "duplicate_parameter",
            "language",
            "language is given more than once",
        ),
        ([("model", "a"), ("model", "b")], "duplicate_parameter", "model", "model is given more than once"),
        (
            [("response_format", "diarized_json")],
            "unsupported_response_format",
            "response_format",
            "response_format is 'diarized_json' (it is one of json, text, verbose_json, srt, vtt)",
        ),
        (
            [("timestamp_granularities[]", "word")],
            "invalid_value",
            "timestamp_granularities",
            "timestamp_granularities needs response_format verbose_json",
        ),
        (
            [VERBOSE, ("timestamp_granularities[]", "letter")],
            "invalid_value",
            "timestamp_granularities",
            "timestamp_granularities is 'letter' (it is one of segment, word)",
        ),
        (
            [("prompt", "a" * 400), ("hotwords", "b" * 401)],
            "invalid_value",
            "prompt",
            "prompt and hotwords are 801 characters together (send at most 800)",
        ),
        (
            [("keywords[]", "b" * 801)],
            "invalid_value",
            "hotwords",
            "prompt and hotwords are 801 characters together (send at most 800)",
        ),
        *[
            (
                [("temperature", value)],
                "invalid_value",
                "temperature",
                f"temperature is {value!r} (it is a number from 0 to 1)",
            )
            for value in ("1.01", "-0.1", "nan", "inf", "warm")
        ],
        *[
            (
                [("max_wait_ms", value)],
                "invalid_value",
                "max_wait_ms",
                f"max_wait_ms is {value!r} (it is a whole number from 0 to 999999999)",
            )
            for value in ("-1", "1.5", "1e3", "1_000", "٣", "1000000000")
        ],
        ([("stream", "yes")], "invalid_value", "stream", "stream is 'yes' (it is true or false)"),
        (
            [("stream", "y" * 10_000)],
            "invalid_value",
            "stream",
            f"stream is '{'y' * 40}' (it is true or false)",
        ),
    ],
)
def test_field_that_is_wrong_is_named(fields: Fields, code: str, param: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(*fields)
    error = caught.value
    assert (error.status, error.code, error.param, str(error)) == (400, code, param, said)


@pytest.mark.parametrize(
    ("language", "task", "known", "param", "said"),
    [
        (
            "de",
            "transcribe",
            ("en",),
            "language",
            "this model does not know 'de' (it knows en)",
        ),
        (
            "klingon",
            "transcribe",
            ("en", "de"),
            "language",
            "this model does not know 'klingon' (it knows en, de; without one it is detected)",
        ),
        ("", "translate", ("en",), None, "an English-only model cannot translate (serve a multilingual model)"),
    ],
)
def test_language_is_refused_as_it_is_by_the_websocket(
    language: str, task: str, known: tuple[str, ...], param: str | None, said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        parse(("language", language), task=task, languages=known)
    error = caught.value
    assert (error.status, error.code, error.param, str(error)) == (400, "unsupported_language", param, said)


def test_english_only_model_is_told_english() -> None:
    assert parse(languages=("en",)) == parse(("language", "English"), languages=("en",)) == FileRequest(language="en")


def test_every_name_leads_to_a_language_and_none_hides_a_code() -> None:
    assert {code_of(name) for name in (*NAMES, *NAMES.values())} == set(NAMES)
    assert set(CODES.values()) <= set(NAMES)
    assert set(CODES).isdisjoint(NAMES)


def test_names_are_those_of_the_recognizers_languages() -> None:
    tokenizer = pytest.importorskip("faster_whisper.tokenizer")
    assert set(NAMES) == set(tokenizer._LANGUAGE_CODES)


# ---------------------------------------------------------------- how it comes

LIMITS = BodyLimits(max_bytes=1_000_000)
SOUND = b"RIFF\r\n--\r\n--se\r\n\x00\xff\n--sea" * 50  # with almost-boundaries in it


@dataclass
class Taker:
    """A handler that reads forms, and the sink of their files."""

    limits: BodyLimits = LIMITS
    clock: Callable[[], float] = lambda: 0.0
    written: list[bytes] = field(default_factory=list)
    outcomes: list[Fields | RequestError | OSError] = field(default_factory=list)

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    async def take(self, request: web.BaseRequest) -> web.StreamResponse:
        async def on_file() -> Taker:
            return self

        outcome: Fields | RequestError | OSError
        try:
            check_head(request, self.limits)
            outcome = await read_form(request, limits=self.limits, on_file=on_file, clock=self.clock)
        except (RequestError, OSError) as error:
            outcome = error
        self.outcomes.append(outcome)
        answer = web.Response(status=outcome.status if isinstance(outcome, RequestError) else 200)
        answer.force_close()
        return answer


@asynccontextmanager
async def listening(taker: Taker) -> AsyncIterator[int]:
    # What is encoded comes as it is, to be refused by us; what is refused is not read to its end.
    server = web.Server(taker.take, auto_decompress=False, lingering_time=0)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await server.shutdown(1.0)


def part(name: str, value: str | bytes, file_name: str | None = None, *headers: str) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if file_name is not None:
        disposition += f'; filename="{file_name}"'
    head = "\r\n".join(["--sea", disposition, *headers, "", ""]).encode()
    return head + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"


def head(*headers: str, length: int | None = None, content_type: str = "multipart/form-data; boundary=sea") -> bytes:
    lines = ["POST / HTTP/1.1", "Host: here", f"Content-Type: {content_type}", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def bytewise(data: bytes) -> Iterator[bytes]:
    for n in range(len(data)):
        yield data[n : n + 1]


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[n : n + size] for n in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


async def send(taker: Taker, pieces: Iterator[bytes], *, hang_up: bool = False) -> int:
    """The status of the answer. ``hang_up``: without waiting for it, which the taker's outcome then tells."""
    async with asyncio.timeout(30), listening(taker) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if hang_up:
                writer.close()
                while not taker.outcomes:
                    await asyncio.sleep(0)
                return 0
            return int((await reader.readline()).split()[1])
        finally:
            writer.close()


async def take(body: bytes, taker: Taker, *headers: str, cut: Callable[[bytes], Iterator[bytes]] = whole) -> int:
    return await send(taker, cut(head(*headers, length=len(body)) + body))


FORM = part("model", "whisper-1") + part("file", SOUND, "a b.wav") + part("prompt", "Ä, 水") + b"--sea--\r\n"
FIELDS = [("model", "whisper-1"), ("prompt", "Ä, 水")]


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (FORM, FIELDS),
        (FORM + b"an epilogue\r\n", FIELDS),
        (b"a preamble\r\n" + FORM, FIELDS),
        (FORM.removesuffix(b"\r\n"), FIELDS),
        (part("file", SOUND, "a") + part("model", "") + b"--sea--\r\n", [("model", "")]),
        (part("model", "m") + part("file", SOUND, "a") + b"--sea--\r\n", [("model", "m")]),
        (part("file", SOUND) + b"--sea--\r\n", []),
        (
            part("file", SOUND, "x.wav", "Content-Type: audio/wav", "Content-Transfer-Encoding: binary")
            + b"--sea--\r\n",
            [],
        ),
        (part("file", SOUND, "a; b; c.wav") + b"--sea--\r\n", []),
        (part("file", SOUND, "水.wav") + b"--sea--\r\n", []),
    ],
)
async def test_form_is_read_however_it_comes(
    body: bytes, expected: Fields, cut: Callable[[bytes], Iterator[bytes]]
) -> None:
    taker = Taker()
    assert await take(body, taker, cut=cut) == 200
    assert taker.outcomes == [expected]
    assert b"".join(taker.written) == SOUND


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_form_comes_in_http_chunks(size: int) -> None:
    taker = Taker()
    assert await send(taker, whole(head("Transfer-Encoding: chunked") + chunked(FORM, size))) == 200
    assert (taker.outcomes, b"".join(taker.written)) == ([FIELDS], SOUND)


@pytest.mark.parametrize("n_bytes", [0, 1, CHUNK_BYTES, 10 * CHUNK_BYTES + 1])
async def test_file_is_handed_on_in_pieces(n_bytes: int) -> None:
    taker = Taker()
    sound = (SOUND * 1000)[:n_bytes]
    assert await take(part("file", sound, "a") + b"--sea--\r\n", taker) == 200
    assert (taker.outcomes, b"".join(taker.written)) == ([[]], sound)
    assert all(0 < len(piece) <= CHUNK_BYTES for piece in taker.written)


LATIN_1 = b'--sea\r\nContent-Disposition: form-data; name="file"; filename="\xe9.wav"\r\n\r\nRIFF\r\n--sea--\r\n'


async def test_name_of_a_file_that_is_not_utf8_can_be_written_down() -> None:
    taker = Taker()
    assert await take(LATIN_1, taker) == 200
    assert taker.outcomes == [[]]


SMALL = part("file", "RIFF", "a")
END = b"--sea--\r\n"
NESTED = b'--sea\r\nContent-Disposition: form-data; name="file"\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n'


@pytest.mark.parametrize("cut", [whole, bytewise])
@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (END, 400, "missing_file", "file"),
        (part("model", "m") + END, 400, "missing_file", "file"),
        (SMALL + SMALL + END, 400, "duplicate_parameter", "file"),
        (part("audio", "RIFF", "a.wav") + END, 400, "unknown_parameter", "audio"),
        (part("temprature", "0") + SMALL + END, 400, "unknown_parameter", "temprature"),
        (SMALL + part("prompt", b"\xff") + END, 400, "invalid_value", "prompt"),
        (SMALL + part("prompt", "p" * 20_000) + END, 413, "too_large", "prompt"),
        (SMALL + part("keywords[]", "k") * 65 + END, 400, "bad_multipart", None),
        # no form at all
        (b"", 400, "bad_multipart", None),
        (b"RIFF", 400, "bad_multipart", None),
        (SMALL, 400, "bad_multipart", None),
        (SMALL.removesuffix(b"\r\n"), 400, "bad_multipart", None),
        (SMALL + b"--sea\r\n", 400, "bad_multipart", None),
        (part("model", "m") + b"--se", 400, "bad_multipart", None),
        (SMALL + b"--seaside\r\n" + END, 400, "bad_multipart", None),
        (NESTED + b"--x--\r\n" + END, 400, "bad_multipart", None),
        (NESTED.replace(b"; boundary=x", b"") + END, 400, "bad_multipart", None),
        (b"--sea\r\n\r\nRIFF\r\n" + END, 400, "bad_multipart", None),
        (b'--sea\r\nContent-Disposition: inline; name="file"\r\n\r\nRIFF\r\n' + END, 400, "bad_multipart", None),
        (b"--sea\r\nno header\r\n\r\nRIFF\r\n" + END, 400, "bad_multipart", None),
        (part("file", "UklGRg==", "a", "Content-Transfer-Encoding: base64") + END, 400, "bad_multipart", None),
        (part("file", "RIFF", "a", "Content-Transfer-Encoding: quoted-printable") + END, 400, "bad_multipart", None),
        (NESTED.replace(b"; boundary=x", b"; b\xffoundary=x") + END, 400, "bad_multipart", None),
        (part("_charset_", "utf-8") + SMALL + END, 400, "bad_multipart", None),
        (part("file", "RIFF", "a", f"X: {'x' * 9000}") + END, 400, "bad_multipart", None),
        (part("file", "RIFF", "a", *["X: x"] * 200) + END, 400, "bad_multipart", None),
        (b"\n" * 3000 + SMALL + END, 400, "bad_multipart", None),
        (part("model", "m", 'a"; b="' + ";" * 2100) + SMALL + END, 400, "bad_multipart", None),
        (
            b"--sea\r\nContent-Disposition: form-data; name*0=file; name*=b\r\n\r\nRIFF\r\n" + END,
            400,
            "bad_multipart",
            None,
        ),
        (part("keywords[]", "k", None, *["X: x"] * 50) * 60 + SMALL + END, 400, "bad_multipart", None),
    ],
)
async def test_broken_form_is_refused(
    body: bytes, status: int, code: str, param: str | None, cut: Callable[[bytes], Iterator[bytes]]
) -> None:
    taker = Taker()
    assert await take(body, taker, cut=cut) == status
    [error] = taker.outcomes
    assert isinstance(error, RequestError)
    assert (error.status, error.code, error.param) == (status, code, param)
    assert str(error).encode(), "it goes into answers and logs"


@pytest.mark.parametrize(
    ("content_type", "headers", "status", "code"),
    [
        ("application/json", [], 415, "unsupported_media_type"),
        ("audio/wav", [], 415, "unsupported_media_type"),
        ("audio/w\xffv", [], 415, "unsupported_media_type"),
        ("multipart/mixed; boundary=sea", [], 415, "unsupported_media_type"),
        ("multipart/form-data; boundary=sea", ["Content-Encoding: gzip"], 415, "unsupported_media_type"),
        ("multipart/form-data; boundary=sea", ["Content-Encoding: br"], 415, "unsupported_media_type"),
        (f"multipart/form-data; boundary=sea; a={';' * 2100}", [], 415, "unsupported_media_type"),
        ("multipart/form-data", [], 400, "bad_multipart"),
        (f"multipart/form-data; boundary={'s' * 71}", [], 400, "bad_multipart"),
        ("multipart/form-data; boundary=other", [], 400, "bad_multipart"),
    ],
)
async def test_head_that_is_no_forms_is_refused(content_type: str, headers: list[str], status: int, code: str) -> None:
    taker = Taker()
    request = head(*headers, length=len(FORM), content_type=content_type)
    assert await send(taker, whole(request + FORM)) == status
    assert [getattr(outcome, "code", outcome) for outcome in taker.outcomes] == [code]
    assert str(taker.outcomes[0]).encode(), "it goes into answers and logs"


async def test_identity_is_no_encoding() -> None:
    taker = Taker()
    assert await take(FORM, taker, "Content-Encoding: identity") == 200


async def test_body_that_says_that_it_is_too_large_is_not_read() -> None:
    taker = Taker(BodyLimits(max_bytes=len(FORM) - 1))
    assert await send(taker, whole(head(length=len(FORM)))) == 413
    [error] = taker.outcomes
    assert isinstance(error, RequestError)
    assert error.message == f"the body is larger than {len(FORM) - 1} bytes"


@pytest.mark.parametrize(("max_bytes", "status"), [(len(FORM), 200), (len(FORM) - 1, 413)])
async def test_body_of_unknown_length_is_counted(max_bytes: int, status: int) -> None:
    taker = Taker(BodyLimits(max_bytes))
    assert await send(taker, whole(head("Transfer-Encoding: chunked") + chunked(FORM, 1000))) == status


@pytest.mark.parametrize(
    "endless", [b"a preamble\r\n", b"x" * 1000, part("keywords[]", "k"), part("file", "RIFF" * 10_000)]
)
async def test_body_without_end_ends_at_the_limit(endless: bytes) -> None:
    """Also before the first boundary, where nothing is handed on."""
    taker = Taker(BodyLimits(max_bytes=39_000, max_fields=10_000, max_lines=10_000))
    body = chunked(endless * (100_000 // len(endless)), 10_000)
    assert await send(taker, whole(head("Transfer-Encoding: chunked") + body)) == 413
    assert sum(map(len, taker.written)) <= 39_000


async def test_broken_chunks_are_the_clients_fault() -> None:
    taker = Taker()
    request = (
        head("Transfer-Encoding: chunked") + chunked(FORM[:-100], 100).removesuffix(b"0\r\n\r\n") + b"nonsense\r\n"
    )
    assert await send(taker, whole(request)) == 400


async def test_client_that_goes_is_no_bad_form() -> None:
    taker = Taker()
    await send(taker, whole(head(length=len(FORM)) + FORM[:-100]), hang_up=True)
    [outcome] = taker.outcomes
    assert isinstance(outcome, OSError)


async def test_sinks_error_is_not_the_clients() -> None:
    class Full:
        async def write(self, data: bytes) -> None:
            raise ValueError("no room")

    async def on_file() -> Any:
        return Full()

    seen: list[Exception] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            await read_form(request, limits=LIMITS, on_file=on_file)
        except ValueError as error:
            seen.append(error)
        return web.Response()

    taker = Taker()
    taker.take = handle  # type: ignore[method-assign]
    assert await take(FORM, taker) == 200
    assert [str(error) for error in seen] == ["no room"]


# ---------------------------------------------------------------- how slowly


@pytest.mark.parametrize(
    ("received_bytes", "waited_s", "patience_s"),
    [
        (0, 0.0, 10.0),
        (0, 9.0, 1.0),
        (0, 11.0, -1.0),
        (8192, 10.0, 1.0),
        (81_920, 19.5, 0.5),
        (81_920, 20.5, -0.5),
        (1_000_000_000, 590.0, 10.0),
        (1_000_000_000, 601.0, -1.0),  # whatever came: it holds a place
        (1_000_000_000, 5.0, 30.0),  # what was fast may not fall silent for a day
    ],
)
def test_pace(received_bytes: int, waited_s: float, patience_s: float) -> None:
    assert Pace(LIMITS, waited_s).patience_s(received_bytes) == patience_s


class Clock:
    """Each wait for the client takes as long."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        self.n_read = 0

    def __call__(self) -> float:
        self.n_read += 1
        return self.n_read // 2 * self.wait_s  # read before and after each wait


async def test_body_that_comes_too_slowly_is_refused() -> None:
    taker = Taker(clock=Clock(6.0))
    assert await send(taker, whole(head(length=len(FORM)) + part("model", "m") + b"--sea\r\n")) == 408
    [error] = taker.outcomes
    assert isinstance(error, RequestError)
    assert (error.code, error.message) == ("slow_body", "the body comes too slowly")


async def test_body_that_never_comes_is_refused() -> None:
    taker = Taker(BodyLimits(max_bytes=1000, grace_s=0.0))
    assert await send(taker, whole(head(length=100))) == 408


async def test_what_came_is_read_however_late_we_are() -> None:
    taker = Taker(clock=Clock(1000.0))
    assert await take(FORM, taker) == 200


async def test_our_own_time_is_not_the_clients() -> None:
    now = 0.0

    class SlowTaker(Taker):
        async def write(self, data: bytes) -> None:
            nonlocal now
            await super().write(data)
            now += 1000.0

    taker = SlowTaker(clock=lambda: now)
    sound = SOUND * 400

    def cut(data: bytes) -> Iterator[bytes]:
        yield from (data[n : n + 50_000] for n in range(0, len(data), 50_000))

    assert await take(part("file", sound, "a") + END, taker, cut=cut) == 200
    assert (b"".join(taker.written), len(taker.written) > 1) == (sound, True)


async def test_what_is_here_already_lets_others_have_their_turn() -> None:
    """Regression: before the first boundary a body of empty lines was read for as long as it lasted, seconds."""

    class Lines:
        total_bytes = 0

        async def readline(self) -> bytes:
            return b"\n"

    n_turns = 0

    async def others() -> None:
        nonlocal n_turns
        while True:
            n_turns += 1
            await asyncio.sleep(0)

    times = itertools.count(0.0, TURN_S)
    body = _Body(cast(StreamReader, Lines()), LIMITS, lambda: next(times))
    task = asyncio.create_task(others())
    for _ in range(100):
        await body.readline()
    task.cancel()
    assert n_turns >= 30
