"""Windows that will be used up before they reset, at the pace of their spending (``pacing``)."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from handlers.alerts.projection import PROFILE_DAYS_MAX, Profile, by_weekday, linear, profile_of
from handlers.alerts.raising import News, is_rate
from handlers.alerts.scope import watched, watches
from handlers.alerts.texts import date_text, pacing_text, window_details
from handlers.context import Limits
from handlers.currency.exchange import Exchange
from handlers.enforcer.answers import window_reply, wire_time
from handlers.enforcer.calendar import bounds, zone
from handlers.enforcer.catalogue import Catalogue
from handlers.enforcer.ledger import effective_limit, sums_of
from handlers.enforcer.shown import own_window
from handlers.enforcer.windows import WindowRef
from store import rates as rate_store
from store import windows as window_store
from store.alert_rules import AlertRuleRow
from store.budgets import BudgetRow
from store.pool import Connection
from store.rates import NOT_ROLLED_UP, Scope
from store.windows import WindowRow

MIN_ELAPSED_PERCENT: Final = 10
_MICROSECOND: Final = timedelta(microseconds=1)
_WEEKLY_OR_LONGER: Final = ("weekly", "monthly", "yearly")


@dataclass(frozen=True, slots=True)
class _Span:
    """The present period of a budget: from when it counts, and its end."""

    since: datetime
    end: datetime
    starts_at: datetime

    def passed(self, now: datetime, percent: int) -> bool:
        """Whether so much of it is over."""
        return (now - self.since) * 100 >= (self.end - self.since) * percent and now > self.since


class Pacing:
    """Evaluates pacing rules; remembers how each budget's spending is spread over the week."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._profiles: dict[str, tuple[datetime, Profile | None]] = {}

    async def news(self, connection: Connection, rule: AlertRuleRow, catalogue: Catalogue, at: datetime) -> list[News]:
        """Windows of which the rule has not told yet that they will not last."""
        found: list[News] = []
        for budget in watched(rule, catalogue):
            span = span_of(budget, at)
            percent = rule.parameters.get("min_elapsed_percent", MIN_ELAPSED_PERCENT)
            if span is None or is_rate(budget) or not span.passed(at, percent):
                continue
            profile = await self._profile(connection, budget, at, catalogue.exchange)
            for row in await self._ahead(connection, rule, budget, span, at, linear=profile is None):
                if watches(rule, budget, row.entity_id):
                    item = _news(rule, catalogue, row, profile, at)
                    found += [item] if item is not None else []
        return found

    async def _ahead(
        self, connection: Connection, rule: AlertRuleRow, budget: BudgetRow, span: _Span, at: datetime, *, linear: bool
    ) -> list[WindowRow]:
        ids = await rate_store.windows_ahead(
            connection,
            budget.org_id,
            budget.budget_id,
            starts_at=span.starts_at,
            rule_id=rule.rule_id,
            elapsed_us=(at - span.since) // _MICROSECOND if linear else None,
            total_us=(span.end - span.since) // _MICROSECOND,
            base_limit=effective_limit(budget, 0),
            limit=self._limits.alert_entities_max,
        )
        rows = await window_store.by_id(connection, budget.org_id, ids) if ids else {}
        return list(rows.values())

    async def _profile(
        self, connection: Connection, budget: BudgetRow, at: datetime, exchange: Exchange
    ) -> Profile | None:
        """How a budget with one window spends over the week; None where that is not known."""
        if budget.period not in _WEEKLY_OR_LONGER or own_window(budget) is None or budget.type in NOT_ROLLED_UP:
            return None
        known = self._profiles.get(budget.budget_id)
        if known is not None and timedelta(0) <= at - known[0] < timedelta(seconds=self._limits.alert_profile_s):
            return known[1]
        today, _ = bounds("daily", budget.timezone, at)
        scope = Scope(
            org_id=budget.org_id,
            type=budget.type,
            entity_id=budget.entity_id,
            filters=budget.filters,
            unit=budget.unit,
            rates=exchange.into(budget.currency) if budget.currency is not None else {},
        )
        first = today - timedelta(days=PROFILE_DAYS_MAX)
        days = await rate_store.by_day(connection, scope, start=first, end=today, timezone=budget.timezone)
        profile = profile_of(days, today.astimezone(zone(budget.timezone)).date())
        if len(self._profiles) >= self._limits.alert_memory_max:
            self._profiles.clear()
        self._profiles[budget.budget_id] = at, profile
        return profile


def span_of(budget: BudgetRow, at: datetime) -> _Span | None:
    """The present period of a budget; None where it has no end."""
    start, end = bounds(budget.period, budget.timezone, at)
    return None if end is None else _Span(max(start, budget.counting_since), end, start)


def exhausted_at(
    budget: BudgetRow, row: WindowRow, *, limit: int, profile: Profile | None, at: datetime
) -> datetime | None:
    """When a window will be used up; None where not before it ends, or where it is already."""
    span = span_of(budget, at)
    if span is None or row.spent >= limit or row.starts_at != span.starts_at:
        return None
    spent = row.spent
    if profile is None:
        return linear(since=span.since, now=at, end=span.end, spent=spent, limit=limit)
    return by_weekday(profile, budget.timezone, since=span.since, now=at, end=span.end, spent=spent, limit=limit)


def _news(
    rule: AlertRuleRow, catalogue: Catalogue, row: WindowRow, profile: Profile | None, at: datetime
) -> News | None:
    budget = catalogue.by_id[row.budget_id]
    limit = catalogue.limit(budget, row.entity_id, row.carry, at)
    runs_out = exhausted_at(budget, row, limit=limit, profile=profile, at=at)
    if runs_out is None:
        return None
    sums = sums_of(budget, row, catalogue.raised(budget.budget_id, row.entity_id, at))
    shown = window_reply(budget, WindowRef.of(row), sums)
    day = runs_out.astimezone(zone(budget.timezone))
    title, message = pacing_text(shown, runs_out, date_text(day))
    method = "linear" if profile is None else "weekday"
    details = window_details(
        shown, at, exhausted_at=wire_time(runs_out), exhausted_on=day.date().isoformat(), method=method
    )
    return News(
        key=f"pacing:{rule.rule_id}:{row.window_id}",
        kind="pacing",
        level="warning",
        title=title,
        message=message,
        details=details,
        rules=[rule],
        budget_id=budget.budget_id,
        window_id=row.window_id,
        entity_id=row.entity_id,
    )
