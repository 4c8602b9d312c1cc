"""A client: one clip over one connection, in real time, and what it is told meanwhile."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, WebSocketException

from benchmarks.peers.catalogue import Peer
from benchmarks.peers.clips import FRAME_S, Clip
from benchmarks.peers.heard import Heard, Refused, Shown
from benchmarks.peers.wires import Message, Send, Wire

OPEN_LIMIT_S: Final = 15.0  # until audio may be sent
SILENCE_S: Final = 1.5  # of noise, at least, after speech
RELEASE_S: Final = 0.2  # after the end of speech the button is let go
PATIENCE_S: Final = 15.0  # after the end of speech, for all text to be final
QUIET_S: Final = 2.0  # without a change: it is final, where the server has nothing else to do
LOADED_QUIET_S: Final = 5.0  # and where it has


class Ended(Exception):
    """The server's doing."""


@dataclass(slots=True)
class _WebSocket:
    socket: ClientConnection

    async def send(self, message: Message) -> None:
        await self.socket.send(message)

    async def receive(self) -> Message:
        try:
            return await self.socket.recv()
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else 1006
            raise Ended(f"closed with {code}") from closed


@dataclass(slots=True)
class _Plain:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, message: Message) -> None:
        assert isinstance(message, bytes)
        self.writer.write(message)
        await self.writer.drain()

    async def receive(self) -> Message:
        with suppress(ConnectionError):
            if found := await self.reader.read(1 << 16):
                return found
        raise Ended("closed")


@asynccontextmanager
async def _connection(address: str) -> AsyncIterator[_WebSocket | _Plain]:
    """Raises: Ended: refused."""
    try:
        async with asyncio.timeout(OPEN_LIMIT_S):
            if not address.startswith("tcp:"):
                socket = await open_socket(address, compression=None, ping_interval=None, max_size=None, proxy=None)
            else:
                target = urlsplit(address)
                reader, writer = await asyncio.open_connection(target.hostname, target.port)
    except (OSError, WebSocketException, TimeoutError) as error:
        raise Ended(f"not opened: {type(error).__name__}") from error
    if address.startswith("tcp:"):
        try:
            yield _Plain(reader, writer)
        finally:
            writer.close()
    else:
        try:
            yield _WebSocket(socket)
        finally:
            socket.transport.abort()
            await socket.wait_closed()


async def play(
    peer: Peer,
    address: str,
    clip: Clip,
    *,
    quiet_s: float = QUIET_S,
    meanwhile: Callable[[Callable[[], float]], None] | None = None,
) -> Heard:
    """Until all is final, the connection ends, or PATIENCE_S after the end of speech.

    Args:
        meanwhile: called when audio begins, with the clip's clock.
    """
    loop = asyncio.get_running_loop()
    heard = Heard(clip.spoken)
    wire = peer.wire()
    began = connecting = loop.time()

    def now() -> float:
        return loop.time() - began

    later: set[asyncio.Task[None]] = set()
    try:
        async with _connection(address) as connection:

            async def send_later(each: Send) -> None:
                await asyncio.sleep(each.after_s)
                with suppress(ConnectionClosed, ConnectionError):
                    await connection.send(each.message)

            async def listen() -> None:
                while True:
                    message = await connection.receive()
                    try:
                        told = list(wire.receive(message))
                    except (ValueError, KeyError) as error:
                        raise Ended(f"given up: {message[:80]!r} is no message of its protocol") from error
                    for each in told:
                        match each:
                            case Shown():
                                heard.shown.append((now(), each))
                            case Refused():
                                heard.refused.append((now(), each))
                            case Send():
                                later.add(asyncio.create_task(send_later(each), name="what was refused, again"))

            listening = asyncio.create_task(listen(), name=f"client of {peer.name}")
            later.add(listening)
            for message in wire.opening():
                await connection.send(message)
            while not wire.is_ready and not listening.done() and loop.time() < connecting + OPEN_LIMIT_S:
                await asyncio.sleep(0.01)
            began = loop.time()
            heard.connected_s = connecting - began
            if not wire.is_ready and not listening.done():
                raise Ended(f"no answer within {OPEN_LIMIT_S:g} s")
            if meanwhile is not None:
                meanwhile(now)
            speaking = asyncio.create_task(_speak(peer, connection.send, wire, clip, began, heard), name="microphone")
            later.add(speaking)
            until_s = clip.spoken.end_s + PATIENCE_S
            while now() < until_s and not listening.done():
                if now() >= clip.spoken.end_s + SILENCE_S and heard.is_settled(now(), quiet_s):
                    break
                await asyncio.sleep(FRAME_S / 2)
            if listening.done():
                listening.result()
    except (Ended, ConnectionClosed, ConnectionError, TimeoutError) as error:
        heard.ended = now(), str(error)
    finally:
        for task in later:
            task.cancel()
        await asyncio.gather(*later, return_exceptions=True)
    return heard


async def _speak(
    peer: Peer, send: Callable[[Message], Awaitable[None]], wire: Wire, clip: Clip, began: float, heard: Heard
) -> None:
    """Each frame when it is full, for as long as this runs; with push to talk until the button is let go."""
    loop = asyncio.get_running_loop()
    n_frames = math.ceil((clip.spoken.end_s + RELEASE_S) / FRAME_S) if peer.push_to_talk else None
    for n, pcm in enumerate(islice(clip.frames(), n_frames), 1):
        due = began + n * FRAME_S
        await asyncio.sleep(due - loop.time())
        heard.late_s = max(heard.late_s, loop.time() - due)
        await send(wire.frame(pcm))
    for message in wire.stop():
        await send(message)
