"""A price file in genai-prices' format (data.json v2), read and checked. It fetches nothing and decides nothing.

Reading takes some 50 ms, so it is done in a thread, once for each digest. The file does not say when it was made; what
it dates (prices that begin, remarks on when a page was read) tells an older file from a newer one.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from handlers.cost.rate_card import RateError, rate_nanos

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

# What a compressed snapshot may grow to when it is read back; files are bounded by a setting before they are stored.
UNPACKED_BYTES_MAX: Final = 256 * 1024 * 1024
_DATE: Final = re.compile(r"\b20[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])\b")
_ERROR_CHARS: Final = 300


class BadPriceFile(ValueError):
    """The content is no price file that can be used; the text says why and is fit for a caller."""


Dated = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Snapshot:
    """A price file as read. ``digest`` is the SHA-256 of its bytes, in hex."""

    digest: str
    providers: "Sequence[Provider]"

    @property
    def models(self) -> int:
        """How many models it lists, priced or not."""
        return sum(len(provider.models) for provider in self.providers)

    @cached_property
    def dated(self) -> Dated:
        """Every date stated, with the entry that states it."""
        found = ((f"{p.id}/{m.id}", m) for p in self.providers for m in p.models)
        of_models = {(name, day) for name, model in found for day in _dates(model)}
        return frozenset(of_models | {(p.id, day) for p in self.providers for day in _in_text(p.price_comments)})


def read(content: bytes) -> Snapshot:
    """The snapshot in a file's bytes. Blocking. Raises BadPriceFile for whatever could not be priced with."""
    from genai_prices.types import _providers_from_raw  # noqa: PLC0415  # pyright: ignore[reportPrivateUsage]

    raw = _json(content)
    if not isinstance(raw, list):
        raise BadPriceFile("is not a list of providers (data.json, version 2)")
    try:
        providers = _providers_from_raw(raw)
        for provider in providers:
            _check(provider)
    except RecursionError:
        raise BadPriceFile("is nested too deeply") from None
    except (ValueError, TypeError, AttributeError, KeyError, re.error) as error:
        raise BadPriceFile(f"is not a price file: {_short(error)}") from None
    ids = [provider.id for provider in providers]
    if len(set(ids)) != len(ids):
        raise BadPriceFile("lists a provider twice")
    found = Snapshot(hashlib.sha256(content).hexdigest(), tuple(providers))
    if not found.models:
        raise BadPriceFile("holds no models")
    return found


def pack(content: bytes) -> bytes:
    """A file as it is stored. Blocking."""
    return zlib.compress(content, 9)


def unpack(data: bytes) -> bytes:
    """The file that was stored. Blocking. Raises BadPriceFile where it cannot be read."""
    reader = zlib.decompressobj()
    try:
        content = reader.decompress(data, UNPACKED_BYTES_MAX)
    except zlib.error as error:
        raise BadPriceFile(f"cannot be unpacked: {error}") from None
    if not reader.eof:
        raise BadPriceFile("is incomplete, or larger than anything this service stores")
    return content


def is_older(found: Snapshot, than: Snapshot, today: date) -> bool:
    """Whether a file was made before another: the newest date that only one of both states is the other's.

    Dates after ``today`` announce something, and say nothing about when the file was made.
    """
    limit = today.isoformat()
    gained = max((day for _, day in found.dated - than.dated if day <= limit), default="")
    lost = max((day for _, day in than.dated - found.dated if day <= limit), default="")
    return lost > gained


def stated_until(found: Snapshot, today: date) -> date | None:
    """The newest date up to ``today`` that a file states: it cannot have been made before."""
    limit = today.isoformat()
    newest = max((day for _, day in found.dated if day <= limit), default=None)
    return None if newest is None else date.fromisoformat(newest)


def _json(content: bytes) -> Any:
    try:
        # Decimals, so that no rate passes through a float.
        return json.loads(content, parse_float=Decimal, parse_constant=_no_number)
    except RecursionError:
        raise BadPriceFile("is nested too deeply") from None
    except ValueError as error:
        raise BadPriceFile(f"is not JSON: {_short(error)}") from None


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _check(provider: "Provider") -> None:
    """Refuse what would be noticed only when a call is priced."""
    names: set[str] = set()
    for model in provider.models:
        if model.id in names:
            raise ValueError(f"{provider.id}/{model.id} is listed twice")
        names.add(model.id)
        if isinstance(model.prices, list) and not model.prices:
            raise ValueError(f"{provider.id}/{model.id} has an empty list of prices")
        try:
            for rate in _rates(model):
                rate_nanos(rate)
        except RateError as error:
            raise ValueError(f"{provider.id}/{model.id}: {error}") from None
        _matches(model)


def _matches(model: "ModelInfo") -> None:
    """Whatever the model's matcher raises, it raises here: a regular expression that is none, above all."""
    model.is_match(model.id)


def _rates(model: "ModelInfo") -> Iterator[Decimal]:
    stated = [price.prices for price in model.prices] if isinstance(model.prices, list) else [model.prices]
    stated += [variant.prices for variant in model.price_variants or ()]
    for prices in stated:
        for value in prices.__dict__.values():
            if value is None:
                continue
            yield getattr(value, "base", value)
            yield from (tier.price for tier in getattr(value, "tiers", ()))


def _dates(model: "ModelInfo") -> Iterator[str]:
    constraints = [price.constraint for price in model.prices] if isinstance(model.prices, list) else []
    constraints += [variant.constraint for variant in model.price_variants or ()]
    for constraint in constraints:
        start: date | None = getattr(constraint, "start_date", None)
        if start is not None:
            yield start.isoformat()
    yield from _in_text(model.price_comments)


def _in_text(text: str | None) -> list[str]:
    return [] if text is None else _DATE.findall(text)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:_ERROR_CHARS]
