"""What the clients' and the server's notes come to, the tables and the verdict, and a small run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.common import PCM_BYTES_PER_S
from benchmarks.load import (
    Drafts,
    Promises,
    behind_drafts,
    drafts_table,
    ending,
    misses,
    promises_table,
    seated,
    track,
)
from benchmarks.offered import Decode, Offer, Talk, Tally
from tests.benchmarks.commands import run
from tests.benchmarks.events import accepted, busy, expired, final


def test_an_estimate_is_kept_within_a_quarter_and_150_ms() -> None:
    talk = Talk(
        heard=[
            (10.0, accepted("u1", estimated_final_ms=80)),
            (10.25, final("u1")),  # 100 + 150 ms
            (11.0, accepted("u2", estimated_final_ms=80)),
            (11.375, final("u2")),
            (12.0, accepted("u3", estimated_final_ms=1000)),
            (12.5, busy("u4")),
            (13.5, expired("u3")),
        ]
    )
    promises = Promises.of([talk])
    assert promises == Promises(Tally(4, 2, {"queue_full": 1}), 3, 1, 1, [170.0, 295.0])
    assert (promises.kept_share, promises.expired_share) == (1 / 3, 1 / 3)


@pytest.mark.parametrize(
    ("decodes", "expected"),
    [
        ([Decode("partial", 0.0, 1.0), Decode("final", 1.0, 2.0, accepted_at=0.75)], [(0.25, 1.0)]),
        ([Decode("partial", 0.0, 1.0), Decode("final", 1.0, 2.0, accepted_at=1.0)], []),
        ([Decode("final", 0.0, 1.0, accepted_at=0.0), Decode("final", 1.0, 2.0, accepted_at=0.5)], []),
        (  # from 0.75 on it is a final's decode
            [Decode("speculation", 0.0, 1.0, promoted_at=0.75), Decode("final", 1.0, 2.0, accepted_at=0.5)],
            [(0.25, 1.0)],
        ),
        (
            [
                Decode("partial", 0.0, 1.0),
                Decode("speculation", 1.0, 1.5),
                Decode("final", 1.5, 2.0, accepted_at=0.75),
                Decode("partial", 2.0, 3.0),
            ],
            [(0.75, 1.0)],
        ),
    ],
)
def test_a_final_waits_behind_the_drafts_that_ran_between_its_acceptance_and_its_decode(
    decodes: list[Decode], expected: list[tuple[float, float]]
) -> None:
    assert behind_drafts(decodes) == expected


def offer(at_s: float, audio_s: float = 1.0) -> Offer:
    return Offer(at_s, slice(0, round(audio_s * PCM_BYTES_PER_S)))


def test_utterances_begin_so_that_they_end_at_their_times() -> None:
    assert ending([offer(1.0, 1.0), offer(2.0, 4.0)]) == [offer(2.0, 4.0), offer(4.0, 1.0)]


def test_an_utterance_goes_to_a_session_that_has_been_silent_for_long_enough() -> None:
    first, during, soon_after, later = offer(0.0), offer(0.5), offer(1.5), offer(2.0)
    assert seated([first, during, soon_after, later], 1.0) == [[first, later], [during], [soon_after]]


def test_a_track_has_silence_between_utterances_and_after_the_last() -> None:
    pcm = b"\x01\x02" * 8
    plan = [Offer(4 / PCM_BYTES_PER_S, slice(0, 4)), Offer(16 / PCM_BYTES_PER_S, slice(4, 6))]
    heard = track(plan, pcm)
    assert heard[:18] == bytes(4) + pcm[:4] + bytes(8) + pcm[4:6]
    assert heard[18:] == bytes(PCM_BYTES_PER_S)


KEPT = Promises(Tally(200, 100, {"queue_full": 100}), accepted=100, kept=90, expired=2, late_ms=[5.0, 50.0])
WITH = Drafts(
    Tally(100, 57, {"queue_full": 43}),
    partials=31,
    speculated=12,
    behind=[(0.25, 0.25), (0.125, 0.5)],
    decode_ms=251.5,
    waited=0.02,
)
WITHOUT = Drafts(Tally(100, 60, {"queue_full": 40}), partials=0, speculated=0, behind=[])


@pytest.mark.parametrize(
    ("promises", "deadlines", "drafts", "expected"),
    [
        (KEPT, KEPT, WITH, []),
        (replace(KEPT, kept=89), KEPT, WITH, ["89 of 100 accepted within their estimate"]),
        (KEPT, replace(KEPT, expired=3), WITH, ["1500 ms: 3 of 100 accepted expired"]),
        (
            KEPT,
            KEPT,
            replace(WITH, tally=Tally(100, 56, {})),
            ["drafts: 56.0% came to a final with them, 60.0% without"],
        ),
        (KEPT, KEPT, replace(WITH, behind=[(0.252, 0.25)]), ["a final waited 252 ms behind drafts of 250 ms"]),
        (KEPT, KEPT, replace(WITH, partials=0), ["nothing to measure: no partials, no finals, or nothing accepted"]),
    ],
)
def test_each_target_has_its_limit(
    promises: Promises, deadlines: Promises, drafts: Drafts, expected: list[str]
) -> None:
    assert misses({2.0: promises}, {2.0: deadlines}, {"on": drafts, "off": WITHOUT}) == expected


def test_promises_are_judged_over_all_loads() -> None:
    few, many = replace(KEPT, kept=89, expired=3), replace(KEPT, kept=91, expired=1)
    assert misses({2.0: few, 3.0: many}, {2.0: few, 3.0: many}, {"on": WITH, "off": WITHOUT}) == []


def test_the_tables_line_up_with_their_headers() -> None:
    nothing = Promises(Tally(3, 0, {"queue_full": 3}), 0, 0, 0, [])
    assert promises_table({1.0: KEPT}, {1.0: nothing}) == [
        "load             offered accepted  finals  within estimate  late p50  p95 ms  expired",
        "1x                   200      100     100            90.0%         5      50     2.0%",
        "1x, 1500 ms            3        0       0             0.0%         -       -     0.0%",
    ]
    assert drafts_table({"on": WITH, "off": WITHOUT}) == [
        "drafts           offered   finals   share  partials  speculated  waited behind  max ms  decode p50  no core",
        "on                   100       57   57.0%        31          12              2     250         252       2%",
        "off                  100       60   60.0%         0           0              0       0           -        ?",
    ]


def test_every_utterance_is_offered_once_and_drafts_come_only_where_they_are_on() -> None:
    _, told = run("load", "--model", "scripted", "--loads", "2", "--seconds", "1", "--offers", "8", "--rounds", "1")
    (promises,), (deadlines,) = told["promises"], told["deadlines"]
    assert promises["offered"] == deadlines["offered"] > 0
    for each in (promises, deadlines):
        assert each["offered"] == each["accepted"] + sum(each["refusals"].values())
    on, off = told["drafts"]["on"], told["drafts"]["off"]
    assert on["offered"] == off["offered"] == 8
    assert (off["partials"], off["finals_speculated"], off["finals_that_waited_behind_drafts"]) == (0, 0, 0)
    assert on["partials"] > 0
