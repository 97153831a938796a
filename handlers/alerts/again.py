"""Telling again: a new delivery of the same alert while it is true and nobody looks after it."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from handlers.alerts.pacing import exhausted_at
from handlers.alerts.raising import deliveries_of, next_telling
from handlers.context import Services
from handlers.enforcer.catalogue import Catalogue
from store import alerts as alert_store
from store import deliveries as delivery_store
from store import windows as window_store
from store.alert_rules import AlertRuleRow
from store.alerts import AlertRow
from store.pool import Connection
from store.windows import WindowRow


async def tell_again(
    services: Services, connection: Connection, catalogue: Catalogue, rules: Sequence[AlertRuleRow], at: datetime
) -> int:
    """Deliver again what is due; end what is no longer true. Returns how many were delivered."""
    org = catalogue.org
    due = await alert_store.due_again(connection, org, at, services.limits.alert_renotify_max)
    if not due:
        return 0
    ids = sorted({row.window_id for row in due if row.window_id is not None})
    windows = await window_store.by_id(connection, org, ids) if ids else {}
    by_id = {rule.rule_id: rule for rule in rules}
    told = 0
    for row in due:
        wanting = [by_id[rule_id] for rule_id in row.rule_ids if rule_id in by_id]
        if not still_true(row, catalogue, windows, at):
            await alert_store.end(connection, org, [row.alert_id], at)
        else:
            again = next_telling(wanting, at)
            # A rule that was deleted, or asks for it no longer, tells nobody.
            if again is not None:
                asking = [rule for rule in wanting if rule.renotify_s is not None]
                await delivery_store.enqueue(connection, org, deliveries_of(services, row, asking, at))
                told += 1
            notified_at = at if again is not None else row.notified_at
            await alert_store.told_again(connection, org, row.alert_id, at=notified_at, renotify_at=again)
    return told


def still_true(row: AlertRow, catalogue: Catalogue, windows: Mapping[int, WindowRow], at: datetime) -> bool:
    """Whether what an alert says still holds: its window is not over, and still where it was said to be.

    Alerts without a window end when their rule's sum has fallen; whoever evaluates the rule ends them.
    """
    if row.window_id is None:
        return row.ended_at is None
    window = windows.get(row.window_id)
    budget = None if row.budget_id is None else catalogue.by_id.get(row.budget_id)
    if window is None or budget is None or not budget.active or (window.ends_at is not None and window.ends_at <= at):
        return False
    limit = catalogue.limit(budget, window.entity_id, window.carry, at)
    if row.kind == "threshold":
        return window.spent * 100 >= row.details["threshold"] * limit
    if row.kind == "pacing":
        return exhausted_at(budget, window, limit=limit, profile=None, at=at) is not None
    if row.kind == "overrun":
        return window.overrun > 0
    return window.spent + window.reserved >= limit if row.details.get("cause") == "spent" else True
