"""A long recording through ``asr-ws transcribe`` at full speed: is the text complete, memory flat, and the bar honest?

    python -m benchmarks.long_file --minutes 10

The bundled recordings, repeated, are one file; server and client are the commands that users run, each in a process of
its own. The bar is read from a terminal of the client's: it should have come as far as the server had, at each moment.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import click
import numpy as np
import psutil
import soundfile

from asr_ws.testing.wer import word_errors
from benchmarks.common import PCM_BYTES_PER_S, read_manifest, report, reported, speech_folder, speech_pcm, within
from benchmarks.served import Served

SAMPLE_S: Final = 0.25
LIMIT_S: Final = 1800.0
MAX_GROWTH_MB: Final = 8.0  # from the second quarter of the run to the last one: allocators keep what they had at most
MAX_ERRORS: Final = 0.05
MAX_BAR_OFF: Final = 10.0  # points, 9 of 10 times: utterances are as long as they are


@dataclass(frozen=True, slots=True)
class Outcome:
    """Attributes:
    rss_mb: of the client, the server and its worker, over the run.
    bar: the per cent of utterances that had their text, and the per cent that the bar showed then.
    """

    audio_s: float
    took_s: float
    exit_code: int
    words: int
    error_rate: float
    rss_mb: dict[str, list[float]]
    bar: list[tuple[float, float]]

    @property
    def growth_mb(self) -> dict[str, float]:
        return {
            name: median(values[len(values) * 3 // 4 :]) - median(values[len(values) // 4 : len(values) // 2])
            for name, values in self.rss_mb.items()
        }

    @property
    def bar_off(self) -> float:
        """Points between the bar and the work, 9 of 10 times no more."""
        return sorted(abs(shown - done) for done, shown in self.bar)[len(self.bar) * 9 // 10]

    @property
    def faults(self) -> list[str]:
        shown = [each for _, each in self.bar]
        grown = [f"{name} grew by {mb:.1f} MB" for name, mb in self.growth_mb.items() if mb > MAX_GROWTH_MB]
        return [
            *([f"exit code {self.exit_code}"] if self.exit_code else []),
            *([f"word errors {self.error_rate:.1%}"] if self.error_rate > MAX_ERRORS else []),
            *grown,
            *(["the bar went back"] if shown != sorted(shown) else []),
            *([f"the bar is {self.bar_off:.0f} points off"] if self.bar_off > MAX_BAR_OFF else []),
        ]


def table(outcome: Outcome) -> list[str]:
    """Lines for people."""
    speed = outcome.audio_s / outcome.took_s
    return [
        f"audio {outcome.audio_s:.0f} s in {outcome.took_s:.0f} s: {speed:.1f} times as fast as it was spoken",
        f"words {outcome.words}, word errors {outcome.error_rate:.1%}",
        *(
            f"{name:<8} {min(values):>7.1f} to {max(values):>7.1f} MB, grew by {outcome.growth_mb[name]:>5.1f} MB"
            for name, values in outcome.rss_mb.items()
        ),
        f"the bar, against what the server had done: {outcome.bar_off:.0f} points off, 9 of 10 times no more",
        *(f"FAULT: {each}" for each in outcome.faults),
    ]


async def measure(minutes: float, model: str) -> Outcome:
    pcm = speech_pcm()
    n_repeats = max(1, round(minutes * 60 * PCM_BYTES_PER_S / len(pcm)))
    with speech_folder(None) as folder:
        said = " ".join([each.said for each in read_manifest(folder)] * n_repeats)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "long.wav"
        soundfile.write(file, np.tile(np.frombuffer(pcm, "<i2"), n_repeats), 16_000)
        server = await Served.start("--model", model, "--ingest-speed", "50")
        try:
            await server.until(state="ready")
            return await _transcribe(server, file, said, len(pcm) * n_repeats / PCM_BYTES_PER_S)
        finally:
            await server.stop()


async def _transcribe(server: Served, file: Path, said: str, audio_s: float) -> Outcome:
    import pty  # POSIX: a bar is drawn on a terminal only

    loop = asyncio.get_running_loop()
    terminal, slave = pty.openpty()
    command = (sys.executable, "-m", "asr_ws", "transcribe", str(file), "--url", server.url, "--language", "en")
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    began = loop.time()
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=slave, env=env)
    os.close(slave)
    drawn: list[tuple[float, float]] = []

    def draw() -> None:
        try:
            text = os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # the other side is closed
            loop.remove_reader(terminal)
            return
        drawn.extend((loop.time() - began, float(found)) for found in re.findall(r"(\d+)%", text))

    loop.add_reader(terminal, draw)
    processes = {"client": process.pid, "server": server.pid, "worker": (await server.stats())["worker_pid"]}
    rss_mb: dict[str, list[float]] = {name: [] for name in processes}
    finals: list[tuple[float, int]] = [(0.0, 0)]  # when, and how many

    async def sample() -> None:
        while process.returncode is None:
            for name, pid in processes.items():
                try:
                    rss_mb[name].append(psutil.Process(pid).memory_info().rss / 1e6)
                except psutil.NoSuchProcess:  # it has just ended
                    return
            finals.append((loop.time() - began, (await server.stats())["finals"]))
            await asyncio.sleep(SAMPLE_S)

    sampling = asyncio.create_task(sample())
    async with within(LIMIT_S, "the text"):
        out, _ = await process.communicate()
    took_s = loop.time() - began
    await sampling
    loop.remove_reader(terminal)
    os.close(terminal)
    errors = word_errors(said, out.decode())
    n_finals: int = (await server.stats())["finals"]
    bar = [
        (100 * max(n for sampled_s, n in finals if sampled_s <= at_s) / max(n_finals, 1), shown)
        for at_s, shown in drawn
    ]
    return Outcome(audio_s, took_s, process.returncode or 0, errors.words, errors.rate, rss_mb, bar)


@click.command()
@reported
@click.option("--minutes", type=click.FloatRange(min=0.5), default=10.0, show_default=True, help="Of audio.")
@click.option("--model", default="tiny.en", show_default=True, help="Name or folder.")
def main(minutes: float, model: str) -> None:
    """Transcribe a long file by the command, and watch."""
    outcome = asyncio.run(measure(minutes, model))
    click.echo("\n".join(table(outcome)))
    figures = {
        "audio_s": round(outcome.audio_s, 1),
        "took_s": round(outcome.took_s, 1),
        "word_error_rate": round(outcome.error_rate, 4),
        "growth_mb": {name: round(mb, 1) for name, mb in outcome.growth_mb.items()},
        "bar_off": round(outcome.bar_off, 1),
        "faults": outcome.faults,
    }
    settings = {"minutes": minutes, "model": model}
    raise SystemExit(report("long_file", settings=settings, figures=figures, passed=not outcome.faults))


if __name__ == "__main__":
    main()
