"""Word error rate: how far a text is from what was said.

Compared in lower case without punctuation, digits as words ("oh" as zero), common contractions and titles written out,
so that only the recognition counts and not the spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_DIGITS = dict(enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))
_SPELLINGS = {
    "oh": "zero",
    "mr": "mister",
    "mrs": "missus",
    "i'm": "i am",
    "we're": "we are",
    "you're": "you are",
    "they're": "they are",
    "it's": "it is",
    "don't": "do not",
    "can't": "cannot",
}
_WORD = re.compile(r"\d|[^\W\d_]+(?:'[^\W\d_]+)*")


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Substitutions, insertions and deletions, against the words that were said."""

    errors: int
    words: int

    @property
    def rate(self) -> float:
        return self.errors / self.words if self.words else float(self.errors > 0)

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(self.errors + other.errors, self.words + other.words)


def words(text: str) -> list[str]:
    """The words that count, normalised."""
    found = _WORD.findall(text.lower().replace("’", "'"))
    return [part for word in found for part in _SPELLINGS.get(word, _digit(word)).split()]


def _digit(word: str) -> str:
    return _DIGITS[int(word)] if word.isdecimal() else word


def word_errors(said: str, heard: str) -> WordErrors:
    reference, hypothesis = words(said), words(heard)
    return WordErrors(_distance(reference, hypothesis), len(reference))


def total(errors: Iterable[WordErrors]) -> WordErrors:
    return sum(errors, WordErrors(0, 0))


def _distance(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein's, on words."""
    row = list(range(len(hypothesis) + 1))
    for i, said in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, heard in enumerate(hypothesis, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (said != heard))
    return row[-1]
