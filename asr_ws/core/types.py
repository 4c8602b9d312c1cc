"""Values that cross module borders inside the server. No behaviour, no I/O.

Positions are sample indices at 16 kHz mono, counted from a session's first sample; times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from typing import NewType, Protocol

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000  # Hz: what Whisper and Silero take; everything inside the server is at this rate
Samples = NDArray[np.float32]  # shape (n,), mono, SAMPLE_RATE, in [-1, 1]

SessionId = NewType("SessionId", str)


def ms(n_samples: int) -> int:
    """Wire milliseconds of a sample position."""
    return round(n_samples * 1000 / SAMPLE_RATE)


class EndpointReason(StrEnum):
    """Why an utterance ended; the values are the wire's."""

    SILENCE = "silence"
    COMMIT = "commit"
    MAX_LENGTH = "max_length"
    END = "end"


class Detector(Protocol):
    """Speech probability of consecutive windows; carries its state from call to call."""

    def probabilities(self, windows: Samples) -> NDArray[np.float32]:
        """Args: windows: shape (n, 512), n >= 1, consecutive. Returns: shape (n,), in [0, 1]."""

    def reset(self) -> None:
        """Forget what was heard, as at a session's start."""


class Resampler(Protocol):
    """Mono samples at a declared rate -> SAMPLE_RATE; may hold a little back between calls."""

    def feed(self, samples: Samples) -> Samples: ...

    def flush(self) -> Samples:
        """What was held back; nothing may be fed afterwards."""


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """What is asked of the recognizer: by a session, the same for each of its utterances, and for partials more."""

    language: str | None  # None: detect
    task: str = "transcribe"  # or "translate"
    prompt: str | None = None
    hotwords: str | None = None
    words: bool = False
    partial: bool = False  # quickly, of an utterance that is still being spoken
    prefix: str = ""  # text that is known already; the result is what follows it


@dataclass(frozen=True, slots=True)
class Utterance:
    """One stretch of speech with a detected endpoint, ready to be decoded exactly as it is."""

    session: SessionId
    id: str
    samples: Samples = field(compare=False, repr=False)  # the rest says which they are
    start_sample: int
    end_sample: int
    endpoint: EndpointReason
    options: DecodeOptions
    attempt: int = 1
    deaths: int = 0  # worker deaths under it so far, all attempts
    # Monotonic seconds, as if audio came in real time: where it comes faster, the silence after it counts all the same.
    speech_ended_at: float | None = field(default=None, compare=False)

    @property
    def audio_s(self) -> float:
        return (self.end_sample - self.start_sample) / SAMPLE_RATE

    @property
    def n_bytes(self) -> int:
        return self.samples.nbytes


@dataclass(frozen=True, slots=True)
class Word:
    """Times in seconds from the utterance's start."""

    word: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """Times in seconds from the utterance's start."""

    text: str
    start_s: float
    end_s: float
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    words: tuple[Word, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether all numbers are; a model whose arithmetic overflows gives none, and a text without sense."""
        own = (self.start_s, self.end_s, self.avg_logprob, self.no_speech_prob, self.compression_ratio)
        return all(
            map(isfinite, (*own, *(n for word in self.words for n in (word.start_s, word.end_s, word.probability))))
        )


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished decode of one utterance."""

    text: str  # with the blank before it, which parts what follows a prefix from it
    language: str
    language_probability: float
    segments: tuple[Segment, ...]
    filtered: str | None  # why the text was emptied, or None
    decode_s: float
    recovered: bool = False  # the worker ended before it had said so, but after the text was complete


class ServiceState(StrEnum):
    """What the server can do now; the values are the wire's."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    UNAVAILABLE = "unavailable"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What all sessions are told of the service when it changes."""

    state: ServiceState
    partials: bool  # False: there are none, or load has stopped them


class DropReason(StrEnum):
    """Why an utterance is gone without text; the values are the wire's."""

    CANCELLED = "cancelled"
    HOLD_EXPIRED = "hold_expired"
    EVICTED = "evicted"
    NOT_HELD = "not_held"


class RefusalReason(StrEnum):
    """Why work was not admitted, or not finished; the values are the wire's."""

    QUEUE_FULL = "queue_full"
    PREDICTED_WAIT = "predicted_wait"
    FAIR_SHARE = "fair_share"
    RETRY_EARLY = "retry_early"
    STARTING = "starting"
    RESTARTING = "restarting"
    UNAVAILABLE = "unavailable"
    DRAINING = "draining"
    MAX_SESSIONS = "max_sessions"
    DEADLINE = "deadline"
    WORKER_CRASHED = "worker_crashed"
    WORKER_HUNG = "worker_hung"

    @property
    def status(self) -> int:
        """HTTP's word for whose doing it is: 429 the caller's, 503 the server's."""
        return 429 if self in (RefusalReason.FAIR_SHARE, RefusalReason.RETRY_EARLY) else 503


@dataclass(frozen=True, slots=True)
class Shed:
    """Work that was refused, as a value: overload is a normal state of the service.

    ``retry_after_s`` is within 0.5-1.5 s and spread; ``estimated_wait_s`` is honest and unclamped.
    """

    reason: RefusalReason
    retry_after_s: float
    estimated_wait_s: float
    queue_depth: int
    queue_capacity: int


@dataclass(frozen=True, slots=True)
class Decoded:
    utterance: Utterance
    hypothesis: Hypothesis
    wait_s: float  # in the queue
    speculated: bool = False  # its decode began before its endpoint
    is_slice: bool = False  # of a long file, or of a job


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Admitted, could not be finished, may be offered again: its deadline passed, or the worker died under it."""

    utterance: Utterance
    shed: Shed
    waited_s: float
    is_slice: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The utterance's end: its decode raised, or it killed the worker twice."""

    utterance: Utterance
    code: str  # "decode_failed" or "poison_audio"
    message: str


@dataclass(frozen=True, slots=True)
class Released:
    """A held utterance is held no longer; or an admitted one is not finished (NOT_HELD), because the server stops."""

    utterance: Utterance
    reason: DropReason


Outcome = Decoded | Unfinished | Failed | Released


@dataclass(frozen=True, slots=True)
class Partial:
    """The text so far, ``stable + unstable``, of an utterance that is being heard; it heard up to ``end_sample``."""

    session: SessionId
    utterance: str
    stable: str
    unstable: str
    end_sample: int
    since_onset_s: float | None = field(default=None, compare=False)  # of an utterance's first


News = Outcome | Partial | ServiceStatus
