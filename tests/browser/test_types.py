"""asr-client.d.ts and the npm package: the types hold for what uses them, and the package has what its user needs."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from asr_ws import __version__
from asr_ws.server.pages import browser_folder
from tests.browser.conftest import npm
from tests.browser.driver import HERE, node
from tests.test_docs import ROOT

FOLDER = browser_folder()
FILES = [
    "LICENSE",
    "README.md",
    "asr-client.d.ts",
    "asr-client.js",
    "asr-error.js",
    "asr-session.js",
    "audio-ring.js",
    "microphone.js",
    "package.json",
    "recorder-worklet.js",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program's folder with the package in it, as npm would install it."""
    folder = tmp_path_factory.mktemp("project")
    [packed] = json.loads(npm("pack", "--json", "--pack-destination", str(folder), cwd=FOLDER))
    with tarfile.open(folder / packed["filename"]) as archive:
        archive.extractall(folder, filter="data")
    (folder / "node_modules").mkdir()
    (folder / "package").rename(folder / "node_modules" / "asr-ws-client")
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


@pytest.mark.parametrize(("module", "resolution"), [("nodenext", "nodenext"), ("esnext", "bundler")])
def test_usage_type_checks(node_modules: Path, project: Path, module: str, resolution: str) -> None:
    shutil.copy(HERE / "types.test-d.ts", project / "usage.ts")
    options = f"--strict --noEmit --target es2022 --lib es2022,dom --module {module} --moduleResolution {resolution}"
    ran = node(node_modules / "typescript" / "bin" / "tsc", *options.split(), "usage.ts", cwd=project)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.usefixtures("node_modules")
def test_what_is_declared_is_there() -> None:
    ran = node("--test", "--test-reporter=spec", HERE / "types.test.mjs")
    assert ran.returncode == 0, f"\n{ran.stdout}{ran.stderr}"


def test_package_is_what_its_user_needs() -> None:
    [packed] = json.loads(npm("pack", "--dry-run", "--json", cwd=FOLDER))
    assert [file["path"] for file in packed["files"]] == FILES
    assert (FOLDER / "LICENSE").read_text("utf-8") == (ROOT / "LICENSE").read_text("utf-8")


def test_package_is_imported_by_its_name(project: Path) -> None:
    program = 'import("asr-ws-client").then(({ AsrClient, VERSION }) => console.log(AsrClient.name, VERSION))'
    ran = node("-e", program, cwd=project)
    version = json.loads((FOLDER / "package.json").read_text("utf-8"))["version"]
    assert (ran.stdout, ran.stderr) == (f"AsrClient {version}\n", "")
    assert version == __version__


def test_package_says_where_its_worklet_is(project: Path) -> None:
    program = 'console.log(import.meta.resolve("asr-ws-client/recorder-worklet.js"))'
    ran = node("--input-type=module", "-e", program, cwd=project)
    file = (project / "node_modules" / "asr-ws-client" / "recorder-worklet.js").resolve()
    assert (ran.stdout, ran.stderr) == (f"{file.as_uri()}\n", "")


def test_lock_names_no_registry() -> None:
    packages = json.loads((HERE / "package-lock.json").read_text("utf-8"))["packages"]
    assert [name for name, package in packages.items() if "resolved" in package] == []
