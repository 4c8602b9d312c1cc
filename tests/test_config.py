import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest

from asr_ws.config import DEFAULTS, NOT_SETTINGS, SETTINGS, Log, Setting, Settings, Source, Value, load
from asr_ws.errors import ConfigError

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"

every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)


PAIR = ("tls_cert", "tls_key")  # neither goes without the other
FORMS = {
    "root_path": "/asr",
    "allow_origin": ("https://a.example", "http://b.example:8080"),
    "trusted_proxy": ("127.0.0.0/8", "fd00::/8"),
}


def other_value(setting: Setting) -> Value:
    """An allowed value that is not the default."""
    if setting.form:
        return FORMS[setting.name]
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if setting.type is bool:
        return not setting.default
    return setting.default + ("x" if setting.type is str else setting.type(1))  # type: ignore[operator, no-any-return]


def toml(setting: Setting, value: object) -> str:
    written = repr(value).lower() if setting.type is bool else repr(value)  # Python's repr of the others is TOML
    written = repr(list(value)) if isinstance(value, tuple) else written
    return f"[{setting.group}]\n{setting.name} = {written}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def error_of(flags: dict[str, object], environ: dict[str, str], file: Path | None = None) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(flags, environ, file)
    return caught.value.message, caught.value.hint


# ---------------------------------------------------------------- declarations


def test_names_are_unique_over_all_groups() -> None:
    names = [setting.name for setting in SETTINGS]
    assert sorted(set(names)) == sorted(names)


def test_every_group_of_the_root_is_declared_in_its_order() -> None:
    assert list(dict.fromkeys(setting.group for setting in SETTINGS)) == list(get_type_hints(Settings))


@every_setting
def test_a_default_is_itself_an_allowed_value(setting: Setting) -> None:
    assert setting.read(setting.default, Source("file", "f")) == setting.default
    assert type(setting.default) is (tuple if setting.several else setting.type)


@every_setting
def test_a_number_has_a_lower_limit(setting: Setting) -> None:
    assert (setting.several or setting.type in (str, bool)) == (setting.low is None)


# ---------------------------------------------------------------- sources and precedence


def test_nothing_given_is_the_defaults() -> None:
    loaded = load({}, {}, None)
    assert loaded.settings == Settings()
    assert loaded.sources == {setting.name: Source("default", "default") for setting in SETTINGS}
    assert loaded.unknown_environment == ()


@pytest.mark.parametrize("setting", [each for each in SETTINGS if each.name not in PAIR], ids=lambda each: each.name)
@pytest.mark.parametrize("kind", ["flag", "environment", "file"])
def test_a_setting_is_reachable_from_each_source_and_changes_nothing_else(
    setting: Setting, kind: str, file: Path
) -> None:
    value = other_value(setting)
    file.write_text(toml(setting, value) if kind == "file" else "", "utf-8")
    loaded = load(
        {setting.name: value if isinstance(value, tuple) else str(value)} if kind == "flag" else {},
        {setting.variable: ", ".join(value) if isinstance(value, tuple) else str(value)}
        if kind == "environment"
        else {},
        file,
    )
    group = replace(getattr(DEFAULTS, setting.group), **{setting.name: value})
    assert loaded.settings == replace(DEFAULTS, **{setting.group: group})
    assert type(setting.of(loaded.settings)) is type(setting.default)
    where = {"flag": setting.flag, "environment": setting.variable, "file": f"{file}:{setting.key}"}[kind]
    default = {each.name: Source("default", "default") for each in SETTINGS}
    assert loaded.sources == default | {setting.name: Source(kind, where)}  # type: ignore[arg-type]


def test_certificate_and_key_may_come_from_two_sources() -> None:
    listen = load({"tls_cert": "c.pem"}, {"ASR_WS_TLS_KEY": "k.pem"}, None).settings.listen
    assert (listen.tls_cert, listen.tls_key) == ("c.pem", "k.pem")


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(file: Path) -> None:
    file.write_text("[listen]\nport = 1\n[session]\nmax_sessions = 1\n[admission]\nqueue_capacity = 1\n", "utf-8")
    environ = {"ASR_WS_PORT": "2", "ASR_WS_MAX_SESSIONS": "2"}
    loaded = load({"port": 3}, environ, file)
    settings = loaded.settings
    assert (
        settings.listen.port,
        settings.session.max_sessions,
        settings.admission.queue_capacity,
        settings.admission.max_wait_ms,
    ) == (3, 2, 1, 8000)
    assert [loaded.sources[name].kind for name in ("port", "max_sessions", "queue_capacity", "max_wait_ms")] == [
        "flag",
        "environment",
        "file",
        "default",
    ]


def test_a_flag_that_was_not_given_overrides_nothing() -> None:
    assert load({"port": None}, {"ASR_WS_PORT": "2"}, None).settings.listen.port == 2


def test_an_empty_variable_counts_as_not_set() -> None:
    loaded = load({}, {"ASR_WS_PORT": "", "ASR_WS_HOST": "", "ASR_WS_CONFIG": ""}, None)
    assert loaded.settings == Settings()


def test_the_environment_can_name_the_file_and_the_flag_beats_it(file: Path) -> None:
    file.write_text("[log]\nlog_level = 'debug'\n", "utf-8")
    other = file.with_name("other.toml")
    other.write_text("[log]\nlog_level = 'error'\n", "utf-8")
    environ = {"ASR_WS_CONFIG": str(file)}
    assert load({}, environ, None).settings.log == Log(log_level="debug")
    assert load({}, environ, other).settings.log == Log(log_level="error")


def test_a_whole_number_will_do_for_a_fraction(file: Path) -> None:
    file.write_text("[session]\nidle_timeout_s = 60\n", "utf-8")
    value = load({}, {}, file).settings.session.idle_timeout_s
    assert (value, type(value)) == (60.0, float)


def test_a_file_may_begin_with_a_byte_order_mark(file: Path) -> None:
    file.write_text("[listen]\nport = 1\n", "utf-8-sig")
    assert load({}, {}, file).settings.listen.port == 1


def test_unknown_variables_are_reported_and_harmless() -> None:
    environ = {"ASR_WS_PROT": "1", "ASR_WS_ABC": "", "PORT": "2", **dict.fromkeys(NOT_SETTINGS[1:], "x")}
    loaded = load({}, environ, None)
    assert loaded.settings == Settings()
    assert loaded.unknown_environment == ("ASR_WS_ABC", "ASR_WS_PROT")


# ---------------------------------------------------------------- refusals


def test_each_source_is_named_in_its_error(file: Path) -> None:
    file.write_text("[listen]\nport = 65536\n", "utf-8")
    hint = "allowed: integer 0..65535"
    assert error_of({"port": "70000"}, {}) == ("--port: port is '70000'", hint)
    assert error_of({}, {"ASR_WS_PORT": "http"}) == ("ASR_WS_PORT: port is 'http'", hint)
    assert error_of({}, {}, file) == (f"{file}:[listen].port: port is 65536", hint)


ORIGINS = "origins such as https://www.example.com, without a path or last slash; null; or * alone"


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("port", "-1", "integer 0..65535"),
        ("port", "1.5", "integer 0..65535"),
        ("max_sessions", "0", "integer >= 1"),
        ("max_sessions", "1" + 400 * "0", None),
        ("idle_timeout_s", "-0.5", "number >= 0"),
        ("idle_timeout_s", "nan", "number >= 0"),
        ("ingest_speed", "inf", "number >= 1"),
        ("ingest_speed", "0.99", "number >= 1"),
        ("queue_capacity", "1001", "integer 1..1000"),
        ("max_wait_ms", "600001", "integer 1..600000"),
        ("host", "", "text, not empty"),
        ("device", "gpu", "auto, cpu or cuda"),
        ("encoder_window", "short", "auto or full"),
        ("partials", "true", "on or off"),
        ("speculation", "", "on or off"),
        ("log_format", "xml", "console or json"),
        ("log_level", "INFO", "debug, info, warning or error"),
        ("fault_injection", "perhaps", "true or false"),
        ("root_path", "asr", "a path such as /asr, or nothing"),
        ("root_path", "//evil.example/", "a path such as /asr, or nothing"),
        ("allow_origin", "www.example.com", ORIGINS),
        ("allow_origin", "https://www.example.com/page", ORIGINS),
        ("allow_origin", "https://*.example.com", ORIGINS),
        ("state_dir", "a\0b", "text"),
        ("allow_origin", "https://a.example,,", ORIGINS),
        ("trusted_proxy", "10.0.0.1/8", "networks such as 127.0.0.1 or 10.0.0.0/8"),
        ("trusted_proxy", "proxy.example.com", "networks such as 127.0.0.1 or 10.0.0.0/8"),
    ],
)
def test_a_value_outside_the_limits_is_refused_with_what_is_allowed(name: str, text: str, allowed: str | None) -> None:
    message, hint = error_of({name: text}, {})
    assert message == f"--{name.replace('_', '-')}: {name} is {text!r}"
    assert hint == f"allowed: {allowed or 'integer >= 1'}"


@pytest.mark.parametrize(
    ("table", "line", "value"),
    [
        ("listen", "port = '8765'", "'8765'"),
        ("listen", "port = true", "True"),
        ("listen", "port = 8765.0", "8765.0"),
        ("listen", "host = 1", "1"),
        ("session", "idle_timeout_s = true", "True"),
        ("log", "log_level = ['info']", "['info']"),
        ("worker", "fault_injection = 1", "1"),
        ("worker", "fault_injection = 'on'", "'on'"),
        ("access", "allow_origin = 'https://a.example'", "'https://a.example'"),
        ("access", "allow_origin = [1]", "[1]"),
    ],
)
def test_a_file_must_have_the_right_type(table: str, line: str, value: str, file: Path) -> None:
    file.write_text(f"[{table}]\n{line}\n", "utf-8")
    name = line.split()[0]
    assert error_of({}, {}, file)[0] == f"{file}:[{table}].{name}: {name} is {value}"


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("[listen]\nprot = 1", "unknown 'prot' in [listen]", "did you mean [listen].port?"),
        ("[listen]\nmax-sessions = 1", "unknown 'max-sessions' in [listen]", "did you mean [session].max_sessions?"),
        ("[log]\nport = 1", "unknown 'port' in [log]", "did you mean [listen].port?"),
        ("[listen]\nxyzzy = 1", "unknown 'xyzzy' in [listen]", "asr-ws config lists every setting"),
        ("[lisen]\nport = 1", "unknown 'lisen'", "did you mean [listen]?"),
        ("port = 1", "unknown 'port'", "did you mean [listen].port?"),
        ("model = 'base'", "model is 'base'", "allowed: a table, [model]"),
    ],
)
def test_an_unknown_key_or_table_is_refused_with_the_likeliest(
    content: str, message: str, hint: str, file: Path
) -> None:
    file.write_text(content, "utf-8")
    assert error_of({}, {}, file) == (f"{file}: {message}", hint)


def test_an_unknown_flag_name_is_refused() -> None:
    assert error_of({"prot": 1}, {}) == ("unknown setting 'prot'", "did you mean port?")


def test_a_bad_value_is_refused_even_where_it_is_overridden() -> None:
    assert error_of({"port": 1}, {"ASR_WS_PORT": "x"})[0] == "ASR_WS_PORT: port is 'x'"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_faults_may_be_injected_on_a_loopback_address(host: str) -> None:
    assert load({"host": host, "fault_injection": True}, {}, None).settings.worker.fault_injection


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "localhost.example.com", "127.0.0.1.example.com"])
def test_faults_may_be_injected_nowhere_else(host: str) -> None:
    message, hint = error_of({"host": host}, {"ASR_WS_FAULT_INJECTION": "on"})
    assert message == f"ASR_WS_FAULT_INJECTION: not while listening on {host}"
    assert hint == "--host 127.0.0.1"


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        (
            {"auth_token_file": ""},
            "--auth-token-file: no file is named",
            "a variable that is not set? Without the option nobody needs a token",
        ),
        ({"tls_cert": "c.pem"}, "--tls-cert: not without --tls-key", "give both"),
        ({"tls_key": "k.pem"}, "--tls-key: not without --tls-cert", "give both"),
        (
            {"tls_cert": "c.pem", "tls_key": "k.pem", "tls_self_signed": True},
            "--tls-self-signed: not beside --tls-cert",
            "one certificate or the other",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(given: dict[str, object], message: str, hint: str) -> None:
    assert error_of(given, {}) == (message, hint)


def test_a_flag_that_is_given_several_times_is_told_as_it_was_given() -> None:
    message, _ = error_of({"allow_origin": ("https://a.example", "b.example")}, {})
    assert message == "--allow-origin: allow_origin is 'https://a.example, b.example'"


def test_origins_and_networks_have_one_spelling() -> None:
    given = {
        "allow_origin": ("HTTPS://A.example:443", "http://b.example:80", "app://c:443", "null", "*", "http://[::1]:1")
    }
    loaded = load({**given, "trusted_proxy": "127.0.0.1, ::1", "root_path": "/a/b/"}, {}, None).settings
    assert loaded.access.allow_origin == (
        "https://a.example",
        "http://b.example",
        "app://c:443",
        "null",
        "*",
        "http://[::1]:1",
    )
    assert (loaded.access.trusted_proxy, loaded.listen.root_path) == (("127.0.0.1/32", "::1/128"), "/a/b")


def test_an_unreadable_file_is_said_with_who_named_it(file: Path) -> None:
    assert error_of({}, {}, file)[0].startswith(f"--config: cannot read {file}: ")
    assert error_of({}, {"ASR_WS_CONFIG": str(file)})[0].startswith(f"ASR_WS_CONFIG: cannot read {file}: ")


@pytest.mark.parametrize("content", [b"[listen", b"\xff\xfe[listen]"])
def test_a_file_that_is_not_toml_is_refused(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    assert error_of({}, {}, file)[0].startswith(f"--config: {file} is not TOML: ")


# ---------------------------------------------------------------- docs/reference/configuration.md


def row(setting: Setting) -> str:
    return (
        f"| `{setting.flag}` | `{setting.variable}` | `{setting.name}` | `{setting.shown(setting.default)}` "
        f"| {setting.allowed} | {setting.help} |"
    )


def test_the_page_has_a_row_for_every_setting_and_no_other() -> None:
    section, rows = "", []
    for line in PAGE.read_text("utf-8").splitlines():
        section = line if line.startswith("## ") else section
        if line.startswith("| `--"):
            rows.append((section, line))
    assert rows == [(f"## `[{setting.group}]`", row(setting)) for setting in SETTINGS]


def test_the_page_names_no_flag_or_variable_that_does_not_exist() -> None:
    text = PAGE.read_text("utf-8")
    assert set(re.findall(r"ASR_WS_[A-Z_]*[A-Z]", text)) == {s.variable for s in SETTINGS} | set(NOT_SETTINGS)
    assert set(re.findall(r"--[a-z][a-z-]*", text)) == {s.flag for s in SETTINGS} | {"--config", "--json"}


def test_the_pages_example_file_loads(file: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    file.write_text(example, "utf-8")
    given = {name for table in tomllib.loads(example).values() for name in table}
    assert {name for name, source in load({}, {}, file).sources.items() if source.kind == "file"} == given
