"""The verdict, and five cuts: how long each took is this machine's and is not judged."""

from __future__ import annotations

import pytest

from asr_ws import messages
from asr_ws.client import Gap
from benchmarks.common import PCM_BYTES_PER_S, speech_pcm
from benchmarks.seams import Outcome, Run
from tests.benchmarks.commands import run
from tests.client.recorded import final

LENGTH_MS = len(speech_pcm()) * 1000 // PCM_BYTES_PER_S


def heard(*said: tuple[str, int]) -> Run:
    """Words and when; a repeat's first one is at a multiple of LENGTH_MS."""
    made = Run(n_repeats=2)
    words = [messages.FinalWord(f" {word}", start, start + 100, 1.0) for word, start in said]
    made.transcript.receive(final("u1", 0, 100, text=" ".join(word for word, _ in said), words=words))
    made.transcript.receive(messages.Done(1000, 1000, 0, 0, 0, 1, 0, 0, 0, 0))
    return made


UNCUT = heard(("one", 0), ("two", 500), ("one", LENGTH_MS), ("two", LENGTH_MS + 500))


def test_the_same_words_at_the_same_time_are_no_fault() -> None:
    outcome = Outcome(UNCUT, UNCUT, "one two")
    assert outcome.faults == []
    assert (outcome.errors, outcome.shift.n, outcome.shift.max) == ((0.0, 0.0), 4, 0.0)


def test_words_that_moved_are_a_fault() -> None:
    late = heard(("one", 1500), ("two", 2000), ("one", LENGTH_MS + 1500), ("two", LENGTH_MS + 2000))
    outcome = Outcome(late, UNCUT, "one two")
    assert (outcome.shift.p50, len(outcome.faults)) == (1.5, 1)


def test_words_that_are_missing_and_audio_that_is_are_faults() -> None:
    cut = heard(("one", 0), ("one", LENGTH_MS))
    cut.receive(Gap(400, 900))
    assert Outcome(cut, UNCUT, "one two").faults == ["500 ms were lost", "word errors 50.0%, uncut 0.0%"]


@pytest.mark.model
def test_a_session_is_cut_in_each_way_and_loses_nothing(tiny_en: object) -> None:
    lines, told = run("seams", "--cuts", "5")
    assert told["kinds"] == {"cut": 2, "worker killed": 1, "restarted": 1, "server killed": 1}
    assert told["faults"] == [], lines
