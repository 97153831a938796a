"""``create_budget``, ``update_budget``, ``delete_budget`` and ``list_budgets``: under the catalogue lock, so that the
next decision on every agent knows the change (R2).
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.enforcer.alerts import alerts
from handlers.enforcer.backfill import backfill
from handlers.enforcer.calendar import bounds
from handlers.enforcer.drafts import Whole, changed, dated, deleted, drafted, with_rates
from handlers.enforcer.entities import entity_key, entity_keys
from handlers.enforcer.ledger import sums_of
from handlers.enforcer.shown import budget_replies
from handlers.enforcer.transaction import catalogue_change
from handlers.enforcer.written import Change, announce, audited, check_scope, write
from schemas.budget import Budget, BudgetList, CreateBudget, DeleteBudget, ListBudgets, UpdateBudget
from schemas.errors import conflict, invalid, not_found
from signals import budget as signals
from signals import route
from store import budgets as budget_store
from store import windows as window_store
from store.budgets import BudgetRow
from store.pool import Connection

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TAKEN: Final = ("name", "another budget has this name")
_FIRST: Final = ("", UUID(int=0))

# A budget for every entity may have very many windows; the first of them say that there is something to look at.
TOLD_WINDOWS_MAX = 1_000


async def create_budget(ctx: Context, request: CreateBudget) -> Budget:
    """Create a budget that counts from now or, with ``backfill``, from the start of the current window."""
    entity_id = entity_key(ctx, type=request.type, entity_id=request.entity_id)
    named = msgspec.structs.replace(request, entity_id=entity_id)
    draft = drafted(named, org=ctx.org, now=ctx.now(), new_id=ctx.new_id)

    async def work(connection: Connection) -> Budget:
        await check_scope(ctx, connection, [draft.main])
        now = await budget_store.clock(connection)
        since = bounds(draft.main.period, draft.main.timezone, now)[0] if request.backfill else now
        change = Change(None, dated(draft, now=now, since=since))
        await write(connection, change, now)
        if request.backfill:
            exchange = await ctx.services.books.refresh(connection, ctx.org)
            await backfill(connection, change.after.main, now, exchange)
        told = await announce(ctx, connection, [change], now)
        if request.backfill:
            await _tell_backfilled(ctx, connection, change.after.main, now)
        await audited(ctx, connection, told, request.reason)
        return told[0].after

    return await catalogue_change(ctx, work, taken=_TAKEN)


async def _tell_backfilled(ctx: Context, connection: Connection, budget: BudgetRow, now: datetime) -> None:
    """Thresholds that were passed, and overrun that was there, before the budget existed."""
    rows = await window_store.of_budget(connection, ctx.org, budget.budget_id, now, TOLD_WINDOWS_MAX)
    budgets = {budget.budget_id: budget}
    sums = {row.window_id: sums_of(budget, row) for row in rows}
    overrun = {row.window_id: row.overrun for row in rows if row.overrun}
    await alerts(ctx.services, connection, ctx.org, budgets, rows, sums, overrun)


async def update_budget(ctx: Context, request: UpdateBudget) -> Budget:
    """Change what may change of a budget, if it is still the version that was read."""
    budget_id = budget_uuid(request.budget_id)

    async def work(connection: Connection) -> Budget:
        before = await _read(ctx, connection, budget_id, request.version)
        now = await budget_store.clock(connection)
        change = Change(before, changed(before, request, now=now, new_id=ctx.new_id))
        return await _change(ctx, connection, change, now, request.reason)

    return await catalogue_change(ctx, work, taken=_TAKEN)


async def delete_budget(ctx: Context, request: DeleteBudget) -> Budget:
    """Take a budget away for good: it decides nothing any more, its reservations settle, its history stays (R4)."""
    budget_id = budget_uuid(request.budget_id)

    async def work(connection: Connection) -> Budget:
        before = await _read(ctx, connection, budget_id, request.version)
        now = await budget_store.clock(connection)
        return await _change(ctx, connection, Change(before, deleted(before, now)), now, request.reason)

    return await catalogue_change(ctx, work)


async def list_budgets(ctx: Context, request: ListBudgets) -> BudgetList:
    """Budgets by name, with their present windows."""
    entities = None if request.entity_id is None else entity_keys(ctx, type=request.type, entity_id=request.entity_id)
    position = decode_cursor(request.cursor, tuple[str, UUID]) or _FIRST
    await ctx.services.catalogue(ctx.org)  # A new org has its default policies before they are looked at.
    async with ctx.database.transaction() as connection:
        rows = await budget_store.listing(
            connection,
            ctx.org,
            type_=request.type,
            entity_ids=entities,
            active=request.active,
            deleted=request.deleted,
            after=(position[0], str(position[1])),
            limit=request.limit + 1,
        )
        found = await budget_replies(
            connection, await whole(connection, ctx.org, rows), await budget_store.clock(connection)
        )
    budgets, next_cursor = page(found, limit=request.limit, key=lambda budget: (budget.name, budget.budget_id))
    return BudgetList(budgets=budgets, next_cursor=next_cursor)


async def whole(connection: Connection, org: str, rows: Sequence[BudgetRow]) -> list[Whole]:
    """Budgets with their rates."""
    return with_rates(rows, await budget_store.rates_of(connection, org, [row.budget_id for row in rows]))


def budget_uuid(text: str) -> str:
    """A budget id in canonical form. Raises SignalError ``invalid_request``."""
    if not _UUID.fullmatch(text.lower()):
        raise invalid("is not a budget id (a UUID)", field="budget_id")
    return text.lower()


async def _read(ctx: Context, connection: Connection, budget_id: str, version: int) -> Whole:
    """The budget to change, if it is there, is a budget of its own, and is the version that was read."""
    row = await budget_store.find(connection, ctx.org, budget_id)
    if row is None or row.deleted_at is not None:
        raise not_found("there is no such budget" if row is None else "the budget was deleted", field="budget_id")
    if row.gate_id is not None:
        raise invalid(f"is the rate of budget {row.gate_id}: change that one", field="budget_id")
    await check_scope(ctx, connection, [row])
    if row.version != version:
        raise conflict(f"the budget is at version {row.version}: read it again", field="version")
    (found,) = await whole(connection, ctx.org, [row])
    return found


async def _change(ctx: Context, connection: Connection, change: Change, now: datetime, reason: str | None) -> Budget:
    await write(connection, change, now)
    told = await announce(ctx, connection, [change], now)
    await audited(ctx, connection, told, reason)
    return told[0].after


ROUTES = (
    route(signals.CREATE_BUDGET, create_budget),
    route(signals.UPDATE_BUDGET, update_budget),
    route(signals.DELETE_BUDGET, delete_budget),
    route(signals.LIST_BUDGETS, list_budgets),
)
