"""The server's single consumer in virtual time: sessions are tested against it without a worker, a socket or a clock.

It is `asr_ws.core.desk.Desk` itself, as the server's dispatcher drives it, with a worker whose decodes end as a script
says. As there, a decode begins, and outcomes are told, in a later turn: not before the next `advance`.

What is unrealistic:

- Nothing takes time but decodes and reloads; timers fire a microsecond late, always.
- The worker comes back after exactly ``reload_s``. It becomes `unavailable` only where a test says so.
- Every decode is expected to take ``estimate_s``, whatever the last ones took.
- All outcomes that are due are told before anything else is received; on a real loop a message may come between.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from asr_ws import messages
from asr_ws.core.admission import AdmissionQueue
from asr_ws.core.desk import Desk
from asr_ws.core.holds import Holds
from asr_ws.core.service_time import ServiceTime
from asr_ws.core.session import Session
from asr_ws.core.types import Hypothesis, Outcome, Segment, ServiceState, SessionId, Utterance
from asr_ws.errors import DecodeFailed, WorkerDied

TIMER_LATENCY_S = 1e-6  # a real timer never fires before its moment


@dataclass(frozen=True, slots=True)
class Step:
    """How one decode goes: it takes ``decode_s``, then ends so; None: a hypothesis with the utterance's id as text."""

    decode_s: float = 0.5
    ends: Hypothesis | DecodeFailed | WorkerDied | None = None


@dataclass(slots=True)
class Decoding:
    """One decode that the worker began, for assertions afterwards; ``ended_at`` is inf while it lasts."""

    utterance: Utterance
    deadline: float
    began_at: float
    ended_at: float = math.inf


class _ConstantServiceTime(ServiceTime):
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
        holds: Holds | None = None,
        uniform: Callable[[float, float], float] = lambda low, high: low,
    ) -> None:
        super().__init__(AdmissionQueue(capacity, _ConstantServiceTime(estimate_s), uniform), holds or Holds())
        self.now = 1000.0
        self.decodings: list[Decoding] = []
        self._script = iter(script)
        self._reload_s = reload_s
        self._clients: dict[SessionId, DeskClient] = {}
        self._untold: deque[Callable[[], None]] = deque()
        self._step = Step()
        self._step_ends_at = math.inf  # finite while the worker decodes
        self._reloaded_at = math.inf
        self.worker_changed(state, load_s=load_s)

    def attach(self, client: DeskClient) -> None:
        self._address_news()
        self._clients[client.session.id] = client

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

    def kill(self) -> None:
        """The worker dies now, decoding or not, and reloads."""
        self.worker_changed(ServiceState.RESTARTING, load_s=self._reload_s)
        self._reloaded_at = self.now + self._reload_s
        if not self.idle:
            self._stop_step(WorkerDied("killed"))

    def worker_changed(self, state: ServiceState, *, load_s: float = 0.0) -> None:
        """As the supervisor would say it; a death goes by `kill`."""
        self._reloaded_at = math.inf
        self.receive_worker_state(state, now=self.now, load_s=load_s)

    # ------------------------------------------------------------ the worker, and the loop

    def _end_step(self) -> None:
        if isinstance(self._step.ends, WorkerDied):
            self.kill()
        else:
            utterance = self.decodings[-1].utterance
            self._stop_step(self._step.ends or says(utterance, utterance.id, self._step.decode_s))

    def _stop_step(self, result: Hypothesis | DecodeFailed | WorkerDied) -> None:
        self._step_ends_at = math.inf
        self.decodings[-1].ended_at = self.now
        self.end(result, now=self.now)

    def _turn(self) -> None:
        self.tick(self.now)
        if (ticket := self.begin(self.now)) is not None:
            assert self.idle, "two decodes at once"
            assert self.queue.worker_state is ServiceState.READY, "a decode without a worker"
            self._step = next(self._script, Step())
            self._step_ends_at = self.now + self._step.decode_s
            self.decodings.append(Decoding(ticket.utterance, ticket.deadline, self.now))
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
            if isinstance(news, ServiceState):
                self._untold += [partial(client.receive_state, news) for client in self._clients.values()]
            elif (client := self._clients.get(news.utterance.session)) is not None:
                self._untold.append(partial(client.receive_outcome, news))


def says(utterance: Utterance, text: str, decode_s: float) -> Hypothesis:
    """A hypothesis of one segment, as long as the utterance."""
    segment = Segment(text, 0.0, utterance.audio_s, avg_logprob=-0.25, no_speech_prob=0.0625, compression_ratio=1.0)
    return Hypothesis(text, utterance.options.language or "en", 1.0, (segment,), None, decode_s)


class DeskClient:
    """A client of one session at the desk, and everything that it was told, in order."""

    def __init__(self, desk: ScriptedDesk, session: Session) -> None:
        self.session = session
        self.events: list[messages.ServerEvent] = []
        self._desk = desk
        self._n_taken = 0
        desk.attach(self)
        self.events += session.receive_open(desk.queue.state)

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

    def receive_state(self, state: ServiceState) -> None:
        self.events += self.session.receive_state(state, now=self._desk.now)
