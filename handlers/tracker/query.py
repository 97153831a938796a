"""``get_usage`` and ``aggregate_usage``: what was used, event by event or in sums. Reads only."""

from datetime import datetime
from typing import Annotated, Any, Final

import asyncpg
import msgspec

from handlers.context import Context
from handlers.cursor import decode_cursor, fitting, page
from handlers.enforcer.answers import wire_time
from handlers.enforcer.calendar import zone
from handlers.enforcer.catalogue import EVERY
from handlers.moment import in_utc
from handlers.tracker.rollup import bucket_of
from schemas.codec import prefixed
from schemas.errors import SignalError, invalid
from schemas.money import format_cost
from schemas.usage import (
    AggregateUsage,
    GetUsage,
    UsageFilters,
    UsageLineItem,
    UsagePage,
    UsageRecord,
    UsageRow,
    UsageSums,
)
from signals import route
from signals import usage as signals
from store import usage as usage_store
from store.sql import like_pattern
from store.usage import UsageQuery

# Dimensions that rollups do not keep.
_ONLY_IN_EVENTS: Final = frozenset({"session_id", "task_id"})
_AT = Annotated[datetime, msgspec.Meta(tz=True)]
_COPIED: Final = tuple(field.name for field in msgspec.structs.fields(UsageRecord))


async def get_usage(ctx: Context, request: GetUsage) -> UsagePage:
    """Raw events, newest first, in pages."""
    query = _query(ctx, request.start, request.end, request.filters)
    position = decode_cursor(request.cursor, tuple[_AT, str])
    async with ctx.database.connection() as connection:
        rows = await usage_store.page(connection, query, before=position, limit=request.limit + 1)
    records = [_record(row) for row in rows]
    events, next_cursor = page(records, limit=request.limit, key=lambda event: (event.timestamp, event.id))
    return UsagePage(events=events, next_cursor=next_cursor)


async def aggregate_usage(ctx: Context, request: AggregateUsage) -> UsageSums:
    """Sums by calendar interval and dimensions: the largest rows by cost, in order of time; totals over everything."""
    zone(request.timezone)
    query = _query(ctx, request.start, request.end, request.filters)
    group_by: list[str] = list(dict.fromkeys(request.group_by))
    from_rollups = _rollups_answer(request, query)
    try:
        async with ctx.database.connection() as connection:
            sums = await usage_store.sums(
                connection,
                query,
                table="usage_rollup" if from_rollups else "usage_event",
                bucket=request.interval,
                timezone=request.timezone,
                group_by=group_by,
                limit=request.limit + 1,
            )
    except asyncpg.InvalidParameterValueError:
        raise invalid("is not a time zone that the database knows", field="timezone") from None
    largest = [_row(values, group_by, request.start) for values in sums.rows[: request.limit]]
    rows = fitting(largest)
    return UsageSums(
        rows=sorted(rows, key=lambda row: row.window),
        totals=_row(sums.totals, [], request.start),
        truncated=len(rows) < len(sums.rows),
        source="rollups" if from_rollups else "events",
    )


def _query(ctx: Context, start: datetime | None, end: datetime | None, filters: UsageFilters) -> UsageQuery:
    start, end = in_utc(start, "start"), in_utc(end, "end")
    if start is not None and end is not None and start >= end:
        raise invalid("must be after start", field="end")
    stated = {name: value for name, value in msgspec.structs.asdict(filters).items() if value is not None}
    if "user_id" in stated:
        stated["user_id"] = _user(ctx, stated["user_id"])
    given = {name: like_pattern(value) for name, value in stated.items()}
    return UsageQuery(org=ctx.org, start=start, end=end, filters=given)


def _user(ctx: Context, name: str) -> str:
    if name == EVERY:
        return name
    if EVERY in name:
        text = "user names are not stored with usage, so a pattern finds none: name the user"
        raise invalid(text, field="filters.user_id")
    try:
        return ctx.user_key(name)
    except SignalError as error:
        raise prefixed(error, "filters") from None


def _rollups_answer(request: AggregateUsage, query: UsageQuery) -> bool:
    """Whether quarter hours say exactly what is asked; otherwise the events themselves do."""
    aligned = all(at is None or at == bucket_of(at) for at in (query.start, query.end))
    return aligned and request.interval != "minute" and _ONLY_IN_EVENTS.isdisjoint(query.filters)


def _record(row: dict[str, Any]) -> UsageRecord:
    values = {name: row[name] for name in _COPIED if name in row}
    values |= {
        "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
        "cost": None if row["cost"] is None else format_cost(row["cost"]),
        "line_items": [_line_item(*item) for item in row["line_items"]],
        "tags": row["tags"] or {},
        "metadata": row["metadata"] or {},
        "charged_budgets": len(row["charge_windows"]),
    }
    return UsageRecord(**values)


def _line_item(
    kind: str,
    quantity: int,
    rate: int | None,
    cost: int | None,
    list_rate: int | None = None,
    list_cost: int | None = None,
) -> UsageLineItem:
    return UsageLineItem(
        kind=kind,
        tokens=quantity,
        rate_per_million=None if rate is None else format_cost(rate),
        cost=None if cost is None else format_cost(cost),
        list_rate_per_million=None if list_rate is None else format_cost(list_rate),
        list_cost=None if list_cost is None else format_cost(list_cost),
    )


def _row(values: dict[str, Any], group_by: list[str], start: datetime) -> UsageRow:
    counted = values["latency_count"]
    return UsageRow(
        window=wire_time(values["bucket_start"] or start),
        group={name: values[name] for name in group_by},
        requests=values["requests"],
        errors=values["errors"],
        prompt_tokens=values["prompt_tokens"],
        completion_tokens=values["completion_tokens"],
        total_tokens=values["prompt_tokens"] + values["completion_tokens"],
        cache_read_tokens=values["cache_read_tokens"],
        cache_write_tokens=values["cache_write_tokens"],
        reasoning_tokens=values["reasoning_tokens"],
        unpriced_requests=values["unpriced_requests"],
        reserved_requests=values["reserved_requests"],
        cost=format_cost(values["cost"]),
        currency="USD",
        latency_ms_mean=round(values["latency_us_sum"] / counted / 1000, 3) if counted else None,
    )


ROUTES = (
    route(signals.GET_USAGE, get_usage),
    route(signals.AGGREGATE_USAGE, aggregate_usage),
)
