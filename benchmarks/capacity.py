"""How many people can speak at once, predicted from how long a decode takes, and measured.

    python -m benchmarks.capacity [--decodes 0.1,0.2,0.4,0.8,1.6] [--shares 0.5] [--models tiny.en,base] [--seconds 20]
                                  [--quick]

One model decodes one utterance at a time. If a talker ends r utterances a second and each takes d seconds to decode, n
talkers ask for n r d of the model's time, and no more than 1 / (r d) of them can be served for long: the *bound*. Less
than that can be, because the queue is short and what is refused comes back after 0.5 to 1.5 s, in which the model may
have nothing to do; and the bound is no whole number. The *prediction* has that in it: the utterances that the
endpointer finds in what each talker says are offered in virtual time to `AdmissionQueue`, with `Holds` and hints as the
server has them, before a model that takes d seconds for each. It is judged as the measurement is, by
`asr_ws.testing.talkers.Step`, for `PREDICTED_S` and with talkers who begin elsewhere than those that are
measured. What it leaves out: partials and decodes before an utterance's end, which take idle time
only; and all that the server, the clients and the machine cost.

The measurement is that of `asr-ws bench`, from the prediction on up or down: with a worker that sleeps for d, for each
of ``--decodes``; for `SHARE_DECODE_S` with talkers that speak only a share of the time; and with ``--models``. What a
model takes for an utterance depends on who else has the machine's cores. So its first step is what is predicted from
`ALONE_S` of one talker, *alone*, and what is compared in the end is a prediction from the mean decode of the most that
it carried: that shows whether the queue is understood, not whether a decode beside others can be foretold.

Targets: measured and predicted differ by 15 % or by one talker at most.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from asr_ws.core.admission import AdmissionQueue, Ticket
from asr_ws.core.holds import Holds
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.types import (
    SAMPLE_RATE,
    DecodeOptions,
    EndpointReason,
    RefusalReason,
    ServiceState,
    SessionId,
    Shed,
    Utterance,
)
from asr_ws.errors import AsrError
from asr_ws.testing.served import ServerProcess
from asr_ws.testing.talkers import (
    FRAME_S,
    WARM_UP_S,
    Step,
    Told,
    cut,
    least_talkers,
    most_carried,
    next_talkers,
    says,
    speech_pcm,
    talk,
)
from benchmarks.common import Report, numbers, progress, report, reported

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_SHARES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of the picture
SHARE_DECODE_S: Final = 0.8  # long enough that few talkers make a step
MOST: Final = 200
GROWTH: Final = 1.1
PREDICTED_S, ALONE_S = 60.0, 60.0
ELSEWHERE: Final = 1000  # the number of the first of the predicted talkers
CAPACITY, MAX_WAIT_S = 3, 8.0  # the server's defaults
SILENCE, PREFIX, LEAST_SPEECH, LONGEST = 9_600, 4_800, 2_400, 480_000  # samples; the protocol's defaults
THRESHOLD: Final = 0.5
TOLERANCE, TOLERANCE_TALKERS = 0.15, 1
SEED: Final = 2026
SLEEPS: Final = "sleeps"
QUICK_DECODES, QUICK_SECONDS = (0.4, 0.8), 6.0


@dataclass(frozen=True, slots=True)
class Point:
    """Attributes:
    name: the model.
    bound: 1 / (r d).
    """

    name: str
    decode_s: float
    share: float
    bound: float
    predicted: int
    steps: list[Step] = field(default_factory=list)
    alone_s: float | None = None
    from_alone: int | None = None  # predicted before anything else was measured

    @property
    def measured(self) -> int:
        return most_carried(map(judged, self.steps))

    @property
    def too_many(self) -> int | None:
        return min((step.talkers for step in self.steps if not step.is_carried), default=None)

    @property
    def at_the_edge(self) -> Step | None:
        """The step that had the most."""
        return next((step for step in self.steps if step.talkers == self.measured), None)

    def figures(self) -> dict[str, object]:
        """For the report."""
        return {
            "model": self.name,
            "decode_s": round(self.decode_s, 3),
            "decode_alone_s": self.alone_s and round(self.alone_s, 3),
            "predicted_from_alone": self.from_alone,
            "speaking_share": self.share,
            "bound": round(self.bound, 2),
            "predicted": self.predicted,
            "measured": self.measured,
            "too_many": self.too_many,
            "as_predicted": agree(self.predicted, self.measured),
            "steps": [step.figures() for step in self.steps],
        }


def agree(predicted: int, measured: int) -> bool:
    return abs(measured - predicted) <= max(TOLERANCE_TALKERS, TOLERANCE * predicted)


COLUMNS: Final = (
    "model",
    "alone, s",
    "predicted from that",
    "decode, s",
    "speaks",
    "bound",
    "predicted",
    "measured",
    "too many",
)


def cells(point: Report) -> list[str]:
    """Of a line of the table, from the report alone."""
    return [
        point["model"],
        f"{alone_s:.2f}" if (alone_s := point["decode_alone_s"]) else "-",
        "-" if (predicted := point["predicted_from_alone"]) is None else f"{predicted}",
        f"{point['decode_s']:.2f}",
        f"{point['speaking_share']:.0%}",
        f"{point['bound']:.1f}",
        f"{point['predicted']}",
        f"{point['measured']}",
        f"{point['too_many'] or '-'}",
    ]


def row(of: Sequence[str]) -> str:
    """A line for people."""
    widths = [max(11, len(head) + 2) for head in COLUMNS[1:]]
    return f"{of[0]:<10}" + "".join(f"{cell:>{width}}" for cell, width in zip(of[1:], widths, strict=True))


def markdown(report: Report) -> list[str]:
    """Lines of Markdown, from the report alone."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(cells(point) for point in report["points"])]
    return [f"| {' | '.join(line)} |" for line in lines]


def draw(figure: Figure, report: Report) -> None:
    """Talkers over what one of them asks for, r d: the bound, the prediction and what was measured."""
    from matplotlib.ticker import LogFormatter, NullFormatter

    points = sorted(report["points"], key=_asks)
    axes = figure.add_subplot()
    xs = [_asks(point) for point in points]
    axes.plot(xs, [point["bound"] for point in points], "--", color="0.6", label="bound: 1 / (r d)")
    axes.plot(xs, [point["predicted"] for point in points], "-", color="C0", label="predicted")
    for n, model in enumerate(sorted({point["model"] for point in points})):
        own = [point for point in points if point["model"] == model and point["measured"]]
        axes.plot(
            [*map(_asks, own)],
            [point["measured"] for point in own],
            "osD^v"[n % 5],
            color=f"C{n + 1}",
            label=f"measured: {model}",
        )
        for point in own:
            at = (_asks(point), point["measured"])
            beside: dict[str, Any] = {"xytext": (-6, -12), "ha": "right"} if model == SLEEPS else {"xytext": (8, 4)}
            text = f"{point['decode_s']:.2g} s"
            axes.annotate(text, at, textcoords="offset points", fontsize=8, color=f"C{n + 1}", **beside)
    axes.set(xscale="log", yscale="log", title="How many people can speak at once", ylabel="talkers")
    axes.set_xticks(SHOWN_SHARES, [f"{each:.0%}" for each in SHOWN_SHARES])
    axes.set_xlabel("share of the model's time that one talker asks for (beside the points: how long a decode takes)")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(LogFormatter())  # 40, not a power of ten
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.grid(which="both", color="0.9")
    axes.legend()


def _asks(point: Report) -> float:
    return float(1 / point["bound"])


# ---------------------------------------------------------------- the prediction


@dataclass(frozen=True, slots=True)
class Said:
    """An utterance as the endpointer finds it; seconds of its talker's time."""

    found_s: float
    audio_s: float


@cache
def said(talker: int, share: float, seconds: float) -> list[Said]:
    """What the ``talker``-th says in so many seconds."""
    from asr_ws.core.endpointer import Endpoint, Endpointer, EndpointRules
    from asr_ws.detector import SileroModel

    rules = EndpointRules(SILENCE, PREFIX, LEAST_SPEECH, LONGEST, THRESHOLD)
    endpointer = Endpointer(rules, SileroModel().detector())
    found = []
    for n, frame in enumerate(islice(says(cut(speech_pcm()), talker, share), round(seconds / FRAME_S)), 1):
        samples = np.frombuffer(frame, "<i2").astype(np.float32) / np.float32(32768)
        for each in endpointer.feed(samples):
            if isinstance(each, Endpoint):
                found.append(Said(n * FRAME_S, (each.end_sample - each.start_sample) / SAMPLE_RATE))
    return found


def simulate(talkers: Sequence[Sequence[Said]], decode_s: float, seconds: float) -> Step:
    """A step in virtual time, with a model that takes ``decode_s`` for each utterance.

    Args:
        talkers: what each of them says, from the beginning of the warm-up on.
    """
    queue = AdmissionQueue(CAPACITY, ServiceTime(decode_s), random.Random(SEED).uniform)
    queue.worker_changed(ServiceState.READY, now=0.0)
    holds, told, order = Holds(), dict[Utterance, Told](), count()
    since = min(WARM_UP_S, seconds)
    until, end = since + seconds, since + seconds + 2 * MAX_WAIT_S
    moments: list[tuple[float, int, Utterance | None]] = []  # an offer, or something else to look at

    def at(moment: float, utterance: Utterance | None = None) -> None:
        heapq.heappush(moments, (moment, next(order), utterance))

    def hold(utterance: Utterance, refused: Shed, now: float) -> None:
        told[utterance].refusals += 1
        for evicted in holds.put(utterance, until=end):
            told[evicted].is_lost = True
        at(now + refused.retry_after_s, utterance)

    for n, utterances in enumerate(talkers):
        for number, each in enumerate(utterances):
            of = SessionId(f"{n}"), f"u{number}", np.empty(0, np.float32), 0, round(each.audio_s * SAMPLE_RATE)
            utterance = Utterance(*of, EndpointReason.SILENCE, DecodeOptions("en"))
            at(FRAME_S * n / len(talkers) + each.found_s, utterance)

    decoded_at = end
    while moments and (now := moments[0][0]) < end:
        _, _, offered = heapq.heappop(moments)
        if queue.in_flight is not None and decoded_at <= now:
            final = told[queue.in_flight.utterance]
            final.final_at, final.decode_s = now, decode_s
            queue.finish(decode_s)
        if offered is not None:
            is_first = offered not in told
            if is_first:
                told[offered] = Told(verdict_at=now)
            if is_first or holds.remove(offered.session, offered.id) is not None:  # else it was evicted
                match queue.offer(offered, now=now, max_wait_s=MAX_WAIT_S):
                    case Ticket(deadline=deadline):
                        at(deadline)
                    case Shed() as refused:
                        hold(offered, refused, now)
        for ticket in queue.expire(now):
            hold(ticket.utterance, queue.shed(RefusalReason.DEADLINE, now=now), now)
        if queue.in_flight is None and queue.take(now) is not None:
            decoded_at = now + decode_s
            at(decoded_at)
    counted = [each for each in told.values() if each.verdict_at is not None and since <= each.verdict_at < until]
    return Step.of(
        len(talkers),
        counted,
        seconds=seconds,
        max_wait_ms=round(MAX_WAIT_S * 1000),
        worker=None,
        late_s=(),
        now=end,
    )


def predict(name: str, decode_s: float, share: float, seconds: float = PREDICTED_S) -> Point:
    """A point of which nothing has been measured but its decode."""
    lasts_s = min(WARM_UP_S, seconds) + seconds + MAX_WAIT_S
    steps: list[Step] = []
    while (n := next_talkers([*map(judged, steps)], MOST, first=least_talkers(share, seconds))) is not None:
        steps.append(simulate([said(ELSEWHERE + talker, share, lasts_s) for talker in range(n)], decode_s, seconds))
    largest = max(steps, key=lambda step: step.talkers)
    rate = largest.utterances / largest.talkers / seconds
    return Point(name, decode_s, share, 1 / (rate * decode_s), most_carried(map(judged, steps)))


def judged(step: Step) -> tuple[int, bool]:
    return step.talkers, step.is_carried


# ---------------------------------------------------------------- the measurement


async def measure(point: Point, url: str, seconds: float, step: Callable[[int], None], **start_fields: Any) -> None:
    """Into the point's steps. Raises: AsrError: the server ends."""
    first = max(1, point.predicted)
    while (n := next_talkers([*map(judged, point.steps)], MOST, first=first, growth=GROWTH)) is not None:
        step(n)
        point.steps.append(await talk(url, n, seconds=seconds, share=point.share, **start_fields))


async def measure_scripted(decode_s: float, share: float, seconds: float, step: Callable[[int], None]) -> Point:
    """With a worker that sleeps. Raises: AsrError: the server ends."""
    point = await asyncio.to_thread(predict, SLEEPS, decode_s, share)
    server = await ServerProcess.start("--max-sessions", f"{MOST}", program=("benchmarks.scripted",))
    try:
        await server.wait_ready()
        await measure(point, server.url, seconds, step, prompt=f"sleep {decode_s}")
    finally:
        await server.stop()
    return point


async def measure_model(name: str, seconds: float, step: Callable[[int], None]) -> Point:
    """With a real one. Raises: AsrError: the server ends."""
    server = await ServerProcess.start("--max-sessions", f"{MOST}", "--model", name, "--on-crash-loop", "exit")
    try:
        await server.wait_ready()
        step(1)
        alone = await talk(server.url, 1, seconds=ALONE_S)
        if alone.finals == 0:
            raise click.ClickException(f"{name} wrote nothing down in {ALONE_S:g} s")
        point = await asyncio.to_thread(predict, name, alone.mean_decode_s, 1.0)
        await measure(point, server.url, seconds, step)
    finally:
        await server.stop()
    edge_s = (point.at_the_edge or alone).mean_decode_s
    found = await asyncio.to_thread(predict, name, edge_s, 1.0)
    return replace(found, steps=[alone, *point.steps], alone_s=alone.mean_decode_s, from_alone=point.predicted)


async def measure_all(
    decodes: Sequence[float], shares: Sequence[float], models: Sequence[str], seconds: float
) -> list[Point]:
    """Raises: click.ClickException: a server does not serve."""
    points: list[Point] = []
    scripted = [*((decode_s, 1.0) for decode_s in decodes), *((SHARE_DECODE_S, share) for share in shares)]
    with progress(still=True) as bars:
        bar = bars.add_task("", total=len(scripted) + len(models))

        def step(n: int) -> None:
            bars.update(bar, description=f"{n} talkers", refresh=True)

        def measured(point: Point) -> None:
            points.append(point)
            click.echo(row(cells(point.figures())))
            bars.update(bar, advance=1, refresh=True)

        try:
            for decode_s, share in scripted:
                measured(await measure_scripted(decode_s, share, seconds, step))
            for name in models:
                measured(await measure_model(name, seconds, step))
        except AsrError as error:
            raise click.ClickException(str(error)) from error
    return points


@click.command()
@reported
@click.option("--decodes", default="0.1,0.2,0.4,0.8,1.6", show_default=True, callback=numbers, help="seconds")
@click.option("--shares", default="0.5", show_default=True, callback=numbers, help=f"at {SHARE_DECODE_S} s a decode")
@click.option("--models", default="", help="such as tiny.en,base")
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(1, 600), help="of each step")
@click.option("--quick", is_flag=True, help="two decodes and short steps, which say little")
def main(decodes: tuple[float, ...], shares: tuple[float, ...], models: str, seconds: float, quick: bool) -> None:
    """How many people can speak at once: predicted and measured."""
    if quick:
        decodes, shares, seconds = QUICK_DECODES, (), QUICK_SECONDS
    click.echo(row(COLUMNS))
    points = asyncio.run(measure_all(decodes, shares, [each for each in models.split(",") if each], seconds))
    sys.exit(
        report(
            "capacity",
            settings={"decodes": decodes, "shares": shares, "models": models, "seconds": seconds},
            figures={"points": [point.figures() for point in points]},
            passed=None if quick else all(agree(point.predicted, point.measured) for point in points),
            draw=draw,
        )
    )


if __name__ == "__main__":
    main()
