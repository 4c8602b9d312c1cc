"""What a connection costs the server's memory, whatever its client does with it.

    python -m benchmarks.memory [--sessions 50] [--kind NAME ...] [--seconds 5] [--settle-s 11] [--model tiny.en]

Each kind has a server of its own, a process. First `N_WARM_UP` sessions are opened, which stay: what they take is
partly room that was free anyway, and what all share. Then come ``--sessions`` of the kind, all at once; those that
flood do so for ``--seconds`` and then stand still. ``held`` is what each of them takes ``--settle-s`` later (the server
gives back what is free every 10 s), ``most`` the highest that was seen on the way, both as resident memory of the
server's process over that after the warm-up. What the system keeps for a connection is not in it: 64 KiB for each way,
as the server asks for, which Linux takes twice.

- idle: has been told `ready`, and says nothing. Without TLS and with it.
- speaking: speech in real time for ``--seconds``, with partials and endpoints, its events read; then silent.
- heard: 30 s in manual mode, less a sample, all of it sent, taken and not committed.
- tiny frames: of 1 byte, as fast as they are taken. - large frames: of 256 KiB, likewise.
- pings, unread: ping frames of 125 bytes, whose sender reads no pong. - events, unread: the same with `ping` messages.
- half a handshake: the beginning of a request, and no more.

What bounds them, as the code has it, from the socket inwards:

- TLS: asyncio's buffer of 256 KiB for what comes, there from the first byte on, and OpenSSL's own.
- a handshake: 10 s; the request has 128 headers and lines of 8 KiB at most.
- `Intake`: what asyncio read at once, 256 KiB at most and no more than the system had; nothing more is read while it
  lasts, while websockets has enough, or while what was written is not taken off.
- websockets: the frame that is coming (256 KiB, and once more as it is copied out), and frames that were not taken yet:
  it stops above 4, so there are 5 of 256 KiB, or those that one slice of 4 KiB had too, 680 at most. A message in
  fragments has 4096 of them, and 256 KiB, at most.
- the connection: the message whose audio is being taken (256 KiB), its slices as samples, and 256 events that are
  not read yet; then, or after 10 s, who does not read is cut off. What is written lies in the transport, where no more
  is put above 32 KiB.
- the session: an utterance being heard, 30 s of float32 (1.9 MB), in an array that is up to three times as long as what
  it holds; in silence the pre-roll, 1 s at most.
- all sessions together: ``--queue-capacity`` utterances that wait and one that is decoded, 1.9 MB each; 64 MB of those
  that were refused and are held, 2 a session.

Targets: idle, without TLS: <= 20 KiB; the server after the warm-up <= 130 MB.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import click
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.frames import Frame, Opcode

from asr_ws import messages
from asr_ws.server.door import descriptors_for
from asr_ws.server.memory import EVERY_S
from benchmarks.blast import flood, session_url
from benchmarks.chaos import BUGS
from benchmarks.common import (
    PCM_BYTES_PER_S,
    Report,
    narrow_socket,
    progress,
    report,
    reported,
    speech_pcm,
    told_plainly,
    within,
)
from benchmarks.served import POLL_S, READY_LIMIT_S, Served

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_IDLE_KIB: Final = 20.0
MAX_SERVER_MB: Final = 130.0  # with N_WARM_UP of them
N_WARM_UP: Final = 100  # with none, 50 idle sessions seemed to take 5 KiB each, with these what 500 take each
SETTLE_S: Final = EVERY_S + 1
VISIT_LIMIT_S: Final = 120.0  # beyond its flood
HEARD_BYTES: Final = 30 * PCM_BYTES_PER_S - 2  # a sample more would be cut, and offered
FRAMES_AT_ONCE: Final = 1000
FRAME_S: Final = 0.1  # of who speaks


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is. ``trusts``: it is encrypted."""

    url: str
    trusts: ssl.SSLContext | None = None

    async def session(self, *, narrow: bool = False) -> ClientConnection:
        """One that has been told `ready`. Args: narrow: with no room in the system for what it does not read."""
        options: dict[str, Any] = {"sock": await narrow_socket(self.url)} if narrow else {}
        options |= {"ssl": self.trusts, "compression": None, "ping_interval": None}
        socket = await open_socket(session_url(self.url), **options)
        await socket.recv()
        return socket


Visit = Callable[[Address, float], Awaitable[asyncio.BaseTransport]]  # of so many seconds, where it has no end


@dataclass(frozen=True, slots=True)
class Kind:
    """``arguments``: what the server needs for it."""

    name: str
    visit: Visit
    arguments: tuple[str, ...] = ()

    @property
    def encrypted(self) -> bool:
        return "--tls-self-signed" in self.arguments


async def idle(at: Address, seconds: float) -> asyncio.BaseTransport:
    return (await at.session()).transport


async def speaking(at: Address, seconds: float) -> asyncio.BaseTransport:
    socket = await at.session()

    async def read() -> None:
        async for _ in socket:
            pass

    reader = asyncio.create_task(read(), name="reader")
    loop = asyncio.get_running_loop()
    began, pcm, frame_bytes = loop.time(), speech_pcm(), round(FRAME_S * PCM_BYTES_PER_S)
    for n in range(round(seconds / FRAME_S)):
        at_byte = n * frame_bytes % (len(pcm) - frame_bytes)
        await socket.send(pcm[at_byte : at_byte + frame_bytes])
        await asyncio.sleep(began + (n + 1) * FRAME_S - loop.time())
    reader.cancel()  # what still comes is little
    return socket.transport


async def heard(at: Address, seconds: float) -> asyncio.BaseTransport:
    socket = await at.session()
    start = messages.Start(partials=False, endpointing=messages.Endpointing(mode="manual"))
    await socket.send(messages.encode(start))
    for first in range(0, HEARD_BYTES, messages.MAX_BINARY_BYTES):
        await socket.send(bytes(min(messages.MAX_BINARY_BYTES, HEARD_BYTES - first)))
    await socket.send(messages.encode(messages.Ping()))
    while not isinstance(messages.decode_event(await socket.recv()), messages.Pong):
        pass
    return socket.transport


async def flooded(at: Address, seconds: float, *, opcode: Opcode, payload: bytes, reads: bool) -> asyncio.BaseTransport:
    socket = await at.session(narrow=not reads)
    if not reads:
        socket.transport.pause_reading()
    n_frames = max(1, min(FRAMES_AT_ONCE, messages.MAX_BINARY_BYTES // len(payload)))
    block = Frame(opcode, payload).serialize(mask=True) * n_frames
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await flood(socket, [block], lambda: None)
    return socket.transport


async def half_handshake(at: Address, seconds: float) -> asyncio.BaseTransport:
    host, _, port = at.url.rpartition("/")[2].rpartition(":")
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, host, int(port))
    transport.write(f"GET {messages.PATH} HTTP/1.1\r\nHost: localhost\r\n".encode())
    return transport


EVENT_PING: Final = messages.encode(messages.Ping(id="x" * 128)).encode()
IDLE: Final = "idle"
KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind(IDLE, idle),
        Kind("idle, TLS", idle, ("--tls-self-signed",)),
        Kind("speaking", speaking),
        Kind("heard", heard, ("--ingest-speed", "1000")),
        Kind("tiny frames", partial(flooded, opcode=Opcode.BINARY, payload=b"x", reads=True)),
        Kind(
            "large frames",
            partial(flooded, opcode=Opcode.BINARY, payload=bytes(messages.MAX_BINARY_BYTES), reads=True),
        ),
        Kind("pings, unread", partial(flooded, opcode=Opcode.PING, payload=bytes(125), reads=False)),
        Kind("events, unread", partial(flooded, opcode=Opcode.TEXT, payload=EVENT_PING, reads=False)),
        Kind("half a handshake", half_handshake),
    )
}


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of so many connections together, MB. ``left``: sessions that were open at the end, of those."""

    kind: str
    connections: int
    before_mb: float
    held_mb: float
    most_mb: float
    left: int
    bugs: dict[str, int]  # of BUGS, in the log

    @property
    def held_kib(self) -> float:
        """Of each, as `most_kib`."""
        return self._each_kib(self.held_mb)

    @property
    def most_kib(self) -> float:
        return self._each_kib(self.most_mb)

    def _each_kib(self, mb: float) -> float:
        return (mb - self.before_mb) * 1e6 / 1024 / self.connections

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {
            "held_kib": round(self.held_kib, 1),
            "most_kib": round(self.most_kib, 1),
            "sessions_left": self.left,
            "rss_mb": [round(each, 1) for each in (self.before_mb, self.held_mb, self.most_mb)],
            "bugs": self.bugs,
        }


def verdict(footprints: Sequence[Footprint]) -> bool | None:
    """Whether idle ones keep the targets; None: there were none."""
    idle = next((each for each in footprints if each.kind == IDLE), None)
    return None if idle is None else idle.held_kib <= MAX_IDLE_KIB and idle.before_mb <= MAX_SERVER_MB


def draw(figure: Figure, report: Report) -> None:
    """What a connection takes, by what its client does: held, and the most."""
    kinds = [name for name, each in report.items() if isinstance(each, dict) and "held_kib" in each][::-1]
    axes = figure.add_subplot(xscale="log", title="Memory of the server for each connection", xlabel="KiB")
    for n, name in enumerate(kinds):
        held, most = (max(report[name][each], 1.0) for each in ("held_kib", "most_kib"))
        axes.plot([held, most], [n, n], color="0.7", zorder=1)
        axes.plot(held, n, "o", color="C0", label="afterwards" if n == 0 else None)
        axes.plot(most, n, "|", color="C1", markersize=14, label="at most" if n == 0 else None)
        axes.annotate(f"{held:,.0f} / {most:,.0f}", (most, n), (8, -3), textcoords="offset points", fontsize=8)
    axes.axvline(MAX_IDLE_KIB, color="C3", linestyle=":", label=f"aim when idle: {MAX_IDLE_KIB:.0f}")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.margins(x=0.15)
    axes.legend()


HEADER: Final = f"{'KiB of each':<20}{'connections':>12}{'held':>10}{'most':>10}{'sessions left':>15}"


def row(footprint: Footprint) -> str:
    """A line for people."""
    missed = f"  MISSED: {MAX_IDLE_KIB:.0f}, or {MAX_SERVER_MB:.0f} MB before" if verdict([footprint]) is False else ""
    bugs = f"  the log has {footprint.bugs}" if footprint.bugs else ""
    return (
        f"{footprint.kind:<20}{footprint.connections:>12}{footprint.held_kib:>10.1f}{footprint.most_kib:>10.1f}"
        f"{footprint.left:>15}{missed}{bugs}"
    )


async def measure(kind: Kind, n: int, seconds: float, settle_s: float, model: str) -> Footprint:
    """Raises: click.ClickException: it cannot be measured."""
    open_: list[asyncio.BaseTransport] = []
    with TemporaryDirectory() as folder:
        limits = ("--max-sessions", str(2 * (N_WARM_UP + n)), "--state-dir", folder)
        server = await Served.start("--model", model, *limits, *kind.arguments)
        try:
            async with within(READY_LIMIT_S, "the model"):
                while not server.log["worker.ready"]:
                    await asyncio.sleep(POLL_S)
            trusts = ssl.create_default_context(cafile=Path(folder) / "self-signed.pem") if kind.encrypted else None
            at = Address(server.url, trusts)
            async with within(VISIT_LIMIT_S, "sessions to be opened"):
                open_ += [await idle(at, seconds) for _ in range(N_WARM_UP)]
            await asyncio.sleep(settle_s)
            before, most_mb = server.sample(), 0.0

            async def watch() -> None:
                nonlocal most_mb
                while True:
                    most_mb = max(most_mb, server.sample().rss_mb)
                    await asyncio.sleep(POLL_S)

            watching = asyncio.create_task(watch(), name="memory")
            async with within(VISIT_LIMIT_S + seconds, kind.name):
                open_ += await asyncio.gather(*(kind.visit(at, seconds) for _ in range(n)))
            await asyncio.sleep(settle_s)
            watching.cancel()
            held = server.sample()
            left = server.log["session.opened"] - server.log["session.closed"] - N_WARM_UP
        finally:
            await server.kill()
            for transport in open_:
                transport.close()
    bugs = {event: server.log[event] for event in BUGS if server.log[event]}
    return Footprint(kind.name, n, before.rss_mb, held.rss_mb, max(most_mb, held.rss_mb), left, bugs)


@click.command()
@reported
@click.option("--sessions", default=50, show_default=True, type=click.IntRange(1, 1000), help="of each kind")
@click.option("--kind", "names", multiple=True, type=click.Choice([*KINDS]), help="only this; may be repeated")
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(0.1, 60), help="of each flood")
@click.option("--settle-s", default=SETTLE_S, show_default=True, type=click.FloatRange(0.1, 60), help="see above")
@click.option("--model", default="tiny.en", show_default=True)
def main(sessions: int, names: tuple[str, ...], seconds: float, settle_s: float, model: str) -> None:
    """What a connection costs the server's memory, whatever its client does with it."""
    descriptors_for(2 * (N_WARM_UP + sessions))
    click.echo(HEADER)
    footprints = []
    with progress(still=True) as bars, told_plainly():
        bar = bars.add_task("", total=None)
        for name in names or KINDS:
            bars.update(bar, description=name, refresh=True)
            footprints.append(asyncio.run(measure(KINDS[name], sessions, seconds, settle_s, model)))
            click.echo(row(footprints[-1]))
    settings = {"model": model, "sessions": sessions, "warm_up": N_WARM_UP, "seconds": seconds, "settle_s": settle_s}
    figures = {each.kind: each.figures() for each in footprints}
    sys.exit(report("memory", settings=settings, figures=figures, passed=verdict(footprints), draw=draw))


if __name__ == "__main__":
    main()
