"""Sums that must be equal, recomputed from the rows they stand for, in one snapshot."""

from dataclasses import dataclass

from store.pool import Database
from store.sql import queries

_SQL = queries("reconcile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """Costs in nanos. The four sums of windows cover cost budgets; the two counts cover the windows of every unit."""

    events: int
    event_cost: int
    event_tokens: int
    rollup_cost: int
    rollup_tokens: int
    windows_checked: int
    windows_differing: int
    window_spent: int
    window_charged: int
    window_reserved: int
    live_held: int


async def recompute(database: Database, org: str) -> Recomputed:
    """Read everything of an org under one REPEATABLE READ snapshot; concurrent work shows entirely or not at all."""
    async with (
        database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        events = await connection.fetchrow(_SQL["events"], org)
        rollups = await connection.fetchrow(_SQL["rollups"], org)
        windows = await connection.fetchrow(_SQL["windows"], org)
    assert events is not None and rollups is not None and windows is not None
    return Recomputed(
        events=events["events"],
        event_cost=int(events["cost"]),
        event_tokens=int(events["tokens"]),
        rollup_cost=int(rollups["cost"]),
        rollup_tokens=int(rollups["tokens"]),
        windows_checked=windows["checked"],
        windows_differing=windows["differing"],
        window_spent=int(windows["spent"]),
        window_charged=int(windows["charged"]),
        window_reserved=int(windows["reserved"]),
        live_held=int(windows["held"]),
    )
