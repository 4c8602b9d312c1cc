"""The JSON Schema of asr-ws.v1, for checking what is said on the wire: ``python -m asr_ws.schema`` prints it.

Made from the structs of `asr_ws.messages`: their docstrings are its descriptions. `FILE` holds the same text; a server
gives it out at ``/v1/schema.json``. Client messages are strict, events may have more fields than the schema knows.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Final

import msgspec

from asr_ws.messages import MAX_TEXT_BYTES, PROTOCOL, ClientMessage, ServerEvent

FILE: Final = files("asr_ws") / "assets" / f"{PROTOCOL}.schema.json"

_ENTRIES: Final = {
    "ClientMessage": (
        ClientMessage,
        "What a client may send; an unknown field is an error. Integers are written without a fraction: 16000 and not "
        "16000.0, which JSON Schema does not tell apart.",
    ),
    "ServerEvent": (
        ServerEvent,
        "What a server of this version sends. A newer one may send more fields, which are allowed here, and events of "
        "other types, which are not: ignore both.",
    ),
}


def document() -> dict[str, Any]:
    """JSON Schema 2020-12, as JSON's own types.

    The entry points are ``#/$defs/ClientMessage`` and ``#/$defs/ServerEvent``; the root takes either.
    """
    unions = [union for union, _ in _ENTRIES.values()]
    schemas, structs = msgspec.json.schema_components(unions, ref_template="#/$defs/{name}")
    entries = {
        # A text frame is of exactly one type. msgspec says anyOf, and beside it OpenAPI's `discriminator`, at which
        # strict validators stop.
        name: {"title": name, "description": description, "oneOf": schema["anyOf"]}
        for (name, (_, description)), schema in zip(_ENTRIES.items(), schemas, strict=True)
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:" + PROTOCOL.replace(".", ":"),  # a name: the document is not to be fetched from anywhere
        "title": PROTOCOL,
        "description": f"The text frames of the {PROTOCOL} protocol: JSON objects of at most {MAX_TEXT_BYTES} bytes.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in entries],
        "$defs": entries | structs,
    }


def text() -> str:
    """The document as `FILE` has it."""
    return json.dumps(document(), indent=2) + "\n"


if __name__ == "__main__":
    print(text(), end="")
