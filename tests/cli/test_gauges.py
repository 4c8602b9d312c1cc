from __future__ import annotations

import pytest
from msgspec.structs import replace

from asr_ws.cli.gauges import (
    ASCII_BLOCKS,
    BLOCKS,
    Line,
    Look,
    Missed,
    Stats,
    fit,
    latest_run,
    page,
    parse_metrics,
    quantile,
    spark,
)

URL = "http://127.0.0.1:8765"
STATS = Stats("ready", "tiny.en", 3725.4, 2, 3, 120, 830, 12, 4711, 1, 4, "final", {"queued": 1, "running": 0})
BEFORE = """# HELP asr_ws_utterances_total Utterances, by their outcome
# TYPE asr_ws_utterances_total counter
asr_ws_utterances_total{outcome="final"} 100.0
asr_ws_utterances_total{outcome="error"} 1.0
asr_ws_utterances_total{outcome="dropped"} 3.0
asr_ws_refusals_total{reason="queue_full"} 7.0
asr_ws_refusals_total{reason="predicted_wait"} 0.0
asr_ws_refusals_total{reason="deadline"} 2.0
asr_ws_decode_seconds_bucket{kind="final",le="0.1"} 10.0
asr_ws_decode_seconds_bucket{kind="final",le="0.2"} 100.0
asr_ws_decode_seconds_bucket{kind="final",le="+Inf"} 100.0
asr_ws_decode_seconds_count{kind="final"} 100.0
asr_ws_decode_seconds_sum{kind="final"} 15.0
asr_ws_worker_restarts_total{cause="segv"} 0.0
asr_ws_audio_seconds_total{fate="decoded"} 7322.5
asr_ws_audio_seconds_total{fate="silence"} 59.9
asr_ws_audio_seconds_total{fate="lost"} 0.0
"""
AFTER = """asr_ws_utterances_total{outcome="final"} 106.0
asr_ws_utterances_total{outcome="error"} 1.0
asr_ws_utterances_total{outcome="dropped"} 4.0
asr_ws_refusals_total{reason="queue_full"} 8.0
asr_ws_refusals_total{reason="predicted_wait"} 9.0
asr_ws_refusals_total{reason="deadline"} 2.0
asr_ws_decode_seconds_bucket{kind="final",le="0.1"} 10.0
asr_ws_decode_seconds_bucket{kind="final",le="0.2"} 104.0
asr_ws_decode_seconds_bucket{kind="final",le="+Inf"} 104.0
asr_ws_decode_seconds_count{kind="final"} 104.0
asr_ws_decode_seconds_sum{kind="final"} 15.64
asr_ws_worker_resident_bytes 4.2e+08
asr_ws_worker_restarts_total{cause="segv"} 2.0
asr_ws_worker_restarts_total{cause="killed"} 0.0
asr_ws_audio_seconds_total{fate="decoded"} 7326.5
asr_ws_audio_seconds_total{fate="silence"} 59.9
asr_ws_audio_seconds_total{fate="lost"} 0.25
asr_ws_event_loop_lag_seconds_bucket{le="0.01"} 99.0
asr_ws_event_loop_lag_seconds_bucket{le="0.02"} 100.0
asr_ws_event_loop_lag_seconds_bucket{le="+Inf"} 100.0
"""


def look(at_s: float, metrics: str = "", **changes: object) -> Look:
    return Look(at_s, replace(STATS, **changes), parse_metrics(metrics))  # type: ignore[type-var]


FIRST = look(10.0, BEFORE, uptime_s=3723.4, queue_depth=0)
LAST = look(12.0, AFTER)


def shown(*seen: Look | Missed, last: Look = LAST, now: float = 12.0, is_live: bool = True) -> list[str]:
    return [line.text.plain for line in page(last, seen, now, URL, 80, is_live=is_live)]


def test_two_looks_make_a_page() -> None:
    assert shown(FIRST, LAST) == [
        "tiny.en, up 1:02:05, http://127.0.0.1:8765",
        "state     ready, decoding a final",
        "queue     ████████████████████▁▁▁▁▁▁▁▁▁▁ 2 of 3, 4 behind",
        "waits     120 ms on average, p95 830 ms",
        "sessions  12 open; jobs: 1 queued",
        "",
        "          a second    in all",
        "finals         3.0       106",
        "busy           5.0        17  predicted_wait 9, queue_full 8",
        "retries        0.0         2  deadline 2",
        "dropped        0.5         4",
        "errors         0.0         1",
        "",
        "decodes    average       p95       n  of the last 2 s",
        "final       160 ms    195 ms       4",
        "partial          -         -       0",
        "job              -         -       0",
        "",
        "worker    pid 4711, 420 MB, restarts 2 (segv 2)",
        "audio     lost 0.25 s, decoded 2:02:06, silence 0:00:59",
        "loop lag  p99 10 ms",
        "",
        f"queue     {'▁▆':>58} 3 at most",
        f"finals/s  {' █':>58} 3.0 at most",
        "q or Ctrl-C ends",
    ]


def test_one_look_is_about_all_since_the_start_and_has_no_rates() -> None:
    lines = shown(LAST, is_live=False)
    assert lines[7:11] == [
        "finals           -       106",
        "busy             -        17  predicted_wait 9, queue_full 8",
        "retries          -         2  deadline 2",
        "dropped          -         4",
    ]
    assert lines[13:15] == [
        "decodes    average       p95       n  since the start",
        "final       150 ms    194 ms     104",
    ]
    assert lines[-1] == "loop lag  p99 10 ms"


def styles(line: str, *seen: Look) -> str:
    texts = (each.text for each in page(seen[-1], seen, 12.0, URL, 80, is_live=True))
    [text] = [text for text in texts if text.plain.startswith(line)]
    return " ".join(str(span.style) for span in text.spans)


def test_what_must_not_be_is_red() -> None:
    assert "red" in styles("audio", FIRST, LAST)
    assert "red" not in styles("audio", look(8.0, BEFORE), FIRST)
    assert "red" in styles("state", look(12.0, max_concurrent_decodes=2))
    assert "red" not in styles("state", LAST)
    assert "red" in styles("errors", look(10.0, BEFORE), look(12.0, BEFORE.replace('"error"} 1', '"error"} 2')))
    assert "red" not in styles("errors", FIRST, LAST)


def test_a_server_that_is_away_keeps_its_numbers_and_is_said() -> None:
    lines = shown(FIRST, LAST, Missed("Connection refused"), now=15.4)
    assert lines[1] == "state     no answer for 3 s: Connection refused; what follows is from before"
    assert lines[7] == "finals           -       106"
    assert lines[-3:-1] == [f"queue     {'▁▆ ':>58} 3 at most", f"finals/s  {' █ ':>58} 3.0 at most"]


def test_it_may_be_away_for_longer_than_anything_is_remembered() -> None:
    lines = shown(*[Missed("Connection refused")] * 60, now=100.0)
    assert lines[1] == "state     no answer for 88 s: Connection refused; what follows is from before"
    assert lines[7] == "finals           -       106"


def test_a_server_that_began_anew_is_not_compared_with_what_it_was() -> None:
    again = look(14.0, BEFORE, uptime_s=0.5, queue_depth=3, decoding=None, worker_pid=None)
    then = look(16.0, AFTER, uptime_s=2.5)
    assert latest_run([FIRST, LAST, Missed("gone"), again, then]) == [again, then]
    lines = shown(FIRST, LAST, again, last=again)
    assert lines[1] == "state     ready, decoding nothing"
    assert lines[7] == "finals           -       100"
    assert lines[18] == "worker    no process, restarts 0"
    assert lines[-2] == f"finals/s  {' █ ':>58} 3.0 at most"
    assert shown(FIRST, LAST, again, then, last=then)[7] == "finals         3.0       106"


@pytest.mark.parametrize("width", [36, 60, 200])
def test_a_narrow_terminal_has_shorter_bars(width: int) -> None:
    lines = page(LAST, [FIRST, LAST], 12.0, URL, width, is_live=True)
    bars = [line.text.plain for line in lines if line.text.plain.startswith(("queue", "finals/s"))]
    assert [len(bar) <= width for bar in bars] == [True] * 3


def test_a_low_terminal_shows_what_matters_most() -> None:
    lines = page(LAST, [FIRST, LAST], 12.0, URL, 40, is_live=True)
    kept = [line.text.plain.split(" ")[0] for line in fit(lines, 12)]
    assert kept[:6] == ["tiny.en,", "state", "queue", "waits", "finals", "busy"]
    assert kept[6:] == ["retries", "dropped", "errors", "worker", "audio", "queue"]
    assert fit(lines, 100) == lines
    assert [line.rank for line in fit([Line(9, LINE), Line(0, LINE)], 1)] == [0]


LINE = page(LAST, [LAST], 12.0, URL, 40, is_live=True)[0].text


def test_a_terminal_without_blocks_has_letters() -> None:
    assert spark([0, 1, None, 3], 3, 5, BLOCKS) == " ▁▃ █"
    assert spark([0, 1, None, 3], 3, 5, ASCII_BLOCKS) == " .- #"
    assert spark([0.0, 0.0], 0.0, 1, BLOCKS) == "▁"


@pytest.mark.parametrize(
    ("q", "cumulative", "expected"),
    [
        (0.5, [], None),
        (0.5, [(0.1, 0), (float("inf"), 0)], None),
        (0.5, [(0.1, 10), (float("inf"), 10)], 0.05),
        (0.5, [(0.1, 0), (0.2, 4), (float("inf"), 4)], pytest.approx(0.15)),
        (0.99, [(0.1, 0), (0.2, 4), (float("inf"), 5)], 0.2),
        (0.5, [(0.1, -3), (0.2, -3), (float("inf"), -3)], None),  # of two runs of a server
    ],
)
def test_a_quantile_is_that_of_prometheus(q: float, cumulative: list[tuple[float, float]], expected: object) -> None:
    assert quantile(q, cumulative) == expected


def test_labels_are_read_as_the_server_writes_them() -> None:
    text = '# TYPE x y\nx{route="/v1/jobs/{job_id}",status="200"} 3.0\nx{route="a\\"b",status="404"} 1e-05\ny 4.2e8'
    assert parse_metrics(text) == {
        "x": {("/v1/jobs/{job_id}", "200"): 3.0, ('a\\"b', "404"): 1e-05},
        "y": {(): 4.2e8},
    }


@pytest.mark.parametrize(
    "line",
    [
        'asr_ws_utterances_total{outcome="final"} NaN',
        'asr_ws_utterances_total{outcome="final"} +Inf',
        'asr_ws_decode_seconds_sum{kind="final"} 1e308',
        'asr_ws_decode_seconds_sum{kind="final"} many',
        "asr_ws_utterances_total 7.0",
        f'asr_ws_refusals_total{{reason="{"x" * 3_000_000}"}} 7.0',
        'asr_ws_decode_seconds_bucket{kind="final",le="abc"} 7.0',
        'asr_ws_decode_seconds_bucket{kind="final",le="NaN"} 7.0',
        "asr_ws_decode_seconds_bucket 7.0",
    ],
    ids=lambda line: line[:70],
)
def test_what_this_server_cannot_have_written_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"is none of its metrics$|^could not convert"):
        parse_metrics(f"{AFTER}{line}\n")


def test_labels_command_no_terminal() -> None:
    assert parse_metrics('x{a="\x1b[2J"} 1') == {"x": {("\ufffd[2J",): 1.0}}


def test_a_count_that_goes_back_and_forth_is_drawn() -> None:
    assert spark([-1e15, 1e-300, None, 2.0], 1e-300, 4, BLOCKS) == "▁█ █"
