"""Whether what HTTP answers is as the OpenAPI document that ships says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

DOCUMENT: dict[str, Any] = json.loads((files("asr_ws") / "assets" / "openapi.json").read_text("utf-8"))


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """What a node refers to, or itself."""
    if "$ref" not in node:
        return node
    found: Any = DOCUMENT
    root, *steps = node["$ref"].split("/")
    assert root == "#", node
    for step in steps:
        found = found[step]
    assert isinstance(found, dict)
    return resolved(found)


def check(schema: dict[str, Any] | str, told: object) -> None:
    """Args: schema: itself, or the name of a component. Raises: AssertionError: it does not fit."""
    node = {"$ref": f"#/components/schemas/{schema}"} if isinstance(schema, str) else schema
    validator = Draft202012Validator({**node, "components": DOCUMENT["components"]})
    said = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(told)]
    assert not said, f"{told} does not conform: {'; '.join(said)}"


def check_response(method: str, route: str, status: int, body: str, content_type: str = "application/json") -> None:
    """Whether a route answers so.

    Args:
        route: as the document has it, ``/v1/jobs/{job_id}``.
        content_type: without its parameters; of no meaning where the body is empty.
    Raises:
        AssertionError: it does not, or the document does not know the route, the status, the content type or the code.
    """
    where = f"{method} {route} {status}"
    responses = DOCUMENT["paths"].get(route, {}).get(method.lower(), {}).get("responses", {})
    assert str(status) in responses, f"{where} is not described"
    response = resolved(responses[str(status)])
    content = response.get("content")
    if content is None:
        assert body == "", f"{where} has no body"
        return
    assert content_type in content, f"{where} is not described as {content_type}"
    media = content[content_type]
    if content_type == "text/event-stream":
        for event in events(body):
            check(media["x-event-schema"], event)
    else:
        told = json.loads(body) if content_type.endswith("json") else body
        check(media["schema"], told)
        if "x-codes" in response:
            assert told["error"]["code"] in response["x-codes"], f"{where} is not described for {told}"


def events(stream: str) -> Iterator[Any]:
    """The events of a whole stream as we write it, which is stricter than what the format allows."""
    *whole, rest = stream.split("\n\n")
    assert rest == "", f"the stream ends within an event: {rest!r}"
    for event in whole:
        assert event.startswith("data: "), event
        assert "\n" not in event, event
        yield json.loads(event.removeprefix("data: "))
