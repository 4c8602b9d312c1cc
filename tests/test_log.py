from __future__ import annotations

import json

import pytest
import structlog

from asr_ws import log


def test_json_tracebacks_hold_no_locals(capsys: pytest.CaptureFixture[str]) -> None:
    """Locals hold tokens, text and audio, which are never logged."""
    log.configure("json")
    secret = "canary" + "-token"
    try:
        raise ValueError(f"{len(secret)} characters")
    except ValueError:
        structlog.get_logger().exception("session.failed")
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "session.failed"
    assert "canary-token" not in line
    structlog.reset_defaults()
