"""A whole file: what is asked of it, and what it came to.

A file of at most `SHORT_S` seconds is one utterance. A longer one is cut at its pauses into slices of at most as long
(`asr_ws.core.slices`), each decoded as an utterance of its own, in the background of what is spoken live.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from asr_ws.core.types import SAMPLE_RATE, DecodeOptions, Hypothesis

SHORT_S = 30  # Whisper's window
MAX_SLICE = SHORT_S * SAMPLE_RATE  # samples


class ResponseFormat(StrEnum):
    """The values are OpenAI's."""

    JSON = "json"
    TEXT = "text"
    VERBOSE_JSON = "verbose_json"
    SRT = "srt"
    VTT = "vtt"


class Granularity(StrEnum):
    """What `ResponseFormat.VERBOSE_JSON` tells times of; the values are OpenAI's."""

    SEGMENT = "segment"
    WORD = "word"


@dataclass(frozen=True, slots=True)
class FileRequest:
    """What a caller asks of a file."""

    task: str = "transcribe"  # or "translate"
    language: str | None = None  # None: detect
    prompt: str | None = None
    hotwords: str | None = None
    response_format: ResponseFormat = ResponseFormat.JSON
    granularities: frozenset[Granularity] = frozenset({Granularity.SEGMENT})
    stream: bool = False  # server-sent events
    max_wait_ms: int | None = None  # for the model, of a short file; None: the server's

    @property
    def options(self) -> DecodeOptions:
        """Segments are cut from their words, so whoever wants either needs those."""
        words = self.response_format not in (ResponseFormat.JSON, ResponseFormat.TEXT)
        return DecodeOptions(self.language, self.task, self.prompt, self.hotwords, words)


@dataclass(frozen=True, slots=True)
class FileSlice:
    """What one decode of a file came to: ``start_sample..end_sample`` of it; times within count from its start."""

    start_sample: int
    end_sample: int
    hypothesis: Hypothesis


@dataclass(frozen=True, slots=True)
class FileTranscript:
    """What a file came to. ``n_samples``: of all its audio."""

    slices: tuple[FileSlice, ...]
    n_samples: int

    @property
    def duration_s(self) -> float:
        return self.n_samples / SAMPLE_RATE

    @property
    def text(self) -> str:
        return "".join(delta(each) for each in self.slices).strip()


def delta(part: FileSlice) -> str:
    """What a slice adds to the text before it; the whole begins with a blank too many."""
    text = part.hypothesis.text.strip()
    return f" {text}" if text else ""
