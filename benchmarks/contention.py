"""What a busy neighbour costs a decode: threads that spin while they wait for each other, against threads that sleep.

Two processes decode the same speech as the worker does, one with OpenMP's default and one that waits passively, as the
worker does; alone, and beside a process that keeps one core busy. The four take turns in rounds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import TYPE_CHECKING, Final

import click
import numpy as np

from asr_ws import models
from asr_ws.core.types import SAMPLE_RATE, DecodeOptions
from benchmarks.common import Cores, Report, Spread, other_process, progress, report, reported, speech_pcm
from benchmarks.pictures import spreads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICIES: Final = ("default", "passive")
AUDIO_S: Final = 4
HEADER: Final = (
    f"decode of {AUDIO_S} s of speech\n{'threads wait':<14}{'beside':<14}{'p50 ms':>9}{'p95 ms':>9}{'max ms':>9}"
)

_decode: Callable[[], object]  # in the process that decodes


def load(policy: str, model: str) -> None:
    """OpenMP reads its environment once, when it is loaded: before that there must be nothing of the recognizer."""
    global _decode
    os.environ.pop("OMP_WAIT_POLICY", None)
    if policy != "default":
        os.environ["OMP_WAIT_POLICY"] = policy
    from asr_ws.worker.recognizer import FasterWhisperRecognizer

    recognizer = FasterWhisperRecognizer(
        models.resolve(model), device="cpu", compute_type="default", cpu_threads=0, encoder_window="auto"
    )
    speech = np.frombuffer(speech_pcm(), "<i2")[: AUDIO_S * SAMPLE_RATE].astype(np.float32) / 32768
    _decode = partial(_decode_once, recognizer, speech)
    _decode()


def _decode_once(recognizer: object, speech: object) -> None:
    list(recognizer.transcribe(speech, DecodeOptions("en")))  # type: ignore[attr-defined]


def decode_ms() -> float:
    began = time.perf_counter()
    _decode()
    return (time.perf_counter() - began) * 1000


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """A process that keeps a core busy meanwhile, if there is to be one."""
    if not busy:
        yield
        return
    process = get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _spin() -> None:
    while True:
        pass


def row(policy: str, busy: bool, times_ms: Spread) -> str:
    who = "a busy core" if busy else "nobody"
    return f"{policy:<14}{who:<14}{times_ms.p50:>9.0f}{times_ms.p95:>9.0f}{times_ms.max:>9.0f}"


def draw(figure: Figure, report: Report) -> None:
    """By how threads wait, alone and beside a busy core."""
    rows = [
        (f"threads wait: {policy}, {'a core busy' if busy == 'busy' else 'alone'}", report[f"{policy}_{busy}_ms"], None)
        for policy in POLICIES
        for busy in ("alone", "busy")
    ]
    spreads(figure, "A decode beside another program", rows)


@click.command()
@reported
@click.option("--model", default="tiny.en", show_default=True)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 100))
@click.option("--decodes", default=5, show_default=True, type=click.IntRange(1, 100), help="in each round")
def main(model: str, rounds: int, decodes: int) -> None:
    """What a busy neighbour costs a decode, by how the decode's threads wait."""
    times_ms: dict[tuple[str, bool], list[float]] = {}
    with progress() as bars, other_process(Cores()) as default, other_process(Cores()) as passive:
        task = bars.add_task("rounds", total=rounds)
        pools = dict(zip(POLICIES, (default, passive), strict=True))
        for policy, pool in pools.items():
            pool.submit(load, policy, model).result()
        for _ in range(rounds):
            for busy in (False, True):
                with neighbour(busy):
                    for policy, pool in pools.items():
                        found = [pool.submit(decode_ms).result() for _ in range(decodes)]
                        times_ms.setdefault((policy, busy), []).extend(found)
            bars.advance(task)
    spreads = {key: Spread.of(found) for key, found in times_ms.items()}
    click.echo(HEADER)
    for (policy, busy), spread in sorted(spreads.items()):
        click.echo(row(policy, busy, spread))
    figures = {
        f"{policy}_{'busy' if busy else 'alone'}_ms": spread.figures(0) for (policy, busy), spread in spreads.items()
    }
    slowdown = {policy: median(times_ms[policy, True]) / median(times_ms[policy, False]) for policy in POLICIES}
    sys.exit(
        report(
            "contention",
            settings={"model": model, "rounds": rounds, "decodes": decodes, "audio_s": AUDIO_S},
            figures={**figures, **{f"{policy}_slowdown": round(ratio, 2) for policy, ratio in slowdown.items()}},
            passed=None,
            draw=draw,
        )
    )


if __name__ == "__main__":
    main()
