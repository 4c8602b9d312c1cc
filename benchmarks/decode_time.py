"""How long a decode takes, by the model and by the length of the utterance.

    python -m benchmarks.decode_time [--models tiny.en,base] [--lengths 2,5,10,20,28] [--rounds 5]

For each length the ``--rounds`` pieces of the bundled speech that come nearest to it, from the beginning of an
utterance to the end of that or a later one: what is cut in mid-word is suspect, and decoded twice. They are decoded as
the worker does it, for a final and for a partial, in a process of its own and with nothing else to do; models, lengths
and kinds take turns. Fitted to the medians of finals is what admission goes by: so much for any, and so much for each
second of audio. Beyond 22 s there is no shorter window for the encoder.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from itertools import combinations_with_replacement, product
from statistics import mean, median
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from asr_ws import models
from asr_ws.core.types import DecodeOptions
from asr_ws.worker.process import ENVIRONMENT
from benchmarks.common import (
    PCM_BYTES_PER_S,
    Cores,
    Report,
    numbers,
    other_process,
    progress,
    report,
    reported,
    speech_pcm,
)
from benchmarks.offered import spoken_cuts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from asr_ws.worker.recognizer import FasterWhisperRecognizer

KINDS: Final = ("final", "partial")
LONGEST_S: Final = 30.0  # of an utterance

_recognizers: dict[str, FasterWhisperRecognizer] = {}  # in the process that decodes


def load(names: Sequence[str]) -> None:
    """OpenMP reads its environment once, when it is loaded: before that there must be nothing of the recognizer."""
    os.environ.update(ENVIRONMENT | os.environ)
    from asr_ws.worker.recognizer import FasterWhisperRecognizer

    for name in names:
        _recognizers[name] = FasterWhisperRecognizer(
            models.resolve(name), device="cpu", compute_type="default", cpu_threads=0, encoder_window="auto"
        )


def decode_s(name: str, kind: str, piece: slice) -> float:
    speech = np.frombuffer(speech_pcm()[piece], "<i2").astype(np.float32) / np.float32(32768)
    began = time.perf_counter()
    list(_recognizers[name].transcribe(speech, DecodeOptions("en", partial=kind != "final")))
    return time.perf_counter() - began


def pieces(cuts: Sequence[slice], length_s: float, n: int) -> list[slice]:
    """The ``n`` runs of utterances, of `speech_pcm`, whose length comes nearest to this; none over `LONGEST_S`."""
    runs = [slice(first.start, last.stop) for first, last in combinations_with_replacement(cuts, 2)]
    whole = [run for run in runs if _seconds(run) <= LONGEST_S]
    return sorted(whole, key=lambda run: abs(_seconds(run) - length_s))[:n]


def _seconds(piece: slice) -> float:
    n_bytes: int = piece.stop - piece.start
    return n_bytes / PCM_BYTES_PER_S


def fitted(lengths_s: Sequence[float], times_s: Sequence[float]) -> tuple[float, float]:
    """Least squares: what any decode takes, and what each second of audio adds."""
    each_s, any_s = np.polyfit(lengths_s, times_s, 1)
    return float(any_s), float(each_s)


def markdown(line: Report) -> list[str]:
    """A report as Markdown: medians in ms."""
    lengths = line["lengths_s"]
    lines = [
        f"| a decode, ms | {' | '.join(f'{each:g} s' for each in lengths)} | any, and each second |",
        f"|---|{'---|' * (len(lengths) + 1)}",
    ]
    for name, kind in product(line["models"], KINDS):
        times = line["models"][name][kind]
        law = f"{line['models'][name]['any_ms']:.0f} + {line['models'][name]['each_ms']:.0f}" if kind == "final" else ""
        lines.append(f"| {name}, {kind} | {' | '.join(f'{each:.0f}' for each in times)} | {law} |")
    return lines


def draw(figure: Figure, line: Report) -> None:
    """Medians by length, finals with what is fitted to them."""
    lengths = line["lengths_s"]
    axes = figure.add_subplot(title="A decode, by the length of the utterance", xlabel="s of audio", ylabel="ms")
    for n, (name, found) in enumerate(line["models"].items()):
        axes.plot(lengths, found["final"], "o-", color=f"C{n}", label=f"{name}, final")
        axes.plot(lengths, found["partial"], "s--", color=f"C{n}", alpha=0.6, label=f"{name}, partial")
        law = [found["any_ms"] + found["each_ms"] * each for each in lengths]
        axes.plot(lengths, law, ":", color="0.5", label="fitted to finals" if n == 0 else None)
    axes.legend()


@click.command()
@reported
@click.option("--models", "names", default="tiny.en,base", show_default=True)
@click.option("--lengths", default="2,5,10,20,28", show_default=True, callback=numbers, help="seconds, about")
@click.option("--rounds", "n_rounds", default=5, show_default=True, type=click.IntRange(1, 100))
def main(names: str, lengths: tuple[float, ...], n_rounds: int) -> None:
    """How long a decode takes, by the model and by the length of the utterance."""
    of_length = {length: pieces(spoken_cuts(), length, n_rounds) for length in lengths}
    asked = list(product(names.split(","), lengths, KINDS))
    times_s: dict[tuple[str, float, str], list[float]] = {each: [] for each in asked}
    with progress() as bars, other_process(Cores()) as pool:
        bar = bars.add_task("rounds", total=n_rounds + 1)
        pool.submit(load, names.split(",")).result()
        for n_round in range(-1, n_rounds):  # the first is not counted
            for name, length, kind in asked[:: -1 if n_round % 2 else 1]:  # what a length needs is prepared once
                took_s = pool.submit(decode_s, name, kind, of_length[length][n_round]).result()
                if n_round >= 0:
                    times_s[name, length, kind].append(took_s)
            bars.advance(bar)
    heard = [round(mean(map(_seconds, of_length[length])), 1) for length in lengths]
    found: dict[str, dict[str, Any]] = {}
    for name in names.split(","):
        medians_s = {kind: [median(times_s[name, length, kind]) for length in lengths] for kind in KINDS}
        any_s, each_s = fitted(heard, medians_s["final"]) if len(lengths) > 1 else (medians_s["final"][0], 0.0)
        found[name] = {
            **{kind: [round(each * 1000, 1) for each in medians_s[kind]] for kind in KINDS},
            "any_ms": round(any_s * 1000, 1),
            "each_ms": round(each_s * 1000, 1),
        }
    settings = {"models": names, "lengths": list(lengths), "rounds": n_rounds}
    figures = {"lengths_s": heard, "models": found}
    for text in markdown(figures):
        click.echo(text)
    sys.exit(report("decode_time", settings=settings, figures=figures, passed=None, draw=draw))


if __name__ == "__main__":
    main()
