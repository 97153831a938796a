"""Reconciliation (P4): rollups are the sum of events, windows the sum of their charges and live reservations."""

from handlers.context import Context
from schemas.management import Reconciliation
from schemas.money import format_cost
from store.reconcile import recompute


async def reconcile(ctx: Context) -> Reconciliation:
    """Recompute the sums of the caller's org and compare."""
    found = await recompute(ctx.database, ctx.org)
    same_cost = found.event_cost == found.rollup_cost
    same_tokens = found.event_tokens == found.rollup_tokens
    return Reconciliation(
        ok=same_cost and same_tokens and not found.windows_differing,
        events=found.events,
        event_cost=format_cost(found.event_cost),
        rollup_cost=format_cost(found.rollup_cost),
        event_tokens=found.event_tokens,
        rollup_tokens=found.rollup_tokens,
        window_spent=format_cost(found.window_spent),
        window_charges=format_cost(found.window_charged),
        windows_checked=found.windows_checked,
        windows_differing=found.windows_differing,
        reserved=format_cost(found.window_reserved),
        live_held=format_cost(found.live_held),
    )
