"""Backfill of a new budget (R4): its windows begin with what was spent in the current period before it existed.

Runs under the exclusive catalogue lock: every event is either applied, and summed here, or will be charged normally.
"""

from datetime import datetime

from handlers.currency.exchange import Exchange
from handlers.enforcer.calendar import Bounds, bounds
from handlers.enforcer.ledger import SUM_MAX, effective_limit
from handlers.enforcer.windows import carry_into
from schemas.errors import conflict, invalid
from store import windows as window_store
from store.budgets import BudgetRow
from store.pool import Connection
from store.windows import NewWindow


async def backfill(connection: Connection, budget: BudgetRow, at: datetime, exchange: Exchange) -> None:
    """Create the windows of ``at`` that have events, and of minutes ahead, where callers' clocks run fast.

    They freeze the rates of ``exchange``. Raises SignalError ``conflict`` naming the rate that is missing.
    """
    start, end = bounds(budget.period, budget.timezone, at)
    spent: dict[datetime, dict[str, int]] = {}
    rates = exchange.into(budget.currency or "", revision=exchange.revision)
    for found in await window_store.charged(connection, budget, starts_at=start, ends_at=end, rates=rates):
        if found.lacking:
            pairs = ", ".join(f"{currency}/{budget.currency}" for currency in found.lacking)
            raise conflict(f"there is no exchange rate {pairs} to count earlier usage with", field="backfill")
        later = found.later_at
        of_window = start if later is None else bounds(budget.period, budget.timezone, later)[0]
        entities = spent.setdefault(of_window, {})
        entities[found.entity_id] = entities.get(found.entity_id, 0) + found.amount
    for window_start, entities in sorted(spent.items()):
        span = bounds(budget.period, budget.timezone, window_start)
        windows: list[NewWindow] = []
        for entity_id, amount in sorted(entities.items()):
            if amount > SUM_MAX:
                raise invalid(f"earlier usage is more than a budget in {budget.currency} counts", field="backfill")
            carry = 0 if window_start == start else await carry_into(connection, budget, entity_id, window_start)
            windows.append(_window(budget, entity_id, span, amount, carry, exchange.revision))
        await window_store.create(connection, budget.org_id, windows)


def _window(budget: BudgetRow, entity_id: str, span: Bounds, amount: int, carry: int, revision: int) -> NewWindow:
    limit = effective_limit(budget, carry)
    high_limit = limit if budget.blocking else None
    return NewWindow(
        budget.budget_id,
        entity_id,
        *span,
        carry,
        high_limit,
        backfilled=amount,
        overrun=max(0, amount - limit),
        fx_revision=revision,
    )
