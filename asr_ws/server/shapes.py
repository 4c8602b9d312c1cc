"""What HTTP answers: OpenAI's shapes of a transcript, of its stream and of an error, with what this server adds.

Pure: values in, JSON's own types or text out. The shapes are described in `asr_ws/assets/openapi.json`, which tests
hold against what is made here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from asr_ws.core.files import FileRequest, FileSlice, FileTranscript, Granularity, ResponseFormat, delta
from asr_ws.core.languages import NAMES
from asr_ws.core.types import SAMPLE_RATE, Segment, Shed, ms
from asr_ws.messages import retry_wait_s
from asr_ws.subtitles import Said, cues, srt, vtt

MODEL_ALIAS: Final = "whisper-1"  # what most clients of OpenAI's ask for, or offer for choice
WHISPER_HOP: Final = SAMPLE_RATE // 100  # samples: Whisper counts ``seek`` in frames of 10 ms

MEDIA_TYPES: Final = {
    ResponseFormat.JSON: "application/json",
    ResponseFormat.TEXT: "text/plain",
    ResponseFormat.VERBOSE_JSON: "application/json",
    ResponseFormat.SRT: "text/plain",  # as OpenAI has it; browsers show it
    ResponseFormat.VTT: "text/vtt",
}

Object = dict[str, Any]  # of JSON


# ---------------------------------------------------------------- a transcript


def result(transcript: FileTranscript, request: FileRequest) -> Object | str:
    """The transcript as it was asked for: an object for the JSON formats, else the text of the file."""
    match request.response_format:
        case ResponseFormat.JSON:
            return {"text": transcript.text, "usage": usage(transcript)}
        case ResponseFormat.TEXT:
            return f"{transcript.text}\n"
        case ResponseFormat.VERBOSE_JSON:
            return _verbose(transcript, request)
        case ResponseFormat.SRT:
            return srt(cue for part in _timed(transcript) for cue in cues(part.words))
        case ResponseFormat.VTT:
            return vtt(cue for part in _timed(transcript) for cue in cues(part.words))


def body(transcript: FileTranscript, request: FileRequest) -> tuple[str, str]:
    """Media type and text, to be sent as UTF-8."""
    found = result(transcript, request)
    return MEDIA_TYPES[request.response_format], found if isinstance(found, str) else dumps(found)


def usage(transcript: FileTranscript) -> Object:
    return {"type": "duration", "seconds": math.ceil(transcript.duration_s)}  # begun ones count, as OpenAI's


def dumps(value: Object | str) -> str:
    """In a quarter of `json`'s time: hours of speech are megabytes. No number may be NaN: it would be null."""
    return msgspec.json.encode(value).decode()


@dataclass(frozen=True, slots=True)
class _Timed:
    part: FileSlice
    segment: Segment
    words: tuple[Said, ...]  # in the file's time


def _timed(transcript: FileTranscript) -> Iterator[_Timed]:
    """Where there is text. A segment that was too short for times of its words is one word."""
    for part in transcript.slices:
        start_ms = ms(part.start_sample)
        for segment in part.hypothesis.segments if part.hypothesis.text.strip() else ():
            found = [(word.word, word.start_s, word.end_s) for word in segment.words]
            words = found or [(segment.text, segment.start_s, segment.end_s)]
            yield _Timed(
                part,
                segment,
                tuple(Said(text, start_ms + round(a * 1000), start_ms + round(b * 1000)) for text, a, b in words),
            )


def _verbose(transcript: FileTranscript, request: FileRequest) -> Object:
    timed = list(_timed(transcript))
    segments = [(each, cue) for each in timed for cue in cues(each.words)]
    found: Object = {
        "task": request.task,
        "language": _language(transcript, request),
        "duration": transcript.duration_s,
        "text": transcript.text,
        "usage": usage(transcript),
    }
    if Granularity.SEGMENT in request.granularities:
        found["segments"] = [_segment(n, each, cue) for n, (each, cue) in enumerate(segments)]
    if Granularity.WORD in request.granularities:
        found["words"] = [
            {"word": word.text.strip(), "start": word.start_ms / 1000, "end": word.end_ms / 1000}
            for each in timed
            for word in each.words
        ]
    return found


def _segment(n: int, timed: _Timed, cue: Said) -> Object:
    """One cue; what the recognizer thinks, it thinks of the slice's whole text.

    Raises: ValueError: a number that JSON has not; the worker lets none pass.
    """
    segment = timed.segment
    if not all(map(math.isfinite, (segment.avg_logprob, segment.compression_ratio, segment.no_speech_prob))):
        raise ValueError("a number is not JSON compliant")
    return {
        "id": n,
        "seek": timed.part.start_sample // WHISPER_HOP,
        "start": cue.start_ms / 1000,
        "end": cue.end_ms / 1000,
        "text": cue.text,  # with the blank before it, as Whisper's: they are joined by nothing
        "tokens": [],  # OpenAI's clients take no null; ours never leave the worker
        "temperature": 0.0,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def _language(transcript: FileTranscript, request: FileRequest) -> str:
    """Its English name: of the text where it is a translation, else what was told, or heard for most of the time."""
    if request.task == "translate":
        return NAMES["en"]
    heard: Counter[str] = Counter()
    for part in transcript.slices:
        if part.hypothesis.text.strip():
            heard[part.hypothesis.language] += part.end_sample - part.start_sample
    [(most, _)] = heard.most_common(1) or [("", 0)]  # OpenAI's clients take no null
    code = request.language or most
    return NAMES.get(code, code)


# ---------------------------------------------------------------- a stream


def sse(event: Object) -> bytes:
    """One server-sent event. The type is in it, as OpenAI's clients read it."""
    return f"data: {dumps(event)}\n\n".encode()  # JSON has no line break of its own


def delta_event(part: FileSlice, *, is_first: bool, done_s: float, duration_s: float | None) -> Object:
    """What a slice adds to the text.

    Args:
        is_first: no text came before it; so all deltas together are the text of `done_event`.
        done_s: seconds of audio that have their text, this slice included.
        duration_s: of all audio; None: not known yet.
    """
    text = delta(part)
    return {
        "type": "transcript.text.delta",
        "delta": text.lstrip() if is_first else text,
        "progress": {"seconds": done_s, "duration": duration_s},
    }


def done_event(transcript: FileTranscript, request: FileRequest) -> Object:
    """The last one: the text, and beside it what was asked for where that is more."""
    event = {"type": "transcript.text.done", "text": transcript.text, "usage": usage(transcript)}
    if request.response_format not in (ResponseFormat.JSON, ResponseFormat.TEXT):
        event["result"] = result(transcript, request)
    return event


# ---------------------------------------------------------------- an error

_TYPES: Final = {  # by status; the rest is the caller's mistake below 500, and ours from there
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    410: "not_found_error",
    429: "rate_limit_error",
}


def error_body(status: int, code: str, message: str, param: str | None = None, *, shed: Shed | None = None) -> Object:
    """The answer's body, and the stream's last event where it breaks off: OpenAI's clients raise on ``error``.

    Args:
        shed: where it is a refusal: when to ask again, and how full it is.
    """
    type_ = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    found: Object = {"error": {"message": message, "type": type_, "param": param, "code": code}}
    if shed is not None:
        found |= {
            "retry_after_ms": _retry_after_ms(shed),
            "estimated_wait_ms": round(shed.estimated_wait_s * 1000),
            "queue_depth": shed.queue_depth,
        }
    return found


def refusal_headers(shed: Shed) -> dict[str, str]:
    """When to ask again: for everybody in whole seconds; for OpenAI's clients exactly, and that it is worth it."""
    retry_after_ms = _retry_after_ms(shed)
    return {
        "Retry-After": str(math.ceil(retry_after_ms / 1000)),
        "retry-after-ms": str(retry_after_ms),
        "x-should-retry": "true",
    }


def _retry_after_ms(shed: Shed) -> int:
    """HTTP's clients know no rule for a model that loads, which those of the WebSocket keep by themselves."""
    return round(retry_wait_s(shed.reason, shed.retry_after_s, shed.estimated_wait_s) * 1000)


# ---------------------------------------------------------------- the models


def models_body(model_name: str, created: int) -> Object:
    """The one that is served, under both its names. ``created``: Unix seconds."""
    names = dict.fromkeys((model_name, MODEL_ALIAS))
    models = [{"id": name, "object": "model", "created": created, "owned_by": "asr-ws"} for name in names]
    return {"object": "list", "data": models}
