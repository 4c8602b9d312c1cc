"""Files at the desk: short ones as utterances, long ones slice by slice; for who waits, and for who asked for a job.

Rules:

- A caller is one session at the desk, whatever number of requests he makes: they share one session's part of the queue.
- Who comes with a file is refused at once where its utterance would be, before its body is read. From then on it is
  expected: it counts, for whoever comes by HTTP next, as if it waited already. What is spoken live does not wait for
  uploads, so when the file is there the queue may be full again. Whoever was let in is not sent away for that, having
  sent all of it: he waits behind everything else, as long as he would have. An upload of more than `EXPECTED_FOR_S`
  is expected no longer.
- Beside that no more than `MAX_FILES` are on their way or being decoded at once, and half of them for one caller: each
  has a process that decodes it.
- A file of at most 30 s is an utterance like any other. Of a longer one a slice at a time waits in the background; the
  next is cut when that is done. A worker that dies under a slice costs the caller nothing; the second death ends it.
- Who goes away takes with him what he has waiting, by being cancelled.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Final

from asr_ws.core.admission import FAIR_SHARE_MEMORY_S
from asr_ws.core.endpointer import FRAME
from asr_ws.core.files import MAX_SLICE, FileRequest, FileSlice, FileTranscript
from asr_ws.core.slices import Slice, Slicer
from asr_ws.core.types import (
    Decoded,
    Detector,
    EndpointReason,
    Failed,
    Hypothesis,
    Outcome,
    RefusalReason,
    Released,
    Samples,
    SessionId,
    Shed,
    Unfinished,
    Utterance,
)
from asr_ws.errors import RequestError
from asr_ws.server.dispatcher import Dispatcher, Subscriber
from asr_ws.server.failures import Refused
from asr_ws.server.media import Media
from asr_ws.server.tally import Tally

MAX_FILES: Final = 8
EXPECTED_FOR_S: Final = 10.0
PIECE: Final = 8 * FRAME  # samples that are looked at before the loop sees to other things: 0.7 ms
READ: Final = 8 * PIECE


@dataclass(slots=True)
class File:
    """A file on its way, and what it has come to so far; ``arrived`` is called once its audio is there."""

    caller: SessionId
    arrived: Callable[[], None] = lambda: None
    duration_s: float | None = None  # as the file itself says, which may be wrong
    n_samples: int = 0
    parts: list[FileSlice] = field(default_factory=list)

    @property
    def transcript(self) -> FileTranscript:
        return FileTranscript(tuple(self.parts), self.n_samples)


class Files:
    """Args: max_wait_s: for the model, of a short file whose caller says nothing else."""

    def __init__(
        self, dispatcher: Dispatcher, make_detector: Callable[[], Detector], tally: Tally, max_wait_s: float
    ) -> None:
        self._dispatcher = dispatcher
        self._make_detector = make_detector
        self._tally = tally
        self._max_wait_s = max_wait_s
        self._loop = asyncio.get_running_loop()
        self._here: list[SessionId] = []
        self._expected: list[SessionId] = []
        self._waiting: dict[SessionId, dict[str, asyncio.Future[Outcome]]] = {}
        self._number = itertools.count(1)

    # ------------------------------------------------------------ who may come

    def no_room(self) -> Refused:
        """For one more, as of whom there are too many."""
        return Refused(self._dispatcher.shed(RefusalReason.QUEUE_FULL, now=self._loop.time()))

    @contextmanager
    def admitted(self, caller: SessionId) -> Iterator[File]:
        """For a request, from its head on. Raises: Refused."""
        now = self._loop.time()
        if self._here.count(caller) >= MAX_FILES // 2:
            raise Refused(self._dispatcher.shed(RefusalReason.FAIR_SHARE, now=now))
        if len(self._here) >= MAX_FILES:
            raise self.no_room()
        expected = tuple(self._expected)
        refused = self._dispatcher.would_refuse(caller, now=now, max_wait_s=self._max_wait_s, expected=expected)
        if refused is not None:
            raise Refused(refused)
        is_expected = True

        def arrived() -> None:
            nonlocal is_expected
            if is_expected:
                is_expected = False
                self._expected.remove(caller)

        self._here.append(caller)
        self._expected.append(caller)
        too_long = self._loop.call_later(EXPECTED_FOR_S, arrived)
        try:
            yield File(caller, arrived)
        finally:
            too_long.cancel()
            arrived()
            self._here.remove(caller)

    # ------------------------------------------------------------ what becomes of it

    async def transcribe(
        self,
        media: Media,
        file: File,
        request: FileRequest,
        *,
        is_job: bool = False,
        known: Mapping[tuple[int, int], FileSlice] = MappingProxyType({}),
    ) -> AsyncGenerator[FileSlice, None]:
        """Its parts in order, each as soon as it is decoded; they are also put into ``file``.

        Args:
            is_job: nobody waits: it is background work however short, and a worker that is not there is waited for.
            known: parts that need no decode, by where they begin and end; others are of no use.
        Raises:
            MediaError: it is no audio, or broken.
            RequestError: it asks for too much, or the recognizer cannot decode it.
            Refused: there was no room for it, or its wait was too long.
        """
        max_wait_s = math.inf if is_job else self._max_wait_of(request)
        n_decided, is_whole = 0, False
        try:
            file.duration_s = (await media.open()).duration_s
            head = await media.read(MAX_SLICE + 1)
            file.n_samples = len(head)
            file.arrived()
            is_long = len(head) > MAX_SLICE
            wait = JOB_WAIT if is_job else SLICE_WAIT if is_long else _Wait(max_wait_s)
            async for piece in self._pieces(media, file, head):
                n_decided += len(piece.samples)  # also what an earlier life has decoded, and counted
                if (part := known.get((piece.start_sample, piece.end_sample))) is None:
                    outcome = "dropped"
                    try:
                        hypothesis = await self._hypothesis(file.caller, piece, request, wait)
                        part, outcome = FileSlice(piece.start_sample, piece.end_sample, hypothesis), "final"
                    except RequestError:
                        outcome = "error"
                        raise
                    finally:
                        fate = "decoded" if outcome == "final" else "refused"
                        self._tally.add(outcome, **{fate: len(piece.samples)})
                file.parts.append(part)
                yield part
            is_whole = True
        finally:
            self._tally.add(None, **{"silence" if is_whole else "refused": file.n_samples - n_decided})

    def _max_wait_of(self, request: FileRequest) -> float:
        """Seconds. Raises: RequestError: it asks for more than the server allows."""
        limit_ms = round(self._max_wait_s * 1000)
        if request.max_wait_ms is not None and request.max_wait_ms > limit_ms:
            message = f"max_wait_ms is more than {limit_ms}"
            raise RequestError(400, "invalid_value", message, "the server's --max-wait-ms", param="max_wait_ms")
        return (limit_ms if request.max_wait_ms is None else request.max_wait_ms) / 1000

    async def _pieces(self, media: Media, file: File, samples: Samples) -> AsyncIterator[Slice]:
        """What is to be decoded on its own, of the samples and what follows them."""
        if len(samples) <= MAX_SLICE:
            if len(samples):
                yield Slice(0, len(samples), samples)
            return
        slicer = Slicer(self._make_detector())
        while len(samples):
            for start in range(0, len(samples), PIECE):
                for piece in slicer.feed(samples[start : start + PIECE]):
                    yield piece
                await asyncio.sleep(0)
            samples = await media.read(READ)
            file.n_samples += len(samples)
        for piece in slicer.finish():
            yield piece

    async def _hypothesis(self, caller: SessionId, piece: Slice, request: FileRequest, wait: _Wait) -> Hypothesis:
        """Raises: RequestError, Refused."""
        utterance = Utterance(
            caller,
            f"f{next(self._number)}",
            piece.samples,
            piece.start_sample,
            piece.end_sample,
            EndpointReason.END,
            request.options,
        )
        while True:
            if wait.for_ever:
                await self._dispatcher.wait_ready()
            try:
                outcome = await self._outcome(utterance, wait)
            except Refused as refused:
                if not wait.for_ever:
                    raise
                await asyncio.sleep(refused.shed.retry_after_s)
                continue
            match outcome:
                case Decoded():
                    return outcome.hypothesis
                case Failed():
                    raise RequestError(422, outcome.code, outcome.message)
                case Unfinished() if wait.in_background and outcome.shed.reason is not RefusalReason.DEADLINE:
                    utterance = replace(outcome.utterance, attempt=utterance.attempt + 1)  # with its deaths
                case Unfinished():
                    raise Refused(outcome.shed)
                case Released():  # the server stops
                    raise Refused(self._dispatcher.shed(RefusalReason.DRAINING, now=self._loop.time()))

    # ------------------------------------------------------------ at the desk

    async def _outcome(self, utterance: Utterance, wait: _Wait) -> Outcome:
        """Of one attempt. Raises: Refused."""
        caller = utterance.session
        waiting = self._waiting.setdefault(caller, {})
        if not waiting:
            self._dispatcher.attach(caller, Subscriber(self._tell, _ignore, _ignore))
        told: asyncio.Future[Outcome] = self._loop.create_future()
        waiting[utterance.id] = told
        desk = self._dispatcher
        offer = desk.offer_background if wait.in_background else partial(desk.offer, or_behind=True)
        try:
            answer = offer(utterance, now=self._loop.time(), max_wait_s=wait.max_s)
            if isinstance(answer, Shed):
                raise Refused(answer)
            return await told
        except asyncio.CancelledError:
            self._dispatcher.withdraw(caller, utterance.id)
            raise
        finally:
            del waiting[utterance.id]
            if not waiting:
                del self._waiting[caller]
                self._dispatcher.detach(caller)
                self._loop.call_later(FAIR_SHARE_MEMORY_S, self._forget, caller)

    def _tell(self, outcome: Outcome) -> None:
        told = self._waiting.get(outcome.utterance.session, {}).get(outcome.utterance.id)
        if told is not None and not told.done():
            told.set_result(outcome)

    def _forget(self, caller: SessionId) -> None:
        """Of who has not come back, nothing is left."""
        if caller not in self._waiting:
            self._dispatcher.withdraw(caller)


@dataclass(frozen=True, slots=True)
class _Wait:
    max_s: float
    in_background: bool = False

    @property
    def for_ever(self) -> bool:
        return self.max_s == math.inf


SLICE_WAIT: Final = _Wait(60.0, in_background=True)  # behind all that is spoken live: longer than an utterance's
JOB_WAIT: Final = _Wait(math.inf, in_background=True)


def _ignore(_: object) -> None:
    """Files have no partials, and ask for the service's status when they need it."""
