"""Subtitles of timed words, as SRT and WebVTT. One rule for what a client writes and for what the server answers.

A cue ends with its sentence, and where it would be too long to be read at a glance. Times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Final

MAX_CUE_CHARS: Final = 84  # two lines of 42, as broadcasters have it
SENTENCE_ENDS: Final = (".", "?", "!", "。", "？", "！")


@dataclass(frozen=True, slots=True)
class Said:
    """A word, or a cue: its text, with the blank before it where there is one, and when it was said."""

    text: str
    start_ms: int
    end_ms: int


def cues(words: Iterable[Said]) -> Iterator[Said]:
    """Args: words: of one utterance, in their order. A single word too long for a cue is one all the same."""
    cue: Said | None = None
    for word in words:
        if cue is None:
            cue = word
        elif cue.text.endswith(SENTENCE_ENDS) or len((cue.text + word.text).strip()) > MAX_CUE_CHARS:
            yield cue
            cue = word
        else:
            cue = Said(cue.text + word.text, cue.start_ms, word.end_ms)
    if cue is not None:
        yield cue


def srt(cues: Iterable[Said]) -> str:
    # The format has no way to write an arrow in a text; Whisper's own writer does the same.
    return "".join(
        f"{number}\n{_span(cue, ',')}\n{cue.text.strip().replace('-->', '->')}\n\n"
        for number, cue in enumerate(cues, 1)
    )


def vtt(cues: Iterable[Said]) -> str:
    return "".join(["WEBVTT\n\n", *(f"{_span(cue, '.')}\n{escape(cue.text.strip(), quote=False)}\n\n" for cue in cues)])


def clock(total_ms: int, decimal: str = ".") -> str:
    seconds, ms = divmod(total_ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{decimal}{ms:03}"


def _span(cue: Said, decimal: str) -> str:
    return f"{clock(cue.start_ms, decimal)} --> {clock(cue.end_ms, decimal)}"
