"""Budgets on their way to the ledger: what a request asks for as rows, checked. Pure; amounts become integers here.

A throttle over a day or longer goes on at a rate, which is a budget of its own behind the gate of the first: the two
are one budget for whoever made them, and change together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import msgspec

from handlers.context import Ids
from handlers.enforcer.calendar import zone
from handlers.enforcer.catalogue import EVERY
from handlers.enforcer.ledger import effective_limit
from schemas.budget import CreateBudget, OverridePolicy, Rate, UpdateBudget
from schemas.currencies import known_currency
from schemas.errors import invalid
from schemas.money import COST_NANOS_MAX, COUNT_MAX, AmountError, format_cost, parse_cost, parse_count
from signals import ROLES
from store.budgets import RATE_PERIODS, BudgetRow

# What makes a budget this budget (R4): where one of these differs, it is another one.
IDENTITY: Final = ("type", "entity_id", "filters", "unit", "currency", "period", "timezone")
_SETTLED: Final = ("org_id", "budget_id", "version", "counting_since", "created_at", "updated_at", "deleted_at")
_PLAIN: Final = ("name", "overage_percent", "enforcement", "on_expiry", "active")


@dataclass(frozen=True, slots=True)
class Whole:
    """A budget with the rate at which calls go on beyond it, where it has one."""

    main: BudgetRow
    rate: BudgetRow | None = None


def drafted(request: CreateBudget, *, org: str, now: datetime, new_id: Ids, managed: bool = False) -> Whole:
    """What a request asks for, dated by the agent's clock until ``dated``. Raises SignalError ``invalid_request``."""
    zone(request.timezone)
    if request.type == "global" and request.entity_id != EVERY:
        raise invalid("a global budget has no entity: leave it out or give '*'", field="entity_id")
    known_currency(request.currency)
    row = BudgetRow(
        org_id=org,
        budget_id=new_id(),
        version=1,
        name=request.name,
        type=request.type,
        entity_id=request.entity_id,
        filters={name: value for name, value in msgspec.structs.asdict(request.filters).items() if value is not None},
        unit=request.unit,
        currency=request.currency if request.unit == "cost" else None,
        period=request.period,
        timezone=request.timezone,
        base_limit=_limit(request.unit, request.limit, field="limit"),
        overage_percent=request.overage_percent,
        enforcement=request.enforcement,
        alert_thresholds=_thresholds(request.alert_thresholds),
        rollover_policy=request.rollover.policy,
        rollover_percent=request.rollover.percent,
        override_policy=_override_policy(request.override_policy),
        on_expiry=request.on_expiry,
        preferred_models=tuple(request.preferred_models),
        fallback_model=request.fallback_model,
        active=request.active,
        counting_since=now,
        created_at=now,
        updated_at=now,
        managed=managed,
    )
    _check(row)
    return Whole(row, _rated(row, request.rate, None, now=now, new_id=new_id))


def dated(whole: Whole, *, now: datetime, since: datetime) -> Whole:
    """A draft with PostgreSQL's clock; it counts from ``since``, its rate from now."""
    main = replace(whole.main, counting_since=since, created_at=now, updated_at=now)
    if whole.rate is None:
        return Whole(main)
    return Whole(main, replace(whole.rate, counting_since=now, created_at=now, updated_at=now))


def changed(before: Whole, request: UpdateBudget, *, now: datetime, new_id: Ids) -> Whole:
    """A budget after an update; what the request leaves out stays. Raises SignalError ``invalid_request``."""
    row = before.main
    fields: dict[str, Any] = {name: getattr(request, name) for name in _PLAIN if getattr(request, name) is not None}
    if request.limit is not None:
        fields["base_limit"] = _limit(row.unit, request.limit, field="limit")
    if request.alert_thresholds is not None:
        fields["alert_thresholds"] = _thresholds(request.alert_thresholds)
    if request.preferred_models is not None:
        fields["preferred_models"] = tuple(request.preferred_models)
    if request.fallback_model is not msgspec.UNSET:
        fields["fallback_model"] = request.fallback_model
    if request.rollover is not None:
        fields |= {"rollover_policy": request.rollover.policy, "rollover_percent": request.rollover.percent}
    if request.override_policy is not None:
        fields["override_policy"] = _override_policy(request.override_policy)
    main = replace(row, **fields, version=row.version + 1, updated_at=now)
    _check(main)
    return Whole(main, _rated(main, request.rate, before.rate, now=now, new_id=new_id))


def turned_into(before: Whole, wanted: Whole, *, now: datetime, new_id: Ids) -> Whole:
    """A budget with everything that may change as in ``wanted``, which has the same identity; itself if it has."""
    kept = {name: getattr(before.main, name) for name in _SETTLED}
    main = replace(wanted.main, **kept, gate_id=None)
    asked = None if wanted.rate is None else rate_of(wanted.rate)
    if main != before.main:
        main = replace(main, version=main.version + 1, updated_at=now)
    rate = _rated(main, asked, before.rate, now=now, new_id=new_id)
    if rate != before.rate and main == before.main:
        main = replace(main, version=main.version + 1, updated_at=now)
    return Whole(main, rate)


def deleted(whole: Whole, now: datetime) -> Whole:
    """A budget that is gone for good, and its rate with it."""
    return Whole(gone(whole.main, now), None if whole.rate is None else gone(whole.rate, now))


def gone(row: BudgetRow, now: datetime) -> BudgetRow:
    """A deleted row: inactive, its name free."""
    return replace(row, active=False, deleted_at=now, updated_at=now, version=row.version + 1)


def rate_of(row: BudgetRow) -> Rate:
    """A rate as callers write it."""
    limit = format_cost(row.base_limit) if row.unit == "cost" else str(row.base_limit)
    return msgspec.convert({"limit": limit, "unit": row.unit, "period": row.period, "currency": row.currency}, Rate)


def rate_name(name: str) -> str:
    """What the rate of a budget is called."""
    return f"{name} (rate)"


def with_rates(rows: Sequence[BudgetRow], rates: Sequence[BudgetRow]) -> list[Whole]:
    """Budgets with their rates: of a deleted budget the one that was deleted with it."""
    found = {(rate.gate_id, rate.deleted_at): rate for rate in rates}
    return [Whole(row, found.get((row.budget_id, row.deleted_at))) for row in rows]


def _rated(
    main: BudgetRow, wanted: Rate | None, before: BudgetRow | None, *, now: datetime, new_id: Ids
) -> BudgetRow | None:
    """The rate that belongs to ``main``: as asked for, else as before; the same row where only its limit differs."""
    if main.enforcement != "throttle" or main.period in RATE_PERIODS:
        if wanted is not None:
            what = "only throttle takes a rate" if main.enforcement != "throttle" else "the budget itself is the rate"
            raise invalid(f"{what}: leave it out", field="rate")
        return None
    wanted = wanted or (rate_of(before) if before is not None else None)
    if wanted is None:
        text = f"a {main.period} throttle needs the rate at which calls go on, e.g. 60 requests a minute"
        raise invalid(text, field="rate")
    limit = _limit(wanted.unit, wanted.limit, field="rate.limit")
    counts = (wanted.unit, wanted.period, _rate_currency(main, wanted))
    if before is None or (before.unit, before.period, before.currency) != counts:
        return _new_rate(main, wanted, limit, now=now, budget_id=new_id())
    same = {"on_expiry": main.on_expiry, "active": main.active, "managed": main.managed}
    row = replace(before, name=rate_name(main.name), base_limit=limit, **same)
    return before if row == before else replace(row, version=row.version + 1, updated_at=now)


def _new_rate(main: BudgetRow, wanted: Rate, limit: int, *, now: datetime, budget_id: str) -> BudgetRow:
    return replace(
        main,
        budget_id=budget_id,
        version=1,
        name=rate_name(main.name),
        unit=wanted.unit,
        currency=_rate_currency(main, wanted),
        period=wanted.period,
        base_limit=limit,
        overage_percent=0,
        alert_thresholds=(),
        rollover_policy="none",
        rollover_percent=0,
        preferred_models=(),
        fallback_model=None,
        counting_since=now,
        created_at=now,
        updated_at=now,
        gate_id=main.budget_id,
    )


def _rate_currency(main: BudgetRow, wanted: Rate) -> str | None:
    """What a rate of cost is in: what it says, else as its budget."""
    if wanted.unit != "cost":
        return None
    return known_currency(wanted.currency or main.currency or "USD", field="rate.currency")


def _check(row: BudgetRow) -> None:
    if row.rollover_policy != "none" and row.period == "total":
        raise invalid("a total budget has one window: nothing rolls over", field="rollover")
    if effective_limit(row, 0) > (COST_NANOS_MAX if row.unit == "cost" else COUNT_MAX):
        raise invalid("makes the limit larger than any amount this service keeps", field="overage_percent")


def _override_policy(policy: OverridePolicy) -> dict[str, Any]:
    """As stored. A role that nobody can hold is a word misspelt: nobody but an admin could approve."""
    for i, role in enumerate(policy.approver_roles):
        if role not in ROLES:
            raise invalid(f"is no role: {', '.join(ROLES)}", field=f"override_policy.approver_roles[{i}]")
    return msgspec.structs.asdict(policy)


def _thresholds(percents: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(set(percents)))


def _limit(unit: str, text: str, *, field: str) -> int:
    try:
        return parse_cost(text) if unit == "cost" else parse_count(text)
    except AmountError as error:
        raise invalid(str(error), field=field) from None
