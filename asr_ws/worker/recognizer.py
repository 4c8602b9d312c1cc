"""The recognizer: the only file that imports faster_whisper.

Decoding: temperature 0 (the fallback list takes seconds, and has crashed on noise), beam 5, no text carried over, no
timestamp tokens: an utterance fits one window, and without them it is decoded in one pass.
faster-whisper's own guards then drop nothing, so results that look made up are dropped here. The tokens are bounded,
because a repetition loop otherwise runs to the model's limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from asr_ws.core.types import SAMPLE_RATE, DecodeOptions, Samples, Segment, Word

BEAM_SIZE = 5
MIN_WORDS_S = 0.1  # words of less are not timed: with a frame or two faster-whisper's alignment raises
MAX_COMPRESSION_RATIO = 2.4  # text that gzips better than this repeats itself (Whisper's own value)
MAX_NO_SPEECH_PROB = 0.8  # above it nothing was said, however sure the text is
DOUBTFUL_NO_SPEECH_PROB, DOUBTFUL_LOGPROB = 0.38, -0.8  # nor where both are worse than this. Measured with tiny.en and
# base: 31 utterances of speech have at most 0.36 and at least -0.72, 26 stretches of silence, noise, tones, a trumpet
# and the sea at least 0.40 and at most -0.86.
CONTEXT_TOKENS = 100  # of hotwords and prompt, the last of them
TOKENS_FREE, TOKENS_PER_S = 24, 10  # fast English speech is 5-6 tokens a second
TOKENS_IN_ALL = 440  # with the context; the model's limit is 448


class Transcription(Protocol):
    """Iterate it to decode, once; ``filtered`` holds afterwards, the language from the start."""

    language: str
    language_probability: float
    filtered: str | None

    def __iter__(self) -> Iterator[Segment]: ...


class Recognizer(Protocol):
    """One model in memory. Not thread-safe: one decode at a time."""

    device: str
    compute_type: str

    def transcribe(self, samples: Samples, options: DecodeOptions) -> Transcription: ...


class RecognizerFactory(Protocol):
    def __call__(self, model: Path, *, device: str, compute_type: str, cpu_threads: int) -> Recognizer: ...


@dataclass(slots=True)
class FilteredTranscription:
    """Segments as they are decoded, less the suspicious ones; ``filtered`` says why when nothing is left."""

    raw: Iterator[Segment]
    language: str
    language_probability: float
    filtered: str | None = None

    def __iter__(self) -> Iterator[Segment]:
        reason, any_kept = None, False
        for segment in self.raw:
            if why := suspicion(segment):
                reason = why
            else:
                any_kept = True
                yield segment
        self.filtered = None if any_kept else reason


def suspicion(segment: Segment) -> str | None:
    """Why this segment is probably not something that was said, or None."""
    if segment.compression_ratio > MAX_COMPRESSION_RATIO:
        return "repetition"
    doubtful = segment.no_speech_prob > DOUBTFUL_NO_SPEECH_PROB and segment.avg_logprob < DOUBTFUL_LOGPROB
    if doubtful or segment.no_speech_prob > MAX_NO_SPEECH_PROB:
        return "no_speech"
    return None


class FasterWhisperRecognizer:
    """Whisper on CTranslate2.

    Args:
        model: a folder with all its files; nothing is downloaded.
        compute_type: ``default`` is CTranslate2's: as the weights are stored, and on the CPU float32.
        cpu_threads: 0: CTranslate2's default.
    Raises:
        RuntimeError, ValueError: from CTranslate2, when it cannot load.
    """

    def __init__(self, model: Path, *, device: str, compute_type: str, cpu_threads: int) -> None:
        from faster_whisper import WhisperModel

        self.device = device
        if (device, compute_type) == ("cpu", "default"):
            compute_type = "float32"  # what it comes to, without CTranslate2's warning at each start
        self._model = WhisperModel(
            str(model), device=device, compute_type=compute_type, cpu_threads=cpu_threads, local_files_only=True
        )
        self.compute_type = str(self._model.model.compute_type)

    def transcribe(self, samples: Samples, options: DecodeOptions) -> Transcription:
        prompt, hotwords, n_tokens = self._context(options)
        audio_s = len(samples) / SAMPLE_RATE
        segments, heard = self._model.transcribe(
            np.ascontiguousarray(samples, dtype=np.float32),
            language=options.language,
            task=options.task,
            beam_size=BEAM_SIZE,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
            no_speech_threshold=None,  # `suspicion` decides, and says so
            initial_prompt=prompt,
            hotwords=hotwords,
            word_timestamps=options.words and audio_s >= MIN_WORDS_S,
            max_new_tokens=min(TOKENS_FREE + int(TOKENS_PER_S * audio_s), TOKENS_IN_ALL - n_tokens),
        )
        # Without timestamps the one window is one segment; asked for words, faster-whisper would go on behind the last.
        one = (_segment(segment) for segment in islice(segments, 1))
        return FilteredTranscription(one, heard.language, float(heard.language_probability))

    def _context(self, options: DecodeOptions) -> tuple[list[int] | None, str | None, int]:
        """Prompt tokens and hotwords, cut to the last CONTEXT_TOKENS, hotwords first; and how many they are."""
        tokenizer = self._model.hf_tokenizer
        hotwords, n_hotwords = None, 0
        if options.hotwords and options.hotwords.strip():
            ids = tokenizer.encode(" " + options.hotwords.strip(), add_special_tokens=False).ids[-CONTEXT_TOKENS:]
            hotwords, n_hotwords = tokenizer.decode(ids), len(ids)
        prompt = None
        if options.prompt and options.prompt.strip() and n_hotwords < CONTEXT_TOKENS:
            ids = tokenizer.encode(" " + options.prompt.strip(), add_special_tokens=False).ids
            prompt = ids[-(CONTEXT_TOKENS - n_hotwords) :]
        return prompt, hotwords, n_hotwords + len(prompt or ())


def _segment(segment: Any) -> Segment:
    return Segment(
        text=segment.text,
        start_s=float(segment.start),
        end_s=float(segment.end),
        avg_logprob=float(segment.avg_logprob),
        no_speech_prob=float(segment.no_speech_prob),
        compression_ratio=float(segment.compression_ratio),
        words=tuple(
            Word(word.word, float(word.start), float(word.end), float(word.probability)) for word in segment.words or ()
        ),
    )


def pick_device(wanted: str) -> str:
    """``auto`` -> ``cuda`` where CTranslate2 sees such a device, else ``cpu``.

    Raises: ValueError: ``cuda``, and there is none.
    """
    if wanted == "cpu":
        return wanted
    import ctranslate2

    if ctranslate2.get_cuda_device_count():
        return "cuda"
    if wanted == "cuda":
        raise ValueError("CTranslate2 sees no CUDA device: use --device cpu, or auto")
    return "cpu"
