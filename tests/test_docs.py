"""The documents keep up with the code: a heading for what exists, links that lead somewhere, one README twice."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import click
import msgspec
import pytest

import asr_ws
from asr_ws import messages
from asr_ws.cli import COMMANDS
from asr_ws.config import SETTINGS
from asr_ws.core.types import DropReason, EndpointReason, RefusalReason, ServiceState
from asr_ws.errors import DecodeFailed
from asr_ws.media.wire import Reason
from asr_ws.server.failures import STATUS_BY_CODE
from asr_ws.server.form import NAMES
from tests.openapi import DOCUMENT

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("asr_ws/**/*.md")])
PROTOCOL = (ROOT / "docs" / "reference" / "protocol.md").read_text("utf-8")
HTTP = (ROOT / "docs" / "reference" / "http.md").read_text("utf-8")
LOG = (ROOT / "docs" / "reference" / "log.md").read_text("utf-8")
COMMAND_LINE = (ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8")

IN, OUT = "Messages to the server", "Events from the server"
STRUCTS = [
    *((IN, struct) for struct in get_args(messages.ClientMessage)),
    *((OUT, struct) for struct in get_args(messages.ServerEvent)),
]
# Fields that are described under another heading, which these refer to.
ELSEWHERE = {messages.Ready: (OUT, "`state`"), messages.Started: (IN, "`start`"), messages.Retry: (OUT, "`busy`")}
ERROR_CALLS = {"ProtocolError": 0, "_error": 0, "_cut_off": 0, "Failed": 1}  # which argument is the code
HTTP_ERROR_CALLS = {"RequestError": 1, "fail": 1, "StorageError": 0}


def sections(text: str, level: int) -> dict[str, str]:
    """Heading -> what stands below it, up to the next heading of the same level or above."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    _, *parts = re.split(rf"^#{{{level}}} (.+)$", prose, flags=re.MULTILINE)
    bodies = (re.split(rf"^#{{1,{level}}} ", body, maxsplit=1, flags=re.MULTILINE)[0] for body in parts[1::2])
    return dict(zip(parts[::2], bodies, strict=True))


def names(text: str) -> set[str]:
    """Everything in backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


def fields(struct: type) -> set[str]:
    """Wire names of a message's fields, those of nested objects included, `seq` excluded."""
    hints = {name: get_type_hints(struct)[name] for name in struct.__struct_fields__ if name != "seq"}  # type: ignore[attr-defined]
    return set(hints).union(*(fields(nested) for hint in hints.values() for nested in structs(hint)))


def choices(hint: object) -> set[object]:
    """The values that its fields, or those of the structs within, may only have."""
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return set().union(*(choices(field) for field in get_type_hints(hint).values()))
    return set().union(*(choices(inner) for inner in get_args(hint)))


def structs(hint: object) -> list[type]:
    """The structs that a type mentions: X in ``list[X] | None``."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return [hint]
    return [struct for inner in get_args(hint) for struct in structs(inner)]


def error_codes() -> set[str]:
    """Codes that the server's source gives to its `error` events and close reasons."""
    return {DecodeFailed.code, *(code for _, code in said(ERROR_CALLS))}


def said(calls: Mapping[str, int]) -> Iterator[tuple[object, str]]:
    """First argument, and code, of each call in the source: by the function's name, which argument is the code."""
    for path in Path(asr_ws.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                position = calls.get(called, len(node.args))
                if position < len(node.args) and isinstance(code := node.args[position], ast.Constant):
                    yield getattr(node.args[0], "value", None), str(code.value)


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def run_blocks(text: str, language: str) -> list[str]:
    """Those that are run: all but the ones below a comment that says why not."""
    blocks = re.findall(rf"^(<!-- not run.*?-->\n\n)?```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for why_not, block in blocks if not why_not]


def anchors(text: str) -> set[str]:
    """The fragments that GitHub makes of a document's headings."""
    headings = [match for level in range(1, 5) for match in sections(text, level)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---------------------------------------------------------------- docs/reference/protocol.md


@pytest.mark.parametrize(("section", "union"), [(IN, messages.ClientMessage), (OUT, messages.ServerEvent)])
def test_every_message_and_event_has_its_heading(section: str, union: type) -> None:
    headings = sections(sections(PROTOCOL, 2)[section], 3)
    assert {heading.strip("`") for heading in headings} == {
        str(struct.__struct_config__.tag) for struct in get_args(union)
    }


def described(section: str, struct: type) -> str:
    """What stands under its heading, and under the one that it refers to."""
    places = [(section, f"`{struct.__struct_config__.tag}`"), *([ELSEWHERE[struct]] if struct in ELSEWHERE else [])]  # type: ignore[attr-defined]
    return "\n".join(sections(sections(PROTOCOL, 2)[section], 3)[heading] for section, heading in places)


@pytest.mark.parametrize(("section", "struct"), STRUCTS)
def test_every_field_stands_under_its_message(section: str, struct: type) -> None:
    assert fields(struct) - names(described(section, struct)) == set()


@pytest.mark.parametrize(("section", "struct"), STRUCTS)
def test_every_value_of_a_closed_set_stands_under_its_message(section: str, struct: type) -> None:
    words = set(re.findall(r"\w+", described(section, struct)))
    assert {str(value) for value in choices(struct)} - words == set()


def test_the_closed_sets_of_the_wire_are_the_servers() -> None:
    assert {
        EndpointReason: choices(messages.Accepted),
        DropReason: choices(messages.Dropped),
        ServiceState: choices(messages.Ready),
    } == {kind: {member.value for member in kind} for kind in (EndpointReason, DropReason, ServiceState)}


def test_every_error_code_has_its_heading() -> None:
    headings = sections(sections(PROTOCOL, 2)["Error codes"], 3)
    assert {heading.strip("`") for heading in headings} == error_codes()


def test_every_refusal_reason_is_described() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", sections(PROTOCOL, 2)["Refusal reasons"], flags=re.MULTILINE)
    assert {reason: int(status) for reason, status in rows} == {reason.value: reason.status for reason in RefusalReason}


# ---------------------------------------------------------------- docs/reference/http.md


def rows(section: str) -> list[tuple[str, ...]]:
    """The cells of each line of its tables, headings aside."""
    lines = re.findall(r"^\| (.+) \|$", sections(HTTP, 2)[section], flags=re.MULTILINE)
    return [tuple(line.split(" | ")) for line in lines if line.startswith("`")]


def test_every_http_route_has_its_row() -> None:
    described = {tuple(cell.strip("`").split()) for cell, *_ in rows("Routes")}
    assert described == {
        (method.upper(), route)
        for route, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        if method != "parameters" and operation["tags"] != ["service"]
    }


def test_every_http_field_has_its_row() -> None:
    assert {name for cell, *_ in rows("Fields") for name in names(cell)} == set(NAMES)


def test_every_http_error_has_its_row_and_its_status() -> None:
    described = {name: int(status) for cell, status, *_ in rows("Errors") if status.isdecimal() for name in names(cell)}
    given = {code: status for status, code in said(HTTP_ERROR_CALLS) if isinstance(status, int)}
    given |= {
        reason.value: STATUS_BY_CODE.get(reason.value, 422) for reason in Reason if reason is not Reason.TOO_LARGE
    }
    given |= {code: 507 for status, code in said(HTTP_ERROR_CALLS) if status == code}
    assert {code: described.get(code) for code in given} == given


# ---------------------------------------------------------------- docs/reference/log.md


def logged() -> Iterator[tuple[str, str, set[str]]]:
    """Each event in the source, its level, and the keys that are given to it by name."""
    for path in Path(asr_ws.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                called, first = node.func, node.args[0]
                if ast.unparse(called) == "partial":  # what is to be called later
                    called, first = first, node.args[-1]
                events = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
                for event in (each.value for each in events if isinstance(each, ast.Constant)):
                    if re.search(r"log|tell", ast.unparse(called)) and re.fullmatch(r"[a-z]+\.[a-z_]+", str(event)):
                        level = called.attr if isinstance(called, ast.Attribute) else "it depends"
                        yield str(event), level, {each.arg for each in node.keywords if each.arg is not None}


def test_every_log_event_has_its_heading() -> None:
    headings = [heading.strip("`") for heading in sections(LOG, 3)]
    assert sorted(headings) == sorted({event for event, _, _ in logged()})


def test_every_log_event_has_its_level_and_its_keys() -> None:
    described = {
        heading.strip("`"): text + of_all
        for part in sections(LOG, 2).values()
        for of_all in [part.partition("###")[0]]
        for heading, text in sections(part, 3).items()
    }
    for event, level, keys in logged():
        level = {"exception": "error"}.get(level, level)
        if level != "it depends":
            assert level in re.findall(r"\w+", described[event].lower()), event
        if event != "worker.replaced":  # as worker.died
            assert keys - names(described[event]) - {"exc_info"} == set(), event


# ---------------------------------------------------------------- docs/reference/command-line.md


def test_every_command_has_its_heading() -> None:
    assert list(sections(COMMAND_LINE, 2)) == [f"`asr-ws {name}`" for name in COMMANDS]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_under_its_command(name: str) -> None:
    module, function = COMMANDS[name][0].split(":")
    command: click.Command = getattr(import_module(module), function)
    own = {flag for option in command.params if isinstance(option, click.Option) for flag in option.opts}
    body = sections(COMMAND_LINE, 2)[f"`asr-ws {name}`"]
    described = set(re.findall(r"`(--[\w-]+)", body))
    settings = {setting.flag for setting in SETTINGS}  # described in configuration.md, which has its own test
    assert own - settings - described == set()


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(document: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, fragment = link.partition("#")
        target = document.parent / path if path else document
        if "://" not in link and not (
            target.exists() and (not fragment or fragment in anchors(target.read_text("utf-8")))
        ):
            broken.append(link)
    assert broken == []


def test_both_readmes_have_the_same_commands() -> None:
    english, chinese = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert code_blocks(chinese) == code_blocks(english)


def test_the_index_links_every_document() -> None:
    index = ROOT / "docs" / "README.md"
    links = re.findall(r"\]\(([^)]+)\)", index.read_text("utf-8"))
    assert sorted(links) == sorted(
        path.relative_to(index.parent).as_posix()
        for path in DOCUMENTS
        if index.parent in path.parents and path != index
    )
