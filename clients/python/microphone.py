"""Write down what this machine's microphone hears, by an asr_ws server.

    pip install 'asr-ws[mic]'
    python clients/python/microphone.py

Ctrl-C stops the microphone; what was said until then still comes. Once more: it ends at once. What may still change
stands on one line, at a terminal only; what will not, each on a line of its own. A token, if the server wants one, is
taken from ASR_WS_TOKEN.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable

from asr_ws.client import DEFAULT_URL, Event, Gap, Reconnected, Reconnecting, connect, is_lost
from asr_ws.client.microphone import Microphone
from asr_ws.errors import AsrError
from asr_ws.messages import Accepted, Busy, Dropped, Error, Final, Partial, Retry


class Screen:
    def __init__(self) -> None:
        self._is_busy = False

    def show(self, event: Event) -> None:
        match event:
            case Partial():
                show_live(event.stable + event.unstable)
            case Final(text=text) if text:
                show_live("")
                print(text, flush=True)
            case Busy() | Retry() if not self._is_busy:  # said once, until it takes something
                self._is_busy = True
                note(f"the server is busy ({event.reason}): it is asked again until it takes it")
            case Accepted():
                self._is_busy = False
            case Reconnecting():  # and connects again, and sends again what has no text
                note(f"not connected ({event.reason}): next try in {event.delay_s:.1f} s")
            case Reconnected():
                note("connected again")
            case Dropped() | Gap() if is_lost(event):
                note(f"no text from {event.audio_start_ms / 1000:.1f} to {event.audio_end_ms / 1000:.1f} s")
            case Error():
                note(f"{event.code}: {event.message} ({event.hint})")


def show_live(text: str) -> None:
    """In place of what stands on the terminal's last line; of a text that is too long, its end."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text[1 - shutil.get_terminal_size().columns :]}", end="", flush=True)


def note(text: str) -> None:
    show_live("")
    print(f"note: {text}", file=sys.stderr, flush=True)


def on_ctrl_c(act: Callable[[], None]) -> None:
    """The first one does that, which may be done at any moment; the next one what it always does."""

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, usual)
        act()

    usual = signal.signal(signal.SIGINT, handle)


async def write_down(url: str, device: int | str | None) -> None:
    microphone, screen = Microphone(device), Screen()
    async with connect(url, token=os.environ.get("ASR_WS_TOKEN") or None) as session:
        on_ctrl_c(microphone.stop)
        note(f"listening by {microphone.name!r}; Ctrl-C ends it")
        async for event in session.stream(microphone):
            screen.show(event)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write down what the microphone hears.")
    parser.add_argument("--url", default=DEFAULT_URL, help="where the server is (%(default)s)")
    parser.add_argument("--device", help="a microphone's number, or a part of its name")
    args = parser.parse_args()
    device = int(args.device) if (args.device or "").isdecimal() else args.device
    try:
        asyncio.run(write_down(args.url, device))
        return 0
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
