"""`asr-ws demo`: the whole of it on this machine: fetch a model, serve it, stream real speech, show every event."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Final

import click

from asr_ws.cli.options import require_server
from asr_ws.cli.pull import pull_with_bar
from asr_ws.config import DEFAULTS, Settings
from asr_ws.errors import ModelError, ModelNotDownloaded

if TYPE_CHECKING:
    from asr_ws.server.app import App

MODEL: Final = "tiny.en"
CLIP: Final = "jfk.wav"
SAID: Final = (
    "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."
)
MAX_WORD_ERROR_RATE: Final = 0.2
KILLED_AT: Final = 2  # partials: in mid-sentence


@click.command()
@click.option("--once", is_flag=True, help="End after the recording: exit code 0, or 1 when the text is wrong.")
@click.option("--kill", is_flag=True, help="Kill the recognizer in mid-sentence, by SIGSEGV; the text still arrives.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULTS.listen.port, show_default=True, help="0 takes a free one."
)
def demo(once: bool, kill: bool, port: int) -> None:
    """Stream a bundled recording of human speech to a server on this machine, in real time, and show every event."""
    require_server("asr-ws demo")
    from asr_ws.models import resolve
    from asr_ws.server.app import run

    try:
        resolve(MODEL)
    except ModelNotDownloaded:
        pull_with_bar(MODEL, "index")
    settings: Settings = replace(
        DEFAULTS,
        listen=replace(DEFAULTS.listen, port=port),
        model=replace(DEFAULTS.model, model=MODEL),
        log=replace(DEFAULTS.log, log_level="warning"),
    )

    async def visit(app: App) -> int | None:
        right = await _stream_clip(app, kill=kill)
        if once:
            return 0 if right else 1
        click.echo(f"\nThe server stays up: {app.listener.url}/ (Ctrl-C stops it). Try your own recording:")
        click.echo(f"  asr-ws transcribe FILE --url {app.url}")
        return None

    sys.exit(run(settings, visitor=visit))


async def _stream_clip(app: App, *, kill: bool) -> bool:
    """Whether the text is right, and the recognizer was killed if it was to be."""
    from asr_ws import messages
    from asr_ws.cli.transcribe import print_event
    from asr_ws.client import Transcript, connect
    from asr_ws.testing.wer import word_errors

    click.echo(f"\nloading {MODEL} ...")
    if not await app.dispatcher.wait_loaded():
        raise ModelError(f"{MODEL} cannot be loaded: {app.supervisor.last_failure}")
    click.echo(f"streaming {CLIP} (11 s, in real time) to {app.url}")
    transcript, n_partials = Transcript(), 0
    with as_file(files("asr_ws") / "assets" / "speech" / CLIP) as clip:
        async with connect(app.url, language="en") as session:
            async for event in session.stream(clip, realtime=True):
                print_event(event)
                transcript.receive(event)
                n_partials += isinstance(event, messages.Partial)
                if kill and n_partials >= KILLED_AT and (pid := app.supervisor.pid) is not None:
                    os.kill(pid, signal.SIGSEGV)  # on Windows that ends it too
                    click.echo(f"--- killed the recognizer, process {pid}, by SIGSEGV")
                    kill = False
    errors = word_errors(SAID, transcript.text)
    click.echo(f"\nsaid:  {SAID}\nheard: {transcript.text}")
    click.echo(f"word error rate {errors.rate:.1%} ({errors.errors} of {errors.words} words)")
    if app.supervisor.n_restarts:
        click.echo(f"the recognizer was replaced {app.supervisor.n_restarts} time(s); no connection was closed")
    if kill:
        click.echo("there was no moment at which to kill the recognizer")
    return errors.rate <= MAX_WORD_ERROR_RATE and not kill
