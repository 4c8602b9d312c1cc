"""The server's single consumer in virtual time: sessions are tested against it without a worker, a socket or a clock.

It is `asr_ws.core.desk.Desk` itself, as the server's dispatcher drives it, with a worker whose decodes end as a script
says. As there, a decode begins, and outcomes are told, in a later turn: not before the next `advance`.

What is unrealistic:

- Nothing takes time but decodes and reloads; timers fire a microsecond late, always, and never early by the clock.
- The worker comes back after exactly ``reload_s``. It becomes `unavailable` only where a test says so.
- Every decode is expected to take ``estimate_s``, a partial ``partial_s``, whatever the last ones took.
- All outcomes that are due are told before anything else is received; on a real loop a message may come between.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from asr_ws import messages
from asr_ws.core.admission import AdmissionQueue, Ticket
from asr_ws.core.desk import Desk, Work
from asr_ws.core.drafts import Draft, Drafts
from asr_ws.core.holds import Holds
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.session import Session
from asr_ws.core.types import (
    Hypothesis,
    Outcome,
    Partial,
    Segment,
    ServiceState,
    ServiceStatus,
    SessionId,
    Utterance,
)
from asr_ws.errors import DecodeFailed, WorkerDied

TIMER_LATENCY_S = 1e-6


@dataclass(frozen=True, slots=True)
class Step:
    """How one decode goes: it takes ``decode_s``, then ends so; None: a hypothesis of what `spoken_text` says."""

    decode_s: float = 0.5
    ends: Hypothesis | DecodeFailed | WorkerDied | None = None


@dataclass(slots=True, eq=False)
class Decoding:
    """One decode that the worker began, for assertions afterwards; ``ended_at`` is inf while it lasts.

    ``spoken`` is what it decodes as it was then: a ticket's utterance, or a draft.
    """

    work: Work
    spoken: Utterance | Draft
    began_at: float
    n_waiting: int  # when it began, in the background too
    ended_at: float = math.inf
    result: Hypothesis | DecodeFailed | WorkerDied | None = None

    @property
    def utterance(self) -> Utterance:
        assert isinstance(self.spoken, Utterance)
        return self.spoken

    @property
    def deadline(self) -> float:
        assert isinstance(self.work.of, Ticket)
        return self.work.of.deadline


class ConstantServiceTime(ServiceTime):
    """Unrealistic: it learns nothing."""

    def observe(self, audio_s: float, decode_s: float) -> None:
        """What was expected stays expected."""


class ScriptedDesk(Desk):
    """A desk for sessions; time passes in `advance` alone.

    Args:
        script: how the decodes go, one step each, replays included; ``Step()`` when it is exhausted.
        state: the worker's at first; ``load_s`` is what its load is then said to take.
        uniform: the jitter of the retry hints; none by default.
    Attributes:
        now: monotonic seconds; pass it to the sessions.
        decodings: every decode so far, in order.
    """

    def __init__(
        self,
        capacity: int = 3,
        script: Iterable[Step] = (),
        *,
        state: ServiceState = ServiceState.READY,
        load_s: float = 0.0,
        reload_s: float = 1.0,
        estimate_s: float = 0.5,
        partials: bool = False,
        speculation: bool = False,
        partial_s: float = 0.125,
        holds: Holds | None = None,
        uniform: Callable[[float, float], float] = lambda low, high: low,
    ) -> None:
        final_time, partial_time = ConstantServiceTime(estimate_s), ConstantServiceTime(partial_s)
        drafts = Drafts(final_time, partial_time, partials=partials, speculation=speculation)
        super().__init__(AdmissionQueue(capacity, final_time, uniform), holds or Holds(), drafts)
        self.now = 1000.0
        self.decodings: list[Decoding] = []
        self._script = iter(script)
        self._reload_s = reload_s
        self._clients: dict[SessionId, DeskClient | FileClient] = {}
        self._untold: deque[Callable[[], None]] = deque()
        self._step = Step()
        self._step_ends_at = math.inf  # finite while the worker decodes
        self._reloaded_at = math.inf
        self.worker_changed(state, load_s=load_s)

    def attach(self, client: DeskClient | FileClient) -> None:
        self._address_news()
        self._clients[client.id] = client

    def detach(self, session: SessionId) -> None:
        self._address_news()
        del self._clients[session]

    # ------------------------------------------------------------ what a test makes happen

    @property
    def idle(self) -> bool:
        """Whether nothing is decoded now."""
        return self._step_ends_at == math.inf

    def advance(self, seconds: float = 0.0) -> None:
        """Let time pass; everything that comes due is told at its own moment, and what is due now at once."""
        end = self.now + seconds
        self._turn()
        while (due := self._next_moment()) <= end:
            self.now = max(self.now, due)
            if self._step_ends_at <= self.now:
                self._end_step()
            elif self._reloaded_at <= self.now:
                self.worker_changed(ServiceState.READY)
            self._turn()
        self.now = max(self.now, end)

    def kill(self, death: WorkerDied | None = None) -> None:
        """The worker dies now, decoding or not, and reloads."""
        self.worker_changed(ServiceState.RESTARTING, load_s=self._reload_s)
        self._reloaded_at = self.now + self._reload_s
        if not self.idle:
            self._stop_step(death or WorkerDied())

    def worker_changed(self, state: ServiceState, *, load_s: float = 0.0) -> None:
        """As the supervisor would say it; a death goes by `kill`."""
        self._reloaded_at = math.inf
        self.receive_worker_state(state, now=self.now, load_s=load_s)

    # ------------------------------------------------------------ the worker, and the loop

    def _end_step(self) -> None:
        if isinstance(self._step.ends, WorkerDied):
            self.kill(self._step.ends)
        else:
            decoding = self.decodings[-1]
            self._stop_step(self._step.ends or says(decoding.spoken, spoken_text(decoding.work), self._step.decode_s))

    def _stop_step(self, result: Hypothesis | DecodeFailed | WorkerDied) -> None:
        self._step_ends_at = math.inf
        self.decodings[-1].ended_at, self.decodings[-1].result = self.now, result
        self.end(result, now=self.now)

    def _turn(self) -> None:
        self.tick(self.now)
        if (work := self.begin(self.now)) is not None:
            assert self.idle, "two decodes at once"
            assert self.queue.worker_state is ServiceState.READY, "a decode without a worker"
            self._step = next(self._script, Step())
            self._step_ends_at = self.now + self._step.decode_s
            spoken = work.of.utterance if isinstance(work.of, Ticket) else work.of.draft
            n_waiting = self.queue.depth + self.queue.background_depth
            self.decodings.append(Decoding(work, spoken, self.now, n_waiting))
        self._address_news()
        while self._untold:
            self._untold.popleft()()
            self._address_news()

    def _next_moment(self) -> float:
        deadline = self.next_deadline()
        timer = math.inf if deadline is None else deadline + TIMER_LATENCY_S
        return min(self._step_ends_at, self._reloaded_at, timer)

    def _address_news(self) -> None:
        """To whoever is there now; they hear of it in the next turn, as on a loop."""
        for news in self.take_news():
            if isinstance(news, ServiceStatus):
                self._untold += [partial(client.receive_status, news) for client in self._clients.values()]
            elif isinstance(news, Partial):
                if (client := self._clients.get(news.session)) is not None:
                    self._untold.append(partial(client.receive_partial, news))
            elif (client := self._clients.get(news.utterance.session)) is not None:
                self._untold.append(partial(client.receive_outcome, news))


def spoken_text(work: Work) -> str:
    """The utterance's id; as a partial, once for each quarter of a second that the prefix does not have yet."""
    if isinstance(work.of, Ticket):
        return work.of.utterance.id
    draft = work.of.draft
    if not work.options.partial:
        return draft.id
    n_words = int(draft.audio_s * 4) - len(work.options.prefix.split())
    return f" {draft.id}" * n_words


def says(spoken: Utterance | Draft, text: str, decode_s: float) -> Hypothesis:
    """A hypothesis of one segment, as long as the utterance."""
    segment = Segment(text, 0.0, spoken.audio_s, avg_logprob=-0.25, no_speech_prob=0.0625, compression_ratio=1.0)
    return Hypothesis(text, spoken.options.language or "en", 1.0, (segment,), None, decode_s)


class DeskClient:
    """A client of one session at the desk, and everything that it was told, in order."""

    def __init__(self, desk: ScriptedDesk, session: Session) -> None:
        self.id = session.id
        self.session = session
        self.events: list[messages.ServerEvent] = []
        self._desk = desk
        self._n_taken = 0
        desk.attach(self)
        self.events += session.receive_open(desk.status)

    def send(self, message: messages.ClientMessage | str | bytes) -> None:
        """A message, its literal JSON, or audio."""
        now = self._desk.now
        if isinstance(message, bytes):
            self.events += self.session.receive_audio(message, now=now)
        else:
            text = message if isinstance(message, str) else messages.encode(message)
            self.events += self.session.receive_text(text, now=now)

    def disconnect(self) -> None:
        self._desk.detach(self.session.id)
        self.session.receive_disconnect()

    def take(self) -> list[messages.ServerEvent]:
        """The events since the last call."""
        taken = self.events[self._n_taken :]
        self._n_taken = len(self.events)
        return taken

    def receive_outcome(self, outcome: Outcome) -> None:
        self.events += self.session.receive_outcome(outcome, now=self._desk.now)

    def receive_partial(self, text: Partial) -> None:
        self.events += self.session.receive_partial(text)

    def receive_status(self, status: ServiceStatus) -> None:
        self.events += self.session.receive_status(status)


class FileClient:
    """Whoever offers utterances without a session, and the outcomes that it was told, in order."""

    def __init__(self, desk: ScriptedDesk, id: SessionId) -> None:
        self.id = id
        self.outcomes: list[Outcome] = []
        desk.attach(self)

    def receive_outcome(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def receive_partial(self, text: Partial) -> None:
        raise AssertionError("a partial of what is whole")

    def receive_status(self, status: ServiceStatus) -> None: ...
