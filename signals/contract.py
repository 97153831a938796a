"""The contract as documents: AsyncAPI 3.0 and JSON Schemas, generated from the declarations and checked in.

`python -m signals.contract` writes them to `docs/contract`, `--check` fails when they differ. Output depends on the
declarations alone. Owns no fact of its own: what a document says is declared in `signals` and `schemas`.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from schemas import CONTRACT_VERSION, tokens, usage
from schemas.base import CloudEvent
from schemas.errors import STATUS, ErrorReply
from schemas.subjects import USAGE_PREFIX
from signals import Event, Request, matrix, readme
from signals.registry import EVENTS, REQUESTS

FOLDER: Final = Path(__file__).parent.parent / "docs" / "contract"
ID_BASE: Final = "urn:token-manager:schema"
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
COMPONENT: Final = "#/components/schemas/{name}"
DEFINITION: Final = "#/$defs/{name}"
QUEUE: Final = "q"
JSON: Final = "application/json"
CLOUDEVENT_JSON: Final = "application/cloudevents+json"

ALTERNATIVES: Final[dict[str, tuple[tuple[type, ...], tuple[type, ...]]]] = {
    "track_usage": ((usage.TrackUsage, usage.TrackUsageBatch), (usage.TrackedUsage, usage.TrackedUsageBatch)),
}
"""Signals whose request or reply is one of several structs; the declaration names the first."""

DECODED_APART: Final[dict[tuple[str, str], type]] = {("TrackUsageBatch", "events"): usage.UsageEvent}
"""Lists whose items are kept raw by their struct, so that one bad item is its own error; and what an item must be."""

TEXTS: Final[dict[str, Any]] = msgspec.json.schema_components((tokens.Texts,))[1]["Texts"]["properties"]
"""Fields that structs keep raw, so that a large text delays nobody else; and what each must be."""

Json = dict[str, Any]


def request_types(signal: Request[Any, Any]) -> tuple[type, ...]:
    """The structs a request of this signal may be."""
    return ALTERNATIVES[signal.name][0] if signal.name in ALTERNATIVES else (signal.request,)


def reply_types(signal: Request[Any, Any]) -> tuple[type, ...]:
    """The structs a reply of this signal may be, errors apart."""
    return ALTERNATIVES[signal.name][1] if signal.name in ALTERNATIVES else (signal.reply,)


def request_schema_id(signal: Request[Any, Any]) -> str:
    """The `$id` of a signal's request schema."""
    return f"{ID_BASE}:{signal.name}.request:{CONTRACT_VERSION}"


def response_schema_id(signal: Request[Any, Any]) -> str:
    """The `$id` of a signal's reply schema."""
    return f"{ID_BASE}:{signal.name}.response:{CONTRACT_VERSION}"


def event_schema_id(event: Event[Any]) -> str:
    """The `$id` of the schema of an event's data."""
    return f"{ID_BASE}:{event.name}.event:{CONTRACT_VERSION}"


@functools.cache
def document() -> Json:
    """The AsyncAPI 3.0 document. Shared by all callers: do not change it."""
    channels: Json = {}
    operations: Json = {}
    messages: Json = {"error": _message("error", "Any refusal", {"$ref": "#/components/schemas/ErrorReply"})}
    messages["error"]["headers"] = _error_headers()
    for signal in REQUESTS:
        _add_request(signal, channels, operations, messages)
    for event in EVENTS:
        _add_event(event, channels, operations, messages)
    _add_durable_usage(channels, operations, messages)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Token Manager",
            "version": CONTRACT_VERSION,
            "description": "A token manager agent on a NATS bus: knows and limits what LLM calls cost.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": JSON,
        "servers": {
            "bus": {"host": "localhost:4222", "protocol": "nats", "description": "The bus of your own account"}
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": _component_schemas()},
    }


@functools.cache
def json_schemas() -> dict[str, Json]:
    """Every schema by file name, e.g. `check_budget.request.json`. Shared by all callers: do not change it."""
    found: dict[str, Json] = {}
    for signal in REQUESTS:
        found[f"{signal.name}.request.json"] = _standalone(
            request_types(signal), request_schema_id(signal), f"{signal.name} request", signal.purpose
        )
        found[f"{signal.name}.response.json"] = _standalone(
            reply_types(signal), response_schema_id(signal), f"{signal.name} reply", signal.purpose
        )
    for event in EVENTS:
        found[f"{event.name}.event.json"] = _standalone(
            (event.payload,), event_schema_id(event), f"data of event {event.name}", event.purpose
        )
    found["error.json"] = _standalone(
        (ErrorReply,), f"{ID_BASE}:error:{CONTRACT_VERSION}", "error reply", "Body of every error reply"
    )
    return found


def files() -> dict[str, bytes]:
    """What belongs into the folder: relative path and content."""
    contents = {"asyncapi.json": document()}
    contents |= {f"schemas/{name}": schema for name, schema in json_schemas().items()}
    return {name: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode() for name, value in contents.items()}


def differences(folder: Path = FOLDER) -> list[str]:
    """What `write` would change, one line each; empty when everything is up to date."""
    wanted = files()
    present = {str(path.relative_to(folder)) for path in folder.rglob("*.json")}
    changed = [name for name, content in wanted.items() if name in present and (folder / name).read_bytes() != content]
    return sorted(
        [f"missing: {name}" for name in wanted.keys() - present]
        + [f"not of this contract: {name}" for name in present - wanted.keys()]
        + [f"differs: {name}" for name in changed]
    )


def write(folder: Path = FOLDER) -> None:
    """Make the folder hold exactly the generated files."""
    wanted = files()
    for path in folder.rglob("*.json"):
        if str(path.relative_to(folder)) not in wanted:
            path.unlink()
    for name, content in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _add_request(signal: Request[Any, Any], channels: Json, operations: Json, messages: Json) -> None:
    name = signal.name
    messages[f"{name}.request"] = _message(f"{name}.request", signal.purpose, _one_of(request_types(signal)))
    messages[f"{name}.response"] = _message(f"{name}.response", f"Answer to {name}", _one_of(reply_types(signal)))
    channels[name] = {
        "address": signal.subject,
        "summary": signal.purpose,
        "messages": {"request": _ref("messages", f"{name}.request")},
    }
    channels[f"{name}.reply"] = {
        "address": None,
        "summary": f"The inbox named in the request of {name}",
        "messages": {"response": _ref("messages", f"{name}.response"), "error": _ref("messages", "error")},
    }
    operations[name] = {
        "action": "receive",
        "summary": signal.purpose,
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/request"}],
        "tags": [{"name": signal.group}],
        "bindings": {"nats": {"queue": QUEUE, "bindingVersion": "0.1.0"}},
        "reply": {
            "address": {"location": "$message.header#/reply", "description": "The NATS reply subject"},
            "channel": {"$ref": f"#/channels/{name}.reply"},
            "messages": [
                {"$ref": f"#/channels/{name}.reply/messages/response"},
                {"$ref": f"#/channels/{name}.reply/messages/error"},
            ],
        },
        "x-roles": list(signal.roles),
        "x-idempotent": signal.idempotent,
    }


def _add_event(event: Event[Any], channels: Json, operations: Json, messages: Json) -> None:
    payload = {
        "allOf": [
            {"$ref": "#/components/schemas/CloudEvent"},
            {"type": "object", "properties": {"data": _one_of((event.payload,))}, "required": ["data"]},
        ]
    }
    messages[event.name] = {**_message(event.name, event.purpose, payload), "contentType": CLOUDEVENT_JSON}
    channels[event.name] = {
        "address": event.subject,
        "summary": event.purpose,
        "messages": {"event": _ref("messages", event.name)},
    }
    operations[f"publish.{event.name}"] = {
        "action": "send",
        "summary": event.purpose,
        "channel": {"$ref": f"#/channels/{event.name}"},
        "messages": [{"$ref": f"#/channels/{event.name}/messages/event"}],
        "tags": [{"name": "events"}],
    }


def _add_durable_usage(channels: Json, operations: Json, messages: Json) -> None:
    """The channel a stream captures: no agent need run, the PubAck of the stream is the answer."""
    purpose = "Usage kept until it is applied, whether or not an agent runs"
    messages["usage"] = _message("usage", purpose, _one_of((usage.TrackUsage, usage.TrackUsageBatch)))
    puback = {
        "type": "object",
        "properties": {
            "stream": {"type": "string"},
            "seq": {"type": "integer", "minimum": 1},
            "duplicate": {"type": "boolean"},
            "error": {
                "type": "object",
                "properties": {
                    "code": {"type": "integer"},
                    "err_code": {"type": "integer"},
                    "description": {"type": "string"},
                },
            },
        },
    }
    messages["puback"] = _message("puback", "The stream has stored the message, or says why not", puback)
    parameter = {"provider": {"description": "e.g. openai"}, "kind": {"description": "e.g. chat"}}
    channels["usage"] = {
        "address": f"{USAGE_PREFIX}.{{provider}}.{{kind}}",
        "summary": purpose,
        "parameters": parameter,
        "messages": {"usage": _ref("messages", "usage")},
    }
    channels["usage.reply"] = {
        "address": None,
        "summary": "The inbox named when usage is published",
        "messages": {"puback": _ref("messages", "puback")},
    }
    operations["usage"] = {
        "action": "receive",
        "summary": purpose,
        "channel": {"$ref": "#/channels/usage"},
        "messages": [{"$ref": "#/channels/usage/messages/usage"}],
        "tags": [{"name": "tracking"}],
        "reply": {
            "address": {"location": "$message.header#/reply", "description": "The NATS reply subject"},
            "channel": {"$ref": "#/channels/usage.reply"},
            "messages": [{"$ref": "#/channels/usage.reply/messages/puback"}],
        },
        "x-roles": ["provider"],
        "x-idempotent": True,
    }


def _all_types() -> tuple[type, ...]:
    requests = [kind for signal in REQUESTS for kind in (*request_types(signal), *reply_types(signal))]
    return tuple(
        dict.fromkeys(
            [*requests, *DECODED_APART.values(), *(event.payload for event in EVENTS), ErrorReply, CloudEvent]
        )
    )


def _component_schemas() -> Json:
    _, components = msgspec.json.schema_components(_all_types(), ref_template=COMPONENT)
    return _define(components, COMPONENT)


def _standalone(kinds: tuple[type, ...], identity: str, title: str, purpose: str) -> Json:
    """One schema with everything it refers to."""
    apart = tuple(kind for (name, _), kind in DECODED_APART.items() if name in {known.__name__ for known in kinds})
    references, definitions = msgspec.json.schema_components((*kinds, *apart), ref_template=DEFINITION)
    top: Json = dict(references[0]) if len(kinds) == 1 else {"oneOf": list(references[: len(kinds)])}
    return {
        "$schema": DIALECT,
        "$id": identity,
        "title": title,
        "description": purpose,
        **top,
        "$defs": _define(definitions, DEFINITION),
    }


def _one_of(kinds: tuple[type, ...]) -> Json:
    references, _ = msgspec.json.schema_components(kinds, ref_template=COMPONENT)
    return dict(references[0]) if len(kinds) == 1 else {"oneOf": list(references)}


def _message(name: str, summary: str, payload: Json) -> Json:
    return {"name": name, "summary": summary, "contentType": JSON, "payload": payload}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _error_headers() -> Json:
    return {
        "type": "object",
        "required": ["Nats-Service-Error", "Nats-Service-Error-Code"],
        "properties": {
            "Nats-Service-Error": {"type": "string", "description": "Text for people; may change"},
            "Nats-Service-Error-Code": {"type": "string", "enum": sorted(str(code) for code in set(STATUS.values()))},
        },
    }


def _define(components: dict[str, Any], template: str) -> Json:
    """Sorted definitions, with what is decoded one by one spelled out."""
    for (name, key), kind in DECODED_APART.items():
        if name in components:
            components[name]["properties"][key]["items"] = {"$ref": template.format(name=kind.__name__)}
    for component in components.values():
        for key, found in component.get("properties", {}).items():
            if not found and key in TEXTS:
                component["properties"][key] = TEXTS[key]
    return {name: _tidy(components[name]) for name in sorted(components)}


def _tidy(schema: Any) -> Any:
    """Descriptions on one line, as docstrings of structs are wrapped for reading in the source."""
    if isinstance(schema, dict):
        items = cast("Json", schema)
        return {
            key: " ".join(value.split()) if key == "description" and isinstance(value, str) else _tidy(value)
            for key, value in items.items()
        }
    return [_tidy(value) for value in cast("list[Any]", schema)] if isinstance(schema, list) else schema


def main(arguments: list[str] | None = None) -> int:
    """Write or check the files; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m signals.contract", description="Write docs/contract.")
    parser.add_argument("--check", action="store_true", help="only say what differs, and fail if anything does")
    if not parser.parse_args(arguments).check:
        write()
        readme.write()
        matrix.write()
        return 0
    found = differences()
    if readme.differs():
        found.append("README.md: the signal tables")
    if matrix.differs():
        found.append("docs/access.md: the permission matrix")
    for line in found:
        sys.stderr.write(f"{line}\n")
    if found:
        sys.stderr.write("run: python -m signals.contract\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
