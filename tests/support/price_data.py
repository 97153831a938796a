"""Price files in genai-prices' data.json v2 format, written from the bundled data so that tests need no download."""

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import date, time
from decimal import Decimal
from typing import Any, cast

from genai_prices.types import ModelPrice

Raw = list[dict[str, Any]]


def bundled_raw() -> Raw:
    """The bundled providers as plain JSON, a copy for each call."""
    from genai_prices import data

    return [cast("dict[str, Any]", _plain(provider)) for provider in data.providers]


def model_of(raw: Raw, provider: str, model: str) -> dict[str, Any]:
    """One model's entry, to be changed in place."""
    (found,) = [m for p in raw if p["id"] == provider for m in p["models"] if m["id"] == model]
    return found


def changed(change: Callable[[Raw], None]) -> bytes:
    """A price file: the bundled one, changed."""
    raw = bundled_raw()
    change(raw)
    return encoded(raw)


def encoded(raw: Raw) -> bytes:
    """A price file's bytes."""
    return json.dumps(raw, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, ModelPrice):
        return {key: _plain(v) for key, v in value.__dict__.items() if v is not None}
    if is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name.rstrip("_"): _plain(v) for name, v in named.items() if v is not None and not name.startswith("_")}
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in cast("list[Any]", value)]
    if isinstance(value, Decimal):
        return float(value) if value % 1 else int(value)
    if isinstance(value, date | time):
        return value.isoformat()
    return value
