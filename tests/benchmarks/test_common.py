"""What the benchmarks share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from asr_ws import messages
from asr_ws.client import Event
from asr_ws.errors import ConfigError
from benchmarks.common import (
    PCM_BYTES_PER_S,
    CoreUse,
    Recording,
    Report,
    Spread,
    numbers,
    percentile,
    read_manifest,
    report,
    reported,
    settings_of,
    speech_folder,
    speech_pcm,
    until,
    within,
)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 50, 7.0),
        ([3.0, 1.0, 2.0], 0, 1.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([4.0, 3.0, 1.0, 2.0], 50, 2.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 102)], 99, 100.0),
        ([1.0, 2.0], 100, 2.0),
    ],
)
def test_a_percentile_is_a_measured_value(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_nothing_measured_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_spread_has_the_tail_as_well() -> None:
    spread = Spread.of([float(n) for n in range(200, 0, -1)])
    assert spread == Spread(200, p50=100.0, p95=190.0, p99=198.0, max=200.0)
    assert Spread.of([1.23456]).figures() == {"n": 1, "p50": 1.235, "p95": 1.235, "p99": 1.235, "max": 1.235}


@pytest.mark.parametrize(("passed", "exit_code"), [(True, 0), (False, 1), (None, 0)])
def test_the_report_is_one_line_of_json_and_the_exit_code(
    passed: bool | None, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report("sleep", settings={"n": 3}, figures={"p50_ms": 1.5}, passed=passed) == exit_code
    told = json.loads(capsys.readouterr().out)
    assert told.pop("machine").keys() >= {"cpu", "cores", "os", "python", "asr-ws"}
    assert told == {"benchmark": "sleep", "settings": {"n": 3}, "p50_ms": 1.5, "passed": passed}


def test_the_report_is_kept_and_drawn_beside_it(tmp_path: Path) -> None:
    @click.command()
    @reported
    def main() -> None:
        report("sleep", settings={}, figures={"p50_ms": [1.5, 2.5]}, passed=None, draw=draw)

    def draw(figure: Figure, line: Report) -> None:
        figure.add_subplot().plot(line["p50_ms"])

    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for file in (first, second):
        told = CliRunner().invoke(main, ["--report", str(file)], catch_exceptions=False).stdout
        assert json.loads(file.read_text("utf-8")) == json.loads(told)
    assert first.with_suffix(".png").read_bytes() == second.with_suffix(".png").read_bytes()


async def test_a_run_that_does_not_end_says_what_it_waited_for() -> None:
    with pytest.raises(click.ClickException, match=r"waited 0\.01 s for the end"):
        async with within(0.01, "the end"):
            await asyncio.Event().wait()


async def test_a_limit_inside_the_limit_is_not_taken_for_it() -> None:
    with pytest.raises(TimeoutError, match="its own"):
        async with within(10, "the end"):
            raise TimeoutError("its own")


def test_without_a_folder_the_bundled_recordings_are_meant(tmp_path: Path) -> None:
    with speech_folder(None) as bundled:
        assert "jfk.wav" in [each.file.name for each in read_manifest(bundled)]
    with speech_folder(tmp_path) as folder:
        assert folder == tmp_path


def test_the_manifest_is_read_with_quotes_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "manifest.tsv").write_text('file\tlanguage\ttranscript\na.wav\ten\t"So," she said.\n', "utf-8")
    with pytest.raises(click.ClickException, match=r"lacks a\.wav"):
        read_manifest(tmp_path)
    (tmp_path / "a.wav").touch()
    assert read_manifest(tmp_path) == [Recording(tmp_path / "a.wav", "en", '"So," she said.')]


@pytest.mark.parametrize("content", [None, "file\ttranscript\na.wav\thi\n"])
def test_a_folder_without_a_usable_manifest_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "manifest.tsv").write_text(content, "utf-8")
    with pytest.raises(click.ClickException, match=r"manifest\.tsv"):
        read_manifest(tmp_path)


def test_the_bundled_speech_is_one_stream_of_whole_samples() -> None:
    pcm = speech_pcm()
    assert len(pcm) % 2 == 0
    assert round(len(pcm) / PCM_BYTES_PER_S) == 55  # seconds


def test_settings_come_from_nowhere_but_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_WS_QUEUE_CAPACITY", "7")
    settings = settings_of(max_sessions=500)
    assert (settings.listen.port, settings.session.max_sessions, settings.admission.queue_capacity) == (0, 500, 3)
    with pytest.raises(ConfigError, match="unknown setting 'max_session'"):
        settings_of(max_session=500)


def test_a_thread_that_works_uses_its_core() -> None:
    core = CoreUse()
    while core.used_s < 0.02:
        pass
    assert 0 < core.used_share <= 1.1  # the two clocks have a grain of their own
    waited_share = core.waited_share
    assert waited_share is None or 0 <= waited_share < 1


async def _events() -> AsyncIterator[Event]:
    yield messages.Pong(id=1)
    yield messages.Pong(id=2)


async def test_the_next_event_of_a_kind_is_waited_for() -> None:
    assert await until(_events(), messages.Pong) == messages.Pong(id=1)
    with pytest.raises(click.ClickException, match="the session ended without Final"):
        await until(_events(), messages.Final)


@pytest.mark.parametrize(("text", "expected"), [(None, ()), ("2", (2.0,)), ("0.5,2", (0.5, 2.0))])
def test_numbers_are_read_from_a_list(text: str | None, expected: tuple[float, ...]) -> None:
    command = click.Command("x")
    assert numbers(click.Context(command), click.Option(["--loads"]), text) == expected


@pytest.mark.parametrize("text", ["two", "1,,2", "0", "-1"])
def test_what_is_no_list_of_positive_numbers_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        numbers(click.Context(click.Command("x")), click.Option(["--loads"]), text)
