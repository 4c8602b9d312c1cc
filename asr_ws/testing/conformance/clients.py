"""The promises of a client, judged by what a relay heard of it: what their docstrings say is promised.

Each is a function of one connection. It returns what breaks the promise, or None, and raises `NotTested` where the
connection shows nothing of it. The last ones are of all connections: of what becomes of one that was cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Final

from asr_ws.errors import ProtocolError
from asr_ws.messages import (
    ENDS_UTTERANCE,
    MAX_BINARY_BYTES,
    MAX_TEXT_BYTES,
    PROTOCOL,
    RetryUtterance,
    decode_message,
    retry_wait_s,
)
from asr_ws.testing.conformance.live import REFUSALS
from asr_ws.testing.conformance.relay import HINT_MS, Heard, Said
from asr_ws.testing.conformance.table import Broken, NotTested, Promise, Result

EARLY_S: Final = 0.1  # by so much a hint may be undercut
QUIT: Final = (1000, 1001, 1005)  # the close codes of who goes for a reason of his own; 1005: without one
AFTER_END: Final = ("retry", "cancel", "ping")
SHRUNK_MS: Final = 1  # at both ends of a range whose times are rounded
NO_FAULTS: Final = (*ENDS_UTTERANCE, "internal", "nothing_to_commit", "unknown_utterance")  # the last two: races


# ---------------------------------------------------------------- of one connection


def subprotocol(heard: Heard) -> object:
    """It offers the subprotocol asr-ws.v1, or none"""
    return heard.offered if heard.offered and PROTOCOL not in heard.offered else None


def frames(heard: Heard) -> object:
    """No frame is too large: text has at most 16 KiB, audio 256 KiB"""
    for each in heard.said:
        if isinstance(each.what, bytes) and len(each.what) > MAX_BINARY_BYTES:
            return f"audio of {len(each.what)} bytes"
        if isinstance(each.what, str) and (n := len(each.what.encode(errors="surrogatepass"))) > MAX_TEXT_BYTES:
            return f"text of {n} bytes"
    return None


def messages(heard: Heard) -> object:
    """Each text frame is a message that the protocol has: its type, its fields, their ranges"""
    for text in heard.texts:
        try:
            decode_message(text)
        except ProtocolError as error:
            return f"{error.message}: {text}"
    return None


def start(heard: Heard) -> object:
    """`start` comes first, and once"""
    sent = [type for type in heard.types if type != "ping"]
    return sent[: sent.index("start", 1) + 1] if "start" in sent[1:] else None


def after_end(heard: Heard) -> object:
    """After `end` comes nothing but `retry`, `cancel` and `ping`"""
    if "end" not in heard.types:
        raise NotTested("it sent no `end`")
    late = heard.types[heard.types.index("end") + 1 :]
    return next((type for type in late if type not in AFTER_END), None)


def errors(heard: Heard) -> object:
    """The server finds no fault with what it sends"""
    return next((event for event in heard.told if event["type"] == "error" and event["code"] not in NO_FAULTS), None)


def tolerance(heard: Heard) -> object:
    """It ignores events and fields that it does not know: no session breaks off"""
    if (left := _left(heard)) is not None and heard.left_with in QUIT:
        raise NotTested(f"it left before `done`: {left}")
    return left


def done(heard: Heard) -> object:
    """After `end` it reads to `done`"""
    if "end" not in heard.types:
        raise NotTested("it sent no `end`")
    return _left(heard)


def _left(heard: Heard) -> str | None:
    is_early = heard.left_with is not None and not any(event["type"] == "done" for event in heard.told)
    return f"close {heard.left_with} after {json.dumps(heard.told[-1:])}" if is_early else None


def _offers(heard: Heard) -> Iterator[tuple[Said, Said | None]]:
    """Each `retry`, and the refusal that it answers; None: there is none, or not any more."""
    refused: dict[str, Said] = {}
    for each in heard.said:
        if isinstance(each.what, dict):
            if each.what["type"] in REFUSALS and each.what["utterance"] and each.what["held_ms"]:
                refused[each.what["utterance"]] = each
        elif isinstance(each.what, str) and isinstance(message := decode_message(each.what), RetryUtterance):
            yield each, refused.pop(message.utterance, None)


def retry(heard: Heard) -> object:
    """`retry` is of an utterance that was refused and is held: once for each refusal"""
    offers = list(_offers(heard))
    if not offers:
        raise NotTested("nothing was refused, or it was not offered again: its text is lost")
    return next((offer.what for offer, refusal in offers if refusal is None), None)


def hints(heard: Heard) -> object:
    """It offers nothing again before its hint is over, and waits for a model that loads"""
    offers = [(offer, refusal) for offer, refusal in _offers(heard) if refusal is not None]
    if not offers:
        raise NotTested("nothing was offered again")
    for offer, refusal in offers:
        event = refusal.what
        assert isinstance(event, dict)
        due_s = retry_wait_s(event["reason"], event["retry_after_ms"] / 1000, event["estimated_wait_ms"] / 1000)
        if (waited_s := offer.at - refusal.at) < due_s - EARLY_S:
            return f"{event['reason']}: again after {waited_s:.2f} s, not {due_s:.2f} s"
    return None


# ---------------------------------------------------------------- of all connections, with --cut


def comes_back(sessions: list[Heard]) -> object:
    """A client that was cut comes back; refused as a session, it waits for the hint and comes again"""
    cut = _cut(sessions)
    after = [heard for heard in sessions if heard.opened_at > cut.opened_at]
    refused_at = next((heard.refused_at for heard in after if heard.refused_at is not None), None)
    if refused_at is None:
        return "no other connection"
    again = [heard.opened_at - refused_at for heard in after if heard.opened_at > refused_at]
    if not again:
        return "no connection after the busy one"
    return f"again after {again[0]:.2f} s, not {HINT_MS / 1000} s" if again[0] < HINT_MS / 1000 - EARLY_S else None


def resends(sessions: list[Heard]) -> object:
    """The audio of an utterance that had no outcome when the connection was cut is sent again"""
    cut = _cut(sessions)
    assert cut.owed_ms is not None
    if not (later := [heard for heard in sessions if heard.opened_at > cut.opened_at and heard.refused_at is None]):
        raise NotTested("it did not come back")
    start_ms, end_ms = cut.owed_ms
    rate, frame_bytes = cut.format.sample_rate, cut.format.bytes_per_s // cut.format.sample_rate
    owed = cut.audio[slice(*(ms * rate // 1000 * frame_bytes for ms in (start_ms + SHRUNK_MS, end_ms - SHRUNK_MS)))]
    return None if any(owed in heard.audio for heard in later) else f"not {start_ms}..{end_ms} ms of what it had sent"


def _cut(sessions: list[Heard]) -> Heard:
    for heard in sessions:
        if heard.owed_ms is not None:
            return heard
    raise NotTested("nothing was cut: no --cut, or no utterance was accepted")


# ---------------------------------------------------------------- all of them


Check = Callable[[list[Heard]], None]


def _of_each(section: str, law: Callable[[Heard], object]) -> Promise[Check]:
    def check(sessions: list[Heard]) -> None:
        breaches, reasons = [], []
        for heard in sessions:
            try:
                if heard.condemned:
                    raise NotTested("no session kept the promises above")
                breach = law(heard)
            except NotTested as why:
                reasons.append(why)
                continue
            if breach is not None:
                heard.condemned = True
                breaches.append(breach)
        if breaches:
            raise Broken("", breaches[0])
        if len(reasons) == len(sessions):
            raise reasons[0]

    return Promise(law.__name__, section, str(law.__doc__), check)


def _of_all(section: str, law: Callable[[list[Heard]], object]) -> Promise[Check]:
    def check(sessions: list[Heard]) -> None:
        if (breach := law(sessions)) is not None:
            raise Broken("", breach)

    return Promise(law.__name__, section, str(law.__doc__), check)


PROMISES: Final[tuple[Promise[Check], ...]] = (
    _of_each("Connecting", subprotocol),
    _of_each("Frames", frames),
    _of_each("Messages to the server", messages),
    _of_each("start", start),
    _of_each("end", after_end),
    _of_each("Error codes", errors),
    _of_each("Events from the server", tolerance),
    _of_each("end", done),
    _of_each("retry", retry),
    _of_each("Rules", hints),
    _of_all("Rules", comes_back),
    _of_all("Rules", resends),
)


def judged(sessions: list[Heard]) -> list[Result]:
    """Each promise in its turn: a session that breaks one is not judged by those below it."""
    found = []
    for promise in PROMISES:
        raised: Broken | NotTested | None = None
        try:
            promise.check(sessions)
        except (Broken, NotTested) as told:
            raised = told
        found.append(promise.result(raised))
    return found
