"""The server's settings: one frozen tree is the only source of flags, environment variables and TOML keys.

A setting is declared once, in the group that is its TOML table, with type, default, limits and help. Its name is
unique over all groups, so that the flag is flat: ``max_sessions`` in ``Session`` is ``--max-sessions``,
``ASR_WS_MAX_SESSIONS`` and, under ``[session]``, ``max_sessions``. A flag beats an environment variable, that beats the
file, that beats the default; every value given is checked, also one that is then overridden.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast, get_type_hints

from asr_ws.errors import ConfigError

PREFIX: Final = "ASR_WS_"
CONFIG_VARIABLE: Final = "ASR_WS_CONFIG"  # the environment's --config
NOT_SETTINGS: Final = (CONFIG_VARIABLE, "ASR_WS_CACHE_DIR", "ASR_WS_TOKEN")  # ours, read elsewhere

Value = int | float | str | bool | tuple[str, ...]
_V = TypeVar("_V", int, float, str, bool, tuple[str, ...])
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
WORDS: Final = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


def origin(text: str) -> str:
    """An origin as browsers write it, in one spelling: lower case, no default port; ``null`` and ``*`` as they are.

    Raises: ValueError: it is none.
    """
    if text in ("null", "*"):
        return text
    match = re.fullmatch(
        r"([a-z][a-z\d+.-]*)://(\[[\da-f:.]+\]|[^\s/?#@:\[\]\\*]+)(?::(\d{1,5}))?", text.lower(), re.ASCII
    )
    if match is None:
        raise ValueError(f"{text!r} is not an origin")
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" + (f":{port}" if port and int(port) != DEFAULT_PORTS.get(scheme) else "")


def _root_path(text: str) -> str:
    if not re.fullmatch(r"(/[\w.~-]+)*/?", text, re.ASCII):
        raise ValueError(f"{text!r} is not a path")
    return text.rstrip("/")


def _setting(
    default: _V,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    form: str = "",
    normalise: Callable[[str], object] = str,
) -> _V:
    limits = {"low": low, "high": high, "choices": choices, "form": form, "normalise": normalise}
    declared: _V = field(default=default, metadata={"help": help, **limits})
    return declared


@dataclass(frozen=True, slots=True)
class Listen:
    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 is every interface, :: every one by IPv6")
    port: int = _setting(8765, "TCP port; 0 takes a free one", low=0, high=65535)
    http_port: int = _setting(
        -1, "TCP port for everything but sessions; -1 is the same, 0 takes a free one", low=-1, high=65535
    )
    root_path: str = _setting(
        "",
        "path under which a proxy shows the server, such as /asr; requests are answered with and without it",
        form="a path such as /asr, or nothing",
        normalise=_root_path,
    )
    tls_cert: str = _setting("", "file with the certificate's chain, PEM; read again when it changes")
    tls_key: str = _setting("", "file with its private key, PEM, without a passphrase")
    tls_self_signed: bool = _setting(
        False, "encrypt with a certificate of our own, made for this machine's names and addresses and kept"
    )


@dataclass(frozen=True, slots=True)
class Access:
    auth_token_file: str = _setting(
        "", "file with a token a line; who has none of them may not come in. Read again when it changes"
    )
    allow_origin: tuple[str, ...] = _setting(
        (),
        "origin of web pages that may open sessions, beside the server's own; * is any",
        form="origins such as https://www.example.com, without a path or last slash; null; or * alone",
        normalise=origin,
    )
    trusted_proxy: tuple[str, ...] = _setting(
        (),
        "network of the proxies in front, whose X-Forwarded-For tells the client's address",
        form="networks such as 127.0.0.1 or 10.0.0.0/8",
        normalise=ipaddress.ip_network,
    )
    max_sessions_per_address: int = _setting(
        0, "of max_sessions, those of one client's address; 0 is half of them, and all for this machine's own", low=0
    )
    max_sessions_per_token: int = _setting(0, "of max_sessions, those of one token; 0 is all", low=0)
    open_stats: bool = _setting(False, "answer /v1/stats and /metrics without a token too")


@dataclass(frozen=True, slots=True)
class Session:
    max_sessions: int = _setting(64, "sessions open at once; one more is refused with `busy`", low=1)
    idle_timeout_s: float = _setting(
        300.0, "seconds without a message from the client until its session ends; 0 is never", low=0
    )
    ingest_speed: float = _setting(
        2.0, "how many times faster than real time a client's audio is taken in the long run", low=1
    )


@dataclass(frozen=True, slots=True)
class Admission:
    queue_capacity: int = _setting(
        3, "utterances that may wait for the model; one more is refused with `busy`", low=1, high=1000
    )
    max_wait_ms: int = _setting(
        8000, "longest wait for the model, in milliseconds; a client may ask for less", low=1, high=600_000
    )


@dataclass(frozen=True, slots=True)
class Files:
    max_upload_mb: int = _setting(100, "MB of an uploaded file, its form included", low=1)
    max_jobs: int = _setting(100, "jobs that may wait or run, half of them of one caller", low=1)
    job_ttl_s: float = _setting(86_400.0, "seconds for which a job's result is kept", low=1)


@dataclass(frozen=True, slots=True)
class Texts:
    partials: str = _setting("on", "text while somebody speaks", choices=("on", "off"))
    speculation: str = _setting(
        "on",
        "decode at the onset of silence, so that the text is there when the utterance ends",
        choices=("on", "off"),
    )


@dataclass(frozen=True, slots=True)
class Model:
    model: str = _setting("base", "name of a model, or a folder that holds one")
    device: str = _setting(
        "auto", "what the model runs on; auto is CUDA where it works, else the CPU", choices=("auto", "cpu", "cuda")
    )
    compute_type: str = _setting(
        "default",
        "number format of the model's arithmetic; default leaves it to the recognizer",
        choices=(
            "default",
            "auto",
            "int8",
            "int8_float32",
            "int8_float16",
            "int8_bfloat16",
            "int16",
            "float16",
            "bfloat16",
            "float32",
        ),
    )
    cpu_threads: int = _setting(0, "threads of a decode on the CPU; 0 leaves it to the recognizer", low=0, high=1024)
    encoder_window: str = _setting(
        "auto",
        "audio that the model looks at; auto is no more than an utterance needs, full is always 30 s",
        choices=("auto", "full"),
    )


@dataclass(frozen=True, slots=True)
class Worker:
    on_crash_loop: str = _setting(
        "stay",
        "what to do when no worker can be had (three starts in a row failed, one did for good, or one does not end): "
        "stay, or exit with code 70",
        choices=("stay", "exit"),
    )
    worker_memory_mb: int = _setting(
        0,
        "MB of memory above which the worker is replaced, between two decodes; 0 is 512 more than twice what it took "
        "once it was ready",
        low=0,
    )
    fault_injection: bool = _setting(
        False, "let clients break the worker on purpose, to see what comes of it; on a loopback address only"
    )


@dataclass(frozen=True, slots=True)
class Storage:
    state_dir: str = _setting("", "folder for what the server keeps; empty is the user's own, of the platform")


@dataclass(frozen=True, slots=True)
class Log:
    log_format: str = _setting(
        "console", "console is for people, json is one object a line", choices=("console", "json")
    )
    log_level: str = _setting(
        "info", "least severe level that is logged", choices=("debug", "info", "warning", "error")
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of a server. Made by hand it is not checked; `load` checks."""

    listen: Listen = Listen()
    access: Access = Access()
    session: Session = Session()
    admission: Admission = Admission()
    files: Files = Files()
    texts: Texts = Texts()
    model: Model = Model()
    worker: Worker = Worker()
    storage: Storage = Storage()
    log: Log = Log()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from; ``where`` is what the user would search for: ``--port``, ``ASR_WS_PORT``."""

    kind: Literal["default", "file", "environment", "flag"]
    where: str


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting. ``low`` and ``high`` are inclusive; ``choices`` is empty for free text.

    ``normalise`` takes a text, or each of several, raises ValueError for what is not of the ``form``, and its result is
    the value once written as text.
    """

    name: str
    group: str
    type: type[Value]
    default: Value
    help: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    form: str
    normalise: Callable[[str], object]

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def key(self) -> str:
        return f"[{self.group}].{self.name}"

    @property
    def allowed(self) -> str:
        """The limits for people, such as ``integer 0..65535``."""
        if self.choices:
            return ", ".join(self.choices[:-1]) + f" or {self.choices[-1]}"
        if self.form:
            return self.form
        if self.type is str:
            return "text, not empty" if self.default else "text"
        if self.type is bool:
            return "true or false"
        limits = f">= {self.low}" if self.high is None else f"{self.low}..{self.high}"
        return f"{'integer' if self.type is int else 'number'} {limits}"

    @staticmethod
    def shown(value: Value) -> str:
        """A value for people."""
        return (", ".join(value) if isinstance(value, tuple) else str(value)) or "none"

    def of(self, settings: Settings) -> Value:
        """This setting's value in ``settings``."""
        return cast(Value, getattr(getattr(settings, self.group), self.name))

    def read(self, raw: object, source: Source) -> Value:
        """Convert and check one given value; a file's must have the type already, elsewhere text is parsed.

        Several values are an array in a file, one each time the flag is given, and with commas between them in the
        environment.

        Raises:
            ConfigError: wrong type or out of range; names the source, the setting, the value and what is allowed.
        """
        readable: set[type] = {int, float} if self.type is float else {tuple, list} if self.several else {self.type}
        readable |= {str} if source.kind != "file" else set()
        if type(raw) in readable:  # exactly: True is no port
            with suppress(ValueError, OverflowError, KeyError):  # not a number; one that no float can hold; no word
                if self.type is bool and isinstance(raw, str):
                    raw = WORDS[raw.lower()]
                if self.several:
                    texts = raw.split(",") if isinstance(raw, str) else cast(Iterable[object], raw)
                    return tuple(self._text(text) for text in texts)
                number = cast(type[int | float | bool], self.type)
                value = self._text(raw) if self.type is str else number(cast(Any, raw))
                if self._allows(value):
                    return value
        given = ", ".join(map(str, raw)) if isinstance(raw, tuple) else raw  # a flag that was given several times
        raise ConfigError(f"{source.where}: {self.name} is {given!r}", f"allowed: {self.allowed}")

    @property
    def several(self) -> bool:
        return self.type not in (int, float, str, bool)

    def _text(self, raw: object) -> str:
        if not isinstance(raw, str) or (self.several and not raw.strip()) or "\0" in raw:
            raise ValueError(raw)
        return str(self.normalise(raw.strip() if self.several else raw))

    def _allows(self, value: int | float | str | bool) -> bool:
        if self.choices:
            return value in self.choices
        if isinstance(value, str):
            return value != "" or self.default == ""  # an empty host would listen on every interface
        if isinstance(value, bool):
            return True
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        return math.isfinite(value) and low <= value <= high


def _declared() -> Iterator[Setting]:
    for table in fields(Settings):
        group = getattr(DEFAULTS, table.name)
        types = get_type_hints(type(group))
        for each in fields(group):
            yield Setting(each.name, table.name, types[each.name], getattr(group, each.name), **each.metadata)


DEFAULTS: Final = Settings()
SETTINGS: Final = tuple(_declared())  # in the order of declaration
_BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
_TABLES: Final = {setting.group: f"[{setting.group}]" for setting in SETTINGS}
_KEYS: Final = {setting.name: setting.key for setting in SETTINGS}
_VARIABLES: Final = {setting.variable: setting for setting in SETTINGS}


@dataclass(frozen=True, slots=True)
class Loaded:
    """``sources`` has one entry per setting name; ``unknown_environment`` is ASR_WS_* variables that mean nothing."""

    settings: Settings
    sources: Mapping[str, Source]
    unknown_environment: tuple[str, ...]


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process whose settings are all given as options."""
    ours = {CONFIG_VARIABLE, *(setting.variable for setting in SETTINGS)}
    return {name: value for name, value in environ.items() if name not in ours}


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None) -> Loaded:
    """Merge what was given over the defaults.

    Args:
        flags: setting name -> value or its text; None counts as not given.
        environ: the process's; an empty variable counts as not set.
        file: TOML, grouped by table; None: the one that ``ASR_WS_CONFIG`` names, if any.
    Raises:
        ConfigError: the file cannot be read, or holds an unknown table or key; or a value is not allowed, or not
            beside another.
    """
    given: dict[str, dict[str, Value]] = {table: {} for table in _TABLES}
    sources = {setting.name: Source("default", "default") for setting in SETTINGS}
    for setting, raw, source in (*_in_file(file, environ), *_in_environment(environ), *_in_flags(flags)):
        given[setting.group][setting.name] = setting.read(raw, source)
        sources[setting.name] = source
    known = {*_VARIABLES, *NOT_SETTINGS}
    settings = replace(DEFAULTS, **{table: replace(getattr(DEFAULTS, table), **given[table]) for table in _TABLES})
    _check_together(settings, sources)
    return Loaded(
        settings,
        sources,
        tuple(sorted(name for name in environ if name.startswith(PREFIX) and name not in known)),
    )


def _check_together(settings: Settings, sources: Mapping[str, Source]) -> None:
    listen = settings.listen
    if settings.worker.fault_injection and not is_loopback(listen.host):
        raise ConfigError(
            f"{sources['fault_injection'].where}: not while listening on {listen.host}", "--host 127.0.0.1"
        )
    if sources["auth_token_file"].kind == "flag" and not settings.access.auth_token_file:
        raise ConfigError(
            "--auth-token-file: no file is named", "a variable that is not set? Without the option nobody needs a token"
        )
    for one, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(listen, one) and listen.tls_self_signed:
            raise ConfigError(
                f"{sources['tls_self_signed'].where}: not beside {_BY_NAME[one].flag}", "one certificate or the other"
            )
        if getattr(listen, one) and not getattr(listen, other):
            raise ConfigError(f"{sources[one].where}: not without {_BY_NAME[other].flag}", "give both")


def is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


_Given = tuple[Setting, object, Source]


def _in_file(file: Path | None, environ: Mapping[str, str]) -> Iterator[_Given]:
    if file is not None:
        named_by = "--config"
    elif environ.get(CONFIG_VARIABLE):
        file, named_by = Path(environ[CONFIG_VARIABLE]), CONFIG_VARIABLE
    else:
        return
    try:
        tables = tomllib.loads(file.read_text("utf-8-sig"))  # Windows editors like to write the mark
    except OSError as error:
        raise ConfigError(f"{named_by}: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{named_by}: {file} is not TOML: {error}") from error
    for table, keys in tables.items():
        if table not in _TABLES:
            raise ConfigError(f"{file}: unknown {table!r}", _hint(table, _KEYS | _TABLES))
        if not isinstance(keys, dict):
            raise ConfigError(f"{file}: {table} is {keys!r}", f"allowed: a table, [{table}]")
        for key, raw in keys.items():
            setting = _BY_NAME.get(key)
            if setting is None or setting.group != table:
                raise ConfigError(f"{file}: unknown {key!r} in [{table}]", _hint(key, _KEYS))
            yield setting, raw, Source("file", f"{file}:{setting.key}")


def _in_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    for variable, setting in _VARIABLES.items():
        if text := environ.get(variable):
            yield setting, text, Source("environment", variable)


def _in_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for name, raw in flags.items():
        if name not in _BY_NAME:
            raise ConfigError(f"unknown setting {name!r}", _hint(name, {name: name for name in _BY_NAME}))
        if raw is not None:
            yield _BY_NAME[name], raw, Source("flag", _BY_NAME[name].flag)


def _hint(name: str, shown: Mapping[str, str]) -> str:
    nearest = nearest_to(name, shown)
    return f"did you mean {shown[nearest]}?" if nearest else "asr-ws config lists every setting"


def nearest_to(name: str, known: Iterable[str] = (*_VARIABLES, *NOT_SETTINGS)) -> str | None:
    """The known name (by default: environment variable) that a misspelt one most likely means."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)
