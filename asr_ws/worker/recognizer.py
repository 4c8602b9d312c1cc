"""The recognizer: the only file that imports faster_whisper.

Decoding: temperature 0 (the fallback list takes seconds, and has crashed on noise), beam 5, no text carried over, no
timestamp tokens: an utterance fits one window, and without them it is decoded in one pass.
faster-whisper's own guards then drop nothing, so results that look made up are dropped here. The tokens are bounded,
because a repetition loop otherwise runs to the model's limit.

The encoder's window: Whisper looks at 30 s whatever was said, padded, and on the CPU that is more than half of a short
utterance's decode. `Encoder` cuts the padding to 8 s. With less of it texts are written twice; with these, now and then
something short comes out wrong, or the end is left out. Such a result is suspect by the signs of `Look.suspect`, and
then the utterance is decoded again at the full window, and that counts. ``python -m benchmarks.window`` measures it.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from asr_ws.core.types import SAMPLE_RATE, DecodeOptions, Samples, Segment, Word

Features = NDArray[np.float32]  # shape (n_mels, n_frames), Whisper's log-mel

HOP = SAMPLE_RATE // 100  # samples of a frame, Whisper's own
FULL_WINDOW = 3000  # frames, 30 s: what Whisper was trained on, and no utterance is longer
MIN_WORDS_S = 0.1  # words of less are not timed: with a frame or two faster-whisper's alignment raises
MAX_COMPRESSION_RATIO = 2.4  # text that gzips better than this repeats itself (Whisper's own value)
MAX_NO_SPEECH_PROB = 0.8  # above it nothing was said, however sure the text is
DOUBTFUL_NO_SPEECH_PROB, DOUBTFUL_LOGPROB = 0.38, -0.8  # nor where both are worse than this. Measured with tiny.en and
# base: 31 utterances of speech have at most 0.36 and at least -0.72, 26 stretches of silence, noise, tones, a trumpet
# and the sea at least 0.40 and at most -0.86, at the full window, whose word counts for a final in such cases.
CONTEXT_TOKENS = 100  # of hotwords and prompt, the last of them
NO_TEXT = re.compile(r"<\|[^|>]*\|>|[\x00-\x1f\x7f-\x9f]")  # in a context it makes a decode many times as long:
# the model's marks, and control characters
# What a shortened window leaves of the padding. Word errors on 17 recordings, each cut in four ways: with a second look
# tiny.en 45 of 1516 and 41 with all of it, base 66 of 1616 and 58; without one 63 and 83. With less, as with twice the
# length + 2 s in all, short utterances are written twice.
PADDING_FRAMES = 800
# Signs that it was too little, measured on the same 57 utterances. Texts as sure as this, and as sure to be speech, are
# those of the full window but for single words; and the last word of a whole text ends 0.04 to 0.56 s before the audio,
# of one whose end was left out 1.6 s.
SUSPECT_LOGPROB, SUSPECT_NO_SPEECH_PROB, SUSPECT_REST_S = -0.7, 0.3, 0.8
TOKENS_FREE, TOKENS_PER_S = 24, 10  # fast English speech is 5-6 tokens a second
TOKENS_IN_ALL = 440  # with the context; the model's limit is 448, with its marks

# What CTranslate2 opens at the first decode on CUDA, and aborts without.
CUDA_LIBRARIES = {
    "linux": ("libcublas.so.12", "libcudnn_ops.so.9"),
    "win32": ("cublas64_12.dll", "cudnn_ops64_9.dll"),
}


class Transcription(Protocol):
    """Iterate it, once; only afterwards ``filtered`` holds. ``n_segments``: how many there are, if none is filtered."""

    language: str
    language_probability: float
    filtered: str | None
    n_segments: int

    def __iter__(self) -> Iterator[Segment]: ...


class Recognizer(Protocol):
    """One model in memory. Not thread-safe: one decode at a time."""

    device: str
    compute_type: str

    def transcribe(self, samples: Samples, options: DecodeOptions) -> Transcription: ...


class RecognizerFactory(Protocol):
    def __call__(
        self, model: Path, *, device: str, compute_type: str, cpu_threads: int, encoder_window: str
    ) -> Recognizer: ...


@dataclass(slots=True)
class FilteredTranscription:
    """Segments as they are decoded, less the suspicious ones; ``filtered`` says why when nothing is left."""

    raw: Iterator[Segment]
    language: str
    language_probability: float
    filtered: str | None = None
    n_segments: int = 1  # an utterance fits one window of the model

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


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard a decode tries."""

    beam_size: int
    words: bool  # timed, where asked for
    second_look: bool  # at the full window, where the shortened one's text is suspect


FINAL = Effort(beam_size=5, words=True, second_look=True)
PARTIAL = Effort(beam_size=1, words=False, second_look=False)  # beam 1 invents ends, which the next one corrects


class Encoder:
    """Stands where faster-whisper calls `WhisperModel.encode`: cuts the padding that it gives, and encodes once.

    Detecting the language and decoding both ask for the encoding, with one frame more or less; both get the same.

    Args:
        encode: shape (n_mels, n_frames) -> whatever the model takes for an encoding.
    Attributes:
        padding: what stands behind the audio, by its features: faster-whisper's 0, which is louder than silence.
            With what silence would be, base makes 41 errors and not 66 in 1616 words, but tiny.en 65 and not 45 in
            1516, and both leave words where nothing was said (``python -m benchmarks.window --silence``).
    """

    def __init__(self, encode: Callable[[Features], Any]) -> None:
        self.padding: Callable[[Features], float] = lambda features: 0.0
        self._encode = encode
        self._n_frames = 0
        self._window = FULL_WINDOW
        self._encoding: Any = None

    def begin(self, n_frames: int, window: int) -> None:
        """What comes next is a new request, of so many frames of audio, to be seen in a window of so many."""
        self._n_frames, self._window, self._encoding = n_frames, window, None

    def __call__(self, padded: Features) -> Any:
        if self._encoding is None:
            features = padded[:, : self._window].copy()
            features[:, self._n_frames :] = self.padding(features[:, : self._n_frames])
            self._encoding = self._encode(features)
        return self._encoding


@dataclass(frozen=True, slots=True)
class Context:
    """What the decoder is given before it begins, in the model's tokens; ``n_tokens`` in all."""

    prompt: list[int]
    hotwords: str
    prefix: list[int]
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Look:
    """One pass over an utterance, nothing filtered.

    ``looped``: it ran into the bound of its tokens. ``rest_s``: audio after its last word; 0 where none was timed.
    ``source``: faster-whisper's generator, kept because ending it has crashed.
    """

    segment: Segment | None
    language: str
    language_probability: float
    looped: bool = False
    rest_s: float = 0.0
    source: object = None

    @property
    def suspect(self) -> bool:
        """Whether a larger window may well give something else."""
        return self.segment is not None and (
            self.looped
            or self.rest_s > SUSPECT_REST_S
            or self.segment.compression_ratio > MAX_COMPRESSION_RATIO
            or self.segment.avg_logprob < SUSPECT_LOGPROB
            or self.segment.no_speech_prob > SUSPECT_NO_SPEECH_PROB
        )


class FasterWhisperRecognizer:
    """Whisper on CTranslate2.

    Args:
        model: a folder with all its files; nothing is downloaded.
        compute_type: ``default`` is CTranslate2's: as the weights are stored, and on the CPU float32.
        cpu_threads: 0: CTranslate2's default.
        encoder_window: ``auto``: what an utterance needs; ``full``: 30 s always.
    Raises:
        RuntimeError, ValueError: from CTranslate2, when it cannot load.
    """

    def __init__(self, model: Path, *, device: str, compute_type: str, cpu_threads: int, encoder_window: str) -> None:
        from faster_whisper import WhisperModel

        self.device = device
        if (device, compute_type) == ("cpu", "default"):
            compute_type = "float32"  # what it comes to, without CTranslate2's warning at each start
        self._model = WhisperModel(
            str(model), device=device, compute_type=compute_type, cpu_threads=cpu_threads, local_files_only=True
        )
        self.encoder = self._model.encode = Encoder(self._model.encode)
        self.compute_type = str(self._model.model.compute_type)
        self._shortened = encoder_window == "auto"

    def transcribe(self, samples: Samples, options: DecodeOptions) -> Transcription:
        """Decode. Args: samples: shape (n,), at most 30 s, 16 kHz mono."""
        shortened = self._shortened and len(samples) // HOP + PADDING_FRAMES < FULL_WINDOW
        look = self.look(samples, options, shortened=shortened)
        if shortened and _effort(options).second_look and look.suspect:
            look = self.look(samples, options, shortened=False)

        def segments() -> Iterator[Segment]:
            if look.segment is not None:
                yield look.segment  # and then `look.source` may end: what has been handed over is safe

        return FilteredTranscription(segments(), look.language, look.language_probability)

    def look(self, samples: Samples, options: DecodeOptions, *, shortened: bool) -> Look:
        """One pass; nothing is filtered."""
        effort = _effort(options)
        context = self._context(options)
        audio_s, n_frames, n_prefix = len(samples) / SAMPLE_RATE, len(samples) // HOP, len(context.prefix)
        n_new = min(
            TOKENS_FREE + int(TOKENS_PER_S * audio_s),
            TOKENS_IN_ALL - context.n_tokens,
            TOKENS_IN_ALL // 2 - n_prefix,  # Whisper writes no more than half of its limit at once
        )
        if n_new <= 0:
            return Look(None, options.language or "", 0.0)
        self.encoder.begin(n_frames, min(n_frames + PADDING_FRAMES, FULL_WINDOW) if shortened else FULL_WINDOW)
        words = effort.words and options.words
        found, heard = self._model.transcribe(
            np.ascontiguousarray(samples, dtype=np.float32),
            language=options.language,
            task=options.task,
            beam_size=effort.beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
            no_speech_threshold=None,  # `suspicion` decides, and says so
            initial_prompt=context.prompt or None,
            hotwords=context.hotwords or None,
            prefix=options.prefix.strip() or None,
            word_timestamps=(words or (shortened and effort.second_look)) and audio_s >= MIN_WORDS_S,
            # faster-whisper adds the context; CTranslate2 then stops at half of the sum, prefix included, or where
            # the sum is used up, whichever comes first.
            max_new_tokens=max(2 * (n_new + n_prefix) - context.n_tokens, n_new),
        )
        # Without timestamps the one window is one segment; with words, faster-whisper would go on behind the last.
        segment = next(iter(found), None)
        language = heard.language, float(heard.language_probability)
        # An output that does not begin with the prefix says nothing of what follows it.
        if segment is None or segment.tokens[:n_prefix] != context.prefix:
            return Look(None, *language)
        text = self._model.hf_tokenizer.decode(segment.tokens[n_prefix:])
        timed = (segment.words or ()) if words else ()
        bounds = (float(segment.start), float(segment.end)) if timed else (0.0, audio_s)
        return Look(
            _segment(segment, text, bounds, timed) if text.strip() else None,
            *language,
            looped=len(segment.tokens) >= n_new + n_prefix,
            rest_s=audio_s - float(segment.words[-1].end) if segment.words else 0.0,
            source=found,
        )

    def _context(self, options: DecodeOptions) -> Context:
        """Prompt and hotwords are cut to the last CONTEXT_TOKENS of both, hotwords first; the prefix stays whole."""
        hotwords = self._tokens(NO_TEXT.sub(" ", options.hotwords or ""))[-CONTEXT_TOKENS:]
        n_left = CONTEXT_TOKENS - len(hotwords)
        prompt = self._tokens(NO_TEXT.sub(" ", options.prompt or ""))[-n_left:] if n_left else []
        prefix = self._tokens(options.prefix)
        n_tokens = len(hotwords) + len(prompt) + len(prefix)
        return Context(prompt, self._model.hf_tokenizer.decode(hotwords), prefix, n_tokens)

    def _tokens(self, text: str) -> list[int]:
        """As faster-whisper makes them of hotwords and of a prefix."""
        stripped = text.strip()
        ids: list[int] = self._model.hf_tokenizer.encode(f" {stripped}", add_special_tokens=False).ids
        return ids if stripped else []


def _effort(options: DecodeOptions) -> Effort:
    return PARTIAL if options.partial else FINAL


def _segment(segment: Any, text: str, bounds: tuple[float, float], words: Sequence[Any]) -> Segment:
    start_s, end_s = bounds
    return Segment(
        text=text,
        start_s=start_s,
        end_s=end_s,
        avg_logprob=float(segment.avg_logprob),
        no_speech_prob=float(segment.no_speech_prob),
        compression_ratio=float(segment.compression_ratio),
        words=tuple(
            # A word without tokens of its own has a mean of nothing for its probability.
            Word(word.word, float(word.start), float(word.end), float(np.nan_to_num(word.probability, posinf=np.inf)))
            for word in words
        ),
    )


def abilities() -> dict[str, Any]:
    """What CTranslate2 can do here: its numbers' formats by device, and which of CUDA's libraries it would not find."""
    import ctranslate2

    n_devices = ctranslate2.get_cuda_device_count()
    return {
        "cpu_compute_types": sorted(ctranslate2.get_supported_compute_types("cpu")),
        "cuda_compute_types": sorted(ctranslate2.get_supported_compute_types("cuda")) if n_devices else [],
        "cuda_devices": n_devices,
        "missing_libraries": [name for name in CUDA_LIBRARIES.get(sys.platform, ()) if n_devices and not _loads(name)],
    }


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


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
