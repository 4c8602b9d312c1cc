"""`asr-ws transcribe`: files through a running server, as text, subtitles or events."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from asr_ws import messages, subtitles
from asr_ws.cli.client_options import for_clients
from asr_ws.cli.files import LONG_MS, NO_RECOGNIZER, Bar, Output, bar, complaining, say, say_end, writing
from asr_ws.cli.upload import upload
from asr_ws.client import (
    CONNECTION_LOST,
    Event,
    Gap,
    Reconnected,
    Reconnecting,
    Transcript,
    Unreachable,
    connect,
    is_lost,
)
from asr_ws.client.sources import open_source
from asr_ws.errors import ClientError, UsageError
from asr_ws.subtitles import Said, clock


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@for_clients
@click.option("--http", "by_http", is_flag=True, help="Send the file itself: any format that the server reads.")
@click.option("--realtime", is_flag=True, help="Send as fast as it was spoken, not as fast as the server takes it.")
@click.option("--json", "as_json", is_flag=True, help="Print every event, one JSON object a line.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "srt", "vtt"]),
    default="text",
    show_default=True,
    help="Of what is printed, or written.",
)
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a file there for each FILE, such as its name with .srt, and print nothing.",
)
def transcribe(
    files: tuple[Path, ...],
    url: str,
    token: str | None,
    language: str | None,
    by_http: bool,
    realtime: bool,
    as_json: bool,
    format_: str,
    output_dir: Path | None,
) -> None:
    """Print the text of each FILE, a line for each utterance.

    Exit code 1 when a file could not be read, or a part of it came to no text.
    """
    if as_json and (format_ != "text" or output_dir is not None):
        raise click.UsageError("--json prints events; --format and --output-dir do not go with it")
    if by_http and realtime:
        raise click.UsageError("--http sends the whole file; --realtime does not go with it")
    if output_dir is None and format_ != "text" and len(files) > 1:
        raise UsageError(f"--format {format_} of several files", "--output-dir DIR writes one for each of them")
    paths = [output_dir and output_dir / f"{file.stem}.{FORMATS[format_][0]}" for file in files]
    if output_dir is not None:
        stems = Counter(file.stem.casefold() for file in files)  # Windows and macOS take A.txt for a.txt
        if twice := [str(file) for file in files if stems[file.stem.casefold()] > 1]:
            raise UsageError(f"--output-dir {output_dir}: one file would be written for {' and '.join(twice)}")
        inputs = {_identity(file): file for file in files if os.path.exists(file)}
        if lost := [
            str(inputs[it]) for path in paths if path and os.path.exists(path) and (it := _identity(path)) in inputs
        ]:
            raise UsageError(f"--output-dir {output_dir}: {' and '.join(lost)} would be overwritten")
        with writing(output_dir):
            output_dir.mkdir(parents=True, exist_ok=True)
    fields = {"token": token, "language": language, "words": format_ != "text"}
    fields["partials"] = as_json and realtime
    codes = []
    for n, (file, path) in enumerate(zip(files, paths, strict=True), 1):
        name = f"{file.name} ({n} of {len(files)})" if len(files) > 1 else file.name
        try:
            if by_http:
                output = Output(file, as_json, format_, path, has_heading=len(files) > 1)
                codes.append(upload(name, url, token, language, output))
            else:
                heard = _Output(file, as_json, format_, path, has_heading=len(files) > 1)
                codes.append(_transcribe_one(file, name, url, fields, realtime, heard))
        except Unreachable:  # nor will it be there for the next file
            codes.append(1)
            for other in files[n:]:
                say(f"error: {other}: not tried")
            break
    sys.exit(max(codes))


class _Output(Output):
    """A line of text is printed as soon as all that began before it has its outcome: a refused one comes late."""

    def __init__(self, file: Path, as_json: bool, format_: str, path: Path | None, *, has_heading: bool) -> None:
        super().__init__(file, as_json, format_, path, has_heading=has_heading)
        self.transcript = Transcript()
        self._begun: dict[str, messages.Final | None] = {}  # in the order of the audio; None: no outcome yet

    def receive(self, event: Event) -> None:
        self.transcript.receive(event)
        if self.as_json:
            print_event(event, file=str(self.file))
        match event:
            case messages.SpeechStarted():
                self._begun[event.utterance] = None
            case messages.Final():
                self._begun[event.utterance] = event
            case messages.Error() if not is_lost(event):
                pass  # it ends no utterance
            case messages.Dropped() | messages.Error():
                self._begun.pop(str(event.utterance), None)
        while self._begun and (final := self._begun[first := next(iter(self._begun))]) is not None:
            del self._begun[first]
            self.print_line(final.text)

    def close(self) -> None:
        """What came before an error, or before Ctrl-C, is text all the same."""
        for final in filter(None, self._begun.values()):
            self.print_line(final.text)
        if self.transcript.done or self.transcript.finals:
            self.give(FORMATS[self.format][1](self.transcript))


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of a file."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _transcribe_one(file: Path, name: str, url: str, fields: dict[str, Any], realtime: bool, output: _Output) -> int:
    """Returns: the exit code. Raises: Unreachable: no server is there, which was said."""
    transcript = output.transcript
    try:
        with complaining(file):
            # Before the session, so that a wrong file is said even where no server is.
            duration_s = open_source(file, messages.AudioFormat()).duration_s
            with bar(shown=sys.stderr.isatty() and not output.as_json) as progress:
                progress.begin(name, duration_s)
                asyncio.run(_run(file, url, fields, realtime, progress, output))
    finally:
        output.close()
        if transcript.done is None and transcript.finals:
            say_end(file, transcript.finals[-1].audio_end_ms)
    if transcript.done is not None and not transcript.text and not transcript.unfinished:
        say(f"note: no speech was heard in {file}")
    return int(transcript.done is None or bool(transcript.done.refused_ms))


async def _run(
    file: Path,
    url: str,
    fields: dict[str, Any],
    realtime: bool,
    progress: Bar,
    output: _Output,
) -> None:
    was_busy = was_away = has_failed = False
    async with connect(url, **fields) as session:
        async for event in session.stream(file, realtime=realtime):
            if isinstance(event, messages.Final | messages.Dropped | Gap):
                progress.advance(event.audio_end_ms / 1000)
            output.receive(event)
            match event:
                case messages.Busy(reason="unavailable") if event.estimated_wait_ms > LONG_MS:
                    raise ClientError(*NO_RECOGNIZER)
                case messages.Busy() | messages.Retry() if not was_busy and event.reason != CONNECTION_LOST:
                    was_busy = True
                    why = "the file is ahead of the server" if event.reason == "fair_share" else "the server is busy"
                    say(f"note: {file}: {why} ({event.reason}); it is asked again by itself")
                case Reconnecting(attempt=1 | 4 as attempt):
                    again = "what has no text is sent again" if attempt == 1 else "still tried again"
                    say(f"note: {file}: the connection is gone ({event.reason}); {again}")
                    was_away = True
                case Reconnected() if was_away:
                    was_away = False
                    say(f"note: {file}: connected again")
                case messages.Error(fatal=True):
                    has_failed = True  # it is raised; what comes to no text by it needs no word of its own
                case _ if not has_failed:
                    complain(event, f"{file}: ")


def complain(event: Event, where: str = "") -> None:
    """Say on stderr what came to no text, or was wrong; not what ends the session, which is raised too."""
    match event:
        case messages.Dropped() | Gap() if is_lost(event):
            span = " to ".join(clock(ms) for ms in (event.audio_start_ms, event.audio_end_ms))
            reason = f": {event.reason}" if isinstance(event, messages.Dropped) else ""
            say(f"warning: {where}no text from {span}{reason}")
        case messages.Error(fatal=False):
            say(f"warning: {where}{event.utterance or 'session'}: {event.code}: {event.message}", event.hint)


def print_event(event: Event, **context: str) -> None:
    """``context``: further fields."""
    said = {"type": event.type, **event.fields} if isinstance(event, messages.Unknown) else msgspec.to_builtins(event)
    click.echo(msgspec.json.encode(said | context))


def as_text(transcript: Transcript) -> str:
    return "".join(f"{final.text}\n" for final in transcript.finals if final.text)


def as_srt(transcript: Transcript) -> str:
    return subtitles.srt(_cues(transcript))


def as_vtt(transcript: Transcript) -> str:
    return subtitles.vtt(_cues(transcript))


def _cues(transcript: Transcript) -> Iterator[Said]:
    for final in transcript.finals:
        yield from subtitles.cues(Said(word.word, word.start_ms, word.end_ms) for word in final.words or ())


FORMATS: dict[str, tuple[str, Callable[[Transcript], str]]] = {  # suffix, content of the file
    "text": ("txt", as_text),
    "srt": ("srt", as_srt),
    "vtt": ("vtt", as_vtt),
}
