"""What `asr-ws top` shows, made from what it saw. No I/O and no clock.

Counters are compared within one run of the server only: one that began anew counts from 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Final

import msgspec
from rich.text import Text

from asr_ws.errors import printable

LABEL: Final = 10  # cells, of the first column
MAX_BAR: Final = 30  # cells
BLOCKS: Final = " ▁▂▃▄▅▆▇█"  # a cell that is more and more full
ASCII_BLOCKS: Final = " .:-=+*%#"
GAP: Final = 9  # rank of a blank line: the first to go where there is no room
STATES: Final = {"ready": "green", "unavailable": "bold red"}  # all others pass: yellow
KINDS: Final = ("final", "partial", "job")
UTTERANCES: Final = "asr_ws_utterances_total"
REFUSALS: Final = "asr_ws_refusals_total"
DECODES: Final = "asr_ws_decode_seconds"
UNFINISHED: Final = ("deadline", "worker_crashed", "worker_hung")  # the reasons of `retry`; the others are of `busy`
COUNTS: Final[tuple[tuple[int, str, str, str, Callable[[str], bool]], ...]] = (  # rank, label, style, metric, of it
    (1, "finals", "green", UTTERANCES, lambda outcome: outcome == "final"),
    (1, "busy", "yellow", REFUSALS, lambda reason: reason not in UNFINISHED),
    (3, "retries", "yellow", REFUSALS, lambda reason: reason in UNFINISHED),
    (3, "dropped", "yellow", UTTERANCES, lambda outcome: outcome == "dropped"),
    (2, "errors", "bold red", UTTERANCES, lambda outcome: outcome == "error"),
)
LOOKS: Final = 60  # that are remembered, and shown as a line of blocks
RESTARTS: Final = "asr_ws_worker_restarts_total"
AUDIO: Final = "asr_ws_audio_seconds_total"
LABELLED: Final = (UTTERANCES, REFUSALS, RESTARTS, AUDIO)  # by one label each
ALWAYS: Final = (UTTERANCES, REFUSALS, AUDIO)  # from the beginning, with zeros
MOST: Final = 10**15  # of anything that is counted; floats count exactly to there
_SAMPLE: Final = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL: Final = re.compile(r'\b\w+="((?:[^"\\]|\\.){0,100})"')  # a longer one is none

# Name -> values of its labels, in their order -> value.
Metrics = Mapping[str, Mapping[tuple[str, ...], float]]
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Number = Annotated[float, msgspec.Meta(ge=0, le=MOST)]
Word = Annotated[str, msgspec.Meta(pattern=r"^\w{1,40}\Z")]


class Stats(msgspec.Struct, frozen=True):
    """What is shown of /v1/stats. What no server can mean is refused here, and not looked for where it is shown."""

    state: Word
    model: str
    uptime_s: Number
    queue_depth: Count
    queue_capacity: Count
    avg_wait_ms: Number
    p95_wait_ms: Number
    sessions: Count
    worker_pid: Count | None
    max_concurrent_decodes: Count
    background_depth: Count = 0
    decoding: Word | None = None
    jobs: dict[Word, Count] = {}


@dataclass(frozen=True, slots=True)
class Look:
    """What a server said of itself. ``at_s``: monotonic."""

    at_s: float
    stats: Stats
    metrics: Metrics

    def by(self, name: str) -> dict[str, float]:
        """A metric by the values of its one label."""
        return {labels[0]: value for labels, value in self.metrics.get(name, {}).items()}


@dataclass(frozen=True, slots=True)
class Missed:
    """It gave no answer."""

    reason: str


Seen = Sequence[Look | Missed]


def parse_metrics(text: str) -> Metrics:
    """As this server writes them: without timestamps. Raises: ValueError: it did not."""
    metrics: dict[str, dict[tuple[str, ...], float]] = {}
    for line in printable(text, None, lines=True).split("\n"):
        if (sample := _SAMPLE.fullmatch(line)) is None:
            continue
        name, labels, value = sample[1], tuple(_LABEL.findall(sample[2] or "")), float(sample[3])
        is_bound = not name.endswith("_bucket") or (labels and float(labels[-1]) >= 0)
        if not (abs(value) <= MOST and is_bound and (name not in LABELLED or len(labels) == 1)):  # also NaN
            raise ValueError(f"{name} is none of its metrics")
        metrics.setdefault(name, {})[labels] = value
    return metrics


def whole_metrics(text: str) -> Metrics:
    """`parse_metrics` of a whole answer. Raises: ValueError: also where something is not there that always is."""
    metrics = parse_metrics(text)
    if missing := [name for name in ALWAYS if name not in metrics]:
        raise ValueError(f"{missing[0]} is not there")
    return metrics


# ---------------------------------------------------------------- numbers


def latest_run(seen: Seen) -> list[Look]:
    """Of the server as it runs now, and not before it began anew; oldest first."""
    looks = [each for each in seen if isinstance(each, Look)]
    for i in range(len(looks) - 1, 0, -1):
        if looks[i].stats.uptime_s < looks[i - 1].stats.uptime_s:
            return looks[i:]
    return looks


def quantile(q: float, cumulative: Sequence[tuple[float, float]]) -> float | None:
    """By straight lines within buckets, as Prometheus' histogram_quantile; None: nothing was observed.

    Args: cumulative: each bucket's upper bound, and how many lie in it or below; the last bound is infinite.
    """
    if not cumulative or (rank := q * cumulative[-1][1]) <= 0:
        return None
    lower, below = 0.0, 0.0
    for bound, count in cumulative[:-1]:
        if count >= rank:
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower


def buckets(name: str, now: Look, before: Look | None, labels: tuple[str, ...] = ()) -> list[tuple[float, float]]:
    """As `quantile` takes them: of what a histogram observed since ``before``, or ever."""
    old = before.metrics.get(f"{name}_bucket", {}) if before is not None else {}
    new = now.metrics.get(f"{name}_bucket", {})
    return [(float(key[-1]), n - old.get(key, 0)) for key, n in new.items() if key[:-1] == labels]


def mean(name: str, now: Look, before: Look | None, labels: tuple[str, ...]) -> tuple[int, float]:
    """How many a histogram observed since ``before``, or ever, and what they come to on average."""
    n, total = (
        now.metrics.get(f"{name}_{what}", {}).get(labels, 0)
        - (before.metrics.get(f"{name}_{what}", {}).get(labels, 0) if before is not None else 0)
        for what in ("count", "sum")
    )
    return round(n), total / n if n else 0.0


# ---------------------------------------------------------------- lines


@dataclass(frozen=True, slots=True)
class Line:
    """``rank``: the greatest go first where there is no room."""

    rank: int
    text: Text


def fit(lines: Sequence[Line], height: int) -> list[Line]:
    """As many as there is room for, in their order."""
    kept = sorted(range(len(lines)), key=lambda i: lines[i].rank)[:height]
    return [lines[i] for i in sorted(kept)]


def page(
    last: Look, seen: Seen, now: float, url: str, width: int, *, is_live: bool, blocks: str = BLOCKS
) -> list[Line]:
    """All that there is to show.

    Args:
        last: the latest one, however long ago.
        seen: the latest, oldest first.
        now: monotonic seconds.
        is_live: there will be more, so it is about the time that is seen; else about all since the server's start.
        blocks: a cell, more and more full.
    """
    run = latest_run(seen) or [last]
    before = run[0] if is_live else None
    missed = seen[-1] if isinstance(seen[-1], Missed) else None
    lines = [
        *_now(last, missed, now, url, width, blocks),
        *_counts(last, run[-2] if len(run) > 1 and missed is None else None),
        *_decodes(last, before),
        *_process(last, before),
        *(_history(last, seen, width - LABEL, blocks) if is_live else ()),
    ]
    for line in lines[2:] if missed is not None else ():
        line.text.stylize("dim")
    return lines


def _line(rank: int, label: str, *parts: str | tuple[str, str]) -> Line:
    return Line(rank, Text.assemble((f"{label:{LABEL}}", "cyan"), *parts))


def _blank() -> Line:
    return Line(GAP, Text())


def _now(look: Look, missed: Missed | None, now: float, url: str, width: int, blocks: str) -> Iterator[Line]:
    stats = look.stats
    yield Line(0, Text.assemble((f"{printable(stats.model)}, up {clock(stats.uptime_s)}, {url}", "bold")))
    if missed is not None:
        away = f"no answer for {now - look.at_s:.0f} s: {missed.reason}"
        yield _line(0, "state", (away, "bold red"), "; what follows is from before")
    else:
        what = {None: "nothing", "job": "a slice"}.get(stats.decoding, f"a {stats.decoding}")
        at_once = (f", {stats.max_concurrent_decodes} at once!", "bold red") if stats.max_concurrent_decodes > 1 else ""
        yield _line(0, "state", (stats.state, STATES.get(stats.state, "yellow")), f", decoding {what}", at_once)
    words = f"{stats.queue_depth} of {stats.queue_capacity}, {stats.background_depth} behind"
    room = width - LABEL - len(words) - 1
    yield _line(0, "queue", *_bar(stats.queue_depth, stats.queue_capacity, room, blocks), words)
    yield _line(1, "waits", f"{ms(stats.avg_wait_ms)} on average, p95 {ms(stats.p95_wait_ms)}")
    jobs = [f"{n} {status}" for status, n in stats.jobs.items() if n]
    yield _line(5, "sessions", f"{stats.sessions} open", f"; jobs: {', '.join(jobs)}" if jobs else "")


def _bar(n: int, of: int, room: int, blocks: str) -> Iterator[tuple[str, str]]:
    size = max(0, min(MAX_BAR, room))
    if size < 3 or of <= 0:
        return
    full = min(size, -(-n * size // of))
    yield blocks[-1] * full, "yellow" if n >= of else "green"
    yield f"{blocks[1] * (size - full)} ", "dim"


def _counts(look: Look, before: Look | None) -> Iterator[Line]:
    yield _blank()
    yield Line(4, Text(f"{'':{LABEL}}{'a second':>8}{'in all':>10}", "dim"))
    for rank, label, style, name, is_meant in COUNTS:
        by_reason = {reason: n for reason, n in look.by(name).items() if n and is_meant(reason)}
        n = sum(by_reason.values())
        a_second = "-"
        if before is not None:
            n_before = sum(count for reason, count in before.by(name).items() if is_meant(reason))
            a_second = f"{max(0.0, n - n_before) / (look.at_s - before.at_s):.1f}"
        reasons = [f"{reason} {n:.0f}" for reason, n in sorted(by_reason.items(), key=lambda item: -item[1])]
        why = "  " + ", ".join(reasons) if reasons and name == REFUSALS else ""
        yield _line(rank, label, (f"{a_second:>8}", "" if a_second in ("-", "0.0") else style), f"{n:10.0f}", why)


def _decodes(look: Look, before: Look | None) -> Iterator[Line]:
    since = f"of the last {look.at_s - before.at_s:.0f} s" if before is not None else "since the start"
    yield _blank()
    yield Line(6, Text(f"{'decodes':{LABEL}}{'average':>8}{'p95':>10}{'n':>8}  {since}", "dim"))
    for label in KINDS:
        n, average_s = mean(DECODES, look, before, (label,))
        p95_s = quantile(0.95, buckets(DECODES, look, before, (label,)))
        times = (ms(average_s * 1000), ms(p95_s * 1000)) if p95_s is not None else ("-", "-")
        yield _line(6, label, f"{times[0]:>8}{times[1]:>10}{n:8}")


def _process(look: Look, before: Look | None) -> Iterator[Line]:
    yield _blank()
    memory = look.metrics.get("asr_ws_worker_resident_bytes", {}).get(())
    restarts = {cause: n for cause, n in look.by(RESTARTS).items() if n}
    causes = " (" + ", ".join(f"{cause} {n:.0f}" for cause, n in restarts.items()) + ")" if restarts else ""
    yield _line(
        2,
        "worker",
        f"pid {look.stats.worker_pid}, " if look.stats.worker_pid is not None else ("no process, ", "yellow"),
        f"{memory / 1e6:.0f} MB, " if memory is not None else "",
        (f"restarts {sum(restarts.values()):.0f}{causes}", "yellow" if restarts else ""),
    )
    audio = look.by(AUDIO)
    lost_s = audio.pop("lost", 0.0)  # which must stay 0
    others = (f", {fate} {clock(seconds)}" for fate, seconds in audio.items())
    yield _line(3, "audio", (f"lost {lost_s:.3g} s", "bold red" if lost_s else ""), *others)
    lag_s = quantile(0.99, buckets("asr_ws_event_loop_lag_seconds", look, before))
    yield _line(7, "loop lag", f"p99 {ms(lag_s * 1000)}" if lag_s is not None else "-")


def _history(last: Look, seen: Seen, room: int, blocks: str) -> Iterator[Line]:
    """A cell a look, the newest at the right. Blank: there was no answer, or another run of the server before."""
    depths = [now.stats.queue_depth if isinstance(now, Look) else None for now in seen]
    finals = [None, *(_finals_a_second(before, now) for before, now in pairwise(seen))]
    most = max((n for n in finals if n is not None), default=0.0)
    scales = [f" {last.stats.queue_capacity} at most", f" {most:.1f} at most"]
    room = min(LOOKS, room - max(map(len, scales)))
    yield _blank()
    yield _line(3, "queue", (spark(depths, last.stats.queue_capacity, room, blocks), "green"), scales[0])
    yield _line(4, "finals/s", (spark(finals, most, room, blocks), "green"), scales[1])
    yield Line(8, Text("q or Ctrl-C ends", "dim"))


def _finals_a_second(before: Look | Missed, now: Look | Missed) -> float | None:
    if not (isinstance(before, Look) and isinstance(now, Look)) or now.stats.uptime_s < before.stats.uptime_s:
        return None
    n, n_before = (each.by(UTTERANCES).get("final", 0.0) for each in (now, before))
    return (n - n_before) / (now.at_s - before.at_s)


def spark(values: Sequence[float | None], most: float, room: int, blocks: str) -> str:
    """The latest of them, a cell each; None is blank, and 0 is not."""
    room, steps = max(0, room), len(blocks) - 1
    cells = [
        blocks[0] if value is None else blocks[max(1, math.ceil(min(1.0, max(0.0, value / (most or 1.0))) * steps))]
        for value in values[max(0, len(values) - room) :]
    ]
    return "".join(cells).rjust(room)


def ms(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 9999.5 else f"{milliseconds / 1000:.1f} s"


def clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}"
