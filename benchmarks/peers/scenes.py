"""What one server is put through, one thing after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.catalogue import Peer
from benchmarks.peers.clips import Clip
from benchmarks.peers.environment import START_LIMIT_S, CannotRun, Others, Server
from benchmarks.peers.heard import Heard, together
from benchmarks.peers.play import LOADED_QUIET_S, PATIENCE_S, play
from benchmarks.served import send_signal

SETTLE_S: Final = 2.0
SETTLE_LIMIT_S: Final = 20.0
CRASH_AFTER: Final = 0.4  # of the speech, at the earliest
BACK_LIMIT_S: Final = 30.0
RETRY_S: Final = 0.5


async def warm(peer: Peer, server: Server, clip: Clip) -> None:
    """Until it says something: some listen before they have loaded their model. Raises: CannotRun."""
    await server.listens()
    loop = asyncio.get_running_loop()
    until = loop.time() + START_LIMIT_S
    while loop.time() < until:
        heard = await play(peer, server.address, clip)
        if heard.text:
            return
        if not server.is_alive:
            break
        await asyncio.sleep(1)
    raise CannotRun(f"no text within {START_LIMIT_S:g} s: {server.last_words()}")


async def settle(server: Server) -> None:
    """Until nothing of it is at work, or a while."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SETTLE_LIMIT_S
    quiet_since = loop.time()
    while loop.time() < min(until, quiet_since + SETTLE_S):
        if await server.decoding() is not None:
            quiet_since = loop.time()


async def many(peer: Peer, server: Server, clips: Sequence[Clip], n: int) -> list[Heard]:
    """That many clients at the same instant, each with the next clip."""
    mine = [clips[at % len(clips)] for at in range(n)]
    return list(await asyncio.gather(*(play(peer, server.address, clip, quiet_s=LOADED_QUIET_S) for clip in mine)))


async def crash(peer: Peer, server: Server, clip: Clip, short: Clip) -> dict[str, Any]:
    """SIGSEGV to the process that decodes, while it does, and what follows. For the report.

    ``saw`` is what its client was told, ``back_s`` when text came again, to that client or to one that came then.
    """
    loop = asyncio.get_running_loop()
    hit: list[float] = []  # by the clip's clock
    back: list[float] = []

    async def shoot(now: Callable[[], float]) -> None:
        await asyncio.sleep(clip.spoken.onset_s + CRASH_AFTER * (clip.spoken.end_s - clip.spoken.onset_s) - now())
        while (process := await server.decoding()) is None:
            pass
        hit.append(now())
        with suppress(ProcessLookupError):
            send_signal(process.pid, "SEGV")
        began = loop.time()
        while not back and loop.time() < began + BACK_LIMIT_S and server.processes():
            so_far = loop.time() - began
            other = await play(peer, server.address, short)
            back.extend([so_far + at for at, each in other.shown if each.text][:1])
            await asyncio.sleep(RETRY_S)

    shooting: list[asyncio.Task[None]] = []
    heard = await play(
        peer,
        server.address,
        clip,
        quiet_s=LOADED_QUIET_S,
        meanwhile=lambda now: shooting.append(asyncio.create_task(shoot(now), name="SIGSEGV")),
    )
    if shooting and hit:
        await asyncio.wait(shooting)
    for task in shooting:
        task.cancel()
    if not hit:
        return {"saw": "never seen to decode", "back_s": None, "alive": server.is_alive}
    again = min([*back, *after(heard, hit[0])], default=None)
    return {
        "saw": told(heard, hit[0]),
        "back_s": again and round(again, 1),
        "alive": bool(server.processes()),
    }


def after(heard: Heard, hit_s: float) -> list[float]:
    """How long after that moment this client was shown a text that it had not been shown before."""
    known = {each.text for at, each in heard.shown if at <= hit_s} | {""}
    return [at - hit_s for at, each in heard.shown if each.text not in known]


def told(heard: Heard, hit_s: float) -> str:
    """What a client was told whose server was hit at that moment, in words."""
    refusals = [each.words for at, each in heard.refused if at > hit_s]
    if heard.ended:
        return f"connection {heard.ended[1]}"
    if heard.verdict == "right" and heard.final_ms is not None:
        return f"{refusals[0]}, then its whole text" if refusals else "its whole text"
    return refusals[0] if refusals else "nothing more"


async def measure(
    peer: Peer,
    place: Path,
    model: Path,
    log: Path,
    clips: Sequence[Clip],
    *,
    clients: int | None,
    say: Callable[[str], None],
) -> tuple[list[Heard], dict[str, Any]]:
    """One life of the server. Raises: CannotRun.

    Args:
        clients: how many there are at once, after which it is also killed in mid-decode; None: neither.
    Returns:
        Of each clip, and what else goes into the report.
    """
    short = min(clips, key=lambda clip: clip.seconds)
    long = max(clips, key=lambda clip: clip.seconds)
    figures: dict[str, Any] = {}
    server = Server(peer, place, model, log)
    try:
        say("starting")
        await warm(peer, server, short)
        await settle(server)
        idle_mb = server.rss_mb()
        heard = []
        others = Others(server)
        for clip in clips:
            say(clip.spoken.name)
            heard.append(await play(peer, server.address, clip))
        figures["others_cores"] = others.cores
        if clients is not None:
            for name, n in (("two", 2), ("many", clients)):
                await settle(server)
                say(f"{n} clients")
                figures[name] = together(await many(peer, server, clips, n), PATIENCE_S)
            await settle(server)
            figures["rss_mb"] = {"idle": idle_mb, "after": server.rss_mb()}
            say("SIGSEGV")
            figures["crash"] = await crash(peer, server, long, short)
    finally:
        server.kill()
    return heard, figures
