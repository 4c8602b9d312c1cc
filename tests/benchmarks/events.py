"""Events as a server might have sent them, with what matters to a test said by the test."""

from __future__ import annotations

from typing import Any, Literal

from asr_ws import messages


def accepted(
    utterance: str = "u1",
    *,
    attempt: int = 1,
    commit: str | None = None,
    estimated_final_ms: int = 0,
    endpoint: Literal["silence", "commit", "max_length", "end"] = "commit",
) -> messages.Accepted:
    return messages.Accepted(
        utterance=utterance,
        attempt=attempt,
        commit=commit,
        position=0,
        estimated_wait_ms=0,
        estimated_final_ms=estimated_final_ms,
        audio_start_ms=0,
        audio_end_ms=0,
        endpoint=endpoint,
    )


def busy(
    utterance: str = "u1", reason: str = "queue_full", *, attempt: int = 1, commit: str | None = None
) -> messages.Busy:
    return messages.Busy(**_refusal(utterance, reason, attempt) | {"commit": commit})


def expired(utterance: str = "u1") -> messages.Retry:
    return messages.Retry(**_refusal(utterance, "deadline", 1), waited_ms=1500)


def _refusal(utterance: str, reason: str, attempt: int) -> dict[str, Any]:
    return {
        "utterance": utterance,
        "attempt": attempt,
        "commit": None,
        "status": 503,
        "reason": reason,
        "retry_after_ms": 500,
        "estimated_wait_ms": 0,
        "queue_depth": 3,
        "queue_capacity": 3,
        "retryable": True,
        "held_ms": 60_000,
    }


def dropped(utterance: str = "u1") -> messages.Dropped:
    return messages.Dropped(utterance=utterance, reason="cancelled", audio_start_ms=0, audio_end_ms=0)


def partial(utterance: str = "u1", stable: str = "", unstable: str = "") -> messages.Partial:
    return messages.Partial(utterance=utterance, stable=stable, unstable=unstable, audio_end_ms=0)


def final(
    utterance: str = "u1",
    text: str = "hello",
    *,
    attempt: int = 1,
    audio_start_ms: int = 0,
    audio_end_ms: int = 0,
    decode_ms: int = 0,
) -> messages.Final:
    return messages.Final(
        utterance=utterance,
        attempt=attempt,
        text=text,
        language="en",
        language_probability=1.0,
        audio_start_ms=audio_start_ms,
        audio_end_ms=audio_end_ms,
        wait_ms=0,
        decode_ms=decode_ms,
        segments=[],
    )
