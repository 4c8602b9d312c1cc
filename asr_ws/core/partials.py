"""The text of an utterance that is still being spoken: a stable part that only grows, and an unstable rest.

Each partial decode is forced to begin with the stable text, and gives what follows it. What two consecutive decodes
agree on, case and punctuation apart, becomes stable; the last word never does, because it may be half a word
(LocalAgreement-2 after Macháček, Dabre and Bojar, "Turning Whisper into Real-Time Transcription System", 2023).
Stable text can be wrong, but it does not change; the `final` replaces all of it.
"""

from __future__ import annotations

import re
from itertools import takewhile

# Scripts written without blanks, where each character counts as a word: Thai to Khmer, kana, ideographs.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+)[^\w\s]*")


def words(text: str) -> list[str]:
    """Words with the blanks before them and the punctuation behind; joined they are the text, less its last blanks."""
    return _WORD.findall(text)


def _key(word: str) -> str:
    """Two words with the same key agree."""
    return "".join(filter(str.isalnum, word.casefold()))


class PartialText:
    """What a listener is shown of one utterance: ``stable + unstable``."""

    def __init__(self) -> None:
        self.stable = ""
        self.unstable = ""

    def receive(self, continuation: str) -> bool:
        """What a decode gave after the stable text. Returns: whether there is something new to show."""
        before, found = words(self.unstable), words(continuation if self.stable else continuation.lstrip())
        agreed = takewhile(lambda pair: _key(pair[0]) == _key(pair[1]), zip(before, found[:-1], strict=False))
        n_agreed = sum(1 for _ in agreed)
        shown = self.stable, self.unstable
        self.stable += "".join(found[:n_agreed])
        self.unstable = "".join(found[n_agreed:])
        return shown != (self.stable, self.unstable)

    def receive_whole(self, text: str) -> bool:
        """What a decode gave that was not forced; it counts only where it begins with the stable text."""
        stable, found = words(self.stable), words(text.strip())
        if [_key(word) for word in stable] != [_key(word) for word in found[: len(stable)]]:
            return False
        return self.receive("".join(found[len(stable) :]))
