"""The page in a real browser, whose microphone is a recording; first the real model, then scripted workers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import wave
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asr_ws.core.types import SAMPLE_RATE
from asr_ws.server.app import App
from asr_ws.testing.recognizer import Gate, scripted_worker
from asr_ws.testing.wer import word_errors
from asr_ws.worker.supervisor import WorkerSpec
from benchmarks.chromium import MICROPHONE, WAIT_S, Page, hears
from tests.browser.looking import busy, opened, wav
from tests.conftest import SPEECH
from tests.e2e.test_speech import said
from tests.server.running import serving

pytestmark = pytest.mark.usefixtures("chromium")

JFK, LONG = "jfk.wav", "long-two-cities.wav"
MAX_PAGE_BYTES = 60_000
WRONG = 0.15  # three words of 22: where the microphone begins varies by some 50 ms, and with it what tiny.en hears
TOKEN = "0123456789abcdef"
READY = "document.getElementById('server').dataset.state === 'ready'"
IDLE = "document.body?.dataset.phase === 'idle'"
RECORDING = "document.body?.dataset.phase === 'recording'"


@asynccontextmanager
async def shown(app: App, *flags: str, query: str = "") -> AsyncIterator[Page]:
    """The page of that server, which complains of nothing and asks nobody else."""
    async with opened(app.listener.url, *flags, query=query) as page:
        yield page
        assert page.complaints == []
        assert [url for url in page.urls if f"//127.0.0.1:{app.listener.port}/" not in url] == []


async def events(page: Page, *types: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await page.evaluate(
        f"events.filter(e => {json.dumps(types)}.includes(e.type)).map(e => ({{...e.detail, type: e.type}}))"
    )
    return found


async def stop(page: Page) -> str:
    """Press the button. Returns: the text, once it is all there."""
    await page.click("#microphone")
    await page.wait(IDLE)
    return await page.text("#transcript")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A file with one, TOKEN."""
    return grant(tmp_path / "tokens", TOKEN)


def grant(file: Path, token: str) -> Path:
    file.write_text(f"{token}\n")
    file.chmod(0o600)
    return file


# ---------------------------------------------------------------- the real model


@pytest.mark.model
async def test_speech_becomes_text(tiny_en: Path) -> None:
    async with (
        serving(WorkerSpec(tiny_en, device="cpu"), partials="on", ingest_speed=2.0) as app,
        shown(app, *hears(SPEECH / JFK), query="&autostart=1") as page,
    ):
        await page.wait("events.some(e => e.type === 'final' && e.detail.audio_end_ms > 10000)")
        text = await stop(page)
        [done] = await events(page, "done")
        assert word_errors(said(JFK), text).rate <= WRONG, text
        assert done["lost_ms"] == done["refused_ms"] == 0
        assert done["finals"] == len(await events(page, "final"))
        assert await page.text("#latency-text") != "no text yet"
        assert (await page.text("#server")).startswith("ready · ")
        loaded = await page.evaluate(
            "performance.getEntries().filter(e => 'transferSize' in e && !e.name.includes('/v1/'))"
            ".reduce((sum, e) => sum + e.transferSize, 0)"
        )
        assert 0 < loaded < MAX_PAGE_BYTES


@pytest.mark.model
async def test_silence_has_no_text(tiny_en: Path, tmp_path: Path) -> None:
    silence = wav(tmp_path / "silence.wav", SAMPLE_RATE)
    async with (
        serving(WorkerSpec(tiny_en, device="cpu"), partials="on") as app,
        shown(app, *hears(silence), query="&autostart=1") as page,
    ):
        await page.wait("events.some(e => e.type === 'level') && document.querySelector('[data-name=quiet]')")
        assert "muted" in await page.text("#notices")
        assert await stop(page) == ""
        assert await events(page, "final", "partial", "error") == []


@pytest.mark.model
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
async def test_text_arrives_though_the_recognizer_is_killed_in_mid_utterance(tiny_en: Path) -> None:
    async with (
        serving(WorkerSpec(tiny_en, device="cpu"), partials="on", ingest_speed=2.0) as app,
        shown(app, *hears(SPEECH / JFK), query="&autostart=1") as page,
    ):
        await page.wait("events.filter(e => e.type === 'speech_started').length >= 2")
        assert app.supervisor.pid is not None
        os.kill(app.supervisor.pid, signal.SIGSEGV)
        await page.wait("document.getElementById('server').dataset.state === 'restarting'")
        await page.wait("events.some(e => e.type === 'final' && e.detail.audio_end_ms > 10000)")
        text = await stop(page)
        assert word_errors(said(JFK), text).rate <= WRONG, text
        assert app.supervisor.n_restarts == 1


THREE = (13, 29)  # seconds of LONG: three short sentences with pauses
SAID = (
    "It was the season of Light, it was the season of Darkness, it was the spring of hope, it was the winter of "
    "despair, we had everything before us, we had nothing before us"
)


@pytest.mark.model
async def test_restarted_server_gets_what_has_no_outcome_and_each_word_once(tiny_en: Path, tmp_path: Path) -> None:
    """Beside it the same recording is heard by a server that stays, for comparison."""
    spec = WorkerSpec(tiny_en, device="cpu")
    with wave.open(str(SPEECH / LONG)) as source:
        source.setpos(THREE[0] * SAMPLE_RATE)
        spoken = source.readframes((THREE[1] - THREE[0]) * SAMPLE_RATE)
    clip = wav(tmp_path / "clip.wav", 0, spoken + bytes(4 * SAMPLE_RATE))
    is_over = "events.some(e => e.type === 'final' && e.detail.audio_end_ms > 10000)"
    async with AsyncExitStack() as stack:
        calm = await stack.enter_async_context(serving(spec))
        uncut = await stack.enter_async_context(shown(calm, *hears(clip), query="&autostart=1"))
        first = AsyncExitStack()
        app = await first.enter_async_context(serving(spec))
        port, url = app.listener.port, app.listener.url
        page = await stack.enter_async_context(opened(url, *hears(clip), query="&autostart=1"))
        await page.wait("events.filter(e => e.type === 'speech_started').length >= 2")
        await first.aclose()
        await page.wait("document.querySelector('[data-name=server] .countdown')")
        await stack.enter_async_context(serving(spec, port=port))
        await asyncio.gather(page.wait(is_over), uncut.wait(is_over))
        texts = [await stop(page), await stop(uncut)]
        finals = await events(page, "final")
        assert await events(page, "gap", "error") == []
        assert len(await events(page, "reconnected")) == 1
        edges = [edge for final in finals for edge in (final["audio_start_ms"], final["audio_end_ms"])]
        assert edges == sorted(edges), "no range has two outcomes"
        cut, whole = (word_errors(SAID, text).rate for text in texts)
        assert cut <= whole + 0.05, texts
        others = [complaint for complaint in page.complaints if "WebSocket connection to" not in complaint]
        assert [complaint for complaint in others if "/v1/stats" not in complaint] == []


# ---------------------------------------------------------------- scripted workers


async def test_busy_server_is_explained_counted_down_and_asked_again(scripted: WorkerSpec, speech: Path) -> None:
    async with (
        Gate() as gate,
        serving(scripted, queue_capacity=1) as app,
        busy(app, gate),
        shown(app, *hears(speech), query="&autostart=1") as page,
    ):
        counted = await page.wait("document.querySelector('#notices .countdown')?.innerText")
        assert 0 < float(counted) <= 1.8
        assert await page.evaluate("document.querySelectorAll('#queue .full').length") == 2
        assert "busy. Your words are kept" in await page.text("#notices")
        await page.wait("events.some(e => e.type === 'retrying')")
        await gate.open()
        await gate.open()
        await page.wait("events.some(e => e.type === 'final')")
        assert await page.text("#notices") == ""
        assert (await stop(page)).startswith("country ")


MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&amp;"


async def test_microphone_without_noise_suppression_at_its_own_rate_where_the_browser_has_no_other(
    scripted: WorkerSpec, speech: Path
) -> None:
    """As Firefox has it: no microphone for a context of another rate than its own."""
    firefox = """
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = (wanted) => ask((window.wanted = wanted));
    const create = AudioContext.prototype.createMediaStreamSource;
    AudioContext.prototype.createMediaStreamSource = function (stream) {
      if (this.sampleRate === 16000) throw new DOMException("another rate", "NotSupportedError");
      return create.call(this, stream);
    }"""
    async with serving(scripted) as app, shown(app, *hears(speech)) as page:
        await page.evaluate(f"{firefox};0")
        await page.click("#microphone")
        await page.wait("events.some(e => e.type === 'final')")
        assert (await stop(page)).startswith("country ")
        [started] = await events(page, "started")
        assert started["audio"]["sample_rate"] in (44100, 48000)
        assert await page.evaluate("wanted.audio.noiseSuppression") is False


async def test_sound_that_the_system_takes_away_and_a_closed_context_complain_of_nothing(
    scripted: WorkerSpec, speech: Path
) -> None:
    """A telephone call; and then the recording is over with what was said."""
    contexts = """window.contexts = [];
    window.AudioContext = class extends AudioContext {
      constructor(...args) { super(...args); contexts.push(this); }
    }"""
    async with serving(scripted) as app, shown(app, *hears(speech)) as page:
        await page.evaluate(f"{contexts};0")
        await page.click("#microphone")
        await page.wait("events.some(e => e.type === 'speech_started')")
        await page.evaluate("contexts[0].suspend()")
        await page.wait("contexts[0].state === 'running'")
        await page.evaluate("Promise.all([contexts[0].suspend(), contexts[0].close()])")
        await page.wait(IDLE)
        assert (await page.text("#transcript")).startswith("country ")
        assert "The microphone is gone" in await page.text("#notices")


async def test_text_grows_while_it_is_spoken(scripted: WorkerSpec) -> None:
    """On and on, because how many partials there are in so much of it depends on the machine."""
    on_and_on = (*MICROPHONE, f"--use-file-for-fake-audio-capture={SPEECH / JFK}")
    async with serving(scripted, partials="on") as app, shown(app, *on_and_on, query="&autostart=1") as page:
        await page.wait("events.filter(e => e.type === 'partial' && e.detail.stable).length >= 2")
        await stop(page)
        grown = [told["stable"] + told["unstable"] for told in await events(page, "partial")]
        assert grown[0] != grown[-1]
        seen = await page.evaluate("texts")
        assert all(any(text.strip() in told for told in seen) for text in grown), "as it was told it was shown"


async def test_markup_in_a_transcript_stays_text(scripted: WorkerSpec, speech: Path) -> None:
    """Row 52 of the table of faults."""
    async with serving(scripted, partials="on") as app, shown(app, *hears(speech)) as page:
        await page.evaluate(f"document.getElementById('prompt').value = {json.dumps('say ' + MARKUP)}")
        await page.click("#microphone")
        await page.wait("events.some(e => e.type === 'final')")
        assert await stop(page) == MARKUP
        assert await page.evaluate("document.querySelectorAll('#transcript img, #transcript script').length") == 0
        assert await page.evaluate("document.title") == "asr_ws"
        assert await events(page, "partial") != []


async def test_space_bar_is_held_to_talk_and_enter_presses_the_button(scripted: WorkerSpec, speech: Path) -> None:
    async with serving(scripted) as app, shown(app, *hears(speech)) as page:
        await page.wait(READY)
        await page.key("keyDown", " ", "Space")
        await page.wait("events.some(e => e.type === 'speech_started')")
        await page.key("keyUp", " ", "Space")
        await page.wait(IDLE)
        assert (await page.text("#transcript")).startswith("country ")
        await page.evaluate("document.getElementById('microphone').focus()")
        await page.press("Enter", "Enter")
        await page.wait(RECORDING)
        await page.press("Enter", "Enter")
        await page.wait(IDLE)
        assert len(await events(page, "done")) == 2


async def test_holding_the_space_bar_again_does_not_give_up_what_was_said(scripted: WorkerSpec, speech: Path) -> None:
    """Push to talk: the next hold comes while the text before is still awaited."""
    async with Gate() as gate, serving(scripted) as app, shown(app, *hears(speech)) as page:
        await page.wait(READY)
        await page.evaluate(f"document.getElementById('prompt').value = {gate.script!r}")
        await page.key("keyDown", " ", "Space")
        await page.wait("events.some(e => e.type === 'speech_started')")
        await page.key("keyUp", " ", "Space")
        released = await page.evaluate("performance.now()")
        await page.wait(f"performance.now() > {released} + 3200")  # a click would now give it up
        await page.press(" ", "Space")
        await gate.open()
        await page.wait(IDLE)
        assert (await page.text("#transcript")).startswith("country ")


async def test_quick_presses_leave_no_microphone_behind(scripted: WorkerSpec) -> None:
    """While the permission was asked for, a second recording was begun, and lost the first one's microphone."""
    slow = """window.tracks = [];
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (wanted) => {
      const stream = await ask(wanted);
      await new Promise((resolve) => setTimeout(resolve, 100));
      window.tracks.push(...stream.getTracks());
      return stream;
    }"""
    async with serving(scripted) as app, shown(app, *MICROPHONE) as page:
        await page.evaluate(f"{slow};0")
        for _ in range(3):
            await page.click("#microphone")
        await page.wait(RECORDING)
        await page.wait("tracks.length === 2 && tracks.filter((track) => track.readyState === 'live').length === 1")
        await stop(page)
        await page.wait("tracks.every((track) => track.readyState === 'ended')")


async def test_microphone_that_is_unplugged_ends_the_recording_with_its_text(
    scripted: WorkerSpec, speech: Path
) -> None:
    take_away = """
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (wanted) => (window.stream = await ask(wanted))"""
    async with serving(scripted) as app, shown(app, *hears(speech)) as page:
        await page.evaluate(f"{take_away};0")
        await page.click("#microphone")
        await page.wait("events.some(e => e.type === 'speech_started')")
        await page.evaluate("stream.getTracks().forEach((track) => track.dispatchEvent(new Event('ended')))")
        await page.wait(IDLE)
        assert (await page.text("#transcript")).startswith("country ")
        assert "The microphone is gone" in await page.text("#notices")


async def test_server_that_ends_the_recording_ends_the_listening(
    scripted: WorkerSpec, speech: Path, tokens: Path
) -> None:
    async with serving(scripted, auth_token_file=str(tokens)) as app, shown(app, *hears(speech)) as page:
        await page.evaluate(f"document.getElementById('token').value = '{TOKEN}'")
        await page.click("#microphone")
        await page.wait("events.some(e => e.type === 'speech_started')")
        grant(tokens, "another-token-of-16")
        await page.wait(IDLE)
        assert "not accepted" in await page.text("#notices")


@pytest.mark.parametrize("host", ["127.0.0.1", "asr.test"])
async def test_text_is_copied_on_a_secure_page_and_on_another(scripted: WorkerSpec, speech: Path, host: str) -> None:
    flag = "--host-resolver-rules=MAP asr.test 127.0.0.1"
    async with (
        serving(scripted, allow_origin=("*",)) as app,
        opened(f"http://{host}:{app.listener.port}", flag) as page,
    ):
        await page.evaluate("document.addEventListener('copy', () => { window.copied = `${getSelection()}` })")
        await page.evaluate("document.getElementById('prompt').value = 'say to be copied'")
        await page.choose_file("#file", speech)
        await page.wait("events.some(e => e.type === 'done')")
        await page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        await page.click("#copy")
        await page.wait("document.getElementById('copy').textContent === 'Copied'")
        copied = "navigator.clipboard.readText()" if host == "127.0.0.1" else "copied.trim()"
        assert await page.evaluate(copied) == "to be copied"
        assert [each for each in page.complaints if "Cross-Origin-Opener-Policy" not in each] == []


async def test_languages_of_the_model_are_offered(tmp_path: Path) -> None:
    async with serving(scripted_worker(tmp_path, multilingual=True)) as app, shown(app) as page:
        await page.wait("document.querySelectorAll('#language option').length === 4")
        offered = await page.evaluate("[...document.querySelectorAll('#language option')].map(o => o.textContent)")
        assert offered == ["Detect automatically", "Chinese", "English", "German"]
        assert await page.evaluate("document.getElementById('translate-label').hidden") is False
        await page.evaluate("document.getElementById('language').value = 'de'")
        await page.evaluate("document.getElementById('translate').checked = true")
        await page.choose_file("#file", wav(tmp_path / "quiet.wav", SAMPLE_RATE))
        await page.wait("events.some(e => e.type === 'started')")
        [started] = await events(page, "started")
        assert (started["language"], started["task"]) == ("de", "translate")


async def test_space_in_a_field_is_a_space(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, shown(app, *MICROPHONE) as page:
        await page.evaluate("document.querySelector('details').open = true; document.getElementById('prompt').focus()")
        await page.press(" ", "Space")
        assert await page.evaluate("document.getElementById('prompt').value") == " "
        assert await page.evaluate(IDLE)


async def test_space_bar_is_for_talking_also_after_the_mouse_pressed_something_else(
    scripted: WorkerSpec, speech: Path
) -> None:
    async with serving(scripted) as app, shown(app, *hears(speech)) as page:
        await page.click("#theme-toggle")
        theme = await page.evaluate("document.documentElement.dataset.theme")
        await page.key("keyDown", " ", "Space")
        await page.wait(RECORDING)
        await page.wait("events.some(e => e.type === 'speech_started')")
        await page.key("keyUp", " ", "Space")
        await page.wait(IDLE)
        assert await page.evaluate("document.documentElement.dataset.theme") == theme
        await page.evaluate("document.getElementById('language-toggle').focus()")
        await page.press("Tab", "Tab")  # now it is the keyboard's
        await page.press(" ", "Space")
        assert await page.evaluate("document.documentElement.dataset.theme") != theme
        assert await page.evaluate(IDLE)


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--use-fake-device-for-media-stream", "--deny-permission-prompts"), "microphone_refused"),
        (("--use-fake-ui-for-media-stream",), "microphone_missing"),
    ],
)
async def test_microphone_that_is_not_to_be_had_is_explained(
    scripted: WorkerSpec, flags: tuple[str, ...], code: str
) -> None:
    async with serving(scripted) as app, shown(app, *flags) as page:
        await page.click("#microphone")
        await page.wait(f"document.querySelector('[data-text={code}] small')")
        assert await page.evaluate(IDLE)
        assert "choose a file" in (await page.text("#notices")).lower()


async def test_self_signed_certificate_lets_another_machine_use_its_microphone(
    scripted: WorkerSpec, speech: Path, tmp_path: Path
) -> None:
    """Once its warning is accepted: the page is secure, and so are its sessions."""
    async with serving(scripted, tls_self_signed=True, state_dir=str(tmp_path), allow_origin=("*",)) as app:
        flags = (*hears(speech), "--host-resolver-rules=MAP asr.test 127.0.0.1", "--ignore-certificate-errors")
        async with opened(f"https://asr.test:{app.listener.port}", *flags, query="&autostart=1") as page:
            await page.wait("events.some(e => e.type === 'final')")
            assert (await stop(page)).startswith("country ")
            assert page.complaints == []


async def test_insecure_page_is_explained(scripted: WorkerSpec) -> None:
    async with serving(scripted, allow_origin=("*",)) as app:
        flags = (*MICROPHONE, "--host-resolver-rules=MAP asr.test 127.0.0.1")
        async with opened(f"http://asr.test:{app.listener.port}", *flags) as page:
            await page.click("#microphone")
            await page.wait("document.querySelector('[data-text=microphone_insecure] small')")
            assert "--tls-self-signed" in await page.text("#notices")


async def test_file_is_an_alternative_and_its_text_can_be_taken_along(
    scripted: WorkerSpec, speech: Path, tmp_path: Path
) -> None:
    async with serving(scripted) as app, shown(app) as page:
        await page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        await page.evaluate("document.getElementById('prompt').value = 'say a <b> & c'")
        await page.choose_file("#file", speech)
        await page.wait("events.some(e => e.type === 'done')")
        await page.wait(IDLE)
        assert await page.text("#transcript") == "a <b> & c"
        for kind in ("txt", "srt", "vtt"):
            await page.click(f"#{kind}")
        downloads = {"txt": tmp_path / "transcript.txt"}  # of all there is; the subtitles are the file's
        downloads |= {kind: tmp_path / f"{speech.stem}.{kind}" for kind in ("srt", "vtt")}
        async with asyncio.timeout(WAIT_S):
            while not all(file.exists() and file.stat().st_size for file in downloads.values()):
                await asyncio.sleep(0.02)
        told = {kind: file.read_text("utf-8") for kind, file in downloads.items()}
        assert told["txt"] == "a <b> & c\n"
        time = r"00:00:0\d[.,]\d{3}"
        assert re.fullmatch(rf"1\n{time} --> {time}\na <b> & c\n", told["srt"])
        assert re.fullmatch(rf"WEBVTT\n\n{time} --> {time}\na &lt;b&gt; &amp; c\n", told["vtt"])


async def test_file_is_dropped_on_the_page(scripted: WorkerSpec, speech: Path, tmp_path: Path) -> None:
    async with serving(scripted) as app, shown(app) as page:
        await page.evaluate("document.getElementById('prompt').value = 'say dropped'")
        await page.drag("dragEnter", speech)
        await page.drag("dragOver", speech)
        await page.wait("document.getElementById('drop').classList.contains('over')")
        await page.drag("drop", speech, wav(tmp_path / "quiet.wav", SAMPLE_RATE))
        await page.wait("events.some(e => e.type === 'done')")
        await page.wait(IDLE)
        assert await page.text("#transcript") == "dropped"
        assert await page.text("#notices") == "One file at a time: only speech.wav is heard."
        assert not await page.evaluate("document.getElementById('drop').classList.contains('over')")


async def test_file_may_not_interrupt_can_be_given_up_and_its_silence_is_told(
    scripted: WorkerSpec, speech: Path, tmp_path: Path
) -> None:
    silence = wav(tmp_path / "silence.wav", SAMPLE_RATE)
    async with Gate() as gate, serving(scripted) as app, shown(app, *hears(speech)) as page:
        await page.click("#microphone")
        await page.wait(RECORDING)
        for step in ("dragEnter", "dragOver", "drop"):
            await page.drag(step, silence)
        await page.wait("document.querySelector('[data-name=file_later]')")
        await stop(page)
        assert await page.text("#notices") == ""
        await page.evaluate(f"document.getElementById('prompt').value = {gate.script!r}")
        await page.choose_file("#file", SPEECH / LONG)
        await page.wait("events.filter(e => e.type === 'accepted').length >= 1")
        assert await page.evaluate("document.getElementById('microphone').ariaLabel") == "Stop sending the file"
        await page.click("#microphone")
        assert await page.evaluate(IDLE), "at once"
        await page.evaluate("document.getElementById('prompt').value = ''")
        await page.choose_file("#file", silence)
        await page.wait("document.querySelector('[data-text=file_silent]')")
        assert await page.evaluate(IDLE)


async def test_file_without_audio_is_explained(scripted: WorkerSpec, tmp_path: Path) -> None:
    file = tmp_path / "no.wav"
    file.write_bytes(b"RIFF, but no more than that")
    async with serving(scripted) as app, shown(app) as page:
        await page.choose_file("#file", file)
        await page.wait("document.querySelector('[data-name=file] small')")
        await page.wait(IDLE)


async def test_server_that_wants_a_token_gets_it_from_the_settings(
    scripted: WorkerSpec, speech: Path, tokens: Path
) -> None:
    async with serving(scripted, auth_token_file=str(tokens)) as app, shown(app, *hears(speech)) as page:
        await page.wait("document.querySelector('[data-text=unauthorized] small')")
        assert (await page.text("#server")).startswith("wants a token")
        await page.evaluate("document.querySelector('details').open = true; document.getElementById('token').focus()")
        await page.call("Input.insertText", text=TOKEN)
        await page.press("Tab", "Tab")
        await page.wait(READY)
        await page.click("#microphone")
        await page.wait("events.some(e => e.type === 'final')")
        assert (await stop(page)).startswith("country ")


async def test_server_that_is_away_is_told_and_comes_back_by_itself(scripted: WorkerSpec, speech: Path) -> None:
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        app = await first.enter_async_context(serving(scripted))
        port, url = app.listener.port, app.listener.url
        page = await stack.enter_async_context(opened(url, *hears(speech)))
        await page.wait(READY)
        assert await page.text("#queue-text") == "0 of 3 places taken, recognizer free"
        await first.aclose()
        await page.click("#microphone")
        await page.wait("document.querySelector('[data-text=unreachable] small')")
        await page.wait("document.getElementById('server').dataset.state === 'unreachable'")
        assert await page.text("#queue-text") == "not known"
        assert await page.evaluate(IDLE)
        await page.click("#language-toggle")
        await page.wait("document.querySelector('[data-text=unreachable]').textContent.startsWith('无法连接服务器')")
        await stack.enter_async_context(serving(scripted, port=port))
        await page.wait(READY)
        await page.wait("!document.getElementById('notices').innerText")  # once a session has said it too
        await page.click("#microphone")
        await page.wait("events.some(e => e.type === 'final')")


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


ONLY_IPV6 = pytest.param("[::1]", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ONLY_IPV6])
async def test_page_finds_sessions_at_a_port_of_their_own(scripted: WorkerSpec, speech: Path, host: str) -> None:
    async with serving(scripted, host=host.strip("[]"), http_port=0) as app:
        port, http_port = app.listener.port, app.listener.http_port
        async with opened(f"http://{host}:{http_port}", *hears(speech)) as page:
            await page.wait(READY)
            await page.click("#microphone")
            await page.wait("events.some(e => e.type === 'final')")
            await page.click("#microphone")
            await page.wait(IDLE)
            await page.wait("document.getElementById('queue-text').innerText.startsWith('0 of 3')")
            assert page.complaints == []
            sessions = {url for url in page.urls if url.startswith("ws")}
            assert sessions == {f"ws://{host}:{port}/v1/stream"}
            others = [url for url in page.urls if not url.startswith(("ws", f"http://{host}:{http_port}/"))]
            assert others == []
            refused = await page.evaluate(
                "new Promise((resolve) => {"
                "document.addEventListener('securitypolicyviolation', (e) => resolve(e.effectiveDirective));"
                f"new WebSocket('ws://{host}:9') }})"
            )
            assert refused == "connect-src"


async def test_transcript_keeps_words_until_there_are_others_and_a_file_has_subtitles_of_its_own(
    scripted: WorkerSpec,
) -> None:
    program = r"""import('./page/transcript.js').then(({ Transcript }) => {
      const box = document.createElement('div');
      const made = new Transcript(box, document.createElement('p'));
      const final = (utterance, start, end, text, segments = [{ text, start_ms: start, end_ms: end }]) =>
        made.final({ utterance, text, audio_start_ms: start, audio_end_ms: end, segments });
      const partial = (utterance, start, end, stable) => {
        made.speech({ utterance, audio_start_ms: start });
        made.partial({ utterance, stable, unstable: '', audio_end_ms: end });
      };
      const states = [];
      const look = () => states.push([...box.children].map((e) => e.textContent).join('|'));
      made.begin();
      partial('u1', 0, 1000, 'one');
      made.age('u1');
      partial('1:u2', 2000, 3000, 'two');
      look();
      final('1:u1', 0, 1500, 'One.');
      final('1:u2', 2000, 3000, 'Two.\n\n2\n00:00:01,000 --> 00:00:09,000');
      look();
      const before = made.srt;
      made.begin('talk.wav');
      final('u1', 500, 900, 'Three.', []);
      return [states, before, made.srt, made.name, made.text.split('\n')[0]];
    })"""
    async with serving(scripted, ready=False) as app, shown(app) as page:
        states, before, subtitles, name, first = await page.evaluate(program)
    assert states == ["one|two", "One.|Two.\n\n2\n00:00:01,000 --> 00:00:09,000"]
    assert before.count("\n\n") == 1, "of the two subtitles"
    assert subtitles == "1\n00:00:00,500 --> 00:00:00,900\nThree.\n"
    assert (name, first) == ("talk", "One.")


async def test_page_speaks_chinese(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, shown(app, *MICROPHONE) as page:
        await page.click("#language-toggle")
        await page.wait("document.documentElement.lang === 'zh-CN'")
        assert await page.text("#copy") == "复制"
        left = await page.evaluate(
            "[...document.querySelectorAll('[data-t], [data-t-label]')].filter(e => !(e.textContent || e.ariaLabel))"
            ".map(e => e.outerHTML)"
        )
        assert left == []
        await page.call("Page.reload")
        await page.wait("document.documentElement?.lang === 'en'")  # as the address says


AXE = (
    "axe.run({resultTypes: ['violations']})"
    ".then(r => r.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html)]))"
)


@pytest.mark.parametrize(("language", "look"), [("en", "light"), ("zh", "dark")])
async def test_accessibility_rules_find_nothing_serious(
    scripted: WorkerSpec, speech: Path, node_modules: Path, language: str, look: str
) -> None:
    """By axe-core: first as it comes, then with text, a notice of a fault and the settings open."""
    async with serving(scripted) as app, shown(app, *hears(speech), query=f"&theme={look}") as page:
        await page.evaluate((node_modules / "axe-core" / "axe.min.js").read_text("utf-8") + ";0")
        if language == "zh":
            await page.click("#language-toggle")
        await page.wait(READY)
        assert await page.evaluate(AXE) == []
        await page.click("#microphone")
        await page.wait("events.some(e => e.type === 'final')")
        await stop(page)
        await page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
        await page.evaluate("import('./page/notices.js').then(({ tell }) => tell('x', 'unreachable'))")
        assert await page.evaluate(AXE) == []


async def test_everything_is_reached_by_the_tab_key(scripted: WorkerSpec) -> None:
    async with serving(scripted) as app, shown(app, *MICROPHONE) as page:
        await page.wait(READY)
        reached = []
        for _ in range(13):
            await page.press("Tab", "Tab")
            reached.append(await page.evaluate("document.activeElement.id || document.activeElement.localName"))
        wanted = "language-toggle theme-toggle transcript microphone file-button summary"  # there is nothing to copy
        assert [id for id in reached if id in wanted.split()][:6] == wanted.split()
