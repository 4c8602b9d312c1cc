"""Whether what is said on the wire is as the JSON Schema that ships says."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from asr_ws import schema

DOCUMENT: dict[str, Any] = json.loads(schema.FILE.read_text("utf-8"))


def _entry(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": DOCUMENT["$defs"]})


CLIENT_MESSAGE = _entry("ClientMessage")
SERVER_EVENT = _entry("ServerEvent")


def check_event(event: dict[str, Any]) -> None:
    """Raises: AssertionError: it is none that a server of this version sends."""
    _check(SERVER_EVENT, event)


def check_message(message: dict[str, Any]) -> None:
    """Raises: AssertionError: it is none that a client may send."""
    _check(CLIENT_MESSAGE, message)


def _check(entry: Draft202012Validator, told: dict[str, Any]) -> None:
    for error in entry.iter_errors(told):  # one: that none of the types fits
        reasons = error.context or [error]
        others = {reason.relative_schema_path[0] for reason in reasons if list(reason.path) == ["type"]}
        said = [f"{each.json_path}: {each.message}" for each in reasons if each.relative_schema_path[0] not in others]
        raise AssertionError(f"{told} does not conform: {'; '.join(said) or 'unknown type'}")
