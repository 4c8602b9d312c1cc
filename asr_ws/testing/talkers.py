"""People who talk to a server, as many as one likes, and how they are served.

A talker is a session that streams the bundled recordings in real time, from a place of its own on, without end; the
server finds the utterances. What is refused is offered again when the server's hint says. Of a step, so many talkers
for so long, those utterances count whose first verdict (`accepted` or `busy`) came in the time measured. The talkers
talk on until all of these have their outcome, for ``max_wait_ms`` at most, so that the last ones are not spared the
load; and are silent for as long again after that. Then their sessions are closed, with which goes what still waits.

- **wait**: from an utterance's first verdict to its `final`, less the decode. One that was refused and offered again
  waits all that time. It goes on while there is no `final`.
- **load**: the share of the time that what was said asks for: so many utterances, each for the mean decode. Above 1,
  waits grow for as long as people talk.
- **worker**: the share of the time in which the worker decoded anything, by the server's /metrics.
- **late**: by how much frames were sent late, which is the measuring side's doing.
- **carried**: 95 of 100 utterances wait `max_wait_ms` at most, each has its `final`, the load is 1 at most, and the
  measuring side kept real time.

Unrealistic: everybody says the same, and nobody hears what anybody else says.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from itertools import cycle, islice
from statistics import fmean, median
from typing import Any, Final

import numpy as np
import soundfile

from asr_ws import messages
from asr_ws.client.events import is_lost
from asr_ws.client.http_get import get
from asr_ws.errors import AsrError, ClientError
from asr_ws.testing.bare import BareSession, Event, connect
from asr_ws.testing.figures import Spread

PCM_BYTES_PER_S: Final = 2 * 16_000  # of what sessions take unless told otherwise
FRAME_S: Final = 0.1
FRAME_BYTES: Final = round(PCM_BYTES_PER_S * FRAME_S)
LEAST_TURN, LONGEST_TURN = 30, 80  # frames; a turn ends at the quietest one in between
TAIL_MS: Final = 200  # of an utterance that ended in silence, after its last speech
WARM_UP_S: Final = 5.0  # by then what a talker began with in mid-word is over, and the queue is as it will be
MAX_LATE_MS: Final = 1000 * FRAME_S
GOLDEN: Final = (5**0.5 - 1) / 2  # any number of its multiples are spread evenly over a circle
LEAST_SPOKEN_S: Final = 15.0  # of all together, in which two or three utterances end
GRAIN: Final = 10  # a step more or less by this part of them is not looked for
METRICS_LIMIT_S: Final = 5.0

# ---------------------------------------------------------------- what they say


def speech_pcm() -> bytes:
    """The bundled recordings one after the other: 55 s of pcm_s16le, 16 kHz mono."""
    with as_file(files("asr_ws") / "assets" / "speech") as folder:
        return b"".join(soundfile.read(each, dtype="int16")[0].astype("<i2") for each in sorted(folder.glob("*.wav")))


def cut(pcm: bytes) -> list[bytes]:
    """Whole frames."""
    return [pcm[start : start + FRAME_BYTES] for start in range(0, len(pcm) - FRAME_BYTES + 1, FRAME_BYTES)]


def turns(frames: Sequence[bytes]) -> Iterator[list[bytes]]:
    """What somebody says before others have their turn: 3 to 8 s, up to where it is quietest."""
    left = list(frames)
    while len(left) > LONGEST_TURN:
        loudness = [np.abs(np.frombuffer(frame, "<i2").astype(int)).mean() for frame in left[LEAST_TURN:LONGEST_TURN]]
        end = LEAST_TURN + int(np.argmin(loudness)) + 1
        yield left[:end]
        left = left[end:]
    yield left


def says(frames: Sequence[bytes], n: int, share: float) -> Iterator[bytes]:
    """What the ``n``-th talker's microphone hears, without end.

    Args:
        share: of the time in which he speaks. Below 1 each turn is followed by a pause, exponentially distributed.
    """
    rng = random.Random(n)
    start = int(n * GOLDEN % 1 * len(frames))
    own = [*frames[start:], *frames[:start]]
    if share == 1:
        yield from cycle(own)
    own_turns = list(turns(own))
    pause_frames = len(own) / len(own_turns) * (1 - share) / share
    silent = rng.random() > share  # as it is at any moment
    for turn in cycle(own_turns):
        if silent:
            yield from islice(cycle([bytes(FRAME_BYTES)]), round(rng.expovariate(1 / pause_frames)))
        yield from turn
        silent = True


# ---------------------------------------------------------------- what they are told


@dataclass(slots=True)
class Told:
    """What came of one utterance; moments in seconds of the client's clock."""

    verdict_at: float | None = None
    speech_ended_at: float | None = None  # where silence ended it
    final_at: float | None = None
    decode_s: float = 0.0
    refusals: int = 0
    partials: int = 0
    is_lost: bool = False

    @property
    def is_settled(self) -> bool:
        return self.final_at is not None or self.is_lost

    def wait_s(self, now: float) -> float:
        """Until its final, or ``now`` where it has none. A decode may have begun before the verdict."""
        assert self.verdict_at is not None
        return max(0.0, (now if self.final_at is None else self.final_at) - self.verdict_at - self.decode_s)


@dataclass(slots=True)
class Talk:
    """What one session was told.

    Args:
        began: when its first sample was spoken.
    """

    began: float
    utterances: dict[str, Told] = field(default_factory=dict)

    def receive(self, event: Event, *, now: float) -> None:
        match event:
            case messages.Partial(utterance=id):
                self._of(id).partials += 1
            case messages.Accepted(utterance=id):
                self._judge(id, now)
                if event.endpoint == "silence":
                    self._of(id).speech_ended_at = self.began + (event.audio_end_ms - TAIL_MS) / 1000
            case messages.Busy(utterance=str(id)) | messages.Retry(utterance=str(id)):
                self._judge(id, now)
                self._of(id).refusals += 1
            case messages.Final(utterance=id):
                self._of(id).final_at, self._of(id).decode_s = now, event.decode_ms / 1000
            case messages.Dropped(utterance=str(id)) | messages.Error(utterance=str(id)) if is_lost(event):
                self._of(id).is_lost = True

    def _of(self, utterance: str) -> Told:
        return self.utterances.setdefault(utterance, Told())

    def _judge(self, utterance: str, now: float) -> None:
        if self._of(utterance).verdict_at is None:
            self._of(utterance).verdict_at = now


def counted(talks: Iterable[Talk], since: float, until: float) -> list[Told]:
    """Those whose first verdict came in this time."""
    utterances = (each for talk in talks for each in talk.utterances.values())
    return [each for each in utterances if each.verdict_at is not None and since <= each.verdict_at < until]


@dataclass(frozen=True, slots=True)
class Step:
    """How so many talkers were served; None: there was nothing to measure it by."""

    talkers: int
    seconds: float
    max_wait_ms: int
    utterances: int
    finals: int
    refusals: int
    partials: int
    wait_ms: Spread | None
    text_ms: Spread | None  # from the end of speech to the final
    decode_ms: float | None  # the median
    load: float
    worker: float | None
    late_ms: Spread | None

    @classmethod
    def of(
        cls,
        talkers: int,
        told: Sequence[Told],
        *,
        seconds: float,
        max_wait_ms: int,
        worker: float | None,
        late_s: Sequence[float],
        now: float,
    ) -> Step:
        """Args: now: when nobody waited for outcomes any longer."""
        finals = [each for each in told if each.final_at is not None]
        return cls(
            talkers,
            seconds,
            max_wait_ms,
            len(told),
            len(finals),
            sum(each.refusals for each in told),
            sum(each.partials for each in told),
            _ms(each.wait_s(now) for each in told),
            _ms(each.final_at - each.speech_ended_at for each in finals if each.final_at and each.speech_ended_at),
            median(each.decode_s for each in finals) * 1000 if finals else None,
            len(told) * fmean(each.decode_s for each in finals) / seconds if finals else 0.0,
            worker,
            _ms(late_s),
        )

    @property
    def mean_decode_s(self) -> float:
        return self.load * self.seconds / max(self.utterances, 1)

    @property
    def kept_real_time(self) -> bool:
        return self.late_ms is None or self.late_ms.p99 <= MAX_LATE_MS

    @property
    def faults(self) -> list[str]:
        """Why it is not carried, for people."""
        if self.wait_ms is None:
            return ["nobody said anything in the time measured"]
        found = []
        if not self.kept_real_time:
            assert self.late_ms is not None
            found.append(f"the measuring side was the limit: it sent audio {self.late_ms.p99:.0f} ms late (p99)")
        if self.wait_ms.p95 > self.max_wait_ms:
            found.append(f"more than 5 of 100 utterances waited more than {self.max_wait_ms / 1000:g} s")
        if self.finals < self.utterances:
            found.append(f"{self.utterances - self.finals} of {self.utterances} utterances came to no text")
        if self.load > 1:
            found.append(f"what was said asks for {self.load:.1%} of the model's time, so that waits grow on and on")
        return found

    @property
    def is_carried(self) -> bool:
        return not self.faults

    def figures(self) -> dict[str, object]:
        """For the report."""
        n = max(self.utterances, 1)
        return {
            "talkers": self.talkers,
            "carried": self.is_carried,
            "faults": self.faults,
            "utterances": self.utterances,
            "finals": self.finals,
            "untold_share": round(1 - self.finals / n, 4),
            "refusals_per_utterance": round(self.refusals / n, 3),
            "partials_per_utterance": round(self.partials / n, 3),
            "wait_ms": self.wait_ms and self.wait_ms.figures(1),
            "end_of_speech_to_final_ms": self.text_ms and self.text_ms.figures(1),
            "decode_ms": self.decode_ms and round(self.decode_ms, 1),
            "load": round(self.load, 4),
            "worker_busy": self.worker and round(self.worker, 4),
            "sent_late_ms": self.late_ms and self.late_ms.figures(1),
        }


def _ms(seconds: Iterable[float]) -> Spread | None:
    ms = [1000 * each for each in seconds]
    return Spread.of(ms) if ms else None


# ---------------------------------------------------------------- how many to try


def most_carried(tried: Iterable[tuple[int, bool]]) -> int:
    """Of talkers, below the least that were not carried; 0: none."""
    tried = list(tried)
    failed = min((n for n, carried in tried if not carried), default=math.inf)
    return max((n for n, carried in tried if carried and n < failed), default=0)


def least_talkers(share: float, seconds: float) -> int:
    """So many that some utterances of theirs should end in this time: with fewer it may be that none does."""
    return math.ceil(LEAST_SPOKEN_S / (share * seconds))


def next_talkers(tried: Sequence[tuple[int, bool]], most: int, *, first: int = 1, growth: float = 2.0) -> int | None:
    """How many to try after these, of which it is known whether they were carried; None: that was all.

    From ``first`` on by ``growth`` up, or down, to where it changes, and from there by bisection.
    """
    if not tried:
        return min(first, most)
    carried = most_carried(tried)
    failed = min((n for n, is_carried in tried if not is_carried), default=None)
    if failed is None:
        return min(max(math.ceil(carried * growth), carried + 1), most) if carried < most else None
    if failed - carried <= max(1, carried // GRAIN):
        return None
    return (carried + failed) // 2 if carried else max(1, int(failed / growth))


# ---------------------------------------------------------------- the crowd


async def talk(
    url: str, n: int, *, seconds: float, share: float = 1.0, token: str | None = None, **start_fields: Any
) -> Step:
    """A step: ``n`` talkers for ``seconds``, after a warm-up.

    Raises: ClientError: a session was refused, or ended.
    """
    loop = asyncio.get_running_loop()
    frames = cut(speech_pcm())
    warm_up_s = min(WARM_UP_S, seconds)
    late_s: list[float] = []
    changed = asyncio.Event()

    async def listen(session: BareSession, told: Talk) -> None:
        async for event in session.events():
            told.receive(event, now=loop.time())
            changed.set()
        raise ClientError("the server ended a session")

    async def speak(session: BareSession, own: Iterator[bytes], began: float) -> None:
        for n_frame, frame in enumerate(own, 1):
            due = began + n_frame * FRAME_S
            await asyncio.sleep(due - loop.time())
            if since <= due < until:
                late_s.append(max(0.0, loop.time() - due))
            await session.send(frame)

    try:
        async with AsyncExitStack() as stack:
            opened = [
                await stack.enter_async_context(connect(url, token=token, language="en", **start_fields))
                for _ in range(n)
            ]
            max_wait_ms = opened[0].ready.limits.max_wait_ms
            since = loop.time() + warm_up_s
            until = since + seconds
            talks = [Talk(since - warm_up_s + FRAME_S * each / n) for each in range(n)]
            async with asyncio.TaskGroup() as tasks:
                listeners = [tasks.create_task(listen(*each)) for each in zip(opened, talks, strict=True)]
                speakers = [
                    tasks.create_task(speak(session, says(frames, each, share), talks[each].began))
                    for each, session in enumerate(opened)
                ]
                await asyncio.sleep(since - loop.time())
                before = await asyncio.to_thread(decoded_s, url, token)
                await asyncio.sleep(until - loop.time())
                after = await asyncio.to_thread(decoded_s, url, token)
                told = counted(talks, since, until)
                for running in (speakers, listeners):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(max_wait_ms / 1000):
                            while not all(each.is_settled for each in told):
                                changed.clear()
                                await changed.wait()
                    for task in running:
                        task.cancel()
    except BaseExceptionGroup as group:  # of the sessions; one of their errors says it
        ours = group.subgroup(AsrError)
        if ours is None:
            raise
        while isinstance(ours, BaseExceptionGroup):
            ours = ours.exceptions[0]  # type: ignore[assignment]
        raise ours from group
    worker = None if before is None or after is None else min((after - before) / seconds, 1.0)  # one may begin before
    return Step.of(n, told, seconds=seconds, max_wait_ms=max_wait_ms, worker=worker, late_s=late_s, now=loop.time())


def decoded_s(url: str, token: str | None) -> float | None:
    """Seconds that the server's worker has decoded so far, by /metrics; None: it does not tell."""
    try:
        text = get(url, "/metrics", token=token, timeout_s=METRICS_LIMIT_S).text
    except ClientError:
        return None
    sums = re.findall(r"^asr_ws_decode_seconds_sum\{.*\} (\S+)$", text, flags=re.MULTILINE)
    return sum(map(float, sums)) if sums else None
