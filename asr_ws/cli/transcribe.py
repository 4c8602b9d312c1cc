"""`asr-ws transcribe`: files through a running server, as text, subtitles or events."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from asr_ws import messages
from asr_ws.cli.client_options import for_clients
from asr_ws.client import Event, Gap, Reconnecting, SessionFailed, Transcript, Unreachable, connect, is_lost
from asr_ws.client.connection import CONNECTION_LOST
from asr_ws.client.sources import open_source
from asr_ws.errors import ClientError

LONG_MS = 600_000  # a wait that a server names when it does not expect to decode anything: no restart takes so long
MAX_CUE_CHARS = 84  # two lines of 42, as broadcasters have it
SENTENCE_ENDS = (".", "?", "!", "。", "？", "！")


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
    help="Of what is printed.",
)
def transcribe(
    files: tuple[Path, ...],
    url: str,
    token: str | None,
    language: str | None,
    realtime: bool,
    as_json: bool,
    format_: str,
) -> None:
    """Print the text of each FILE.

    Exit code 1 when a file could not be read, or a part of it came to no text.
    """
    if as_json and format_ != "text":
        raise click.UsageError("--json prints events; --format does not go with it")
    fields = {"token": token, "language": language, "words": format_ != "text"}
    fields["partials"] = as_json and realtime
    codes = []
    for n, file in enumerate(files, 1):
        name = f"{file.name} ({n} of {len(files)})" if len(files) > 1 else file.name
        try:
            codes.append(_transcribe_one(file, name, url, fields, realtime, as_json, format_))
        except Unreachable:  # nor will it be there for the next file
            codes.append(1)
            break
    sys.exit(max(codes))


def _transcribe_one(
    file: Path, name: str, url: str, fields: dict[str, Any], realtime: bool, as_json: bool, format_: str
) -> int:
    """Returns: the exit code. Raises: Unreachable: no server is there, which was said."""
    transcript = Transcript()
    try:
        # Before the session, so that a wrong file is said even where no server is.
        duration_s = open_source(file, messages.AudioFormat()).duration_s
        with _bar(name, duration_s, shown=sys.stderr.isatty() and not as_json) as advance:
            show = print_event if as_json else advance
            asyncio.run(_run(file, url, fields, realtime, show, transcript))
    except ClientError as error:
        where = f"{file}: " if isinstance(error, SessionFailed) else ""
        _say(f"error: {where}{error.message}", error.hint)
        if isinstance(error, Unreachable):
            raise
    finally:  # what came before an error, or before Ctrl-C, is text all the same
        if transcript.finals and not as_json:
            click.echo(FORMATS[format_](transcript))
        if transcript.done is None and transcript.finals:
            _say(f"warning: {file}: the text ends at {_clock(transcript.finals[-1].audio_end_ms, '.')}")
    return int(transcript.done is None or bool(transcript.done.refused_ms))


async def _run(
    file: Path,
    url: str,
    fields: dict[str, Any],
    realtime: bool,
    show: Callable[[Event], None],
    transcript: Transcript,
) -> None:
    was_busy = has_failed = False
    async with connect(url, **fields) as session:
        async for event in session.stream(file, realtime=realtime):
            show(event)
            transcript.receive(event)
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
                case messages.Error(fatal=True):
                    has_failed = True  # it is raised; what comes to no text by it needs no word of its own
                case _ if not has_failed:
                    complain(event, f"{file}: ")


def complain(event: Event, where: str = "") -> None:
    """Say on stderr what came to no text, or was wrong; not what ends the session, which is raised too."""
    match event:
        case messages.Dropped() | Gap() if is_lost(event):
            span = " to ".join(_clock(ms, ".") for ms in (event.audio_start_ms, event.audio_end_ms))
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
    # Not stdout's redirection: it would move to stderr what a pipe waits for.
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task(name, total=duration_s)

        def advance(event: Event) -> None:
            if isinstance(event, messages.Final | messages.Dropped | Gap):
                done_s = max(progress.tasks[task].completed, event.audio_end_ms / 1000)  # those retried come late
                progress.update(task, completed=done_s)

        yield advance


def print_event(event: Event) -> None:
    said = {"type": event.type, **event.fields} if isinstance(event, messages.Unknown) else event
    click.echo(msgspec.json.encode(said))


def as_srt(transcript: Transcript) -> str:
    return "\n".join(
        f"{number}\n{_clock(start_ms, ',')} --> {_clock(end_ms, ',')}\n{text}\n"
        for number, (start_ms, end_ms, text) in enumerate(_cues(transcript), 1)
    )


def as_vtt(transcript: Transcript) -> str:
    cues = (f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n" for start, end, text in _cues(transcript))
    return "\n".join(["WEBVTT\n", *cues])


def _cues(transcript: Transcript) -> Iterable[tuple[int, int, str]]:
    """Start, end and text: an utterance, cut at its sentences and where it is too long to be read at a glance."""
    for final in transcript.finals:
        cue: list[messages.FinalWord] = []
        for word in final.words or ():
            text = "".join(said.word for said in [*cue, word]).strip()
            if cue and (len(text) > MAX_CUE_CHARS or cue[-1].word.endswith(SENTENCE_ENDS)):
                yield _cue(cue)
                cue = []
            cue.append(word)
        if cue:
            yield _cue(cue)


def _cue(words: list[messages.FinalWord]) -> tuple[int, int, str]:
    return words[0].start_ms, words[-1].end_ms, "".join(word.word for word in words).strip()


def _clock(total_ms: int, decimal: str) -> str:
    seconds, ms = divmod(total_ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{decimal}{ms:03}"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "text": lambda transcript: transcript.text,
    "srt": as_srt,
    "vtt": as_vtt,
}
