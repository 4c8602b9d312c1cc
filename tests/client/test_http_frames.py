"""Server-sent events cut anywhere, and a form that a parser of another make reads."""

from __future__ import annotations

from email.message import Message
from email.parser import BytesParser

import pytest

from asr_ws.client import http_frames
from asr_ws.client.http_frames import EventStream, form
from asr_ws.errors import ClientError

STREAM = (
    b"\xef\xbb\xbfdata: one\n\n: alive\n\n"
    b"event: named\nid: 7\ndata: two\ndata: lines\n\n"
    b"data:three\r\n\r\n"
    b"data\r\r"
    b"data: \xc3\xa9t\xc3\xa9\n:\n\n"
    b"\n\n\n"
    b"data: never ends\n"
)
EVENTS = ["one", "two\nlines", "three", "", "été"]


@pytest.mark.parametrize("n_bytes", [1, 2, 3, 7, len(STREAM)])
def test_events_are_the_same_however_they_are_cut(n_bytes: int) -> None:
    stream = EventStream()
    told = [stream.feed(STREAM[at : at + n_bytes]) for at in range(0, len(STREAM), n_bytes)]
    assert [event for events in told for event in events] == EVENTS


def test_an_event_is_told_at_its_end_though_a_line_feed_may_follow() -> None:
    stream = EventStream()
    assert stream.feed(b"data: one\r\n\r") == ["one"]
    assert stream.feed(b"") == []
    assert stream.feed(b"\ndata: two\n") == []
    assert stream.feed(b"\n") == ["two"]


@pytest.mark.parametrize("data", [b"data: " + b"x" * 100, b"data: 0123456789\n" * 10])
def test_an_event_without_end_is_not_kept(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_frames, "MAX_EVENT_BYTES", 99)
    with pytest.raises(ClientError, match="an event of more than 99 bytes"):
        EventStream().feed(data)


def parts(file_name: str) -> list[Message]:
    framed = form({"model": "whisper-1", "language": "en"}, file_name, "0123abc")
    body = framed.head + b"audio\r\n--0123" + framed.tail
    parsed = BytesParser().parsebytes(b"Content-Type: " + framed.content_type.encode() + b"\r\n\r\n" + body)
    return parsed.get_payload()  # type: ignore[return-value]


def test_a_form_has_its_fields_then_the_file() -> None:
    model, language, file = parts("a.m4a")
    assert [
        (each.get_param("name", header="content-disposition"), each.get_payload()) for each in (model, language)
    ] == [
        ("model", "whisper-1"),
        ("language", "en"),
    ]
    assert file["Content-Disposition"] == 'form-data; name="file"; filename="a.m4a"'
    assert file.get_payload(decode=True) == b"audio\r\n--0123"


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("été.webm", "été.webm".encode()),
        ('say "hi".mp4', b"say %22hi%22.mp4"),
        ("two\r\nlines\t.mp3", b"two%0D%0Alines%09.mp3"),
        ("\udcff.wav", b"?.wav"),
    ],
)
def test_a_files_name_ends_no_header(name: str, quoted: bytes) -> None:
    head = form({}, name, "0123abc").head
    expected = b'--0123abc\r\nContent-Disposition: form-data; name="file"; filename="' + quoted + b'"\r\n'
    assert head == expected + b"Content-Type: application/octet-stream\r\n\r\n"
