"""One client for each protocol: what it sends, and what it makes of what it is told. No socket is in here.

`PEERS` in `catalogue.py` says which server speaks which.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from benchmarks.peers.heard import Refused, Shown

RATE: Final = 16_000
Message = str | bytes


@dataclass(frozen=True, slots=True)
class Send:
    """What the client is to send, after so many seconds."""

    message: Message
    after_s: float = 0.0


class Wire(Protocol):
    """One connection's, so it has a state."""

    is_ready: bool  # audio may be sent

    def opening(self) -> list[Message]:
        """What is sent first."""
        ...

    def frame(self, pcm: bytes) -> Message:
        """Args: pcm: s16le, mono, 16 kHz."""
        ...

    def stop(self) -> list[Message]:
        """The button is let go; nothing where the server hears for itself when somebody has finished."""
        ...

    def receive(self, message: Message) -> Iterator[Shown | Refused | Send]:
        """A message; of a plain connection any piece of bytes."""
        ...


def _json(**fields: Any) -> str:
    return json.dumps(fields)


class AsrWs:
    """docs/reference/protocol.md. What is refused is offered again when the hint says."""

    def __init__(self, *, push_to_talk: bool = False) -> None:
        self.is_ready = False
        self._push_to_talk = push_to_talk
        self._texts: dict[str, tuple[int, str, bool]] = {}  # by utterance: its number, the text, whether it is final

    def opening(self) -> list[Message]:
        mode = {"endpointing": {"mode": "manual"}} if self._push_to_talk else {}
        return [_json(type="start", language="en", **mode)]

    def frame(self, pcm: bytes) -> Message:
        return pcm

    def stop(self) -> list[Message]:
        return [_json(type="commit")] if self._push_to_talk else []

    def receive(self, message: Message) -> Iterator[Shown | Refused | Send]:
        told = json.loads(message)
        utterance = told.get("utterance")
        match told["type"]:
            case "ready":
                self.is_ready = True
            case "speech_started":
                yield self._now(utterance, "", final=False)
            case "partial":
                yield self._now(utterance, told["stable"] + told["unstable"], final=False)
            case "final":
                yield self._now(utterance, told["text"], final=True)
            case "dropped":
                yield self._now(utterance, "", final=True)
            case "busy" | "retry" as kind:
                wait_ms, reason = told["retry_after_ms"], told["reason"]
                yield Refused(f"{kind} ({reason}), retry_after_ms {wait_ms}")
                if told["held_ms"]:
                    yield Send(_json(type="retry", utterance=utterance), wait_ms / 1000)
            case "error":
                yield Refused(f"error ({told['code']})")

    def _now(self, utterance: str, text: str, *, final: bool) -> Shown:
        number, _, _ = self._texts.get(utterance, (len(self._texts), "", False))
        self._texts[utterance] = number, text.strip(), final
        texts = sorted(self._texts.values())
        return Shown(" ".join(text for _, text, _ in texts if text), all(final for *_, final in texts))


class WhisperLive:
    """Float samples after options; "completed" segments are final."""

    def __init__(self) -> None:
        self.is_ready = False

    def opening(self) -> list[Message]:
        return [_json(uid="peers", language="en", task="transcribe", model="tiny.en", use_vad=True)]

    def frame(self, pcm: bytes) -> Message:
        return (np.frombuffer(pcm, "<i2").astype("<f4") / np.float32(32768)).tobytes()

    def stop(self) -> list[Message]:
        return []  # END_OF_AUDIO ends the connection, with what was not decoded yet

    def receive(self, message: Message) -> Iterator[Shown | Refused | Send]:
        told = json.loads(message)
        if told.get("message") == "SERVER_READY":
            self.is_ready = True
        elif "status" in told:
            yield Refused(f"{told['status']} {told['message']}")
        elif "segments" in told:
            segments = told["segments"]
            text = " ".join(each["text"].strip() for each in segments)
            yield Shown(text, all(each.get("completed") for each in segments))


class WhisperLiveKit:
    """Each message has all lines and the buffer after them, which is not final."""

    def __init__(self) -> None:
        self.is_ready = False

    def opening(self) -> list[Message]:
        return []

    def frame(self, pcm: bytes) -> Message:
        return pcm

    def stop(self) -> list[Message]:
        return []

    def receive(self, message: Message) -> Iterator[Shown | Refused | Send]:
        told = json.loads(message)
        if told.get("type") == "config":
            self.is_ready = True
        elif told.get("error"):
            yield Refused(str(told["error"]))
        elif "lines" in told:
            volatile = (told.get("buffer_transcription") or "").strip()
            lines = [(line.get("text") or "").strip() for line in told["lines"]]
            yield Shown(" ".join(each for each in (*lines, volatile) if each), not volatile)


class SttServer:
    """RealtimeSTT: a length, JSON and the samples in each frame; sentences, and the one that is being spoken."""

    def __init__(self) -> None:
        self.is_ready = True  # it says nothing at the beginning
        self._sentences: list[str] = []

    def opening(self) -> list[Message]:
        return []

    def frame(self, pcm: bytes) -> Message:
        about = _json(sampleRate=RATE).encode()
        return len(about).to_bytes(4, "little") + about + pcm

    def stop(self) -> list[Message]:
        return []

    def receive(self, message: Message) -> Iterator[Shown | Refused | Send]:
        told = json.loads(message)
        match told.get("type"):
            case "realtime":
                yield Shown(self._with(told["text"]), False)
            case "fullSentence":
                self._sentences.append(told["text"].strip())
                yield Shown(self._with(""), True)

    def _with(self, spoken: str) -> str:
        return " ".join(each for each in (*self._sentences, spoken.strip()) if each)


class Wyoming:
    """A line of JSON, and as many bytes after it as that says; one utterance a connection, ended by the client."""

    def __init__(self) -> None:
        self.is_ready = True
        self._unread = b""

    def opening(self) -> list[Message]:
        return [self._event("transcribe", language="en"), self._event("audio-start", **self.FORMAT)]

    FORMAT: Final[dict[str, Any]] = {"rate": RATE, "width": 2, "channels": 1}

    def frame(self, pcm: bytes) -> Message:
        return self._event("audio-chunk", pcm, **self.FORMAT)

    def stop(self) -> list[Message]:
        return [self._event("audio-stop")]

    def receive(self, message: Message) -> Iterator[Shown | Refused | Send]:
        assert isinstance(message, bytes)
        self._unread += message
        while b"\n" in self._unread:
            line, _, rest = self._unread.partition(b"\n")
            head = json.loads(line)
            n_data, n_payload = head.get("data_length") or 0, head.get("payload_length") or 0
            if len(rest) < n_data + n_payload:
                return
            self._unread = rest[n_data + n_payload :]
            data = (head.get("data") or {}) | (json.loads(rest[:n_data]) if n_data else {})
            match head["type"]:
                case "transcript":
                    yield Shown(data["text"].strip(), True)
                case "error":
                    yield Refused(data["text"])

    @staticmethod
    def _event(kind: str, payload: bytes = b"", **data: Any) -> bytes:
        head: dict[str, Any] = {"type": kind, "data": data} | ({"payload_length": len(payload)} if payload else {})
        return json.dumps(head).encode() + b"\n" + payload
