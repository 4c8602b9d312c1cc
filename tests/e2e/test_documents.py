"""The Python of the documents runs, as it stands there, against a real server on the real model."""

from __future__ import annotations

import pytest

from asr_ws.client import session, sync, transcript
from tests.test_docs import ROOT, python_blocks

pytestmark = pytest.mark.model

PAGES = (
    "README.md",
    "docs/tutorial/first-transcript.md",
    "docs/tutorial/python-client.md",
    "docs/howto/transcribe-files.md",
    "docs/reference/python-client.md",
)
BLOCKS = {  # the same one on two pages is run once
    block: f"{page}:{n}" for page in PAGES for n, block in enumerate(python_blocks((ROOT / page).read_text("utf-8")), 1)
}
WITH_DEFAULT_URL = (session.connect.__wrapped__, sync.connect.__wrapped__, transcript.transcribe)  # type: ignore[attr-defined]


@pytest.mark.parametrize("block", BLOCKS, ids=BLOCKS.values())
def test_the_python_of_a_document_hears_what_was_said(
    block: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for function in WITH_DEFAULT_URL:
        monkeypatch.setattr(function, "__defaults__", (url,))
    monkeypatch.chdir(ROOT)
    exec(compile(block, "block", "exec"), {"__name__": "__main__"})
    assert "country" in capsys.readouterr().out
