"""Who may import whom: the architecture's table, enforced on the source and, for what must stay out, in a process.

A module's row is the one with the longest name that it lies under. ``may`` names our modules and third-party packages,
whole subtrees; the standard library is free but for ``never``. Imports inside functions count; those under
`TYPE_CHECKING` do not, because they do not happen.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import asr_ws

ROOT = Path(asr_ws.__file__).parent
RECOGNIZER = ("faster_whisper", "ctranslate2", "torch")
ANYTHING = ("",)
CALENDAR = {"asr_ws.server.self_signed": {"datetime"}}  # a certificate is valid from one day to another
WALL_CLOCK = {"asr_ws.server.app": {"time.time"}}  # a job's result expires while the server does not run


@dataclass(frozen=True)
class Row:
    may: tuple[str, ...]
    never: tuple[str, ...] = ()  # of the standard library


SERVER = (
    "asr_ws.core",
    "asr_ws.messages",
    "asr_ws.config",
    "asr_ws.errors",
    "asr_ws.metrics",
    "asr_ws.log",
    "structlog",
)
SOCKETS = (
    *SERVER,
    "websockets",
    "asr_ws.server.answer",
    "asr_ws.server.connection",
    "asr_ws.server.dispatcher",
    "asr_ws.server.door",
    "asr_ws.server.intake",
    "asr_ws.server.pacing",
    "asr_ws.server.reception",
    "asr_ws.server.tally",
)
CORE = ("asr_ws.core", "asr_ws.errors", "asr_ws.config", "numpy")
NO_CLOCK = ("asyncio", "threading", "time")
WORKER = ("asr_ws.worker.ipc", "asr_ws.core.types", "asr_ws.config", "asr_ws.errors", "asr_ws.log", "numpy", "msgspec")

SANS_IO = ("asr_ws.client.events", "asr_ws.client.recording", "asr_ws.client.ring", "asr_ws.messages", "msgspec")

TABLE = {
    "asr_ws": Row(()),
    "asr_ws.__main__": Row(("asr_ws.cli",)),
    "asr_ws.errors": Row(()),
    "asr_ws.messages": Row(("asr_ws.errors", "msgspec"), ("asyncio",)),
    "asr_ws.schema": Row(("asr_ws.messages", "msgspec"), ("asyncio",)),
    "asr_ws.config": Row(("asr_ws.errors",), ("asyncio",)),
    "asr_ws.models": Row(("asr_ws.models", "asr_ws.errors", "huggingface_hub"), ("asyncio",)),
    "asr_ws.log": Row(("structlog",)),
    "asr_ws.subtitles": Row((), NO_CLOCK),
    "asr_ws.metrics": Row(()),
    "asr_ws.processes": Row(("asr_ws.worker.system",)),
    "asr_ws.core": Row(CORE, NO_CLOCK),
    "asr_ws.core.session": Row((*CORE, "asr_ws.messages"), NO_CLOCK),
    "asr_ws.detector": Row(("asr_ws.core.types", "asr_ws.errors", "numpy", "onnxruntime"), ("asyncio",)),
    "asr_ws.resampler": Row(("asr_ws.core.types", "asr_ws.errors", "numpy", "av"), ("asyncio",)),
    "asr_ws.client": Row(
        ("asr_ws.client", "asr_ws.messages", "asr_ws.errors", "msgspec", "websockets", "numpy", "soundfile")
    ),
    "asr_ws.client.connection": Row(SANS_IO, NO_CLOCK),
    "asr_ws.client.recording": Row(SANS_IO, NO_CLOCK),
    "asr_ws.client.ring": Row(SANS_IO, NO_CLOCK),
    "asr_ws.client.http_frames": Row(("asr_ws.errors",), NO_CLOCK),
    "asr_ws.client.microphone": Row(("asr_ws.errors", "asr_ws.messages", "numpy", "sounddevice")),
    "asr_ws.worker": Row(WORKER, ("asyncio",)),
    "asr_ws.worker.__main__": Row(("asr_ws.worker.system", "asr_ws.worker.child"), ("asyncio",)),
    "asr_ws.worker.system": Row((), ("asyncio",)),
    "asr_ws.worker.process": Row((*WORKER, "asr_ws.processes", "psutil")),
    "asr_ws.worker.recognizer": Row((*WORKER, "asr_ws.models", *RECOGNIZER), ("asyncio",)),
    "asr_ws.worker.child": Row(
        (*WORKER, "asr_ws.models", "asr_ws.worker.recognizer", "asr_ws.worker.system", *RECOGNIZER), ("asyncio",)
    ),
    # The child is spawned by its module's name, so that nothing here can load the recognizer.
    "asr_ws.worker.supervisor": Row((*WORKER, "asr_ws.worker.process", "asr_ws.worker.system", "structlog")),
    "asr_ws.media": Row(("asr_ws.media", "asr_ws.core.types", "asr_ws.worker.system", "msgspec"), ("asyncio",)),
    "asr_ws.media.wire": Row(("msgspec",), ("asyncio",)),
    "asr_ws.media.decoder": Row(("asr_ws.media", "asr_ws.core.types", "asr_ws.resampler", "av", "numpy"), ("asyncio",)),
    "asr_ws.server": Row((*SERVER, "asr_ws.server", "aiohttp")),
    "asr_ws.server.dispatcher": Row(("asr_ws.core", "asr_ws.errors", "asr_ws.metrics")),
    "asr_ws.server.pacing": Row(()),
    "asr_ws.server.connection": Row(SOCKETS),
    "asr_ws.server.listener": Row((*SOCKETS, "asr_ws.server.front", "asr_ws.server.http")),
    "asr_ws.server.front": Row(
        ("asr_ws.core.types", *(f"asr_ws.server.{each}" for each in ("answer", "failures", "intake", "shapes")))
    ),
    "asr_ws.server.answer": Row(()),
    "asr_ws.server.reception": Row(SOCKETS),
    "asr_ws.server.intake": Row(("websockets",)),
    "asr_ws.server.door": Row(("asr_ws.core.access", "asr_ws.core.types", "asr_ws.server.failures")),
    "asr_ws.server.tls": Row(("asr_ws.errors",)),
    "asr_ws.server.self_signed": Row((*SERVER, "asr_ws.server", "cryptography")),
    "asr_ws.server.disk": Row(("asr_ws.errors", "structlog")),
    "asr_ws.server.entrance": Row((*SERVER, "asr_ws.server", "psutil")),
    "asr_ws.server.reload": Row(("asr_ws.errors", "structlog")),
    "asr_ws.server.form": Row(("asr_ws.core", "asr_ws.errors", "asr_ws.messages", "aiohttp")),
    "asr_ws.server.shapes": Row(("asr_ws.core", "asr_ws.messages", "asr_ws.subtitles", "msgspec"), NO_CLOCK),
    "asr_ws.server.tally": Row(("asr_ws.core",)),
    "asr_ws.server.notify": Row(("asr_ws.core.types", "asr_ws.server.dispatcher")),
    "asr_ws.server.watch": Row(("asr_ws.core.types", "asr_ws.metrics", "structlog")),
    "asr_ws.server.exposition": Row((*SERVER, "asr_ws.server", "prometheus_client")),
    "asr_ws.server.job_store": Row(("asr_ws.core.files", "asr_ws.core.types", "asr_ws.errors", "msgspec"), NO_CLOCK),
    # A result is put into the answer as it is kept.
    "asr_ws.server.jobs": Row((*SERVER, "asr_ws.server", "aiohttp", "msgspec")),
    # What decodes is spawned by its module's name: neither FFmpeg nor a file's bytes are in the server.
    "asr_ws.server.media": Row(
        (*SERVER, "asr_ws.media.wire", "asr_ws.processes", "asr_ws.worker.system", *("msgspec", "numpy"))
    ),
    # /v1/stats tells the worker's pid and restarts.
    "asr_ws.server.pages": Row((*SERVER, "asr_ws.server", "asr_ws.schema")),
    "asr_ws.server.app": Row(ANYTHING),
    # It tries the server's parts, and its worker; what is installed is looked at before anything that may be missing.
    "asr_ws.doctor": Row((*SERVER, "asr_ws.doctor", "asr_ws.models", "asr_ws.server", "asr_ws.worker", "psutil")),
    "asr_ws.doctor.installation": Row(("asr_ws.config", "asr_ws.doctor")),
    "asr_ws.cli": Row(ANYTHING),
    "asr_ws.testing": Row(ANYTHING),
    # These judge any server, from where only the plain distribution is installed.
    "asr_ws.testing.conservation": Row(("asr_ws.messages", "msgspec"), ("asyncio",)),
    "asr_ws.testing.conformance": Row(
        (
            "asr_ws.testing.conformance",
            "asr_ws.testing.conservation",
            "asr_ws.client",
            "asr_ws.messages",
            "asr_ws.schema",
            "asr_ws.errors",
            *("msgspec", "websockets", "numpy", "soundfile", "click", "rich"),
        )
    ),
}


def lies_under(module: str, names: tuple[str, ...]) -> bool:
    return any(not name or module == name or module.startswith(f"{name}.") for name in names)


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, without the bodies of `if TYPE_CHECKING`."""
    yield node
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        children = iter(node.orelse)
    for child in children:
        yield from executed(child)


def is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(source: str) -> set[str]:
    """Full names of the modules that it imports, anywhere."""
    found = set()
    for node in executed(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) else node.module for name in inner}
    return found - {"__future__", "asr_ws"}  # the package itself holds its version, and imports nothing


def our_modules() -> dict[str, Path]:
    paths = {path.relative_to(ROOT.parent).with_suffix(""): path for path in ROOT.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in sorted(paths.items())}


def breaches(module: str, source: str) -> set[str]:
    """What ``module`` imports and may not."""
    row = TABLE[max((name for name in TABLE if lies_under(module, (name,))), key=len)]
    wrong = set()
    for name in imports(source):
        if name.partition(".")[0] in sys.stdlib_module_names:
            allowed = not lies_under(name, row.never)
        else:
            allowed = lies_under(name, row.may)
        if not allowed:
            wrong.add(name)
    return wrong


@pytest.mark.parametrize("module", our_modules())
def test_module_imports_only_what_it_may(module: str) -> None:
    assert breaches(module, our_modules()[module].read_text("utf-8")) == set()


def test_imports_are_found_wherever_they_are() -> None:
    source = """
from __future__ import annotations
import os.path, time as clock
from asr_ws import __version__, messages
from asr_ws.core.types import ms
if TYPE_CHECKING:
    import torch
else:
    import numpy
def f():
    class C:
        from asr_ws.worker import ipc
"""
    assert imports(source) == {
        "os.path",
        "time",
        "asr_ws.messages",
        "asr_ws.core.types",
        "numpy",
        "asr_ws.worker.ipc",
    }


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("asr_ws.core.session", "from asr_ws import messages", set()),
        ("asr_ws.core.endpointer", "from asr_ws import messages", {"asr_ws.messages"}),
        ("asr_ws.core.desk", "import asyncio, math\nfrom asr_ws import metrics", {"asyncio", "asr_ws.metrics"}),
        ("asr_ws.core.anything_new", "import time, math, structlog", {"time", "structlog"}),
        ("asr_ws.messages", "def f():\n import numpy", {"numpy"}),
        ("asr_ws.server.http", "import asr_ws.worker.ipc, websockets, aiohttp", {"asr_ws.worker.ipc", "websockets"}),
        ("asr_ws.server.dispatcher", "from asr_ws.worker.supervisor import Worker", {"asr_ws.worker.supervisor"}),
        ("asr_ws.worker.supervisor", "from asr_ws.worker import recognizer", {"asr_ws.worker.recognizer"}),
        ("asr_ws.client.sync", "from asr_ws.core.types import ms", {"asr_ws.core.types"}),
        ("asr_ws.anything_new", "import numpy", {"numpy"}),
    ],
)
def test_table_refuses_what_it_should(module: str, source: str, wrong: set[str]) -> None:
    assert breaches(module, source) == wrong


def test_nothing_that_arrives_can_run_code_and_no_clock_that_jumps_is_read() -> None:
    """Pickle and its kin, and the wall clock, by whatever way they are imported. Logs stamp their lines themselves."""
    for name, path in our_modules().items():
        source = path.read_text("utf-8")
        calendar = {"datetime"} - CALENDAR.get(name, set())
        assert imports(source).isdisjoint({"pickle", "marshal", "shelve", "multiprocessing"} | calendar), name
        nodes = list(ast.walk(ast.parse(source)))
        calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        assert calls.isdisjoint({"eval", "exec"}), name
        named = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}  # also to be called elsewhere
        assert named.isdisjoint({"time.time", "time.time_ns"} - WALL_CLOCK.get(name, set())), name
        assert not any(isinstance(node, ast.ImportFrom) and node.module == "time" for node in nodes), name


def test_only_the_recognizer_names_faster_whisper() -> None:
    modules = our_modules()
    users = {name for name in modules if "faster_whisper" in imports(modules[name].read_text("utf-8"))}
    assert users == {"asr_ws.worker.recognizer"}


# What must not even be loaded by way of something else, seen in a process of its own.
GUARDS = [
    ("asr_ws.server.app", (*RECOGNIZER, "cryptography")),  # it owns no model, and seldom makes a certificate
    # Works where only the plain distribution is installed.
    (
        "asr_ws.client.sync",
        (*RECOGNIZER, "onnxruntime", "av", "structlog", "asr_ws.core", "asr_ws.server", "asr_ws.worker"),
    ),
    (
        "asr_ws.testing.conformance.__main__",
        (*RECOGNIZER, "onnxruntime", "av", "structlog", "jsonschema", "psutil", "asr_ws.server", "asr_ws.worker"),
    ),
    ("asr_ws.doctor.installation", (*RECOGNIZER, "structlog", "psutil", "numpy", "asr_ws.server", "asr_ws.worker")),
    ("asr_ws.doctor.trial", RECOGNIZER),
    ("asr_ws.cli", (*RECOGNIZER, "onnxruntime", "av", "structlog", "numpy", "websockets", "asr_ws.server")),
    ("asr_ws.core.session", ("asyncio", "websockets", "structlog", "av", "onnxruntime")),
    ("asr_ws.core.desk", ("asyncio", "msgspec", "structlog")),
]


@pytest.mark.parametrize(("module", "heavy"), GUARDS)
def test_import_loads_nothing_that_it_must_not(module: str, heavy: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print(*(name for name in {heavy!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout.split() == []
