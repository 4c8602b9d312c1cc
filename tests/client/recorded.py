"""A recording whose every frame says where it is, and connections of it whose server is a script.

1000 frames a second: a frame is a millisecond.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from asr_ws import messages
from asr_ws.client.connection import Connection
from asr_ws.client.events import OWN, Event
from asr_ws.client.recording import Recording
from asr_ws.client.ring import AudioRing

RATE = 1000
START = messages.Start(language="en")
READY = messages.Ready(
    protocol=messages.PROTOCOL,
    session="s-1",
    server="0.1.0",
    model="tiny.en",
    languages=["en"],
    state="ready",
    limits=messages.Limits(3, 8000, 30_000, 262_144, 64, 60_000),
)
STARTED = messages.Started(
    seq=1,
    audio=messages.AudioInForce(),
    language="en",
    task="transcribe",
    partials=True,
    words=False,
    endpointing=messages.EndpointingInForce(silence_ms=5000, prefix_ms=300, min_speech_ms=150),
    max_wait_ms=8000,
)
HEARING_MS = 300 + 150 + 5 * 5000  # of these settings: after so much, nobody spoke


def audio(start: int, end: int) -> bytes:
    return np.arange(start, end).astype("<u2").tobytes()


def speech(utterance: str, start: int) -> messages.SpeechStarted:
    return messages.SpeechStarted(seq=1, utterance=utterance, audio_start_ms=start)


def partial(utterance: str, stable: str, end: int) -> messages.Partial:
    return messages.Partial(seq=1, utterance=utterance, stable=stable, unstable="", audio_end_ms=end)


def accepted(utterance: str, start: int, end: int, **changes: Any) -> messages.Accepted:
    fields: dict[str, Any] = {
        "attempt": 1,
        "commit": None,
        "position": 0,
        "estimated_wait_ms": 0,
        "estimated_final_ms": 0,
        "endpoint": "silence",
    }
    return messages.Accepted(
        seq=1, utterance=utterance, audio_start_ms=start, audio_end_ms=end, **{**fields, **changes}
    )


def final(utterance: str, start: int, end: int, **changes: Any) -> messages.Final:
    fields: dict[str, Any] = {
        "attempt": 1,
        "text": "said",
        "language": "en",
        "language_probability": 1.0,
        "wait_ms": 0,
        "decode_ms": 0,
        "segments": [],
    }
    return messages.Final(seq=1, utterance=utterance, audio_start_ms=start, audio_end_ms=end, **{**fields, **changes})


def busy(utterance: str | None, **changes: Any) -> messages.Busy:
    fields: dict[str, Any] = {
        "attempt": 1,
        "commit": None,
        "status": 503,
        "reason": "queue_full",
        "retry_after_ms": 800,
        "estimated_wait_ms": 4000,
        "queue_depth": 3,
        "queue_capacity": 3,
        "retryable": True,
        "held_ms": 60_000,
    }
    return messages.Busy(seq=1, utterance=utterance, **{**fields, **changes})


def dropped(utterance: str, start: int, end: int, reason: Any = "cancelled") -> messages.Dropped:
    return messages.Dropped(seq=1, utterance=utterance, reason=reason, audio_start_ms=start, audio_end_ms=end)


def error(code: str, **changes: Any) -> messages.Error:
    return messages.Error(seq=1, **{"code": code, "message": "", "hint": "", "fatal": False, **changes})


class NoJitter(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return 0.0


class Scene:
    """Attributes:
    log: what the connection sent: ranges of frames that follow each other as one, and messages by name; no pings.
    events: what its user was told.
    is_mute: whether the server leaves pings without an answer.
    """

    connection: Connection

    def __init__(self, *, ring_s: float = 60) -> None:
        self.recording = Recording(AudioRing(int(ring_s * RATE), 2), RATE)
        self.now = 0.0
        self.log: list[Any] = []
        self.events: list[Event] = []
        self.is_mute = False
        self._pings: list[str] = []

    def connect(self) -> Scene:
        self.log, self._pings = [], []
        self.connection = Connection(self.recording, START, now=self.now, rng=NoJitter())
        self.pump()
        self.tell(READY, STARTED)
        return self

    def lose(self, delay_s: float = 0.5) -> Scene:
        self._keep(self.connection.interrupt(delay_s=delay_s))
        return self

    def record(self, n: int, step: int | None = None) -> None:
        ring = self.recording.ring
        whole = audio(ring.end, ring.end + n)
        for at in range(0, len(whole), step or len(whole)):
            ring.append(whole[at : at + (step or len(whole))])
            self.pump()

    def commit(self, id: str | None = None) -> None:
        self.recording.commit(id)
        self.pump()

    def end(self) -> None:
        self.recording.is_ending = True
        self.pump()

    def cancel(self, utterance: str | None = None) -> None:
        self._keep(self.connection.cancel(utterance))
        self.pump()

    def tell(self, *events: messages.ServerEvent | messages.Unknown) -> None:
        for event in events:
            self._keep(self.connection.receive(event, now=self.now))
        self.pump()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.pump()

    def pong(self) -> None:
        pings, self._pings = self._pings, []
        self.tell(*(messages.Pong(id=id) for id in pings))

    def pump(self) -> None:
        self._keep(self.connection.lose_what_is_gone())
        while (sent := self.connection.next(now=self.now)) is not None:
            self._note(sent)
        if self._pings and not self.is_mute:
            self.pong()

    def of(self, *kinds: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]

    @property
    def unsettled(self) -> list[tuple[int, int]]:
        return self.recording.ring.unsettled(0, self.recording.ring.end)

    def _keep(self, events: list[Event]) -> None:
        self.events += [self.recording.number(event) for event in events]

    def _note(self, sent: bytes | messages.ClientMessage) -> None:
        match sent:
            case bytes() if len(sent) % 2 == 0:
                frames = np.frombuffer(sent, "<u2")
                start, end = int(frames[0]), int(frames[-1]) + 1
                assert end - start == len(frames)
                if self.log and isinstance(self.log[-1], tuple) and self.log[-1][1] == start:
                    start = self.log.pop()[0]
                self.log.append((start, end))
            case messages.Ping(id=str(id)) if id.startswith(OWN):
                self._pings.append(id)
            case messages.Commit():
                self.log.append(f"commit {'own' if sent.id == OWN else sent.id}")
            case messages.RetryUtterance() | messages.Cancel():
                self.log.append(f"{sent.__struct_config__.tag} {sent.utterance}")
            case messages.Start() | messages.End():
                self.log.append(sent.__struct_config__.tag)
            case _:
                self.log.append(sent)
