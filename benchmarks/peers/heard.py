"""What a client was told of one clip, and the figures that come of that alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise
from statistics import median
from typing import Any, Final, Literal

from asr_ws.testing import wer

MAX_WRONG: Final = 0.3  # of the words: more than tiny.en mistakes in these recordings, less than another voice makes


@dataclass(frozen=True, slots=True)
class Shown:
    """All text that a client shows from a moment on. ``final``: all of it is, and nothing that was begun is missing."""

    text: str
    final: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """``words``: the server's, as they came."""

    words: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """A clip and what of it is speech, seconds from its beginning. ``stops_s``: where speech pauses, and ends."""

    name: str
    said: str
    onset_s: float
    stops_s: tuple[float, ...]

    @property
    def end_s(self) -> float:
        return self.stops_s[-1]


@dataclass(slots=True)
class Heard:
    """One client with one clip, in seconds from the clip's beginning.

    Attributes:
        shown: each text, when it came, also where it did not change.
        refused: in which the server said that it does not do it now.
        ended: how the connection ended, where the server ended it.
        late_s: by how much a frame was sent late, at most: the client had no core, or the server did not read.
    """

    clip: Spoken
    connected_s: float = 0.0  # before the clip's beginning, so at most 0
    shown: list[tuple[float, Shown]] = field(default_factory=list)
    refused: list[tuple[float, Refused]] = field(default_factory=list)
    ended: tuple[float, str] | None = None
    late_s: float = 0.0

    @property
    def text(self) -> str:
        """What it finally said."""
        return self.shown[-1][1].text if self.shown else ""

    @property
    def final_ms(self) -> float | None:
        """From the end of speech until all text was final and stayed as it was; None: it never was."""
        at = None
        for when, each in reversed(self.shown):
            if not each.final or each.text != self.text:
                break
            at = when
        return self._after_ms(at, self.clip.end_s) if self.text else None

    @property
    def last_change_ms(self) -> float | None:
        """From the end of speech until the words that were shown changed for the last time."""
        return self._after_ms(changes[-1][0] if (changes := self._changes()) else None, self.clip.end_s)

    @property
    def first_ms(self) -> float | None:
        """From the onset of speech to the first words."""
        return self._after_ms(changes[0][0] if (changes := self._changes()) else None, self.clip.onset_s)

    @property
    def refusal(self) -> tuple[str, str, float] | None:
        """The first: its words, what it came after, and how many ms after that.

        What it came after is the client's last stop in speech, or its connecting where there was none.
        """
        if not self.refused:
            return None
        at, refused = self.refused[0]
        stops = [stop for stop in self.clip.stops_s if stop <= at]
        began, what = (stops[-1], "speech") if stops else (self.connected_s, "connecting")
        return refused.words, what, round((at - began) * 1000, 1)

    @property
    def errors(self) -> wer.WordErrors:
        return wer.word_errors(self.clip.said, self.text)

    @property
    def verdict(self) -> Literal["right", "in part", "wrong", "silent"]:
        """Whether the text is that of this clip, or lacks much of it, or has words of something else."""
        if not (heard := wer.words(self.text)):
            return "silent"
        if self.errors.rate <= MAX_WRONG:
            return "right"
        n_changed, _ = flicker([heard, wer.words(self.clip.said)])
        return "wrong" if n_changed / len(heard) > MAX_WRONG else "in part"

    def flicker(self) -> tuple[int, int]:
        """How many words were shown and later changed or taken away, and how many were shown."""
        return flicker([wer.words(each.text) for _, each in self.shown])

    def is_settled(self, now_s: float, quiet_s: float) -> bool:
        """Everything is final, and has been so for a while."""
        final_ms = self.final_ms
        return final_ms is not None and self.clip.end_s + final_ms / 1000 <= now_s - quiet_s

    def _changes(self) -> list[tuple[float, list[str]]]:
        """The words that were shown, and since when."""
        found: list[tuple[float, list[str]]] = []
        for at, each in self.shown:
            if (words := wer.words(each.text)) != (found[-1][1] if found else []):
                found.append((at, words))
        return found

    @staticmethod
    def _after_ms(at_s: float | None, began_s: float) -> float | None:
        return None if at_s is None else (at_s - began_s) * 1000


def flicker(texts: Iterable[Sequence[str]]) -> tuple[int, int]:
    """Of one text after the other, in words: how many were changed or taken away, and how many were shown in all.

    A word that only moves because another came or went before it is neither (longest matching blocks, `difflib`).
    """
    n_changed = n_shown = 0
    for before, after in pairwise([[], *texts]):
        blocks = SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
        n_kept = sum(block.size for block in blocks)
        n_changed += len(before) - n_kept
        n_shown += len(after) - n_kept
    return n_changed, n_shown


def one_by_one(heard: Sequence[Heard]) -> dict[str, Any]:
    """For the report: of clips that were played one after the other to a server with nothing else to do."""
    changed, shown = (sum(each) for each in zip(*(one.flicker() for one in heard), strict=True))
    errors = wer.total(each.errors for each in heard)
    return {
        "clips": len(heard),
        "final_ms": _middle(each.final_ms for each in heard),
        "last_change_ms": _middle(each.last_change_ms for each in heard),
        "first_ms": _middle(each.first_ms for each in heard),
        "word_errors": round(errors.rate, 4),
        "flicker": round(changed / shown, 4) if shown else None,
    }


def together(heard: Sequence[Heard], within_s: float) -> dict[str, Any]:
    """For the report: of clients at the same time, each with a clip of its own.

    Served is who has a text of his own clip that was final within that time of the end of his speech.
    """
    finals = [each.final_ms for each in heard if each.verdict == "right" and each.final_ms is not None]
    in_time = [each for each in finals if each <= within_s * 1000]
    refusals = sorted((each.refusal for each in heard if each.refusal), key=lambda refusal: refusal[2])
    return {
        "clients": len(heard),
        "served": len(in_time),
        "final_ms": _middle(in_time),
        "texts": dict(Counter(each.verdict for each in heard)),
        "refused": len(refusals),
        "refusal": dict(zip(("words", "after", "ms"), refusals[len(refusals) // 2], strict=True)) if refusals else None,
        "late_ms": round(1000 * max(each.late_s for each in heard)),
        "ended": sorted({each.ended[1] for each in heard if each.ended}),
    }


def _middle(values: Iterable[float | None]) -> dict[str, float] | None:
    known = [each for each in values if each is not None]
    return {"n": len(known), "p50": round(median(known), 1), "max": round(max(known), 1)} if known else None
