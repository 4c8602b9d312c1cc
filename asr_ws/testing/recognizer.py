"""A recognizer that does what it is told, for tests that need a real worker process but no real model.

A decode's script is its ``prompt``; a load's is the file ``load.script`` in the model folder. Each is one line: a fault
of `asr_ws.testing.faults`, or

    say TEXT    the text of the decode; otherwise it is `country N`, N the number of samples

Unrealistic: decodes take no time of their own, never use the GPU, and the text has nothing to do with the audio.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import TracebackType
from typing import Self

from asr_ws.core.types import SAMPLE_RATE, DecodeOptions, Samples, Segment, Word
from asr_ws.testing.faults import Fault, next_load
from asr_ws.worker.recognizer import FilteredTranscription, Transcription
from asr_ws.worker.supervisor import WorkerSpec


class ScriptedRecognizer:
    """A `asr_ws.worker.recognizer.RecognizerFactory`."""

    def __init__(self, model: Path, *, device: str, compute_type: str, cpu_threads: int, encoder_window: str) -> None:
        self.device, self.compute_type = device, compute_type
        next_load().commit()
        script = model / "load.script"
        if script.exists():
            Fault.of(script.read_text()).commit()

    def transcribe(self, samples: Samples, options: DecodeOptions) -> Transcription:
        fault = Fault.of(options.prompt or "", partial=options.partial)
        text = f" country {len(samples)}"
        if fault.verb == "say":
            text, fault = f" {fault.argument}", Fault()
        fault.commit()
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
