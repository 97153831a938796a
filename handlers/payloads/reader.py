"""Reads counts and amounts out of a decoded payload, refusing what is not one. Knows no provider."""

import math
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, cast

from schemas.base import TOKENS_MAX
from schemas.money import COST_NANOS_MAX, NANOS


class PayloadError(ValueError):
    """The payload cannot be read; ``field`` is the path in it, the message is fit for a caller."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class PayloadReader:
    """A usage object of a provider, read field by field; client libraries write its names in either case style."""

    def __init__(self, payload: Mapping[str, Any], path: str = "") -> None:
        self._payload = payload
        self._path = path

    def __contains__(self, name: str) -> bool:
        return self.value(name) is not None

    def has(self, *names: str) -> bool:
        """Whether any of these top-level fields is there and not null."""
        return any(name in self for name in names)

    def is_spelled(self, name: str) -> bool:
        """Whether a top-level field is there in exactly this spelling."""
        return self._payload.get(name) is not None

    def count(self, *names: str) -> int | None:
        """The first of these fields that is there, as tokens; None if none is."""
        for name in names:
            value = self.value(name)
            if value is not None:
                return whole(value, field=self._path + name)
        return None

    def part(self, *names: str) -> "PayloadReader":
        """The first of these objects that is there; one without fields if none is."""
        if not self._payload:
            return self
        for name in names:
            value = self.value(name)
            if isinstance(value, Mapping):
                return PayloadReader(cast("Mapping[str, Any]", value), f"{self._path}{name}.")
        return _NOTHING

    def tokens(self, *names: str) -> int:
        """As ``count``, nought if none is there."""
        return (self.count(*names) or 0) if self._payload else 0

    def value(self, path: str) -> Any:
        """The raw value at a dotted path; None where any step is missing, null or not an object."""
        found: Any = self._payload
        for name, other in _steps(path):
            if not isinstance(found, Mapping):
                return None
            holder = cast("Mapping[str, Any]", found)
            found = holder.get(name)
            if found is None and other:
                found = holder.get(other)
        return found

    def modality(self, modality: str, *names: str) -> int:
        """Tokens of one modality in the first of these lists that is there."""
        for name in names:
            if self.value(name) is not None:
                return self.of_list(name, "modality", modality, "tokenCount", "tokens")
        return 0

    def of_list(self, name: str, key: str, match: str, *counted: str) -> int:
        """Sum of ``counted`` over the objects of a list whose ``key`` equals ``match``, in any case."""
        items = self.value(name)
        if not isinstance(items, list):
            return 0
        readers = [PayloadReader(cast("Mapping[str, Any]", i)) for i in cast("list[Any]", items) if isinstance(i, dict)]
        return sum(reader.tokens(*counted) for reader in readers if _word(reader.value(key)) == match)

    def text(self, name: str) -> str | None:
        """A short string field in lower case; anything else is as good as missing."""
        value = self.value(name)
        return value.lower() if isinstance(value, str) and 0 < len(value) <= 64 else None


_NOTHING = PayloadReader({})


@lru_cache(maxsize=1024)
def _steps(path: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, other_case(name)) for name in path.split("."))


def other_case(name: str) -> str:
    """A snake_case name in camelCase, or the other way round; empty where both are the same."""
    if "_" in name:
        head, *rest = name.split("_")
        return head + "".join(part.capitalize() for part in rest)
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return "" if snake == name else snake


def _word(value: object) -> str:
    """An enumeration's member as text, also where a client library wrote its class before it."""
    return str(value).rpartition(".")[2].lower()


def whole(value: object, *, field: str) -> int:
    """A count of a number or a digit string: whole, not negative, within bounds. Raises PayloadError."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not math.isfinite(value):
        raise PayloadError(field, "must be a whole number")
    if value < 0:
        raise PayloadError(field, "must not be negative")
    if value > TOKENS_MAX:
        raise PayloadError(field, "is larger than any call")
    count = int(value)
    if count != value:
        raise PayloadError(field, "must be a whole number")
    return count


def nanos(value: object, *, field: str) -> int:
    """Nanos of an amount as a provider writes it (a JSON number or a decimal string), rounded half-even."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str) or len(str(value)) > 40:
        raise PayloadError(field, "must be an amount")
    try:
        # str of a float is the number the provider wrote, not its binary neighbour.
        amount = Decimal(str(value))
    except InvalidOperation:
        raise PayloadError(field, "must be an amount") from None
    if not amount.is_finite() or amount < 0 or amount * NANOS > COST_NANOS_MAX:
        raise PayloadError(field, "must be an amount within bounds, not negative")
    return int((amount * NANOS).to_integral_value(ROUND_HALF_EVEN))
