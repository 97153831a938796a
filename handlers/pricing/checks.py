"""What a price rule must be before it is kept, field by field. Pure.

The schema has checked the form of every field; here it is whether they mean something together.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from handlers.cost.rate_card import RateError, rate_nanos
from handlers.enforcer.calendar import zone
from handlers.patterns import EVERY
from schemas.codec import prefixed
from schemas.currencies import known_currency
from schemas.errors import SignalError, invalid
from schemas.money import AmountError, parse_cost, parse_count
from schemas.pricing import PriceRule

FACTOR_MAX: Final = 1_000
# What each kind of rule needs, and what it may say besides. Nothing else of these: it would be ignored.
_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "rates": ("rates",),
    "multiply": ("factor",),
    "add": ("rates",),
    "volume": ("volume",),
    "commitment": ("factor", "amount"),
}
_MAY: Final[Mapping[str, tuple[str, ...]]] = {
    "rates": ("tiers", "partial", "context_window", "currency"),
    "multiply": (),
    "add": ("currency",),
    "volume": ("tiers_by", "currency"),
    "commitment": ("currency",),
}
_PARTS: Final = (
    "rates", "tiers", "partial", "context_window", "currency", "factor", "tiers_by", "volume", "amount"
)  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {**{f.name: f.default for f in msgspec.structs.fields(PriceRule)}, "rates": {}}
# What two rules that state rates for the same calls have in common.
_MATCH: Final = ("layer", "provider", "model", "service_tier", "region", "batch", "daily")


def check(rule: PriceRule) -> None:
    """Raises SignalError ``invalid_request`` naming the field of a rule that would not do what it seems to."""
    _check_parts(rule)
    if rule.op == "rates" and rule.kinds:
        raise invalid("a rule that states rates names its kinds there", field="kinds")
    if len(set(rule.kinds)) != len(rule.kinds):
        raise invalid("names a kind twice", field="kinds")
    _check_rates(rule.rates, "rates")
    known_currency(rule.currency)
    _check_tiers(rule)
    _check_volume(rule)
    _check_factor(rule.factor, "factor")
    if rule.amount is not None and _cost(rule.amount, "amount") == 0:
        raise invalid("must be above 0", field="amount")
    _check_times(rule)
    if not rule.name.strip():
        raise invalid("says nothing", field="name")


def check_among(rules: Iterable[PriceRule], others: Iterable[PriceRule]) -> Iterator[tuple[str, PriceRule, PriceRule]]:
    """Pairs of rules of which nothing says which one holds: both state whole rates for the same calls and times.

    Yields what they have in common, one of ``rules`` and the other one. Those of one name follow each other.
    """
    seen: dict[tuple[Any, ...], list[PriceRule]] = {}
    for other in others:
        if other.op == "rates":
            seen.setdefault(_calls(other), []).append(other)
    for rule in rules:
        if rule.op != "rates":
            continue
        same = seen.setdefault(_calls(rule), [])
        for other in same:
            if other.name != rule.name and _meet(rule, other) and _both_state(rule, other):
                yield f"{rule.provider}/{rule.model}", rule, other
        same.append(rule)


def warnings_of(rule: PriceRule) -> list[str]:
    """What is allowed, and worth a second look."""
    found: list[str] = []
    rates = {kind: parse_cost(text) for kind, text in rule.rates.items()}
    if rule.op == "rates" and rates and not any(rates.values()):
        found.append(f"{rule.name}: every rate is 0: these calls cost nothing")
    if rule.factor is not None and Decimal(rule.factor) == 0:
        found.append(f"{rule.name}: the factor is 0: these calls cost nothing")
    if rule.op == "rates" and not rule.partial and not {"input", "output"} & rates.keys():
        found.append(f"{rule.name}: states neither input nor output: calls with tokens of these kinds are unpriced")
    if rule.op in ("multiply", "volume", "commitment") and (rule.provider, rule.model) == (EVERY, EVERY):
        found.append(f"{rule.name}: changes the price of every model of every provider")
    return found


def nanos(text: str) -> int:
    """Nanos of an amount that ``check`` has seen."""
    return parse_cost(text)


def _check_parts(rule: PriceRule) -> None:
    allowed = {*_NEEDS[rule.op], *_MAY[rule.op]}
    for field in _PARTS:
        stated = getattr(rule, field) != _DEFAULTS[field]
        if field in _NEEDS[rule.op] and not stated:
            raise invalid(f"'{rule.op}' needs it", field=field)
        if stated and field not in allowed:
            raise invalid(f"'{rule.op}' makes no use of it", field=field)


def _check_rates(rates: Mapping[Any, str], field: str) -> None:
    for kind, text in rates.items():
        _cost(text, f"{field}.{kind}")
        try:
            rate_nanos(Decimal(text))
        except RateError as error:
            raise invalid(str(error), field=f"{field}.{kind}") from None


def _check_tiers(rule: PriceRule) -> None:
    above = -1
    for i, tier in enumerate(rule.tiers):
        if tier.above_prompt_tokens <= above:
            raise invalid("must ascend", field=f"tiers[{i}].above_prompt_tokens")
        above = tier.above_prompt_tokens
        if not tier.rates:
            raise invalid("states no rate", field=f"tiers[{i}].rates")
        _check_rates(tier.rates, f"tiers[{i}].rates")
        for kind in tier.rates:
            if kind not in rule.rates:
                raise invalid("has no rate below this tier", field=f"tiers[{i}].rates.{kind}")


def _check_volume(rule: PriceRule) -> None:
    before = -1
    for i, tier in enumerate(rule.volume):
        field = f"volume[{i}].above"
        above = _count(tier.above, field) if rule.tiers_by == "tokens" else _cost(tier.above, field)
        if above <= before:
            raise invalid("must ascend", field=field)
        before = above
        _check_factor(tier.factor, f"volume[{i}].factor")


def _check_factor(text: str | None, field: str) -> None:
    if text is not None and _cost(text, field) > nanos(str(FACTOR_MAX)):
        raise invalid(f"is more than {FACTOR_MAX} times the rate", field=field)


def _check_times(rule: PriceRule) -> None:
    if rule.valid_from is not None and rule.valid_to is not None and rule.valid_to <= rule.valid_from:
        raise invalid("must be after valid_from", field="valid_to")
    if rule.daily is None:
        return
    if rule.daily.start == rule.daily.end:
        raise invalid("must differ from start", field="daily.end")
    if len(set(rule.daily.weekdays)) != len(rule.daily.weekdays):
        raise invalid("names a day twice", field="daily.weekdays")
    try:
        zone(rule.daily.timezone)
    except SignalError as error:
        raise prefixed(error, "daily") from None


def _cost(text: str, field: str) -> int:
    try:
        return parse_cost(text)
    except AmountError as error:
        raise invalid(str(error), field=field) from None


def _count(text: str, field: str) -> int:
    try:
        return parse_count(text)
    except AmountError as error:
        raise invalid(str(error), field=field) from None


def _calls(rule: PriceRule) -> tuple[Any, ...]:
    return (rule.partial, *(getattr(rule, field) for field in _MATCH))


def _both_state(rule: PriceRule, other: PriceRule) -> bool:
    """Whole rates always compete; partial ones only where both state the same kind."""
    return not rule.partial or bool(rule.rates.keys() & other.rates.keys())


def _meet(rule: PriceRule, other: PriceRule) -> bool:
    return _starts_before_end(rule.valid_from, other.valid_to) and _starts_before_end(other.valid_from, rule.valid_to)


def _starts_before_end(start: datetime | None, end: datetime | None) -> bool:
    return start is None or end is None or start < end
