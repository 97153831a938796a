"""A change of budgets, step by step: rows, what is told, then the audit trail, whose head is the last lock (R1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from handlers import audit
from handlers.access.scope import may_manage
from handlers.context import Context
from handlers.enforcer.drafts import Whole, gone
from handlers.enforcer.ledger import effective_limit
from handlers.enforcer.shown import budget_replies
from handlers.events import cloud_event
from schemas.budget import Budget, BudgetChanged
from schemas.errors import SignalError
from signals import budget as signals
from store import budgets as budget_store
from store import catalogue as catalogue_store
from store import outbox as outbox_store
from store import windows as window_store
from store.budgets import BudgetRow
from store.pool import Connection


@dataclass(frozen=True, slots=True)
class Change:
    """One budget before and after; ``before`` None: it is new, ``after`` with ``deleted_at``: it is gone."""

    before: Whole | None
    after: Whole


async def check_scope(ctx: Context, connection: Connection, rows: Iterable[BudgetRow]) -> None:
    """Refuse, as ``forbidden``, a manager whose teams these budgets do not belong to."""
    if "admin" in ctx.caller.roles:
        return
    members = await catalogue_store.load_members(connection, ctx.org)
    for row in rows:
        if not may_manage(ctx.caller, type=row.type, entity_id=row.entity_id, members=members):
            scope = "the whole org" if row.type == "global" else f"{row.type} '{row.entity_id}'"
            raise SignalError("forbidden", f"budget '{row.name}' is of {scope}: a manager changes those of own teams")


async def write(connection: Connection, change: Change, now: datetime) -> None:
    """Store both rows of a change. A rate that is no longer wanted is deleted before another takes its name."""
    before, after = change.before, change.after
    await _row(connection, None if before is None else before.main, after.main)
    old = None if before is None else before.rate
    if old is not None and (after.rate is None or after.rate.budget_id != old.budget_id):
        await budget_store.update(connection, gone(old, now))
        old = None
    if after.rate is not None:
        await _row(connection, old, after.rate)


async def announce(
    ctx: Context, connection: Connection, changes: Sequence[Change], now: datetime
) -> list[BudgetChanged]:
    """Write an event for each change; returns what they say, with the present windows."""
    befores = [change.before for change in changes if change.before is not None]
    replies = await budget_replies(connection, [*befores, *[change.after for change in changes]], now)
    shown = iter(replies)
    before = [None if change.before is None else next(shown) for change in changes]
    told = [_told(ctx, b, after) for b, after in zip(before, shown, strict=True)]
    events = [cloud_event(ctx.services, ctx.org, signals.CHANGED, t, subject=t.after.budget_id) for t in told]
    await outbox_store.add(connection, ctx.org, events)
    return told


async def audited(ctx: Context, connection: Connection, told: Iterable[BudgetChanged], reason: str | None) -> None:
    """Append each change to the audit trail. Nothing may lock anything afterwards."""
    for change in told:
        await audit.record(
            connection,
            ctx.caller,
            action=change.action,
            entity="budget",
            entity_id=change.after.budget_id,
            before=change.before,
            after=change.after,
            reason=reason,
        )


async def _row(connection: Connection, before: BudgetRow | None, after: BudgetRow) -> None:
    if before is None:
        await budget_store.insert(connection, after)
        return
    if after == before:
        return
    await budget_store.update(connection, after)
    if after.blocking != before.blocking:
        limit = effective_limit(after, 0) if after.blocking else None
        await window_store.set_blocking(connection, after.org_id, after.budget_id, limit=limit)


def _told(ctx: Context, before: Budget | None, after: Budget) -> BudgetChanged:
    action = "created" if before is None else "updated" if after.deleted_at is None else "deleted"
    return BudgetChanged(action=action, actor=ctx.caller.actor, before=before, after=after)
