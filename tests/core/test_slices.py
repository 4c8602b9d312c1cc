"""Slicer, on audio whose speech probabilities are written into it. Positions are in windows of 512 samples (W)."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_ws.core.endpointer import Endpoint, Endpointer
from asr_ws.core.files import MAX_SLICE
from asr_ws.core.slices import MAX_GAP, RULES, Slice, Slicer
from asr_ws.core.types import ms
from asr_ws.messages import Endpointing
from asr_ws.testing import ScriptedDetector, scripted_audio

W = 512
PREFIX, TAIL = 4800, 3200  # 300 and 200 ms, before and after what is speech


def slices_of(*spans: tuple[int, float], size: int | None = None) -> list[tuple[int, int]]:
    """Where the slices of ``spans`` lie, fed ``size`` samples at a time; their samples are compared here."""
    audio = scripted_audio(*spans)
    slicer = Slicer(ScriptedDetector())
    found: list[Slice] = []
    for start in range(0, len(audio), size or len(audio)):
        found += slicer.feed(audio[start : start + (size or len(audio))])
    found += slicer.finish()
    assert slicer.end == len(audio)
    assert all(np.array_equal(each.samples, audio[each.start_sample : each.end_sample]) for each in found)
    return [(each.start_sample, each.end_sample) for each in found]


def test_utterances_end_as_a_sessions_do_by_default() -> None:
    defaults = Endpointing()
    assert (ms(RULES.silence), ms(RULES.prefix)) == (defaults.silence_ms, defaults.prefix_ms)
    assert (ms(RULES.min_speech), ms(RULES.max_utterance)) == (defaults.min_speech_ms, defaults.max_utterance_ms)
    assert RULES.threshold == defaults.threshold


def test_silence_around_an_utterance_belongs_to_no_slice() -> None:
    assert slices_of((100, 0.0), (10, 0.9), (100, 0.0)) == [(100 * W - PREFIX, 110 * W + TAIL)]


@pytest.mark.parametrize("spans", [[], [(2000, 0.0)], [(50, 0.0), (4, 0.9), (50, 0.0)]])
def test_audio_without_speech_has_no_slices(spans: list[tuple[int, float]]) -> None:
    assert slices_of(*spans, size=512) == []


def test_utterances_close_to_each_other_are_one_slice_with_the_silence_between() -> None:
    assert slices_of((10, 0.9), (40, 0.0), (10, 0.9), (40, 0.0)) == [(0, 60 * W + TAIL)]


def test_no_silence_in_a_slice_is_longer_than_2_s() -> None:
    assert 78 * W - TAIL - PREFIX <= MAX_GAP < 79 * W - TAIL - PREFIX
    assert slices_of((10, 0.9), (78, 0.0), (10, 0.9)) == [(0, 98 * W)]
    assert slices_of((10, 0.9), (79, 0.0), (10, 0.9)) == [(0, 10 * W + TAIL), (89 * W - PREFIX, 99 * W)]


def test_slice_takes_as_many_utterances_as_fit_into_30_s() -> None:
    assert slices_of(*[(200, 0.9), (40, 0.0)] * 6) == [(0, 920 * W + TAIL), (960 * W - PREFIX, 1400 * W + TAIL)]


def test_slice_is_30_s_long_at_most() -> None:
    assert 931 * W + TAIL <= MAX_SLICE < 932 * W + TAIL
    assert slices_of((500, 0.9), (40, 0.0), (391, 0.9), (40, 0.0)) == [(0, 931 * W + TAIL)]
    assert slices_of((500, 0.9), (40, 0.0), (392, 0.9), (40, 0.0)) == [
        (0, 500 * W + TAIL),
        (540 * W - PREFIX, 932 * W + TAIL),
    ]


def test_speech_without_a_pause_is_cut_and_none_of_it_is_lost() -> None:
    assert slices_of((2000, 0.9)) == [(0, 937 * W), (937 * W, 1874 * W), (1874 * W, 2000 * W)]


def test_utterance_that_is_cut_early_enough_joins_what_was_before() -> None:
    """When it was 25 s long already, it could still have turned out to be too long, and it was not."""
    spans = [(20, 0.9), (40, 0.0), (800, 0.9), (1, 0.4), (300, 0.9)]
    assert slices_of(*spans) == slices_of(*spans, size=W) == [(0, 861 * W), (861 * W, 1161 * W)]


def first_slice_after(*spans: tuple[int, float]) -> int:
    """Windows."""
    slicer = Slicer(ScriptedDetector())
    windows = scripted_audio(*spans).reshape(-1, W)
    return next(n for n, window in enumerate(windows, start=1) if slicer.feed(window))


def test_slice_is_there_once_the_silence_is_too_long_for_another_utterance_to_join() -> None:
    assert first_slice_after((10, 0.9), (200, 0.0)) == 10 + 79


def test_slice_is_there_once_the_next_utterance_is_too_long_to_join() -> None:
    assert first_slice_after((500, 0.9), (40, 0.0), (800, 0.9)) == 938


@pytest.mark.parametrize("size", [1, 160, 512, 5000])
def test_slices_do_not_depend_on_how_the_audio_was_cut(size: int) -> None:
    spans = [(10, 0.0), (9, 0.9), (30, 0.0), (6, 0.9), (90, 0.0), (8, 0.9)]
    assert slices_of(*spans, size=size) == [(10 * W - PREFIX, 55 * W + TAIL), (145 * W - PREFIX, 153 * W)]


spoken = st.tuples(st.integers(1, 1100), st.sampled_from([0.9, 0.9, 0.9, 0.4]))
silent = st.tuples(st.integers(1, 150), st.just(0.0))


@settings(max_examples=60, deadline=None)
@given(st.lists(spoken | silent, min_size=1, max_size=10), st.sampled_from([160, 512, 5000, 100_000]))
def test_slices_are_the_utterances_packed_one_after_the_other(spans: list[tuple[int, float]], size: int) -> None:
    endpointer = Endpointer(RULES, ScriptedDetector())
    events = endpointer.feed(scripted_audio(*spans)) + endpointer.finish()
    packed: list[tuple[int, int]] = []
    for event in events:
        if isinstance(event, Endpoint):
            start, end = event.start_sample, event.end_sample
            if packed and start - packed[-1][1] <= MAX_GAP and end - packed[-1][0] <= MAX_SLICE:
                start = packed.pop()[0]
            packed.append((start, end))
    assert slices_of(*spans, size=size) == packed
    assert all(end - start <= MAX_SLICE for start, end in packed)
    assert all(before[1] <= after[0] for before, after in pairwise(packed))


def test_long_audio_takes_no_more_memory_than_short() -> None:
    audio = scripted_audio((200, 0.9), (40, 0.0))
    slicer = Slicer(ScriptedDetector())
    tracemalloc.start()
    try:
        for _ in range(100):  # 768 s, which are 49 MB
            for start in range(0, len(audio), 16_000):
                slicer.feed(audio[start : start + 16_000])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert slicer.end == 100 * 240 * W
    assert peak_bytes < 16_000_000
