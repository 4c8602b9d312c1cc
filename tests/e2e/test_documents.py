"""The Python of the documents, and what they do by curl, runs as it stands there, on a real server and model."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from asr_ws.client import session, sync, transcript
from tests.test_docs import ROOT, run_blocks

pytestmark = pytest.mark.model

PAGES = (
    "README.md",
    "docs/tutorial/first-transcript.md",
    "docs/tutorial/python-client.md",
    "docs/howto/http.md",
    "docs/howto/transcribe-files.md",
    "docs/reference/python-client.md",
)
BLOCKS = {  # the same one on two pages is run once
    block: f"{page}:{n}"
    for page in PAGES
    for n, block in enumerate(run_blocks((ROOT / page).read_text("utf-8"), "python"), 1)
}
BY_CURL = run_blocks((ROOT / "docs" / "howto" / "http.md").read_text("utf-8"), "sh")
ADDRESS = "http://127.0.0.1:8765"
WITH_DEFAULT_URL = (session.connect.__wrapped__, sync.connect.__wrapped__, transcript.transcribe)  # type: ignore[attr-defined]


@pytest.mark.parametrize("block", BLOCKS, ids=BLOCKS.values())
def test_the_python_of_a_document_hears_what_was_said(
    block: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for function in WITH_DEFAULT_URL:
        monkeypatch.setattr(function, "__defaults__", (url,))
    monkeypatch.chdir(ROOT)
    exec(compile(block.replace(ADDRESS, url), "block", "exec"), {"__name__": "__main__"})
    assert "country" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize("block", BY_CURL, ids=range(1, len(BY_CURL) + 1))
def test_the_curl_of_a_document_gets_what_it_asks_for(block: str, url: str) -> None:
    script = block.replace(ADDRESS, url)
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"country|best of times|202 Accepted|\"openapi\"", done.stdout), done.stdout
