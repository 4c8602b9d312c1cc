"""A real browser, headless, over its DevTools protocol: pages opened, looked at, clicked, and what they complain of."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

import click
from websockets.asyncio.client import ClientConnection, connect

PROGRAMS: Final = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
)
WAIT_S: Final = 60  # what has not come true by then will not, unless it waits for a recording that is longer
FLAGS: Final = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a container has too little of it
    "--hide-scrollbars",
    "--mute-audio",
    "--lang=en",
)
MICROPHONE: Final = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # the second one: granted


def find() -> str:
    """Its program. Raises: click.ClickException: there is none."""
    found = os.environ.get("ASR_WS_CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise click.ClickException("no chromium here; install it, or name its program in ASR_WS_CHROMIUM")
    return found


def hears(wav: Path | str) -> tuple[str, ...]:
    """Flags: the microphone is there, and gives this recording once, then silence."""
    return (*MICROPHONE, f"--use-file-for-fake-audio-capture={wav}%noloop")


class Page:
    """A tab. Attributes: complaints: what its console shows as errors; urls: all that it asked for."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []
        self.urls: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self._browser.call(method, self._session, **parameters)

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.wait(f"location.href.startsWith({url.partition('#')[0]!r}) && document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it resolves to."""
        told = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in told:
            raise AssertionError(f"{expression}: {told['exceptionDetails']}")
        return told["result"].get("value")

    async def wait(self, condition: str) -> Any:
        """Until the expression is true. Returns: its value."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    if (value := await self.evaluate(condition)) not in (None, False, 0, ""):  # an element is {}
                        return value
                except BrowserError:
                    pass  # the page before has just gone
                await asyncio.sleep(0.02)

    async def text(self, selector: str) -> str:
        value: str = await self.evaluate(f"document.querySelector({selector!r})?.innerText ?? ''")
        return value

    async def click(self, selector: str) -> None:
        box = await self.evaluate(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            "const {x, y, width, height} = e.getBoundingClientRect(); return [x + width / 2, y + height / 2] })()"
        )
        for type in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=type, x=box[0], y=box[1], button="left", clickCount=1)

    async def key(self, type: str, key: str, code: str) -> None:
        """Args: type: ``keyDown`` or ``keyUp``."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        virtual = {" ": 32, "Tab": 9, "Enter": 13}[key]
        await self.call(
            "Input.dispatchKeyEvent",
            type=type,
            key=key,
            code=code,
            windowsVirtualKeyCode=virtual,
            **(text if type == "keyDown" else {}),
        )

    async def press(self, key: str, code: str) -> None:
        await self.key("keyDown", key, code)
        await self.key("keyUp", key, code)

    async def choose_file(self, selector: str, *files: Path) -> None:
        document = await self.call("DOM.getDocument")
        node = await self.call("DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector)
        await self.call("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(file) for file in files])

    async def drag(self, type: str, *files: Path) -> None:
        """Onto the middle of the page. Args: type: ``dragEnter``, ``dragOver`` or ``drop``."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        await self.call("Input.dispatchDragEvent", type=type, x=400, y=300, data=data)

    def take(self, method: str, parameters: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.complaints.append(str(details.get("exception", {}).get("description", details["text"])))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.complaints.append(str([each.get("value") for each in parameters["args"]]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                entry = parameters["entry"]
                self.complaints.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")
            case "Network.requestWillBeSent":
                self.urls.append(parameters["request"]["url"])
            case "Network.webSocketCreated":
                self.urls.append(parameters["url"])


class BrowserError(Exception):
    """DevTools refused a call."""


class Browser:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._results: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read(), name="devtools")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        id = next(self._ids)
        self._results[id] = asyncio.get_running_loop().create_future()
        message = {"id": id, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        try:
            async with asyncio.timeout(WAIT_S):
                await self._socket.send(json.dumps(message))
                return await self._results[id]
        except TimeoutError:
            raise AssertionError(f"chromium does not answer {method} {parameters}") from None

    async def page(self, *, width: int = 1000, height: int = 900, dark: bool = False, mobile: bool = False) -> Page:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            await page.call(f"{domain}.enable")
        await page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1 + mobile,
            mobile=mobile,
        )
        await page.call("Emulation.setTouchEmulationEnabled", enabled=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await page.call("Emulation.setEmulatedMedia", features=[scheme])
        return page

    async def _read(self) -> None:
        try:
            await self._take_all()
        finally:
            for result in self._results.values():
                result.cancel()

    async def _take_all(self) -> None:
        async for text in self._socket:
            told = json.loads(text)
            if (result := self._results.pop(told.get("id"), None)) is not None:
                if "error" in told:
                    result.set_exception(BrowserError(str(told["error"])))
                else:
                    result.set_result(told["result"])
            elif (page := self._pages.get(told.get("sessionId", ""))) is not None:
                page.take(told["method"], told["params"])


@asynccontextmanager
async def browser(*flags: str) -> AsyncIterator[Browser]:
    """One of its own, with a profile of its own, which is thrown away."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has none
        command = [find(), *FLAGS, *sandbox, f"--user-data-dir={profile}", *flags, "about:blank"]
        process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
        try:
            async with asyncio.timeout(WAIT_S):
                url = await _address(process)
            drain = asyncio.create_task(_drain(process), name="chromium's errors")
            async with connect(url, max_size=None, ping_interval=None) as socket, Browser(socket) as made:
                yield made
            drain.cancel()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    told = b""
    async for line in process.stderr:
        told += line
        if line.startswith(b"DevTools listening on "):
            return line.removeprefix(b"DevTools listening on ").strip().decode()
    raise AssertionError(f"chromium did not start: {told.decode(errors='replace')}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    while await process.stderr.read(65536):
        pass
