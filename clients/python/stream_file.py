"""Stream a sound file to an asr_ws server, and see the text come.

    python clients/python/stream_file.py asr_ws/assets/speech/jfk.wav --realtime

What may still change stands on one line, at a terminal only; what will not, each on a line of its own. A token, if the
server wants one, is taken from ASR_WS_TOKEN. Exit code 1: some of it came to no text.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys

from asr_ws.client import DEFAULT_URL, Event, Gap, Reconnected, Reconnecting, connect, is_lost
from asr_ws.client.sources import open_source
from asr_ws.errors import AsrError
from asr_ws.messages import Accepted, AudioFormat, Busy, Done, Dropped, Error, Final, Partial, Retry


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


async def stream(file: str, url: str, realtime: bool) -> int:
    """Returns: milliseconds of speech that came to no text."""
    open_source(file, AudioFormat())  # a wrong file is said before a server is asked
    screen = Screen()
    async with connect(url, token=os.environ.get("ASR_WS_TOKEN") or None) as session:
        async for event in session.stream(file, realtime=realtime):
            screen.show(event)
            if isinstance(event, Done):
                return event.refused_ms
    raise AssertionError("`done` is the last event, or it ends by an error")


def main() -> int:
    parser = argparse.ArgumentParser(description="Stream a sound file to an asr_ws server.")
    parser.add_argument("file", help="WAV, FLAC, OGG or MP3")
    parser.add_argument("--url", default=DEFAULT_URL, help="where the server is (%(default)s)")
    parser.add_argument("--realtime", action="store_true", help="send as fast as it was spoken")
    args = parser.parse_args()
    try:
        return int(asyncio.run(stream(args.file, args.url, args.realtime)) > 0)
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
