"""`asr-ws transcribe --http`: the file itself goes to the server, which reads more formats than a client does."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import cast

import click
import msgspec

from asr_ws.cli.files import LONG_MS, NO_RECOGNIZER, Output, bar, complaining, say, say_end
from asr_ws.client.http import Delta, Done, Lost, Other, Refused, ResponseFormat, Sending, transcribe_file
from asr_ws.errors import ClientError


def upload(name: str, url: str, token: str | None, language: str | None, output: Output) -> int:
    """Returns: the exit code. Raises: Unreachable: no server is there, which was said."""
    file = output.file
    lines: list[str] = []
    end_s: float | None = None
    done: Done | None = None
    was_busy = False
    # Whoever wants the events wants all that there is to know.
    asked = "verbose_json" if output.as_json else output.format
    events = transcribe_file(file, url, token=token, language=language, response_format=cast(ResponseFormat, asked))
    try:
        with complaining(file), bar(shown=sys.stderr.isatty() and not output.as_json) as progress, closing(events):
            for event in events:
                if output.as_json and isinstance(event, Delta | Other | Done):
                    click.echo(msgspec.json.encode(event.event | {"file": str(file)}))
                match event:
                    case Sending(0, size_bytes):
                        progress.begin(f"sending {name}", size_bytes)
                    case Sending(sent_bytes, size_bytes) if sent_bytes < size_bytes:
                        progress.advance(sent_bytes)
                    case Sending():
                        progress.begin(name, None)
                    case Delta(text, end_s, duration_s):
                        progress.advance(end_s or 0.0, duration_s)
                        if text:
                            lines.append(text)
                            output.print_line(text)
                    case Refused("unavailable", _, estimated_wait_ms) if estimated_wait_ms > LONG_MS:
                        raise ClientError(*NO_RECOGNIZER)
                    case Refused(reason) if not was_busy:
                        was_busy = True
                        say(f"note: {file}: the server is busy ({reason}); it is asked again by itself")
                    case Lost(reason):
                        say(f"note: {file}: the connection is gone ({reason}); the file is sent again")
                    case Done():
                        if output.format != "text" and not isinstance(event.result, str):
                            raise ClientError("the server gives no subtitles", "is it of the same version?")
                        done = event
                        if not lines and event.text:
                            lines.append(event.text)
                            output.print_line(event.text)
    finally:  # what came before an error, or before Ctrl-C, is text all the same
        if output.format == "text" and (lines or done):
            output.give("".join(f"{line}\n" for line in lines))
        elif done is not None:
            output.give(done.result)
        if done is None and lines and output.format == "text" and end_s is not None:
            say_end(file, round(end_s * 1000))
    if done is not None and not done.text:
        say(f"note: no speech was heard in {file}")
    return int(done is None)
