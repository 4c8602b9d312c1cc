"""What a sentence asks an assistant for: English text in, an `Intent` out. Pure.

Whisper writes "Set a timer for 5 minutes.", "set a timer for five minutes" and "Set a five-minute timer": all are the
same here. To teach it something new, add a class to `Intent`, a line to `parse`, and a `case` to `Assistant.act`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import groupby

ROOMS = ("kitchen", "living room", "bedroom", "bathroom", "hall")
DIM = 30  # percent, where none is said
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBERS = {word: n for n, word in enumerate(ONES + TEENS)} | {word: 10 * n for n, word in enumerate(TENS, 2)}
UNITS_S = {"second": 1, "minute": 60, "hour": 3600}
DURATION = r"(\d+(?:\.\d+)?) (second|minute|hour)s?\b"
FRACTIONS = {"half": ".5", "quarter": ".25"}
CANCEL = (
    r"(cancel|stop|delete|clear|remove|forget|never ?mind|(turn|switch) off)( (the|my|that|[\d.]+|second|minute|hour))*"
)
TIME = r"what (the )?time (is|is it|it is|do you have)|(whats|what is|tell me|have|got|know) the (current |exact )?time"
REWRITES = (  # in this order, upon lower case
    (r"['’]", ""),
    (r"%", " percent"),
    (r"[^\w.]|\.(?!\d)", " "),  # what is left of punctuation is the point of 1.5
    (r"\bthree quarters of an (?=hour)", "0.75 "),
    (
        r"\b(half|quarter) (?:of )?an? (?=hour|minute)|(?<!and )(?<!and a )\b(half|quarter) (?=hour|minute)",
        lambda match: f"0{FRACTIONS[match[1] or match[2]]} ",
    ),
    (r"\ban? (?=second|minute|hour|hundred)", "1 "),
    (r"\b\w+\b", lambda match: str(NUMBERS.get(match[0], match[0]))),
    (r"\b([2-9]0) ([1-9])\b", lambda match: str(int(match[1]) + int(match[2]))),
    (r"\b([1-9]) hundred\b(?: and)?(?: (\d\d?)\b)?", lambda match: str(int(match[1]) * 100 + int(match[2] or 0))),
    (
        r"\b(\d+)( second| minute| hour)?s? and (?:a )?(half|quarter)\b",
        lambda match: f"{match[1]}{FRACTIONS[match[3]]}{match[2] or ''}",
    ),
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


def parse_all(text: str) -> list[Intent]:
    """What each sentence asks for, but what "stop" takes back. Whisper may write one twice: it counts once."""
    intents = [intent for intent, _ in groupby(map(parse, re.split(r"(?<=[.?!])\s+", text.strip())))]
    n_stopped = max((n for n, intent in enumerate(intents) if intent == Stop()), default=0)
    return intents[n_stopped:]


def parse(text: str) -> Intent:
    """What one sentence asks for, in whatever case and punctuation, with numbers as words or digits."""
    said = text.lower()
    for pattern, replacement in REWRITES:
        said = re.sub(pattern, replacement, said)
    said = " ".join(said.split())

    def has(pattern: str) -> bool:
        return re.search(rf"\b({pattern})\b", said) is not None

    if re.fullmatch(
        r"(please |no |okay |ok )*((stop|never ?mind|forget it|be quiet|cancel)( that| it| please)* ?)+", said
    ):
        return Stop()
    if has("dont|do not") or re.search(r"\d{7}", said):  # nobody says such a number: the model has made it up
        return NotUnderstood()
    if has("lights?|lamps?"):
        n_ways = has("on") + has("off|out") + has("dim")
        if has(rf"except|but|{DURATION}|at \d+\b(?! percent)|percent .* percent") or n_ways > 1:
            return NotUnderstood()  # rather than the half of it, or now
        rooms = tuple(room for room in ROOMS if has(room)) or (ROOMS if has("all|every|everywhere") else ())
        if percent := re.search(r"\b(\d+) percent|\bto (\d+)\b", said):
            return SetLights(rooms, min(int(percent[1] or percent[2]), 100))
        if has("is|are"):
            return AskLights(rooms)
        if has("dim"):
            return SetLights(rooms, DIM)
        if has("off|out"):
            return SetLights(rooms, 0)
        return SetLights(rooms, 100) if has("on") else NotUnderstood()
    if has("timer"):
        if has(f"{CANCEL} timer|timer off"):
            return CancelTimer()
        if has("left|remaining|how (long|much|many)|running|when (does|will|is)|is (the|my) timer"):
            return AskTimer()
        lasts = re.search(rf"\b{DURATION}(?: (?:and )?{DURATION})*", said)
        if not lasts:
            return SetTimer(0) if has("set|start|make|give|need|want") else NotUnderstood()
        return SetTimer(sum(float(number) * UNITS_S[unit] for number, unit in re.findall(DURATION, lasts[0])))
    if has("how (long|much|many) .*(left|remaining)"):
        return AskTimer()
    # To the end, and without "in": it is asked for this place's time.
    is_time = re.search(rf"\b({TIME})( (now|right now|please|exactly|thanks|thank you))*$", said) and not has("in")
    return AskTime() if is_time else NotUnderstood()


def in_words(seconds: float) -> str:
    """Such as "1 minute and 30 seconds"; rounded up, so that what is left is never nothing."""
    minutes, s = divmod(math.ceil(seconds), 60)
    parts = [(minutes // 60, "hour"), (minutes % 60, "minute"), (s, "second")]
    return " and ".join(f"{n} {unit}{'s' * (n != 1)}" for n, unit in parts if n) or "0 seconds"
