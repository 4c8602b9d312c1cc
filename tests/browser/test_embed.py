"""The pages of docs/howto, as they stand there, in a browser: on an origin of their own, beside a live server."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from asr_ws.server.pages import browser_folder
from asr_ws.worker.supervisor import WorkerSpec
from benchmarks.chromium import Page, browser, hears
from tests.server.running import serving
from tests.test_docs import ROOT, code_blocks

pytestmark = pytest.mark.usefixtures("chromium")

HOWTO = ROOT / "docs" / "howto"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "page"
    made.mkdir()
    return made


@contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """Its files on a port of their own. Yields: the origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as host:
        thread = threading.Thread(target=host.serve_forever, name="host")
        thread.start()
        try:
            yield f"http://127.0.0.1:{host.server_address[1]}"
        finally:
            host.shutdown()
            thread.join()


def modules(document: str) -> list[str]:
    """Those that it says are to be fetched."""
    [names] = re.findall(r"for file in (.*); do", document)
    return [f"{name}.js" for name in names.split()]


@asynccontextmanager
async def shown(name: str, scripted: WorkerSpec, folder: Path, speech: Path, **changes: str) -> AsyncIterator[Page]:
    """The page in that document, on an origin of its own. ``changes``: of what stands there."""
    document = (HOWTO / name).read_text("utf-8")
    [text] = [block for block in code_blocks(document) if "<script" in block]
    for module in modules(document):
        shutil.copy(browser_folder() / module, folder)
    with hosted(folder) as origin:
        async with serving(scripted, allow_origin=(origin,)) as app, browser(*hears(speech)) as chromium:
            for before, after in {"http://127.0.0.1:8765/": f"{app.listener.url}/", **changes}.items():
                assert before in text
                text = text.replace(before, after)
            (folder / "index.html").write_text(f"<!doctype html><link rel=icon href=data:,>{text}", "utf-8")
            page = await chromium.page()
            await page.open(f"{origin}/")
            yield page
            assert page.complaints == []


@pytest.mark.parametrize(
    ("name", "button", "text"),
    [
        ("embed.md", "#dictate", "document.getElementById('field').value"),
        ("browser.md", "#speak", "document.getElementById('text').textContent"),
    ],
)
async def test_page_of_the_document_writes_down_what_is_said(
    scripted: WorkerSpec, speech: Path, folder: Path, name: str, button: str, text: str
) -> None:
    async with shown(name, scripted, folder, speech) as page:
        await page.click(button)
        assert str(await page.wait(text)).startswith("country ")
        await page.click(button)
        await page.wait(f"document.querySelector({button!r}).textContent !== 'Stop'")


async def test_page_of_the_document_says_why_it_does_not_begin(
    scripted: WorkerSpec, speech: Path, folder: Path
) -> None:
    async with shown("browser.md", scripted, folder, speech, **{'language: "en"': 'language: "de"'}) as page:
        await page.click("#speak")
        assert "this model does not know 'de'" in await page.wait("document.getElementById('notice').textContent")
        assert await page.text("#speak") == "Speak"


def test_the_modules_that_the_documents_fetch_are_all_that_there_are() -> None:
    there = sorted(file.name for file in browser_folder().glob("*.js"))
    for name in ("embed.md", "browser.md"):
        assert sorted(modules((HOWTO / name).read_text("utf-8"))) == there
