"""What crossing a line in a window tells the world: each threshold once, the full window once, every overrun."""

from collections.abc import Mapping, Sequence

from handlers.context import Services
from handlers.enforcer.answers import amount_text, window_reply
from handlers.enforcer.ledger import Sums, thresholds_reached
from handlers.enforcer.windows import WindowRef
from handlers.events import cloud_event
from schemas.budget import BudgetExceeded, BudgetOverrun, BudgetThreshold, BudgetWindow
from signals import budget as signals
from store import outbox as outbox_store
from store import windows as window_store
from store.budgets import BudgetRow
from store.pool import Connection
from store.windows import WindowRow

Told = tuple[str, bytes]


async def alerts(
    services: Services,
    connection: Connection,
    org: str,
    budgets: Mapping[str, BudgetRow],
    rows: Sequence[WindowRow],
    sums: Mapping[int, Sums],
    overrun: Mapping[int, int],
) -> None:
    """Write the events of locked windows whose sums have just changed; ``overrun`` is what this change booked."""
    told: list[Told] = []
    for row in rows:
        budget, window = budgets[row.budget_id], sums[row.window_id]
        told += await _thresholds(services, connection, org, budget, row, window)
        told += await _exceeded(services, connection, org, budget, row, window)
        if over := overrun.get(row.window_id):
            payload = BudgetOverrun(amount=amount_text(budget, over), window=_window(budget, row, window))
            told.append(cloud_event(services, org, signals.OVERRUN, payload, subject=budget.budget_id))
    await outbox_store.add(connection, org, told)


async def _thresholds(
    services: Services, connection: Connection, org: str, budget: BudgetRow, row: WindowRow, window: Sums
) -> list[Told]:
    fired = frozenset(row.thresholds_fired)
    reached = thresholds_reached(window.spent, window.limit, budget.alert_thresholds, fired)
    if not reached:
        return []
    await window_store.mark_fired(connection, org, row.window_id, reached)
    shown = _window(budget, row, window)
    return [
        cloud_event(
            services, org, signals.THRESHOLD, BudgetThreshold(threshold=t, window=shown), subject=budget.budget_id
        )
        for t in reached
    ]


async def _exceeded(
    services: Services, connection: Connection, org: str, budget: BudgetRow, row: WindowRow, window: Sums
) -> list[Told]:
    if window.exceeded or window.spent < window.limit or not window.spent:
        return []
    if not await window_store.mark_exceeded(connection, org, [row.window_id]):
        return []
    payload = BudgetExceeded(cause="spent", window=_window(budget, row, window))
    return [cloud_event(services, org, signals.EXCEEDED, payload, subject=budget.budget_id)]


def _window(budget: BudgetRow, row: WindowRow, window: Sums) -> BudgetWindow:
    return window_reply(budget, WindowRef.of(row), window)
