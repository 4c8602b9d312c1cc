"""The exception tree. Whose fault decides the class.

    AsrError
    ├── ProtocolError      the peer's: a message or frame that breaks asr-ws.v1
    ├── RequestError       the peer's: an HTTP request that cannot be done as it is
    │   └── IdempotencyMismatch  a key that it gave to something else before
    ├── UsageError         the user's: a setting, a file or an extra that is wrong or missing
    │   ├── ConfigError    a flag, environment variable or TOML value
    │   ├── MissingExtra   a command whose optional dependencies are not installed
    │   ├── UnknownModel   a name that is none, nor a folder's; a ModelError too
    │   └── NoAddress      what was given for a server's address is none; a ClientError too
    ├── ModelError         the world's: weights missing, unreachable, or not what they should be
    │   ├── ModelNotDownloaded
    │   ├── DownloadFailed
    │   └── HashMismatch
    ├── WorkerError        the world's: the process that owns the model
    │   ├── WorkerDied     it ended under this decode
    │   │   └── WorkerHung it took far too long over this decode, and was ended
    │   └── DecodeFailed   it lives, this one decode raised
    ├── StorageError       the world's: the folder that keeps jobs is full, out of reach or another server's
    ├── ServerFailed       a server that was started, as a process, and does not serve
    ├── MediaError         a file from which there is no audio, or no more: its own fault, but for lack of space
    └── ClientError        seen by a client program: the server refused, vanished, or broke the protocol

Ours are assertions. Overload is none of these: it is a value (`asr_ws.core.admission.Shed`).
Attributes hold the data, ``str()`` builds the sentence, ``code`` is the stable machine name.
"""

from __future__ import annotations

_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), "\ufffd")
_IN_LINES = {code: mark for code, mark in _CONTROLS.items() if chr(code) not in "\t\n"}


def printable(text: str, limit: int | None = 200, *, lines: bool = False) -> str:
    """What somebody else wrote, for a terminal: nothing in it commands that, and it is cut.

    Not by `str.isprintable`, which also takes the blanks and joiners of many scripts for unprintable.

    Args:
        limit: characters; None: all of them.
        lines: line ends and tabs may stay.
    """
    cut = text if limit is None or len(text) <= limit else f"{text[:limit]}…"
    return cut.translate(_IN_LINES if lines else _CONTROLS)


class AsrError(Exception):
    """Base of every error that this project raises on purpose."""

    code: str = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ProtocolError(AsrError):
    """A client broke the protocol; becomes an `error` event.

    Args:
        code: one of the protocol's error codes, such as ``bad_message``.
        close_code: what the session is closed with, where the error is fatal.
    """

    def __init__(self, code: str, message: str, hint: str = "", *, close_code: int | None = None) -> None:
        super().__init__(message, hint)
        self.code = code
        self.close_code = close_code


class RequestError(AsrError):
    """An HTTP request cannot be done as it is; becomes an answer with an `error` object.

    Args:
        status: of the answer, 4xx.
        param: the form's field that is wrong, where it is one.
    """

    def __init__(self, status: int, code: str, message: str, hint: str = "", *, param: str | None = None) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code
        self.param = param


class IdempotencyMismatch(RequestError):
    """A key was sent again with another request or other content."""

    def __init__(self) -> None:
        message = "this Idempotency-Key was sent with another file or other settings"
        super().__init__(422, "idempotency_mismatch", message, "take a new key for each job")


class UsageError(AsrError):
    code = "usage"


class ConfigError(UsageError):
    code = "config"


class MissingExtra(UsageError):
    """An optional dependency is not installed."""

    code = "missing_extra"

    def __init__(self, command: str, extra: str) -> None:
        super().__init__(f"{command} needs the optional dependencies {extra!r}", f"pip install 'asr-ws[{extra}]'")


def not_imported(error: ImportError, command: str, extra: str) -> AsrError:
    """What it means where ``command`` needs a module of ``extra``."""
    if isinstance(error, ModuleNotFoundError):
        return MissingExtra(command, extra)
    hint = f"pip install --force-reinstall 'asr-ws[{extra}]', or is there no memory for it?"
    return AsrError(f"{command} needs a library that cannot be loaded: {error}", hint)


class ModelError(AsrError):
    code = "model"


class ModelNotDownloaded(ModelError):
    """The name is known, its files are not on this machine."""

    code = "model_not_downloaded"

    def __init__(self, name: str) -> None:
        super().__init__(f"model {name!r} is not downloaded", f"run: asr-ws pull {name}")
        self.name = name


class UnknownModel(ModelError, UsageError):
    code = "unknown_model"


class DownloadFailed(ModelError):
    code = "download_failed"


class HashMismatch(ModelError):
    """A file is not the one it should be; it was not put in place."""

    code = "hash_mismatch"

    def __init__(self, file: str, expected: str, actual: str) -> None:
        super().__init__(
            f"{file} has SHA-256 {actual}, expected {expected}", "the file was discarded; try again or another --source"
        )
        self.file, self.expected, self.actual = file, expected, actual


class WorkerError(AsrError):
    code = "worker"


class WorkerDied(WorkerError):
    """The worker process ended while it decoded; why is in the log, and known only later."""

    code = "worker_crashed"

    def __init__(self, message: str = "the worker died") -> None:
        super().__init__(message)


class WorkerHung(WorkerDied):
    code = "worker_hung"

    def __init__(self) -> None:
        super().__init__("the worker hung")


class DecodeFailed(WorkerError):
    code = "decode_failed"


class StorageError(AsrError):
    """What was to be kept is not, or what is kept cannot be read. Its message is for who runs the server.

    Args:
        code: ``storage_full``, ``storage_unavailable`` or ``storage_in_use``.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


class MediaError(AsrError):
    """Of an uploaded file there is no audio, or no more.

    Args:
        code: one of `asr_ws.media.wire.Reason`, ``media_crashed`` or ``media_hung``.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


class ServerFailed(AsrError):
    """A server that this program started does not serve; the hint is the end of its log."""

    code = "server_failed"


class ClientError(AsrError):
    code = "client"


class NoAddress(ClientError, UsageError):
    code = "bad_address"
