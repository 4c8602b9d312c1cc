"""The lowest websockets and aiohttp that we take: the hand-off between them relies on more than they document.

They are put before what is installed here, and the hand-off's own tests run on them. Needs the package index; skipped
where there is none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

from tests.test_docs import ROOT
from tests.test_plain_install import ENVIRONMENT, INSTALL_S, pip

LIBRARIES = ("websockets", "aiohttp")
PROBE = "import websockets, aiohttp; print(websockets.__version__, aiohttp.__version__)"


def lowest() -> dict[str, str]:
    """The version of each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    found = dict(match.groups() for each in listed if (match := re.fullmatch(r"(\w+)>=([\d.]+)", each)))
    return {library: found[library] for library in LIBRARIES}


def test_hand_off_works_on_the_lowest_versions(tmp_path: Path) -> None:
    wanted = [f"{library}=={version}" for library, version in lowest().items()]
    failure = pip(Path(sys.executable), "install", "--no-deps", "--target", tmp_path / "lowest", *wanted)
    if "No matching distribution found for websockets" in failure:
        pytest.skip("no package index")
    assert failure == ""
    paths = os.pathsep.join(str(path) for path in (tmp_path / "lowest", ROOT))
    environment = {**ENVIRONMENT, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=INSTALL_S,
        )
        return done.returncode, done.stdout + done.stderr

    code, said = run("-c", PROBE)
    assert (code, [Version(version) for version in said.split()]) == (0, [Version(each) for each in lowest().values()])
    code, said = run("-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/server/test_front.py")
    assert code == 0, said[-5000:]
