"""The JavaScript client's own unit tests, which are node's: one test here a file there."""

from __future__ import annotations

import pytest

from tests.browser.driver import HERE, node


@pytest.mark.parametrize("name", ["asr-client", "asr-session", "audio-ring", "regressions", "texts"])
def test_units_under_node(name: str) -> None:
    ran = node("--test", "--test-reporter=spec", HERE / "unit" / f"{name}.test.mjs")
    assert ran.returncode == 0, f"\n{ran.stdout}{ran.stderr}"
