"""The server behind the real proxies of docs/howto/expose-it.md, with its configurations."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from benchmarks.proxied import CLIENT, PROXIES
from tests.benchmarks.commands import run

REQUIRED = {"nginx"} if os.environ.get("CI") else set()  # CI installs it


@pytest.mark.model
@pytest.mark.parametrize("proxy", PROXIES)
def test_page_numbers_and_sessions_are_had_through_the_proxy(proxy: str) -> None:
    if shutil.which(proxy) is None and proxy not in REQUIRED:
        pytest.skip(f"{proxy} is not installed")
    lines, told = run("proxied", "--proxy", proxy, "--seconds", "2")
    assert [line for line in lines if not line.startswith("ok ")] == []
    assert told["seen"]["address in the log"] == [CLIENT if sys.platform == "linux" else "127.0.0.1"]
    assert told["seen"]["finals and lost ms of one that speaks"] == [1, 0]
    assert told["passed"] is True
