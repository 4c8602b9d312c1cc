"""What a browser's own processing of the microphone costs in words.

    python -m benchmarks.microphone [FOLDER] [--model tiny.en]

Each recording of FOLDER (as `benchmarks.accuracy` has it; the bundled ones by default) is played once, in real time, as
the microphone of a headless Chromium, to a server on this machine, by the JavaScript client: as it comes, with noise
suppression, and without any processing. One run is a sample and no verdict: the browser's clock and ours differ, so two
runs of the same differ by a word or two.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
import soundfile

from asr_ws.testing.wer import WordErrors, total, word_errors
from benchmarks.chromium import browser, hears
from benchmarks.common import NO_SPEECH, Recording, progress, read_manifest, report, reported, speech_folder
from benchmarks.served import Served

WAYS: Final[Mapping[str, dict[str, bool]]] = {
    "as the client asks": {},
    "noise suppression": {"noiseSuppression": True},
    "no processing": {"noiseSuppression": False, "echoCancellation": False, "autoGainControl": False},
}
AFTER_S: Final = 2.0  # of silence behind a recording
CLIENT: Final = """(async () => {{
  const {{ AsrClient }} = await import("/asr-client.js");
  window.asr = new AsrClient("/", {{ microphone: {constraints}, start: {{ language: {language} }} }});
  await asr.start();
}})()"""


async def heard(url: str, recording: Recording, constraints: dict[str, bool]) -> str:
    async with browser(*hears(recording.file)) as chromium:
        page = await chromium.page()
        await page.open(f"{url}/livez")  # of the server's origin, and no page of its own
        client = CLIENT.format(constraints=json.dumps(constraints), language=json.dumps(recording.language))
        await page.evaluate(client)
        await asyncio.sleep(soundfile.info(recording.file).duration + AFTER_S)
        return str(await page.evaluate("asr.stop().then(({ text }) => text)"))


async def run(recordings: list[Recording], model: str) -> dict[str, WordErrors]:
    server = await Served.start("--model", model)
    try:
        with progress() as bar:
            task = bar.add_task("listening", total=len(WAYS) * len(recordings))
            errors: dict[str, list[WordErrors]] = {way: [] for way in WAYS}
            for recording in recordings:
                for way, constraints in WAYS.items():
                    text = await heard(server.url, recording, constraints)
                    errors[way].append(word_errors(recording.said, text))
                    bar.advance(task)
    finally:
        await server.stop()
    return {way: total(each) for way, each in errors.items()}


@click.command()
@reported
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False)
@click.option("--model", default="tiny.en", show_default=True)
def main(folder: Path | None, model: str) -> int:
    """Word errors by what the browser does to the microphone's sound."""
    with speech_folder(folder) as speech:
        recordings = [each for each in read_manifest(speech) if each.language != NO_SPEECH]
        outcome = asyncio.run(run(recordings, model))
    for way, errors in outcome.items():
        click.echo(f"{way:<20} {errors.rate:6.1%}  ({errors.errors} of {errors.words} words)")
    figures = {way: {"errors": errors.errors, "words": errors.words} for way, errors in outcome.items()}
    return report("microphone", settings={"model": model}, figures=figures, passed=None)


if __name__ == "__main__":
    sys.exit(main(standalone_mode=False))
