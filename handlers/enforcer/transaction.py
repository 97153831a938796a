"""A transaction on the ledger: under the org's catalogue lock, with a current catalogue, run again where it must be."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import TypeVar

import asyncpg

from handlers.context import Context, Services
from handlers.enforcer.beliefs import Beliefs
from handlers.enforcer.calendar import EPOCH
from handlers.enforcer.catalogue import Catalogue, Match
from handlers.enforcer.ledger import Sums, sums_of
from handlers.enforcer.windows import StaleCatalogue, open_missing
from schemas.errors import conflict, unavailable
from store import budgets as budget_store
from store import windows as window_store
from store.pool import RETRYABLE, UNAVAILABLE, Connection
from store.windows import WindowRow

T = TypeVar("T")
Work = Callable[[Connection, Catalogue], Awaitable[T]]


class MissingWindows(Exception):
    """Windows that have to be created, in a transaction of their own, before this one can run (R1)."""

    def __init__(self, wanted: list[tuple[Match, datetime]]) -> None:
        super().__init__()
        self.wanted = wanted


async def ledger_transaction(services: Services, org: str, work: Work[T]) -> T:
    """Run ``work`` in one committed transaction on the present catalogue. Deadlocks and missing windows start it again.

    Raises SignalError ``unavailable`` after ``transaction_attempts_max`` attempts; nothing has happened then.
    """
    for _ in range(services.limits.transaction_attempts_max):
        catalogue = await services.catalogue(org)
        try:
            async with services.database.transaction() as connection:
                if await budget_store.lock_shared(connection, org) != catalogue.version:
                    # Under the lock that is held already: however often budgets change, they wait for this.
                    catalogue = await services.catalogues.reload(connection, org)
                return await work(connection, catalogue)
        except MissingWindows as missing:
            await _create(services, catalogue, missing.wanted)
        except StaleCatalogue:
            await services.reload_catalogue(org)  # Its windows froze newer rates than this agent has read.
        except RETRYABLE:
            continue
    raise unavailable("the ledger is too busy; nothing has changed, try again")


async def catalogue_change(
    ctx: Context, work: Callable[[Connection], Awaitable[T]], *, taken: tuple[str, str] | None = None
) -> T:
    """Run ``work`` and mark the catalogue as changed, in one transaction alone with the org's budgets (R2).

    For every change of what decisions are made from: budgets, overrides, brakes, the directory, settings. Once it is
    committed the next decision on every agent knows it. ``taken`` is the field and text of the ``conflict`` where a
    unique name is in use. Raises SignalError ``unavailable`` after ``transaction_attempts_max`` attempts.
    """
    await ctx.services.catalogue(ctx.org)  # A new org has its default policies before its first change.
    for _ in range(ctx.services.limits.transaction_attempts_max):
        try:
            async with ctx.database.transaction() as connection:
                await budget_store.lock_exclusive(connection, ctx.org)
                await budget_store.bump(connection, ctx.org)
                result = await work(connection)
        except asyncpg.UniqueViolationError:
            if taken is None:
                raise
            raise conflict(taken[1], field=taken[0]) from None
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
            continue
        await _changed(ctx)
        return result
    raise unavailable("the ledger is too busy; nothing has changed, try again")


async def _changed(ctx: Context) -> None:
    """After the commit. A reload that fails is made up for by the next decision, which compares versions (R2)."""
    ctx.services.outbox_ready.set()
    try:
        await ctx.services.reload_catalogue(ctx.org)
    except UNAVAILABLE:
        pass


async def _create(services: Services, catalogue: Catalogue, wanted: list[tuple[Match, datetime]]) -> None:
    try:
        await open_missing(services.database, catalogue, services.index(catalogue.org), wanted)
    except (StaleCatalogue, *RETRYABLE):
        pass  # Windows that are still missing are asked for again.


class LockedWindows:
    """Windows locked in key order, the last class of locks: their rows as they were, their sums as they become."""

    def __init__(self, rows: list[WindowRow], sums: dict[int, Sums], beliefs: Beliefs) -> None:
        self.rows = rows
        self.sums = sums
        self._beliefs = beliefs

    @classmethod
    async def lock(
        cls, connection: Connection, catalogue: Catalogue, window_ids: Iterable[int], beliefs: Beliefs
    ) -> "LockedWindows":
        """Lock windows; the catalogue is locked and current."""
        wanted = sorted(set(window_ids))
        rows = await window_store.lock(connection, catalogue.org, wanted) if wanted else []
        # Whatever an override does is decided by the clock after the locks; without overrides no limit asks it.
        at = await budget_store.clock(connection) if catalogue.raises and rows else EPOCH
        sums = {
            row.window_id: sums_of(
                catalogue.by_id[row.budget_id], row, catalogue.raised(row.budget_id, row.entity_id, at)
            )
            for row in rows
        }
        return cls(rows, sums, beliefs)

    async def write(self, connection: Connection, org: str) -> None:
        """Write what the sums have become, and let the next decision start from there."""
        changed = [row.window_id for row in self.rows if _differs(row, self.sums[row.window_id])]
        if not changed:
            return
        sums = [self.sums[window_id] for window_id in changed]
        await window_store.write_sums(
            connection,
            org,
            window_ids=changed,
            spent=[s.spent for s in sums],
            reserved=[s.reserved for s in sums],
            overrun=[s.overrun for s in sums],
            high_limits=[s.high_limit for s in sums],
        )
        self._beliefs.put((self.sums[row.window_id], row.carry) for row in self.rows)


def holds(window_ids: list[int], amounts: list[int]) -> Mapping[int, int]:
    """What a reservation holds, by window."""
    return dict(zip(window_ids, amounts, strict=True))


def _differs(row: WindowRow, sums: Sums) -> bool:
    before = (row.spent, row.reserved, row.overrun, row.high_limit)
    return before != (sums.spent, sums.reserved, sums.overrun, sums.high_limit)
