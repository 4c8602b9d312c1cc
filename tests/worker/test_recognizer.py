"""What is taken for text, by literals; and decoding, on the real model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asr_ws.core.types import SAMPLE_RATE, DecodeOptions, Segment
from asr_ws.worker.recognizer import FasterWhisperRecognizer, FilteredTranscription, pick_device, suspicion
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


@pytest.fixture(scope="module")
def recognizer(tiny_en: Path) -> FasterWhisperRecognizer:
    return FasterWhisperRecognizer(tiny_en, device="cpu", compute_type="default", cpu_threads=0)


@pytest.mark.model
def test_default_compute_type_is_said_as_what_it_became(recognizer: FasterWhisperRecognizer) -> None:
    assert (recognizer.device, recognizer.compute_type) == ("cpu", "float32")


@pytest.mark.model
def test_speech_is_one_segment_with_words_where_asked(recognizer: FasterWhisperRecognizer) -> None:
    samples = read_speech("jfk.wav")
    [segment] = recognizer.transcribe(samples, DecodeOptions("en", words=True))
    assert "country" in segment.text
    assert "".join(word.word for word in segment.words) == segment.text
    edges = [edge for word in segment.words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert edges[-1] <= len(samples) / SAMPLE_RATE + 0.1


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
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("n_samples", [0, 1, 160, 319, 511, 1600])
def test_shortest_utterances_do_not_raise(recognizer: FasterWhisperRecognizer, n_samples: int, words: bool) -> None:
    list(recognizer.transcribe(read_speech("jfk.wav")[8000 : 8000 + n_samples], DecodeOptions("en", words=words)))
