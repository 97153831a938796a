"""What crossing a line in a window tells the world: each threshold once, the full window once, every overrun; and the
alerts that people see of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from handlers.alerts.raising import Crossing, raise_crossings
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


@dataclass(frozen=True, slots=True)
class Refusal:
    """A window in which a call did not fit: it was ``denied``, or would have been (``shadow``)."""

    budget: BudgetRow
    ref: WindowRef
    sums: Sums
    cause: Literal["denied", "shadow"]


async def tell_refusals(services: Services, connection: Connection, org: str, refusals: Sequence[Refusal]) -> bool:
    """Write the event and the alert of each window's first refusal; returns whether there was one. They are locked."""
    ids = sorted(refusal.ref.window_id for refusal in refusals)
    news = set(await window_store.mark_exceeded(connection, org, ids))
    told: list[Told] = []
    crossings: list[Crossing] = []
    for refusal in sorted(refusals, key=lambda refusal: refusal.ref.window_id):
        budget, ref = refusal.budget, refusal.ref
        if ref.window_id in news:
            shown = window_reply(budget, ref, refusal.sums)
            payload = BudgetExceeded(cause=refusal.cause, window=shown)
            told.append(cloud_event(services, org, signals.EXCEEDED, payload, subject=budget.budget_id))
            crossings.append(Crossing(budget, ref.entity_id, ref.window_id, shown, exceeded=refusal.cause))
    await raise_crossings(services, connection, org, crossings)
    await outbox_store.add(connection, org, told)
    return bool(news)


async def alerts(
    services: Services,
    connection: Connection,
    org: str,
    budgets: Mapping[str, BudgetRow],
    rows: Sequence[WindowRow],
    sums: Mapping[int, Sums],
    overrun: Mapping[int, int],
) -> None:
    """Write the events and alerts of locked windows whose sums have just changed.

    ``overrun`` is what this change booked. Where nothing is crossed PostgreSQL is not asked anything.
    """
    told: list[Told] = []
    crossings: list[Crossing] = []
    for row in rows:
        budget, window = budgets[row.budget_id], sums[row.window_id]
        reached = thresholds_reached(
            window.spent, window.limit, budget.alert_thresholds, frozenset(row.thresholds_fired)
        )
        full = not window.exceeded and window.spent >= window.limit and window.spent > 0
        over = overrun.get(row.window_id, 0)
        if not (reached or full or over):
            continue
        if reached:
            await window_store.mark_fired(connection, org, row.window_id, reached)
        news = full and bool(await window_store.mark_exceeded(connection, org, [row.window_id]))
        shown = window_reply(budget, WindowRef.of(row), window)
        told += _events(services, org, budget, shown, reached=reached, exceeded=news, over=over)
        # All that a window has is what was booked just now: its first overrun. Later ones are events, not alerts.
        first = amount_text(budget, over) if over and over == window.overrun else None
        cause = "spent" if news else None
        crossings.append(
            Crossing(budget, row.entity_id, row.window_id, shown, thresholds=reached, exceeded=cause, overrun=first)
        )
    await raise_crossings(services, connection, org, crossings)
    await outbox_store.add(connection, org, told)


def _events(
    services: Services,
    org: str,
    budget: BudgetRow,
    shown: BudgetWindow,
    *,
    reached: Sequence[int],
    exceeded: bool,
    over: int,
) -> list[Told]:
    about = budget.budget_id
    told = [
        cloud_event(services, org, signals.THRESHOLD, BudgetThreshold(threshold=t, window=shown), subject=about)
        for t in reached
    ]
    if exceeded:
        payload = BudgetExceeded(cause="spent", window=shown)
        told.append(cloud_event(services, org, signals.EXCEEDED, payload, subject=about))
    if over:
        booked = BudgetOverrun(amount=amount_text(budget, over), window=shown)
        told.append(cloud_event(services, org, signals.OVERRUN, booked, subject=about))
    return told
