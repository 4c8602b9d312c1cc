"""Endpointer, on audio whose speech probabilities are written into it. Positions are in windows of 512 samples (W)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, cycle, pairwise, takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_ws.core.endpointer import Endpoint, Endpointer, EndpointEvent, EndpointRules, Onset, Spoken
from asr_ws.core.types import Samples
from asr_ws.testing import ScriptedDetector, scripted_audio

W = 512
TAIL = 3200  # 200 ms
RULES = EndpointRules(silence=8 * W, prefix=4 * W, min_speech=3 * W, max_utterance=64 * W, threshold=0.5)
DEFAULTS = EndpointRules(silence=9600, prefix=4800, min_speech=2400, max_utterance=480_000, threshold=0.5)
MANUAL = replace(RULES, manual=True)

Told = tuple[str, int] | tuple[str, int, int]  # ("onset", start) or (reason, start, end)


def endpointer_of(rules: EndpointRules) -> Endpointer:
    return Endpointer(rules, None if rules.manual else ScriptedDetector())


def tell(events: Iterable[EndpointEvent], audio: Samples) -> list[Told]:
    """As plain values; the samples of each endpoint are compared with the input here, for every test."""
    told: list[Told] = []
    for event in events:
        match event:
            case Onset(start):
                told.append(("onset", start))
            case Endpoint(start, end, samples, reason):
                assert np.array_equal(samples, audio[start:end])
                told.append((reason.value, start, end))
    return told


def drive(
    rules: EndpointRules,
    audio: Samples,
    *,
    sizes: Sequence[int] = (),
    commits: Iterable[int] = (),
    drops: Iterable[int] = (),
    finish: bool = True,
) -> list[Told]:
    """Everything that is told about ``audio``, cut into ``sizes`` over and over; commits and drops at these samples."""
    commits, drops = set(commits), set(drops)
    chunks = takewhile(lambda position: position < len(audio), accumulate(cycle(sizes)))
    endpointer = endpointer_of(rules)
    events: list[EndpointEvent] = []
    for start, end in pairwise(sorted({0, *commits, *drops, *chunks, len(audio)})):
        events += endpointer.feed(audio[start:end])
        if end in commits:
            events += endpointer.commit()
        if end in drops:
            endpointer.drop()
    if finish:
        events += endpointer.finish()
    return tell(events, audio)


# ---------------------------------------------------------------- speech and silence


def test_an_utterance_runs_from_its_pre_roll_to_its_tail() -> None:
    audio = scripted_audio((20, 0.0), (10, 0.9), (20, 0.0))
    assert drive(RULES, audio) == [("onset", 16 * W), ("silence", 16 * W, 30 * W + TAIL)]


def test_the_default_lengths_are_no_multiples_of_a_window() -> None:
    audio = scripted_audio((20, 0.0), (10, 0.9), (20, 0.0))
    assert drive(DEFAULTS, audio) == [("onset", 20 * W - 4800), ("silence", 20 * W - 4800, 30 * W + TAIL)]


def test_quiet_is_no_utterance() -> None:
    assert drive(RULES, scripted_audio((100, 0.0))) == []


@pytest.mark.parametrize(
    ("threshold", "starting", "continuing", "told"),
    [
        (0.5, 0.5, 0.0, [("onset", 0), ("silence", 0, 8 * W + TAIL)]),
        (0.5, 0.4999, 0.0, []),
        (0.65, 0.9, 0.5, [("onset", 0), ("silence", 0, 13 * W + TAIL)]),
        (0.65, 0.9, 0.4999, [("onset", 0), ("silence", 0, 8 * W + TAIL)]),
        (0.65, 0.5, 0.5, []),
    ],
    ids=["starts", "does not start", "continues", "does not continue", "the lower one starts nothing"],
)
def test_speech_starts_at_the_threshold_and_continues_at_0_15_less(
    threshold: float, starting: float, continuing: float, told: list[Told]
) -> None:
    audio = scripted_audio((4, 0.0), (4, starting), (5, continuing), (20, 0.0))
    assert drive(replace(RULES, threshold=threshold), audio) == told


def test_less_than_the_silence_is_a_pause() -> None:
    audio = scripted_audio((4, 0.0), (5, 0.9), (7, 0.0), (5, 0.9), (8, 0.0))
    assert drive(RULES, audio) == [("onset", 0), ("silence", 0, 21 * W + TAIL)]


def test_a_silence_is_told_by_the_window_that_completes_it() -> None:
    audio = scripted_audio((5, 0.9), (8, 0.0))
    endpointer = endpointer_of(RULES)
    assert tell(endpointer.feed(audio[:-1]), audio) == [("onset", 0)]
    assert tell(endpointer.feed(audio[-1:]), audio) == [("silence", 0, 5 * W + TAIL)]


@pytest.mark.parametrize("silence", [1600, 3199, 3200])
def test_the_tail_is_no_longer_than_the_silence(silence: int) -> None:
    audio = scripted_audio((5, 0.9), (20, 0.0))
    assert drive(replace(RULES, silence=silence), audio) == [("onset", 0), ("silence", 0, 5 * W + silence)]


def test_pre_roll_ends_at_the_utterance_before() -> None:
    audio = scripted_audio((40, 0.0), (5, 0.9), (8, 0.0), (5, 0.9), (8, 0.0))
    assert drive(replace(RULES, prefix=16_000), audio) == [
        ("onset", 40 * W - 16_000),
        ("silence", 40 * W - 16_000, 45 * W + TAIL),
        ("onset", 45 * W + TAIL),
        ("silence", 45 * W + TAIL, 58 * W + TAIL),
    ]


def test_without_a_prefix_it_starts_with_the_speech() -> None:
    audio = scripted_audio((7, 0.0), (5, 0.9), (8, 0.0))
    assert drive(replace(RULES, prefix=0), audio) == [("onset", 7 * W), ("silence", 7 * W, 12 * W + TAIL)]


# ---------------------------------------------------------------- min_speech


def test_less_speech_than_min_speech_is_silence() -> None:
    assert drive(RULES, scripted_audio((10, 0.0), (2, 0.9), (8, 0.0), (2, 0.9), (8, 0.0))) == []


def test_speech_is_accumulated_over_pauses() -> None:
    audio = scripted_audio((10, 0.0), (1, 0.9), (7, 0.0), (1, 0.9), (7, 0.0), (1, 0.4), (8, 0.0))
    assert drive(RULES, audio) == [("onset", 6 * W), ("silence", 6 * W, 27 * W + TAIL)]


def test_the_onset_is_told_by_the_window_that_completes_min_speech() -> None:
    audio = scripted_audio((10, 0.0), (3, 0.9))
    endpointer = endpointer_of(RULES)
    assert endpointer.feed(audio[:-1]) == []
    assert endpointer.feed(audio[-1:]) == [Onset(6 * W)]


def test_what_was_too_short_may_be_pre_roll() -> None:
    audio = scripted_audio((10, 0.0), (2, 0.9), (8, 0.0), (3, 0.9), (8, 0.0))
    assert drive(replace(RULES, prefix=16_000), audio)[-1] == ("silence", 0, 23 * W + TAIL)


# ---------------------------------------------------------------- commit


SPOKEN = scripted_audio((10, 0.0), (10, 0.9), (20, 0.0))


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (0, []),
        (10 * W, []),
        (11 * W - 1, []),
        (11 * W, [("onset", 6 * W), ("commit", 6 * W, 11 * W)]),
        (12 * W + 100, [("onset", 6 * W), ("commit", 6 * W, 12 * W + 100)]),
        (15 * W, [("onset", 6 * W), ("commit", 6 * W, 15 * W)]),
        (15 * W + 511, [("onset", 6 * W), ("commit", 6 * W, 15 * W + 511)]),
        (20 * W + TAIL - 1, [("onset", 6 * W), ("commit", 6 * W, 20 * W + TAIL - 1)]),
        (27 * W, [("onset", 6 * W), ("commit", 6 * W, 20 * W + TAIL)]),
        (28 * W, [("onset", 6 * W), ("silence", 6 * W, 20 * W + TAIL)]),
        (40 * W, [("onset", 6 * W), ("silence", 6 * W, 20 * W + TAIL)]),
    ],
    ids=[
        "before any audio",
        "quiet",
        "inside the first window of speech",
        "after one window of speech",
        "below min_speech, inside a window",
        "while speaking",
        "while speaking, inside a window",
        "inside the tail",
        "in the silence, after the tail",
        "just after an endpoint",
        "long after an endpoint",
    ],
)
def test_a_commit_ends_what_is_heard_at_that_sample(at: int, told: list[Told]) -> None:
    endpointer = endpointer_of(RULES)
    events = endpointer.feed(SPOKEN[:at])
    assert tell(events + endpointer.commit(), SPOKEN) == told
    assert endpointer.commit() == []


@pytest.mark.parametrize("at", [15 * W, 15 * W + 1, 16 * W - 1])
def test_speech_that_goes_on_after_a_commit_is_the_next_utterance(at: int) -> None:
    assert drive(RULES, SPOKEN, commits=[at]) == [
        ("onset", 6 * W),
        ("commit", 6 * W, at),
        ("onset", at),
        ("silence", at, 20 * W + TAIL),
    ]


def test_a_commit_in_the_silence_leaves_the_rest_of_it_to_the_next_pre_roll() -> None:
    audio = scripted_audio((5, 0.9), (7, 0.0), (5, 0.9), (8, 0.0))
    assert drive(replace(RULES, prefix=16_000), audio, commits=[12 * W]) == [
        ("onset", 0),
        ("commit", 0, 5 * W + TAIL),
        ("onset", 5 * W + TAIL),
        ("silence", 5 * W + TAIL, 17 * W + TAIL),
    ]


def test_min_speech_is_counted_anew_after_a_commit() -> None:
    audio = scripted_audio((12, 0.9), (20, 0.0))
    assert drive(RULES, audio, commits=[10 * W]) == [("onset", 0), ("commit", 0, 10 * W)]


def test_of_a_window_that_a_commit_splits_only_the_rest_counts_as_speech() -> None:
    # Otherwise each push-to-talk that is let go inside the last window of speech makes an utterance of 12 samples.
    audio = scripted_audio((10, 0.9), (20, 0.0))
    at = 10 * W - 12
    assert drive(replace(RULES, min_speech=480), audio, commits=[at]) == [("onset", 0), ("commit", 0, at)]


# ---------------------------------------------------------------- finish


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (0, []),
        (10 * W, []),
        (12 * W + 511, []),
        (13 * W, [("end", 6 * W, 13 * W)]),
        (20 * W + 100, [("end", 6 * W, 20 * W + 100)]),
        (27 * W, [("end", 6 * W, 20 * W + TAIL)]),
        (28 * W, []),
    ],
    ids=["empty", "quiet", "below min_speech", "min_speech", "inside a window", "in the silence", "after an endpoint"],
)
def test_the_end_of_the_stream_ends_what_is_heard(at: int, told: list[Told]) -> None:
    endpointer = endpointer_of(RULES)
    endpointer.feed(SPOKEN[:at])
    assert tell(endpointer.finish(), SPOKEN) == told


# ---------------------------------------------------------------- the forced cut: 64 windows, sought in the last 32


def test_continuous_speech_is_cut_without_a_gap() -> None:
    assert drive(RULES, scripted_audio((150, 0.9), (8, 0.0))) == [
        ("onset", 0),
        ("max_length", 0, 64 * W),
        ("onset", 64 * W),
        ("max_length", 64 * W, 128 * W),
        ("onset", 128 * W),
        ("silence", 128 * W, 150 * W + TAIL),
    ]


def test_pre_roll_counts_towards_the_greatest_length() -> None:
    audio = scripted_audio((10, 0.0), (70, 0.9))
    assert drive(RULES, audio, finish=False) == [("onset", 6 * W), ("max_length", 6 * W, 70 * W), ("onset", 70 * W)]


def test_a_window_that_would_not_fit_whole_belongs_to_the_rest() -> None:
    audio = scripted_audio((80, 0.9))
    assert drive(replace(RULES, max_utterance=65 * W - 1), audio)[:2] == [("onset", 0), ("max_length", 0, 64 * W)]


@pytest.mark.parametrize(
    ("dips", "cut"),
    [
        ({40: 0.6}, 41),
        ({40: 0.6, 50: 0.6}, 51),
        ({40: 0.6, 50: 0.7}, 41),
        ({40: 0.0}, 41),
        ({63: 0.6}, 64),
        ({63: 0.0}, 64),
        ({32: 0.6}, 33),
        ({31: 0.0}, 64),
    ],
    ids=[
        "the least",
        "the latest of equals",
        "the least, not the latest",
        "a pause",
        "the last window",
        "a pause in the last window",
        "the first window of the second half",
        "never in the first half",
    ],
)
def test_it_is_cut_after_the_least_speech_like_window(dips: dict[int, float], cut: int) -> None:
    audio = scripted_audio(*((1, dips.get(i, 0.9)) for i in range(80)))
    assert drive(RULES, audio) == [
        ("onset", 0),
        ("max_length", 0, cut * W),
        ("onset", cut * W),
        ("end", cut * W, 80 * W),
    ]


@pytest.mark.parametrize(("dip", "cut"), [(781, 782), (780, 937)], ids=["within 5 s", "before them"])
def test_of_30_s_the_last_5_are_searched(dip: int, cut: int) -> None:
    audio = scripted_audio((dip, 0.9), (1, 0.1), (1000 - dip, 0.9))
    assert drive(DEFAULTS, audio)[:3] == [("onset", 0), ("max_length", 0, cut * W), ("onset", cut * W)]


@pytest.mark.parametrize("n_rest", [1, 2, 3])
def test_speech_that_a_cut_runs_through_needs_no_min_speech_after_it(n_rest: int) -> None:
    """Regression: the end of continuous speech was lost where less than min_speech of it lay after the cut."""
    begun: list[Told] = [("onset", 0), ("max_length", 0, 64 * W), ("onset", 64 * W)]
    end = (64 + n_rest) * W
    assert drive(RULES, scripted_audio((64 + n_rest, 0.9))) == [*begun, ("end", 64 * W, end)]
    assert drive(RULES, scripted_audio((64 + n_rest, 0.9), (8, 0.0))) == [*begun, ("silence", 64 * W, end + TAIL)]


def test_after_a_cut_in_a_pause_min_speech_counts_anew() -> None:
    audio = scripted_audio((61, 0.9), (1, 0.0), (2, 0.9), (8, 0.0))
    assert drive(RULES, audio) == [("onset", 0), ("max_length", 0, 62 * W)]


def test_speech_that_a_cut_runs_through_goes_on_by_the_lower_threshold() -> None:
    """Regression: what followed was lost until the next window above the upper threshold."""
    audio = scripted_audio((3, 0.9), (77, 0.4), (8, 0.0))
    assert drive(RULES, audio) == [
        ("onset", 0),
        ("max_length", 0, 64 * W),
        ("onset", 64 * W),
        ("silence", 64 * W, 80 * W + TAIL),
    ]


def test_speech_that_ends_at_the_cut_has_ended() -> None:
    audio = scripted_audio((64, 0.9), (1, 0.0), (20, 0.4))
    assert drive(RULES, audio) == [("onset", 0), ("max_length", 0, 64 * W)]


def test_speech_that_ended_before_the_cut_keeps_its_tail_and_no_more() -> None:
    audio = scripted_audio((30, 0.9), (50, 0.0), (3, 0.9), (40, 0.0))
    assert drive(replace(RULES, silence=40 * W), audio) == [
        ("onset", 0),
        ("max_length", 0, 30 * W + TAIL),
        ("onset", 76 * W),
        ("silence", 76 * W, 83 * W + TAIL),
    ]


def test_the_rest_opens_the_next_utterance_without_pre_roll_or_gap() -> None:
    audio = scripted_audio((40, 0.9), (1, 0.0), (5, 0.1), (30, 0.9), (8, 0.0))
    assert drive(RULES, audio) == [
        ("onset", 0),
        ("max_length", 0, 41 * W),
        ("onset", 41 * W),
        ("silence", 41 * W, 76 * W + TAIL),
    ]


@pytest.mark.parametrize("dip", [0.6, 0.0], ids=["in speech", "in a pause"])
def test_enough_speech_after_a_cut_is_told_with_it(dip: float) -> None:
    audio = scripted_audio((60, 0.9), (1, dip), (3, 0.9))
    assert drive(RULES, audio, finish=False) == [("onset", 0), ("max_length", 0, 61 * W), ("onset", 61 * W)]


@pytest.mark.parametrize("dip", [0.6, 0.0], ids=["in speech", "in a pause"])
def test_a_commit_takes_the_rest_of_a_cut(dip: float) -> None:
    audio = scripted_audio((62, 0.9), (1, dip), (1, 0.9))
    assert drive(RULES, audio, commits=[64 * W]) == [
        ("onset", 0),
        ("max_length", 0, 63 * W),
        ("onset", 63 * W),
        ("commit", 63 * W, 64 * W),
    ]


def test_a_commit_at_the_cut_finds_nothing() -> None:
    audio = scripted_audio((64, 0.9))
    assert drive(RULES, audio, commits=[64 * W]) == [("onset", 0), ("max_length", 0, 64 * W)]


# ---------------------------------------------------------------- utterances of 1 s, other settings at their ends


TINY = replace(DEFAULTS, max_utterance=16_000)


def test_pre_roll_gives_way_to_the_greatest_length() -> None:
    audio = scripted_audio((5, 0.9), (55, 0.0), (6, 0.9), (20, 0.0))
    start = 66 * W - 16_000  # room for one window more than the five that are min_speech
    assert drive(replace(TINY, prefix=16_000), audio) == [
        ("onset", 0),
        ("silence", 0, 5 * W + TAIL),
        ("onset", start),
        ("max_length", start, 66 * W),
    ]


def test_a_click_with_a_long_pre_roll_is_silence() -> None:
    """Regression: it was cut to an utterance because its pre-roll alone was too long."""
    audio = scripted_audio((40, 0.0), (1, 0.9), (40, 0.0))
    assert drive(replace(TINY, prefix=16_000), audio) == []


def test_clicks_far_apart_are_silence_however_short_an_utterance_may_be() -> None:
    """Regression: a click and a second of quiet after it were cut to an utterance."""
    audio = scripted_audio(*[(1, 0.9), (39, 0.0)] * 4)
    assert drive(replace(TINY, silence=80_000), audio) == []


def test_an_onset_after_clicks_far_apart_is_no_longer_ago_than_the_greatest_length() -> None:
    audio = scripted_audio(*[(1, 0.9), (39, 0.0)] * 4, (1, 0.9))
    start = 162 * W - 16_000
    assert drive(replace(TINY, silence=80_000), audio) == [("onset", start), ("end", start, 161 * W)]


def test_speech_is_heard_where_min_speech_leaves_no_room_for_it() -> None:
    """Both are 1 s: 31 windows fit into one, the other lasts 32."""
    audio = scripted_audio((70, 0.9), (20, 0.0))
    assert drive(replace(TINY, prefix=0, min_speech=16_000), audio) == [
        ("onset", 0),
        ("max_length", 0, 31 * W),
        ("onset", 31 * W),
        ("max_length", 31 * W, 62 * W),
        ("onset", 62 * W),
        ("silence", 62 * W, 70 * W + TAIL),
    ]


# ---------------------------------------------------------------- drop and heard


@pytest.mark.parametrize("at", [5 * W, 11 * W, 11 * W + 100, 15 * W, 15 * W + 511, 25 * W, 30 * W, 30 * W + 7])
def test_a_drop_forgets_everything_before_it(at: int) -> None:
    endpointer = endpointer_of(replace(RULES, prefix=16_000))
    endpointer.feed(SPOKEN[:at])
    endpointer.drop()
    assert endpointer.heard is None
    assert endpointer.commit() == []
    assert endpointer.finish() == []
    audio = np.concatenate([SPOKEN[:at], SPOKEN[at : -(-at // W) * W], scripted_audio((3, 0.0), (5, 0.9), (8, 0.0))])
    ended = len(audio) - 8 * W + TAIL
    assert tell(endpointer.feed(audio[at:]), audio) == [("onset", at), ("silence", at, ended)]


def test_speech_that_goes_on_after_a_drop_is_a_new_utterance() -> None:
    assert drive(RULES, SPOKEN, drops=[15 * W + 5]) == [
        ("onset", 6 * W),
        ("onset", 15 * W + 5),
        ("silence", 15 * W + 5, 20 * W + TAIL),
    ]


def test_after_a_drop_speech_starts_at_the_upper_threshold() -> None:
    audio = scripted_audio((5, 0.9), (20, 0.4))
    assert drive(RULES, audio, drops=[5 * W]) == [("onset", 0)]


def test_a_drop_at_a_cut_forgets_that_speech_went_on() -> None:
    audio = scripted_audio((64, 0.9), (20, 0.4))
    assert drive(RULES, audio, drops=[64 * W]) == [("onset", 0), ("max_length", 0, 64 * W)]


def test_a_drop_forgets_the_rest_of_a_cut() -> None:
    audio = scripted_audio((61, 0.9), (1, 0.0), (2, 0.9), (8, 0.0))
    assert drive(RULES, audio, drops=[64 * W], commits=[65 * W]) == [("onset", 0), ("max_length", 0, 62 * W)]


def test_what_is_heard_lasts_from_its_onset_to_its_endpoint() -> None:
    endpointer = endpointer_of(RULES)
    heard = []
    for start, end in pairwise([0, 12 * W, 13 * W, 13 * W + 7, 27 * W, 28 * W]):
        endpointer.feed(SPOKEN[start:end])
        heard.append(endpointer.heard)
    assert heard == [None, (6 * W, 13 * W), (6 * W, 13 * W + 7), (6 * W, 27 * W), None]


# ---------------------------------------------------------------- manual mode


def test_manual_utterances_follow_one_another_without_a_gap() -> None:
    assert drive(MANUAL, SPOKEN, commits=[700, 9000]) == [
        ("onset", 0),
        ("commit", 0, 700),
        ("onset", 700),
        ("commit", 700, 9000),
        ("onset", 9000),
        ("end", 9000, 40 * W),
    ]


def test_manual_utterances_are_cut_at_the_greatest_length_exactly() -> None:
    rules = replace(MANUAL, max_utterance=16_000)
    assert drive(rules, SPOKEN[:20_000]) == [
        ("onset", 0),
        ("max_length", 0, 16_000),
        ("onset", 16_000),
        ("end", 16_000, 20_000),
    ]
    assert drive(rules, SPOKEN[:16_000]) == [("onset", 0), ("max_length", 0, 16_000)]


def test_manual_onset_is_the_first_sample() -> None:
    endpointer = endpointer_of(MANUAL)
    assert endpointer.feed(SPOKEN[:0]) == []
    assert endpointer.feed(SPOKEN[:1]) == [Onset(0)]
    assert endpointer.feed(SPOKEN[1:2]) == []
    assert endpointer.heard == (0, 2)


def test_manual_commit_without_new_audio_finds_nothing() -> None:
    endpointer = endpointer_of(MANUAL)
    assert endpointer.commit() == []
    endpointer.feed(SPOKEN[:100])
    assert tell(endpointer.commit(), SPOKEN) == [("commit", 0, 100)]
    assert endpointer.commit() == []
    assert endpointer.finish() == []
    assert endpointer.heard is None


def test_manual_drop_starts_anew_at_that_sample() -> None:
    assert drive(MANUAL, SPOKEN[:1000], drops=[400]) == [("onset", 0), ("onset", 400), ("end", 400, 1000)]


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("rules", "audio"),
    [
        (replace(DEFAULTS, prefix=16_000), scripted_audio((1000, 0.0))),
        (replace(TINY, prefix=16_000, silence=80_000), scripted_audio(*[(1, 0.9), (152, 0.0)] * 5)),
        (replace(TINY, prefix=16_000), scripted_audio(*[(200, 0.9), (50, 0.0)] * 4)),
        (replace(TINY, manual=True), scripted_audio((1000, 0.0))),
    ],
    ids=["quiet", "clicks", "speech", "manual"],
)
def test_a_long_stream_holds_no_more_than_its_longest_utterance(rules: EndpointRules, audio: Samples) -> None:
    endpointer = endpointer_of(rules)
    most = 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for at in range(0, len(audio), 320):
            endpointer.feed(audio[at : at + 320])
            most = max(most, tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert most < 3 * 16_000 * 4 + 20_000  # the buffer's own bound for 1 s, and some for what is not samples


@pytest.mark.parametrize("end", [Endpointer.commit, Endpointer.drop], ids=["commit", "drop"])
def test_of_a_push_to_talk_utterance_nothing_is_held_afterwards(end: Callable[[Endpointer], object]) -> None:
    endpointer = endpointer_of(replace(MANUAL, max_utterance=480_000))
    endpointer.feed(scripted_audio((900, 0.9)))
    end(endpointer)
    assert endpointer._buffer.n_bytes <= 4096  # the least that a buffer has


# ---------------------------------------------------------------- for any script, rules and chunking


RULES_OF_ANY_KIND = st.builds(
    EndpointRules,
    silence=st.integers(1600, 20_000) | st.just(80_000),
    prefix=st.integers(0, 16_000) | st.just(16_000),
    min_speech=st.integers(480, 16_000) | st.just(16_000),
    max_utterance=st.integers(16_000, 30_000) | st.just(16_000),
    threshold=st.sampled_from([0.3, 0.5, 0.95]),
)
SCRIPTS = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0.0, 0.2, 0.4, 0.7, 0.96])), min_size=1, max_size=12)
POSITIONS = st.lists(st.integers(1, 60 * W) | st.integers(1, 60).map(lambda window: window * W), max_size=4)


def inside(positions: Iterable[int], audio: Samples) -> list[int]:
    return [position for position in positions if position <= len(audio)]


@settings(max_examples=150, deadline=None)
@given(RULES_OF_ANY_KIND, st.booleans(), SCRIPTS, st.lists(st.integers(1, 3000), min_size=1), POSITIONS, POSITIONS)
def test_chunking_changes_nothing(
    rules: EndpointRules,
    manual: bool,
    script: list[tuple[int, float]],
    sizes: list[int],
    commits: list[int],
    drops: list[int],
) -> None:
    rules, audio = replace(rules, manual=manual), scripted_audio(*script)
    commits, drops = inside(commits, audio), inside(drops, audio)
    whole = drive(rules, audio, commits=commits, drops=drops)
    assert drive(rules, audio, sizes=sizes, commits=commits, drops=drops) == whole


@pytest.mark.parametrize("rules", [TINY, replace(TINY, manual=True)], ids=["server", "manual"])
def test_sample_by_sample_is_the_same(rules: EndpointRules) -> None:
    audio = scripted_audio((10, 0.0), (50, 0.9), (1, 0.6), (5, 0.9), (25, 0.0), (16, 0.9))
    commits, drops = [95 * W + 100], [20 * W + 3]
    whole = drive(rules, audio, commits=commits, drops=drops)
    assert {told[0] for told in whole} >= {"onset", "max_length", "commit", "end"}
    assert drive(rules, audio, sizes=[1], commits=commits, drops=drops) == whole


@settings(max_examples=200, deadline=None)
@given(RULES_OF_ANY_KIND, st.booleans(), SCRIPTS, POSITIONS)
def test_utterances_are_disjoint_in_order_and_within_bounds(
    rules: EndpointRules, manual: bool, script: list[tuple[int, float]], commits: list[int]
) -> None:
    rules, audio = replace(rules, manual=manual), scripted_audio(*script)
    told = drive(rules, audio, commits=inside(commits, audio))
    onsets, endpoints = told[::2], told[1::2]
    assert onsets == [("onset", endpoint[1]) for endpoint in endpoints]
    edges = [edge for endpoint in endpoints for edge in endpoint[1:]]
    assert edges == sorted(edges)
    assert all(0 < end - start <= rules.max_utterance for start, end in zip(edges[::2], edges[1::2], strict=True))
    assert not edges or (edges[0] >= 0 and edges[-1] <= len(audio))


def speech_of(rules: EndpointRules, script: list[tuple[int, float]]) -> list[tuple[int, int]]:
    """Runs of speech, without a pause in them: begun by the upper threshold, continued by the lower."""
    runs: list[tuple[int, int]] = []
    at, speaking = 0, False
    for n_windows, probability in script:
        going_on = speaking
        speaking = probability >= (rules.threshold - 0.15 if speaking else rules.threshold)
        if speaking:
            start = runs.pop()[0] if going_on else at
            runs.append((start, at + n_windows * W))
        at += n_windows * W
    return runs


@settings(max_examples=300, deadline=None)
@given(RULES_OF_ANY_KIND, SCRIPTS)
def test_speech_of_min_speech_is_in_utterances_without_a_gap(
    rules: EndpointRules, script: list[tuple[int, float]]
) -> None:
    taken = np.zeros(sum(n_windows for n_windows, _ in script) * W, int)
    for endpoint in drive(rules, scripted_audio(*script))[1::2]:
        taken[slice(*endpoint[1:])] += 1
    for start, end in speech_of(rules, script):
        if end - start >= rules.min_speech:
            assert (taken[start:end] == 1).all(), (start, end)


@settings(max_examples=100, deadline=None)
@given(RULES_OF_ANY_KIND, SCRIPTS)
def test_without_min_speech_in_all_of_it_nothing_is_told(rules: EndpointRules, script: list[tuple[int, float]]) -> None:
    spoken = W * sum(n_windows for n_windows, probability in script if probability >= rules.threshold - 0.15)
    rules = replace(rules, min_speech=spoken + 1, max_utterance=spoken + 1 + 2 * W)
    assert drive(rules, scripted_audio(*script)) == []


# ---------------------------------------------------------------- what is spoken, before its endpoint


def spoken_after(rules: EndpointRules, *spans: tuple[int, float], extra: int = 0) -> Spoken | None:
    endpointer = endpointer_of(rules)
    endpointer.feed(scripted_audio(*spans))
    endpointer.feed(np.zeros(extra, np.float32))
    return endpointer.spoken


@pytest.mark.parametrize(
    ("spans", "extra", "spoken"),
    [
        (((20, 0.0), (2, 0.9)), 0, None),
        (((20, 0.0), (3, 0.9)), 0, Spoken(16 * W, 23 * W, 3 * W, pausing=False, complete=False)),
        (((20, 0.0), (3, 0.9)), 7, Spoken(16 * W, 23 * W + 7, 3 * W, pausing=False, complete=False)),
        (((20, 0.0), (10, 0.9), (1, 0.0)), 0, Spoken(16 * W, 31 * W, 10 * W, pausing=True, complete=False)),
        (((20, 0.0), (10, 0.9), (6, 0.0)), W - 1, Spoken(16 * W, 30 * W + TAIL, 10 * W, pausing=True, complete=False)),
        (((20, 0.0), (10, 0.9), (7, 0.0)), 0, Spoken(16 * W, 30 * W + TAIL, 10 * W, pausing=True, complete=True)),
        (((20, 0.0), (10, 0.9), (7, 0.0), (1, 0.9)), 0, Spoken(16 * W, 38 * W, 18 * W, pausing=False, complete=False)),
        (((20, 0.0), (10, 0.9), (8, 0.0)), 0, None),
    ],
)
def test_spoken_is_what_a_commit_would_end_now(
    spans: tuple[tuple[int, float], ...], extra: int, spoken: Spoken | None
) -> None:
    assert spoken_after(RULES, *spans, extra=extra) == spoken


def test_spoken_is_never_complete_where_the_endpoint_comes_with_the_tail() -> None:
    rules = replace(RULES, silence=6 * W)
    assert spoken_after(rules, (20, 0.0), (10, 0.9), (5, 0.0)) == Spoken(16 * W, 35 * W, 10 * W, True, False)
    assert spoken_after(rules, (20, 0.0), (10, 0.9), (6, 0.0)) is None


def test_in_manual_mode_all_is_spoken_and_never_complete() -> None:
    assert spoken_after(MANUAL, (10, 0.0)) == Spoken(0, 10 * W, 10 * W, pausing=False, complete=False)


def test_speech_after_a_cut_is_counted_from_there() -> None:
    assert spoken_after(RULES, (60, 0.9), (1, 0.4), (6, 0.9)) == Spoken(61 * W, 67 * W, 6 * W, False, False)


@pytest.mark.parametrize("size", [1, 700])
def test_a_commit_ends_exactly_what_was_spoken(size: int) -> None:
    audio = scripted_audio((20, 0.0), (10, 0.9), (7, 0.0), (10, 0.9), (7, 0.0))
    endpointer, commits = endpointer_of(RULES), 0
    for start in range(0, len(audio), size):
        endpointer.feed(audio[start : start + size])
        if (spoken := endpointer.spoken) and start % 11 == 0:
            copied = endpointer.copy(spoken.start_sample, spoken.end_sample)
            assert np.array_equal(copied, audio[spoken.start_sample : spoken.end_sample])
            commits += 1
    spoken = endpointer.spoken
    assert spoken is not None
    assert tell(endpointer.commit(), audio) == [("commit", spoken.start_sample, spoken.end_sample)]
    assert commits
