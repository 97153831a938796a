"""The generated contract: up to date, valid, complete, and true of what the codec accepts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from schemas.usage import EVENTS_MAX, TrackUsageBatch
from signals import Request, contract
from signals.registry import EVENTS, REQUESTS
from tests.bus.validity import accepts


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            if key == "$ref":
                yield item
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from references(item)


def resolve(document: Any, reference: str) -> Any:
    assert reference.startswith("#/")
    for key in reference[2:].split("/"):
        document = document[key]
    return document


def test_the_checked_in_files_are_up_to_date() -> None:
    assert contract.differences() == [], "run: python -m signals.contract"


def test_check_tells_missing_changed_and_foreign_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract.write(tmp_path)
    assert contract.differences(tmp_path) == []
    (tmp_path / "asyncapi.json").write_text("{}")
    (tmp_path / "schemas" / "error.json").unlink()
    (tmp_path / "schemas" / "gone.request.json").write_text("{}")
    assert contract.differences(tmp_path) == [
        "differs: asyncapi.json",
        "missing: schemas/error.json",
        "not of this contract: schemas/gone.request.json",
    ]
    contract.write(tmp_path)
    assert contract.differences(tmp_path) == []


def test_every_signal_and_event_has_its_channels_operation_and_schemas() -> None:
    document, schemas = contract.document(), contract.json_schemas()
    for signal in REQUESTS:
        operation = document["operations"][signal.name]
        assert operation["action"] == "receive"
        assert operation["bindings"]["nats"]["queue"] == "q"
        assert len(operation["reply"]["messages"]) == 2, "the reply and the error"
        assert document["channels"][signal.name]["address"] == signal.subject
        assert schemas[f"{signal.name}.request.json"]["$id"] == contract.request_schema_id(signal)
        assert schemas[f"{signal.name}.response.json"]["$id"] == contract.response_schema_id(signal)
    for event in EVENTS:
        assert document["operations"][f"publish.{event.name}"]["action"] == "send"
        assert document["channels"][event.name]["address"] == event.subject
    assert document["channels"]["usage"]["address"] == "usage.{provider}.{kind}"


def test_every_reference_resolves_and_every_schema_is_valid() -> None:
    document = contract.document()
    for reference in references(document):
        assert resolve(document, reference) is not None
    for schema in contract.json_schemas().values():
        Draft202012Validator.check_schema(schema)
        for reference in references(schema):
            assert resolve(schema, reference) is not None
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_generating_is_deterministic() -> None:
    first = contract.files()
    contract.document.cache_clear()
    contract.json_schemas.cache_clear()
    assert contract.files() == first


@pytest.mark.parametrize("signal", REQUESTS, ids=lambda signal: signal.name)
def test_a_request_with_an_unknown_field_is_refused_by_its_schema(signal: Request[Any, Any]) -> None:
    schema = contract.json_schemas()[f"{signal.name}.request.json"]
    assert not accepts(schema, {"no_such_field": 1})


def test_track_usage_is_one_event_or_many_and_schema_and_codec_agree() -> None:
    schemas = contract.json_schemas()
    request = schemas["track_usage.request.json"]
    event = {"provider": "openai", "model": "gpt-4o", "prompt_tokens": 1}
    assert accepts(request, event)
    assert accepts(request, {"events": [event, event], "ack": "applied"})
    assert not accepts(request, {"events": [{"provider": "openai"}]})
    assert not accepts(request, {"events": []})
    assert not accepts(request, {"events": [event] * (EVENTS_MAX + 1)})
    assert not accepts(request, {**event, "events": [event]})
    msgspec.json.decode(json.dumps({"events": [event]}), type=TrackUsageBatch)
    reply = schemas["track_usage.response.json"]
    receipt = {"id": "1", "accepted": True}
    assert accepts(reply, receipt)
    assert accepts(reply, {"events": [receipt], "accepted": 1, "rejected": 0})
