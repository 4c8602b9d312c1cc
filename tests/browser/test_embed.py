"""The pages of docs/howto, as they stand there, in a browser: on an origin of their own, beside a live server."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from asr_ws.server.pages import browser_folder
from asr_ws.worker.supervisor import WorkerSpec
from benchmarks.chromium import browser, hears
from tests.server.running import serving
from tests.test_docs import ROOT, code_blocks

pytestmark = pytest.mark.usefixtures("chromium")

HOWTO = ROOT / "docs" / "howto"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


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


@pytest.mark.parametrize(
    ("name", "button", "text"),
    [("embed.md", "#dictate", "document.getElementById('field').value"), ("browser.md", "#speak", "$text()")],
)
async def test_page_of_the_document_writes_down_what_is_said(
    scripted: WorkerSpec,
    speech: Path,
    tmp_path: Path,
    name: str,
    button: str,
    text: str,
) -> None:
    document = (HOWTO / name).read_text("utf-8")
    [page_text] = [block for block in code_blocks(document) if "<script" in block]
    folder = tmp_path / "page"
    folder.mkdir()
    for module in modules(document):
        shutil.copy(browser_folder() / module, folder)
    with hosted(folder) as origin:
        async with serving(scripted, allow_origin=(origin,)) as app, browser(*hears(speech)) as chromium:
            (folder / "index.html").write_text(
                "<!doctype html><link rel=icon href=data:,>"
                + page_text.replace("http://127.0.0.1:8765/", f"{app.listener.url}/"),
                "utf-8",
            )
            page = await chromium.page()
            await page.open(f"{origin}/")
            await page.click(button)
            text = text.replace("$text()", "document.getElementById('text').textContent")
            assert str(await page.wait(text)).startswith("country ")
            await page.click(button)
            await page.wait(f"!['Stop'].includes(document.querySelector({button!r}).textContent)")
            assert page.complaints == []


def test_the_modules_that_the_documents_fetch_are_all_that_there_are() -> None:
    there = sorted(file.name for file in browser_folder().glob("*.js"))
    for name in ("embed.md", "browser.md"):
        assert sorted(modules((HOWTO / name).read_text("utf-8"))) == there
