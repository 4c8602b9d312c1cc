"""What a shortened encoder window saves in time and costs in words.

    python -m benchmarks.window [FOLDER] [--model tiny.en --model base] [--padding-s 5] [--repeat 3]

The recordings are cut into utterances as the server cuts them, with its detector, and each is decoded by the worker's
recognizer, without a server. They are cut in four ways that a session may ask for, its defaults among them: one name
that is misheard by chance is half a point of the words of a few recordings, and heard right from 0.2 s earlier. One
utterance after the other goes through every way of looking at it, in turn, so that whatever else the machine does hits
all of them alike:

- the full window of 30 s;
- the shortened window;
- the shortened window with a second look at the full one where its text is suspect: what the server does. It is put
  together from the two decodes, and its time is their sum;
- with --silence the same with the padding that silence would be, where faster-whisper pads with 0.

Then come stretches without speech, made here and cut from the FOLDER's recordings without speech: a detector passes few
such, manual mode all. Texts are filtered as the worker does; what is then left on non-speech are words too many.

FOLDER is as for `benchmarks.accuracy`. Targets, for each model, of the shortened window with a second look against the
full one: at most 0.5 points more word errors; utterances under 8 s in at most 0.6 of the time, by their median; no more
words on non-speech.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import click
import numpy as np
import soundfile

from asr_ws import log
from asr_ws.config import DEFAULTS
from asr_ws.core.endpointer import Endpoint, Endpointer, EndpointRules
from asr_ws.core.types import SAMPLE_RATE, DecodeOptions, Samples
from asr_ws.detector import SileroModel
from asr_ws.messages import Endpointing
from asr_ws.models import languages, resolve
from asr_ws.testing.wer import total, word_errors, words
from asr_ws.worker import recognizer as recognizer_module
from asr_ws.worker.recognizer import (
    MAX_COMPRESSION_RATIO,
    PADDING_FRAMES,
    FasterWhisperRecognizer,
    Features,
    FilteredTranscription,
    Look,
    pick_device,
)
from benchmarks.accuracy import choose
from benchmarks.common import NO_SPEECH, Recording, progress, read_manifest, report, reported, speech_folder

MAX_EXTRA_RATE: Final = 0.005
MAX_TIME: Final = 0.6  # of the full window's
SHORT_S: Final = 8.0  # an utterance that people say to a machine
PIECE: Final = 3 * SAMPLE_RATE  # of the recordings without speech


def zero(features: Features) -> float:
    return 0.0


def like_silence(features: Features) -> float:
    """Whisper's log-mel has a floor, and another 2 below its loudest."""
    return max(float(features.max(initial=0.5)) - 2.0, -1.5)


@dataclass(frozen=True, slots=True)
class Way:
    """One pass over an utterance."""

    shortened: bool
    padding: Callable[[Features], float]


WAYS: Final = {
    "full": Way(shortened=False, padding=zero),
    "full, silence": Way(shortened=False, padding=like_silence),
    "shortened": Way(shortened=True, padding=zero),
    "shortened, silence": Way(shortened=True, padding=like_silence),
}
REFERENCE: Final = "full"
# Variant -> its first look, and the one that replaces it where it is suspect.
VARIANTS: Final = {name: (name, name) for name in WAYS} | {
    "second look": ("shortened", "full"),
    "second look, silence": ("shortened, silence", "full, silence"),
}
SERVED: Final = "second look"
CUTS: Final = [Endpointing(silence_ms=silence, prefix_ms=prefix) for silence in (600, 250) for prefix in (300, 100)]


@dataclass(frozen=True, slots=True)
class Timed:
    look: Look
    decode_s: float


@dataclass(frozen=True, slots=True)
class Piece:
    """One utterance, or one stretch without speech, and what each of WAYS made of it."""

    recording: Recording
    cut: int  # of CUTS
    audio_s: float
    seen: Mapping[str, Timed]

    def is_suspect(self, variant: str) -> bool:
        first, second = VARIANTS[variant]
        return first != second and self.seen[first].look.suspect

    def look(self, variant: str) -> Look:
        return self.seen[VARIANTS[variant][self.is_suspect(variant)]].look

    def decode_s(self, variant: str) -> float:
        first, second = VARIANTS[variant]
        return self.seen[first].decode_s + (self.seen[second].decode_s if self.is_suspect(variant) else 0.0)

    def text(self, variant: str) -> str:
        segment = self.look(variant).segment
        kept = FilteredTranscription(iter(() if segment is None else (segment,)), "", 0.0)
        return "".join(segment.text for segment in kept)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one variant came to. ``time`` and ``short_time``: median of the pieces' ratios to REFERENCE's time."""

    errors: int
    words: int
    time: float
    short_time: float
    repeated: int
    second_looks: int
    words_on_no_speech: int

    @classmethod
    def of(cls, pieces: Sequence[Piece], variant: str) -> Outcome:
        """Raises: StatisticsError: no utterance, or none under SHORT_S."""
        spoken = [piece for piece in pieces if piece.recording.language != NO_SPEECH]
        texts: dict[tuple[Recording, int], list[str]] = {}
        for piece in spoken:
            texts.setdefault((piece.recording, piece.cut), []).append(piece.text(variant))
        errors = total(word_errors(recording.said, " ".join(text)) for (recording, _), text in texts.items())
        return cls(
            errors.errors,
            errors.words,
            median(_time(piece, variant) for piece in spoken),
            median(_time(piece, variant) for piece in spoken if piece.audio_s < SHORT_S),
            sum(_repeats(piece.look(variant)) for piece in spoken),
            sum(piece.is_suspect(variant) for piece in spoken),
            sum(len(words(piece.text(variant))) for piece in pieces if piece.recording.language == NO_SPEECH),
        )

    @property
    def rate(self) -> float:
        return self.errors / self.words

    def keeps_up_with(self, full: Outcome) -> bool:
        return (
            self.rate <= full.rate + MAX_EXTRA_RATE
            and self.short_time <= MAX_TIME
            and self.words_on_no_speech <= full.words_on_no_speech
        )


def _time(piece: Piece, variant: str) -> float:
    return piece.decode_s(variant) / piece.decode_s(REFERENCE)


def _repeats(look: Look) -> bool:
    return look.looped or (look.segment is not None and look.segment.compression_ratio > MAX_COMPRESSION_RATIO)


def table(model: str, outcomes: Mapping[str, Outcome]) -> list[str]:
    """Lines for people: one for each variant."""
    header = f"{'errors':>7}{'words':>7}{'rate':>7}{'time':>7}{'< 8 s':>7}{'repeats':>9}{'looks':>7}{'made up':>9}"
    return [
        f"{model:<22}{header}",
        *(
            f"{name:<22}{o.errors:>7}{o.words:>7}{o.rate:>7.1%}{o.time:>7.2f}{o.short_time:>7.2f}"
            f"{o.repeated:>9}{o.second_looks:>7}{o.words_on_no_speech:>9}"
            for name, o in outcomes.items()
        ),
    ]


# ---------------------------------------------------------------- measuring


def read(file: Path) -> Samples:
    """Raises: click.ClickException: not 16 kHz mono; nothing is resampled here."""
    samples, rate = soundfile.read(file, dtype="float32")
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise click.ClickException(f"{file}: {rate} Hz, shape {samples.shape}; must be {SAMPLE_RATE} Hz, mono")
    mono: Samples = samples
    return mono


def utterances(samples: Samples, silero: SileroModel, asked: Endpointing) -> list[Samples]:
    """As a session that asks for this has them decoded."""
    per_ms = SAMPLE_RATE // 1000
    rules = EndpointRules(
        silence=asked.silence_ms * per_ms,
        prefix=asked.prefix_ms * per_ms,
        min_speech=asked.min_speech_ms * per_ms,
        max_utterance=asked.max_utterance_ms * per_ms,
        threshold=asked.threshold,
    )
    endpointer = Endpointer(rules, silero.detector())
    events = [*endpointer.feed(samples), *endpointer.finish()]
    return [event.samples for event in events if isinstance(event, Endpoint)]


def made_up_non_speech() -> Iterator[tuple[str, Samples]]:
    """Silence, white noise, tones and mains hum: name and samples of 19 stretches, the same in every run."""
    noise = np.random.default_rng(1)

    def samples_of(length_s: float) -> int:
        return int(length_s * SAMPLE_RATE)

    def sine(hertz: float, length_s: float, level: float) -> Samples:
        angle = 2 * np.pi * hertz * np.arange(samples_of(length_s)) / SAMPLE_RATE
        return (level * np.sin(angle)).astype(np.float32)

    for length_s in (0.5, 1, 3, 8):
        yield "silence", np.zeros(samples_of(length_s), np.float32)
    for level in (0.002, 0.02, 0.1):
        for length_s in (1, 3, 6):
            yield "noise", noise.normal(0, level, samples_of(length_s)).astype(np.float32)
    for hertz in (440, 1000):
        for length_s in (1, 4):
            yield "tone", sine(hertz, length_s, 0.2)
    for length_s in (2, 5):
        yield "hum", sine(50, length_s, 0.1) + sine(150, length_s, 0.05)


def to_decode(recordings: Sequence[Recording]) -> Iterator[tuple[Recording, int, Samples]]:
    """Utterances of the recordings with speech, by their cut, and stretches without."""
    silero = SileroModel()
    for recording in recordings:
        samples = read(recording.file)
        if recording.language == NO_SPEECH:
            for start in range(0, len(samples) - SAMPLE_RATE, PIECE):
                yield recording, 0, samples[start : start + PIECE]
            yield recording, 0, samples[: 30 * SAMPLE_RATE]
        else:
            for cut, asked in enumerate(CUTS):
                for utterance in utterances(samples, silero, asked):
                    yield recording, cut, utterance
    for name, samples in made_up_non_speech():
        yield Recording(Path(name), NO_SPEECH, ""), 0, samples


def measure(
    recognizer: FasterWhisperRecognizer, samples: Samples, language: str, ways: Mapping[str, Way], repeat: int
) -> dict[str, Timed]:
    """Every way's look, which is the same each time, and the median of its times."""
    looks: dict[str, Look] = {}
    decode_s: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, way in ways.items():
            recognizer.encoder.padding = way.padding
            began = perf_counter()
            looks[name] = recognizer.look(samples, DecodeOptions(language), shortened=way.shortened)
            decode_s[name].append(perf_counter() - began)
    return {name: Timed(looks[name], median(decode_s[name])) for name in ways}


@click.command()
@reported
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--model", "models", multiple=True, default=["tiny.en"], show_default=True, help="may be given repeatedly"
)
@click.option(
    "--compute-type", default=DEFAULTS.model.compute_type, show_default=True, help="of the arithmetic, such as int8"
)
@click.option("--cpu-threads", type=click.IntRange(0), default=0, show_default=True, help="0: the recognizer's choice")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="times that each is decoded")
@click.option(
    "--padding-s",
    type=click.FloatRange(0, 30),
    default=PADDING_FRAMES / 100,
    show_default=True,
    help="seconds behind the audio in a shortened window, where not what the server takes",
)
@click.option("--silence", is_flag=True, help="measure padding with what silence would be, too")
@click.option("--verbose", is_flag=True, help="print the texts where served and full differ, and what was made up")
def main(
    folder: Path | None,
    models: Sequence[str],
    compute_type: str,
    cpu_threads: int,
    repeat: int,
    padding_s: float,
    silence: bool,
    verbose: bool,
) -> None:
    """Word errors and decode times of the recordings in FOLDER (default: the bundled ones), by encoder window."""
    log.configure(level="warning")
    recognizer_module.PADDING_FRAMES = round(padding_s * 100)
    ways = {name: way for name, way in WAYS.items() if silence or way.padding is zero}
    variants = [name for name, of in VARIANTS.items() if ways.keys() >= set(of)]
    figures: dict[str, object] = {}
    passed = True
    with speech_folder(folder) as found:
        recordings = read_manifest(found)
        for model in models:
            path = resolve(model)
            recognizer = FasterWhisperRecognizer(
                path,
                device=pick_device("auto"),
                compute_type=compute_type,
                cpu_threads=cpu_threads,
                encoder_window="auto",
            )
            chosen, left_out = choose(recordings, languages(path))
            pieces = []
            with progress() as bars:
                for recording, cut, samples in bars.track(list(to_decode(chosen)), description=model):
                    # What has no language is taken for English: detecting one is not what is measured.
                    language = "en" if recording.language == NO_SPEECH else recording.language
                    seen = measure(recognizer, samples, language, ways, repeat)
                    pieces.append(Piece(recording, cut, len(samples) / SAMPLE_RATE, seen))
            outcomes = {variant: Outcome.of(pieces, variant) for variant in variants}
            for line in (*table(model, outcomes), *(differences(pieces) if verbose else ())):
                click.echo(line)
            for name, why in left_out.items():
                click.echo(f"{name:<22}left out: {why}")
            figures[model] = {variant: _figures(outcome) for variant, outcome in outcomes.items()}
            passed = passed and outcomes[SERVED].keeps_up_with(outcomes[REFERENCE])
    settings = {
        "models": list(models),
        "device": recognizer.device,
        "compute_type": recognizer.compute_type,
        "cpu_threads": cpu_threads,
        "repeat": repeat,
        "padding_s": padding_s,
    }
    sys.exit(report("window", settings=settings, figures=figures, passed=passed))


def differences(pieces: Sequence[Piece]) -> list[str]:
    """Lines for people: where what is served and REFERENCE do not have the same words."""
    lines = []
    for piece in pieces:
        served, full = piece.text(SERVED), piece.text(REFERENCE)
        if words(served) != words(full):
            lines.append(f"{piece.recording.file.name} {piece.audio_s:.2f} s")
            lines += [f"    {SERVED}: {served}", f"    {REFERENCE}: {full}"]
    return lines


def _figures(outcome: Outcome) -> dict[str, float]:
    return {
        "errors": outcome.errors,
        "words": outcome.words,
        "rate": round(outcome.rate, 4),
        "time": round(outcome.time, 3),
        "short_time": round(outcome.short_time, 3),
        "repeated": outcome.repeated,
        "second_looks": outcome.second_looks,
        "words_on_no_speech": outcome.words_on_no_speech,
    }


if __name__ == "__main__":
    main()
