"""Stable and unstable text, by literals."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_ws.core.partials import PartialText, words


def shown(text: PartialText, *continuations: str) -> list[tuple[str, str]]:
    """What is shown after each of them."""
    seen = []
    for continuation in continuations:
        text.receive(continuation)
        seen.append((text.stable, text.unstable))
    return seen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" ", []),
        (" Turn on the lights.", [" Turn", " on", " the", " lights."]),
        ("it's well-known, isn't it?", ["it's", " well-known,", " isn't", " it?"]),
        ("广州，房 yes 。", ["广", "州，", "房", " yes", " 。"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("...", ["..."]),
    ],
)
def test_text_is_cut_into_words_and_unspaced_scripts_into_characters(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_what_two_decodes_agree_on_becomes_stable_but_never_the_last_word() -> None:
    assert shown(PartialText(), " Turn on", " Turn on the kit", " the kitchen lights", " kitchen lights in") == [
        ("", "Turn on"),
        ("Turn on", " the kit"),
        ("Turn on the", " kitchen lights"),
        ("Turn on the kitchen lights", " in"),
    ]


def test_a_decode_that_only_repeats_keeps_its_last_word_back() -> None:
    assert shown(PartialText(), "Yes", "Yes") == [("", "Yes"), ("", "Yes")]


def test_case_and_punctuation_are_no_disagreement_and_the_later_are_shown() -> None:
    text = PartialText()
    assert shown(text, "and so my", " And so, my fellow") == [("", "and so my"), ("And so, my", " fellow")]


def test_disagreement_makes_nothing_behind_it_stable() -> None:
    assert shown(PartialText(), "I scream for you", "Ice cream for you") == [
        ("", "I scream for you"),
        ("", "Ice cream for you"),
    ]


def test_nothing_heard_leaves_the_stable_text() -> None:
    assert shown(PartialText(), "a b c", "a b c", "") == [("", "a b c"), ("a b", " c"), ("a b", "")]


def test_characters_without_blanks_become_stable_one_by_one() -> None:
    assert shown(PartialText(), "广州是", "广州市房") == [("", "广州是"), ("广州", "市房")]


def test_it_says_whether_there_is_something_new() -> None:
    text = PartialText()
    assert [text.receive(" Turn"), text.receive(" Turn"), text.receive(" Turn on")] == [True, False, True]


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        ("Turn on the kitchen lights.", (True, "Turn on the", " kitchen lights.")),
        ("turn on, the lights", (True, "Turn on the", " lights")),
        ("Turn of the lights", (False, "Turn on", " the kit")),
        ("Turn", (False, "Turn on", " the kit")),
        ("", (False, "Turn on", " the kit")),
    ],
)
def test_whole_text_counts_where_it_begins_with_the_stable_one(whole: str, expected: tuple[bool, str, str]) -> None:
    text = PartialText()
    shown(text, "Turn on", "Turn on the kit")
    assert text.stable == "Turn on"
    assert (text.receive_whole(whole), text.stable, text.unstable) == expected


@given(st.lists(st.tuples(st.booleans(), st.text("ab ,.A广", max_size=12)), max_size=8))
def test_stable_text_only_grows(decodes: list[tuple[bool, str]]) -> None:
    text, seen = PartialText(), [""]
    for whole, decoded in decodes:
        (text.receive_whole if whole else text.receive)(decoded)
        seen.append(text.stable)
    assert all(after.startswith(before) for before, after in pairwise(seen))
