"""The table and the verdict, on looks made up here; the measuring itself is `python -m benchmarks.window`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import numpy as np
import pytest
import soundfile

from asr_ws.core.types import DecodeOptions, Samples, Segment
from asr_ws.detector import SileroModel
from asr_ws.messages import Endpointing
from asr_ws.worker.recognizer import FasterWhisperRecognizer, Look
from benchmarks.common import Recording
from benchmarks.window import (
    CUTS,
    VARIANTS,
    WAYS,
    Outcome,
    Piece,
    Timed,
    differences,
    like_silence,
    made_up_non_speech,
    measure,
    read,
    table,
    to_decode,
    utterances,
)
from tests.conftest import SPEECH, read_speech

SPEECH_A = Recording(Path("a.wav"), "en", "one two three")
NOISE = Recording(Path("noise"), "none", "")


def look(text: str, **changes: float) -> Look:
    segment = Segment(text, 0.0, 1.0, avg_logprob=-0.1, no_speech_prob=0.0, compression_ratio=1.0)
    return Look(replace(segment, **cast(Any, changes)), "en", 1.0)


def piece(recording: Recording, audio_s: float, full: Timed, shortened: Timed, *, cut: int = 0) -> Piece:
    seen = {"full": full, "full, silence": full, "shortened": shortened, "shortened, silence": shortened}
    assert seen.keys() == WAYS.keys()
    return Piece(recording, cut, audio_s, seen)


PIECES = [
    piece(SPEECH_A, 2.0, Timed(look(" One two"), 1.0), Timed(look(" One two"), 0.5)),
    piece(SPEECH_A, 3.0, Timed(look(" three."), 2.0), Timed(look(" tree tree", avg_logprob=-0.9), 1.0)),
    piece(SPEECH_A, 9.0, Timed(look(""), 1.0), Timed(look("", compression_ratio=2.5), 0.75)),
    piece(NOISE, 3.0, Timed(look(" You", no_speech_prob=0.9), 1.0), Timed(look(" Oh oh", no_speech_prob=0.2), 0.5)),
]


def test_an_outcome_sums_words_and_compares_times_piece_by_piece() -> None:
    outcomes = {variant: Outcome.of(PIECES, variant) for variant in ("full", "shortened", "second look")}
    assert outcomes == {
        "full": Outcome(0, 3, time=1.0, short_time=1.0, repeated=0, second_looks=0, words_on_no_speech=0),
        "shortened": Outcome(2, 3, time=0.5, short_time=0.5, repeated=1, second_looks=0, words_on_no_speech=2),
        "second look": Outcome(0, 3, time=1.5, short_time=1.0, repeated=0, second_looks=2, words_on_no_speech=2),
    }
    assert table("tiny.en", outcomes) == [
        "tiny.en                errors  words   rate   time  < 8 s  repeats  looks  made up",
        "full                        0      3   0.0%   1.00   1.00        0      0        0",
        "shortened                   2      3  66.7%   0.50   0.50        1      0        2",
        "second look                 0      3   0.0%   1.50   1.00        0      2        2",
    ]


def test_each_cut_of_a_recording_is_all_of_its_words() -> None:
    pieces = [
        piece(SPEECH_A, 2.0, Timed(look(" One two three"), 1.0), Timed(look(" One two"), 0.5), cut=cut)
        for cut in (0, 0, 1)
    ]
    outcome = Outcome.of(pieces, "full")
    assert (outcome.errors, outcome.words) == (3, 6), "written twice in the first cut"


def test_differences_are_shown_where_what_is_served_has_other_words() -> None:
    assert differences(PIECES) == ["noise 3.00 s", "    second look:  Oh oh", "    full: "]


@pytest.mark.parametrize(
    ("errors", "short_time", "made_up", "keeps_up"),
    [(15, 0.6, 2, True), (16, 0.5, 0, False), (0, 0.61, 0, False), (0, 0.5, 3, False)],
)
def test_half_a_point_six_tenths_of_the_time_and_no_word_more_are_the_limits(
    errors: int, short_time: float, made_up: int, keeps_up: bool
) -> None:
    full = Outcome(10, 1000, 1.0, 1.0, 0, 0, words_on_no_speech=2)
    served = Outcome(errors, 1000, 0.9, short_time, 0, 0, words_on_no_speech=made_up)
    assert served.keeps_up_with(full) is keeps_up


def test_variants_are_put_together_from_what_is_measured() -> None:
    assert {way for ways in VARIANTS.values() for way in ways} == set(WAYS)


def test_each_way_is_measured_in_turn_with_its_own_padding() -> None:
    seen: list[tuple[float, bool]] = []
    encoder = SimpleNamespace(padding=None)
    loud = np.full((1, 1), 0.9, np.float32)

    def watched(samples: Samples, options: DecodeOptions, *, shortened: bool) -> Look:
        seen.append((round(encoder.padding(loud), 3), shortened))
        return look(options.language or "")

    recognizer = cast(FasterWhisperRecognizer, SimpleNamespace(encoder=encoder, look=watched))
    timed = measure(recognizer, np.zeros(16, np.float32), "en", WAYS, repeat=2)
    assert seen == 2 * [(0.0, False), (-1.1, False), (0.0, True), (-1.1, True)]
    assert {name: each.look for name, each in timed.items()} == dict.fromkeys(WAYS, look("en"))


def test_silence_is_whispers_floor_or_what_its_loudest_leaves() -> None:
    floors = [like_silence(np.full((80, 3), loudest, np.float32)) for loudest in (1.5, 0.25)]
    assert [*floors, like_silence(np.zeros((80, 0), np.float32))] == [-0.5, -1.5, -1.5]


def test_utterances_are_cut_as_a_session_cuts_them() -> None:
    lengths = [len(samples) for samples in utterances(read_speech("jfk.wav"), SileroModel(), CUTS[0])]
    assert CUTS[0] == Endpointing(), "the defaults"
    assert lengths == [38720, 24384, 42816, 44352]


def test_speech_is_cut_in_every_way_and_non_speech_made_up_and_cut_into_pieces(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "sea.wav", np.zeros(4 * 16_000), 16_000)
    sea, jfk = Recording(tmp_path / "sea.wav", "none", ""), Recording(SPEECH / "jfk.wav", "en", "")
    pieces = [(recording.file.name, cut, len(samples)) for recording, cut, samples in to_decode([sea, jfk])]
    assert pieces[:2] == [("sea.wav", 0, 48_000), ("sea.wav", 0, 64_000)]
    assert [(name, cut) for name, cut, _ in pieces[2:-19]] == [("jfk.wav", cut) for cut in range(4) for _ in range(4)]
    assert pieces[-19:] == [(name, 0, len(samples)) for name, samples in made_up_non_speech()]


def test_a_recording_that_would_have_to_be_resampled_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(80), 8_000)
    with pytest.raises(click.ClickException, match="8000 Hz"):
        read(tmp_path / "a.wav")
