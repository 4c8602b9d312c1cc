"""The ring and its ranges, against sets of positions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_ws.client.recording import Fate, Recording
from asr_ws.client.ring import SMALL_BYTES, AudioRing, Ranges

RANGE = st.tuples(st.integers(0, 60), st.integers(0, 60))


@given(st.lists(RANGE), RANGE)
def test_gaps_are_what_no_range_has(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ranges = Ranges()
    for each in added:
        ranges.add(*each)
    has = {position for each in added for position in range(*each)}
    gaps = ranges.gaps(*asked)
    assert {position for gap in gaps for position in range(*gap)} == set(range(*asked)) - has
    assert gaps == sorted(gaps)
    parts = list(ranges)
    assert all(one[1] < other[0] for one, other in pairwise(parts))


@given(st.lists(st.integers(0, 3000), max_size=30), st.integers(1, 5000))
def test_what_is_kept_is_read_as_it_was_however_it_was_cut(cuts: list[int], capacity: int) -> None:
    ring, n = AudioRing(capacity, 4), 0
    whole = np.arange(100_000, dtype="<u4").tobytes()
    for cut in cuts:
        ring.append(whole[n : n + cut])
        n += cut
    assert (ring.end, len(ring.rest)) == divmod(n, 4)
    assert ring.end - ring.start >= min(capacity, ring.end)
    assert ring.end - ring.start <= capacity + (3000 + SMALL_BYTES) // 4  # the oldest piece is kept whole
    kept = np.frombuffer(ring.read(ring.start, ring.end), "<u4")
    assert kept.tolist() == list(range(ring.start, ring.end))
    middle = (ring.start + ring.end) // 2
    assert np.frombuffer(ring.read(middle, ring.end), "<u4").tolist() == list(range(middle, ring.end))


@pytest.mark.parametrize("frame_bytes", [2, 4, 8])
def test_byte_by_byte_is_the_same_as_whole(frame_bytes: int) -> None:
    whole, cut = AudioRing(1000, frame_bytes), AudioRing(1000, frame_bytes)
    data = bytes(range(101))
    whole.append(data)
    for byte in data:
        cut.append(bytes([byte]))
    assert (whole.read(0, whole.end), whole.rest) == (cut.read(0, cut.end), cut.rest)


def test_settling_tells_what_is_new() -> None:
    ring = AudioRing(100, 2)
    ring.append(bytes(200))
    assert [ring.settle(10, 20), ring.settle(15, 30), ring.settle(0, 100)] == [10, 10, 80]
    assert ring.unsettled(0, 100) == []


def test_scraps_are_settled_and_what_may_go_on_is_not() -> None:
    recording = Recording(AudioRing(1000, 2), 1000)
    recording.ring.append(bytes(1000))
    for span in ((0, 100), (150, 300), (400, 460)):
        recording.settle(*span, Fate.DECODED)
    recording.settle_scraps()
    assert recording.ring.unsettled(0, 500) == [(300, 400), (460, 500)]
