"""Files by HTTP beside people who speak: is each one answered, how soon is a refusal told, and do finals wait longer?

    python -m benchmarks.uploads [--posts 20] [--rounds 5] [--sessions 4] [--seconds 20] [--long 10] [--scripted]

Sessions speak the bundled recordings in real time all the while. Beside them, one after the other:

- alone: nothing, for comparison;
- one caller: ``--posts`` requests at once, of one recording of 11 s, by one caller; ``--rounds`` times within
  ``--seconds``; each is made once;
- many callers: the same, each by a caller of his own;
- until done: once as many, by as many callers, who ask again after each refusal when its hint says;
- a long file, with ``--long MINUTES``: one request, answered as a stream.

A refusal is early where it comes before the server asks for the body, else late: the server has begun to stop, or has
no worker any more. An early one is timed from the request's head having been sent; a late one also from the body's
last byte. In the server: from the head having been read, or the body's last byte, to the answer being there to be
written. A file that was let in, and then came to no turn for as long as it might wait, has expired: that is told when
the time is over, and is no refusal. All clients share one process, which is not the server's.

Targets: every request has an answer, 200, 429 or 503; p99 of all scenes' refusals < 50 ms (of one's hundred it would
be the worst burst), early from the head and late from the body's last byte; no live final waits for more than
`max_wait_ms`, nor for more than one slice of a long file; no audio is lost; never two decodes at once; who asks again
gets his text; all texts are right.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import click
import numpy as np

from asr_ws import log, messages
from asr_ws.testing.bare import connect
from asr_ws.testing.conservation import Conservation
from asr_ws.testing.wer import word_errors
from benchmarks.common import (
    PCM_BYTES_PER_S,
    Cores,
    CoreUse,
    Spread,
    other_process,
    percentile,
    progress,
    read_manifest,
    report,
    reported,
    settings_of,
    speech_folder,
    speech_pcm,
    within,
)
from benchmarks.offered import SCRIPTED, Decode, WorkerCores, serving, start_of, watched
from benchmarks.posts import Answer, NoAnswer, Upload, ask

if TYPE_CHECKING:
    from aiohttp import web

    from asr_ws.server.app import App
    from asr_ws.server.http import Http, Visit
    from asr_ws.server.media import Media

PATH: Final = "/v1/audio/transcriptions"
FILE: Final = "jfk.wav"
NAME: Final = "X-Post"  # a header of ours, by which the server's times are found
MAX_REFUSAL_MS: Final = 50.0
MAX_ERRORS: Final = 0.1  # of a file's words
ANSWERS: Final = (200, 429, 503)
FRAME_S: Final = 0.1
PAUSE_S: Final = 1.0  # of silence after the last word: more than ends an utterance
ANSWER_LIMIT_S: Final = 60.0
DONE_LIMIT_S: Final = 600.0  # for who asks again, and for a long file
FINISH_LIMIT_S: Final = 120.0
ALONE, ONE, MANY, AGAIN, LONG = "alone", "one caller", "many callers", "until done", "a long file"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request. ``outcome``: ``200``, ``429 fair_share`` and the like, or ``none`` and why there was no answer."""

    id: str
    outcome: str
    from_head_ms: float = 0.0
    from_body_ms: float | None = None
    text: str | None = None

    @property
    def is_to_come_back(self) -> bool:
        return self.outcome.startswith(("429", "503"))

    @property
    def refused(self) -> bool:
        return self.is_to_come_back and self.outcome != EXPIRED


@dataclass(frozen=True, slots=True)
class Post:
    """All attempts for one file; seconds from the first one's beginning to the last one's answer."""

    attempts: tuple[Attempt, ...]
    took_s: float


@dataclass(frozen=True, slots=True)
class Live:
    """What the sessions were told."""

    waits_ms: list[int]  # of finals
    refusals: dict[str, int]
    lost_ms: int
    breaches: list[str]


EXPIRED: Final = "503 deadline"


@dataclass(frozen=True, slots=True)
class Seen:
    """One refusal in the server. ``ms``: see the module."""

    early: bool
    ms: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What the clients are to do."""

    name: str
    n_posts: int = 0
    n_callers: int = 1
    n_rounds: int = 0
    again: bool = False
    minutes: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is the same in all scenes."""

    url: str  # of sessions
    n_sessions: int
    seconds: float
    start: Mapping[str, Any]  # of sessions
    tokens: tuple[str, ...]  # the first is the sessions', the others are the callers'


@dataclass(frozen=True, slots=True)
class Heard:
    """What the clients have of one scene; ``waited``: of `CoreUse`."""

    posts: list[Post]
    live: Live
    waited: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Of one scene; ``seen`` by an attempt's id."""

    heard: Heard
    seen: Mapping[str, Seen] = field(default_factory=dict)
    decodes: Sequence[Decode] = ()
    waited: float | None = None  # of `WorkerCores`
    server_waited: float | None = None  # of `CoreUse`

    @property
    def attempts(self) -> list[Attempt]:
        return [attempt for post in self.heard.posts for attempt in post.attempts]

    @property
    def outcomes(self) -> dict[str, int]:
        return dict(sorted(Counter(each.outcome for each in self.attempts).items()))

    @property
    def spreads(self) -> dict[str, list[float]]:
        """What the figures are spreads of. From the body: 0 where it was answered before that was out."""
        refused = [each for each in self.attempts if each.refused]
        early = [each for each in refused if each.id not in self.seen or self.seen[each.id].early]
        late = [each for each in refused if each not in early]
        return {
            "early_ms": [each.from_head_ms for each in early],
            "early_in_server_ms": [self.seen[each.id].ms for each in early if each.id in self.seen],
            "late_from_head_ms": [each.from_head_ms for each in late],
            "late_from_body_ms": [each.from_body_ms or 0.0 for each in late],
            "late_in_server_ms": [self.seen[each.id].ms for each in late],
            "accepted_ms": [each.from_head_ms for each in self.attempts if each.outcome == "200"],
            "done_after_s": [post.took_s for post in self.heard.posts if post.attempts[-1].outcome == "200"],
            "live_wait_ms": list(self.heard.live.waits_ms),
        }

    @property
    def slices_waited(self) -> int:
        """Slices of long files, for as many of which a live final waited at most."""
        return max((len(self._slices_before(each)) for each in self._finals), default=0)

    @property
    def behind_slice_ms(self) -> float:
        """The longest that one of them waited for slices."""
        return max(
            (
                sum(min(slice.ended, each.began) - max(slice.began, each.accepted_at or 0) for slice in slices) * 1000
                for each in self._finals
                if (slices := self._slices_before(each))
            ),
            default=0.0,
        )

    @property
    def slice_ms(self) -> float:
        """The longest decode of one."""
        return max((each.took_s * 1000 for each in self.decodes if each.background), default=0.0)

    @property
    def _finals(self) -> list[Decode]:
        return [each for each in self.decodes if each.kind == "final" and not each.background]

    def _slices_before(self, final: Decode) -> list[Decode]:
        assert final.accepted_at is not None
        slices = [each for each in self.decodes if each.background]
        return [each for each in slices if each.began < final.began and each.ended > final.accepted_at]

    def figures(self) -> dict[str, object]:
        """For the report."""
        live = self.heard.live
        slices = {
            "slices": sum(each.background for each in self.decodes),
            "slice_max_ms": round(self.slice_ms),
            "finals_waited_for_slices": self.slices_waited,
            "behind_slice_max_ms": round(self.behind_slice_ms),
        }
        return {
            "requests": len(self.attempts),
            "outcomes": self.outcomes,
            **{name: Spread.of(values).figures(1) if values else None for name, values in self.spreads.items()},
            "live_finals": len(live.waits_ms),
            "live_refusals": live.refusals,
            "lost_ms": live.lost_ms,
            "worker_waited_for_core": self.waited,
            "server_waited_for_core": self.server_waited and round(self.server_waited, 3),
            "clients_waited_for_core": self.heard.waited and round(self.heard.waited, 3),
            **(slices if slices["slices"] else {}),
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """By the scene's name. ``said``: in the file; None: its text is not judged."""

    results: Mapping[str, Result]
    max_wait_ms: int
    max_concurrent_decodes: int
    said: str | None

    def times(self, *spreads: str) -> list[float]:
        """Of all scenes."""
        return [ms for result in self.results.values() for each in spreads for ms in result.spreads[each]]

    @property
    def misses(self) -> list[str]:
        """Which targets were missed, for people; empty: none."""
        found = [
            f"{name}: {miss}"
            for name, result in self.results.items()
            for miss in _misses(name, result, self.max_wait_ms, self.said)
        ]
        for what, times in (("early", "early_ms"), ("late", "late_from_body_ms")):
            refused_ms = self.times(times)
            if refused_ms and (p99 := percentile(refused_ms, 99)) >= MAX_REFUSAL_MS:
                found.append(f"{what} refusals took {p99:.1f} ms (p99)")
        found += [] if self.times("early_ms", "late_from_body_ms") else ["nothing to measure: nothing was refused"]
        found += [f"{self.max_concurrent_decodes} decodes at once"] if self.max_concurrent_decodes != 1 else []
        return found


def _misses(name: str, result: Result, max_wait_ms: int, said: str | None) -> Iterator[str]:
    live = result.heard.live
    for outcome, n in result.outcomes.items():
        if not outcome.startswith(tuple(map(str, ANSWERS))):
            yield f"{n} requests: {outcome}"
    if not live.waits_ms:
        yield "no live final"
    elif (longest := max(live.waits_ms)) > max_wait_ms:
        yield f"a live final waited {longest} ms"
    if result.slices_waited > 1:
        yield f"a live final waited for {result.slices_waited} slices"
    if live.lost_ms:
        yield f"{live.lost_ms} ms of audio were lost"
    yield from live.breaches
    texts = [each.text for each in result.attempts if each.outcome == "200" and each.text is not None]
    if wrong := sum(said is not None and word_errors(said, text).rate > MAX_ERRORS for text in texts):
        yield f"{wrong} texts are wrong"
    unfinished = sum(post.attempts[-1].outcome != "200" for post in result.heard.posts)
    if unfinished and name in (AGAIN, LONG):
        yield f"{unfinished} files have no text in the end"


REFUSALS: Final = (  # how they are called, and of which spreads their times are, with the clients and in the server
    ("early, from the head", "early_ms", "early_in_server_ms"),
    ("late, from the head", "late_from_head_ms", ""),
    ("late, from the body", "late_from_body_ms", "late_in_server_ms"),
)


def table(outcome: Outcome) -> list[str]:
    """Lines for people."""
    lines = [
        f"{'':<14}{'requests':>9}{'200':>5}{'429':>5}{'503':>5}{'other':>6}{'200 after, s: p50':>19}{'max':>7}"
        f"{'finals':>8}{'wait ms: p50':>14}{'p95':>6}{'max':>6}{'busy':>6}{'lost ms':>9}"
    ]
    for name, result in outcome.results.items():
        counts = Counter(each.outcome[:3] for each in result.attempts)
        other = len(result.attempts) - sum(counts[str(status)] for status in ANSWERS)
        after = [ms / 1000 for ms in result.spreads["accepted_ms"]]
        live = result.heard.live
        lines.append(
            f"{name:<14}{len(result.attempts):>9}{counts['200']:>5}{counts['429']:>5}{counts['503']:>5}{other:>6}"
            f"{_at(after, 50, 1):>19}{_at(after, 100, 1):>7}{len(live.waits_ms):>8}{_at(live.waits_ms, 50):>14}"
            f"{_at(live.waits_ms, 95):>6}{_at(live.waits_ms, 100):>6}{sum(live.refusals.values()):>6}{live.lost_ms:>9}"
        )
    every = {name: outcome.times(name) for _, *names in REFUSALS for name in names if name}
    lines.append(f"{'refusals, ms':<36}{'n':>5}{'p50':>8}{'p99':>8}{'max':>8}{'in the server: p50':>20}{'p99':>8}")
    for name, spreads in [*((name, result.spreads) for name, result in outcome.results.items()), ("all", every)]:
        for what, times, seen in REFUSALS:
            if times_ms := spreads[times]:
                seen_ms = spreads.get(seen, [])
                lines.append(
                    f"{name:<14}{what:<22}{len(times_ms):>5}{_at(times_ms, 50, 1):>8}{_at(times_ms, 99, 1):>8}"
                    f"{_at(times_ms, 100, 1):>8}{_at(seen_ms, 50, 2):>20}{_at(seen_ms, 99, 2):>8}"
                )
    for name, result in outcome.results.items():
        reasons = ", ".join(f"{n} x {each}" for each, n in result.outcomes.items())
        lines.append(f"{name}: {reasons or 'no requests'}")
        if result.heard.posts and name == AGAIN:
            took_s = [post.took_s for post in result.heard.posts]
            lines.append(f"{name}: a file was done after {_at(took_s, 50, 1)} s (p50), {_at(took_s, 100, 1)} s at most")
        if result.server_waited is not None and result.heard.waited is not None:
            lines.append(
                f"{name}: of the time, the server waited {result.server_waited:.0%} for its core, "
                f"the clients {result.heard.waited:.0%}"
            )
        if result.slice_ms:
            lines.append(
                f"{name}: a live final waited for {result.slices_waited} slices at most, "
                f"{result.behind_slice_ms:.0f} ms; the longest decode of one took {result.slice_ms:.0f} ms"
            )
    lines.append(f"decodes at once: {outcome.max_concurrent_decodes}; the bound of a wait: {outcome.max_wait_ms} ms")
    return lines + [f"missed: {miss}" for miss in outcome.misses]


def _at(values: Sequence[float], percent: float, digits: int = 0) -> str:
    return f"{percentile(values, percent):.{digits}f}" if values else "-"


# ---------------------------------------------------------------- in the server's process


@dataclass(slots=True)
class _Stamps:
    asked_at: float
    wants_body: bool = False
    body_there_at: float | None = None


class Refusals:
    """Each refused request in the server, by its name."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Stamp requests where their head is complete, where their body is wanted, and where that is complete."""
        from asr_ws.server.front import Front
        from asr_ws.server.http import Http, Visit
        from asr_ws.server.media import Media

        current: ContextVar[_Stamps | None] = ContextVar("current", default=None)
        to_http, handle, want_body, end = Front._to_http, Http._handle, Visit.want_body, Media.end

        def stamped_to_http(front: Front, transport: asyncio.Transport, data: bytes) -> None:
            current.set(_Stamps(perf_counter()))  # of the task that is begun now
            to_http(front, transport, data)

        async def stamped_handle(http: Http, request: web.BaseRequest) -> web.StreamResponse:
            response = await handle(http, request)
            stamps = current.get()
            if stamps and response.status in ANSWERS[1:] and (name := request.headers.get(NAME)):
                since = stamps.body_there_at or stamps.asked_at
                self.seen[name] = Seen(not stamps.wants_body, (perf_counter() - since) * 1000)
            return response

        async def stamped_want_body(visit: Visit) -> None:
            if (stamps := current.get()) is not None:
                stamps.wants_body = True
            await want_body(visit)

        def stamped_end(media: Media) -> None:
            if (stamps := current.get()) is not None:
                stamps.body_there_at = perf_counter()
            end(media)

        with (
            patch.object(Front, "_to_http", stamped_to_http),
            patch.object(Http, "_handle", stamped_handle),
            patch.object(Visit, "want_body", stamped_want_body),
            patch.object(Media, "end", stamped_end),
        ):
            yield


async def measure(
    model: str, n_sessions: int, seconds: float, scenes: Sequence[Scene], decode_s: float, step: Callable[[], None]
) -> Outcome:
    """Raises: click.ClickException: it did not end."""
    n_callers = max(scene.n_callers for scene in scenes)
    tokens = tuple(secrets.token_urlsafe(24) for _ in range(1 + n_callers))
    results: dict[str, Result] = {}
    refusals = Refusals()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        (folder / "tokens").write_text("\n".join(tokens))
        clients = stack.enter_context(other_process(Cores()))
        stack.enter_context(refusals.timed())
        settings = settings_of(model=model, auth_token_file=str(folder / "tokens"), state_dir=str(folder / "state"))
        app: App = await stack.enter_async_context(serving(settings))
        plan = Plan(app.url, n_sessions, seconds, start_of(model, decode_s), tokens)
        for scene in scenes:
            refusals.seen.clear()
            cores, core = WorkerCores(app), CoreUse()
            with watched(app) as decodes:
                async with within(2 * seconds + DONE_LIMIT_S + FINISH_LIMIT_S, f"the clients: {scene.name}"):
                    heard = await asyncio.get_running_loop().run_in_executor(clients, act, plan, scene)
            results[scene.name] = Result(
                heard, dict(refusals.seen), tuple(decodes), cores.waited_share, core.waited_share
            )
            step()
        at_once = app.supervisor.max_concurrent_decodes
        with speech_folder(None) as speech:
            said = next(each.said for each in read_manifest(speech) if each.file.name == FILE)
    return Outcome(results, app.settings.admission.max_wait_ms, at_once, None if model == SCRIPTED else said)


# ---------------------------------------------------------------- in the clients' process


def act(plan: Plan, scene: Scene) -> Heard:
    return asyncio.run(_act(plan, scene))


async def _act(plan: Plan, scene: Scene) -> Heard:
    enough, core = asyncio.Event(), CoreUse()
    async with within(2 * plan.seconds + DONE_LIMIT_S + FINISH_LIMIT_S, "the sessions"), asyncio.TaskGroup() as tasks:
        speakers = [tasks.create_task(_speak(plan, n, enough), name=f"session {n}") for n in range(plan.n_sessions)]
        at_least = tasks.create_task(asyncio.sleep(plan.seconds), name="seconds")
        posts = await (_send_long(plan, scene) if scene.minutes else _send_all(plan, scene))
        await at_least
        enough.set()
    lives = [speaker.result() for speaker in speakers]
    refusals: Counter[str] = sum((Counter(each.refusals) for each in lives), Counter())
    live = Live(
        [wait_ms for each in lives for wait_ms in each.waits_ms],
        dict(refusals),
        sum(each.lost_ms for each in lives),
        [breach for each in lives for breach in each.breaches],
    )
    return Heard(posts, live, core.waited_share)


async def _speak(plan: Plan, n: int, enough: asyncio.Event) -> Live:
    """One session, which begins somewhere in the recordings, until there is enough."""
    pcm, frame_bytes = speech_pcm(), round(FRAME_S * PCM_BYTES_PER_S)
    at = len(pcm) * n // plan.n_sessions // frame_bytes * frame_bytes

    async def spoken() -> AsyncIterator[bytes]:
        nonlocal at
        while not enough.is_set():
            yield pcm[at : at + frame_bytes]
            at = at + frame_bytes if at + frame_bytes < len(pcm) else 0
        yield bytes(round(PAUSE_S * PCM_BYTES_PER_S))

    law = Conservation()
    waits_ms: list[int] = []
    refusals: Counter[str] = Counter()
    await asyncio.sleep(FRAME_S * n / plan.n_sessions)  # clients that know nothing of one another
    async with connect(plan.url, token=plan.tokens[0], **plan.start) as session:
        async for event in session.stream(spoken(), realtime=True):
            law.receive(event)
            match event:
                case messages.Final():
                    waits_ms.append(event.wait_ms)
                case messages.Busy() | messages.Retry():
                    refusals[event.reason] += 1
    law.close(1000)
    return Live(waits_ms, dict(refusals), law.done.lost_ms if law.done is not None else 0, law.breaches)


async def _send_all(plan: Plan, scene: Scene) -> list[Post]:
    """Each round at its time, or when the one before is done."""
    with speech_folder(None) as folder:
        audio = (folder / FILE).read_bytes()
    fields = {"prompt": str(plan.start["prompt"])} if "prompt" in plan.start else {}
    upload = Upload.of(audio, FILE, fields)
    loop = asyncio.get_running_loop()
    began, posts = loop.time(), []
    for n_round in range(scene.n_rounds):
        await asyncio.sleep(began + (n_round + 0.5) * plan.seconds / scene.n_rounds - loop.time())
        async with asyncio.TaskGroup() as tasks:
            sending = [
                tasks.create_task(
                    _send(plan, scene, f"{scene.name} {n_round} {n}", plan.tokens[1 + n % scene.n_callers], upload)
                )
                for n in range(scene.n_posts)
            ]
        posts += [each.result() for each in sending]
    return posts


async def _send_long(plan: Plan, scene: Scene) -> list[Post]:
    import io

    import soundfile

    pcm = np.frombuffer(speech_pcm(), "<i2")
    n_repeats = max(1, round(scene.minutes * 60 * PCM_BYTES_PER_S / (2 * len(pcm))))
    file = io.BytesIO()
    soundfile.write(file, np.tile(pcm, n_repeats), 16_000, format="FLAC")
    fields = {"stream": "true", **({"prompt": str(plan.start["prompt"])} if "prompt" in plan.start else {})}
    upload = Upload.of(file.getvalue(), "long.flac", fields)
    return [await _send(plan, scene, scene.name, plan.tokens[1], upload, limit_s=DONE_LIMIT_S)]


async def _send(
    plan: Plan, scene: Scene, name: str, token: str, upload: Upload, *, limit_s: float = ANSWER_LIMIT_S
) -> Post:
    """One request, or as many as it takes until it has its text."""
    attempts: list[Attempt] = []
    url = "http://" + plan.url.partition("://")[2].partition("/")[0]
    began = perf_counter()
    while True:
        id = f"{name} {len(attempts)}"
        headers = {"Authorization": f"Bearer {token}", NAME: id}
        try:
            answer = await ask(url, "POST", PATH, headers=headers, upload=upload, limit_s=limit_s)
        except NoAnswer as error:
            attempts.append(Attempt(id, f"none: {error}"))
            return Post(tuple(attempts), perf_counter() - began)
        attempts.append(_attempt(id, answer))
        is_over = not scene.again or not attempts[-1].is_to_come_back or perf_counter() - began > DONE_LIMIT_S
        if is_over:
            return Post(tuple(attempts), perf_counter() - began)
        await asyncio.sleep(float(answer.headers["retry-after-ms"]) / 1000)


def _attempt(id: str, answer: Answer) -> Attempt:
    outcome, text = str(answer.status), None
    if answer.headers.get("content-type", "").startswith("application/json"):
        said = answer.json
        text = said.get("text")
        if "error" in said:
            outcome += f" {said['error']['code']}"
    elif b'"transcript.text.done"' not in answer.body:  # of a stream, which ends by that
        outcome = "a stream without an end"
    return Attempt(id, outcome, answer.from_head_ms, answer.from_body_ms, text)


def scenes_of(n_posts: int, n_rounds: int, minutes: float) -> list[Scene]:
    return [
        Scene(ALONE),
        Scene(ONE, n_posts, 1, n_rounds),
        Scene(MANY, n_posts, n_posts, n_rounds),
        Scene(AGAIN, n_posts, n_posts, 1, again=True),
        *([Scene(LONG, minutes=minutes)] if minutes else []),
    ]


@click.command()
@reported
@click.option("--model", default="tiny.en", show_default=True)
@click.option("--scripted", is_flag=True, help="no model, but a worker whose every decode takes --decode-ms")
@click.option("--decode-ms", default=400, show_default=True, type=click.IntRange(1, 10_000), help="with --scripted")
@click.option("--posts", "n_posts", default=20, show_default=True, type=click.IntRange(1, 200), help="at once")
@click.option("--rounds", "n_rounds", default=5, show_default=True, type=click.IntRange(1, 100))
@click.option("--sessions", "n_sessions", default=4, show_default=True, type=click.IntRange(1, 60), help="that speak")
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(1, 600), help="of each, at least")
@click.option("--long", "minutes", default=0.0, type=click.FloatRange(0, 240), help="minutes of a file beside them")
def main(
    model: str,
    scripted: bool,
    decode_ms: int,
    n_posts: int,
    n_rounds: int,
    n_sessions: int,
    seconds: float,
    minutes: float,
) -> None:
    """What comes of files by HTTP, many at once, and of those who speak meanwhile."""
    log.configure(level="error")
    model = SCRIPTED if scripted else model
    scenes = scenes_of(n_posts, n_rounds, minutes)
    with progress(still=True) as bars:
        bar = bars.add_task("scenes", total=len(scenes))
        step = partial(bars.update, bar, advance=1, refresh=True)
        outcome = asyncio.run(measure(model, n_sessions, seconds, scenes, decode_ms / 1000, step))
    click.echo("\n".join(table(outcome)))
    sys.exit(
        report(
            "uploads",
            settings={
                "model": model,
                **({"decode_ms": decode_ms} if scripted else {}),
                "posts": n_posts,
                "rounds": n_rounds,
                "sessions": n_sessions,
                "seconds": seconds,
                "long_minutes": minutes,
                "max_wait_ms": outcome.max_wait_ms,
            },
            figures={
                "early_ms": outcome.times("early_ms") and Spread.of(outcome.times("early_ms")).figures(1),
                "scenes": {name: result.figures() for name, result in outcome.results.items()},
                "max_concurrent_decodes": outcome.max_concurrent_decodes,
                "missed": outcome.misses,
            },
            passed=not outcome.misses,
        )
    )


if __name__ == "__main__":
    main()
