"""The worker process: loads the model, proves that it decodes, then decodes one request at a time.

    python -m asr_ws.worker SERVER_PID MODEL_FOLDER --device auto --compute-type default --cpu-threads 0

It speaks `asr_ws.worker.ipc` over stdin and stdout, which it first moves out of the way: native libraries print to
fd 1, and one such line would corrupt the framing. It ends by ``os._exit`` always, because unloading a model has
crashed, and at the end of its input at once, because then its server is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import math
import os
import queue
import sys
import threading
import time
import wave
from collections.abc import Iterator
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from asr_ws.core.types import SAMPLE_RATE, DecodeOptions, Samples, Segment
from asr_ws.worker import ipc
from asr_ws.worker.recognizer import Recognizer, RecognizerFactory, Transcription, pick_device
from asr_ws.worker.system import EXIT_CANNOT_LOAD, EXIT_CUDA, claim_stdio

SELF_TEST_WORD = "country"  # said twice in the clip
# What libraries say of a model's file that is cut short, or something else.
BROKEN_MODEL = ("is incomplete", "invalid payload size", "model binary version", "parse_error")


def main() -> NoReturn:
    args = _arguments()
    requests, replies = claim_stdio()
    faulthandler.enable()
    inbox: queue.Queue[bytes] = queue.Queue(maxsize=1)
    threading.Thread(target=_read, args=(requests, inbox), name="requests", daemon=True).start()
    with _dump_after(args.dump_after_s):
        recognizer = _load(args, replies)
    while True:
        _decode(recognizer, ipc.decode_request(inbox.get()), replies)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="asr_ws.worker")
    parser.add_argument("model", type=Path)
    parser.add_argument("--dump-after-s", type=float, default=60.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compute-type", default="default")
    parser.add_argument("--cpu-threads", type=int, default=0)
    parser.add_argument("--encoder-window", default="auto", choices=("auto", "full"))
    parser.add_argument("--recognizer", default="asr_ws.worker.recognizer:FasterWhisperRecognizer")
    return parser.parse_args()


def _read(requests: BinaryIO, inbox: queue.Queue[bytes]) -> None:
    """Runs beside the decode, so that the end of the input is seen in mid-decode."""
    while (payload := ipc.read_payload(requests)) is not None:
        inbox.put(payload)
    os._exit(0)


def _send(replies: BinaryIO, message: ipc.Reply) -> None:
    try:
        replies.write(ipc.frame(message))
        replies.flush()
    except OSError:  # the server is gone
        os._exit(0)


@contextlib.contextmanager
def _dump_after(seconds: float) -> Iterator[None]:
    """Stacks of all threads to standard error if it takes longer; by a thread in C, also where the GIL is held.

    That thread reads the frames of others that may be running, and can crash by it: so only where the end by the server
    will write no stacks, which elsewhere is that by SIGABRT.
    """
    if sys.platform != "win32":
        yield
        return
    faulthandler.dump_traceback_later(seconds)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _load(args: argparse.Namespace, replies: BinaryIO) -> Recognizer:
    module, _, name = args.recognizer.partition(":")
    began = time.monotonic()
    try:
        factory: RecognizerFactory = getattr(importlib.import_module(module), name)
        device = pick_device(args.device)
        _send(replies, ipc.Loading(device))
        recognizer = factory(
            args.model,
            device=device,
            compute_type=args.compute_type,
            cpu_threads=args.cpu_threads,
            encoder_window=args.encoder_window,
        )
        loaded = time.monotonic()
        clip = self_test_clip()
        text = "".join(segment.text for segment in _checked(recognizer.transcribe(clip, DecodeOptions("en"))))
        if SELF_TEST_WORD not in text.lower():
            raise RuntimeError(f"the self-test clip came out as {text[:200]!r}")
    except Exception as error:
        # The task boundary of the load: whatever it was ends this process, and is said.
        retryable = not _is_permanent(error, args.model)
        _send(replies, ipc.LoadFailed(f"{type(error).__name__}: {error}", retryable))
        os._exit(EXIT_CANNOT_LOAD)
    _send(
        replies,
        ipc.Loaded(
            pid=os.getpid(),
            device=recognizer.device,
            compute_type=recognizer.compute_type,
            load_s=loaded - began,
            self_test_audio_s=len(clip) / SAMPLE_RATE,
            self_test_decode_s=time.monotonic() - loaded,
        ),
    )
    return recognizer


def _is_permanent(error: Exception, model: Path) -> bool:
    """Trying again cannot help: a module, a file, or a setting is wrong; and not memory or descriptors short."""
    if isinstance(error, RuntimeError):
        missing = "Unable to open file" in str(error) and not (model / "model.bin").exists()
        return missing or any(sign in str(error) for sign in BROKEN_MODEL)
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        return False  # a library that could not be mapped
    # The tokenizer's library raises Exception itself, of a file that it cannot parse.
    return type(error) is Exception or isinstance(error, (ImportError, AttributeError, ValueError, FileNotFoundError))


def self_test_clip() -> Samples:
    """11 s of speech, shape (n,), 16 kHz mono float32."""
    with wave.open(str(files("asr_ws") / "assets" / "speech" / "jfk.wav")) as clip:
        pcm = np.frombuffer(clip.readframes(clip.getnframes()), dtype="<i2")
        samples: Samples = np.multiply(pcm, 1 / 32768, dtype=np.float32)
        return samples


def _checked(transcription: Transcription) -> Iterator[Segment]:
    """Raises: ArithmeticError: the model has computed what JSON has no number for, as some do in float16."""
    for segment in chain(transcription, [None]):  # the language's also where nothing was said
        if not (math.isfinite(transcription.language_probability) and (segment is None or segment.finite)):
            raise ArithmeticError("the model's numbers are not finite")
        if segment is not None:
            yield segment


def _decode(recognizer: Recognizer, request: ipc.DecodeRequest, replies: BinaryIO) -> None:
    began = time.monotonic()
    try:
        with _dump_after(request.dump_after_s):
            samples = np.frombuffer(request.samples, dtype="<f4")
            transcription = recognizer.transcribe(samples, request.options)
            for n, segment in enumerate(_checked(transcription), 1):
                last = n == transcription.n_segments
                language = transcription.language, transcription.language_probability
                _send(replies, ipc.SegmentDecoded(request.id, segment, last, *language))
    except Exception as error:
        # The task boundary of one decode: it fails, the worker lives. But a CUDA error sticks to the process: the next
        # one, on this audio too, may well go right.
        message = f"{type(error).__name__}: {error}"
        if any(word in message for word in ("CUDA", "cuBLAS", "cuDNN")):
            print(message, file=sys.stderr, flush=True)
            os._exit(EXIT_CUDA)
        _send(replies, ipc.DecodeError(request.id, message))
        return
    _send(
        replies,
        ipc.DecodeDone(
            request=request.id,
            language=transcription.language,
            language_probability=transcription.language_probability,
            filtered=transcription.filtered,
            decode_s=time.monotonic() - began,
        ),
    )
