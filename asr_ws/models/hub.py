"""The Hugging Face hub as a source; also the program that downloads from it.

The download runs in a process of its own, ``python -m asr_ws.models.hub REPO``, because a call into a hub that accepts
and then is silent never returns, and because the library's threads keep an interrupted program alive: a process can be
ended at any moment, and the next one resumes. It answers on standard output in lines of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from threading import Thread
from typing import Any, Final

from asr_ws.errors import DownloadFailed, HashMismatch, not_imported
from asr_ws.models import BLOCK_BYTES, HUB_PATTERNS, MODELS, STALL_S, Progress, check_sha256
from asr_ws.models.index import INDEX

_POLL_S: Final = 0.2
# Without Xet: its download does not resume, and a block of 64 MB without a byte on the disk looks like a stall.
_ENVIRONMENT: Final = {"HF_HUB_DISABLE_XET": "1"}


def fetch(name: str, report: Progress) -> Path:
    """Download into the hub's own cache. Raises: as `asr_ws.models.pull`."""
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise not_imported(error, "asr-ws pull", "server") from error
    ways = [f"--source index, which has {' and '.join(INDEX)}"] if name in INDEX else []
    ways += ["a local folder as --model", "HF_HOME with the model in its cache", "HF_ENDPOINT of a mirror"]
    storage = Path(constants.HF_HUB_CACHE, "models--" + MODELS[name].replace("/", "--"))
    try:
        answer = _run(MODELS[name], storage, report)
        folder = Path(answer["folder"])
        for file, sha256 in answer["sha256"].items():  # the library compares sizes only
            with (folder / file).open("rb") as opened:
                check_sha256(opened, file, sha256)
    except HashMismatch:
        (folder / file).resolve().unlink()
        raise
    except OSError as error:
        raise DownloadFailed(
            f"model {name!r} could not be fetched from {constants.ENDPOINT}: {error}", "instead: " + "; ".join(ways)
        ) from error
    report(answer["total"], answer["total"])
    return folder


def _run(repo: str, storage: Path, report: Progress) -> dict[str, Any]:
    """Run the child; what it said. Raises: OSError: with the reason."""
    answer: dict[str, Any] = {"total": 0}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "asr_ws.models.hub", repo],
        env={**os.environ, **_ENVIRONMENT},
        stdin=subprocess.PIPE,  # its end tells the child of ours
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the library's warnings
    ) as child:
        reader = Thread(target=_read_into, args=(answer, child.stdout), name="hub answers", daemon=True)
        reader.start()
        seen, deadline = (-1, -1), 0.0
        try:
            while child.poll() is None:
                before, seen = seen, (_bytes_below(storage), answer["total"])
                if seen != before:
                    deadline = time.monotonic() + STALL_S
                    report(min(seen), answer["total"])
                elif time.monotonic() > deadline:
                    raise TimeoutError(f"no byte came for {STALL_S:g} s")
                with suppress(subprocess.TimeoutExpired):
                    child.wait(_POLL_S)
        finally:
            child.kill()
            reader.join()
    if "folder" not in answer:
        raise ConnectionError(answer.get("error") or f"the download ended with exit code {child.returncode}")
    return answer


def _read_into(answer: dict[str, Any], lines: Iterable[bytes]) -> None:
    for line in lines:
        answer.update(json.loads(line))


def _bytes_below(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # the library renames files under us
            size += path.lstat().st_size  # not stat: a snapshot's links would count its files twice
    return size


def _download(repo: str) -> None:
    """The child. Prints ``total`` (bytes) and ``sha256`` (by file), then ``folder``; or ``error``."""
    from huggingface_hub import HfApi, constants, snapshot_download

    constants.DOWNLOAD_CHUNK_SIZE = BLOCK_BYTES  # its 10 MiB would make a link below 350 kB/s look like a stall
    try:
        info = HfApi().model_info(repo, files_metadata=True)
        files = [file for file in info.siblings or () if any(fnmatch(file.rfilename, p) for p in HUB_PATTERNS)]
        hashes = {file.rfilename: file.lfs.sha256 for file in files if file.lfs}
        _say(total=sum(file.size or 0 for file in files), sha256=hashes)
        _say(folder=snapshot_download(repo, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # whatever the library raises; the parent adds the ways out
        _say(error=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")


def _say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    _download(sys.argv[1])
    os._exit(0)  # the library's threads may be stuck
