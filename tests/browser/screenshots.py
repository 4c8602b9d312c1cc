"""The README's pictures, made anew: ``python -m tests.browser.screenshots [FOLDER]``; needs chromium and tiny.en."""

from __future__ import annotations

import asyncio
import base64
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from asr_ws import models
from asr_ws.server.app import App
from asr_ws.testing.recognizer import Gate, scripted_worker
from asr_ws.worker.supervisor import WorkerSpec
from benchmarks.chromium import MICROPHONE, Page, browser, hears
from tests.conftest import SPEECH
from tests.server.running import MANUAL, SECOND, Client, serving

FOLDER = Path(__file__).parents[2] / "docs" / "images"
TALK = "events.some(e => e.type === 'final') && document.querySelector('.live .stable')?.textContent.length > 12"
SPOKEN = """window.events = []; const dispatch = EventTarget.prototype.dispatchEvent;
EventTarget.prototype.dispatchEvent = function (e) {
  if (e instanceof CustomEvent) window.events.push({type: e.type, detail: e.detail});
  return dispatch.call(this, e);
}"""


async def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scripted:
        async with (
            Gate() as gate,
            serving(scripted_worker(Path(scripted)), model="tiny.en") as app,
            tab(app, *hears(SPEECH / "jfk.wav")) as page,
        ):
            await busy(page, app, gate)
            await shoot(page, folder / "busy.png")
    async with serving(
        WorkerSpec(models.resolve("tiny.en"), device="cpu"), model="tiny.en", partials="on", ingest_speed=2.0
    ) as app:
        async with tab(app, *MICROPHONE) as page:
            await shoot(page, folder / "idle.png")
        clip = SPEECH / "long-two-cities.wav"
        for name, query, look in (
            ("speaking", "?lang=en&autostart=1", {}),
            ("dark", "?lang=en&autostart=1", {"dark": True}),
            ("phone", "?lang=en&autostart=1", {"width": 390, "height": 844, "mobile": True}),
            ("chinese", "?lang=zh&autostart=1", {}),
        ):
            async with tab(app, *hears(clip), query=query, **look) as page:
                await page.wait(TALK)
                await shoot(page, folder / f"{name}.png")


async def busy(page: Page, app: App, gate: Gate) -> None:
    """One utterance has its text; for the next there is no place."""
    await page.evaluate("document.getElementById('prompt').value = 'say And so, my fellow Americans:'")
    await page.click("#microphone")
    await page.wait("events.some(e => e.type === 'final')")
    others = [Client(app) for _ in range(4)]
    for other in others:
        await other.__aenter__()
        await other.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
        await other.until("accepted")
    await page.wait("document.querySelector('.countdown')")


@asynccontextmanager
async def tab(app: App, *flags: str, query: str = "?lang=en", **look: object) -> AsyncIterator[Page]:
    async with browser(*flags) as chromium:
        page = await chromium.page(**look)  # type: ignore[arg-type]
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=SPOKEN)
        await page.open(f"{app.listener.url}/{query}")
        await page.wait("document.getElementById('server')?.dataset.state === 'ready'")
        yield page


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
