"""The OpenAPI document that ships: that it is one, and that it says what the code does."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from asr_ws.core.access import AccessRefusal
from asr_ws.core.files import Granularity, ResponseFormat
from asr_ws.core.types import RefusalReason
from asr_ws.errors import DecodeFailed
from asr_ws.media.wire import Reason
from asr_ws.messages import MAX_PROMPT_CHARS
from asr_ws.server.app import build
from asr_ws.server.form import IGNORED, MAX_MS, NAMES, BodyLimits
from asr_ws.server.job_store import _HINTS
from asr_ws.server.media import CRASHED, HUNG
from asr_ws.server.pages import _browser_files
from asr_ws.server.shapes import MEDIA_TYPES, error_body
from asr_ws.worker.supervisor import WorkerSpec
from tests.openapi import DOCUMENT, check, check_response, events, resolved
from tests.server.running import get, serving, settings

SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
METHODS = ("get", "post", "put", "delete")


def nodes(node: Any, *path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the document, with where it is; not what is inside of examples."""
    if isinstance(node, dict):
        yield "/".join(path), node
        for key, value in node.items():
            if key not in ("example", "examples"):
                yield from nodes(value, *path, key)
    elif isinstance(node, list):
        for n, value in enumerate(node):
            yield from nodes(value, *path, str(n))


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for route, item in DOCUMENT["paths"].items():
        for method in METHODS:
            if method in item:
                yield method, route, item[method]


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    used = {node["$ref"] for _, node in nodes(DOCUMENT) if "$ref" in node}
    for reference in used:
        resolved({"$ref": reference})
    kinds = ("schemas", "responses", "requestBodies", "headers")
    named = {f"#/components/{kind}/{name}" for kind in kinds for name in DOCUMENT["components"][kind]}
    assert used == named


def test_head_is_that_of_openapi() -> None:
    assert re.fullmatch(r"3\.1\.\d", DOCUMENT["openapi"])
    assert set(DOCUMENT) == {"openapi", "info", "servers", "security", "tags", "paths", "components"}
    assert set(DOCUMENT["info"]) >= {"title", "version"}


@pytest.mark.parametrize("name", SCHEMAS)
def test_component_is_a_schema_and_says_what_it_is(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["description"]
    assert set(SCHEMAS[name].get("required", ())) <= set(SCHEMAS[name].get("properties", ()))


def test_examples_are_as_they_say() -> None:
    n_checked = 0
    for path, node in nodes(DOCUMENT):
        if "schema" not in node:
            continue
        said = [node["example"]] if "example" in node else [each["value"] for each in node.get("examples", {}).values()]
        assert said or "parameters" in path or "requestBodies" in path or path.endswith("Location"), path
        for example in said:
            check(node["schema"], example)
            n_checked += 1
        for event in events(node["example"]) if "x-event-schema" in node else ():
            check(node["x-event-schema"], event)
    assert n_checked > 20


def test_operations() -> None:
    found = [f"{method.upper()} {route}" for method, route, _ in operations()]
    assert found == [
        "POST /v1/audio/transcriptions",
        "POST /v1/audio/translations",
        "GET /v1/models",
        "POST /v1/jobs",
        "GET /v1/jobs/{job_id}",
        "DELETE /v1/jobs/{job_id}",
        "GET /livez",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
        "GET /v1/stats",
        "GET /v1/schema.json",
        "GET /openapi.json",
    ]
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids)
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    for _, route, operation in operations():
        assert operation["summary"]
        assert set(operation["tags"]) <= tags
        assert all(resolved(response)["description"] for response in operation["responses"].values())
        parameters = DOCUMENT["paths"][route].get("parameters", [])
        assert {each["name"] for each in parameters} == set(re.findall(r"{(\w+)}", route))


async def test_operations_are_the_servers_routes(scripted: WorkerSpec) -> None:
    http = build(settings(), scripted).listener.http
    pages = [("GET", path) for path in http._pages if path not in _browser_files()]
    served = [(route.method, route.path) for route in http._routes] + pages
    assert sorted(served) == sorted((method.upper(), route) for method, route, _ in operations())


async def test_document_is_served(scripted: WorkerSpec) -> None:
    async with serving(scripted, ready=False) as app:
        status, body = await get(app, "/openapi.json")
    assert (status, json.loads(body)) == (200, DOCUMENT)


def codes_told() -> set[str]:
    """Of the sets that there are, and of the calls that make errors of the HTTP side."""
    never = {RefusalReason.RETRY_EARLY, RefusalReason.MAX_SESSIONS}  # a session's
    codes = {*(set(RefusalReason) - never), *Reason, AccessRefusal.ORIGIN, AccessRefusal.UNAUTHORIZED, CRASHED, HUNG}
    codes |= {*_HINTS, DecodeFailed.code, "poison_audio", "unsupported_response_format"}
    position = {"RequestError": 1, "fail": 1, "MediaError": 0, "StorageError": 0, "__init__": 1}
    for path in [*(files("asr_ws") / "server").iterdir(), files("asr_ws") / "errors.py"]:  # type: ignore[operator]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))) if path.name.endswith(".py") else ():
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                code = (node.args[position[called] :] or [None])[0] if called in position else None
                if isinstance(code, ast.Constant) and str(code.value).isidentifier():
                    codes.add(code.value)
    return {str(code) for code in codes}


def test_codes_are_those_of_the_code() -> None:
    told = {code for _, node in nodes(DOCUMENT) for code in node.get("x-codes", {})}
    everywhere = {"method_not_allowed", "expectation_failed"}  # 405 and 417, which are no operation's
    of_a_head = {"request_timeout"}  # `Front.refuse` makes it of the status
    assert told == codes_told() - everywhere | of_a_head


def test_examples_of_errors_have_codes_that_are_described() -> None:
    for response in DOCUMENT["components"]["responses"].values():
        example = response["content"].get("application/json", {}).get("example")
        assert example is None or example["error"]["code"] in response["x-codes"]


def test_refusals_have_their_headers() -> None:
    for name in ("CallersLimit", "Busy", "JobsBusy"):
        assert set(DOCUMENT["components"]["responses"][name]["headers"]) == {
            "Retry-After",
            "retry-after-ms",
            "x-should-retry",
        }


def test_form_has_the_fields_that_are_read() -> None:
    fields = SCHEMAS["Upload"]["properties"]
    assert set(fields) == set(NAMES)
    assert fields["response_format"]["enum"] == list(ResponseFormat)
    assert fields["timestamp_granularities"]["items"]["enum"] == list(Granularity)
    assert {fields[name]["maxLength"] for name in ("prompt", "hotwords")} == {MAX_PROMPT_CHARS}
    assert fields["max_wait_ms"]["maximum"] == MAX_MS
    assert {name: fields[name]["description"] for name in IGNORED} == {
        name: f"Ignored: {why}." for name, why in IGNORED.items()
    }
    assert f"at most {BodyLimits(0).max_field_bytes // 1024} KiB" in SCHEMAS["Upload"]["description"]


@pytest.mark.parametrize("route", ["/v1/audio/transcriptions", "/v1/audio/translations"])
def test_every_format_has_its_content_type(route: str) -> None:
    content = DOCUMENT["paths"][route]["post"]["responses"]["200"]["content"]
    assert set(content) == {*MEDIA_TYPES.values(), "text/event-stream"}


def test_types_of_errors_are_those_of_the_code() -> None:
    found = {error_body(status, "x", "y")["error"]["type"] for status in range(400, 600)}
    assert found == set(SCHEMAS["ErrorObject"]["properties"]["type"]["enum"])


@pytest.mark.parametrize(
    ("method", "route", "status", "body"),
    [
        ("GET", "/v1/jobs/{job_id}", 200, {"job_id": "1", "status": "done"}),
        ("GET", "/v1/jobs/{job_id}", 204, ""),
        ("GET", "/v1/jobs", 200, {}),
        ("POST", "/v1/audio/transcriptions", 200, {"task": "transcribe", "text": "", "usage": {}}),
        ("POST", "/v1/audio/transcriptions", 503, {"error": {"message": "full"}}),
        ("GET", "/v1/models", 401, error_body(401, "wrong", "no")),
    ],
)
def test_answer_that_is_not_described_is_found(method: str, route: str, status: int, body: Any) -> None:
    with pytest.raises(AssertionError):
        check_response(method, route, status, json.dumps(body))


def test_answers_that_are_described_pass() -> None:
    check_response("DELETE", "/v1/jobs/{job_id}", 204, "")
    check_response("GET", "/livez", 200, "alive\n", "text/plain")
    check_response("POST", "/v1/jobs", 202, '{"job_id": "1", "status": "queued"}')
