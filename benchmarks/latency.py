"""How soon text comes after speech: real speech in real time on an idle server, and beside others that load it.

    python -m benchmarks.latency [FOLDER] [--model tiny.en] [--cpu-threads N] [--loads 0.5,2] [--verbose]

Each clip is sent as a microphone would send it, in frames of 100 ms, and 1.5 s of silence after it, to three servers in
turn, of which only the one that is being measured has anything to do: with partials and speculation, with partials
only, and with neither. The client, in another process, takes the times:

- end of speech -> final, of utterances that ended by silence and were accepted at once. Speech ends with the last
  window that the server takes for speech: ``audio_end_ms`` less the tail of min(200 ms, ``silence_ms``).
- onset of speech -> first partial. Speech begins ``prefix_ms`` after ``audio_start_ms``; where the pre-roll was cut
  (the clip begins with speech, or a cut went before it) it is taken to begin at ``audio_start_ms``, and the time is up
  to ``prefix_ms`` more than it was.

"waited" is the share of the time in which the worker had work and another program had its core (Linux): such a row
says little of the server.

A moment of the audio is when a microphone would have heard it: its frame was sent when it was full, so as long before
that as the rest of the frame lasts.

With ``--loads`` the clips are then played again at each load, to the first server and to the second, beside sessions
that commit utterances of the bundled speech, once each, at Poisson times with a fixed seed. They offer so many times
what the model can decode, as measured just before on the idle server. These figures have no target.

Targets, idle:

- end of speech -> final, all on: median <= max(``silence_ms``, 232 ms + the median decode) + 60 ms
- onset of speech -> first partial: median <= 0.5 s + twice the median decode of a partial + 0.15 s
- at least 3 partials for each utterance of more than 5 s
- ``stable`` text never changes
- the finals say the same, to the letter, whatever is on

"changed": of the words that were shown, how many were later changed or taken away, by a partial or by the final, as in
`benchmarks.peers`; of a client that shows `stable` and `unstable`, of one that leaves the last word of `unstable` away,
and of one that shows `stable` alone.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from asr_ws import log, messages, models
from asr_ws.client.sources import open_source
from asr_ws.core.partials import words
from asr_ws.messages import AudioFormat
from asr_ws.testing import wer
from asr_ws.testing.bare import Event, connect
from benchmarks.common import (
    Cores,
    Recording,
    Report,
    Spread,
    numbers,
    other_process,
    percentile,
    progress,
    read_manifest,
    report,
    reported,
    settings_of,
    speech_folder,
    within,
)
from benchmarks.offered import (
    SCRIPTED,
    Decode,
    Offer,
    Talk,
    Tally,
    WorkerCores,
    dealt,
    lasting,
    mean_decode_s,
    offer_all,
    offers,
    serving,
    spoken_cuts,
    start_of,
    watched,
)
from benchmarks.peers.heard import flicker
from benchmarks.pictures import spreads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from asr_ws.server.app import App

CONFIGURATIONS: Final = {
    "speculation": {"partials": "on", "speculation": "on"},
    "partials": {"partials": "on", "speculation": "off"},
    "finals only": {"partials": "off", "speculation": "off"},
}
JUDGED, PLAIN = "speculation", "finals only"
SHOWN: Final[dict[str, Callable[[str, str], str]]] = {
    "all": lambda stable, unstable: stable + unstable,
    "without_the_last_word": lambda stable, unstable: stable + "".join(words(unstable)[:-1]),
    "stable": lambda stable, unstable: stable,
}
LOADED: Final = (JUDGED, "partials")  # with and without speculation
SILENCE_S: Final = 1.5  # after each clip: more than ends an utterance
FRAME_S: Final = 0.1
TAIL_MS: Final = 200  # of silence that an utterance keeps
COMPLETE_MS: Final = TAIL_MS + 32  # after the last speech, to the whole window: then the audio is complete
ENDPOINTING: Final = messages.Endpointing()  # the defaults, as the clips are sent without any
MAX_LATE_MS: Final = 60.0
EARLY_SPEECH_MS, MAX_PARTIAL_LATE_MS = 500.0, 150.0
LONG_MS, MIN_PARTIALS = 5000, 3
N_OTHERS: Final = 20  # sessions
WARM_UP_S: Final = 3.0  # of load before the first clip
PATIENCE_S: Final = 30.0
SEED: Final = 2026


@dataclass(frozen=True, slots=True)
class Spoken:
    """One utterance that came to a final, as its client saw it; milliseconds."""

    clip: str
    audio_start_ms: int
    audio_end_ms: int
    text: str
    decode_ms: int
    partials: tuple[tuple[str, str], ...]  # `stable` and `unstable` of each
    onset_known: bool  # False: `first_partial` is up to `prefix_ms` more than it was
    final: float | None  # after the end of speech; None: not by silence, or not at the first attempt
    first_partial: float | None  # after the onset of speech; None: there was none

    @property
    def audio_ms(self) -> int:
        return self.audio_end_ms - self.audio_start_ms

    @property
    def stable_kept(self) -> bool:
        """Each partial's `stable` went on from the one before."""
        return all(after.startswith(before) for (before, _), (after, _) in pairwise(self.partials))


@dataclass(slots=True)
class Played:
    """A clip in real time, in its client's seconds."""

    clip: str
    sent: list[tuple[float, float]]  # the audio position in ms at the end of each frame, and when it was sent
    talk: Talk

    def heard_at(self, position_ms: float) -> float:
        """When a microphone would have heard this moment of the audio."""
        end_ms, at = next((frame for frame in self.sent if frame[0] >= position_ms), self.sent[-1])
        return at - (end_ms - position_ms) / 1000


def spoken(played: Played) -> list[Spoken]:
    """The clip's utterances, in the order of the audio."""
    of_utterance: dict[str, list[tuple[float, Event]]] = {}
    for at, event in played.talk.heard:
        if isinstance(utterance := getattr(event, "utterance", None), str):
            of_utterance.setdefault(utterance, []).append((at, event))
    finals = [event for _, event in played.talk.heard if isinstance(event, messages.Final)]
    finals.sort(key=lambda final: final.audio_start_ms)
    ends_ms = {0, *(final.audio_end_ms for final in finals)}
    return [_spoken(played, final, of_utterance[final.utterance], ends_ms) for final in finals]


def _spoken(played: Played, final: messages.Final, heard: Sequence[tuple[float, Event]], ends_ms: set[int]) -> Spoken:
    partials = [(at, event) for at, event in heard if isinstance(event, messages.Partial)]
    accepted = next(event for _, event in heard if isinstance(event, messages.Accepted))
    final_at = next(at for at, event in heard if event is final)
    onset_known = final.audio_start_ms not in ends_ms
    onset_ms = final.audio_start_ms + (ENDPOINTING.prefix_ms if onset_known else 0)
    timed = accepted.endpoint == "silence" and final.attempt == 1
    end_ms = final.audio_end_ms - min(TAIL_MS, ENDPOINTING.silence_ms)
    return Spoken(
        played.clip,
        final.audio_start_ms,
        final.audio_end_ms,
        final.text,
        final.decode_ms,
        tuple((partial.stable, partial.unstable) for _, partial in partials),
        onset_known,
        (final_at - played.heard_at(end_ms)) * 1000 if timed else None,
        (partials[0][0] - played.heard_at(onset_ms)) * 1000 if partials else None,
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of all clips in one configuration; milliseconds."""

    utterances: list[Spoken]
    unfinished: int  # utterances without a final
    refusals: dict[str, int]
    partial_decodes: list[float]
    waited: float | None = None  # of `WorkerCores`
    speculations: int = 0
    promoted: int = 0  # speculations that became finals
    wasted: int = 0

    @property
    def final(self) -> list[float]:
        return [each.final for each in self.utterances if each.final is not None]

    @property
    def first_partial(self) -> list[float]:
        return [each.first_partial for each in self.utterances if each.first_partial is not None]

    @property
    def decode(self) -> list[float]:
        return [each.decode_ms for each in self.utterances]

    @property
    def long_partials(self) -> list[int]:
        """How many each long utterance had."""
        return [len(each.partials) for each in self.utterances if each.audio_ms > LONG_MS]

    def changed(self, show: Callable[[str, str], str]) -> float | None:
        """The share of the words shown that did not stay, where this is what is shown of a partial."""
        counts = [
            flicker([wer.words(text) for text in (*(show(*partial) for partial in each.partials), each.text)])
            for each in self.utterances
        ]
        return _share(sum(changed for changed, _ in counts), sum(shown for _, shown in counts))

    @property
    def texts(self) -> dict[tuple[str, int, int], str]:
        """By clip, beginning and end."""
        return {(each.clip, each.audio_start_ms, each.audio_end_ms): each.text for each in self.utterances}

    def figures(self) -> dict[str, object]:
        """For the report."""
        return {
            "utterances": len(self.utterances),
            "end_of_speech_to_final_ms": self.final and Spread.of(self.final).figures(1),
            "decode_ms": self.decode and Spread.of(self.decode).figures(1),
            "onset_to_first_partial_ms": self.first_partial and Spread.of(self.first_partial).figures(1),
            "onsets_not_known": sum(not each.onset_known for each in self.utterances if each.first_partial is not None),
            "partial_decode_ms": self.partial_decodes and Spread.of(self.partial_decodes).figures(1),
            "partials": sum(len(each.partials) for each in self.utterances),
            "least_partials_of_long_utterances": min(self.long_partials, default=None),
            "changed": {name: self.changed(show) for name, show in SHOWN.items()},
            "stable_changed": sum(not each.stable_kept for each in self.utterances),
            "finals_speculated": _share(self.promoted, len(self.utterances)),
            "speculations": self.speculations,
            "speculations_wasted": _share(self.wasted, self.speculations),
            "unfinished": self.unfinished,
            "refusals": self.refusals,
            "worker_waited_for_core": self.waited,
        }


def _median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def limits_ms(judged: Outcome) -> dict[str, float]:
    """Of both medians, by the decodes that there were."""
    return {
        "final": max(ENDPOINTING.silence_ms, COMPLETE_MS + _median(judged.decode)) + MAX_LATE_MS,
        "first_partial": EARLY_SPEECH_MS + 2 * _median(judged.partial_decodes) + MAX_PARTIAL_LATE_MS,
    }


def misses(outcomes: dict[str, Outcome]) -> list[str]:
    """Which targets were missed, for people, by the configurations' names; empty: none."""
    judged, plain = outcomes[JUDGED], outcomes[PLAIN]
    if not judged.final or not judged.first_partial or not judged.partial_decodes:
        return ["nothing to measure: no utterance that ended by silence, or no partials"]
    limit, partial_limit = limits_ms(judged).values()
    found = []
    if (late := _median(judged.final)) > limit:
        found.append(f"end of speech -> final: {late:.0f} ms, the limit is {limit:.0f} ms")
    if (late := _median(judged.first_partial)) > partial_limit:
        found.append(f"onset of speech -> first partial: {late:.0f} ms, the limit is {partial_limit:.0f} ms")
    for name, outcome in outcomes.items():
        few = sum(n < MIN_PARTIALS for n in outcome.long_partials)
        if CONFIGURATIONS[name]["partials"] == "on" and few:
            found.append(f"{name}: {few} utterances of more than 5 s had fewer than {MIN_PARTIALS} partials")
        if changed := sum(not each.stable_kept for each in outcome.utterances):
            found.append(f"{name}: stable text changed in {changed} utterances")
        if outcome.unfinished:
            found.append(f"{name}: {outcome.unfinished} utterances came to no final")
        elif outcome.texts != plain.texts and not plain.unfinished:
            different = sorted(outcome.texts.items() ^ plain.texts.items())
            found.append(f"{name}: other finals than with {PLAIN}: {different}")
    return found


HEADER: Final = (
    f"{'':<20}{'end of speech -> final, ms':>30}{'decode':>9}{'onset -> first partial, ms':>30}{'decode':>9}\n"
    f"{'':<20}{'n':>6}{'p50':>8}{'p95':>8}{'max':>8}{'p50':>9}{'n':>6}{'p50':>8}{'p95':>8}{'max':>8}{'p50':>9}"
    f"{'partials':>10}{'speculated':>12}{'refused':>9}{'waited':>8}"
)


def row(name: str, outcome: Outcome) -> str:
    """A line for people."""
    partial_decode = f"{_median(outcome.partial_decodes):.0f}" if outcome.partial_decodes else "-"
    decode = f"{_median(outcome.decode):.0f}" if outcome.decode else "-"
    n_partials = sum(len(each.partials) for each in outcome.utterances)
    waited = "?" if outcome.waited is None else f"{outcome.waited:.0%}"
    return (
        f"{name:<20}{_times(outcome.final)}{decode:>9}{_times(outcome.first_partial)}{partial_decode:>9}"
        f"{n_partials:>10}{outcome.promoted:>12}{sum(outcome.refusals.values()):>9}{waited:>8}"
    )


def _times(values: Sequence[float]) -> str:
    if not values:
        return f"{0:>6}{'-':>8}{'-':>8}{'-':>8}"
    spread = Spread.of(values)
    return f"{spread.n:>6}{spread.p50:>8.0f}{spread.p95:>8.0f}{spread.max:>8.0f}"


def details(name: str, each: Spoken) -> str:
    """One utterance, for people."""
    final, first = ("-" if value is None else f"{value:.0f}" for value in (each.final, each.first_partial))
    about = " " if each.onset_known else "~"
    return (
        f"  {name:<19}{each.clip:<22}{each.audio_start_ms:>7}-{each.audio_end_ms:<7} final {final:>5}"
        f"  decode {each.decode_ms:>4}  first partial {about}{first:<5} partials {len(each.partials):>3}"
        f"{'' if each.stable_kept else '  STABLE CHANGED'}  {each.text}"
    )


# ---------------------------------------------------------------- in the server's process


@dataclass(frozen=True, slots=True)
class Measured:
    idle: dict[str, Outcome]
    loaded: dict[tuple[float, str], tuple[Outcome, Tally]]  # with what became of the others
    decode_s: float | None  # of the others' utterances


async def measure(
    model: str,
    cpu_threads: int,
    recordings: Sequence[Recording],
    loads: Sequence[float],
    show: Callable[[str, Played], None],
) -> Measured:
    """Args: show: called with each clip that has been played. Raises: click.ClickException: it did not end."""
    start = start_of(model)
    clips_s = sum(_duration_s(each.file) + SILENCE_S for each in recordings)
    async with AsyncExitStack() as stack:
        client = stack.enter_context(other_process(Cores()))
        others = stack.enter_context(other_process(Cores()))
        apps: dict[str, App] = {}
        for name, texts in CONFIGURATIONS.items():
            settings = settings_of(model=model, cpu_threads=cpu_threads, ingest_speed=1000.0, **texts)
            apps[name] = await stack.enter_async_context(serving(settings))
        played: dict[str, list[Played]] = {name: [] for name in apps}
        decodes = {name: stack.enter_context(watched(app)) for name, app in apps.items()}
        cores = {name: WorkerCores(app) for name, app in apps.items()}
        for recording in recordings:
            for name, app in apps.items():
                played[name].append(await _play(client, app, recording, start))
                show(name, played[name][-1])
        idle = {name: outcome(played[name], decodes[name], cores[name], _counts(app)) for name, app in apps.items()}
        if not loads:
            return Measured(idle, {}, None)
        cuts = spoken_cuts()
        decode_s = await mean_decode_s(apps[JUDGED], others, cuts, **start)
        loaded: dict[tuple[float, str], tuple[Outcome, Tally]] = {}
        for load, name in product(loads, LOADED):
            app = apps[name]
            rng = random.Random(SEED)
            plans = dealt(lasting(WARM_UP_S + clips_s, offers(load / decode_s, cuts, rng)), N_OTHERS, rng)
            before, n_before, busy_cores = _counts(app), len(decodes[name]), WorkerCores(app)
            talks = asyncio.get_running_loop().run_in_executor(others, offer, app.url, plans, start)
            await asyncio.sleep(WARM_UP_S)
            clips = []
            for recording in recordings:
                clips.append(await _play(client, app, recording, start))
                show(f"{name}, {load:g}x", clips[-1])
            counts = [now - then for now, then in zip(_counts(app), before, strict=True)]
            async with within(clips_s + PATIENCE_S, "the others"):
                tally = Tally.of(await talks)
            loaded[load, name] = outcome(clips, decodes[name][n_before:], busy_cores, counts), tally
    return Measured(idle, loaded, decode_s)


def outcome(played: Iterable[Played], decodes: Iterable[Decode], cores: WorkerCores, counts: Sequence[int]) -> Outcome:
    """Args: counts: speculations, how many of them became finals, and how many were wasted."""
    played = list(played)
    return Outcome(
        [each for clip in played for each in spoken(clip)],
        sum(isinstance(event, messages.Dropped | messages.Error) for clip in played for _, event in clip.talk.heard),
        Tally.of(clip.talk for clip in played).refusals,
        [each.took_s * 1000 for each in decodes if each.kind == "partial"],
        cores.waited_share,
        *counts,
    )


def _counts(app: App) -> tuple[int, int, int]:
    promoted, wasted = app.metrics.finals_speculated, app.dispatcher.drafts.n_wasted
    return promoted + wasted, promoted, wasted


def _duration_s(file: Path) -> float:
    duration_s = open_source(file, AudioFormat()).duration_s
    assert duration_s is not None, "files know theirs"
    return duration_s


async def _play(client: Executor, app: App, recording: Recording, start: dict[str, Any]) -> Played:
    async with within(_duration_s(recording.file) + 2 * PATIENCE_S, f"the finals of {recording.file.name}"):
        run = partial(play, app.url, recording.file, {"language": recording.language, **start})
        return await asyncio.get_running_loop().run_in_executor(client, run)


# ---------------------------------------------------------------- in the clients' processes


def play(url: str, file: Path, start: dict[str, Any]) -> Played:
    """Send the clip and the silence in real time."""
    return asyncio.run(_play_clip(url, file, start))


async def _play_clip(url: str, file: Path, start: dict[str, Any]) -> Played:
    loop = asyncio.get_running_loop()
    opened = open_source(file, AudioFormat())
    audio = opened.audio
    assert audio is not None, "files say theirs"
    played = Played(file.name, [], Talk())

    async def recorded() -> AsyncIterator[bytes]:
        n_bytes = 0
        async for frame in _with_silence(opened.chunks, audio):
            yield frame
            n_bytes += len(frame)  # the next one is asked for as soon as this one has been sent
            played.sent.append((n_bytes * 1000 / audio.bytes_per_s, loop.time()))

    async with connect(url, audio=audio, **start) as session:
        await played.talk.listen(session, session.stream(recorded(), realtime=True), once=False)
    return played


async def _with_silence(frames: AsyncIterator[bytes], audio: AudioFormat) -> AsyncIterator[bytes]:
    async for frame in frames:
        yield frame
    sample_bytes = audio.bytes_per_s // audio.sample_rate
    for _ in range(round(SILENCE_S / FRAME_S)):
        yield bytes(round(audio.sample_rate * FRAME_S) * sample_bytes)


def offer(url: str, plans: Sequence[Sequence[Offer]], start: dict[str, Any]) -> list[Talk]:
    """The others."""
    return asyncio.run(offer_all(url, plans, once=True, patience_s=PATIENCE_S, **start))


def draw(figure: Figure, report: Report) -> None:
    """Idle, and under load."""
    idle = [(f"idle: {name}", report[name.replace(" ", "_")]) for name in CONFIGURATIONS]
    loaded = [(f"{each['load']:g} x the capacity: {each['configuration']}", each) for each in report["loaded"]]
    finals = [(what, each["end_of_speech_to_final_ms"], None) for what, each in idle + loaded]
    partials = [
        (f"first partial, {what}", each["onset_to_first_partial_ms"], None)
        for what, each in idle + loaded
        if each["onset_to_first_partial_ms"]
    ]
    model = report["settings"]["model"]
    spreads(figure, f"End of speech to final, and onset of speech to first partial: {model}", [*finals, *partials])


@click.command()
@reported
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--model", default="tiny.en", show_default=True, help=f"or {SCRIPTED}: 0.1 s a decode")
@click.option("--cpu-threads", default=0, show_default=True, type=click.IntRange(0, 1024), help="as of serve")
@click.option("--loads", callback=numbers, help="offered by others, in multiples of the capacity, such as 0.5,2")
@click.option("--clips", type=click.IntRange(min=1), help="only so many of the recordings")
@click.option("--verbose", is_flag=True, help="a line for each utterance")
def main(
    folder: Path | None, model: str, cpu_threads: int, loads: tuple[float, ...], clips: int | None, verbose: bool
) -> None:
    """How soon the text of the recordings in FOLDER (default: the bundled ones) comes."""
    log.configure(level="error")
    languages = ("en",) if model == SCRIPTED else models.languages(models.resolve(model))
    with speech_folder(folder) as speech:
        recordings = [each for each in read_manifest(speech) if each.language in languages][:clips]
        if not recordings:
            raise click.ClickException(f"no speech in {speech} that {model} knows the language of")
        with progress(still=True) as bars:
            bar = bars.add_task("clips", total=len(recordings) * (len(CONFIGURATIONS) + len(LOADED) * len(loads)))

            def show(name: str, played: Played) -> None:
                bars.update(bar, advance=1, refresh=True)
                for each in spoken(played) if verbose else ():
                    click.echo(details(name, each))

            measured = asyncio.run(measure(model, cpu_threads, recordings, loads, show))
    click.echo(HEADER)
    for name, each in measured.idle.items():
        click.echo(row(name, each))
    for (load, name), (each, tally) in measured.loaded.items():
        click.echo(row(f"{name}, {load:g}x", each))
        click.echo(f"    the others: {tally.offered} offered, {tally.finals} finals, refused {tally.refusals}")
    found, judged = misses(measured.idle), measured.idle[JUDGED]
    for miss in found:
        click.echo(f"missed: {miss}")
    sys.exit(
        report(
            "latency",
            settings={
                "model": model,
                "cpu_threads": cpu_threads,
                "recordings": len(recordings),
                "silence_ms": ENDPOINTING.silence_ms,
                "prefix_ms": ENDPOINTING.prefix_ms,
                "frame_ms": round(FRAME_S * 1000),
                "loads": list(loads),
            },
            figures={
                **{name.replace(" ", "_"): each.figures() for name, each in measured.idle.items()},
                "loaded": [
                    {"load": load, "configuration": name, **each.figures(), "others": tally.figures()}
                    for (load, name), (each, tally) in measured.loaded.items()
                ],
                "others_decode_ms": measured.decode_s and round(measured.decode_s * 1000, 1),
                "limits_ms": limits_ms(judged) if judged.decode and judged.partial_decodes else None,
                "missed": found,
            },
            passed=not found,
            draw=draw,
        )
    )


if __name__ == "__main__":
    main()
