"""A multilingual model: each utterance's language is found, its words have times."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from asr_ws import messages
from asr_ws.client import SessionFailed, Transcript, collect, connect
from asr_ws.server.app import App
from asr_ws.testing.wer import word_errors
from asr_ws.worker.supervisor import WorkerSpec
from tests.server.running import serving

pytestmark = pytest.mark.model

FOLDER = Path(__file__).parents[1] / "speech"
ROWS = [line.split("\t") for line in (FOLDER / "manifest.tsv").read_text("utf-8").splitlines()[1:]]
RECORDINGS = [(FOLDER / name, language, said) for name, _, language, said in ROWS]


def multilingual(base: Path) -> AbstractAsyncContextManager[App]:
    return serving(WorkerSpec(base, device="cpu"), partials="off", model="base")


async def heard(app: App, file: Path, **start: object) -> Transcript:
    async with connect(app.url, **start) as session:  # type: ignore[arg-type]
        return collect([event async for event in session.stream(file)])


async def test_language_is_found_and_words_have_their_times(base: Path) -> None:
    async with multilingual(base) as app:
        transcripts = [await heard(app, file, words=True) for file, _, _ in RECORDINGS]
    for transcript, (_, language, said) in zip(transcripts, RECORDINGS, strict=True):
        assert word_errors(said, transcript.text).rate <= 0.25, transcript.text
        assert {final.language for final in transcript.finals} == {language}
        for final in transcript.finals:
            assert 0.5 < final.language_probability <= 1
            assert isinstance(final.words, list)
            assert "".join(word.word for word in final.words).split() == final.text.split()
            times = [time for word in final.words for time in (word.start_ms, word.end_ms)]
            edges = [final.audio_start_ms, *times, final.audio_end_ms]
            assert edges == sorted(edges), "word times rise, and lie inside their utterance"


async def test_a_session_may_change_its_language_or_ask_for_english(base: Path) -> None:
    async def both() -> AsyncIterator[bytes]:
        for file, _, _ in RECORDINGS[:2]:
            yield file.read_bytes()[44:] + bytes(8000 * 2)

    file, language, said = RECORDINGS[2]
    async with multilingual(base) as app:
        async with connect(app.url, audio={"sample_rate": 8000}) as session:
            events = [event async for event in session.stream(both())]
        translated = await heard(app, file, task="translate", language=language)
        async with connect(app.url, language="xx") as session:
            with pytest.raises(SessionFailed, match="unsupported_language"):
                [event async for event in session.stream(bytes(3200))]
    languages = [event.language for event in events if isinstance(event, messages.Final)]
    assert (languages[0], languages[-1], set(languages)) == ("es", "fr", {"es", "fr"})
    assert translated.text.isascii(), translated.text
    assert len(translated.text.split()) >= 3, said
