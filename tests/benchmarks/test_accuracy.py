"""The table and the verdict, on texts made up here; the measuring itself is `python -m benchmarks.accuracy`."""

from __future__ import annotations

from pathlib import Path

import pytest

from asr_ws.testing.wer import WordErrors
from benchmarks.accuracy import Heard, Outcome, choose, table
from benchmarks.common import Recording


def heard(said: str, streamed: str, whole: str, *, name: str = "a.wav", unfinished: int = 0) -> Heard:
    return Heard(Recording(Path(name), "en", said), streamed, whole, unfinished)


def no_speech(streamed: str, whole: str) -> Heard:
    return Heard(Recording(Path("noise.wav"), "none", ""), streamed, whole)


def test_the_table_has_both_errors_per_file_and_in_sum() -> None:
    runs = [
        heard("one two three four", "One two. For", "one, two, three, four"),
        heard("five six", "five six", "five", name="b.wav", unfinished=2),
        no_speech("", "Thank you"),
    ]
    assert table(runs) == [
        "file                     words  streamed    rate   whole    rate",
        "a.wav                        4         2   50.0%       0    0.0%",
        "b.wav                        2         0    0.0%       1   50.0%",
        "    2 utterances came to no text",
        "in sum                       6         2   33.3%       1   16.7%",
        "noise.wav                words on non-speech: 0 (whole: 2)",
    ]


def test_verbose_shows_the_texts_where_they_differ_and_what_was_heard_in_noise() -> None:
    runs = [
        heard("one two", "One, two.", "one two"),
        heard("three", "free", "three", name="b.wav"),
        no_speech("You", ""),
    ]
    assert table(runs, verbose=True)[1:] == [
        "a.wav                        2         0    0.0%       0    0.0%",
        "b.wav                        1         1  100.0%       0    0.0%",
        "    said:     three",
        "    streamed: free",
        "    whole:    three",
        "in sum                       3         1   33.3%       0    0.0%",
        "noise.wav                words on non-speech: 1 (whole: 0)",
        "    streamed: You",
    ]


def test_the_outcome_sums_speech_and_counts_noise_apart() -> None:
    runs = [heard("one two", "one", "one two", unfinished=1), heard("three", "three", "tree"), no_speech("a b", "")]
    assert Outcome.of(runs) == Outcome(WordErrors(1, 3), WordErrors(1, 3), words_on_no_speech=2, unfinished=1)


@pytest.mark.parametrize(
    ("streamed", "whole", "on_no_speech", "passed"),
    [(9, 7, 0, True), (10, 7, 0, False), (0, 7, 0, True), (7, 7, 1, False)],
)
def test_two_points_more_than_whole_files_is_the_limit(
    streamed: int, whole: int, on_no_speech: int, passed: bool
) -> None:
    outcome = Outcome(WordErrors(streamed, 100), WordErrors(whole, 100), on_no_speech, 0)
    assert outcome.passed is passed


def test_recordings_that_the_model_cannot_be_asked_about_are_left_out_and_said() -> None:
    recordings = [Recording(Path(f"{code}.wav"), code, "") for code in ("en", "zh", "fr", "none")]
    script = "simplified or traditional script is the model's whim, and counts as wrong characters"
    unknown = "a language unknown to the model"
    en, _, fr, none = recordings
    assert choose(recordings, ["en"]) == ([en, none], {"zh.wav": unknown, "fr.wav": unknown})
    assert choose(recordings, ["en", "fr", "zh"]) == ([en, fr, none], {"zh.wav": script})
