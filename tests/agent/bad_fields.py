"""Mistakes that every field of every signal can be given, made from the schemas, so a new field is covered at once.

Each rule changes one thing of a request that would be served.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec
from msgspec import inspect as kinds

from schemas.tokens import Texts
from signals import Request

INVALID: Final = "invalid_request"
# What fields must be that requests keep raw until they are counted.
TEXTS: Final = {field.encode_name: field.type for field in cast("Any", kinds.type_info(Texts)).fields}
# A position that another list, or nobody, has given: no text of it may reach PostgreSQL.
CURSORS: Final = {
    "a word": "x",
    "empty": "",
    "of numbers": "WzEsMl0",
    "of nothing": "W10",
    "another list's": "W251bGwsbnVsbF0",
    "year 1 beyond UTC": "WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzIzOjU5IiwiYSJd",
    "with NUL": "WyIyMDI2LTAxLTAxVDAwOjAwOjAwWiIsIlx1MDAwMCJd",
    "with half a character": "WyJcdWQ4MDAiXQ",
    "10,000 brackets": "W1tb" * 500,
    "not ASCII": "é",
    "2,049 characters": "a" * 2049,
}
BEYOND_UTC: Final = ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59")
NAIVE: Final = "2026-01-01T00:00:00"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One request with one mistake, the field that must be named, and a word its message must hold."""

    rule: str
    signal: str
    body: Any
    field: str | None
    says: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A field of a request: where it is, what it may be, and whether it may be left out or null."""

    path: tuple[str, ...]
    kind: Any
    required: bool
    nullable: bool

    @property
    def name(self) -> str:
        """As an error names it."""
        text = ""
        for part in self.path:
            text += part if part.startswith("[") else f".{part}"
        return text.removeprefix(".")


def mistakes(signal: Request[Any, Any], good: dict[str, Any]) -> Iterator[Mistake]:
    """Every mistake the rules know for one signal, whose request ``good`` would be served."""
    kind = kinds.type_info(signal.request)
    assert isinstance(kind, kinds.StructType)
    for text in (b"[]", b"null", b"7", b'"text"', b"{", b"hello", b"\xff", b"[" * 10_000):
        yield Mistake("no JSON object", signal.name, text, None)
    for name in ("org", "roles", "caller"):
        yield Mistake("who asks, in the payload", signal.name, {**good, name: "x"}, name)
    near = kind.fields[0].encode_name if kind.fields else ""
    wrong = f"{near}x"
    hint = f"did you mean `{near}`" if near else ""
    yield Mistake(
        "an unknown field (the nearest known one is named)", signal.name, {**good, wrong: 1}, wrong, says=hint
    )
    for place in _places(kind, ()):
        for rule, path, value in _wrong(place):
            field = Place(path, None, False, False).name
            yield Mistake(rule, signal.name, put(good, path, value), field)
        if _is(place.kind, kinds.StrType, kinds.LiteralType) and _max(place.kind) != 0:
            # The character is looked for in the bytes, before anything is decoded: the key before it is known.
            key = next(part for part in reversed(place.path) if not part.startswith("["))
            yield Mistake("a NUL character", signal.name, put(good, place.path, "a\0b"), key)
        if place.required and len(place.path) == 1:
            left = {name: value for name, value in good.items() if name != place.path[0]}
            yield Mistake("a required field left out", signal.name, left, place.name)


def put(body: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of ``body`` with ``value`` at ``path``; what is missing on the way is made."""
    first, rest = path[0], path[1:]
    if not rest:
        return {**body, first: value}
    if rest[0] == "[0]":
        inner: Any = [value] if len(rest) == 1 else [put(_first(body.get(first)), rest[1:], value)]
        return {**body, first: inner}
    return {**body, first: put(_object(body.get(first)), rest, value)}


def _first(value: Any) -> dict[str, Any]:
    """The first item of a list of objects, so that the rest of it stays good."""
    return _object(cast("list[Any]", value)[0]) if isinstance(value, list) and value else {}


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _places(kind: Any, path: tuple[str, ...]) -> Iterator[Place]:
    for field in kind.fields:
        options = field.type.types if isinstance(field.type, kinds.UnionType) else (field.type,)
        raw = any(isinstance(option, kinds.RawType) for option in options)
        of = TEXTS[field.encode_name] if raw else field.type
        yield from _place(of, (*path, field.encode_name), required=field.required)


def _place(kind: Any, path: tuple[str, ...], *, required: bool) -> Iterator[Place]:
    options = [_bare(option) for option in (kind.types if isinstance(kind, kinds.UnionType) else (kind,))]
    nullable = any(isinstance(option, kinds.NoneType) for option in options)
    for option in options:
        if isinstance(option, kinds.NoneType) or "Unset" in type(option).__name__ or isinstance(option, kinds.AnyType):
            continue
        yield Place(path, option, required, nullable)
        if isinstance(option, kinds.StructType):
            yield from _places(option, path)
        elif isinstance(option, (kinds.ListType, kinds.VarTupleType)):
            yield from _place(option.item_type, (*path, "[0]"), required=False)


def _bare(kind: Any) -> Any:
    return _bare(kind.type) if isinstance(kind, kinds.Metadata) else kind


def _is(kind: Any, *types: Any) -> bool:
    return isinstance(kind, types)


def _max(kind: Any) -> int | None:
    return getattr(kind, "max_length", None)


def _wrong(place: Place) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """What the rules put in a place: the rule, where, and the value."""
    kind, path = place.kind, place.path
    if not place.nullable:
        yield "null where a value is needed", path, None
    if _is(kind, kinds.StrType):
        yield from _wrong_text(kind, path)
    elif _is(kind, kinds.LiteralType):
        yield "a word of another type", path, 7
        yield "a word that is not one of the list", path, "nonsense"
        yield "a word that is not one of the list", path, str(kind.values[0]).upper() + " "
    elif _is(kind, kinds.BoolType):
        yield from _each("no boolean", path, 1, "true", [])
    elif _is(kind, kinds.IntType, kinds.FloatType):
        yield from _wrong_number(kind, path)
    elif _is(kind, kinds.DateTimeType):
        for value in ("yesterday", NAIVE, "2026-02-30T00:00:00Z", "", 7):
            yield "no time with an offset", path, value
        for value in BEYOND_UTC:
            yield "a time that UTC cannot express", path, value
    elif _is(kind, kinds.ListType, kinds.VarTupleType):
        yield from _each("no list", path, {}, "x", 7)
        if (most := _max(kind)) is not None and most <= 10_000:
            yield from _long_list(kind, path, most)
    elif _is(kind, kinds.DictType, kinds.StructType):
        yield from _each("no object", path, [], "x", 7)
        if _is(kind, kinds.StructType):
            yield "an unknown field (the nearest known one is named)", (*path, "nonsense"), 1


def _each(rule: str, path: tuple[str, ...], *values: Any) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    for value in values:
        yield rule, path, value


def _long_list(kind: Any, path: tuple[str, ...], most: int) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    item = _bare(kind.item_type)
    if _is(item, kinds.StrType):
        yield "too many items", path, [f"n{i}" for i in range(most + 1)]
    elif _is(item, kinds.LiteralType):
        yield "too many items", path, [item.values[0]] * (most + 1)
    elif _is(item, kinds.IntType):
        yield "too many items", path, [item.ge or 0] * (most + 1)


def _wrong_text(kind: Any, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    yield from _each("no text", path, 7, ["x"], {"x": 1}, True)
    if (most := _max(kind)) is not None:
        yield "text that is too long", path, "x" * (most + 1)
    if kind.min_length:
        yield "empty text", path, ""
    if kind.pattern is not None:
        for value in ("!", "a\n", "x" * 300, " "):
            yield "text of another form", path, value


def _wrong_number(kind: Any, path: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    yield from _each("no number", path, "7", True, [], {})
    if _is(kind, kinds.IntType):
        yield "half a number", path, 1.5
    for text in (b"1e400", *((b"99999999999999999999",) if kind.le is not None else ())):
        yield "a number beyond 64 bits", path, msgspec.Raw(text)
    if kind.ge is not None:
        yield "a number below its bound", path, kind.ge - 1
    if kind.le is not None:
        yield "a number above its bound", path, int(kind.le) + 1
