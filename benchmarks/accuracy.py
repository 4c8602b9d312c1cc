"""What streaming costs in words: a folder of speech through a server, and the same files decoded whole.

    python -m benchmarks.accuracy [FOLDER] [--model tiny.en] [--url ws://...]

Both columns are measured in one run, with the same model, on the same machine: the streamed text is the server's, over
a real WebSocket, with its detector, its endpoints and its filters; the whole-file text is faster-whisper's own, without
a detector, after the server has stopped. Recordings without speech must give no words.

FOLDER holds audio files and a ``manifest.tsv`` with at least the columns file, language (``none``: no speech) and
transcript. Exit code 1 when the streamed word error rate is more than 2 points above the whole-file one in sum, or
when a recording without speech gave words. Words are compared as `asr_ws.testing.wer` says.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import click

from asr_ws import log
from asr_ws.client import Transcript, connect
from asr_ws.config import DEFAULTS, Settings
from asr_ws.testing.wer import WordErrors, total, word_errors, words
from benchmarks.common import NO_SPEECH, Recording, progress, read_manifest, report, reported, speech_folder, within

MAX_EXTRA_RATE: Final = 0.02  # of the words; on a few hundred of them, single words decide below that
STEP_LIMIT_S: Final = 300.0  # for one recording, or the load: a run that will never end says so
NOT_COMPARED: Final = {"zh": "simplified or traditional script is the model's whim, and counts as wrong characters"}


@dataclass(frozen=True, slots=True)
class Heard:
    """Both texts of one recording; ``unfinished`` counts utterances that came to no text."""

    recording: Recording
    streamed: str
    whole: str
    unfinished: int = 0

    @property
    def streamed_errors(self) -> WordErrors:
        return word_errors(self.recording.said, self.streamed)

    @property
    def whole_errors(self) -> WordErrors:
        return word_errors(self.recording.said, self.whole)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the run came to, over all recordings."""

    streamed: WordErrors
    whole: WordErrors
    words_on_no_speech: int  # streamed; whole-file decodes have no detector, and make some up
    unfinished: int

    @classmethod
    def of(cls, heard: Iterable[Heard]) -> Outcome:
        heard = list(heard)
        speech = [each for each in heard if each.recording.language != NO_SPEECH]
        return cls(
            total(each.streamed_errors for each in speech),
            total(each.whole_errors for each in speech),
            sum(len(words(each.streamed)) for each in heard if each.recording.language == NO_SPEECH),
            sum(each.unfinished for each in heard),
        )

    @property
    def passed(self) -> bool:
        return self.streamed.rate <= self.whole.rate + MAX_EXTRA_RATE and not self.words_on_no_speech


def choose(recordings: Sequence[Recording], languages: Sequence[str]) -> tuple[list[Recording], dict[str, str]]:
    """What can be compared with a model of these languages, and why not the rest, by file name."""
    left_out = {
        each.file.name: NOT_COMPARED[each.language] if each.language in languages else "a language unknown to the model"
        for each in recordings
        if each.language in NOT_COMPARED or each.language not in (*languages, NO_SPEECH)
    }
    return [each for each in recordings if each.file.name not in left_out], left_out


def table(heard: Sequence[Heard], *, verbose: bool = False) -> list[str]:
    """Lines for people: a row per recording with speech and their sum, then the ones without.

    Args:
        verbose: with what was said and both texts, where the two differ.
    """
    speech = [each for each in heard if each.recording.language != NO_SPEECH]
    outcome = Outcome.of(heard)
    lines = [f"{'file':<24}{'words':>6}{'streamed':>10}{'rate':>8}{'whole':>8}{'rate':>8}"]
    for each in speech:
        lines.append(_row(each.recording.file.name, each.streamed_errors, each.whole_errors))
        if each.unfinished:
            lines.append(f"    {each.unfinished} utterances came to no text")
        if verbose and words(each.streamed) != words(each.whole):
            lines += [f"    said:     {each.recording.said}", f"    streamed: {each.streamed}"]
            lines.append(f"    whole:    {each.whole}")
    lines.append(_row("in sum", outcome.streamed, outcome.whole))
    for each in heard:
        if each.recording.language == NO_SPEECH:
            n_whole = len(words(each.whole))
            n_streamed = len(words(each.streamed))
            lines.append(f"{each.recording.file.name:<24} words on non-speech: {n_streamed} (whole: {n_whole})")
            if verbose and n_streamed:
                lines.append(f"    streamed: {each.streamed}")
    return lines


def _row(name: str, streamed: WordErrors, whole: WordErrors) -> str:
    return f"{name:<24}{streamed.words:>6}{streamed.errors:>10}{streamed.rate:>8.1%}{whole.errors:>8}{whole.rate:>8.1%}"


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True, slots=True)
class Served:
    """What decoded: as the server said of itself."""

    model: str
    languages: list[str]
    device: str | None
    compute_type: str | None  # None: another process's server does not tell


@dataclass(frozen=True, slots=True)
class Streamed:
    text: str
    unfinished: int


async def stream_here(
    settings: Settings, recordings: Sequence[Recording], step: Callable[[], None]
) -> tuple[Served, dict[Path, Streamed]]:
    """Serve in this process while it streams."""
    from asr_ws.server.app import running

    async with running(settings) as app:
        async with within(STEP_LIMIT_S, "the model to be loaded"):
            await app.dispatcher.wait_ready()
        served, texts = await stream_to(app.url, recordings, step)
        loaded = app.supervisor.loaded
        assert loaded is not None
        return replace(served, device=loaded.device, compute_type=loaded.compute_type), texts


async def stream_to(
    url: str, recordings: Sequence[Recording], step: Callable[[], None]
) -> tuple[Served, dict[Path, Streamed]]:
    """One session a recording, one after the other."""
    async with connect(url) as session:
        ready = session.ready
        assert ready is not None
    texts = {}
    for each in choose(recordings, ready.languages)[0]:
        transcript = Transcript()
        language = each.language if each.language != NO_SPEECH else None
        async with (
            within(STEP_LIMIT_S, f"the text of {each.file.name}"),
            connect(url, language=language, partials=False) as session,
        ):
            async for event in session.stream(each.file):
                transcript.receive(event)
        step()
        texts[each.file] = Streamed(transcript.text, len(transcript.unfinished))
    return Served(ready.model, ready.languages, None, None), texts


def decode_whole(served: Served, recordings: Sequence[Recording], step: Callable[[], None]) -> dict[Path, str]:
    """Each file at once, by faster-whisper alone; with the server's search, without its detector and filters."""
    from faster_whisper import WhisperModel

    from asr_ws.models import resolve

    model = WhisperModel(
        str(resolve(served.model)),
        device=served.device or "auto",
        compute_type=served.compute_type or "default",
        local_files_only=True,
    )
    texts = {}
    for each in recordings:
        segments, _ = model.transcribe(
            str(each.file),
            language=each.language if each.language != NO_SPEECH else None,
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            vad_filter=False,
        )
        texts[each.file] = "".join(segment.text for segment in segments).strip()
        step()
    return texts


@click.command()
@reported
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--model", default="tiny.en", show_default=True, help="served where no --url is given")
@click.option(
    "--compute-type", default=DEFAULTS.model.compute_type, show_default=True, help="of the arithmetic, such as int8"
)
@click.option("--url", help="of a running server's sessions, with a model that is on this machine too")
@click.option("--verbose", is_flag=True, help="print the texts where streamed and whole differ")
def main(folder: Path | None, model: str, compute_type: str, url: str | None, verbose: bool) -> None:
    """Word errors of the recordings in FOLDER (default: the bundled ones), streamed and whole, side by side."""
    log.configure(level="warning")
    with speech_folder(folder) as speech:
        sys.exit(_measure(speech, model, compute_type, url, verbose))


def _measure(folder: Path, model: str, compute_type: str, url: str | None, verbose: bool) -> int:
    settings = replace(  # nothing is refused here: this measures words, not admission
        DEFAULTS,
        listen=replace(DEFAULTS.listen, port=0),
        session=replace(DEFAULTS.session, ingest_speed=20.0),
        admission=replace(DEFAULTS.admission, queue_capacity=100, max_wait_ms=600_000),
        model=replace(DEFAULTS.model, model=model, compute_type=compute_type),
    )
    recordings = read_manifest(folder)
    with progress() as bars:

        def counting(what: str) -> Callable[[], None]:
            return partial(bars.advance, bars.add_task(what, total=len(recordings)))

        step = counting("streamed")
        run = stream_to(url, recordings, step) if url else stream_here(settings, recordings, step)
        served, streamed = asyncio.run(run)
        chosen, left_out = choose(recordings, served.languages)
        whole = decode_whole(served, chosen, counting("whole"))
    heard = [Heard(each, streamed[each.file].text, whole[each.file], streamed[each.file].unfinished) for each in chosen]
    outcome = Outcome.of(heard)
    for line in table(heard, verbose=verbose):
        click.echo(line)
    for name, why in left_out.items():
        click.echo(f"{name:<24} left out: {why}")
    return report(
        "accuracy",
        settings={
            "model": served.model,
            "device": served.device,
            "compute_type": served.compute_type,
            "url": url,
            "recordings": len(heard),
            "beam_size": 5,
            "partials": False,
            "ingest_speed": None if url else settings.session.ingest_speed,
        },
        figures={
            "words": outcome.streamed.words,
            "streamed_errors": outcome.streamed.errors,
            "streamed_rate": round(outcome.streamed.rate, 4),
            "whole_errors": outcome.whole.errors,
            "whole_rate": round(outcome.whole.rate, 4),
            "words_on_no_speech": outcome.words_on_no_speech,
            "unfinished": outcome.unfinished,
        },
        passed=outcome.passed,
    )


if __name__ == "__main__":
    main()
