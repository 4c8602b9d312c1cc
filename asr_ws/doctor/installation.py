"""What is installed. Imports nothing that may be missing."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

from asr_ws.config import Settings
from asr_ws.doctor import Finding, Question, failed, ok, warning

REQUIREMENT: Final = re.compile(r"([\w.-]+)[^;]*?(?:>=([\d.]+))?(?:;.*extra == ['\"]([\w-]+)['\"])?$")
SERVER: Final = "pip install --upgrade 'asr-ws[server]'"
SHOWN: Final = ("asr-ws", "faster-whisper", "ctranslate2", "onnxruntime", "websockets", "aiohttp")


def python(_: Settings) -> Finding:
    return ok(f"{platform.python_version()}, {platform.system()} {platform.machine()}")


def packages(_: Settings) -> Finding:
    try:
        declared = requires("asr-ws") or []
    except PackageNotFoundError:
        return failed("asr-ws itself is not installed, so its dependencies are not known", "pip install '.[server]'")
    return judged(declared, installed)


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def judged(declared: list[str], installed: Callable[[str], str | None]) -> Finding:
    """Args: declared: requirements, as a distribution's metadata has them. installed: the version of a package."""
    missing, old = [], []
    for line in declared:
        match = REQUIREMENT.match(line.strip())
        if match is None or match[3] not in (None, "server"):
            continue
        name, least = match[1], match[2] or "0"
        if (found := installed(name)) is None:
            missing.append(name)
        elif _numbers(found) < _numbers(least):
            old.append(f"{name} {found} (needs {least})")
    versions = {name: found for name in SHOWN if (found := installed(name)) is not None}
    if missing:
        return failed(f"not installed: {', '.join(missing)}", SERVER, versions=versions)
    if old:
        return warning(f"too old: {', '.join(old)}", SERVER, versions=versions)
    return ok(", ".join(f"{name} {found}" for name, found in versions.items()), versions=versions)


def _numbers(version: str) -> list[int]:
    """Of a release, as far as it is numbers."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return [int(part) for part in match[0].split(".")] if match else []


QUESTIONS: Final[dict[str, Question]] = {"python": python, "packages": packages}
