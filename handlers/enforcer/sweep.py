"""Expiry (R9): a dead caller's reservation frees itself, but never before everything stored in time was applied."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from handlers.context import Services
from handlers.enforcer.alerts import alerts
from handlers.enforcer.catalogue import Catalogue
from handlers.enforcer.transaction import LockedWindows, holds, ledger_transaction
from store import budgets as budget_store
from store import compliance as compliance_store
from store import reservations as reservation_store
from store.compliance import Unsettled
from store.pool import Connection
from store.reservations import ReservationRow


@dataclass(frozen=True, slots=True)
class Applied:
    """Up to when the usage stream is applied: everything (``drained``), all before ``until``, or (None) unknown.

    ``asked_at`` is the ledger's clock before the stream was asked: what was stored since may be unapplied.
    """

    drained: bool
    until: datetime | None
    asked_at: datetime | None = None


async def sweep(services: Services, applied: Applied) -> int:
    """Expire what is due in every org; returns how many."""
    async with services.database.connection() as connection:
        now = await budget_store.clock(connection)
        due = cutoff(now, applied, skew=timedelta(seconds=services.limits.expiry_skew_s))
        if due is None:
            return 0
        orgs = await reservation_store.orgs_with_expired(connection, due)
    expired = 0
    for org in orgs:
        while count := await _sweep_org(services, org, due):
            expired += count
    return expired


def cutoff(now: datetime, applied: Applied, *, skew: timedelta) -> datetime | None:
    """Reservations that expired before this are due: an event that settles them would have been applied by now.

    None where that is unknown: nothing is due then.
    """
    edge = now if applied.asked_at is None else min(now, applied.asked_at)
    if applied.drained:
        return edge - skew
    return None if applied.until is None else min(edge, applied.until) - skew


async def _sweep_org(services: Services, org: str, due: datetime) -> int:
    async def work(connection: Connection, catalogue: Catalogue) -> int:
        ids = await reservation_store.expired(connection, org, due, services.limits.expiry_batch_max)
        rows = await reservation_store.lock(connection, org, ids) if ids else {}
        # Settled, released or extended since they were listed: R6 decides on the locked row.
        live = [row for row in rows.values() if row.status == "live" and row.expires_at < due]
        if live:
            await _expire(services, connection, catalogue, live)
        return len(live)

    return await ledger_transaction(services, org, work)


async def _expire(services: Services, connection: Connection, catalogue: Catalogue, rows: list[ReservationRow]) -> None:
    """Free each hold, or presume it spent where the budget says that an unknown outcome counts (on_expiry settle)."""
    window_ids = {w for row in rows for w in row.window_ids}
    windows = await LockedWindows.lock(connection, catalogue, window_ids, services.beliefs(catalogue.org))
    settles = {w.window_id for w in windows.rows if catalogue.by_id[w.budget_id].on_expiry == "settle"}
    presumed: list[list[int]] = []
    for row in rows:
        for window_id, amount in holds(row.window_ids, row.held).items():
            windows.sums[window_id].settle(amount, amount if window_id in settles else 0)
        presumed.append([a if w in settles else 0 for w, a in holds(row.window_ids, row.held).items()])
    await windows.write(connection, catalogue.org)
    now = await budget_store.clock(connection)
    await reservation_store.expire(
        connection,
        catalogue.org,
        ids=[row.reservation_id for row in rows],
        presumed=[any(amounts) for amounts in presumed],
        held=[p if any(p) else row.held for p, row in zip(presumed, rows, strict=True)],
        closed_at=now,
    )
    await compliance_store.count_unsettled(connection, catalogue.org, now, _by_caller(rows))
    await alerts(services, connection, catalogue.org, catalogue.by_id, windows.rows, windows.sums, {})


def _by_caller(rows: list[ReservationRow]) -> list[Unsettled]:
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for row in rows:
        key = (row.caller or "anonymous", row.currency)
        count, cost = counts.get(key, (0, 0))
        counts[key] = (count + 1, cost + (row.estimated_cost or 0))
    return [Unsettled(caller, *counts[caller, currency], currency) for caller, currency in sorted(counts)]
