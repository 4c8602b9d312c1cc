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
    cue: list[Said] = []
    for word in words:
        if cue and (len(_text([*cue, word]).strip()) > MAX_CUE_CHARS or cue[-1].text.endswith(SENTENCE_ENDS)):
            yield _joined(cue)
            cue = []
        cue.append(word)
    if cue:
        yield _joined(cue)


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


def _joined(words: list[Said]) -> Said:
    return Said(_text(words), words[0].start_ms, words[-1].end_ms)


def _text(words: list[Said]) -> str:
    return "".join(word.text for word in words)
