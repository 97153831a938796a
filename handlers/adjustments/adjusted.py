"""What callers are told of adjustments: the outcome of each, and ``list_adjustments``. Reads only."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec

from handlers.adjustments.standing import shown
from handlers.context import Context
from handlers.cursor import decode_cursor, page
from handlers.enforcer.answers import amount_text
from handlers.enforcer.windows import WindowRef
from handlers.moment import in_utc
from schemas.adjustment import (
    AdjustedUsage,
    AdjustedWindow,
    Adjustment,
    AdjustmentList,
    AdjustmentRecord,
    ListAdjustments,
)
from schemas.errors import SignalError, invalid
from schemas.money import format_cost
from schemas.usage import EventError
from signals import adjustment as signals
from signals import route
from store import adjustments as adjustment_store
from store import budgets as budget_store
from store import windows as window_store
from store.adjustments import AdjustmentRow
from store.budgets import BudgetRow
from store.pool import Connection

_AT = Annotated[datetime, msgspec.Meta(tz=True)]
Refs = Mapping[int, WindowRef]
Budgets = Mapping[str, BudgetRow]


def adjusted_usage(
    row: AdjustmentRow, refs: Refs, budgets: Budgets, *, warnings: Sequence[str] = (), duplicate: bool = False
) -> AdjustedUsage:
    """The outcome of an adjustment that was made."""
    before: dict[str, Any] = json.loads(row.before)
    after: dict[str, Any] = json.loads(row.after)
    return AdjustedUsage(
        usage_id=row.usage_id,
        accepted=True,
        kind=row.kind,
        adjustment_id=row.adjustment_id,
        sequence=row.sequence,
        duplicate=duplicate,
        currency=after["currency"],
        cost_before=_cost(before),
        cost_after=_cost(after),
        total_tokens_before=_tokens(before),
        total_tokens_after=_tokens(after),
        budgets=_windows(row, refs, budgets),
        windows_gone=row.windows_gone,
        warnings=list(warnings),
    )


def duplicate_of(row: AdjustmentRow, refs: Refs, budgets: Budgets) -> AdjustedUsage:
    """The same answer again, without the warnings of its moment."""
    return adjusted_usage(row, refs, budgets, duplicate=True)


def refused(asked: Adjustment, error: SignalError) -> AdjustedUsage:
    """The outcome of one of several that was refused; nothing was changed by it."""
    told = EventError(code=error.code, message=error.message, field=error.field)
    return AdjustedUsage(usage_id=asked.usage_id, accepted=False, kind=asked.kind, error=told)


def _cost(state: Mapping[str, Any]) -> str | None:
    if state["void"]:
        return "0"
    return None if state["cost"] is None else format_cost(state["cost"])


def _tokens(state: Mapping[str, Any]) -> int:
    return 0 if state["void"] else state["prompt_tokens"] + state["completion_tokens"]


def _windows(row: AdjustmentRow, refs: Refs, budgets: Budgets) -> list[AdjustedWindow]:
    found: list[AdjustedWindow] = []
    for window_id, amount, over in zip(row.charge_windows, row.charge_amounts, row.charge_overruns, strict=True):
        ref = refs.get(window_id)
        budget = None if ref is None else budgets.get(ref.budget_id)
        if ref is None or budget is None:
            continue
        found.append(
            AdjustedWindow(
                budget_id=budget.budget_id,
                name=budget.name,
                type=budget.type,
                entity_id=ref.entity_id,
                unit=budget.unit,
                currency=budget.currency,
                window_start=ref.starts_at,
                amount=amount_text(budget, amount),
                overrun=amount_text(budget, over),
            )
        )
    return found


async def list_adjustments(ctx: Context, request: ListAdjustments) -> AdjustmentList:
    """Adjustments by when they were made, newest first, in pages."""
    start, end = in_utc(request.start, "start"), in_utc(request.end, "end")
    if start is not None and end is not None and start >= end:
        raise invalid("must be after start", field="end")
    position = decode_cursor(request.cursor, tuple[_AT, str])
    async with ctx.database.connection() as connection:
        rows = await adjustment_store.page(
            connection,
            ctx.org,
            usage_id=request.usage_id,
            kind=request.kind,
            start=start,
            end=end,
            before=position,
            limit=request.limit + 1,
        )
        refs, budgets = await _named(connection, ctx.org, rows)
    records = [_record(row, refs, budgets) for row in rows]
    taken, next_cursor = page(records, limit=request.limit, key=lambda made: (made.made_at, made.adjustment_id))
    return AdjustmentList(adjustments=taken, next_cursor=next_cursor)


async def _named(connection: Connection, org: str, rows: Sequence[AdjustmentRow]) -> tuple[Refs, Budgets]:
    """The windows that adjustments changed, as far as they are still kept, and their budgets."""
    wanted = sorted({window_id for row in rows for window_id in row.charge_windows})
    windows = await window_store.by_id(connection, org, wanted) if wanted else {}
    budgets = await budget_store.some(connection, org, sorted({row.budget_id for row in windows.values()}))
    refs = {window_id: WindowRef.of(row) for window_id, row in windows.items()}
    return refs, {budget.budget_id: budget for budget in budgets}


def _record(row: AdjustmentRow, refs: Refs, budgets: Budgets) -> AdjustmentRecord:
    return AdjustmentRecord(
        adjustment_id=row.adjustment_id,
        usage_id=row.usage_id,
        sequence=row.sequence,
        kind=row.kind,  # pyright: ignore[reportArgumentType]
        reason=row.reason,
        made_by=row.made_by,
        made_at=row.made_at,
        before=shown(row.before),
        after=shown(row.after),
        budgets=_windows(row, refs, budgets),
        windows_gone=row.windows_gone,
    )


ROUTES = (route(signals.LIST_ADJUSTMENTS, list_adjustments),)
