"""The README's pictures, made anew: ``python -m tests.browser.screenshots [FOLDER]``; needs chromium and tiny.en."""

from __future__ import annotations

import asyncio
import base64
import sys
import tempfile
from pathlib import Path

from asr_ws import models
from asr_ws.testing.recognizer import Gate, scripted_worker
from asr_ws.worker.supervisor import WorkerSpec
from benchmarks.chromium import MICROPHONE, Page, hears
from tests.browser.looking import busy, opened
from tests.conftest import SPEECH
from tests.server.running import serving

FOLDER = Path(__file__).parents[2] / "docs" / "images"
READY = "document.getElementById('server')?.dataset.state === 'ready'"
TALK = "events.some(e => e.type === 'final') && document.querySelector('.live .stable')?.textContent.length > 12"


async def main(folder: Path) -> None:
    speech = hears(SPEECH / "jfk.wav")
    with tempfile.TemporaryDirectory() as scripted:
        async with (
            Gate() as gate,
            serving(scripted_worker(Path(scripted)), model="tiny.en") as app,
            opened(app.listener.url, *speech) as page,
        ):
            await page.evaluate("document.getElementById('prompt').value = 'say And so, my fellow Americans:'")
            await page.click("#microphone")
            await page.wait("events.some(e => e.type === 'final')")
            async with busy(app, gate):
                await page.wait("document.querySelector('.countdown')")
                await shoot(page, folder / "busy.png")
    async with serving(
        WorkerSpec(models.resolve("tiny.en"), device="cpu"), model="tiny.en", partials="on", ingest_speed=2.0
    ) as app:
        async with opened(app.listener.url, *MICROPHONE) as page:
            await page.wait(READY)
            await shoot(page, folder / "idle.png")
        clip = SPEECH / "long-two-cities.wav"
        for name, language, look in (
            ("speaking", "en", {}),
            ("dark", "en", {"dark": True}),
            ("phone", "en", {"width": 390, "height": 844, "mobile": True}),
            ("chinese", "zh", {}),
        ):
            async with opened(app.listener.url, *hears(clip), query="&autostart=1", language=language, **look) as page:
                await page.wait(TALK)
                await shoot(page, folder / f"{name}.png")


async def shoot(page: Page, file: Path) -> None:
    await page.evaluate("scrollTo(0, 0)")
    told = await page.call("Page.captureScreenshot", format="png")
    _save(file, base64.b64decode(told["data"]))


def _save(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    print(file)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
