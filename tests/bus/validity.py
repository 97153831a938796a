"""JSON Schema validation with the types jsonschema does not declare."""

from typing import Any

from jsonschema import Draft202012Validator


def complaints(schema: Any, value: Any) -> list[str]:
    """What the schema says against the value; empty when it is valid."""
    found: Any = Draft202012Validator(schema).iter_errors(value)  # pyright: ignore[reportUnknownMemberType]
    return [f"{error.json_path}: {error.message}" for error in found]


def accepts(schema: Any, value: Any) -> bool:
    return not complaints(schema, value)
