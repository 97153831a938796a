"""``get_usage`` and ``aggregate_usage``: what was used, event by event or in sums. Reads only."""

from datetime import date, datetime, timedelta
from typing import Annotated, Any, Final

import asyncpg
import msgspec

from handlers.adjustments.standing import line_item
from handlers.context import Context
from handlers.counting.limits import utilisation_percent
from handlers.currency.told import Teller
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
    UsagePage,
    UsageRecord,
    UsageRow,
    UsageSums,
)
from signals import route
from signals import usage as signals
from store import adjustments as adjustment_store
from store import usage as usage_store
from store.adjustments import Stands
from store.sql import like_pattern
from store.usage import UsageQuery

# Dimensions that rollups do not keep.
_ONLY_IN_EVENTS: Final = frozenset({"session_id", "task_id"})
_AT = Annotated[datetime, msgspec.Meta(tz=True)]
_COPIED: Final = tuple(field.name for field in msgspec.structs.fields(UsageRecord))


async def get_usage(ctx: Context, request: GetUsage) -> UsagePage:
    """Raw events, newest first, in pages."""
    query = usage_query(ctx, request.start, request.end, request.filters)
    position = decode_cursor(request.cursor, tuple[_AT, str])
    async with ctx.database.connection() as connection:
        rows = await usage_store.page(connection, query, before=position, limit=request.limit + 1)
        stands = await adjustment_store.standing(connection, ctx.org, [row["id"] for row in rows])
    records = [_record(row, stands.get(row["id"])) for row in rows]
    events, next_cursor = page(records, limit=request.limit, key=lambda event: (event.timestamp, event.id))
    return UsagePage(events=events, next_cursor=next_cursor)


async def aggregate_usage(ctx: Context, request: AggregateUsage) -> UsageSums:
    """Sums by calendar interval and dimensions: the largest rows by cost, in order of time; totals over everything."""
    zone(request.timezone)
    query = usage_query(ctx, request.start, request.end, request.filters)
    group_by: list[str] = list(dict.fromkeys(request.group_by))
    from_rollups = _rollups_answer(request, query)
    try:
        async with ctx.database.connection() as connection:
            exchange, own = await ctx.services.reporting(connection, ctx.org)
            sums = await usage_store.sums(
                connection,
                query,
                table="usage_rollup" if from_rollups else "usage_posting",
                bucket=request.interval,
                timezone=request.timezone,
                group_by=group_by,
                rates=exchange.into(own),
                limit=request.limit + 1,
            )
    except asyncpg.InvalidParameterValueError:
        raise invalid("is not a time zone that the database knows", field="timezone") from None
    teller = Teller(exchange, own, on=_last_day(query, ctx.now()))
    largest = [_row(values, group_by, request.start, teller) for values in sums.rows[: request.limit]]
    rows = fitting(largest)
    return UsageSums(
        rows=sorted(rows, key=lambda row: row.window),
        totals=_row(sums.totals, [], request.start, teller),
        truncated=len(rows) < len(sums.rows),
        source="rollups" if from_rollups else "events",
        rates=teller.rates,
        missing_rates=teller.missing,
    )


def _last_day(query: UsageQuery, now: datetime) -> date | None:
    """The day whose rates sums are converted at: the last of the time asked about; None: the newest rates."""
    if query.end is None or query.end > now:
        return None
    return (query.end - timedelta(microseconds=1)).date()


def usage_query(ctx: Context, start: datetime | None, end: datetime | None, filters: UsageFilters) -> UsageQuery:
    """The usage that a request asks about, its user by the surrogate. Raises SignalError naming the field."""
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


def _record(row: dict[str, Any], stands: Stands | None) -> UsageRecord:
    cost = None if row["cost"] is None else format_cost(row["cost"])
    values = {name: row[name] for name in _COPIED if name in row}
    values |= {
        "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
        "cost": cost,
        "standing_cost": cost,
        "standing_currency": row["currency"],
        "line_items": [line_item(*item) for item in row["line_items"]],
        "tags": row["tags"] or {},
        "metadata": row["metadata"] or {},
        "charged_budgets": len(row["charge_windows"]),
        "context_utilisation_percent": None
        if row["context_used"] is None
        else utilisation_percent(row["context_used"], row["context_limit"]),
    }
    if stands is not None:
        values |= {
            "adjusted": True,
            "adjustments": stands.sequence,
            "void": stands.void,
            "standing_cost": "0" if stands.void else None if stands.cost is None else format_cost(stands.cost),
            "standing_currency": stands.currency,
        }
    return UsageRecord(**values)


def _row(values: dict[str, Any], group_by: list[str], start: datetime, teller: Teller) -> UsageRow:
    counted, costs = values["latency_count"], values["costs"]
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
        cost=format_cost(teller.total(costs)),
        currency=teller.currency,
        costs={} if costs.keys() <= {teller.currency} else {name: format_cost(costs[name]) for name in sorted(costs)},
        latency_ms_mean=round(values["latency_us_sum"] / counted / 1000, 3) if counted else None,
    )


ROUTES = (
    route(signals.GET_USAGE, get_usage),
    route(signals.AGGREGATE_USAGE, aggregate_usage),
)
