from __future__ import annotations

import pytest

from asr_ws.testing.wer import WordErrors, total, word_errors, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" . , ! ", []),
        ("And so, my fellow Americans:", ["and", "so", "my", "fellow", "americans"]),
        ("1-0 9oh 2", ["one", "zero", "nine", "zero", "two"]),
        ("42", ["four", "two"]),
        ("Mr. and Mrs. Quilter", ["mister", "and", "missus", "quilter"]),
        ("I'm, I’m; it's", ["i", "am", "i", "am", "it", "is"]),
        ("can't don't won't", ["cannot", "do", "not", "won't"]),
        ("'quoted' o'clock", ["quoted", "o'clock"]),
        ("Eaux et forêts", ["eaux", "et", "forêts"]),
        ("under_score", ["under", "score"]),
    ],
)
def test_words_are_what_was_said_and_not_how_it_is_written(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("said", "heard", "expected"),
    [
        ("one two three", "1, 2, 3!", WordErrors(0, 3)),
        ("a b c", "a x c", WordErrors(1, 3)),  # substitution
        ("a b c", "a c", WordErrors(1, 3)),  # deletion
        ("a b c", "a b b c", WordErrors(1, 3)),  # insertion
        ("a b c", "b c d", WordErrors(2, 3)),  # cheaper than three substitutions
        ("a b c", "", WordErrors(3, 3)),
        ("", "thank you", WordErrors(2, 0)),
        ("a b", "c d e f", WordErrors(4, 2)),
    ],
)
def test_errors_are_the_fewest_edits(said: str, heard: str, expected: WordErrors) -> None:
    assert word_errors(said, heard) == expected


@pytest.mark.parametrize(
    ("errors", "rate"),
    [(WordErrors(1, 4), 0.25), (WordErrors(4, 2), 2.0), (WordErrors(2, 0), 1.0), (WordErrors(0, 0), 0.0)],
)
def test_the_rate_is_errors_by_words_and_all_wrong_where_nothing_was_said(errors: WordErrors, rate: float) -> None:
    assert errors.rate == rate


def test_a_total_weighs_each_word_alike() -> None:
    assert total([WordErrors(1, 2), WordErrors(0, 8)]) == WordErrors(1, 10)
    assert total([]) == WordErrors(0, 0)
