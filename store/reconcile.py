"""Sums that must be equal, recomputed from the rows they stand for, in one snapshot."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from store.pool import Database
from store.sql import queries

_SQL = queries("reconcile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Sums in one currency: of events and adjustments, or of rollups. Costs in nanos."""

    currency: str
    events: int
    adjustments: int
    requests: int
    tokens: int
    cost: int
    list_cost: int

    @property
    def sums(self) -> tuple[int, int, int, int]:
        """What must be the same in both."""
        return self.requests, self.tokens, self.cost, self.list_cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """Sums by currency. The four sums of windows cover cost budgets in USD, the two counts the windows of all."""

    counted: dict[str, Counted]
    rolled: dict[str, Counted]
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
        events = await connection.fetch(_SQL["events"], org)
        rollups = await connection.fetch(_SQL["rollups"], org)
        windows = await connection.fetchrow(_SQL["windows"], org)
    assert windows is not None
    return Recomputed(
        counted=_by_currency(events),
        rolled=_by_currency(rollups),
        windows_checked=windows["checked"],
        windows_differing=windows["differing"],
        window_spent=int(windows["spent"]),
        window_charged=int(windows["charged"]),
        window_reserved=int(windows["reserved"]),
        live_held=int(windows["held"]),
    )


def _by_currency(records: Sequence[Any]) -> dict[str, Counted]:
    return {record["currency"]: Counted(**dict(record)) for record in records}
