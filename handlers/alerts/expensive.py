"""Calls that cost more than a rule allows (``request_cost``), noticed in the transaction that applies them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from handlers.alerts.aside import aside
from handlers.alerts.raising import News, raise_news
from handlers.alerts.scope import Calls, calls_of
from handlers.alerts.texts import rate_text, scope_text, with_unit
from handlers.context import Services
from handlers.enforcer.catalogue import Catalogue
from handlers.tracker.priced import PricedEvent
from schemas.money import format_cost, parse_call_cost
from store import budgets as budget_store
from store.alert_rules import AlertRuleRow
from store.pool import Connection

KIND: Final = "request_cost"
# What a rule tells of is the dearest call of a minute for each entity: a loop of dear calls is one alert a minute.
_EACH: Final = "%Y-%m-%dT%H:%M"


async def raise_expensive(
    services: Services, connection: Connection, catalogue: Catalogue, events: Sequence[PricedEvent]
) -> None:
    """Raise an alert for calls above the limit of a rule. Costs nothing where no rule of this kind is active.

    The caller holds the catalogue lock, and ``catalogue`` is the present one. A rule that fails is logged.
    """
    org, book = catalogue.org, services.alert_rules
    known = book.known(org, catalogue.version)
    if known is not None and all(rule.kind != KIND for rule in known):
        return

    async def work() -> None:
        rules = [r for r in await book.rules(connection, org, catalogue.version) if r.kind == KIND]
        await _raise(services, connection, catalogue, rules, events)

    await aside(connection, org, work, None)


async def _raise(
    services: Services,
    connection: Connection,
    catalogue: Catalogue,
    rules: Sequence[AlertRuleRow],
    events: Sequence[PricedEvent],
) -> None:
    found: list[tuple[AlertRuleRow, Calls, str, PricedEvent]] = []
    for rule in rules:
        calls = calls_of(rule, catalogue.by_id.values())
        if calls is not None:
            found += [(rule, calls, entity, event) for entity, event in _dearest(rule, calls, events).items()]
    if found:
        at = await budget_store.clock(connection)
        await raise_news(services, connection, catalogue.org, [_news(*each, at=at) for each in found], at)


def _dearest(rule: AlertRuleRow, calls: Calls, events: Sequence[PricedEvent]) -> dict[str, PricedEvent]:
    """The dearest call above the rule's limit, by entity."""
    limit = parse_call_cost(rule.parameters["limit"])
    found: dict[str, PricedEvent] = {}
    for event in events:
        if event.cost is None or event.cost <= limit or (entity := calls.entity_of(event)) is None:
            continue
        dearest = found.get(entity)
        if dearest is None or event.cost > (dearest.cost or 0):
            found[entity] = event
    return found


def _news(rule: AlertRuleRow, calls: Calls, entity: str, event: PricedEvent, *, at: datetime) -> News:
    limit, amount = rule.parameters["limit"], format_cost(event.cost or 0)
    scope = calls.of(entity)
    title, message = rate_text(
        f"{scope_text(scope)}: {event.provider}/{event.model}",
        with_unit(amount, "cost", event.currency),
        with_unit(limit, "cost", event.currency),
        "for one call",
    )
    return News(
        key=f"{KIND}:{rule.rule_id}:{at.strftime(_EACH)}:{entity}",
        kind=KIND,
        level="warning",
        title=title,
        message=message,
        details={
            "limit": limit,
            "amount": amount,
            "unit": "cost",
            "currency": event.currency,
            "usage_id": event.id,
            "provider": event.provider,
            "model": event.model,
            "request_id": event.request_id,
            "scope": scope,
            **({} if calls.budget is None else {"budget_name": calls.budget.name}),
        },
        rules=[rule],
        budget_id=None if calls.budget is None else calls.budget.budget_id,
        entity_id=entity,
        ended_at=at,
    )
