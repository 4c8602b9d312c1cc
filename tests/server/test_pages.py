"""The page and its modules, as files of the port; tests/browser sees them in a browser."""

from __future__ import annotations

import gzip
import tomllib

import pytest

from asr_ws.server.pages import BROWSER_TYPES, browser_folder
from asr_ws.worker.supervisor import WorkerSpec
from tests.server.raw import request
from tests.server.running import serving
from tests.test_docs import ROOT

FILES = [
    ("/", "index.html", "text/html"),
    ("/asr-client.js", "asr-client.js", "text/javascript"),
    ("/recorder-worklet.js", "recorder-worklet.js", "text/javascript"),
    ("/asr-client.d.ts", "asr-client.d.ts", "text/plain"),
    ("/page/page.css", "page/page.css", "text/css"),
    ("/page/icon.svg", "page/icon.svg", "image/svg+xml"),
]


@pytest.mark.parametrize(("path", "file", "content_type"), FILES)
async def test_page_is_the_one_copy_of_it(scripted: WorkerSpec, path: str, file: str, content_type: str) -> None:
    async with serving(scripted, ready=False) as app:
        status, headers, body = await request(app, f"GET {path} HTTP/1.1")
    assert (status, headers["content-type"]) == (200, f"{content_type}; charset=utf-8")
    assert body.encode("latin-1") == (browser_folder() / file).read_bytes()


def test_wheel_carries_what_is_served_and_nothing_else() -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]
    folder = ROOT / "clients" / "browser"
    served = [file.name for file in folder.glob("*.*") if file.name.endswith(tuple(BROWSER_TYPES))]
    wanted = {f"clients/browser/{name}": f"asr_ws/assets/browser/{name}" for name in (*served, "page")}
    assert targets["wheel"]["force-include"] == wanted


@pytest.mark.parametrize(
    ("accepted", "is_packed"),
    [("gzip", True), ("br, gzip", True), ("gzip;q=0", False), ("x-gzip-not", False), ("identity", False)],
)
async def test_page_is_compressed_for_who_takes_that(scripted: WorkerSpec, accepted: str, is_packed: bool) -> None:
    async with serving(scripted, ready=False) as app:
        _, headers, body = await request(app, f"GET /asr-client.js HTTP/1.1\r\nAccept-Encoding: {accepted}")
    plain = (browser_folder() / "asr-client.js").read_bytes()
    assert headers.get("content-encoding") == ("gzip" if is_packed else None)
    content = body.encode("latin-1")
    assert (gzip.decompress(content) if is_packed else content) == plain
    assert int(headers["content-length"]) == len(content)


@pytest.mark.parametrize("path", ["/package.json", "/README.md", "/index.html", "/page/", "/page"])
async def test_what_the_page_does_not_load_is_not_there(scripted: WorkerSpec, path: str) -> None:
    async with serving(scripted, ready=False) as app:
        status, _, _ = await request(app, f"GET {path} HTTP/1.1")
    assert status == 404
