"""Rules about how much was used within a time: ``hourly_rate`` and ``absolute_tokens``, from rollups alone.

A sum that stays high is one alert, which ends when the sum has fallen; at most one begins in a clock hour.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any, Final

from handlers.alerts.raising import News
from handlers.alerts.scope import Calls, calls_of
from handlers.alerts.texts import amount_of, rate_text, scope_text, with_unit
from handlers.context import Limits
from handlers.enforcer.answers import wire_time
from handlers.enforcer.calendar import bounds
from handlers.enforcer.catalogue import Catalogue
from handlers.tracker.rollup import bucket_of
from schemas.money import parse_cost, parse_count
from store import rates as rate_store
from store.alert_rules import AlertRuleRow
from store.alerts import AlertRow
from store.pool import Connection
from store.rates import NOT_ROLLED_UP, Scope

# Of rules that do not say it, and of those of earlier releases.
DEFAULT_CURRENCY: Final = "USD"
HOUR: Final = timedelta(hours=1)
BUCKET: Final = timedelta(minutes=15)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Reached:
    """What reached a rule's limit, by entity; ``since`` tells one period from the next, ``whole`` that it is all."""

    unit: str
    limit: int
    amounts: dict[str, int]
    since: datetime | None
    whole: bool
    currency: str


@dataclass(frozen=True, slots=True)
class _Closed:
    """Sums of what is over: [start, until), as read at a time."""

    start: datetime
    until: datetime
    read_at: datetime
    sums: dict[str, int]


class Rates:
    """Evaluates rules of both kinds; remembers sums of what is over, so that no tick reads a whole month."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._closed: dict[tuple[str, str, int], _Closed] = {}

    async def reached(
        self, connection: Connection, rule: AlertRuleRow, catalogue: Catalogue, at: datetime
    ) -> tuple[Calls, Reached] | None:
        """What has reached the rule's limit at ``at``; None where the rule watches nothing that can be summed."""
        calls = calls_of(rule, catalogue.by_id.values())
        if calls is None or calls.type in NOT_ROLLED_UP:
            return None
        most = self._limits.alert_entities_max
        unit, limit = unit_of(rule), limit_of(rule)
        currency = currency_of(rule)
        scope = scope_of(rule.org_id, calls, unit, catalogue.exchange.into(currency) if unit == "cost" else {})
        if rule.kind == "hourly_rate":
            amounts = await last_hour(connection, scope, at, least=limit, limit=most)
            return calls, Reached(unit, limit, amounts, None, len(amounts) < most, currency)
        start, end = bounds(rule.parameters.get("period", "monthly"), rule.parameters.get("timezone", "UTC"), at)
        sums = await self._since(connection, rule, scope, start=start, end=end, at=at)
        amounts = {entity: amount for entity, amount in sums.most_common(most) if amount >= limit}
        return calls, Reached(unit, limit, amounts, start, len(amounts) < most, currency)

    async def _since(
        self,
        connection: Connection,
        rule: AlertRuleRow,
        scope: Scope,
        *,
        start: datetime,
        end: datetime | None,
        at: datetime,
    ) -> Counter[str]:
        """Sums since ``start``. What is older than an hour is read anew only now and then: it changes by late usage."""
        limits, key = self._limits, (rule.org_id, rule.rule_id, rule.version)
        closed = self._closed.get(key)
        fresh = timedelta(seconds=limits.alert_refresh_s)
        if closed is None or closed.start != start or not timedelta(0) <= at - closed.read_at < fresh:
            until = max(start, bucket_of(at - HOUR))
            most = limits.alert_sums_max
            sums = await rate_store.between(connection, scope, start=start, end=until, limit=most)
            if len(self._closed) >= limits.alert_memory_max:
                self._closed.clear()
            closed = self._closed[key] = _Closed(start, until, at, sums)
        live = await rate_store.between(connection, scope, start=closed.until, end=end, limit=limits.alert_sums_max)
        return Counter(closed.sums) + Counter(live)


async def last_hour(connection: Connection, scope: Scope, at: datetime, *, least: int, limit: int) -> dict[str, int]:
    """Sums of the 60 minutes before ``at``, by entity, where they reach ``least``.

    Usage is summed by quarter hours: of the one in which the span begins the part inside it counts, as if its usage
    were spread evenly.
    """
    first = bucket_of(at - HOUR)
    inside = first + BUCKET - (at - HOUR)
    return await rate_store.weighted(
        connection,
        scope,
        first=first,
        weight_us=inside // _MICROSECOND,
        of_us=BUCKET // _MICROSECOND,
        least=least,
        limit=limit,
    )


def scope_of(org: str, calls: Calls, unit: str, rates: Mapping[str, Fraction]) -> Scope:
    """The calls of a rule, for a sum."""
    return Scope(org_id=org, type=calls.type, entity_id=calls.entity_id, filters=calls.filters, unit=unit, rates=rates)


def currency_of(rule: AlertRuleRow) -> str:
    """What a rule's limit of cost is in."""
    return rule.parameters.get("currency", DEFAULT_CURRENCY)


def unit_of(rule: AlertRuleRow) -> str:
    """What a rule sums."""
    return "tokens" if rule.kind == "absolute_tokens" else rule.parameters.get("unit", "cost")


def limit_of(rule: AlertRuleRow) -> int:
    """The limit of a rule in its unit's integer measure."""
    text = rule.parameters["limit"]
    return parse_cost(text) if unit_of(rule) == "cost" else parse_count(text)


def changes(
    rule: AlertRuleRow, calls: Calls, reached: Reached, standing: list[AlertRow], at: datetime
) -> tuple[list[News], list[str]]:
    """What to raise, and the ids of the standing alerts that have ended."""
    period = None if reached.since is None else wire_time(reached.since)
    same = {a.entity_id: a for a in standing if a.details.get("period_start") == period}
    over = [a.alert_id for a in standing if a.details.get("period_start") != period]
    if reached.whole:
        over += [a.alert_id for entity, a in same.items() if entity not in reached.amounts]
    fresh = [entity for entity in reached.amounts if entity not in same]
    return [_news(rule, calls, reached, entity, at) for entity in fresh], over


def _news(rule: AlertRuleRow, calls: Calls, reached: Reached, entity: str, at: datetime) -> News:
    unit, limit, amount = reached.unit, amount_of(reached.unit, reached.limit), reached.amounts[entity]
    shown = amount_of(unit, amount)
    scope = calls.of(entity)
    currency = reached.currency if unit == "cost" else None
    since = at.replace(minute=0, second=0, microsecond=0) if reached.since is None else reached.since
    span = "in the last 60 minutes" if reached.since is None else f"since {since:%Y-%m-%d %H:%M} UTC"
    title, message = rate_text(
        scope_text(scope), with_unit(shown, unit, currency), with_unit(limit, unit, currency), span
    )
    details: dict[str, Any] = {
        "limit": limit,
        "amount": shown,
        "unit": unit,
        "currency": currency,
        "scope": scope,
        **({} if reached.since is None else {"period_start": wire_time(reached.since)}),
        **({} if calls.budget is None else {"budget_name": calls.budget.name}),
    }
    which = f"{wire_time(since)}" + ("" if reached.since is None else f":{limit}")
    return News(
        key=f"{rule.kind}:{rule.rule_id}:{which}:{entity}",
        kind=rule.kind,
        level="warning",
        title=title,
        message=message,
        details=details,
        rules=[rule],
        budget_id=None if calls.budget is None else calls.budget.budget_id,
        entity_id=entity,
    )
