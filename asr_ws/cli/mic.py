"""`asr-ws mic`: what somebody says, as text while he says it.

Finals go to standard output, a line each. Where that is a terminal, one line below them is drawn over and over: the
level, what is going on, and the text that may still change. All else goes to standard error.
"""

from __future__ import annotations

import asyncio
import math
import re
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from asr_ws import messages
from asr_ws.cli.client_options import for_clients
from asr_ws.cli.files import say, shown
from asr_ws.cli.keys import END, Keys, signals
from asr_ws.cli.transcribe import complain, print_event
from asr_ws.client import Event, Gap, Reconnected, Reconnecting, Session, connect, is_lost
from asr_ws.client.connection import retry_delay_s
from asr_ws.client.microphone import Microphone, devices
from asr_ws.errors import ClientError, printable

DRAW_S: Final = 0.1
BEHIND_S: Final = 1.0  # what is sent and not acknowledged may be as much: less is no news
METER: Final = 8  # cells ...
CELL_DB: Final = 6  # ... of so much; all of them are full scale
TALK: Final = (" ", "\n", "\r")
ERASE: Final = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))


@click.command()
@for_clients
@click.option("--device", metavar="NAME|INDEX", help="Microphone: its number, or a part of its name.")
@click.option("--devices", "are_listed", is_flag=True, help="List the microphones, and end.")
@click.option("--push-to-talk", is_flag=True, help="Space or Enter begins an utterance, and ends it.")
@click.option("--json", "as_json", is_flag=True, help="Print every event, one JSON object a line.")
def mic(
    url: str,
    token: str | None,
    language: str | None,
    device: str | None,
    are_listed: bool,
    push_to_talk: bool,
    as_json: bool,
) -> None:
    """Print what is said into this machine's microphone.

    Ctrl-C ends it: the last words still get their text. A second Ctrl-C does not wait for it.
    """
    if are_listed:
        _list_devices(as_json)
        return
    microphone = Microphone(int(device) if device is not None and device.isdecimal() else device)
    microphone.is_muted = push_to_talk
    fields: dict[str, Any] = {"token": token, "language": language, "audio": microphone.audio}
    if push_to_talk:
        fields["endpointing"] = {"mode": "manual"}
    dictation = _Dictation(microphone, _Screen(is_live=not as_json), as_json)
    try:
        with signals(dictation.end):
            if push_to_talk:
                with Keys() as keys:
                    asyncio.run(dictation.run(url, fields, keys))
            else:
                asyncio.run(dictation.run(url, fields))
    except asyncio.CancelledError:
        raise click.Abort from None
    if microphone.n_overflows:
        click.echo(f"warning: audio was lost {microphone.n_overflows} times: this machine was too slow", err=True)
    sys.exit(int(dictation.has_failed))


def _list_devices(as_json: bool) -> None:
    there = devices()
    if not there:
        click.echo("no microphone", err=True)
    for device in there:
        if as_json:
            click.echo(msgspec.json.encode(device))
        else:
            click.echo(f"{'*' if device.is_default else ' '} {device.index:3}  {device.name}  {device.rate} Hz")


class _Screen:
    def __init__(self, *, is_live: bool) -> None:
        self._console = Console(highlight=False)
        self.is_live = is_live and self._console.is_terminal and not self._console.is_dumb_terminal
        self._said = ""

    def draw(self, meter: Text, state: str, text: Text) -> None:
        """One line, without scrolling; where it cannot be, a new state is a line on stderr."""
        if not self.is_live:
            kind = re.sub(r"\d+", "", state)
            if kind != self._said:
                click.echo(state, err=True)
            self._said = kind
            return
        head = Text.assemble(meter, " ", (f"{state:9}", "bold"), "  ")
        room = max(0, self._console.width - 1 - head.cell_len)
        while (excess := text.cell_len - room) > 0:  # the end is what is new
            text = text[math.ceil(excess / 2) :]
        with self._console:  # one write: it does not flicker
            self._console.control(ERASE)
            self._console.print(head + text, end="", no_wrap=True, overflow="crop")

    def clear(self) -> None:
        """For what is printed next."""
        if self.is_live:
            self._console.control(ERASE)


class _Dictation:
    """Attributes:
    has_failed: a part of what was said came to no text.
    """

    def __init__(self, microphone: Microphone, screen: _Screen, as_json: bool) -> None:
        self.has_failed = False
        self._microphone = microphone
        self._screen = screen
        self._as_json = as_json
        self._session: Session
        self._running: asyncio.Task[Any] | None = None
        self._is_open = False
        self._lost: ClientError | None = None  # the microphone
        self._is_ending = False
        self._is_away = False
        self._texts: dict[str, tuple[str, str]] = {}  # utterance -> stable, unstable; without a final yet
        self._asked_at: dict[str, float] = {}  # refused utterance -> when it is offered again

    def end(self) -> None:
        """Also from a signal. A second time, or before the session is open, nothing is waited for."""
        if self._is_open and not self._is_ending:
            self._is_ending = True
            self._microphone.stop()
        elif self._running is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._running.get_loop().call_soon_threadsafe(self._running.cancel)

    async def run(self, url: str, fields: dict[str, Any], keys: Keys | None = None) -> None:
        """Raises: ClientError: the session or the microphone ended before it was to."""
        self._running = asyncio.current_task()
        try:
            async with connect(url, **fields) as self._session, asyncio.TaskGroup() as tasks:
                self._is_open = True
                how = "Ctrl-C ends" if keys is None else "space or Enter: talk; again: done; q ends"
                say(f"{self._microphone.name} to {printable(self._session.ready.model)} at {url}. {how}.")
                beside = [tasks.create_task(self._send()), tasks.create_task(self._draw())]
                if keys is not None:
                    self._listen_to(keys)
                try:
                    async for event in self._session.events():
                        self.receive(event, time.monotonic())
                finally:
                    for task in beside:
                        task.cancel()
        except* ClientError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._screen.clear()
        if self._lost is not None:
            raise self._lost

    async def _send(self) -> None:
        self._microphone.on_muted = self._session.commit
        try:
            async for block in self._microphone:
                await self._session.send(block)
        except ClientError as error:
            self._lost = error
        with suppress(ClientError):  # the session is over: `events` says why
            await self._session.end()  # also without the microphone: what it heard is to become text

    async def _draw(self) -> None:
        while True:
            self.draw()
            await asyncio.sleep(DRAW_S)

    def draw(self) -> None:
        level_db = 20 * math.log10(max(self._microphone.level, 1e-5))
        n_cells = min(max(0, math.ceil(METER + level_db / CELL_DB)), METER)
        meter = Text("|" * n_cells + " " * (METER - n_cells), "green")
        texts = (Text.assemble(stable.lstrip(), (unstable, "dim")) for stable, unstable in self._texts.values())
        self._screen.draw(meter, self.state(time.monotonic()), Text(" ").join(texts))

    def state(self, now: float) -> str:
        if self._is_away:
            return "reconnecting"
        if self._asked_at:
            return f"busy: asked again in {max(0, math.ceil(min(self._asked_at.values()) - now))} s"
        if self._session.behind_s > BEHIND_S:
            return f"{self._session.behind_s:.0f} s behind"
        if self._is_ending:
            return "ending"
        if not self._microphone.n_blocks:
            return "starting"
        return "muted" if self._microphone.is_muted else "listening"

    def receive(self, event: Event, now: float) -> None:
        match event:
            case messages.Partial():
                self._texts[event.utterance] = printable(event.stable, None), printable(event.unstable, None)
            case messages.Accepted():
                self._asked_at.pop(event.utterance, None)
            case messages.Busy() | messages.Retry():
                self._asked_at[str(event.utterance)] = now + retry_delay_s(event, 0)
            case messages.Error() if not is_lost(event):
                pass  # it ends no utterance
            case messages.Final() | messages.Dropped() | messages.Error():
                self._texts.pop(str(event.utterance), None)
                self._asked_at.pop(str(event.utterance), None)
            case Reconnecting():
                self._is_away = True
            case Reconnected():
                self._is_away = False
            case Gap():  # of which utterances is not said; what goes on will have its partials
                self._texts.clear()
                self._asked_at.clear()
        self._screen.clear()
        if self._as_json:
            print_event(event)
        elif isinstance(event, messages.Final) and event.text:
            click.echo(shown(event.text))
        match event:
            case messages.Error(code="nothing_to_commit") | messages.Error(fatal=True):
                pass  # a key was pressed twice at once; or it will be raised
            case _:
                complain(event)
        self.has_failed |= is_lost(event)

    def _listen_to(self, keys: Keys) -> None:
        """In a thread of its own, which nothing can take away from a read: a daemon."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            key = ""
            with suppress(RuntimeError):  # the loop is closed
                while key != END:
                    key = keys.read()
                    loop.call_soon_threadsafe(self._press, key)

        threading.Thread(target=read, name="asr_ws keys", daemon=True).start()

    def _press(self, key: str) -> None:
        if key == END:
            self.end()
        elif key in TALK:
            self._microphone.toggle()
        self.draw()
