"""What the machine has: room on its disks, time of its cores, memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import psutil

from asr_ws import models
from asr_ws.config import Settings
from asr_ws.doctor import Finding, Question, ok, warning
from asr_ws.server import entrance

MB: Final = 1_000_000
LITTLE_CACHE_BYTES: Final = 500 * MB  # small.en
BUSY: Final = 0.5  # of the cores' time
LOOK_S: Final = 1.0  # at it
CGROUPS: Final = Path("/sys/fs/cgroup")


def model_cache(_: Settings) -> Finding:
    return room(models.cache_dir(), LITTLE_CACHE_BYTES, "ASR_WS_CACHE_DIR names another, for asr-ws pull")


def state_folder(settings: Settings) -> Finding:
    least_bytes = 2 * settings.files.max_upload_mb * MB
    return room(entrance.state_dir(settings), least_bytes, "--state-dir names another: uploads and jobs are kept there")


def room(folder: Path, least_bytes: int, hint: str) -> Finding:
    """Where the folder is, or would be made."""
    folder = folder.absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free_bytes = shutil.disk_usage(there).free
    except OSError as error:
        return warning(f"cannot write to {folder}: {error.strerror}", hint)
    fact = f"{free_bytes / 1e9:.1f} GB free in {folder}"
    numbers = {"free_mb": free_bytes // MB}
    return ok(fact, **numbers) if free_bytes >= least_bytes else warning(f"only {fact}", hint, **numbers)


def cores(_: Settings) -> Finding:
    used = psutil.cpu_percent(LOOK_S) / 100
    return busy(used, usable_cores(), psutil.getloadavg()[0])


def busy(used: float, n_cores: int, load: float) -> Finding:
    """Args: used: share of the cores' time. load: processes that ran or waited for one, in the last minute."""
    fact = f"{n_cores} usable, {used:.0%} in use now, load {load:.1f}"
    numbers = {"cores": n_cores, "used_percent": round(100 * used), "load": round(load, 2)}
    if used <= BUSY:
        return ok(fact, **numbers)
    return warning(fact, "something else wants them: decodes will be slower, and are in what follows", **numbers)


def usable_cores() -> int:
    """By this process, of those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. Attributes: limit: of this process's control group; None: there is none."""

    available: int
    swap_used: int
    limit: int | None


def memory() -> Memory:
    available, (limit, left) = psutil.virtual_memory().available, control_group()
    return Memory(available if left is None else min(available, left), psutil.swap_memory().used, limit)


def control_group(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> tuple[int, int] | tuple[None, None]:
    """Linux: the narrowest limit of memory above this process, and what is left of it; None: none."""
    found = []
    for limit_file, used_file, reclaimable in (
        ("memory.max", "memory.current", "inactive_file"),  # version 2
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in _groups(root, own):
            try:
                limit = int((folder / limit_file).read_text())
                used = int((folder / used_file).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # it has none, or "max"
                continue
            if limit < psutil.virtual_memory().total:  # version 1 has a huge number for none
                found.append((limit, max(0, limit - used + int(stat.get(reclaimable, 0)))))
    return min(found, key=lambda each: each[1]) if found else (None, None)


def _groups(root: Path, own: Path) -> list[Path]:
    """Folders of the groups that this process is in, and of those above them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):
            path = PurePosixPath(name)
            top = root / controllers
            folders += [top / each.relative_to("/") for each in (path, *path.parents)]
    return folders


QUESTIONS: Final[dict[str, Question]] = {"model cache": model_cache, "state folder": state_folder, "cores": cores}
