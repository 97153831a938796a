"""``create_budget``, ``update_budget`` and ``list_budgets``: under the catalogue lock, so that the next decision on
every agent knows the change (R2).
"""

import re
from dataclasses import replace
from datetime import datetime
from typing import Final

import msgspec

from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.enforcer.alerts import alerts
from handlers.enforcer.backfill import backfill
from handlers.enforcer.calendar import bounds, zone
from handlers.enforcer.catalogue import EVERY
from handlers.enforcer.ledger import effective_limit, sums_of
from handlers.enforcer.shown import budget_replies
from handlers.enforcer.transaction import catalogue_change
from handlers.events import cloud_event
from schemas.budget import Budget, BudgetChanged, BudgetList, CreateBudget, ListBudgets, UpdateBudget
from schemas.errors import conflict, invalid, not_found
from schemas.money import COST_NANOS_MAX, COUNT_MAX, AmountError, parse_cost, parse_count
from signals import budget as signals
from signals import route
from store import budgets as budget_store
from store import outbox as outbox_store
from store import windows as window_store
from store.budgets import BudgetRow
from store.pool import Connection

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# A budget for every entity may have very many windows; the first of them say that there is something to look at.
TOLD_WINDOWS_MAX = 1_000


async def create_budget(ctx: Context, request: CreateBudget) -> Budget:
    """Create a budget that counts from now or, with ``backfill``, from the start of the current window."""
    draft = _drafted(ctx, request)

    async def work(connection: Connection) -> Budget:
        now = await budget_store.clock(connection)
        since = bounds(draft.period, draft.timezone, now)[0] if request.backfill else now
        row = replace(draft, counting_since=since, created_at=now, updated_at=now)
        await budget_store.insert(connection, row)
        if request.backfill:
            await backfill(connection, row, now)
        (after,) = await budget_replies(connection, [row], now)
        await _tell(ctx, connection, BudgetChanged(action="created", actor=ctx.caller.actor, before=None, after=after))
        if request.backfill:
            await _tell_backfilled(ctx, connection, row, now)
        return after

    return await catalogue_change(ctx, work, taken=("name", "another budget has this name"))


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
        row = await budget_store.find(connection, ctx.org, budget_id)
        if row is None:
            raise not_found("there is no such budget", field="budget_id")
        if row.version != request.version:
            raise conflict(f"the budget is at version {row.version}: read it again", field="version")
        now = await budget_store.clock(connection)
        changed = _changed(row, request, now)
        (before,) = await budget_replies(connection, [row], now)
        await budget_store.update(connection, changed)
        if changed.blocking != row.blocking:
            limit = effective_limit(changed, 0) if changed.blocking else None
            await window_store.set_blocking(connection, ctx.org, budget_id, limit=limit)
        (after,) = await budget_replies(connection, [changed], now)
        told = BudgetChanged(action="updated", actor=ctx.caller.actor, before=before, after=after)
        await _tell(ctx, connection, told)
        return after

    return await catalogue_change(ctx, work, taken=("name", "another budget has this name"))


async def list_budgets(ctx: Context, request: ListBudgets) -> BudgetList:
    """Budgets by name, with their present windows."""
    position = decode_cursor(request.cursor, tuple[str])
    async with ctx.database.transaction() as connection:
        rows = await budget_store.listing(
            connection,
            ctx.org,
            type_=request.type,
            entity_id=request.entity_id,
            active=request.active,
            after_name=position[0] if position is not None else "",
            limit=request.limit + 1,
        )
        found = await budget_replies(connection, rows, await budget_store.clock(connection))
    budgets, next_cursor = page(found, limit=request.limit, key=lambda budget: (budget.name,))
    return BudgetList(budgets=budgets, next_cursor=next_cursor)


def budget_uuid(text: str) -> str:
    """A budget id in canonical form. Raises SignalError ``invalid_request``."""
    if not _UUID.fullmatch(text.lower()):
        raise invalid("is not a budget id (a UUID)", field="budget_id")
    return text.lower()


async def _tell(ctx: Context, connection: Connection, payload: BudgetChanged) -> None:
    event = cloud_event(ctx.services, ctx.org, signals.CHANGED, payload, subject=payload.after.budget_id)
    await outbox_store.add(connection, ctx.org, [event])


def _drafted(ctx: Context, request: CreateBudget) -> BudgetRow:
    """The row a valid request asks for; PostgreSQL's clock is still to come."""
    zone(request.timezone)
    if request.type == "global" and request.entity_id != EVERY:
        raise invalid("a global budget has no entity: leave it out or give '*'", field="entity_id")
    if request.unit == "cost" and request.currency != "USD":
        raise invalid("only USD is kept so far", field="currency")
    now = ctx.now()
    row = BudgetRow(
        org_id=ctx.org,
        budget_id=ctx.new_id(),
        version=1,
        name=request.name,
        type=request.type,
        entity_id=request.entity_id,
        filters={name: value for name, value in msgspec.structs.asdict(request.filters).items() if value is not None},
        unit=request.unit,
        currency=request.currency if request.unit == "cost" else None,
        period=request.period,
        timezone=request.timezone,
        base_limit=_limit(request.unit, request.limit),
        overage_percent=request.overage_percent,
        enforcement=request.enforcement,
        alert_thresholds=tuple(sorted(set(request.alert_thresholds))),
        rollover_policy=request.rollover.policy,
        rollover_percent=request.rollover.percent,
        override_policy=msgspec.structs.asdict(request.override_policy),
        on_expiry=request.on_expiry,
        preferred_models=tuple(request.preferred_models),
        fallback_model=request.fallback_model,
        active=request.active,
        counting_since=now,
        created_at=now,
        updated_at=now,
    )
    _check(row)
    return row


def _changed(row: BudgetRow, request: UpdateBudget, now: datetime) -> BudgetRow:
    """The row after an update; what the request leaves out stays."""
    changed = replace(row, version=row.version + 1, updated_at=now)
    for name in ("name", "overage_percent", "enforcement", "on_expiry", "fallback_model", "active"):
        if (value := getattr(request, name)) is not None:
            changed = replace(changed, **{name: value})
    if request.limit is not None:
        changed = replace(changed, base_limit=_limit(row.unit, request.limit))
    if request.alert_thresholds is not None:
        changed = replace(changed, alert_thresholds=tuple(sorted(set(request.alert_thresholds))))
    if request.preferred_models is not None:
        changed = replace(changed, preferred_models=tuple(request.preferred_models))
    if request.rollover is not None:
        policy, percent = request.rollover.policy, request.rollover.percent
        changed = replace(changed, rollover_policy=policy, rollover_percent=percent)
    if request.override_policy is not None:
        changed = replace(changed, override_policy=msgspec.structs.asdict(request.override_policy))
    _check(changed)
    return changed


def _check(row: BudgetRow) -> None:
    if row.rollover_policy != "none" and row.period == "total":
        raise invalid("a total budget has one window: nothing rolls over", field="rollover")
    if effective_limit(row, 0) > (COST_NANOS_MAX if row.unit == "cost" else COUNT_MAX):
        raise invalid("makes the limit larger than any amount this service keeps", field="overage_percent")


def _limit(unit: str, text: str) -> int:
    try:
        return parse_cost(text) if unit == "cost" else parse_count(text)
    except AmountError as error:
        raise invalid(str(error), field="limit") from None


ROUTES = (
    route(signals.CREATE_BUDGET, create_budget),
    route(signals.UPDATE_BUDGET, update_budget),
    route(signals.LIST_BUDGETS, list_budgets),
)
