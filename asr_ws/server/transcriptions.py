"""OpenAI's speech-to-text routes: a file in, its text out, as a whole or as server-sent events while it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from asr_ws.core.files import FileRequest, FileSlice, delta
from asr_ws.core.types import SAMPLE_RATE
from asr_ws.errors import AsrError, MediaError
from asr_ws.server.failures import Refused, failure
from asr_ws.server.files import File, Files
from asr_ws.server.form import BodyLimits, check_head, parse_fields, read_form
from asr_ws.server.http import Route, Visit
from asr_ws.server.media import Media, MediaLimits, SpareProcess
from asr_ws.server.shapes import body, delta_event, done_event, models_body, sse

BEAT_S: Final = 15.0  # between signs of life of a stream: proxies end what is silent for 60 s
BEAT: Final = b": still at it\n\n"


class Transcriptions:
    """Args:
    model: the one that is served, whatever name is asked for.
    languages: that it can be told.
    model_created: Unix seconds.
    """

    def __init__(
        self,
        files: Files,
        limits: MediaLimits,
        spare: SpareProcess,
        model: str,
        languages: tuple[str, ...],
        model_created: int,
    ) -> None:
        self._files = files
        self._limits = limits
        self._spare = spare
        self._languages = languages
        self._log = structlog.get_logger()
        self._models = json.dumps(models_body(model, model_created))

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/audio/transcriptions", partial(self._transcribe, "transcribe")),
            Route("POST", "/v1/audio/translations", partial(self._transcribe, "translate")),
            Route("GET", "/v1/models", self._list_models),
        ]

    async def _list_models(self, visit: Visit, _: str) -> web.StreamResponse:
        return visit.respond(200, self._models)

    async def _transcribe(self, task: str, visit: Visit, _: str) -> web.StreamResponse:
        body_limits = BodyLimits(self._limits.max_bytes)
        check_head(visit.request, body_limits)
        with self._files.admitted(visit.caller) as file:
            await visit.want_body()
            media: Media | None = None
            async with AsyncExitStack() as stack:

                async def on_file() -> Media:
                    nonlocal media
                    media = await stack.enter_async_context(self._media())
                    return media

                fields = await read_form(visit.request, limits=body_limits, on_file=on_file)
                assert media is not None  # else there are no fields
                media.end()
                request = parse_fields(fields, task=task, languages=self._languages)
                parts = await stack.enter_async_context(aclosing(self._files.transcribe(media, file, request)))
                return await (_stream if request.stream else _respond)(visit, file, request, parts)

    @asynccontextmanager
    async def _media(self) -> AsyncIterator[Media]:
        """Raises: Refused: the system has no process for it."""
        async with AsyncExitStack() as stack:
            try:
                media = await stack.enter_async_context(Media(self._limits, spare=self._spare))
            except (OSError, RuntimeError) as error:
                self._log.warning("media.not_started", error=str(error))
                raise self._files.no_room() from error
            try:
                yield media
            except MediaError as error:
                if error.code == "no_space":
                    self._log.warning("media.no_space", error=str(error))
                raise


async def _respond(
    visit: Visit, file: File, request: FileRequest, parts: AsyncIterator[FileSlice]
) -> web.StreamResponse:
    async for _ in parts:
        pass
    content_type, text = await asyncio.to_thread(body, file.transcript, request)
    return visit.respond(200, text, content_type)


async def _stream(
    visit: Visit, file: File, request: FileRequest, parts: AsyncIterator[FileSlice]
) -> web.StreamResponse:
    """Its head waits for the first part: what goes wrong before has a status of its own."""
    stream: web.StreamResponse | None = None
    beating: asyncio.Task[None] | None = None
    try:
        async for part in parts:
            if stream is None:
                stream = await visit.stream("text/event-stream")
                beating = asyncio.create_task(_beat(stream), name="beat")
            done_s = part.end_sample / SAMPLE_RATE
            is_first = not any(delta(each) for each in file.parts[:-1])
            await stream.write(sse(delta_event(part, is_first=is_first, done_s=done_s, duration_s=file.duration_s)))
        last = await asyncio.to_thread(lambda: sse(done_event(file.transcript, request)))
    except (AsrError, Refused) as error:
        if stream is None:
            raise
        last = sse(dict(failure(error).body))
    finally:
        if beating is not None:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)  # whose peer has gone: the next write says so, too
    if stream is None:  # nothing was said in it
        stream = await visit.stream("text/event-stream")
    await stream.write(last)
    await stream.write_eof()
    return stream


async def _beat(stream: web.StreamResponse) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        await stream.write(BEAT)
