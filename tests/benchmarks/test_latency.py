"""What a client's notes come to, the rows and the verdict, and a small run: its times are this machine's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile

from benchmarks.common import speech_folder
from benchmarks.latency import HEADER, Outcome, Played, Spoken, details, misses, row, spoken
from benchmarks.offered import Talk
from tests.benchmarks.commands import run
from tests.benchmarks.events import accepted, busy, final, partial

FRAMES = [(n * 125.0, 50 + n / 8) for n in range(1, 41)]  # in real time from second 50 on


def test_a_moment_of_the_audio_is_as_long_before_its_frame_as_the_rest_of_that_lasts() -> None:
    played = Played("a.wav", [(250.0, 50.25), (500.0, 51.0)], Talk())
    assert [played.heard_at(position_ms) for position_ms in (125, 250, 375, 500)] == [50.125, 50.25, 50.875, 51.0]


def test_times_count_from_the_first_speech_and_from_the_last() -> None:
    talk = Talk(
        heard=[
            (51.375, partial("u1", "", "one")),
            (51.75, partial("u1", "one", " two")),
            (52.5, accepted("u1", endpoint="silence")),
            (52.75, final("u1", "One two.", audio_start_ms=575, audio_end_ms=2200, decode_ms=120)),
            (54.0, accepted("u2", endpoint="end")),
            (54.25, final("u2", "Three.", audio_start_ms=3000, audio_end_ms=4000, decode_ms=110)),
        ]
    )
    assert spoken(Played("a.wav", FRAMES, talk)) == [
        Spoken(
            "a.wav", 575, 2200, "One two.", 120, (("", "one"), ("one", " two")), True, final=750.0, first_partial=500.0
        ),
        Spoken("a.wav", 3000, 4000, "Three.", 110, (), True, final=None, first_partial=None),
    ]


def test_where_the_pre_roll_was_cut_speech_is_taken_to_begin_with_the_utterance() -> None:
    talk = Talk(
        heard=[
            (50.5, partial("u1")),
            (52.0, accepted("u1", endpoint="max_length")),
            (52.25, final("u1", audio_start_ms=0, audio_end_ms=1500)),
            (52.5, partial("u2")),
            (53.0, accepted("u2", endpoint="max_length")),
            (53.25, final("u2", audio_start_ms=1500, audio_end_ms=3000)),
        ]
    )
    found = spoken(Played("a.wav", FRAMES, talk))
    assert [(each.onset_known, each.first_partial) for each in found] == [
        (False, 500.0),
        (False, 1000.0),
    ]


def test_a_final_after_a_refusal_says_nothing_of_the_latency_and_stable_text_must_grow() -> None:
    talk = Talk(
        heard=[
            (51.0, partial("u1", "one", " two")),
            (51.5, partial("u1", "won", " two")),
            (52.0, busy("u1")),
            (53.0, accepted("u1", attempt=2, endpoint="silence")),
            (53.5, final("u1", attempt=2, audio_start_ms=500, audio_end_ms=1500)),
        ]
    )
    (one,) = spoken(Played("a.wav", FRAMES, talk))
    assert (one.final, one.stable_kept) == (None, False)


PARTIALS = (("", "one to"), ("one", " two, three"), ("one", " two sat"))
SPOKEN = Spoken(
    clip="a.wav",
    audio_start_ms=700,
    audio_end_ms=6700,
    text="One two.",
    decode_ms=300,
    partials=PARTIALS,
    onset_known=True,
    final=660.0,
    first_partial=850.0,
)
OUTCOME = Outcome([SPOKEN], 0, {}, partial_decodes=[100.0], waited=0.26, speculations=4, promoted=1, wasted=3)
PLAIN = Outcome([replace(SPOKEN, partials=(), final=999.0, first_partial=None)], 0, {}, [])


def missed(judged: Outcome, plain: Outcome = PLAIN) -> list[str]:
    return misses({"speculation": judged, "partials": OUTCOME, "finals only": plain})


def changed(**changes: Any) -> Outcome:
    return replace(OUTCOME, utterances=[replace(SPOKEN, **changes)])


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        (OUTCOME, []),
        (changed(final=661.0), ["end of speech -> final: 661 ms, the limit is 660 ms"]),
        (changed(final=792.0, decode_ms=500), []),
        (changed(final=793.0, decode_ms=500), ["end of speech -> final: 793 ms, the limit is 792 ms"]),
        (changed(first_partial=851.0), ["onset of speech -> first partial: 851 ms, the limit is 850 ms"]),
        (changed(partials=PARTIALS[:2]), ["speculation: 1 utterances of more than 5 s had fewer than 3 partials"]),
        (changed(partials=PARTIALS[::-1]), ["speculation: stable text changed in 1 utterances"]),
        (
            changed(text="One too."),
            [
                "speculation: other finals than with finals only: "
                "[(('a.wav', 700, 6700), 'One too.'), (('a.wav', 700, 6700), 'One two.')]"
            ],
        ),
        (replace(OUTCOME, unfinished=2), ["speculation: 2 utterances came to no final"]),
        (Outcome([], 0, {}, []), ["nothing to measure: no utterance that ended by silence, or no partials"]),
    ],
)
def test_each_target_has_its_limit(judged: Outcome, expected: list[str]) -> None:
    assert missed(judged) == expected


def test_short_utterances_may_have_fewer_partials() -> None:
    short = replace(SPOKEN, partials=PARTIALS[:1], audio_end_ms=5700)
    plain = replace(PLAIN, utterances=[replace(PLAIN.utterances[0], audio_end_ms=5700)])
    outcome = replace(OUTCOME, utterances=[short])
    assert misses({"speculation": outcome, "partials": outcome, "finals only": plain}) == []


def test_words_that_did_not_stay_are_counted_by_what_a_client_shows() -> None:
    found = OUTCOME.figures()["changed"]
    assert found == {"all": 0.6, "without_the_last_word": 0.0, "stable": 0.0}  # "to", "three", "sat"
    assert PLAIN.figures()["changed"] == {"all": 0.0, "without_the_last_word": 0.0, "stable": 0.0}


def test_rows_line_up_with_their_header() -> None:
    assert [*HEADER.splitlines(), row("speculation", OUTCOME), row("finals only", PLAIN)] == [
        "                        end of speech -> final, ms   decode    onset -> first partial, ms   decode",
        "                         n     p50     p95     max      p50     n     p50     p95     max      p50"
        "  partials  speculated  refused  waited",
        "speculation              1     660     660     660      300     1     850     850     850      100"
        "         3           1        0     26%",
        "finals only              1     999     999     999      300     0       -       -       -        -"
        "         0           0        0       ?",
    ]
    assert row("all, 2x", Outcome([], 2, {"queue_full": 2}, [])).endswith("0           0        2       ?")


def test_details_mark_what_is_not_known_exactly() -> None:
    assert details("partials", replace(SPOKEN, onset_known=False, partials=PARTIALS[::-1], final=None)) == (
        "  partials           a.wav                     700-6700    final     -  decode  300  first partial ~850  "
        " partials   3  STABLE CHANGED  One two."
    )


def test_a_clip_is_heard_in_every_configuration_and_beside_others(tmp_path: Path) -> None:
    with speech_folder(None) as bundled:
        samples, rate = soundfile.read(bundled / "jfk.wav", dtype="int16")
    soundfile.write(tmp_path / "clip.wav", samples[: round(2.4 * rate)], rate)  # one utterance
    manifest = "file\tlanguage\ttranscript\nclip.wav\ten\tAnd so, my fellow Americans\nnone.wav\tnone\t\n"
    (tmp_path / "manifest.tsv").write_text(manifest, "utf-8")
    (tmp_path / "none.wav").touch()
    lines, told = run("latency", str(tmp_path), "--model", "scripted", "--loads", "0.5", "--verbose")
    assert told["settings"]["recordings"] == 1
    heard = [told[name] for name in ("speculation", "partials", "finals_only")]
    assert [each["utterances"] for each in heard] == [1, 1, 1]
    assert [each["end_of_speech_to_final_ms"]["n"] for each in heard] == [1, 1, 1]
    assert min(each["end_of_speech_to_final_ms"]["p50"] for each in heard) > 600  # the silence that ends it
    assert (told["speculation"]["speculations"], told["partials"]["speculations"]) == (1, 0)
    assert told["finals_only"]["partials"] == 0
    loaded = [(each["load"], each["configuration"], each["utterances"]) for each in told["loaded"]]
    assert loaded == [(0.5, "speculation", 1), (0.5, "partials", 1)]
    assert all(each["others"]["offered"] > 5 for each in told["loaded"])  # 5 a second are due, for some 7 s
    assert [line.split()[0] for line in lines[:5]] == ["speculation", "partials", "finals", "speculation,", "partials,"]
    assert not [miss for miss in told["missed"] if "finals" in miss.partition(":")[2] or "stable" in miss]
