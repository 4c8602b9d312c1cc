"""A voice assistant for lights, a timer and the time, by an asr_ws server: to be copied and changed.

    pip install 'asr-ws[mic]'
    python clients/python/assistant.py --push-to-talk --speak espeak-ng
    python clients/python/assistant.py --wav tests/speech/commands.wav

What a text means is in intents.py, beside this file; `Assistant` acts on what a session tells; the rest is keyboard and
sound. With --push-to-talk Enter begins and ends an utterance, else it listens all along, except while it speaks; with
--barge-in, for headphones, then too. Ctrl-C: what was said is still answered. A token, if the server wants one, is
taken from ASR_WS_TOKEN.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import takewhile
from typing import Any

from asr_ws.client import DEFAULT_URL, Event, Gap, Reconnecting, Session, connect, is_lost
from asr_ws.client.microphone import Microphone
from asr_ws.client.sources import open_source
from asr_ws.errors import AsrError, ClientError
from asr_ws.messages import AudioFormat, Busy, Dropped, Error, Final, Retry, SpeechStarted
from intents import (
    ROOMS,
    AskLights,
    AskTime,
    AskTimer,
    CancelTimer,
    Intent,
    SetLights,
    SetTimer,
    Stop,
    in_words,
    parse_all,
)

# So that the model hears "bedroom lights". No commands: what stands here it takes as said, and may leave out.
PROMPT = "Lights in the kitchen, living room, bedroom, bathroom and hall; dim them to 50%."

ECHO_S = 0.3  # unheard after the assistant's own voice: it is still on its way by loudspeaker, room and microphone


class Voice:
    """Prints what it says, and has it spoken where there is a command for it. A new sentence ends the one before.

    Args:
        ear: is muted while it speaks.
    """

    def __init__(self, command: list[str], ear: Microphone | None = None) -> None:
        self._command = command
        self._ear = ear
        self._process: subprocess.Popen[bytes] | None = None
        self._speaking: asyncio.Task[None] | None = None

    def say(self, text: str) -> None:
        print(f"assistant: {text}", flush=True)
        self.hush()
        if not self._command:
            return
        if self._speaking is not None:
            self._speaking.cancel()
        if self._ear is not None:
            self._ear.is_muted = True
        self._process = subprocess.Popen([*self._command, text], stdin=subprocess.DEVNULL)
        self._speaking = asyncio.create_task(self._speak(self._process), name="voice")

    async def _speak(self, process: subprocess.Popen[bytes]) -> None:
        await asyncio.to_thread(process.wait)
        if self._ear is not None:
            await asyncio.sleep(ECHO_S)
            self._ear.is_muted = False

    def hush(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def finish(self) -> None:
        if self._speaking is not None:
            await self._speaking


class Assistant:
    """Attributes:
    lights: percent, by room.
    awaited: utterances that have no outcome yet, in the order in which they began.
    """

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self.lights = dict.fromkeys(ROOMS, 0)
        self.timer: asyncio.TimerHandle | None = None
        self.awaited: list[str] = []
        self._has_asked_for_patience = False

    def receive(self, event: Event) -> list[str]:
        """Act on it. Returns: utterances that are to be cancelled."""
        match event:
            case SpeechStarted():
                self.voice.hush()
                self.awaited.append(event.utterance)
            case Busy() | Retry() | Reconnecting() if self.awaited and not self._has_asked_for_patience:
                self._has_asked_for_patience = True  # once, until there is an answer
                self.voice.say("One moment.")
            case Reconnecting():
                note(f"not connected ({event.reason}): next try in {event.delay_s:.1f} s")
            case Final():
                self._has_asked_for_patience = False
                before = list(takewhile(lambda each: each != event.utterance, self.awaited))
                self._forget(event.utterance)
                if event.text:
                    print(f"you: {event.text}", flush=True)
                    intents = parse_all(event.text)
                    self.voice.hush()
                    if answers := [self.act(intent) for intent in intents if intent != Stop()]:
                        self.voice.say(" ".join(answers))
                    return before if Stop() in intents else []  # what was begun after it is something new
            case Dropped(reason="cancelled"):
                self._forget(event.utterance)
                note("dropped what was unfinished")
            case Dropped() | Gap() | Error() if is_lost(event):
                self._forget(getattr(event, "utterance", None))
                self.voice.say("Sorry, I lost that. Please say it again.")
            case Dropped():  # it was heard as part of another one
                self._forget(event.utterance)
            case Error(code="nothing_to_commit"):  # nobody spoke as the microphone was muted
                pass
            case Error():
                note(f"{event.code}: {event.message} ({event.hint})")
        return []

    def _forget(self, utterance: str | None) -> None:
        self.awaited = [each for each in self.awaited if each != utterance]

    def act(self, intent: Intent) -> str:
        """Returns: what there is to say of it."""
        match intent:
            case SetLights(rooms=()) | AskLights(rooms=()):
                return f"Which lights? I know {', '.join(ROOMS)}, and all."
            case SetLights(rooms, percent):
                self.lights.update(dict.fromkeys(rooms, percent))  # here is where yours are switched
                return self._describe(rooms)
            case AskLights(rooms):
                return self._describe(rooms)
            case SetTimer(seconds=0):
                return "For how long?"
            case SetTimer(seconds):
                self.stop_timer()
                self.timer = asyncio.get_running_loop().call_later(seconds, self._ring)
                return f"Timer set for {in_words(seconds)}."
            case AskTimer() | CancelTimer() if self.timer is None:
                return "There is no timer."
            case AskTimer():
                assert self.timer is not None
                return f"{in_words(self.timer.when() - asyncio.get_running_loop().time())} left.".capitalize()
            case CancelTimer():
                self.stop_timer()
                return "The timer is cancelled."
            case AskTime():
                return time.strftime("It is %H:%M.")
        return "Sorry, I did not understand that."

    def _describe(self, rooms: tuple[str, ...]) -> str:
        names = {0: "off", 100: "on"}
        states = [names.get(self.lights[room], f"at {self.lights[room]} percent") for room in rooms]
        if rooms == ROOMS and len(set(states)) == 1:
            return f"All lights are {states[0]}."
        return (
            ", ".join(f"the {room} lights are {state}" for room, state in zip(rooms, states, strict=True)).capitalize()
            + "."
        )

    def _ring(self) -> None:
        self.timer = None
        print("\a", end="", file=sys.stderr, flush=True)
        self.voice.say("Your timer is over.")

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


# ---------------------------------------------------------------- keyboard and sound


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def keys(*, enter: bool) -> asyncio.Queue[str]:
    """What is pressed from now on: "enter" if it is wanted, and then "end", of Ctrl-C or Ctrl-D."""
    loop, pressed = asyncio.get_running_loop(), asyncio.Queue[str]()

    def press(key: str) -> None:
        with suppress(RuntimeError):  # the loop is closed: the program ends
            loop.call_soon_threadsafe(pressed.put_nowait, key)

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, usual)  # the next one ends the program at once
        press("end")

    def read() -> None:
        while line := os.read(0, 1024):  # not sys.stdin, which a thread that waits in it would keep locked to the end
            for _ in range(line.count(b"\n")):
                press("enter")
        press("end")

    usual = signal.signal(signal.SIGINT, interrupt)
    if enter:
        threading.Thread(target=read, name="keyboard", daemon=True).start()
    return pressed


async def obey(pressed: asyncio.Queue[str], session: Session, source: Microphone | str, assistant: Assistant) -> None:
    """Push to talk, and the end."""
    while await pressed.get() == "enter":
        assert isinstance(source, Microphone), "of a recording no key opens or ends an utterance"
        if source.is_muted:
            assistant.voice.hush()
            await session.cancel()  # an answer that is still awaited is not wanted any more
        note("listening" if source.toggle() else "not listening")
    if isinstance(source, Microphone):
        source.stop()
    else:
        await session.end()


async def run(args: argparse.Namespace) -> None:
    source = args.wav or Microphone()
    open_source(source, AudioFormat())  # a wrong file is said before a server is asked
    fields: dict[str, Any] = {"language": "en", "partials": False, "prompt": args.prompt}
    if args.push_to_talk:
        source.is_muted = True
        fields["endpointing"] = {"mode": "manual"}
    hears_itself = not (args.wav or args.push_to_talk or args.barge_in)
    assistant = Assistant(Voice(args.speak, source if hears_itself else None))
    async with connect(args.url, token=os.environ.get("ASR_WS_TOKEN") or None, **fields) as session:
        obeying = asyncio.create_task(obey(keys(enter=args.push_to_talk), session, source, assistant), name="keys")
        if isinstance(source, Microphone):
            source.on_muted = session.commit  # the silence that would end what was said is not heard
        note("Enter to talk, Enter to be answered" if args.push_to_talk else "listening")
        try:
            async for event in session.stream(source, realtime=source is args.wav):
                for utterance in assistant.receive(event):
                    await session.cancel(utterance)
            await assistant.voice.finish()
        finally:
            assistant.stop_timer()
            assistant.voice.hush()
            obeying.cancel()
            with suppress(asyncio.CancelledError, ClientError):  # which the events have raised too
                await obeying


def command(line: str) -> list[str]:
    """The words of ``--speak``. Raises: ValueError: a quote is open; ArgumentTypeError."""
    is_posix = os.name != "nt"  # elsewhere a backslash is one, and quotes are left on
    words = [word if is_posix else word.strip('"') for word in shlex.split(line, posix=is_posix)]
    if not words or shutil.which(words[0]) is None:
        raise argparse.ArgumentTypeError(f"no such command: {line}")
    return words


def main() -> int:
    parser = argparse.ArgumentParser(description="A voice assistant: lights, a timer, the time.")
    parser.add_argument("--url", default=DEFAULT_URL, help="where the server is (%(default)s)")
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument("--wav", metavar="FILE", help="listen to this recording, and end with it")
    sources.add_argument("--push-to-talk", action="store_true", help="Enter begins and ends an utterance")
    parser.add_argument(
        "--speak", metavar="COMMAND", type=command, default=[], help="says the text behind it, such as espeak-ng"
    )
    parser.add_argument("--barge-in", action="store_true", help="listen while it speaks: with headphones")
    parser.add_argument("--prompt", default=PROMPT, help="words that the recognizer is to expect (%(default)s)")
    args = parser.parse_args()
    try:
        asyncio.run(run(args))
        return 0
    except AsrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
