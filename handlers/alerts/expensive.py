"""Calls that cost more than a rule allows (``request_cost``), noticed in the transaction that applies them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from fractions import Fraction
from typing import Final

from handlers.alerts.aside import aside
from handlers.alerts.raising import News, raise_news
from handlers.alerts.rates import currency_of
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
            dearest = _dearest(rule, calls, events, catalogue.exchange.into(currency_of(rule)))
            found += [(rule, calls, entity, event) for entity, event in dearest.items()]
    if found:
        at = await budget_store.clock(connection)
        await raise_news(services, connection, catalogue.org, [_news(*each, at=at) for each in found], at)


def _dearest(
    rule: AlertRuleRow, calls: Calls, events: Sequence[PricedEvent], rates: Mapping[str, Fraction]
) -> dict[str, PricedEvent]:
    """The dearest call above the rule's limit, by entity; ``rates`` is what each currency is in that of the limit."""
    limit = parse_call_cost(rule.parameters["limit"])
    found: dict[str, tuple[Fraction, PricedEvent]] = {}
    for event in events:
        rate = rates.get(event.currency)
        if event.cost is None or rate is None or event.cost * rate <= limit:
            continue
        if (entity := calls.entity_of(event)) is None:
            continue
        if entity not in found or event.cost * rate > found[entity][0]:
            found[entity] = event.cost * rate, event
    return {entity: event for entity, (_, event) in found.items()}


def _news(rule: AlertRuleRow, calls: Calls, entity: str, event: PricedEvent, *, at: datetime) -> News:
    limit, amount = rule.parameters["limit"], format_cost(event.cost or 0)
    scope = calls.of(entity)
    title, message = rate_text(
        f"{scope_text(scope)}: {event.provider}/{event.model}",
        with_unit(amount, "cost", event.currency),
        with_unit(limit, "cost", currency_of(rule)),
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
            "limit_currency": currency_of(rule),
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
