"""What is pressed at a terminal, and the signals that are to end a program in order."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

if sys.platform == "win32":
    import msvcrt
else:
    import termios
    import tty

END: Final = "q"


@contextmanager
def signals(end: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and their like call ``end``. Not by the loop, which has none of them on Windows."""
    meant = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        meant.append(signal.SIGQUIT)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup says
            meant.append(signal.SIGHUP)
    before = {each: signal.signal(each, lambda *_: end()) for each in meant}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Keys:
    """What is pressed at the terminal, key by key; where standard input is none, line by line. Use it in a ``with``."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdin is not None and sys.stdin.isatty()

    def __enter__(self) -> Self:
        if sys.platform != "win32" and self._is_terminal:
            self._modes = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if sys.platform != "win32" and self._is_terminal:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._modes)

    def read(self) -> str:
        """Blocks. Returns: a letter; of a line the first one, or its end; `END` at the end of the input."""
        if sys.platform == "win32" and self._is_terminal:
            return {"\x03": END, "\x1a": END}.get(key := msvcrt.getwch(), key)  # Ctrl-C, Ctrl-Z
        try:
            # Not by the file object: its lock would be held when the interpreter ends.
            key = first = os.read(0, 1)
            while key and key != b"\n" and not self._is_terminal:
                key = os.read(0, 1)
        except OSError:  # it is closed, or the terminal is gone
            return END
        return END if first in (b"", b"\x04") else first.decode("latin-1")  # Ctrl-D
