"""Whether those who speak notice that others send as fast as the socket takes it.

    python -m benchmarks.blast [--seconds 180] [--blasters 3] [--speakers 4] [--model tiny.en] [--pause 3]
                               [--speech] [--report FILE]

The server is a process of its own, with the settings that users get. Each blaster, a process of its own, opens one
session with partials off and writes white noise until the server is stopped, in frames of 256 KiB, of 3200 bytes, or of
2 bytes; it reads events, counts them, and heeds none. Now and then it asks for a `pong`, which tells how much of its
audio was taken. The detector takes that noise for silence; with ``--speech`` the blasters send the bundled speech
instead, whose utterances compete for the model.

Beside them the speakers send the bundled speech in real time, round and round, each from another place in it: 11 s of
it, and then ``--pause`` seconds of silence for each second, so that by default one of four speaks at a time, as in a
conversation. More is not the blasters' doing, but more than the model can do on a small machine. The speakers hear
partials, and offer again what was refused, as the client library does. Every 100 ms each of them sends a `ping` in its
own session, whatever became of those before; what is still unanswered at the end counts with its age.

Targets: every utterance of the speakers came to its `final` and all that the protocol promises was kept
(`asr_ws.testing.conservation`), with no audio lost or refused in the end; no ping took more than 1 s; the server's
memory was never 20 MB above what it was after the first 15 s; nothing in its log is a bug; the blasters were there to
the end; and then the server stops by SIGTERM, with exit code 0.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, Final

import click
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from asr_ws import messages
from asr_ws.client import ConnectionLost
from asr_ws.testing.bare import BareSession, connect
from asr_ws.testing.conservation import Conservation, Place
from benchmarks.chaos import BUGS
from benchmarks.common import (
    PCM_BYTES_PER_S,
    Cores,
    CoreUse,
    Spread,
    other_process,
    progress,
    report,
    reported,
    speech_pcm,
    told_plainly,
    within,
)
from benchmarks.served import Sample, Served

MAX_PING_MS: Final = 1000.0
MAX_GROWTH_MB: Final = 20.0
WARM_UP_S: Final = 15.0  # from the first word to the memory that later ones are compared with
SAMPLE_EVERY_S: Final = 1.0
PING_EVERY_S: Final = 0.1
TURN_BYTES: Final = 11 * PCM_BYTES_PER_S
CHUNK_BYTES: Final = PCM_BYTES_PER_S // 10
END_LIMIT_S: Final = 150.0  # for the last utterances: a hold, and what comes after it
STOPPED: Final = 1012  # the close that blasters are to see, and no other
COUNTED: Final = ("final", "busy", "retry", "dropped", "error")  # events


@dataclass(frozen=True, slots=True)
class Kind:
    """How a blaster cuts its noise. ``pinged``: frames from one `ping` to the next."""

    name: str
    frame_bytes: int
    pinged: int

    @property
    def audio_s_per_ping(self) -> float:
        return self.frame_bytes * self.pinged / PCM_BYTES_PER_S

    def blocks(self, pcm: bytes) -> Iterator[bytes]:
        """These bytes on the wire, from one `ping` to the next; what is left over is left out."""
        ping = Frame(Opcode.TEXT, messages.encode(messages.Ping()).encode()).serialize(mask=True)
        n_bytes = self.frame_bytes * self.pinged
        for first in range(0, len(pcm) - n_bytes + 1, n_bytes):
            cuts = range(first, first + n_bytes, self.frame_bytes)
            frames = [Frame(Opcode.BINARY, pcm[at : at + self.frame_bytes]) for at in cuts]
            yield b"".join(frame.serialize(mask=True) for frame in frames) + ping


KINDS: Final = (
    Kind("256 KiB frames", messages.MAX_BINARY_BYTES, 1),
    Kind("3200-byte frames", 3200, 10),
    Kind("2-byte frames", 2, 100),
)
NOISE_S: Final = 10  # then it comes again: sooner, it would be a sound


@dataclass(frozen=True, slots=True)
class Blasted:
    """What one blaster sent until its last `pong`, what the server took of it, and what it said to that."""

    kind: Kind
    seconds: float
    sent_s: float
    taken_s: float
    told: dict[str, int]
    close_code: int | None

    @property
    def speed(self) -> float:
        """Of what was taken, in real times."""
        return self.taken_s / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Spoken:
    """What one speaker said and was told; ``seconds``: until it had said all."""

    seconds: float = 0.0
    sent_s: float = 0.0
    law: Conservation = field(default_factory=Conservation)
    told: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # of what was refused or dropped
    pings_ms: list[float] = field(default_factory=list)

    @property
    def taken_s(self) -> float:
        return self.law.done.received_ms / 1000 if self.law.done is not None else 0.0

    @property
    def speed(self) -> float:
        return self.taken_s / self.seconds if self.seconds else 0.0

    def misses(self) -> list[str]:
        """Why it is not content; nothing: it is."""
        law, done = self.law, self.law.done
        decoded = sum(each.place is Place.DECODED for each in law.utterances.values())
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(self.reasons.items()))
        found = [*law.breaches]
        if not law.utterances:
            found.append("said nothing")
        if decoded < len(law.utterances):
            found.append(f"{len(law.utterances) - decoded} of {len(law.utterances)} utterances have no final: {why}")
        if done is None:
            found.append("was not told `done`")
        elif done.lost_ms or done.refused_ms:
            found.append(f"{done.lost_ms} ms lost, {done.refused_ms} ms refused")
        if not self.pings_ms:
            found.append("no ping was answered")
        elif (slowest := max(self.pings_ms)) > MAX_PING_MS:
            found.append(f"a ping took {slowest:.0f} ms")
        return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """``exit_code`` None: it did not end when it was told to. ``waited``: see `CoreUse`, of the speakers' process."""

    speakers: Sequence[Spoken]
    blasters: Sequence[Blasted]
    rss_mb: Sequence[float]  # every SAMPLE_EVERY_S, from the first word to the last final
    bugs: dict[str, int]  # of BUGS, in the log
    exit_code: int | None
    waited: float | None = None

    @property
    def growth_mb(self) -> float | None:
        """From the end of the warm-up to the highest later; None: it was all warm-up."""
        later = self.rss_mb[round(WARM_UP_S / SAMPLE_EVERY_S) :]
        return max(later) - later[0] if len(later) > 1 else None

    def misses(self) -> list[str]:
        """Which targets were missed, for people; empty: none."""
        found = [f"speaker {n}: {miss}" for n, each in enumerate(self.speakers, 1) for miss in each.misses()]
        for n, blaster in enumerate(self.blasters, 1):
            if blaster.close_code != STOPPED or not blaster.taken_s:
                found.append(f"blaster {n}: closed {blaster.close_code} with {blaster.taken_s:.1f} s taken")
        if self.growth_mb is not None and self.growth_mb >= MAX_GROWTH_MB:
            found.append(f"memory grew by {self.growth_mb:.1f} MB")
        if self.bugs:
            found.append(f"the log has {self.bugs}")
        if self.exit_code != 0:
            found.append(f"exit code {self.exit_code}")
        return found

    def figures(self) -> dict[str, Any]:
        """For the report."""
        growth = self.growth_mb
        return {
            "speakers": [
                {
                    **_said(each),
                    "utterances": len(each.law.utterances),
                    "reasons": dict(each.reasons),
                    "refused_ms": each.law.done and each.law.done.refused_ms,
                    "lost_ms": each.law.done and each.law.done.lost_ms,
                    "ping_ms": Spread.of(each.pings_ms).figures(1) if each.pings_ms else None,
                }
                for each in self.speakers
            ],
            "blasters": [
                {"frame_bytes": each.kind.frame_bytes, **_said(each), "close_code": each.close_code}
                for each in self.blasters
            ],
            "rss_mb": [round(each, 1) for each in self.rss_mb],
            "growth_mb": growth and round(growth, 1),
            "exit_code": self.exit_code,
            "speakers_waited_for_core": self.waited and round(self.waited, 3),
            "missed": self.misses(),
        }


def _said(each: Blasted | Spoken) -> dict[str, Any]:
    told = {event: each.told.get(event, 0) for event in COUNTED}
    return {"sent_s": round(each.sent_s, 1), "taken_s": round(each.taken_s, 1), "speed": round(each.speed, 2), **told}


def table(outcome: Outcome) -> list[str]:
    """Lines for people."""
    lines = [
        f"{'client':<28}{'sent s':>9}{'taken s':>9}{'x real time':>12}{'finals':>8}{'busy':>6}{'retries':>9}"
        f"{'dropped':>9}{'errors':>8}{'ping p50':>10}{'p99':>7}{'max ms':>8}"
    ]
    for n, speaker in enumerate(outcome.speakers, 1):
        spread = Spread.of(speaker.pings_ms) if speaker.pings_ms else None
        pings = f"{spread.p50:>10.1f}{spread.p99:>7.1f}{spread.max:>8.1f}" if spread else ""
        lines.append(_row(f"speaker {n}", speaker) + pings)
    for n, blaster in enumerate(outcome.blasters, 1):
        lines.append(_row(f"blaster {n}, {blaster.kind.name}", blaster))
    growth = "not judged in so short a run" if outcome.growth_mb is None else f"{outcome.growth_mb:+.1f} MB"
    lines.append(f"memory {outcome.rss_mb[0]:.1f} MB, {max(outcome.rss_mb):.1f} at most; after the warm-up {growth}")
    if outcome.waited is not None:
        lines.append(f"the speakers' process waited for a core {outcome.waited:.0%} of the time")
    return [*lines, *(f"missed: {miss}" for miss in outcome.misses())]


def _row(who: str, each: Blasted | Spoken) -> str:
    finals, busy, retries, dropped, errors = (each.told.get(event, 0) for event in COUNTED)
    return (
        f"{who:<28}{each.sent_s:>9.1f}{each.taken_s:>9.1f}{each.speed:>12.2f}{finals:>8}{busy:>6}{retries:>9}"
        f"{dropped:>9}{errors:>8}"
    )


async def measure(
    model: str, n_blasters: int, n_speakers: int, seconds: float, *, pause: float, speech: bool
) -> Outcome:
    """Raises: click.ClickException: it cannot be run at all."""
    loop = asyncio.get_running_loop()
    pcm = speech_pcm()
    with ExitStack() as stack:
        pools = [stack.enter_context(other_process(Cores())) for _ in range(n_blasters)]  # they end when the server has
        server = await Served.start("--model", model)
        try:
            await server.until(state="ready")
            blasting = [
                loop.run_in_executor(pool, blast, server.url, kind, pcm if speech else noise(seed))
                for seed, (pool, kind) in enumerate(zip(pools, cycle(KINDS), strict=False))
            ]
            await server.until(sessions=n_blasters)
            core, samples = CoreUse(), [server.sample()]
            sampler = asyncio.create_task(_sample(server, samples), name="sampler")
            async with within(seconds + END_LIMIT_S, "the speakers to end"), asyncio.TaskGroup() as tasks:
                speakers = [
                    tasks.create_task(
                        speak(server.url, turns(pcm, pause), n / n_speakers, seconds), name=f"speaker {n}"
                    )
                    for n in range(n_speakers)
                ]
            sampler.cancel()
            waited = core.waited_share
            exit_code = await server.stop()
            blasted = await asyncio.gather(*blasting)
        finally:
            await server.kill()
    bugs = {event: n for event in BUGS if (n := server.log[event])}
    rss_mb = [each.rss_mb for each in samples]
    return Outcome([each.result() for each in speakers], blasted, rss_mb, bugs, exit_code, waited)


async def _sample(server: Served, samples: list[Sample]) -> None:
    began = samples[0].at_s
    while True:
        await asyncio.sleep(began + len(samples) * SAMPLE_EVERY_S - asyncio.get_running_loop().time())
        samples.append(server.sample())


# ---------------------------------------------------------------- speakers


def turns(pcm: bytes, pause: float) -> bytes:
    """Speech as in a conversation: after each turn as much silence for each second of it."""
    starts = range(0, len(pcm), TURN_BYTES)
    return b"".join(pcm[at : at + TURN_BYTES] + bytes(round(pause * TURN_BYTES) // 2 * 2) for at in starts)


async def speak(url: str, pcm: bytes, place: float, seconds: float) -> Spoken:
    """One session in real time, from that place in the speech (0 to 1) on, for so long; and all that it is told."""
    loop = asyncio.get_running_loop()
    spoken, code = Spoken(), 1000
    sent_at: dict[str | int | None, float] = {}
    n_chunks, first = round(seconds * PCM_BYTES_PER_S / CHUNK_BYTES), round(place * len(pcm)) // 2 * 2
    round_ = pcm[first:] + pcm[:first]
    chunks = [round_[at : at + CHUNK_BYTES] for at in range(0, len(round_), CHUNK_BYTES)]

    def said() -> Iterator[bytes]:
        began = loop.time()
        for chunk in islice(cycle(chunks), n_chunks):
            spoken.sent_s += len(chunk) / PCM_BYTES_PER_S
            yield chunk
        spoken.seconds = loop.time() - began

    async with connect(url) as session:
        pinging = asyncio.create_task(_ping(session, sent_at), name="pings")
        try:
            async for event in session.stream(said(), realtime=True):
                spoken.law.receive(event)
                spoken.told[_name(event)] += 1
                if isinstance(event, messages.Busy | messages.Retry | messages.Dropped):
                    spoken.reasons[f"{_name(event)} {event.reason}"] += 1
                if isinstance(event, messages.Pong):
                    spoken.pings_ms.append((loop.time() - sent_at.pop(event.id)) * 1000)
        except ConnectionLost as lost:
            code = lost.close_code
        finally:
            pinging.cancel()
        spoken.pings_ms += [(loop.time() - at) * 1000 for at in sent_at.values()]
    spoken.law.close(code)
    return spoken


async def _ping(session: BareSession, sent_at: dict[str | int | None, float]) -> None:
    """Until cancelled, or the connection is lost, which the reader tells."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with suppress(ConnectionLost):
        for n in range(sys.maxsize):
            await asyncio.sleep(began + n * PING_EVERY_S - loop.time())
            sent_at[n] = loop.time()
            await session.ping(n)


def _name(event: messages.ServerEvent | messages.Unknown) -> str:
    return str(type(event).__struct_config__.tag)


def noise(seed: int) -> bytes:
    """NOISE_S of it, white and loud."""
    return random.Random(seed).randbytes(NOISE_S * PCM_BYTES_PER_S)


# ---------------------------------------------------------------- in a blaster's process


def blast(url: str, kind: Kind, pcm: bytes) -> Blasted:
    """Until the server closes the session."""
    return asyncio.run(_blast(url, kind, pcm))


async def _blast(url: str, kind: Kind, pcm: bytes) -> Blasted:
    loop = asyncio.get_running_loop()
    told = Counter[str]()
    n_sent = n_sent_then = 0
    answered_at = 0.0

    def note_sent() -> None:
        nonlocal n_sent
        n_sent += 1

    async with open_socket(session_url(url), compression=None, ping_interval=None) as socket:
        await socket.send(messages.encode(messages.Start(partials=False)))
        began = loop.time()
        flooding = asyncio.create_task(flood(socket, kind.blocks(pcm), note_sent), name="flood")
        with suppress(ConnectionClosed):
            while True:
                event = messages.decode_event(await socket.recv())
                told[_name(event)] += 1
                if isinstance(event, messages.Pong):  # after the last of them the server stops, and takes no audio
                    answered_at, n_sent_then = loop.time() - began, n_sent
        flooding.cancel()
        await asyncio.wait([flooding])
    audio_s = kind.audio_s_per_ping
    return Blasted(kind, answered_at, n_sent_then * audio_s, told["pong"] * audio_s, dict(told), socket.close_code)


def session_url(url: str) -> str:
    """Of the server at this plain address."""
    return url.replace("http", "ws", 1) + messages.PATH


async def flood(socket: ClientConnection, blocks: Iterable[bytes], note_sent: Callable[[], None]) -> None:
    """Write these bytes, in turn and as fast as they are taken, until the connection is closed.

    Args:
        note_sent: called after each that has left this process, but for what the transport may keep.
    """
    with suppress(OSError):
        for block in cycle(blocks):
            if socket.state is not State.OPEN:
                return
            socket.transport.write(block)  # not `send`, which takes longer for a frame than the server
            await socket.drain()
            note_sent()
            await asyncio.sleep(0)  # who reads is to have its turn too


@click.command()
@reported
@click.option("--seconds", default=180.0, show_default=True, type=click.FloatRange(1), help="of speech")
@click.option("--blasters", "n_blasters", default=3, show_default=True, type=click.IntRange(0, 16))
@click.option("--speakers", "n_speakers", default=4, show_default=True, type=click.IntRange(1, 40))
@click.option("--model", default="tiny.en", show_default=True)
@click.option("--pause", default=3.0, show_default=True, type=click.FloatRange(0), help="of speakers, see above")
@click.option("--speech", is_flag=True, help="blasters send speech too, which fills the queue")
def main(seconds: float, n_blasters: int, n_speakers: int, model: str, pause: float, speech: bool) -> None:
    """Whether those who speak notice that others send as fast as the socket takes it."""
    with progress(still=True) as bars, told_plainly():
        bars.add_task(f"{n_blasters} blasters and {n_speakers} speakers, for {seconds:g} s", total=None)
        bars.refresh()
        outcome = asyncio.run(measure(model, n_blasters, n_speakers, seconds, pause=pause, speech=speech))
    for line in table(outcome):
        click.echo(line)
    settings = {"model": model, "seconds": seconds, "blasters": n_blasters, "speakers": n_speakers}
    settings |= {"pause": pause, "speech": speech}
    sys.exit(report("blast", settings=settings, figures=outcome.figures(), passed=not outcome.misses()))


if __name__ == "__main__":
    main()
