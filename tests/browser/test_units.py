"""The JavaScript client's own unit tests, which are node's: one test here a file there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.driver import HERE, node


@pytest.mark.parametrize("file", sorted((HERE / "unit").glob("*.test.mjs")), ids=lambda file: file.name)
def test_units_under_node(file: Path) -> None:
    ran = node("--test", "--test-reporter=spec", file)
    assert ran.returncode == 0, f"\n{ran.stdout}{ran.stderr}"
