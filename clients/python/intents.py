"""What a sentence asks an assistant for: English text in, an `Intent` out. Pure.

Whisper writes "Set a timer for 5 minutes.", "set a timer for five minutes" and "Set a five-minute timer": all are the
same here. To teach it something new, add a class to `Intent`, a line to `parse`, and a `case` to `Assistant.act`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

ROOMS = ("kitchen", "living room", "bedroom", "bathroom", "hall")
DIM = 30  # percent, where none is said
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBERS = {word: n for n, word in enumerate(ONES + TEENS)} | {word: 10 * n for n, word in enumerate(TENS, 2)}
UNITS_S = {"second": 1, "minute": 60, "hour": 3600}
DURATION = r"(\d+(?:\.\d+)?) (second|minute|hour)s?\b"
REWRITES = (  # in this order, upon lower case
    (r"['’]", ""),
    (r"%", " percent"),
    (r"[^\w.]|\.(?!\d)", " "),  # what is left of punctuation is the point of 1.5
    (r"(?<!and a )\bhalf (an? )?(?=hour|minute)", "0.5 "),
    (r"\ban? (?=second|minute|hour|hundred)", "1 "),
    (r"\b\w+\b", lambda match: str(NUMBERS.get(match[0], match[0]))),
    (r"\b([2-9]0) ([1-9])\b", lambda match: str(int(match[1]) + int(match[2]))),
    (r"\b([1-9]) hundred\b(?: and)?(?: (\d\d?)\b)?", lambda match: str(int(match[1]) * 100 + int(match[2] or 0))),
    (r"\b(\d+) and a half\b", r"\1.5"),
    (r"\b(\d+) (second|minute|hour)s? and a half\b", r"\1.5 \2"),
)


@dataclass(frozen=True, slots=True)
class SetLights:
    rooms: tuple[str, ...]  # none: it was not said which
    percent: int


@dataclass(frozen=True, slots=True)
class AskLights:
    rooms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetTimer:
    seconds: float  # 0: it was not said for how long


@dataclass(frozen=True, slots=True)
class CancelTimer: ...


@dataclass(frozen=True, slots=True)
class AskTimer: ...


@dataclass(frozen=True, slots=True)
class AskTime: ...


@dataclass(frozen=True, slots=True)
class Stop: ...


@dataclass(frozen=True, slots=True)
class NotUnderstood: ...


Intent = SetLights | AskLights | SetTimer | CancelTimer | AskTimer | AskTime | Stop | NotUnderstood


def parse(text: str) -> Intent:
    """What a sentence asks for, in whatever case and punctuation, with numbers as words or digits."""
    said = text.lower()
    for pattern, replacement in REWRITES:
        said = re.sub(pattern, replacement, said)
    said = " ".join(said.split())

    def has(pattern: str) -> bool:
        return re.search(rf"\b({pattern})\b", said) is not None

    if re.fullmatch(r"(please |no )*((stop|never ?mind|forget it|be quiet|cancel)( that| it| please)* ?)+", said):
        return Stop()
    if has("dont|do not"):
        return NotUnderstood()
    if has("lights?|lamps?"):
        rooms = ROOMS if has("all|every|everywhere") else tuple(room for room in ROOMS if has(room))
        if percent := re.search(r"\b(\d+) percent|\bto (\d+)\b", said):
            return SetLights(rooms, min(int(percent[1] or percent[2]), 100))
        if has("is|are"):
            return AskLights(rooms)
        if has("dim"):
            return SetLights(rooms, DIM)
        if has("off|out"):
            return SetLights(rooms, 0)
        return SetLights(rooms, 100) if has("on") else NotUnderstood()
    if has("left|remaining|how long|how much time"):
        return AskTimer()
    if has("timer"):
        if has("cancel|stop|delete|clear|turn off"):
            return CancelTimer()
        lasts = re.search(rf"\b{DURATION}(?: (?:and )?{DURATION})*", said)  # once: Whisper may write a sentence twice
        parts = re.findall(DURATION, lasts[0]) if lasts else []
        return SetTimer(sum(float(number) * UNITS_S[unit] for number, unit in parts))
    return AskTime() if has("time") and has("what|whats|tell|have|got") else NotUnderstood()


def in_words(seconds: float) -> str:
    """Such as "1 minute and 30 seconds"; rounded up, so that what is left is never nothing."""
    minutes, s = divmod(math.ceil(seconds), 60)
    parts = [(minutes // 60, "hour"), (minutes % 60, "minute"), (s, "second")]
    return " and ".join(f"{n} {unit}{'s' * (n != 1)}" for n, unit in parts if n) or "0 seconds"
