"""`asr-ws transcribe`: files through a running server, as text, subtitles or events."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from asr_ws import messages, subtitles
from asr_ws.cli.client_options import for_clients
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

LONG_MS = 600_000  # a wait that a server names when it does not expect to decode anything: no restart takes so long


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@for_clients
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
        with _writing(output_dir):
            output_dir.mkdir(parents=True, exist_ok=True)
    fields = {"token": token, "language": language, "words": format_ != "text"}
    fields["partials"] = as_json and realtime
    codes = []
    for n, (file, path) in enumerate(zip(files, paths, strict=True), 1):
        name = f"{file.name} ({n} of {len(files)})" if len(files) > 1 else file.name
        output = _Output(file, as_json, format_, path, has_heading=len(files) > 1)
        try:
            codes.append(_transcribe_one(file, name, url, fields, realtime, output))
        except Unreachable:  # nor will it be there for the next file
            codes.append(1)
            for other in files[n:]:
                _say(f"error: {other}: not tried")
            break
    sys.exit(max(codes))


class _Output:
    """What is printed of a file, or written for it.

    A line of text is printed as soon as all that began before it has its outcome: a refused utterance comes late.
    """

    def __init__(self, file: Path, as_json: bool, format_: str, path: Path | None, *, has_heading: bool) -> None:
        self.transcript = Transcript()
        self.as_json = as_json
        self._file = file
        self._whole = FORMATS[format_][1]
        self._path = path
        self._is_by_line = format_ == "text" and path is None and not as_json
        self._has_heading = has_heading
        self._begun: dict[str, messages.Final | None] = {}  # in the order of the audio; None: no outcome yet

    def receive(self, event: Event) -> None:
        self.transcript.receive(event)
        if self.as_json:
            print_event(event, file=str(self._file))
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
            self._print(final)

    def _print(self, final: messages.Final) -> None:
        if self._is_by_line and final.text:
            heading = f"==> {self._file} <==\n" if self._has_heading else ""
            self._has_heading = False
            print(heading + final.text, flush=True)  # not by click, which goes around a bar on Windows

    def close(self) -> None:
        """What came before an error, or before Ctrl-C, is text all the same."""
        for final in filter(None, self._begun.values()):
            self._print(final)
        if self._is_by_line or self.as_json or not (self.transcript.done or self.transcript.finals):
            return
        whole = self._whole(self.transcript)
        if self._path is None:
            click.echo(whole, nl=False)
            return
        with _writing(self._path):
            self._path.write_text(whole, "utf-8")


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of a file."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"--output-dir: cannot write {path}: {error.strerror}") from error


def _transcribe_one(file: Path, name: str, url: str, fields: dict[str, Any], realtime: bool, output: _Output) -> int:
    """Returns: the exit code. Raises: Unreachable: no server is there, which was said."""
    transcript = output.transcript
    try:
        # Before the session, so that a wrong file is said even where no server is.
        duration_s = open_source(file, messages.AudioFormat()).duration_s
        with _bar(name, duration_s, shown=sys.stderr.isatty() and not output.as_json) as advance:
            asyncio.run(_run(file, url, fields, realtime, advance, output))
    except ClientError as error:
        where = "" if isinstance(error, Unreachable) or error.message.startswith(f"{file}: ") else f"{file}: "
        _say(f"error: {where}{error.message}", error.hint)
        if isinstance(error, Unreachable):
            raise
    finally:
        output.close()
        if transcript.done is None and transcript.finals:
            _say(f"warning: {file}: the text ends at {clock(transcript.finals[-1].audio_end_ms)}")
    if transcript.done is not None and not transcript.text and not transcript.unfinished:
        _say(f"note: no speech was heard in {file}")
    return int(transcript.done is None or bool(transcript.done.refused_ms))


async def _run(
    file: Path,
    url: str,
    fields: dict[str, Any],
    realtime: bool,
    advance: Callable[[Event], None],
    output: _Output,
) -> None:
    was_busy = was_away = has_failed = False
    async with connect(url, **fields) as session:
        async for event in session.stream(file, realtime=realtime):
            advance(event)
            output.receive(event)
            match event:
                case messages.Busy(reason="unavailable") if event.estimated_wait_ms > LONG_MS:
                    raise ClientError("the server has no recognizer, and does not expect one", "its log says why")
                case messages.Busy() | messages.Retry() if not was_busy and event.reason != CONNECTION_LOST:
                    was_busy = True
                    why = "the file is ahead of the server" if event.reason == "fair_share" else "the server is busy"
                    _say(f"note: {file}: {why} ({event.reason}); it is asked again by itself")
                case Reconnecting(attempt=1 | 4 as attempt):
                    again = "what has no text is sent again" if attempt == 1 else "still tried again"
                    _say(f"note: {file}: the connection is gone ({event.reason}); {again}")
                    was_away = True
                case Reconnected() if was_away:
                    was_away = False
                    _say(f"note: {file}: connected again")
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
            _say(f"warning: {where}no text from {span}{reason}")
        case messages.Error(fatal=False):
            _say(f"warning: {where}{event.utterance or 'session'}: {event.code}: {event.message}", event.hint)


def _say(line: str, hint: str = "") -> None:
    click.echo(line + (f"\nhint: {hint}" if hint else ""), err=True)


@contextmanager
def _bar(name: str, duration_s: float | None, *, shown: bool) -> Iterator[Callable[[Event], None]]:
    """A bar on stderr, by the seconds of audio whose fate the events tell."""
    if not shown:
        yield lambda event: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    # What a terminal shows goes above the bar, by its way, and a line remains one; what a pipe waits for must not.
    above, console = sys.stdout.isatty(), Console(stderr=True, soft_wrap=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=above) as progress:
        task = progress.add_task(name, total=duration_s)

        def advance(event: Event) -> None:
            if isinstance(event, messages.Final | messages.Dropped | Gap):
                done_s = max(progress.tasks[task].completed, event.audio_end_ms / 1000)  # those retried come late
                progress.update(task, completed=done_s)

        yield advance


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
