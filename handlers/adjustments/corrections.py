"""What void, correct and refund make of what an event stands for. Pure; each is refused with the field it is about."""

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from handlers.adjustments.standing import COUNTS, OTHER_COUNTS, History, Stand
from handlers.cost.org_prices import Prices
from handlers.cost.price import PER, Quantities, contradiction
from handlers.cost.resolve import provider_key
from handlers.org_settings import OrgSettings
from handlers.tracker.priced import REPORTED, TOO_LARGE, PricedEvent, priced_again
from schemas.adjustment import Adjustment
from schemas.currencies import known_currency
from schemas.errors import conflict, invalid
from schemas.money import AmountError, format_cost, parse_call_cost

# Who stated the cost: a person, or the provider with the call. Neither is priced anew behind their backs.
STATED: Final = "stated"
GIVEN: Final = (STATED, REPORTED)
_COLUMNS: Final = (*COUNTS, "system_tokens")
_OTHER: Final = tuple(name for name in OTHER_COUNTS if name != "requests")
_PRICED_BY: Final = ("provider", "model", "service_tier", "region", "batch")
_CORRECTS: Final = (*_PRICED_BY, *_COLUMNS, *_OTHER, "cost", "currency")


def adjusted(asked: Adjustment, history: History, prices: Prices, settings: OrgSettings) -> tuple[Stand, list[str]]:
    """What the event counts for after an adjustment, and warnings. Raises SignalError where it cannot be made."""
    _check_fields(asked)
    if asked.kind == "void":
        return _voided(history.stand), []
    if asked.kind == "refund":
        return _refunded(asked, history.stand), []
    return _corrected(asked, history, prices, settings)


def _check_fields(asked: Adjustment) -> None:
    if not asked.reason.strip():
        raise invalid("says nothing: tell auditors why", field="reason")
    given = [name for name in (*_CORRECTS, "amount") if getattr(asked, name) is not None]
    allowed = {"void": (), "refund": ("amount",), "correct": _CORRECTS}[asked.kind]
    wrong = [name for name in given if name not in allowed]
    if wrong:
        raise invalid(f"does not belong to kind '{asked.kind}'", field=wrong[0])
    if asked.kind == "refund" and asked.amount is None:
        raise invalid("is required for a refund", field="amount")
    if asked.currency is not None and asked.cost is None:
        raise invalid("is the currency of cost: state that, too", field="currency")
    if asked.currency is not None:
        known_currency(asked.currency)


def _voided(stand: Stand) -> Stand:
    if stand.void:
        raise conflict("the event is void already", field="usage_id")
    return Stand(stand.event, void=True)


def _refunded(asked: Adjustment, stand: Stand) -> Stand:
    amount = _amount(asked.amount, "amount")
    event = stand.event
    if stand.void or event.cost is None:
        what = "is void" if stand.void else "has no cost"
        raise conflict(f"the event {what}: there is nothing to refund", field="usage_id")
    if not 0 < amount <= event.cost:
        text = (
            "must be above 0" if not amount else f"is more than the {format_cost(event.cost)} that the event stands for"
        )
        raise invalid(text, field="amount")
    items: list[Any] = [item for item in json.loads(event.line_items) if item[0] != "refund"]
    return _less(msgspec.structs.replace(event, line_items=json.dumps(items)), amount, stand.refunded + amount)


def _less(event: PricedEvent, amount: int, refunded: int) -> Stand:
    """``event``, whose cost and list cost lack all earlier refunds, less ``amount``; ``refunded`` is all of them."""
    assert event.cost is not None
    items: list[Any] = json.loads(event.line_items)
    # What is given back is no discount: the list cost falls by as much, but never below nought.
    list_cost = None if event.list_cost is None else max(0, event.list_cost - amount)
    listed = (
        -refunded if list_cost is None else list_cost - sum(item[5] if len(item) > 4 else item[3] for item in items)
    )
    items.append(["refund", 1, -refunded * PER, -refunded, *([] if listed == -refunded else [listed * PER, listed])])
    changed = msgspec.structs.replace(
        event, cost=event.cost - amount, list_cost=list_cost, line_items=json.dumps(items)
    )
    return Stand(changed, refunded=refunded)


def _corrected(asked: Adjustment, history: History, prices: Prices, settings: OrgSettings) -> tuple[Stand, list[str]]:
    """A void event comes back as it was recorded, with the changes. What is not stated is priced anew."""
    stand = Stand(history.event) if history.stand.void else history.stand
    event = _changed(stand.event, asked)
    warnings: list[str] = []
    if asked.cost is not None:
        found = Stand(_at_cost(event, _amount(asked.cost, "cost"), asked.currency or event.currency))
    else:
        found = anew(Stand(event, refunded=stand.refunded), prices, settings)
        if found is not None and found.event.price_source in GIVEN:
            warnings.append(f"keeps the cost that was {found.event.price_source}: state cost to change it")
        if found is None:
            text = (
                f"{format_cost(stand.refunded)} of it was refunded, and it would cost less or have no price: state cost"
            )
            raise conflict(text, field="cost")
        if found.event.cost is None:
            warnings.append(
                f"unpriced: {event.provider}/{event.model} has no price for this; the cost is unknown, not zero"
            )
    if TOO_LARGE in found.event.flags and asked.cost is None:
        raise invalid("makes the cost larger than that of any one call", field="completion_tokens")
    if found.same(history.stand):
        raise conflict("the event stands for exactly this already", field="usage_id")
    return found, warnings


def anew(stand: Stand, prices: Prices, settings: OrgSettings, *, seen: Mapping[str, int] | None = None) -> Stand | None:
    """An event at the present prices of its own time, less what was refunded of it; None where there is not so much.

    A cost that a person stated stays, and one that the provider reported as long as the org believes it. ``seen`` is
    as for ``priced_again``.
    """
    event, refunded = stand.event, stand.refunded
    if event.price_source == STATED:
        return stand
    found = priced_again(event, prices, settings, seen=seen)
    kept = found.price_source == event.price_source == REPORTED
    if not refunded or kept or TOO_LARGE in found.flags:
        return Stand(found, refunded=refunded)
    if found.cost is None or found.cost < refunded:
        return None
    return _less(found, refunded, refunded)


def _changed(event: PricedEvent, asked: Adjustment) -> PricedEvent:
    """The event with the counts and what its price depends on as asked; subsets must stay within their totals."""
    values: dict[str, Any] = {n: getattr(asked, n) for n in (*_PRICED_BY, *_COLUMNS) if getattr(asked, n) is not None}
    if asked.provider is not None:
        values["provider"] = provider_key(asked.provider)
    if asked.model is not None:
        values["model"] = asked.model.strip()
    for name in ("provider", "model"):
        if name in values and not values[name]:
            raise invalid("is blank", field=name)
    other: dict[str, int] = json.loads(event.other_counts) if event.other_counts else {}
    other |= {n: getattr(asked, n) for n in _OTHER if getattr(asked, n) is not None}
    other = {name: count for name, count in other.items() if count or name == "requests"}
    values["other_counts"] = json.dumps(other) if other else None
    changed = msgspec.structs.replace(event, **values)
    _check_counts(changed, other)
    return changed


def _check_counts(event: PricedEvent, other: dict[str, int]) -> None:
    used = Quantities(**{name: getattr(event, name) for name in COUNTS}, **other)
    problem = contradiction(used)
    if problem is not None:
        raise invalid(problem.message, field=problem.field)
    if event.system_tokens > event.prompt_tokens:
        raise invalid("is part of prompt_tokens and exceeds it", field="system_tokens")


def _at_cost(event: PricedEvent, nanos: int, currency: str) -> PricedEvent:
    """The event at a stated cost: one line item of one call, so that this cost, too, is a quantity times a rate."""
    return msgspec.structs.replace(
        event,
        flags=[flag for flag in event.flags if flag != TOO_LARGE],
        cost=nanos,
        list_cost=nanos,
        currency=currency,
        cost_status="priced",
        price_source=STATED,
        price_version=None,
        line_items=json.dumps([[STATED, 1, nanos * PER, nanos]]),
    )


def _amount(text: str | None, field: str) -> int:
    try:
        return parse_call_cost(text or "")
    except AmountError as error:
        raise invalid(str(error), field=field) from None
