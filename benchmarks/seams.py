"""What a session of the Python client loses when it is cut: its connection, the recognizer, the server, over and over.

    python -m benchmarks.seams --cuts 50

The bundled recordings are streamed in real time through a proxy to a server of its own. At random moments the proxy
cuts the connection or lets nothing through any more, the recognizer is killed, the server is restarted or killed. The
same audio, uncut, is what it is compared with: its word errors, and when each word is said to have been spoken.
"""

from __future__ import annotations

import asyncio
import difflib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import click
import msgspec

from asr_ws import messages
from asr_ws.client import CONNECTION_LOST, Event, Gap, Reconnected, Reconnecting, Transcript, connect
from asr_ws.testing.conservation import Conservation
from asr_ws.testing.proxy import Proxy
from asr_ws.testing.wer import word_errors, words
from benchmarks.common import (
    PCM_BYTES_PER_S,
    Spread,
    progress,
    read_manifest,
    report,
    reported,
    speech_folder,
    speech_pcm,
    within,
)
from benchmarks.served import Served, send_signal

# In this order, over and over: the most frequent is what networks do most.
KINDS: Final = ("cut", "worker killed", "restarted", "cut", "server killed", "stalled")
PAUSE_S: Final = (1.0, 8.0)  # between what came of one cut and the next one: utterances have some seconds
MAX_BEHIND_S: Final = 40.0  # else cut upon cut would come to more than the ring holds, on a slow machine
FRAME_S: Final = 0.1
LIMIT_S: Final = 180.0  # for a cut to be over
MAX_MORE_ERRORS: Final = 0.05
MAX_SHIFT_S: Final = 1.0  # of a word, 95 of 100: where an utterance is cut otherwise, its words are timed otherwise


@dataclass(slots=True)
class Run:
    """What one streaming of the recordings came to."""

    n_repeats: int = 0
    transcript: Transcript = field(default_factory=Transcript)
    law: Conservation = field(default_factory=Conservation)
    kinds: Counter[str] = field(default_factory=Counter)
    interrupted: Counter[str] = field(default_factory=Counter)  # utterances, by kind
    back_s: dict[str, list[float]] = field(default_factory=dict)  # from the cut to the connection's return
    gap_ms: int = 0

    def receive(self, event: Event) -> None:
        self.transcript.receive(event)
        if isinstance(event, Gap):
            self.gap_ms += event.audio_end_ms - event.audio_start_ms
        elif isinstance(
            event, messages.State
        ):  # a server that drains holds nothing, as the law has it; the client does
            self.law.receive(msgspec.structs.replace(event, state="ready"))
        elif not isinstance(event, Reconnecting | Reconnected):
            self.law.receive(event)

    def timed_words(self, repeat: int) -> list[tuple[str, int]]:
        """Of one repeat, as they are compared, and the millisecond of each one's beginning."""
        length_ms = len(speech_pcm()) * 1000 // PCM_BYTES_PER_S
        return [
            (part, word.start_ms)
            for final in self.transcript.finals
            for word in final.words or ()
            for part in words(word.word)
            if word.start_ms // length_ms == repeat
        ]


class Scene:
    """A server and the proxy in front of it, and what is done to them."""

    def __init__(self, model: str, proxy: Proxy) -> None:
        self.proxy = proxy
        self.server: Served
        self.n_restarts = 0  # of its recognizer
        self._model = model

    async def serve(self) -> None:
        self.server = await Served.start("--model", self._model, "--ingest-speed", "50")  # for the uncut run
        self.proxy.point_to(self.server.url)

    async def strike(self, kind: str) -> Callable[[], None] | None:
        """Returns: what is to be done when the session is back."""
        match kind:
            case "cut":
                self.proxy.cut()
            case "stalled":
                return self.proxy.stall()
            case "worker killed":
                stats = await self.server.until(state="ready")
                self.n_restarts = stats["worker_restart_count"] + 1
                send_signal(stats["worker_pid"], "SEGV")
            case "restarted":
                await self.server.stop()
                await self.serve()
            case "server killed":
                await self.server.kill()
                await self.serve()
        return None


async def stream(scene: Scene, n_cuts: int, rng: random.Random, tick: Callable[[], None]) -> Run:
    """The recordings in real time, as often as the cuts need."""
    run, pcm, all_cut = Run(), speech_pcm(), asyncio.Event()
    loop = asyncio.get_running_loop()
    n_back = 0
    changed = asyncio.Event()

    def said() -> Any:
        while not all_cut.is_set() or not run.n_repeats:
            run.n_repeats += 1
            step = int(FRAME_S * PCM_BYTES_PER_S)
            yield from (pcm[at : at + step] for at in range(0, len(pcm), step))

    async def cut() -> None:
        for n in range(n_cuts):
            await asyncio.sleep(rng.uniform(*PAUSE_S))
            async with within(LIMIT_S, "the session to catch up"):
                while session.behind_s > MAX_BEHIND_S:
                    changed.clear()
                    await changed.wait()
            kind, before, began = KINDS[n % len(KINDS)], n_back, loop.time()
            run.kinds[kind] += 1
            mend = await scene.strike(kind)
            async with within(LIMIT_S, f"the session after: {kind}"):
                if kind == "worker killed":
                    await scene.server.until(state="ready", worker_restart_count=scene.n_restarts)
                else:
                    while n_back == before:
                        changed.clear()
                        await changed.wait()
            run.back_s.setdefault(kind, []).append(loop.time() - began)
            if mend is not None:
                mend()
            tick()
        all_cut.set()

    async with connect(scene.proxy.url, language="en", words=True) as session:
        cutting = asyncio.create_task(cut())
        try:
            async for event in session.stream(said(), realtime=True):
                run.receive(event)
                n_back += isinstance(event, Reconnected)
                if isinstance(event, messages.Retry) and event.reason == CONNECTION_LOST:
                    run.interrupted[KINDS[(sum(run.kinds.values()) - 1) % len(KINDS)]] += 1
                changed.set()
                if cutting.done():
                    cutting.result()
        finally:
            cutting.cancel()
            await asyncio.wait([cutting])
    run.law.close(1000)
    return run


async def uncut(scene: Scene, n_repeats: int) -> Run:
    run = Run(n_repeats)
    async with connect(scene.proxy.url, language="en", words=True, partials=False) as session:
        async for event in session.stream(speech_pcm() * n_repeats):
            run.receive(event)
    return run


@dataclass(frozen=True, slots=True)
class Outcome:
    cut: Run
    uncut: Run
    said: str

    @property
    def errors(self) -> tuple[float, float]:
        """Word error rates, cut and uncut."""
        said = " ".join([self.said] * self.cut.n_repeats)
        return word_errors(said, self.cut.transcript.text).rate, word_errors(said, self.uncut.transcript.text).rate

    @property
    def shift(self) -> Spread:
        """Seconds between what both say of when a word was spoken; repeat by repeat, since all have the same words."""
        shifts: list[float] = []
        for n in range(self.cut.n_repeats):
            cut, uncut = (run.timed_words(n) for run in (self.cut, self.uncut))
            said, heard = ([word for word, _ in each] for each in (uncut, cut))
            for block in difflib.SequenceMatcher(None, heard, said, autojunk=False).get_matching_blocks():
                pairs = zip(cut[block.a : block.a + block.size], uncut[block.b : block.b + block.size], strict=True)
                shifts += [abs(one[1] - other[1]) / 1000 for one, other in pairs]
        return Spread.of(shifts)

    @property
    def faults(self) -> list[str]:
        """What should not be."""
        cut, uncut = self.errors
        received_ms = [run.transcript.done and run.transcript.done.received_ms for run in (self.cut, self.uncut)]
        return [
            *self.cut.law.breaches,
            *(f"uncut: {each}" for each in self.uncut.law.breaches),
            *([f"{self.cut.gap_ms} ms were lost"] if self.cut.gap_ms else []),
            *(["the accounts are of different audio"] if received_ms[0] != received_ms[1] else []),
            *([f"word errors {cut:.1%}, uncut {uncut:.1%}"] if cut > uncut + MAX_MORE_ERRORS else []),
            *([f"words are shifted: {self.shift}"] if self.shift.p95 > MAX_SHIFT_S else []),
        ]


def table(outcome: Outcome) -> list[str]:
    """Lines for people."""
    lines = [f"{'':<16}{'n':>4}{'attempts ended':>16}{'back after, s: p50':>20}{'max':>8}"]
    for kind, n in outcome.cut.kinds.items():
        back = Spread.of(outcome.cut.back_s[kind])
        lines.append(f"{kind:<16}{n:>4}{outcome.cut.interrupted[kind]:>16}{back.p50:>20.1f}{back.max:>8.1f}")
    cut, uncut = outcome.errors
    done = outcome.cut.transcript.done
    assert done is not None
    ended = Counter(type(each).__name__.lower() for each in outcome.cut.transcript.unfinished)
    return [
        *lines,
        f"audio {done.received_ms / 1000:.0f} s, decoded {done.decoded_ms / 1000:.0f} s, silence "
        f"{done.silence_ms / 1000:.0f} s, refused {done.refused_ms / 1000:.0f} s, lost {done.lost_ms / 1000:.0f} s",
        f"utterances {len(outcome.cut.law.utterances)}: {done.finals} final, {dict(ended) or 'none otherwise'}",
        f"word errors {cut:.1%}, uncut {uncut:.1%}",
        f"a word's beginning, against uncut, s: p50 {outcome.shift.p50:.2f}, p95 {outcome.shift.p95:.2f}, "
        f"max {outcome.shift.max:.2f}",
        *(f"FAULT: {each}" for each in outcome.faults),
    ]


async def measure(model: str, n_cuts: int, seed: int, tick: Callable[[], None]) -> Outcome:
    async with Proxy().listening() as proxy:
        scene = Scene(model, proxy)
        await scene.serve()
        try:
            await scene.server.until(state="ready")
            cut = await stream(scene, n_cuts, random.Random(seed), tick)
            await scene.server.until(state="ready")
            whole = await uncut(scene, cut.n_repeats)
        finally:
            await scene.server.kill()
    with speech_folder(None) as folder:
        said = " ".join(each.said for each in read_manifest(folder))
    return Outcome(cut, whole, said)


@click.command()
@reported
@click.option("--cuts", type=click.IntRange(min=1), default=50, show_default=True, help="How many.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the moments.")
@click.option("--model", default="tiny.en", show_default=True, help="Name or folder.")
def main(cuts: int, seed: int, model: str) -> None:
    """Cut a session again and again, and compare what it heard with the same audio uncut."""
    with progress() as bar:
        task = bar.add_task("cuts", total=cuts)
        outcome = asyncio.run(measure(model, cuts, seed, lambda: bar.advance(task)))
    click.echo("\n".join(table(outcome)))
    cut, whole = outcome.errors
    figures = {
        "kinds": dict(outcome.cut.kinds),
        "word_error_rate": round(cut, 4),
        "word_error_rate_uncut": round(whole, 4),
        "shift_s": outcome.shift.figures(),
        "faults": outcome.faults,
    }
    settings = {"cuts": cuts, "seed": seed, "model": model}
    raise SystemExit(report("seams", settings=settings, figures=figures, passed=not outcome.faults))


if __name__ == "__main__":
    main()
