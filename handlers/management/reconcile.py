"""Reconciliation (P4): rollups are the sum of events and adjustments, windows the sum of what these charged and of what
live reservations hold. Every currency by itself.
"""

from typing import Final

from handlers.context import Context
from schemas.management import ReconciledCurrency, Reconciliation
from schemas.money import format_cost
from store.reconcile import Counted, recompute

_USD: Final = "USD"


async def reconcile(ctx: Context) -> Reconciliation:
    """Recompute the sums of the caller's org and compare."""
    found = await recompute(ctx.database, ctx.org)
    names = sorted(found.counted.keys() | found.rolled.keys() | {_USD})
    pairs = [(_of(found.counted, name), _of(found.rolled, name)) for name in names]
    dollars = names.index(_USD)
    return Reconciliation(
        ok=all(counted.sums == rolled.sums for counted, rolled in pairs) and not found.windows_differing,
        events=sum(counted.events for counted, _ in pairs),
        adjustments=sum(counted.adjustments for counted, _ in pairs),
        event_cost=format_cost(pairs[dollars][0].cost),
        rollup_cost=format_cost(pairs[dollars][1].cost),
        event_tokens=sum(counted.tokens for counted, _ in pairs),
        rollup_tokens=sum(rolled.tokens for _, rolled in pairs),
        window_spent=format_cost(found.window_spent),
        window_charges=format_cost(found.window_charged),
        windows_checked=found.windows_checked,
        windows_differing=found.windows_differing,
        reserved=format_cost(found.window_reserved),
        live_held=format_cost(found.live_held),
        currencies=[
            ReconciledCurrency(
                currency=counted.currency, event_cost=format_cost(counted.cost), rollup_cost=format_cost(rolled.cost)
            )
            for counted, rolled in pairs
        ],
    )


def _of(sums: dict[str, Counted], currency: str) -> Counted:
    nothing = Counted(currency=currency, events=0, adjustments=0, requests=0, tokens=0, cost=0, list_cost=0)
    return sums.get(currency, nothing)
