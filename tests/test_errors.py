from __future__ import annotations

import pytest

from asr_ws.errors import AsrError, MissingExtra, not_imported, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;PWNED\x1b\\", "\ufffd]0;PWNED\ufffd\\"),
        ("\x9b2J\x7f\r\n\t", "\ufffd2J\ufffd\ufffd\ufffd\ufffd"),
        ("می\u200cخواهم\u3000«\xa0ok\xa0»", "می\u200cخواهم\u3000«\xa0ok\xa0»"),
        ("a" * 200, "a" * 200),
        ("a" * 201, "a" * 200 + "…"),
    ],
)
def test_what_somebody_else_wrote_commands_no_terminal_and_is_cut(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_stay_lines_where_there_may_be_some() -> None:
    assert printable("a\n\tb\r\x1b", None, lines=True) == "a\n\tb\ufffd\ufffd"


def test_a_library_that_cannot_be_loaded_is_no_missing_package() -> None:
    assert isinstance(not_imported(ModuleNotFoundError("no av"), "resampling", "server"), MissingExtra)
    error = not_imported(ImportError("libav.so: failed to map"), "resampling", "server")
    assert type(error) is AsrError
    assert error.message == "resampling needs a library that cannot be loaded: libav.so: failed to map"
