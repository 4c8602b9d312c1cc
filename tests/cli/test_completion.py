"""`asr-ws completion`, in a real bash."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from asr_ws.cli import COMMANDS, main
from asr_ws.cli.completion import SHELLS
from tests.test_docs import ROOT


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_a_script_that_asks_this_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["completion", shell], prog_name="asr-ws")
    out = capsys.readouterr().out
    assert (caught.value.code, f"_ASR_WS_COMPLETE={shell}_complete" in out) == (0, True)


def test_another_shell_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["completion", "powershell"], prog_name="asr-ws")
    assert caught.value.code == 2
    assert "'powershell' is not one of 'bash', 'zsh', 'fish'" in capsys.readouterr().err


def test_commands_are_completed_without_importing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr_ws.cli.import_module", lambda name: pytest.fail(f"imported {name}"))
    offered = BashComplete(main, {}, "asr-ws", "_ASR_WS_COMPLETE").get_completions([], "")
    assert [(each.value, each.help) for each in offered] == [(name, help) for name, (_, help) in COMMANDS.items()]


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (["tr"], ["transcribe"]),
        (["--v"], ["--version"]),
        (["serve", "--max-w"], ["--max-wait-ms"]),
        (["pull", "tiny.en", "--source", ""], ["hub", "index"]),
        (["completion", "f"], ["fish"]),
        (["nothing", "-"], ["--version", "--help"]),
    ],
    ids=" ".join,
)
def test_bash_completes(line: list[str], offered: list[str], tmp_path: Path) -> None:
    program = tmp_path / "asr-ws"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m asr_ws "$@"\n')
    program.chmod(0o755)
    script = f"""
        eval "$(asr-ws completion bash)"
        complete -p asr-ws >&2
        COMP_WORDS=(asr-ws {shlex.join(line)}) COMP_CWORD={len(line)}
        _asr_ws_completion asr-ws
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == offered
    assert done.stderr == "complete -o nosort -F _asr_ws_completion asr-ws\n"
