"""Raising alerts: each fact once, whoever notices it, with its deliveries and actions in the transaction that makes it
true. Nothing here runs an action or reaches a channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from handlers.alerts.aside import aside
from handlers.alerts.scope import watches
from handlers.alerts.shown import alert_reply
from handlers.alerts.texts import exceeded_text, level_of, overrun_text, threshold_text, window_details
from handlers.context import Services
from handlers.events import cloud_event
from schemas.budget import BudgetWindow
from signals import alert as signals
from store import alert_actions as action_store
from store import alert_rules as rule_store
from store import alerts as alert_store
from store import budgets as budget_store
from store import deliveries as delivery_store
from store import outbox as outbox_store
from store.alert_actions import AlertActionRow
from store.alert_rules import AlertRuleRow
from store.alerts import AlertRow
from store.budgets import RATE_PERIODS, BudgetRow
from store.deliveries import NewDelivery
from store.pool import Connection

# Actions that do nothing but tell: their channels are told with the rule's own.
TELLING: Final = ("notify", "callback")
_CROSSED: Final = frozenset({"threshold", "exceeded", "overrun"})


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """Something to raise if ``key`` is new, for the rules that want it. ``level`` is what follows from the kind."""

    key: str
    kind: str
    level: str
    title: str
    message: str
    details: dict[str, Any]
    rules: Sequence[AlertRuleRow]
    budget_id: str | None = None
    window_id: int | None = None
    entity_id: str | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Crossing:
    """A line that a window has crossed: a threshold in percent, ``exceeded`` with a cause, or an ``overrun``."""

    budget: BudgetRow
    entity_id: str
    window_id: int
    shown: BudgetWindow
    thresholds: Sequence[int] = ()
    exceeded: str | None = None
    overrun: str | None = None


def is_rate(budget: BudgetRow) -> bool:
    """Whether reaching the limit is what the budget is for: a rate is used up every minute, and nobody is told."""
    return budget.gate_id is not None or (budget.enforcement == "throttle" and budget.period in RATE_PERIODS)


async def raise_crossings(
    services: Services, connection: Connection, org: str, crossings: Sequence[Crossing]
) -> list[AlertRow]:
    """Raise what locked windows have crossed; the rules are read only now that there is something to tell.

    Returns the alerts raised: none where that fails, which is logged and holds nothing else up.
    """
    told = [c for c in crossings if not is_rate(c.budget) and (c.thresholds or c.exceeded or c.overrun is not None)]
    if not told:
        return []

    async def work() -> list[AlertRow]:
        rules = [rule for rule in await rule_store.active(connection, org) if rule.kind in _CROSSED]
        at = await budget_store.clock(connection)
        news = [item for crossing in told for item in _news(crossing, rules, at)]
        return await raise_news(services, connection, org, news, at)

    return await aside(connection, org, work, [])


def _news(crossing: Crossing, rules: Sequence[AlertRuleRow], at: datetime) -> list[News]:
    found: list[News] = []
    exceeded, shown, window = crossing.exceeded, crossing.shown, crossing.window_id
    wanted = [rule for rule in rules if watches(rule, crossing.budget, crossing.entity_id)]
    for percent in crossing.thresholds:
        of = [rule for rule in wanted if rule.kind == "threshold" and _counts(rule, percent)]
        if percent == 100 and exceeded == "spent":
            # Reaching all of the limit is one fact; rules about either word for it hear of it once.
            of, exceeded = [*of, *(rule for rule in wanted if rule.kind == "exceeded")], None
        key, level = f"threshold:{window}:{percent}", level_of(percent)
        text, details = threshold_text(shown, percent), window_details(shown, at, threshold=percent)
        found.append(_item(crossing, key, kind="threshold", level=level, text=text, details=details, rules=of))
    if exceeded is not None:
        of = [rule for rule in wanted if rule.kind == "exceeded"]
        level = "warning" if exceeded == "shadow" else "exceeded"
        text, details = exceeded_text(shown, exceeded), window_details(shown, at, cause=exceeded)
        key = f"exceeded:{window}"
        found.append(_item(crossing, key, kind="exceeded", level=level, text=text, details=details, rules=of))
    if crossing.overrun is not None:
        of = [rule for rule in wanted if rule.kind == "overrun"]
        text, details = overrun_text(shown, crossing.overrun), window_details(shown, at, amount=crossing.overrun)
        key = f"overrun:{window}"
        found.append(_item(crossing, key, kind="overrun", level="exceeded", text=text, details=details, rules=of))
    return found


def _counts(rule: AlertRuleRow, percent: int) -> bool:
    percents = rule.parameters.get("percents")
    return percents is None or percent in percents


def _item(
    crossing: Crossing,
    key: str,
    *,
    kind: str,
    level: str,
    text: tuple[str, str],
    details: dict[str, Any],
    rules: Sequence[AlertRuleRow],
) -> News:
    return News(
        key=key,
        kind=kind,
        level=level,
        title=text[0],
        message=text[1],
        details=details,
        rules=rules,
        budget_id=crossing.budget.budget_id,
        window_id=crossing.window_id,
        entity_id=crossing.entity_id,
    )


async def raise_news(
    services: Services, connection: Connection, org: str, news: Sequence[News], at: datetime
) -> list[AlertRow]:
    """Store what is new with its deliveries, its actions and its event; returns the alerts raised."""
    drafts = [(_row(services, org, item, at), item) for item in news]
    fresh = await alert_store.insert(connection, [row for row, _ in drafts])
    raised = [(row, item) for row, item in drafts if row.alert_id in fresh]
    if not raised:
        return []
    deliveries = [d for row, item in raised for d in deliveries_of(services, row, item.rules, at)]
    await delivery_store.enqueue(connection, org, deliveries)
    await action_store.add(connection, [action for row, item in raised for action in _actions(row, item.rules)])
    events = [cloud_event(services, org, signals.RAISED, alert_reply(row), subject=row.alert_id) for row, _ in raised]
    await outbox_store.add(connection, org, events)
    return [row for row, _ in raised]


def channels_of(rules: Sequence[AlertRuleRow]) -> list[str]:
    """Every channel that rules want told, once each, in their order."""
    named: dict[str, None] = {}
    for rule in rules:
        named |= dict.fromkeys(rule.channels)
        for action in rule.actions:
            if action["do"] in TELLING:
                named |= dict.fromkeys(action["channels"])
    return list(named)


def next_telling(rules: Sequence[AlertRuleRow], at: datetime) -> datetime | None:
    """When to tell again: after the shortest time that one of the rules asks for."""
    waits = [rule.renotify_s for rule in rules if rule.renotify_s is not None and channels_of([rule])]
    return at + timedelta(seconds=min(waits)) if waits else None


def deliveries_of(services: Services, row: AlertRow, rules: Sequence[AlertRuleRow], at: datetime) -> list[NewDelivery]:
    """One delivery of an alert to each channel of the rules."""
    return [
        NewDelivery(delivery_id=services.new_id(), alert_id=row.alert_id, channel=channel, not_before=at)
        for channel in channels_of(rules)
    ]


def _row(services: Services, org: str, item: News, at: datetime) -> AlertRow:
    rules = item.rules
    override = next((rule.level for rule in rules if rule.level is not None), None)
    return AlertRow(
        org_id=org,
        alert_id=services.new_id(),
        dedup_key=item.key,
        kind=item.kind,
        level=override or item.level,
        title=item.title,
        message=item.message,
        rule=rules[0].name if rules else None,
        rule_ids=tuple(rule.rule_id for rule in rules),
        budget_id=item.budget_id,
        window_id=item.window_id,
        entity_id=item.entity_id,
        details=item.details,
        created_at=at,
        notified_at=at if channels_of(rules) else None,
        renotify_at=None if item.ended_at is not None else next_telling(rules, at),
        ended_at=item.ended_at,
    )


def _actions(row: AlertRow, rules: Sequence[AlertRuleRow]) -> list[AlertActionRow]:
    return [
        AlertActionRow(
            org_id=row.org_id,
            alert_id=row.alert_id,
            rule_id=rule.rule_id,
            position=position,
            rule=rule.name,
            action=action,
            created_at=row.created_at,
        )
        for rule in rules
        for position, action in enumerate(rule.actions)
        if action["do"] not in TELLING
    ]
