"""What one price file says otherwise than another, and which of it is suspicious. Pure.

A model's rates are compared now and at every moment ahead at which either file changes them, in every variant (batch,
flex ...): a price that jumps tomorrow is as suspicious as one that jumped today.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from handlers.cost.rate_card import rate_nanos

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

    from handlers.cost.snapshot import Snapshot

Names = tuple[str, str]


class RateChange(NamedTuple):
    """One price: nanos per million units of the data (None: not stated) before and after, and since when."""

    provider: str
    model: str
    key: str
    since: datetime
    before: int | None
    after: int | None

    def moves_more_than(self, percent: int) -> bool:
        """Whether it moves by more than ``percent`` of what it was, or is no longer stated. Exact."""
        if self.before is None:
            return False
        if self.after is None:
            return True
        return abs(self.after - self.before) * 100 > percent * self.before


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything that differs: by provider and model, with priced models that came and went."""

    changes: list[RateChange] = field(default_factory=list[RateChange])
    gained: list[Names] = field(default_factory=list[Names])
    lost: list[Names] = field(default_factory=list[Names])


def difference(old: "Snapshot", new: "Snapshot", at: datetime) -> Difference:
    """What ``new`` says otherwise than ``old`` from ``at`` on. Blocking: some 100 ms for two whole files."""
    before, after = dict(_models(old)), dict(_models(new))
    found = Difference()
    for names in sorted(before.keys() | after.keys()):
        was, now = before.get(names), after.get(names)
        if was is not None and now is not None:
            found.changes.extend(changes(names, was, now, at))
        elif now is not None and _is_priced(now, at):
            found.gained.append(names)
        elif was is not None and _is_priced(was, at):
            found.lost.append(names)
    return found


def changes(names: Names, was: "ModelInfo", now: "ModelInfo", at: datetime) -> Iterator[RateChange]:
    """Where two entries for the same calls state other rates, each rate at the first moment it differs."""
    told: set[str] = set()
    for moment in _moments((was, now), at):
        before, after = _stated(was, moment), _stated(now, moment)
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key) and key not in told:
                told.add(key)
                yield RateChange(*names, key, moment, before.get(key), after.get(key))


def _models(snapshot: "Snapshot") -> Iterator[tuple[Names, "ModelInfo"]]:
    provider: Provider
    for provider in snapshot.providers:
        for model in provider.models:
            yield (provider.id, model.id), model


def _is_priced(model: "ModelInfo", at: datetime) -> bool:
    return bool(_stated(model, at))


def _constraints(model: "ModelInfo") -> Iterator[Any]:
    if isinstance(model.prices, list):
        yield from (price.constraint for price in model.prices)
    yield from (variant.constraint for variant in model.price_variants or ())


def _moments(models: Iterable["ModelInfo"], at: datetime) -> list[datetime]:
    """``at``, and every moment after it at which a rate may change: dated prices, and the hours of a day."""
    moments = {at}
    for constraint in (c for model in models for c in _constraints(model) if c is not None):
        start: date | None = getattr(constraint, "start_date", None)
        if start is not None:
            moments.add(datetime.combine(start, time(), UTC))
            continue
        for clock in (constraint.start_time, constraint.end_time):
            edge = datetime.combine(at.date(), clock, clock.tzinfo or UTC).astimezone(UTC)
            moments.add(edge if edge >= at else edge + timedelta(days=1))
    return sorted(moment for moment in moments if moment >= at)


def _stated(model: "ModelInfo", at: datetime) -> dict[str, int]:
    """Every rate in force at a moment: ``input_mtok``, ``input_mtok>200000``, ``input_mtok[processing=batch]``."""
    found = _flat(model.get_prices(at).__dict__, "")
    for variant in model.price_variants or ():
        if variant.constraint is None or variant.constraint.active(at):
            when = ",".join(f"{key}={value}" for key, value in sorted(variant.when.items()))
            # Of several variants for the same calls the first one holds.
            found = _flat(variant.prices.__dict__, f"[{when}]") | found
    return found


def _flat(prices: dict[str, Any], suffix: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, value in prices.items():
        if value is None:
            continue
        base: Decimal = getattr(value, "base", value)
        found[key + suffix] = rate_nanos(base)
        for tier in getattr(value, "tiers", ()):
            found[f"{key}>{tier.start}{suffix}"] = rate_nanos(tier.price)
    return found


Find = Callable[[str, str], "tuple[Provider, ModelInfo] | None"]


class Moved(NamedTuple):
    """Why a used name (``provider``, ``model`` as calls say them) would be priced suspiciously otherwise."""

    why: str
    provider: str
    model: str
    change: RateChange | None = None


def moved(used: Iterable[Names], before: Find, after: Find, *, at: datetime, percent: int) -> Iterator[Moved]:
    """Used models that a file would not price any more, or whose price it moves by more than ``percent``.

    Names are looked up in both, so that an entry that now matches other names is seen too. Blocking.
    """
    for provider, model in used:
        was, now = before(provider, model), after(provider, model)
        if was is None or not _is_priced(was[1], at):
            continue
        if now is None or not _is_priced(now[1], at):
            yield Moved("model_gone", provider, model)
            continue
        for change in changes((provider, model), was[1], now[1], at):
            if change.moves_more_than(percent):
                yield Moved("price_gone" if change.after is None else "price_moved", provider, model, change)
