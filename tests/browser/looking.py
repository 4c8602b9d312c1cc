"""The page in a browser, looked into: for its tests and its pictures."""

from __future__ import annotations

import wave
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from asr_ws.core.types import SAMPLE_RATE
from asr_ws.server.app import App
from asr_ws.testing.recognizer import Gate
from benchmarks.chromium import Page, browser
from tests.server.running import MANUAL, SECOND, Client

# Before anything of the page runs: each event of its client is kept, and each state of the transcript.
SPY = """
window.events = []; window.texts = [];
const dispatch = EventTarget.prototype.dispatchEvent;
EventTarget.prototype.dispatchEvent = function (event) {
  if (event instanceof CustomEvent) window.events.push({type: event.type, detail: event.detail});
  return dispatch.call(this, event);
};
document.addEventListener("DOMContentLoaded", () => {
  const element = document.getElementById("transcript");
  const look = () => window.texts.push(element.innerText);
  if (element) new MutationObserver(look).observe(element, {childList: true, subtree: true, characterData: true});
});
"""


@asynccontextmanager
async def opened(url: str, *flags: str, query: str = "", language: str = "en", **look: Any) -> AsyncIterator[Page]:
    """The page of the server at ``url``. ``look``: see ``Browser.page``."""
    async with browser(*flags) as chromium:
        page = await chromium.page(**look)
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=SPY)
        await page.open(f"{url}/?lang={language}{query}")
        yield page


@asynccontextmanager
async def busy(app: App, gate: Gate) -> AsyncIterator[None]:
    """Its only worker stands at the gate, and its places are taken."""
    async with AsyncExitStack() as stack:
        for _ in range(1 + app.settings.admission.queue_capacity):
            client = await stack.enter_async_context(Client(app))
            await client.send({**MANUAL, "prompt": gate.script}, SECOND, {"type": "commit"})
            await client.until("accepted")
        yield


def wav(file: Path, n_samples: int, frames: bytes = b"") -> Path:
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        out.writeframes(frames or bytes(2 * n_samples))
    return file
