"""Offered load, as the benchmarks deal it out and count it."""

from __future__ import annotations

import random
from itertools import pairwise

from benchmarks.offered import Offer, Talk, Tally, dealt, lasting, offers, spoken_cuts
from tests.benchmarks.events import accepted, busy, final


def test_offers_come_at_the_asked_rate_and_the_same_again_from_the_same_seed() -> None:
    cuts = [slice(0, 32_000), slice(32_000, 48_000)]
    first, again = (list(lasting(1000, offers(2.0, cuts, random.Random(7)))) for _ in range(2))
    assert first == again
    assert 1800 < len(first) < 2200  # 2000, and five standard deviations of a Poisson process
    assert {each.audio_s for each in first} == {1.0, 0.5}
    assert all(before.at_s < after.at_s for before, after in pairwise(first))


def test_every_offer_is_dealt_to_one_session() -> None:
    all_offers = [Offer(float(n), slice(0, 2)) for n in range(20)]
    plans = dealt(all_offers, 3, random.Random(7))
    assert len(plans) == 3
    assert sorted((each for plan in plans for each in plan), key=lambda each: each.at_s) == all_offers
    assert all(plan == sorted(plan, key=lambda each: each.at_s) for plan in plans)


def test_a_tally_counts_utterances_once_and_refusals_each_time() -> None:
    patient = Talk(heard=[(1.0, busy()), (2.0, busy(attempt=2)), (3.0, accepted(attempt=3)), (4.0, final())])
    given_up = Talk(heard=[(1.0, busy(reason="fair_share")), (2.0, accepted("u2"))])
    assert Tally.of([patient, given_up]) == Tally(3, 1, {"queue_full": 2, "fair_share": 1})


def test_the_bundled_speech_falls_into_short_utterances() -> None:
    cuts = spoken_cuts()
    assert len(cuts) > 10
    assert all(1.0 < Offer(0.0, cut).audio_s < 6.1 and cut.start % 2 == 0 for cut in cuts)
