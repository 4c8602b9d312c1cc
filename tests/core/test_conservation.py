"""Nothing is lost: over random schedules attempts and utterances have exactly one outcome each, audio a fate.

Three sessions share the server's `Desk` in virtual time with the slices of a file; what clients do, what the worker
does, and when, is Hypothesis's choice, also whether the worker dies between a ticket's being taken and its decode, and
whether there are partials and speculations beside the finals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_ws import messages
from asr_ws.core.admission import Ticket
from asr_ws.core.desk import MAX_DEATHS
from asr_ws.core.drafts import Draft
from asr_ws.core.holds import Holds
from asr_ws.core.session import Close, Service, Session
from asr_ws.core.types import (
    DecodeOptions,
    EndpointReason,
    Hypothesis,
    Resampler,
    ServiceState,
    SessionId,
    Unfinished,
    Utterance,
)
from asr_ws.errors import DecodeFailed, WorkerDied, WorkerHung
from asr_ws.messages import (
    Cancel,
    Commit,
    End,
    Endpointing,
    Limits,
    RetryUtterance,
    ServerEvent,
    Start,
)
from asr_ws.testing import ScriptedDetector
from asr_ws.testing.conservation import Conservation
from asr_ws.testing.desk import Decoding, DeskClient, FileClient, ScriptedDesk, Step

N_SESSIONS = 3
SECOND = np.zeros(16_000, np.float32)
LIMITS = Limits(3, 8000, 30_000, 262_144, 64, 60_000)
LONG_ENOUGH_S = 1000.0  # for every scripted decode, deadline and hold, one after the other


def no_resampler(rate: int) -> Resampler:
    raise AssertionError(rate)


def check_events(events: list[ServerEvent], close: Close | None) -> Conservation:
    law = Conservation()
    for event in events:
        law.receive(event)
        messages.decode_event(messages.encode(event))  # all of it can be said
    if close is not None:
        law.close(close.code)
    assert law.breaches == []
    return law


# ---------------------------------------------------------------- what may happen


@dataclass(frozen=True)
class Act:
    """Of one client, or of the world: session, what, and with which value."""

    who: int
    what: str
    value: Any = None


LOUD, QUIET = True, False
CLIENT = [  # what, value, how often
    ("audio", (LOUD, 200), 3),
    ("audio", (LOUD, 1500), 3),
    ("audio", (LOUD, 31), 1),
    ("audio", (QUIET, 700), 6),
    ("audio", (QUIET, 1), 1),
    ("utterance", (LOUD, 31), 4),
    ("utterance", (LOUD, 700), 16),
    ("talk", 0.02, 8),  # a speculation begins, and at the endpoint it is running
    ("talk", 1.5, 8),  # ... or finished
    ("commit", None, 2),
    *((("retry", f"u{n}", 5)) for n in range(1, 5)),
    ("cancel", None, 4),
    *((("cancel", f"u{n}", 1)) for n in range(1, 4)),
    ("end", None, 2),
    ("disconnect", None, 1),
    ("nonsense", None, 1),
]
WORLD = [
    ("advance", 0.0, 3),
    ("advance", 0.1, 6),
    ("advance", 0.6, 12),
    ("advance", 1.5, 6),
    ("advance", 9.0, 4),
    ("advance", 70.0, 1),
    ("kill", None, 3),
    ("unavailable", None, 1),
    ("ready", None, 4),
    ("drain", None, 1),
    ("give_up", None, 1),
    ("background", math.inf, 6),
    ("background", 2.0, 2),
    ("background again", math.inf, 3),
]
acts = st.builds(
    lambda who, what_value: Act(who, *what_value),
    st.integers(0, N_SESSIONS - 1),
    st.sampled_from([(what, value) for what, value, n in [*CLIENT, *WORLD] for _ in range(n)]),
)
steps = st.builds(
    Step,
    st.sampled_from([0.01, 0.5, 0.5, 3.0, 20.0]),
    st.sampled_from([None, None, DecodeFailed("out of memory"), WorkerDied(), WorkerHung()]),
)


class World:
    def __init__(
        self, capacity: int, script: list[Step], modes: list[Any], reload_s: float, hold_bytes: int, drafts: list[bool]
    ) -> None:
        partials, speculation = drafts
        self.desk = ScriptedDesk(
            capacity,
            script,
            reload_s=reload_s,
            holds=Holds(hold_bytes),
            partials=partials,
            speculation=speculation,
        )
        self.clients: list[DeskClient] = []
        self.n_bytes = [0] * N_SESSIONS  # sent while audio was taken
        self.ended = [False] * N_SESSIONS  # `end` was heard
        self.gone = [False] * N_SESSIONS
        self.file = FileClient(self.desk, SessionId("file"))
        self.slices: list[Utterance] = []  # that were admitted, once for each attempt
        self._loud = np.full(16 * 1500, 29_491, "<i2").tobytes()
        service = Service("0", "m", ("en",), LIMITS, partials, speculation)
        for i, mode in enumerate(modes):
            session = Session(SessionId(f"s-{i}"), service, self.desk, ScriptedDetector, no_resampler)
            client = DeskClient(self.desk, session)
            client.send(Start(endpointing=Endpointing(mode=mode, max_utterance_ms=1000, silence_ms=300)))
            self.clients.append(client)

    def do(self, act: Act) -> None:
        client = self.clients[act.who]
        match act.what:
            case "advance":
                self.desk.advance(act.value)
            case "kill":
                self.desk.kill()
            case "unavailable" if self.desk.idle:
                self.desk.worker_changed(ServiceState.UNAVAILABLE, load_s=5.0)
            case "ready":
                self.desk.worker_changed(ServiceState.READY)
            case "background":
                slice = Utterance(
                    self.file.id, f"f{len(self.slices)}", SECOND, 0, 16_000, EndpointReason.SILENCE, DecodeOptions(None)
                )
                self._offer_slice(slice, act.value)
            case "background again":
                if self.file.outcomes and isinstance(told := self.file.outcomes[-1], Unfinished):
                    again = replace(told.utterance, attempt=told.utterance.attempt + 1)
                    if again not in self.slices:
                        self._offer_slice(again, act.value)
            case "drain":
                self.desk.drain()
            case "give_up":
                self.desk.drain()
                self.desk.give_up()
            case _ if self.gone[act.who]:
                pass
            case "audio":
                self._send_audio(act.who, *act.value)
            case "utterance":
                self._send_audio(act.who, *act.value)
                client.send(Commit(id="c"))
            case "talk":
                for loud, n_ms, pause_s in ((LOUD, 700, 0.2), (QUIET, 240, act.value), (QUIET, 100, 0.0)):
                    self._send_audio(act.who, loud, n_ms)
                    self.desk.advance(pause_s)
            case "commit":
                client.send(Commit())
            case "retry":
                client.send(RetryUtterance(utterance=act.value))
            case "cancel":
                client.send(Cancel(utterance=act.value))
            case "nonsense":
                client.send("nonsense")
            case "end":
                self.end(act.who)
            case "disconnect":
                self.gone[act.who] = True
                client.disconnect()

    def _offer_slice(self, utterance: Utterance, max_wait_s: float) -> None:
        if isinstance(self.desk.offer_background(utterance, now=self.desk.now, max_wait_s=max_wait_s), Ticket):
            self.slices.append(utterance)

    def end(self, who: int) -> None:
        self.ended[who] |= self.clients[who].session.takes_audio
        self.clients[who].send(End())

    def _send_audio(self, who: int, loud: bool, n_ms: int) -> None:
        client = self.clients[who]
        self.n_bytes[who] += n_ms * 32 if client.session.takes_audio else 0
        client.send(self._loud[: n_ms * 32] if loud else bytes(n_ms * 32))


@settings(max_examples=200, deadline=None)
@given(
    acts=st.lists(acts, min_size=20, max_size=80),
    script=st.lists(steps, max_size=12),
    capacity=st.integers(1, 3),
    modes=st.lists(st.sampled_from(["manual", "server"]), min_size=N_SESSIONS, max_size=N_SESSIONS),
    reload_s=st.sampled_from([0.5, 10.0]),
    hold_bytes=st.sampled_from([100_000, 64_000_000]),
    drafts=st.lists(st.booleans(), min_size=2, max_size=2),
)
def test_every_attempt_and_utterance_has_one_outcome_and_all_audio_a_fate(
    acts: list[Act],
    script: list[Step],
    capacity: int,
    modes: list[Any],
    reload_s: float,
    hold_bytes: int,
    drafts: list[bool],
) -> None:
    world = World(capacity, script, modes, reload_s, hold_bytes, drafts)
    desk = world.desk
    for act in acts:
        world.do(act)
        assert desk.queue.depth <= capacity
    desk.worker_changed(ServiceState.READY)
    for who, gone in enumerate(world.gone):
        if not gone:
            world.end(who)
    desk.advance(LONG_ENOUGH_S)

    for client, ended, gone, n_bytes in zip(world.clients, world.ended, world.gone, world.n_bytes, strict=True):
        law = check_events(client.events, None if gone else client.session.close)
        ledger = client.session.ledger
        assert (ledger.received, ledger.lost) == (n_bytes // 2, 0)
        if gone:
            continue
        assert law.unsettled == []
        spans = [told.span_ms for told in law.utterances.values()]
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        if client.session.close == Close(1000):
            assert ended
        else:
            assert client.session.close in (Close(1012, "the server stops"), Close(1008, "bad_message"))

    outcomes = [(outcome.utterance.id, outcome.utterance.attempt) for outcome in world.file.outcomes]
    assert sorted(outcomes) == sorted((utterance.id, utterance.attempt) for utterance in world.slices)
    assert (desk.queue.depth, desk.queue.background_depth, desk.queue.in_flight) == (0, 0, None)
    finals = [decoding for decoding in desk.decodings if isinstance(decoding.spoken, Utterance)]
    assert all(decoding.began_at <= decoding.deadline for decoding in finals)
    assert all(decoding.utterance.deaths < MAX_DEATHS for decoding in finals)
    assert all(before.ended_at <= after.began_at for before, after in pairwise(desk.decodings))
    assert all(decoding.ended_at < math.inf for decoding in desk.decodings)
    decoded = [(u.session, u.id, u.attempt, u.deaths) for u in (decoding.utterance for decoding in finals)]
    assert len(decoded) == len(set(decoded))  # again in the same attempt only after a death
    check_background([decoding.work.of for decoding in finals if isinstance(decoding.work.of, Ticket)])
    check_drafts([decoding for decoding in desk.decodings if decoding not in finals])


def check_background(tickets: list[Ticket]) -> None:
    """None was taken while a live one waited which was taken after it."""
    slices = [ticket.first_taken_at for ticket in tickets if ticket.background]
    for live in tickets:
        if not live.background:
            assert live.first_taken_at is not None
            assert not any(live.accepted_at < at < live.first_taken_at for at in slices if at is not None)


def check_drafts(decodings: list[Decoding]) -> None:
    """The rules of `asr_ws.core.drafts`, by what the worker was given."""
    assert all(decoding.n_waiting == 0 for decoding in decodings)
    barred: set[tuple[SessionId, str]] = set()
    for decoding in decodings:
        assert isinstance(decoding.spoken, Draft)
        key = (decoding.spoken.session, decoding.spoken.id)
        assert key not in barred
        if not isinstance(decoding.result, Hypothesis):
            barred.add(key)
    partials = [decoding for decoding in decodings if decoding.work.options.partial]
    last: dict[SessionId, float] = {}
    for decoding in partials:
        draft = decoding.spoken
        assert isinstance(draft, Draft)
        assert draft.speech_s >= 0.5
        assert not draft.pausing or draft.complete
        assert decoding.began_at - last.get(draft.session, -math.inf) >= 0.3 - 1e-9
        last[draft.session] = decoding.began_at
    for before, after in pairwise(partials):
        assert before.ended_at - before.began_at <= after.began_at - before.ended_at + 1e-6
