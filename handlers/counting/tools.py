"""Tools as OpenAI's models read them: a TypeScript namespace. Pure.

Nobody publishes the form. This one (hmarr/openai-chat-tokens, MIT) gives what the API said for both of the cookbook's
examples (105 of gpt-4, 101 of gpt-4o) and, within five tokens, for every recorded call of gpt-3.5 to gpt-4.1.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import msgspec

Json = Mapping[str, Any]
# Around the namespace; less where a system message is there already; for a choice that is not the usual one.
AROUND_TOKENS: Final = 9
SYSTEM_TOKENS: Final = -4
NO_CHOICE_TOKENS: Final = 1
CHOICE_TOKENS: Final = 7
# By how much recorded calls differed.
SPREAD_TOKENS: Final = 5
_BYTES_MAX: Final = 262_144
_DESCRIBED_LEVELS: Final = 2


def tools_text(tools: list[dict[str, Any]]) -> tuple[str, bool]:
    """What is counted of tools, and whether it is in that form: too much, or too deep, is taken as JSON."""
    plain = msgspec.json.encode(tools)
    if len(plain) <= _BYTES_MAX:
        try:
            return "\n".join(_namespace(tools)), True
        except RecursionError:
            pass
    return plain.decode("utf-8", "replace"), False


def chosen(choice: Any) -> str | None:
    """The function that must be called, by name; empty for none, None where the model decides."""
    if isinstance(choice, str):
        return "" if choice == "none" else None
    if not isinstance(choice, Mapping):
        return None
    found = cast("Json", choice)
    inner = found.get("function", found)
    name = cast("Json", inner).get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) and name else None


def _namespace(tools: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("namespace functions {", "")
    for tool in tools:
        inner: Any = tool.get("function")
        function: Json = cast("Json", inner) if isinstance(inner, Mapping) else tool
        name, description = _text(function.get("name")), _text(function.get("description"))
        if description:
            yield f"// {description}"
        schema = function.get("parameters", function.get("input_schema", function.get("inputSchema")))
        if isinstance(schema, Mapping) and cast("Json", schema).get("properties"):
            yield f"type {name} = (_: {{"
            yield _properties(cast("Json", schema), 0)
            yield "}) => any;"
        else:
            yield f"type {name} = () => any;"
        yield ""
    yield "} // namespace functions"


def _properties(schema: Json, level: int) -> str:
    found, required = schema.get("properties"), schema.get("required")
    if not isinstance(found, Mapping):
        return ""
    needed = (
        {name for name in cast("list[Any]", required) if isinstance(name, str)} if isinstance(required, list) else ()
    )
    lines: list[str] = []
    for name, value in cast("Json", found).items():
        inner: Json = cast("Json", value) if isinstance(value, Mapping) else {}
        description = _text(inner.get("description"))
        if description and level < _DESCRIBED_LEVELS:
            lines.append(f"// {description}")
        lines.append(f"{name}{'' if name in needed else '?'}: {_type(inner, level)},")
    # Deeper levels are not indented further: no text of a schema may grow with its depth squared.
    return "\n".join("  " * min(level, 2) + line for line in lines)


def _type(schema: Json, level: int) -> str:
    kind, values = schema.get("type"), schema.get("enum")
    if isinstance(values, list):
        return " | ".join(f'"{v}"' if isinstance(v, str) else _text(v) for v in cast("list[Any]", values))
    if kind == "object":
        return "\n".join(("{", _properties(schema, level + 1), "}"))
    if kind == "array":
        items = schema.get("items")
        return f"{_type(cast('Json', items), level)}[]" if isinstance(items, Mapping) else "any[]"
    if kind in ("number", "integer"):
        return "number"
    return kind if isinstance(kind, str) else "any"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode("utf-8", "replace")
