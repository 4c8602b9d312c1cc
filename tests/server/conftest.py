"""Servers by each way to reach them: one port or two, plain or TLS.

    pytest --all-ports tests/server/test_front.py ...

has all four, else there are two of them, in which each of it occurs.
"""

from __future__ import annotations

import pytest

from tests.server.reach import Ports

EACH = [Ports(has_two=False, is_encrypted=False), Ports(has_two=True, is_encrypted=True)]
OTHERS = [Ports(has_two=False, is_encrypted=True), Ports(has_two=True, is_encrypted=False)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ports" in metafunc.fixturenames:
        metafunc.parametrize("ports", EACH + OTHERS * metafunc.config.getoption("--all-ports"), ids=str)
