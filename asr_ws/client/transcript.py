"""What a source came to, and the whole of it in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from asr_ws import messages
from asr_ws.client.address import DEFAULT_URL
from asr_ws.client.events import Event, Gap, is_lost
from asr_ws.client.session import connect
from asr_ws.client.sources import AudioSource
from asr_ws.errors import ClientError


@dataclass(slots=True)
class Transcript:
    """What a source came to.

    Attributes:
        finals: in the order of the audio.
        unfinished: what came to no text: `Dropped`, `Gap`, or `Error` of an utterance.
        done: the server's ledger.
    """

    finals: list[messages.Final] = field(default_factory=list)
    unfinished: list[messages.Error | messages.Dropped | Gap] = field(default_factory=list)
    done: messages.Done | None = None

    @property
    def text(self) -> str:
        return " ".join(final.text for final in self.finals if final.text)

    def receive(self, event: Event) -> None:
        match event:
            case messages.Final():
                self.finals.append(event)
                self.finals.sort(key=lambda final: final.audio_start_ms)
            case messages.Dropped() | Gap() | messages.Error() if is_lost(event):
                self.unfinished.append(event)
            case messages.Done():
                self.done = event


def collect(events: Iterable[Event]) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.receive(event)
    return transcript


def transcribe(
    source: AudioSource,
    url: str = DEFAULT_URL,
    *,
    realtime: bool = False,
    token: str | None = None,
    **start_fields: Any,
) -> Transcript:
    """Stream a source and wait for its text. Blocking; inside an event loop use `connect`.

    Raises:
        ClientError: see `connect` and `Session.stream`; or an event loop is running, as in a notebook.
    """
    with suppress(RuntimeError):  # there is none
        asyncio.get_running_loop()
        raise ClientError("an event loop is running here", "async with connect(...), or asr_ws.client.sync")

    async def run() -> Transcript:
        transcript = Transcript()
        async with connect(url, token=token, **{"partials": False, **start_fields}) as session:
            async for event in session.stream(source, realtime=realtime):
                transcript.receive(event)
        return transcript

    return asyncio.run(run())
