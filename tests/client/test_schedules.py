"""Whatever happens in whatever order: each range of audio has one outcome, and is where it was said.

The server is a model of one: it hears speech by the frames' own positions, so that it knows where in the recording each
utterance truly lies. Unrealistic about it: it decodes nothing, and its detector does not depend on what came before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import msgspec
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asr_ws import messages
from asr_ws.client.connection import Connection
from asr_ws.client.events import Event, Gap
from asr_ws.client.recording import Recording
from asr_ws.client.ring import AudioRing
from asr_ws.testing.conservation import Conservation
from tests.client.recorded import READY, NoJitter, accepted, busy, dropped, final, speech

RATE, RING_S = 1000, 20
BLOCK, SPOKEN = 1500, 900  # of each block of frames the first ones are speech
SILENCE, ONSET = 200, 100  # frames to an endpoint, and to speech_started
RULES = messages.EndpointingInForce(silence_ms=SILENCE, prefix_ms=0, min_speech_ms=ONSET)


@dataclass
class Utterance:
    id: str
    start: int  # of the session
    truth: int  # of the recording
    end: int = 0
    true_end: int = 0
    commit: str | None = None
    attempt: int = 0
    is_held: bool = False


@dataclass
class Server:
    """One session. ``script`` says what becomes of each attempt."""

    script: list[str]
    mode: Literal["server", "manual"]
    n_frames: int = 0
    true_end: int = 0  # of the recording: of what came last
    n_ids: int = 0
    hearing: Utterance | None = None
    n_onset: int = 0
    n_silent: int = 0
    admitted: list[Utterance] = field(default_factory=list)
    held: dict[str, Utterance] = field(default_factory=dict)
    said: list[messages.ServerEvent] = field(default_factory=list)
    is_ending: bool = False
    is_done: bool = False

    def receive(self, sent: bytes | messages.ClientMessage) -> None:
        match sent:
            case bytes():
                for position in np.frombuffer(sent, "<u4"):
                    self._hear(int(position))
            case messages.Commit():
                self._commit(sent.id)
            case messages.Ping():
                self.said.append(messages.Pong(id=sent.id, seq=1))
            case messages.RetryUtterance():
                if (utterance := self.held.pop(sent.utterance, None)) is not None:
                    self._offer(utterance)
            case messages.Cancel():
                self._cancel(sent.utterance)
            case messages.End():
                self._endpoint(None)
                self.is_ending = True

    def decode(self) -> None:
        """The next outcome of an admitted utterance; at the end also of those that are held."""
        if not self.admitted:
            if self.is_ending and not self.held and not self.is_done:
                self.is_done = True
                self.said.append(messages.Done(self.n_frames, 0, 0, 0, 0, 0, 0, 0, 0, 0, seq=1))
            return
        utterance = self.admitted.pop(0)
        match self.script.pop() if self.script else "final":
            case "retry":
                utterance.is_held = True
                self.held[utterance.id] = utterance
                refused = busy(utterance.id, attempt=utterance.attempt)
                fields = {name: getattr(refused, name) for name in refused.__struct_fields__}
                self.said.append(messages.Retry(**fields, waited_ms=0))
            case "error":
                code = "poison_audio"
                fields = {"code": code, "message": "", "hint": "", "fatal": False, "utterance": utterance.id}
                self.said.append(messages.Error(**fields, seq=1))
            case _:
                where = f"{utterance.truth} {utterance.true_end}"
                self.said.append(
                    final(utterance.id, utterance.start, utterance.end, attempt=utterance.attempt, text=where)
                )

    def _hear(self, position: int) -> None:
        is_speech = self.mode == "manual" or position % BLOCK < SPOKEN
        if self.hearing is None:
            self.n_onset = self.n_onset + 1 if is_speech else 0
            onset = {"server": ONSET, "manual": 1}[self.mode]
            if self.n_onset == onset:
                self.hearing = self._begin(self.n_frames + 1, position + 1)
        self.n_frames += 1
        self.true_end = position + 1
        if self.hearing is not None:
            if is_speech:
                self.hearing.end, self.hearing.true_end = self.n_frames, position + 1
            self.n_silent = 0 if is_speech else self.n_silent + 1
            if self.n_silent == SILENCE:
                self._endpoint(None)

    def _begin(self, end: int, true_end: int) -> Utterance:
        """With the frames of speech up to there."""
        self.n_ids += 1
        start = end - self.n_onset
        self.said.append(speech(f"u{self.n_ids}", start))
        return Utterance(f"u{self.n_ids}", start, true_end - self.n_onset, end, true_end)

    def _commit(self, id: str | None) -> None:
        if self.hearing is None and self.n_onset:  # a commit takes what is too short to be speech
            self.hearing = self._begin(self.n_frames, self.true_end)
        if self.hearing is None:
            fields = {"code": "nothing_to_commit", "message": "", "hint": "", "fatal": False, "commit": id}
            self.said.append(messages.Error(**fields, seq=1))
        self.n_onset = 0
        self._endpoint(id)

    def _endpoint(self, commit: str | None) -> None:
        if (utterance := self.hearing) is not None:
            self.hearing, self.n_silent, self.n_onset = None, 0, 0
            utterance.commit = commit
            self._offer(utterance)

    def _offer(self, utterance: Utterance) -> None:
        utterance.attempt += 1
        fields: dict[str, Any] = {"attempt": utterance.attempt, "commit": utterance.commit}
        match self.script.pop() if self.script else "accept":
            case "busy":
                self.held[utterance.id] = utterance
                self.said.append(busy(utterance.id, **fields))
            case "draining":
                self.said.append(busy(utterance.id, held_ms=0, retryable=False, **fields))
                self.said.append(dropped(utterance.id, utterance.start, utterance.end, "not_held"))
            case _:
                self.admitted.append(utterance)
                self.said.append(accepted(utterance.id, utterance.start, utterance.end, **fields))

    def _cancel(self, id: str | None) -> None:
        chosen = [each for each in [*self.admitted, *self.held.values()] if id in (None, each.id)]
        if self.hearing is not None and id in (None, self.hearing.id):
            self.hearing.end = self.n_frames
            chosen.append(self.hearing)
            self.hearing, self.n_onset, self.n_silent = None, 0, 0
        elif id is None:
            self.n_onset = 0
        for each in chosen:
            self.held.pop(each.id, None)
            self.said.append(dropped(each.id, each.start, each.end))
        self.admitted = [each for each in self.admitted if each not in chosen]


class World:
    """A recording, its connections, and the servers behind them."""

    def __init__(self, script: list[str], mode: Literal["server", "manual"]) -> None:
        self.recording = Recording(AudioRing(RING_S * RATE, 4), RATE)
        self.now = 0.0
        self.events: list[Event] = []
        self.law = Conservation()
        self.script = script
        self.rules = msgspec.structs.replace(RULES, mode=mode)
        self.connection: Connection | None = None
        self.connect()
        self.cut()  # from now on the account is the recording's own, which is what is tested here
        self.connect()

    def connect(self) -> None:
        if self.connection is None:
            self.server = Server(self.script, self.rules.mode)
            self.connection = Connection(self.recording, messages.Start(), now=self.now, rng=NoJitter())
            started = messages.Started(
                messages.AudioInForce(), "en", "transcribe", True, False, self.rules, 8000, seq=1
            )
            for event in (READY, started):
                self.keep(self.connection.receive(event, now=self.now))

    def cut(self) -> None:
        if self.connection is not None:
            self.keep(self.connection.interrupt(delay_s=0.5))
            self.connection = None

    def record(self, n: int) -> None:
        ring = self.recording.ring
        ring.append(np.arange(ring.end, ring.end + n, dtype="<u4").tobytes())

    def send(self) -> None:
        """All that there is to send reaches the server."""
        if self.connection is not None:
            self.keep(self.connection.lose_what_is_gone())
            while (sent := self.connection.next(now=self.now)) is not None:
                self.server.receive(sent)

    def hear(self, n: int) -> None:
        """So many events of the server arrive."""
        if self.connection is not None:
            for event in self.server.said[:n]:
                self.keep(self.connection.receive(event, now=self.now))
            del self.server.said[:n]
            if self.connection.owed_now() and not self.connection.open and not self.recording.is_ending:
                self.cut()

    def act(self, action: str, n: int) -> None:
        match action:
            case "record":
                self.record(n)
            case "record a scrap":
                self.record(2 + n % 49)  # 1 ms is as far as rounding may move it
            case "commit":
                self.recording.commit(f"c{n}")
            case "cancel":
                self.keep((self.connection or self.recording).cancel(None))
            case "cancel one":
                for id in self.law.unsettled[n % 3 :][:1]:
                    self.keep((self.connection or self.recording).cancel(id))
            case "cut":
                self.cut()
            case "wait":
                self.now += n / 100
            case "decode":
                self.server.decode()
            case "hear":
                self.hear(1 + n % 4)
        if action != "cut":
            self.connect()
        self.send()

    def finish(self) -> None:
        self.recording.is_ending = True
        for _ in range(100_000):
            self.connect()
            self.send()
            self.server.decode()
            self.hear(100)
            assert self.connection is not None
            if self.connection.done is not None:
                if not self.connection.owed_now():
                    self.keep([self.connection.done])
                    return
                self.cut()
            self.now += 0.5
        raise AssertionError("it does not end")

    def keep(self, events: list[Event]) -> None:
        for event in events:
            numbered = self.recording.number(event)
            self.events.append(numbered)
            if not isinstance(numbered, Gap):
                self.law.receive(numbered)  # type: ignore[arg-type]


ACTIONS = st.tuples(
    st.sampled_from(
        ["record", "record", "record", "hear", "hear", "decode", "cut", "wait", "commit", "cancel", "cancel one"]
    ),
    st.integers(1, 2500),
)
TINY = st.tuples(
    st.sampled_from(
        [
            "record a scrap",
            "record a scrap",
            "commit",
            "commit",
            "hear",
            "decode",
            "cut",
            "wait",
            "cancel",
            "cancel one",
        ]
    ),
    st.integers(1, 2500),
)
OUTCOMES = st.sampled_from(["accept", "final", "accept", "final", "busy", "retry", "error", "draining"])


def run(actions: list[tuple[str, int]], script: list[str], mode: Literal["server", "manual"] = "server") -> World:
    world = World(script, mode)
    for action, n in actions:
        world.act(action, n)
    world.finish()
    return world


def check(world: World) -> None:
    assert world.law.breaches == []
    assert world.law.unsettled == []
    assert world.recording.ring.unsettled(0, world.recording.ring.end) == []
    assert world.recording.interrupted == []
    spans = sorted(
        (event.audio_start_ms, event.audio_end_ms)
        for event in world.events
        if isinstance(event, messages.Final | messages.Dropped | Gap) and event.audio_start_ms != event.audio_end_ms
    )
    assert all(start < end for start, end in spans), spans
    assert all(first[1] <= second[0] + 1 for first, second in pairwise(spans)), spans
    for event in world.events:
        if isinstance(event, messages.Final):
            truth = [int(ms) for ms in event.text.split()]
            told = [event.audio_start_ms, event.audio_end_ms]
            # A position next to a commit is taken for the commit's: times are whole milliseconds.
            assert all(abs(one - other) <= 1 for one, other in zip(truth, told, strict=True)), (truth, told)


HEARD, CUT = ("hear", 2), ("cut", 1)
TWICE_CUT = [("record", 1), ("record", 1599), HEARD, HEARD, CUT, ("record", 1), ("hear", 1), CUT, ("cancel", 1)]


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTIONS, max_size=60), st.lists(OUTCOMES, max_size=30))
@example(TWICE_CUT, [])  # as it is heard again, it is not known any more where it ends
def test_each_range_has_one_outcome_and_lies_where_it_was_said(
    actions: list[tuple[str, int]], script: list[str]
) -> None:
    check(run(actions, script))


@settings(max_examples=300, deadline=None)
@given(st.lists(TINY, max_size=60), st.lists(OUTCOMES, max_size=30))
def test_each_commit_has_one_outcome_however_little_was_said(actions: list[tuple[str, int]], script: list[str]) -> None:
    check(run(actions, script, "manual"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["record", "hear", "decode", "cut", "wait"]), st.integers(1, 900))))
def test_all_that_was_said_is_heard_however_often_it_is_cut(actions: list[tuple[str, int]]) -> None:
    """Within the ring, and by a server that refuses nothing."""
    world = run([each for each in actions if each[0] != "record"] and actions[:RING_S], [])
    check(world)
    spoken = {p for p in range(world.recording.ring.end) if p % BLOCK < SPOKEN}
    heard = [
        range(event.audio_start_ms, event.audio_end_ms) for event in world.events if isinstance(event, messages.Final)
    ]
    missed = spoken - {position for span in heard for position in span}
    cuts = sum(action == "cut" for action, _ in actions)
    assert len(missed) <= ONSET * (cuts + 1)  # what is left of a word after a cut may be too short to be one
