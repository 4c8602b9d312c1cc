"""Where subtitles are cut, and how they are written."""

from __future__ import annotations

import pytest

from asr_ws.subtitles import MAX_CUE_CHARS, Said, clock, cues, srt, vtt


def said(*texts: str) -> list[Said]:
    """Words of 100 ms each."""
    return [Said(text, n * 100, n * 100 + 100) for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        ([" One."], [Said(" One.", 0, 100)]),
        ([" One", " two.", " Three"], [Said(" One two.", 0, 200), Said(" Three", 200, 300)]),
        ([" Well!", " Really?", " Yes"], [Said(" Well!", 0, 100), Said(" Really?", 100, 200), Said(" Yes", 200, 300)]),
        (["你好。", "再见"], [Said("你好。", 0, 100), Said("再见", 100, 200)]),
        ([" 3", ".5", " left"], [Said(" 3.5 left", 0, 300)]),
        ([" a" * 42, " b"], [Said(" a" * 42, 0, 100), Said(" b", 100, 200)]),
        ([" a" * 41, " b"], [Said(" a" * 41 + " b", 0, 200)]),
        (["x" * 100, "y"], [Said("x" * 100, 0, 100), Said("y", 100, 200)]),
    ],
)
def test_cue_ends_with_its_sentence_or_where_it_is_too_long(words: list[str], expected: list[Said]) -> None:
    assert list(cues(said(*words))) == expected


def test_nothing_is_lost_by_the_cuts() -> None:
    words = said(*(f" word{n}.." if n == 3 else f" word{n}" for n in range(25)))
    found = list(cues(words))
    assert [len(cue.text.strip()) <= MAX_CUE_CHARS for cue in found] == [True] * 3
    assert "".join(cue.text for cue in found) == "".join(word.text for word in words)
    assert [cue.start_ms for cue in found[1:]] == [cue.end_ms for cue in found[:-1]]


def test_srt() -> None:
    assert srt([Said(" One & <two>.", 0, 1500), Said(" a --> b", 3_661_001, 3_662_000)]) == (
        "1\n00:00:00,000 --> 00:00:01,500\nOne & <two>.\n\n2\n01:01:01,001 --> 01:01:02,000\na -> b\n\n"
    )


def test_vtt_escapes_what_would_be_markup() -> None:
    assert vtt([Said(" One & <two>.", 0, 1500), Said(" a --> b", 2000, 2500)]) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nOne &amp; &lt;two&gt;.\n\n"
        "00:00:02.000 --> 00:00:02.500\na --&gt; b\n\n"
    )


def test_nothing_said_is_a_file_all_the_same() -> None:
    assert (srt([]), vtt([])) == ("", "WEBVTT\n\n")


def test_clock_counts_hours_beyond_two_digits() -> None:
    assert clock(360_000_999) == "100:00:00.999"
