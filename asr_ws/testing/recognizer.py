"""A recognizer that does what it is told, for tests that need a real worker process but no real model.

A decode's script is its ``prompt``; a load's is the file ``load.script`` in the model folder. Each is one line: a fault
of `asr_ws.testing.faults`, or

    say TEXT            the text of the decode; otherwise it is `country N`, N the number of samples
    crash-once FILE     SEGV, unless FILE exists; it does afterwards
    gate PORT           connect to 127.0.0.1:PORT, say so, and go on when a byte comes back (see `Gate`)
    print TEXT          write it to file descriptor 1, as native libraries do

Unrealistic: decodes take no time of their own, never use the GPU, and the text has nothing to do with the audio.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from asr_ws.core.types import SAMPLE_RATE, DecodeOptions, Samples, Segment, Word
from asr_ws.testing.faults import Fault, next_load
from asr_ws.worker.recognizer import FilteredTranscription, Transcription
from asr_ws.worker.supervisor import WorkerSpec


class ScriptedRecognizer:
    """A `asr_ws.worker.recognizer.RecognizerFactory`."""

    def __init__(self, model: Path, *, device: str, compute_type: str, cpu_threads: int, encoder_window: str) -> None:
        self.device, self.compute_type = device, compute_type
        next_load().commit(VERBS)
        script = model / "load.script"
        if script.exists():
            Fault.of(script.read_text()).commit(VERBS)

    def transcribe(self, samples: Samples, options: DecodeOptions) -> Transcription:
        fault = Fault.of(options.prompt or "", partial=options.partial)
        text = f" country {len(samples)}"
        if fault.verb == "say":
            text, fault = f" {fault.argument}", Fault()
        fault.commit(VERBS)
        end_s = len(samples) / SAMPLE_RATE
        segment = Segment(
            text=text,
            start_s=0.0,
            end_s=end_s,
            avg_logprob=-0.1,
            no_speech_prob=0.0,
            compression_ratio=1.0,
            words=(Word(text, 0.0, end_s, 1.0),) if options.words else (),
        )
        return fault.follow(FilteredTranscription(iter((segment,)), options.language or "en", 1.0))


def _crash_once(file: str) -> None:
    if not Path(file).exists():
        Path(file).touch()
        Fault("crash", "SEGV").commit()


def _gate(port: str) -> None:
    with socket.create_connection(("127.0.0.1", int(port))) as gate:
        gate.recv(1)


# No client of a real server gets these, which reach beyond the worker.
VERBS: Final[Mapping[str, Callable[[str], object]]] = {
    "crash-once": _crash_once,
    "gate": _gate,
    "print": lambda text: os.write(1, text.encode()),
}


class Gate:
    """Holds decodes until they are let go. ``async with Gate() as gate: ... prompt=gate.script``."""

    async def __aenter__(self) -> Self:
        self._waiting: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        self._entered: list[asyncio.StreamWriter] = []  # kept: one that is collected closes itself, and opens the gate
        self._server = await asyncio.start_server(lambda _, writer: self._waiting.put_nowait(writer), "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        while not self._waiting.empty():
            self._entered.append(self._waiting.get_nowait())
        for decode in self._entered:
            decode.close()

    @property
    def script(self) -> str:
        return f"gate {self._server.sockets[0].getsockname()[1]}"

    async def entered(self) -> asyncio.StreamWriter:
        """Wait until a decode stands at the gate; give the answer to `open`."""
        self._entered.append(await self._waiting.get())
        return self._entered[-1]

    async def open(self) -> None:
        """Let the next decode pass, waiting for it if need be."""
        self.release(await self.entered())

    def release(self, decode: asyncio.StreamWriter) -> None:
        decode.write(b".")
        decode.close()


def scripted_worker(folder: Path, *, load: str = "", multilingual: bool = False) -> WorkerSpec:
    """A worker of scripted decodes; ``folder`` becomes what passes for its model."""
    start = 50258 if multilingual else 50257
    languages = ["en", "de", "zh"]
    tokens = [{"id": start, "content": "<|startoftranscript|>"}]
    tokens += [{"id": start + 1 + n, "content": f"<|{code}|>"} for n, code in enumerate(languages)]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    (folder / "load.script").write_text(load)
    return WorkerSpec(folder, device="cpu", recognizer="asr_ws.testing.recognizer:ScriptedRecognizer")
