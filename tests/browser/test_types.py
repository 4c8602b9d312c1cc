"""asr-client.d.ts and the npm package: the types hold for what uses them, and the package has what its user needs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from asr_ws import messages
from asr_ws.server.pages import browser_folder
from tests.browser.conftest import npm
from tests.browser.driver import HERE, NODE

FOLDER = browser_folder()
FILES = [
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

STRUCTS = [
    *get_args(messages.ServerEvent),
    messages.Limits,
    messages.AudioInForce,
    messages.FinalSegment,
    messages.FinalWord,
    messages.Start,
    messages.Endpointing,
]
RENAMED = {
    "Partial": "PartialText",  # TypeScript has a type of this name
    "Error": "ServerError",
    "AudioInForce": "AudioFormat",
    "FinalSegment": "Segment",
    "FinalWord": "Word",
    "Start": "StartFields",
}
OTHERWISE = {
    "Final": {"latency_ms"},  # the client's own
    "Start": {"token", "audio"},  # which the client says itself
}


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


def node(*args: str | Path, cwd: Path) -> tuple[int, str]:
    """Exit code, and all output."""
    ran = subprocess.run(
        (NODE, *map(str, args)),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
    )
    return ran.returncode, ran.stdout


@pytest.mark.parametrize(("module", "resolution"), [("nodenext", "nodenext"), ("esnext", "bundler")])
def test_usage_type_checks(node_modules: Path, project: Path, module: str, resolution: str) -> None:
    shutil.copy(HERE / "types.test-d.ts", project / "usage.ts")
    options = f"--strict --noEmit --target es2022 --lib es2022,dom --module {module} --moduleResolution {resolution}"
    code, output = node(node_modules / "typescript" / "bin" / "tsc", *options.split(), "usage.ts", cwd=project)
    assert (code, output) == (0, "")


@pytest.mark.usefixtures("node_modules")
def test_what_is_declared_is_there() -> None:
    code, output = node("--test", HERE / "types.test.mjs", cwd=HERE)
    assert code == 0, f"\n{output}"


def declared(interface: str) -> set[str]:
    """Its fields, those of what it extends included; `type` and `seq` excluded."""
    source = (FOLDER / "asr-client.d.ts").read_text("utf-8")
    head = rf"^(?:export )?interface {interface}\b(?:<[^{{]*?>)?( extends \w+)?[^{{]*"
    found = re.search(head + r"{(.*?)}$", source, re.MULTILINE | re.DOTALL)
    assert found, interface
    base = declared(found[1].split()[1]) if found[1] else set()
    return (base | set(re.findall(r"^  (\w+)\??:", found[2], re.MULTILINE))) - {"type", "seq"}


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_each_field_of_the_protocol_is_declared(struct: type[msgspec.Struct]) -> None:
    name = struct.__name__
    fields = set(struct.__struct_fields__) - {"seq"}
    assert declared(RENAMED.get(name, name)) == fields ^ OTHERWISE.get(name, set())


def test_package_is_what_its_user_needs() -> None:
    [packed] = json.loads(npm("pack", "--dry-run", "--json", cwd=FOLDER))
    assert [file["path"] for file in packed["files"]] == FILES


def test_package_is_imported_by_its_name(project: Path) -> None:
    program = 'import("asr-ws-client").then(({ AsrClient, VERSION }) => console.log(AsrClient.name, VERSION))'
    code, output = node("-e", program, cwd=project)
    version = json.loads((FOLDER / "package.json").read_text("utf-8"))["version"]
    assert (code, output) == (0, f"AsrClient {version}\n")


def test_package_says_where_its_worklet_is(project: Path) -> None:
    program = 'console.log(import.meta.resolve("asr-ws-client/recorder-worklet.js"))'
    code, output = node("--input-type=module", "-e", program, cwd=project)
    file = (project / "node_modules" / "asr-ws-client" / "recorder-worklet.js").resolve()
    assert (code, output) == (0, f"{file.as_uri()}\n")


def test_lock_names_no_registry() -> None:
    packages = json.loads((HERE / "package-lock.json").read_text("utf-8"))["packages"]
    assert [name for name, package in packages.items() if "resolved" in package] == []
