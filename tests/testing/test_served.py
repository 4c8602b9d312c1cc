"""A server as a process that does not come to serve; where it does, `asr-ws bench` and the benchmarks run it."""

from __future__ import annotations

import pytest

from asr_ws.errors import ServerFailed
from asr_ws.testing.served import ServerProcess


async def test_a_server_that_does_not_listen_tells_why() -> None:
    with pytest.raises(ServerFailed) as failed:
        await ServerProcess.start("--max-sessions", "0")
    assert failed.value.message == "the server does not listen"
    assert failed.value.hint == "error: --max-sessions: max_sessions is '0'\nhint: allowed: integer >= 1"
