from __future__ import annotations

from asr_ws.server.pacing import BURST_S, Pace


def test_burst_passes_at_once_and_the_rest_at_the_given_speed() -> None:
    pace = Pace(2.0, now=0.0)
    assert pace.delay(BURST_S, now=0.0) == 0.0
    assert pace.delay(1.0, now=0.0) == 0.5
    assert pace.delay(1.0, now=0.5) == 0.5


def test_real_time_is_never_held_back() -> None:
    pace = Pace(2.0, now=0.0)
    assert [pace.delay(0.1, now=n / 10) for n in range(1000)] == [0.0] * 1000


def test_silence_of_the_client_earns_no_more_than_the_burst() -> None:
    pace = Pace(2.0, now=0.0)
    assert pace.delay(BURST_S + 1.0, now=1000.0) == 0.5


def test_long_run_speed_does_not_depend_on_the_chunks() -> None:
    for chunk_s in (0.01, 0.1, 1.0):
        pace, now = Pace(4.0, now=0.0), 0.0
        for _ in range(round(100 / chunk_s)):
            now += pace.delay(chunk_s, now)
        assert round(now, 6) == (100 - BURST_S) / 4
