"""Tells the service manager how the server is: sd_notify(3), for systemd's ``Type=notify``, without its library.

One datagram of lines to the socket that the environment names; where it names none, nothing is said. READY means that
connections are accepted, which is what units that come after this one wait for: the model may still be loading, for as
long as its size takes and the supervisor allows, and clients are told so. STATUS has the worker's state. Each datagram
says everything again, so that one that is lost, because the manager's socket was full, is made up for by the next: at
a change of the worker's state, and by half of the watchdog's time. They come from the event loop, whose standstill is
what a watchdog is to see.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable, MutableMapping
from contextlib import suppress

from asr_ws.core.types import ServiceState
from asr_ws.server.dispatcher import Dispatcher

MIN_EVERY_S = 0.1  # of the watchdog, however short its time: no turn is to be about that alone


class ServiceManager:
    """Args: environ: the manager's variables are taken out of it, so that no child speaks for the server."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = environ.pop("WATCHDOG_USEC", "")
        watches_us = environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        us = float(watchdog_us) if watches_us and watchdog_us.isdecimal() else 0.0  # unlike int it takes any length
        self.every_s = max(us / 2e6, MIN_EVERY_S) if 0 < us < math.inf else None
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        self._phase = "READY=1"
        self._socket: socket.socket | None = None
        if address[:1] in ("/", "@") and hasattr(socket, "AF_UNIX"):
            with suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def stopping(self) -> None:
        self._phase = "STOPPING=1"
        self._say("STATUS=draining")

    async def run(self, dispatcher: Dispatcher, status: Callable[[], str]) -> None:
        """Say how it is, from the moment at which connections are accepted, until cancelled."""
        while self._socket is not None:
            seen = dispatcher.queue.worker_state
            self._say(f"STATUS={' '.join(status().split())}", "WATCHDOG=1")
            with suppress(TimeoutError):
                async with asyncio.timeout(self.every_s):
                    await dispatcher.wait_for(*(state for state in ServiceState if state is not seen))

    def _say(self, *lines: str) -> None:
        """Never waits, and never fails."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join((self._phase, *lines)).encode(errors="replace"), self._address)
