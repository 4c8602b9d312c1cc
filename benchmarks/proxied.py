"""Whether the server works behind a real proxy, as docs/howto/expose-it.md sets it up.

    python -m benchmarks.proxied [--seconds 600] [--proxy nginx] [--model tiny.en] [--report FILE]

The configuration is the document's own; only the port, the file names and the server's address are put in. In front is
nginx or Caddy with TLS, with the prefix /asr, and behind it ``asr-ws serve`` with tokens, ``--trusted-proxy`` and
``--root-path``. Then a session is opened that says nothing for ``--seconds``, longer than any proxy waits, and another
that speaks from time to time.

Targets: every line of the table is as expected; both sessions live until they are ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import click
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import InvalidStatus

from asr_ws import messages
from asr_ws.server.self_signed import self_signed
from asr_ws.testing.bare import connect
from benchmarks.common import progress, report, reported, speech_pcm, told_plainly, within
from benchmarks.served import Served

PAGE: Final = Path(__file__).parents[1] / "docs" / "howto" / "expose-it.md"
PREFIX: Final = "/asr"
START_LIMIT_S: Final = 60.0
SPEAK_EVERY_S: Final = 20.0
SPOKEN_S: Final = 5
CLIENT: Final = "127.0.0.5"  # another address of this machine: on Linux all of 127.0.0.0/8 are
FORGED: Final = "203.0.113.9"


def nginx(port: int, upstream: int, folder: Path) -> tuple[Path, list[str]]:
    """The document's configuration in a file, and the command that runs it."""
    text = _example("```nginx\n", upstream)
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    text = text.replace("/etc/nginx/speech.pem", str(folder / "self-signed.pem"))
    text = text.replace("/etc/nginx/speech.key", str(folder / "self-signed.key"))
    file = folder / "nginx.conf"
    paths = "".join(f"{name}_temp_path {folder};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    main = f"daemon off; pid {folder}/nginx.pid; error_log stderr warn;"
    file.write_text(f"{main}\nevents {{}}\nhttp {{ access_log off; {paths}\n{text}\n}}\n", "utf-8")
    return file, ["nginx", "-p", str(folder), "-c", str(file)]


def caddy(port: int, upstream: int, folder: Path) -> tuple[Path, list[str]]:
    """The document's configuration, with a certificate that is there already."""
    text = _example("## Behind Caddy\n\n```\n", upstream)
    certificate = f"tls {folder}/self-signed.pem {folder}/self-signed.key"
    text = text.replace(
        "speech.example.com {", f"https://localhost:{port}, https://127.0.0.1:{port} {{\n    {certificate}"
    )
    file = folder / "Caddyfile"
    file.write_text(f"{{\n    admin off\n    auto_https disable_redirects\n}}\n{text}", "utf-8")
    return file, ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)]


PROXIES: Final[dict[str, Callable[[int, int, Path], tuple[Path, list[str]]]]] = {"nginx": nginx, "caddy": caddy}


def _example(before: str, upstream: int) -> str:
    """A block of the document, with the server where it is."""
    block = PAGE.read_text("utf-8").partition(before)[2].partition("```")[0]
    assert "127.0.0.1:8765" in block, f"{PAGE} has no such block any more"
    return block.replace("127.0.0.1:8765", f"127.0.0.1:{upstream}")


class Front:
    """The proxy, as clients see it."""

    def __init__(self, port: int, certificate: Path, token: str) -> None:
        self.url = f"https://localhost:{port}"
        self.origin = self.url
        self.trust = ssl.create_default_context(cafile=certificate)
        self.token = token

    async def get(self, path: str, *, token: bool = False) -> tuple[int, str]:
        """Status and body; 0: nobody is there."""
        headers = {"Authorization": f"Bearer {self.token}"} if token else {}
        asked = urllib.request.Request(self.url + path, headers=headers)

        def fetch() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(asked, timeout=10, context=self.trust) as response:
                    return response.status, response.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()
            except OSError:
                return 0, ""

        return await asyncio.to_thread(fetch)

    async def handshake(self, **options: Any) -> int:
        """Its status, of a session from another address of this machine, which claims to come from elsewhere."""
        url = f"{self.url.replace('http', 'ws', 1)}{PREFIX}{messages.PATH}"
        headers = {"Authorization": f"Bearer {self.token}", "X-Forwarded-For": FORGED}
        here: dict[str, Any] = {"local_addr": (CLIENT, 0)} if sys.platform == "linux" else {}
        try:
            async with open_socket(url, ssl=self.trust, additional_headers=headers, **here, **options) as socket:
                await socket.recv()
                return 101
        except InvalidStatus as error:
            return error.response.status_code


@asynccontextmanager
async def running(proxy: str, model: str, folder: Path) -> AsyncIterator[tuple[Front, Served]]:
    """A server and the proxy before it. Raises: click.ClickException: either does not start."""
    token = secrets.token_urlsafe(32)
    (folder / "tokens").write_text(f"{token} benchmark\n", "utf-8")
    certificate = self_signed(folder).cert
    behind = ("--auth-token-file", str(folder / "tokens"), "--trusted-proxy", "127.0.0.1", "--root-path", PREFIX)
    server = await Served.start("--model", model, "--idle-timeout-s", "0", *behind)
    try:
        port = _free_port()
        _, command = PROXIES[proxy](port, int(server.url.rpartition(":")[2]), folder)
        log = (folder / "proxy.log").open("wb")
        process = await asyncio.create_subprocess_exec(
            *command, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)}
        )
        try:
            front = Front(port, certificate, token)
            async with within(START_LIMIT_S, f"{proxy} and the server behind it: see {folder}/proxy.log"):
                while (await front.get(f"{PREFIX}/readyz"))[0] != 200:
                    await asyncio.sleep(0.1)
            yield front, server
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            log.close()
    finally:
        await server.stop()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def check(front: Front, server: Served) -> dict[str, tuple[object, object]]:
    """What is seen through the proxy, and what is to be."""
    seen: dict[str, tuple[object, object]] = {}
    status, page = await front.get(f"{PREFIX}/")
    seen["page"] = ((status, "<h1>asr_ws" in page), (200, True))
    style = re.search(r'href="([^"]+\.css)"', page)
    seen["its style, by the page's link"] = ((await front.get(f"{PREFIX}/{style[1] if style else ''}"))[0], 200)
    seen["page without the last slash"] = ((await front.get(PREFIX))[0], 200)
    seen["stats without a token"] = ((await front.get(f"{PREFIX}/v1/stats"))[0], 401)
    status, body = await front.get(f"{PREFIX}/v1/stats", token=True)
    seen["stats"] = ((status, "queue_depth" in body), (200, True))
    seen["outside of the prefix"] = ((await front.get("/v1/stats", token=True))[1].find("queue_depth"), -1)
    seen["a page of this server"] = (await front.handshake(origin=front.origin), 101)
    seen["a page of another"] = (await front.handshake(origin="https://evil.example"), 403)
    async with within(10.0, "the session in the log"):
        while not server.clients:
            await asyncio.sleep(0.05)
    seen["address in the log"] = (sorted(server.clients), [CLIENT if sys.platform == "linux" else "127.0.0.1"])
    return seen


async def hold(front: Front, seconds: float) -> dict[str, tuple[object, object]]:
    """A silent session, and one that speaks at times, for so long."""
    url, audio = front.url + PREFIX + "/", speech_pcm()[: SPOKEN_S * 32_000]
    n_times = max(1, round(seconds / SPEAK_EVERY_S))
    manual = {"endpointing": {"mode": "manual"}, "partials": False}

    async def silent() -> str:
        async with connect(url, token=front.token, **manual) as session:
            await session.commit()  # `start` goes before it
            await asyncio.sleep(seconds)
            await session.end()
            return [event async for event in session.events()][-1].__class__.__name__

    async def speaking(advance: Callable[[], None]) -> tuple[int, int]:
        async with connect(url, token=front.token, **manual) as session:
            reading = asyncio.create_task(_collect(session.events()))
            for _ in range(n_times):
                await session.send(audio)
                await session.commit()
                await asyncio.sleep(seconds / n_times)
                advance()
            await session.end()
            events = await reading
            done = events[-1]
            assert isinstance(done, messages.Done)
            return done.finals, done.lost_ms

    with progress() as bar:
        task = bar.add_task("sessions", total=n_times)
        async with asyncio.TaskGroup() as tasks:
            quiet = tasks.create_task(silent())
            spoken = tasks.create_task(speaking(lambda: bar.update(task, advance=1)))
    return {
        f"a session silent for {seconds:g} s ends with": (quiet.result(), "Done"),
        "finals and lost ms of one that speaks": (spoken.result(), (n_times, 0)),
    }


async def _collect(events: AsyncIterator[object]) -> list[object]:
    return [event async for event in events]


async def measure(proxy: str, model: str, seconds: float) -> dict[str, tuple[object, object]]:
    with tempfile.TemporaryDirectory(prefix="asr-ws-proxied-") as name:
        async with running(proxy, model, Path(name)) as (front, server):
            os.environ["SSL_CERT_FILE"] = str(Path(name) / "self-signed.pem")
            return {**await check(front, server), **await hold(front, seconds)}


@click.command(help=__doc__.partition("\n")[0])
@reported
@click.option("--seconds", type=click.FloatRange(min=1), default=600.0, show_default=True)
@click.option("--proxy", type=click.Choice(list(PROXIES)), default="nginx", show_default=True)
@click.option("--model", default="tiny.en", show_default=True)
def main(seconds: float, proxy: str, model: str) -> None:
    if shutil.which(proxy) is None:
        raise click.ClickException(f"{proxy} is not installed: apt-get install {proxy}")
    with told_plainly():
        seen = asyncio.run(measure(proxy, model, seconds))
    for what, (found, wanted) in seen.items():
        click.echo(f"{'ok' if found == wanted else 'NOT'}  {what:45} {found}")
    passed = all(found == wanted for found, wanted in seen.values())
    figures = {"seen": {what: json.loads(json.dumps(found)) for what, (found, _) in seen.items()}}
    settings = {"seconds": seconds, "proxy": proxy, "model": model}
    sys.exit(report("proxied", settings=settings, figures=figures, passed=passed))


if __name__ == "__main__":
    main()
