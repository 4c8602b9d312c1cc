"""Uploads against really spawned media processes."""

from __future__ import annotations

import asyncio
import io
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
from structlog.testing import capture_logs

from asr_ws.core.types import Samples
from asr_ws.errors import MediaError
from asr_ws.media.wire import Opened
from asr_ws.processes import ChildProcess
from asr_ws.server import media as media_module
from asr_ws.server.media import DECODER, Media, MediaLimits, SpareProcess
from tests.media.files import KIND, KINDS, Kind, encoded, film, tone

LIMITS = MediaLimits(max_bytes=2**30, max_audio_s=3600, cpu_s=300, memory_bytes=2**30, stall_s=300)
ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and limits")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc")
# Takes a process a second or two on a busy machine, for which it does nothing that is seen: no limit of a test is near.
pytestmark = pytest.mark.usefixtures("decoders")


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests.media.decoders` can be imported, whatever the folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def scripted(name: str) -> str:
    return f"tests.media.decoders:{name}"


async def transcoded(
    file: bytes, limits: MediaLimits = LIMITS, *, decoder: str = DECODER, chunk: int = 65_536
) -> tuple[Opened, Samples]:
    async with asyncio.timeout(600), Media(limits, decoder=decoder) as media:
        for start in range(0, len(file), chunk):
            await media.write(file[start : start + chunk])
        media.end()
        opened = await media.open()
        parts = []
        while len(samples := await media.read(10_000)):
            parts.append(samples)
        return opened, np.concatenate(parts)


async def failed(file: bytes, limits: MediaLimits = LIMITS, *, decoder: str = DECODER) -> MediaError:
    """How it ends, and that it ends."""
    with pytest.raises(MediaError) as error:
        await transcoded(file, limits, decoder=decoder)
    return error.value


async def came_of(file: bytes, limits: MediaLimits = LIMITS, *, decoder: str = DECODER) -> str:
    """``audio``, or the error's code."""
    try:
        _, samples = await transcoded(file, limits, decoder=decoder)
    except MediaError as error:
        return error.code
    return "audio" if np.isfinite(samples).all() and np.abs(samples).max() <= 1 else "noise"


# ---------------------------------------------------------------- what goes well


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_each_format_is_decoded(kind: Kind) -> None:
    opened, samples = await transcoded(encoded(kind, tone(2.0, kind.rate)))
    assert opened.duration_s == pytest.approx(2.0, abs=0.001 + 2 * kind.padding_s)
    assert len(samples) / 16_000 == pytest.approx(2.0, abs=0.001 + kind.padding_s)


async def test_wav_of_our_own_format_is_the_same_sample_for_sample_byte_by_byte() -> None:
    pcm = tone(0.2, 16_000)
    opened, samples = await transcoded(encoded(KIND["wav-s16-16k"], pcm), chunk=1)
    assert opened == Opened(0.2, "wav pcm_s16le")
    assert np.array_equal(samples, pcm / np.float32(32_768))


async def test_file_larger_than_the_memory_for_it_is_sought_in_all_the_same() -> None:
    """40 s of noise and more: its index is at the end, and it goes to a temporary file."""
    noise = np.random.default_rng(3).integers(-(2**14), 2**14, 48_000 * 40).astype(np.int16)
    kind = replace(KIND["m4a-aac-44k-stereo"], codec="alac", rate=48_000)
    file = encoded(kind, noise)
    assert len(file) > 5 * 2**20
    _, samples = await transcoded(file)
    assert len(samples) == 16_000 * 40


async def test_file_on_the_disk_is_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "-recording.wav"
    path.write_bytes(encoded(KIND["wav-s16-16k"], tone(1.0, 16_000)))
    async with Media(LIMITS, path) as media:
        assert await media.open() == Opened(1.0, "wav pcm_s16le")
        assert [len(await media.read(n)) for n in (0, 12_000, 12_000, 12_000)] == [0, 12_000, 4_000, 0]


async def test_what_native_code_prints_is_not_taken_for_audio() -> None:
    assert len((await transcoded(b"x", decoder=scripted("told_of_by_print")))[1]) == 16_000


async def test_read_that_is_cancelled_loses_nothing() -> None:
    pcm = tone(5.0, 16_000)
    async with Media(LIMITS) as media:
        await media.write(encoded(KIND["wav-s16-16k"], pcm))
        media.end()
        await media.open()
        reading = asyncio.create_task(media.read(len(pcm)))
        while not media._pcm:
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        assert np.array_equal(await media.read(len(pcm)), pcm / np.float32(32_768))


# ---------------------------------------------------------------- files that are none, or hostile


def truncated(kind: Kind) -> bytes:
    file = encoded(kind, tone(1.0, kind.rate))
    return file[: len(file) // 3]


def header_bomb(form: str) -> bytes:
    wav = encoded(KIND["wav-s16-16k"], tone(0.1, 16_000))
    at = wav.index(b"fmt ") + 8
    match form:
        case "channels":
            return wav[: at + 2] + b"\xff\xff" + wav[at + 4 :]
        case "block":
            return wav[: at + 12] + b"\xff\xff" + wav[at + 14 :]
        case _:  # an MP4 whose index claims 4 GB
            return (
                b"\0\0\0\x18ftypM4A \0\0\0\0M4A isom" + b"\xff\xff\xff\xf0moov" + b"\xff\xff\xff\xe8trak" + bytes(100)
            )


HOSTILE = {
    "zeros": bytes(1000),
    "20 MB of zeros": bytes(20_000_000),
    "random": random.Random(4).randbytes(200_000),
    "one byte": b"R",
    "text": b"I am no audio.\n" * 1000,
    "film": film("mp4", sound=False),
    **{f"{form} bomb": header_bomb(form) for form in ("channels", "block", "atom")},
    **{f"cut {kind.name}": truncated(kind) for kind in KINDS},
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_file_is_decoded_or_refused_and_crashes_nothing(name: str) -> None:
    what = await came_of(HOSTILE[name], replace(LIMITS, cpu_s=60))
    assert what in ("audio", "unsupported_media", "undecodable_media", "no_audio")


async def test_empty_body_is_an_empty_file() -> None:
    error = await failed(b"")
    assert (error.code, str(error)) == ("empty_file", "the file is empty")


async def test_error_says_what_to_do() -> None:
    error = await failed(b"hello")
    assert error.code == "unsupported_media"
    assert str(error) == (
        "this is no audio file, or of a kind that is not decoded (send wav, flac, ogg, mp3, m4a or webm)"
    )


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={}\nm=audio 5004 RTP/AVP 0\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    ],
    ids=["m3u8", "ffconcat", "sdp", "dash"],
)
async def test_playlist_opens_neither_a_file_nor_a_connection(
    playlist: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is a recording, and in the current folder: FFmpeg's own rules would let it be played."""
    monkeypatch.chdir(tmp_path)
    called: list[object] = []
    async with await asyncio.start_server(lambda reader, writer: called.append(writer), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        wav = tmp_path / "secret.wav"
        wav.write_bytes(encoded(KIND["wav-s16-16k"], tone(1.0, 16_000)))
        for url in (f"http://127.0.0.1:{port}/a.ts", wav.as_uri(), "secret.wav", "file:///etc/passwd"):
            assert (await failed(playlist.format(url).encode())).code == "unsupported_media"
    assert called == []


@linux
async def test_hour_of_silence_in_a_small_file_is_bounded_in_time_and_memory() -> None:
    """200 bits a second: so little that its header is not believed."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8_000 * 7200, np.int16), 8_000, format="FLAC")
    async with Media(replace(LIMITS, max_audio_s=600)) as media:
        await media.write(file.getvalue())
        media.end()
        opened = await media.open()
        assert opened.duration_s is None
        process, peak, n_samples = psutil.Process(media.pid), 0, 0
        with pytest.raises(MediaError) as error:
            while True:
                n_samples += len(await media.read(160_000))
                peak = max(peak, process.memory_info().rss)
    assert error.value.code == "too_long"
    assert str(error.value) == "the file holds more than 600 s of audio"
    assert 500 * 16_000 < n_samples <= 600 * 16_000
    assert peak < 150 * 2**20


async def test_file_of_too_many_bytes_ends_its_upload() -> None:
    async with Media(replace(LIMITS, max_bytes=100_000)) as media:
        with pytest.raises(MediaError) as error:
            while True:
                await media.write(bytes(50_000))
    assert error.value.code == "too_large"


# ---------------------------------------------------------------- crashes and hangs


@posix
@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ("one_second_then_segv", "the file crashed the decoder (segv)"),
        ("killed_at_once", "the file crashed the decoder (killed)"),
        ("glutton", "the file took more than 1024 MiB of memory"),
        ("raising", "the file ended the decoder with status 1"),
        ("garrulous", "the file ended the decoder with status 9"),
        ("mad", "the decoder has gone mad"),
    ],
)
async def test_crash_is_this_files_error_and_told_by_its_cause(decoder: str, message: str) -> None:
    with capture_logs() as logs:
        error = await failed(b"x", decoder=scripted(decoder))
    assert (error.code, error.message) == ("media_crashed", message)
    [died] = [log for log in logs if log["event"] == "media.died"]
    assert died["log_level"] == "warning"
    assert len(died["stderr"]) <= 8192
    assert ("the last line" in died["stderr"]) == (decoder == "garrulous")


@posix
async def test_processor_time_is_limited() -> None:
    error = await failed(b"x", replace(LIMITS, cpu_s=2), decoder=scripted("loop"))
    assert (error.code, error.message) == ("media_crashed", "the file took more than 2 s of processor time")


@posix
@pytest.mark.parametrize("name", ["SEGV", "KILL"])
async def test_death_in_mid_decode_is_known_when_its_audio_is_read(name: str) -> None:
    async with Media(LIMITS, decoder=scripted("endless")) as media:
        await media.write(b"x")
        media.end()
        await media.open()
        assert len(await media.read(16_000)) == 16_000
        os.kill(media.pid, getattr(signal, f"SIG{name}"))
        with pytest.raises(MediaError, match=name.lower()) as error:
            while True:
                await media.read(16_000)
        assert error.value.code == "media_crashed"


@posix
@pytest.mark.parametrize("decoder", ["stopped_at_once", "loop", "one_second_then_a_loop"])
async def test_hang_is_ended(decoder: str) -> None:
    """Its limit may run out before it has started, which is as good."""
    error = await failed(b"x", replace(LIMITS, stall_s=1.0), decoder=scripted(decoder))
    assert (error.code, error.message) == ("media_hung", "the decoder did nothing for 1 s and was ended")


@posix
async def test_process_that_is_stopped_in_mid_decode_is_ended() -> None:
    with capture_logs() as logs:
        async with Media(LIMITS, decoder=scripted("endless")) as media:
            await media.write(b"x")
            media.end()
            await media.open()
            os.kill(media.pid, signal.SIGSTOP)
            media._limits = replace(LIMITS, stall_s=0.1)
            with pytest.raises(MediaError) as error:
                while True:
                    await media.read(16_000)
            assert error.value.code == "media_hung"
            assert not psutil.pid_exists(media.pid)
    assert [(log["event"], log["cause"]) for log in logs] == [("media.died", "hung")]


@posix
async def test_upload_to_a_process_that_takes_nothing_is_ended() -> None:
    async with Media(replace(LIMITS, stall_s=0.1)) as media:
        os.kill(media.pid, signal.SIGSTOP)
        with pytest.raises(MediaError) as error:
            while True:
                await media.write(bytes(100_000))
        assert error.value.code == "media_hung"


@linux
async def test_process_waits_for_a_client_that_does_not_read() -> None:
    async with Media(LIMITS, decoder=scripted("endless")) as media:
        await media.write(b"x")
        media.end()
        await media.open()
        process = psutil.Process(media.pid)
        for _ in range(2000):  # in which it would write gigabytes
            await asyncio.sleep(0)
            assert process.io_counters().write_chars < 512 * 1024  # the pipe, and twice its size here
        assert process.memory_info().rss < 150 * 2**20
        assert len(await media.read(160_000)) == 160_000


# ---------------------------------------------------------------- what is left


def left() -> tuple[int, int]:
    me = psutil.Process()
    return me.num_fds(), len(me.children())


@posix
@pytest.mark.parametrize(
    "when", ["at once", "in its upload", "stopped in its upload", "before its header", "in its audio"]
)
async def test_leaving_ends_the_process_and_leaves_nothing(when: str) -> None:
    async def leave() -> int:
        async with Media(LIMITS, decoder=scripted("endless" if when == "in its audio" else "loop")) as media:
            if when == "stopped in its upload":
                os.kill(media.pid, signal.SIGSTOP)
            if "in its upload" in when:
                media._process.stdin.write(bytes(10_000_000))
            elif when != "at once":
                await media.write(b"x")
                media.end()
            if when == "in its audio":
                await media.open()
                await media.read(100_000)
            return media.pid

    await leave()  # what the loop keeps for children is there
    before = left()
    pid = await leave()
    assert not psutil.pid_exists(pid)
    assert left() == before


@posix
async def test_cancelled_request_leaves_nothing() -> None:
    waiting = asyncio.Event()
    pids = []

    async def request() -> None:
        async with Media(LIMITS, decoder=scripted("loop")) as media:
            pids.append(media.pid)
            await media.write(b"x")
            media.end()
            waiting.set()
            await media.open()

    before = None
    for _ in range(3):
        task = asyncio.create_task(request())
        await waiting.wait()
        waiting.clear()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = before or left()
        assert left() == before
    assert not any(map(psutil.pid_exists, pids))


@posix
async def test_failures_leave_nothing() -> None:
    await failed(b"x", decoder=scripted("raising"))
    before = left()
    for decoder in ("raising", "one_second_then_segv", "garrulous"):
        await failed(b"x", decoder=scripted(decoder))
        assert left() == before
    await transcoded(b"x", decoder=scripted("told_of_by_print"))
    assert left() == before


@linux
@asynccontextmanager
async def keeping_spare() -> AsyncIterator[SpareProcess]:
    spare = SpareProcess(LIMITS)
    async with asyncio.timeout(600), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(spare.run())
        try:
            yield spare
        finally:
            running.cancel()


async def refilled(spare: SpareProcess) -> int:
    """Its process id, once there is one."""
    while spare._process is None or spare._process.has_ended:
        await asyncio.sleep(0.01)
    return spare._process.pid


async def test_process_is_started_before_its_file_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "REFILL_S", 0.0)
    async with keeping_spare() as spare:
        async with Media(LIMITS, spare=spare) as first:  # nobody knew that it would come
            waiting = await refilled(spare)
            assert waiting != first.pid
        async with Media(LIMITS, spare=spare) as second:
            assert second.pid == waiting
            await second.write(encoded(KIND["wav-s16-16k"], tone(1.0, 16_000)))
            second.end()
            assert (await second.open()).format == "wav pcm_s16le"
        waiting = await refilled(spare)
        async with Media(LIMITS, Path("/nowhere"), spare=spare) as of_job:
            assert of_job.pid != waiting
        os.kill(waiting, getattr(signal, "SIGKILL", signal.SIGTERM))
        assert spare._process is not None
        await spare._process.ended()
        async with Media(LIMITS, spare=spare) as third:
            assert third.pid != waiting
        last = await refilled(spare)
    assert not psutil.pid_exists(last)
    assert not psutil.pid_exists(waiting)


async def test_process_is_not_kept_for_who_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "REFILL_S", 0.0)
    monkeypatch.setattr(media_module, "KEEP_S", 0.01)
    start, started = media_module._start, list[ChildProcess]()

    async def noted(*args: Any) -> ChildProcess:
        started.append(await start(*args))
        return started[-1]

    monkeypatch.setattr(media_module, "_start", noted)
    async with keeping_spare() as spare:
        assert spare.take() is None
        while not started or not started[0].has_ended:
            await asyncio.sleep(0.01)
        assert (spare._process, len(started)) == (None, 1)


async def test_process_ends_with_its_server() -> None:
    code = (
        "import asyncio\n"
        "from tests.server.test_media import LIMITS, Media\n"
        "async def main():\n"
        "    async with Media(LIMITS) as media:\n"
        "        print(media.pid, flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    async with asyncio.timeout(600):
        server = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
        assert server.stdout is not None
        pid = int(await server.stdout.readline())
        server.kill()
        await server.wait()
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)


def test_server_does_not_load_what_decodes() -> None:
    code = "import sys, asr_ws.server.media; print(sorted({'av', 'soundfile', 'faster_whisper'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    assert re.fullmatch(r"\[\]\s*", done.stdout)
