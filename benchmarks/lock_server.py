"""What one writes first, and what this project replaces: a WebSocket server with its model behind a lock.

    python -m benchmarks.lock_server [the options of asr-ws serve]

One process. Each utterance gets a thread of the default executor (`asyncio.to_thread`: min(32, cores + 4) of them, and
before these a queue without a bound), and one global ``threading.Lock`` lets one of them at a time at the model.

For `benchmarks.lock_baseline`, so it is no worse than it has to be: it takes the settings of the real server, decodes
by the real worker's code, with its priority and with threads that wait as its do, has warmed the model before it
listens, and reads its sockets and answers pings while it decodes. It speaks as much of asr-ws.v1 as a client in manual
mode needs: binary frames and `commit` in, `final` out, which bears the commit's id for the utterance's; there is
nothing that it could say before. The model `scripted` is `asr_ws.testing.recognizer`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import click
import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from asr_ws import messages, models
from asr_ws.cli.options import with_settings
from asr_ws.config import Loaded, Model
from asr_ws.core.types import SAMPLE_RATE, DecodeOptions, Samples, Segment
from asr_ws.testing.recognizer import ScriptedRecognizer
from asr_ws.worker.child import self_test_clip
from asr_ws.worker.process import ENVIRONMENT
from asr_ws.worker.recognizer import FasterWhisperRecognizer, Recognizer, Transcription, pick_device
from asr_ws.worker.system import NICE

SCRIPTED: Final = "scripted"
LIMITS: Final = messages.Limits(0, 0, 30_000, messages.MAX_BINARY_BYTES, 0, 0)  # there are none but the protocol's

_lock = threading.Lock()


def load(model: Model) -> Recognizer:
    """The real server's, warm. Raises: ModelError: the model is not there."""
    scripted = model.model == SCRIPTED
    recognizer: Recognizer = (ScriptedRecognizer if scripted else FasterWhisperRecognizer)(
        Path() if scripted else models.resolve(model.model),
        device="cpu" if scripted else pick_device(model.device),
        compute_type=model.compute_type,
        cpu_threads=model.cpu_threads,
        encoder_window=model.encoder_window,
    )
    decode(recognizer, self_test_clip(), DecodeOptions("en"))
    return recognizer


def decode(
    recognizer: Recognizer, samples: Samples, options: DecodeOptions
) -> tuple[list[Segment], Transcription, float]:
    """In a thread of its own; the last of what it returns is how many seconds it took, once it had the lock."""
    with _lock:
        began = time.monotonic()
        transcription = recognizer.transcribe(samples, options)
        return list(transcription), transcription, time.monotonic() - began


async def answer(
    socket: ServerConnection, recognizer: Recognizer, utterance: str, pcm: bytes, options: DecodeOptions
) -> None:
    received = time.monotonic()
    samples = np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768)
    event: messages.ServerEvent
    try:
        segments, heard, decode_s = await asyncio.to_thread(decode, recognizer, samples, options)
    except Exception as error:  # the task boundary of one decode
        event = messages.Error(code="decode_failed", message=repr(error), hint="", fatal=False, utterance=utterance)
    else:
        event = messages.Final(
            utterance=utterance,
            attempt=1,
            text="".join(each.text for each in segments).strip(),
            language=heard.language,
            language_probability=heard.language_probability,
            audio_start_ms=0,
            audio_end_ms=len(samples) * 1000 // SAMPLE_RATE,
            wait_ms=round((time.monotonic() - received - decode_s) * 1000),
            decode_ms=round(decode_s * 1000),
            segments=[],
            filtered=heard.filtered,
        )
    with suppress(ConnectionClosed):  # who asked has left; the decode was done all the same
        await socket.send(messages.encode(event))


async def session(recognizer: Recognizer, model: str, socket: ServerConnection) -> None:
    ready = messages.Ready(
        protocol=messages.PROTOCOL,
        session="lock",
        server="lock",
        model=model,
        languages=[],
        state="ready",
        limits=LIMITS,
    )
    await socket.send(messages.encode(ready))
    options, audio, received_ms, finals = DecodeOptions(None), bytearray(), 0, 0
    with suppress(ConnectionClosed):
        async with asyncio.TaskGroup() as answers:
            async for data in socket:
                if isinstance(data, bytes):
                    audio += data
                    continue
                match messages.decode_message(data):
                    case messages.Start() as start:
                        options = DecodeOptions(
                            start.language, start.task, start.prompt, start.hotwords, words=start.words
                        )
                    case messages.Commit(id=id):
                        received_ms += len(audio) * 1000 // (2 * SAMPLE_RATE)
                        finals += 1
                        answers.create_task(answer(socket, recognizer, id or f"u{finals}", bytes(audio), options))
                        audio.clear()
                    case messages.Ping(id=id):
                        await socket.send(messages.encode(messages.Pong(id=id)))
                    case messages.End():
                        break
        done = messages.Done(
            received_ms=received_ms,
            decoded_ms=received_ms,
            silence_ms=0,
            refused_ms=0,
            lost_ms=0,
            finals=finals,
            busy=0,
            retries=0,
            dropped=0,
            errors=0,
        )
        await socket.send(messages.encode(done))


async def listen(recognizer: Recognizer, model: str, port: int) -> None:
    serving = serve(
        partial(session, recognizer, model),
        "127.0.0.1",
        port,
        max_size=messages.MAX_BINARY_BYTES,
        compression=None,
    )
    async with serving as server:
        print(f"listening on http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}", flush=True)
        await server.serve_forever()


@click.command()
@with_settings
def main(loaded: Loaded) -> None:
    """Run the server until a signal ends it."""
    os.environ.update(ENVIRONMENT | os.environ)  # before the library that reads it is loaded
    if sys.platform != "win32":
        os.nice(NICE)
    settings = loaded.settings
    asyncio.run(listen(load(settings.model), settings.model.model, settings.listen.port))


if __name__ == "__main__":
    main()
