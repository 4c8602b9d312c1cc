"""This server beside others that people run today: the same model, the same recordings, one machine, one run.

    python -m benchmarks.peers [FOLDER] [--folder CACHE/peers] [--only NAME ...] [--quick] [--rounds 2] [--clients 10]
                               [--report FILE]

Each is installed from PyPI into a virtual environment of its own in ``--folder``, as its users install it, where it
stays for the next time (22 GB for all: three bring PyTorch with CUDA), and so is this server, from this clone.
RealtimeSTT and WhisperLive need PortAudio's headers and a C compiler (Debian: portaudio19-dev, gcc). Nothing else is
fetched: the model is tiny.en in the folder where `asr-ws pull` has put it, with int8 on the processor for all, and
English. What is not equal is named in the report.

One server at a time has the machine. In each round each of them is started, says one clip to warm up, and is then sent
every clip, one after the other: an English recording of FOLDER (default: the bundled ones, the long one in pieces), in
frames of 100 ms in real time, and low noise after it until all text is final and 2 s have passed without a change, or
15 s. Two of them are push to talk: there the client ends the utterance, 0.2 s after the end of speech.

Speech begins and ends with the first and the last window of 32 ms that Silero gives 0.5 or more. What a client is told
is turned into the text that it shows and whether all of it is final:

- final: from the end of speech until all text is final, and stays as it is. Of so many clips; it never was in others.
- last change: from the end of speech until the words shown changed for the last time, final or not.
- first text: from the onset of speech to the first words; without partials these are the final ones.
- word errors: of the last text, `asr_ws.testing.wer`.
- flicker: of the words that were shown, how many were later changed or taken away. Words as for the word errors, from
  one text to the next by their longest matching blocks; a word that only moves does not count.
- MB: resident, of all its processes, after the warm-up and after the clients at once.
- installed: all files of its environment.
- others: how many cores other programs had meanwhile, in the round in which they had most.

In the last round, in addition:

- two clients, and ``--clients``, at the same instant, with different clips. Served: the text is final within 15 s of
  the end of speech, and it is that of this clip (at most 30 % word errors). Wrong: it has another text.
- what it says when it is asked for too much: of each client that was refused the first message of it, and how long
  after its connecting, or after the last pause or end in its speech, if there was one; of these the one in the middle.
- SIGSEGV to the process that decodes, while it does: what the client sees, and when there is text again, for that
  client or for a new one that begins to speak at that moment. Nothing restarts a server from outside here.

Medians. A peer that cannot be installed, or started, has its reason in place of figures. There is no target.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from asr_ws import log, models
from benchmarks.common import progress, read_manifest, report, reported, speech_folder, told_plainly
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.clips import FRAME_S, Clip, clips_of
from benchmarks.peers.environment import CannotRun, install, size_mb, versions_of
from benchmarks.peers.heard import MAX_WRONG, Heard, one_by_one
from benchmarks.peers.picture import draw, markdown
from benchmarks.peers.play import PATIENCE_S, QUIET_S, RELEASE_S
from benchmarks.peers.scenes import measure

__all__ = ["draw", "main", "markdown"]

MODEL: Final = "tiny.en"
N_QUICK: Final = 2


@click.command()
@reported
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--folder", "place", type=click.Path(path_type=Path), help="where they are installed")
@click.option("--only", multiple=True, type=click.Choice([*PEERS]), help="only this; may be repeated")
@click.option("--quick", is_flag=True, help="one round of two clips")
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1, 10))
@click.option("--clients", default=10, show_default=True, type=click.IntRange(2, 50), help="at once")
def main(
    folder: Path | None,
    place: Path | None,
    only: tuple[str, ...],
    quick: bool,
    rounds: int,
    clients: int,
) -> None:
    """This server beside others, on the recordings in FOLDER (default: the bundled ones)."""
    log.configure(level="error")
    model = models.resolve(MODEL)
    place = (place or models.cache_dir().parent / "peers").resolve()
    place.mkdir(parents=True, exist_ok=True)
    with speech_folder(folder) as speech:
        clips = clips_of(read_manifest(speech))
    clips, rounds = (clips[:N_QUICK], 1) if quick else (clips, rounds)
    chosen = [PEERS[name] for name in only or PEERS]
    with progress() as bars, told_plainly():
        bar = bars.add_task("", total=len(chosen) * (rounds + 1))

        def say(what: str) -> None:
            bars.update(bar, description=what)

        found = asyncio.run(_measure_all(chosen, place, model, clips, rounds, clients, say, lambda: bars.advance(bar)))
    settings = {
        "model": MODEL,
        "compute_type": "int8",
        "clips": [clip.spoken.name for clip in clips],
        "rounds": rounds,
        "clients": clients,
        "frame_ms": round(1000 * FRAME_S),
        "quiet_s": QUIET_S,
        "patience_s": PATIENCE_S,
        "release_s": RELEASE_S,
        "max_wrong": MAX_WRONG,
    }
    figures = {"peers": found}
    click.echo("\n".join(markdown({"settings": settings, **figures})))
    sys.exit(report("peers", settings=settings, figures=figures, passed=None, draw=draw))


async def _measure_all(
    peers: Sequence[Peer],
    folder: Path,
    model: Path,
    clips: Sequence[Clip],
    rounds: int,
    clients: int,
    say: Callable[[str], None],
    step: Callable[[], None],
) -> dict[str, dict[str, Any]]:
    """For the report, by the peer's name."""
    found: dict[str, dict[str, Any]] = {peer.name: {"differs": peer.differs} for peer in peers}
    heard: dict[str, list[Heard]] = {peer.name: [] for peer in peers}
    places: dict[str, Path] = {}  # by environment

    async def attempt(peer: Peer, doing: Awaitable[None]) -> None:
        try:
            await doing
        except CannotRun as error:
            found[peer.name] = {"cannot": str(error)}
        step()

    async def prepare(peer: Peer) -> None:
        if peer.environment not in places:
            places[peer.environment] = install(peer, folder, lambda what: say(f"installing {what}"))
        place = places[peer.environment]
        found[peer.name] |= {"versions": versions_of(peer, place), "environment_mb": size_mb(place)}

    async def play_round(peer: Peer, n: int) -> None:
        played, figures = await measure(
            peer,
            places[peer.environment],
            model,
            folder / f"{peer.environment}.log",
            clips,
            clients=clients if n == rounds else None,
            say=lambda what: say(f"round {n}: {peer.name}: {what}"),
        )
        heard[peer.name] += played
        figures["others_cores"] = max(figures["others_cores"], found[peer.name].get("others_cores", 0.0))
        found[peer.name] |= figures

    for peer in peers:
        await attempt(peer, prepare(peer))
    for n in range(1, rounds + 1):
        for peer in peers:
            if "cannot" not in found[peer.name]:
                await attempt(peer, play_round(peer, n))
    for name, each in found.items():
        if "cannot" not in each:
            each["one"] = one_by_one(heard[name])
    return found
