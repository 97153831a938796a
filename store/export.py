"""Postings of usage (events and what adjustments posted), read in order for exports, a few rows at a time."""

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from store.pool import Connection
from store.sql import queries

_SQL = queries("export")
# Rows fetched at once from the server-side cursor.
PREFETCH: Final = 200
DIMENSIONS: Final = ("user_id", "team_id", "project_id", "feature", "agent_id", "environment", "cost_center")
_GROUPED: Final = (
    *("charged_from", "billed_from", "late", "adjustment_id", "sign", "provider", "model", "service_tier", "region"),
    *("batch", "currency", "kind", "rate", "list_rate", "price_source", "price_version"),
)
# A correction made in a later calendar month than the usage it corrects.
_LATE: Final = (
    "(adjustment_id IS NOT NULL AND date_trunc('month', posted_at, 'UTC') > date_trunc('month', \"timestamp\", 'UTC'))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportQuery:
    """Which postings: half-open in time, recorded by ``as_of``; ``filters`` maps columns to LIKE patterns.

    ``billing``: the range is of billing months, so that late corrections count at the time they were posted.
    """

    org: str
    start: datetime
    end: datetime
    as_of: datetime
    filters: dict[str, str]
    billing: bool = False

    def where(self) -> tuple[str, list[Any]]:
        """A condition on usage_posting and its arguments."""
        args: list[Any] = [self.org, self.start, self.end, self.as_of]
        parts = ["org_id = $1", "posted_at <= $4"]
        usual = '"timestamp" >= $2 AND "timestamp" < $3'
        if self.billing:
            parts.append(f"((NOT {_LATE} AND {usual}) OR ({_LATE} AND posted_at >= $2 AND posted_at < $3))")
        else:
            parts.append(usual)
        return " AND ".join([*parts, *_matching(self.filters, args)]), args


def _matching(filters: dict[str, str], args: list[Any]) -> list[str]:
    """Column names come from the contract's own field names, never from a payload."""
    parts: list[str] = []
    for column, pattern in sorted(filters.items()):
        args.append(pattern)
        parts.append(f"{column} LIKE ${len(args)}")
    return parts


async def next_time(connection: Connection, query: ExportQuery, since: datetime | None) -> datetime | None:
    """The time of the first posting at or after ``since``; None: there is none."""
    where, args = query.where()
    if since is not None:
        args.append(since)
        where += f' AND "timestamp" >= ${len(args)}'
    return await connection.fetchval(_SQL["next_posting"].format(where=where), *args)


async def postings(
    connection: Connection, query: ExportQuery, *, after: tuple[datetime, str, str, int] | None, limit: int
) -> AsyncGenerator[dict[str, Any]]:
    """Postings in order of (timestamp, usage id, adjustment id, sign), after such a key. Needs a transaction."""
    where, args = query.where()
    if after is not None:
        args += list(after)
        last = len(args)
        keys = ", ".join(f"${n}" for n in range(last - 3, last + 1))
        where += f' AND "timestamp" >= ${last - 3}'
        where += f""" AND ("timestamp", usage_id, coalesce(adjustment_id, ''), sign) > ({keys})"""
    args.append(limit)
    sql = _SQL["postings"].format(where=where) + f" LIMIT ${len(args)}"
    async for record in connection.cursor(sql, *args, prefetch=PREFETCH):
        yield _decoded(dict(record), "tags", "line_items")


async def charges(
    connection: Connection,
    query: ExportQuery,
    *,
    bucket: str,
    dimensions: Sequence[str],
    tags: bool,
    window: tuple[datetime, datetime],
    after: tuple[datetime, str],
    limit: int,
) -> AsyncGenerator[dict[str, Any]]:
    """Line items of one window of time, summed by hour or day and dimensions, in order of (time, row key), after one.

    ``rate`` and ``list_rate`` are nanos per million units, ``nanos`` the cost. Needs a transaction.
    """
    where, args = query.where()
    args += [*window, *after, limit]
    n = len(args)
    where += f' AND "timestamp" >= ${n - 4} AND "timestamp" < ${n - 3}'
    chosen = [name if name in dimensions else f"NULL::text AS {name}" for name in DIMENSIONS]
    chosen.append("tags" if tags else "NULL::jsonb AS tags")
    kept = [name for name in DIMENSIONS if name in dimensions] + (["tags"] if tags else [])
    sql = _SQL["charges"].format(
        where=where,
        bucket=bucket,
        dimensions=", ".join(chosen),
        groups=", ".join([*_GROUPED, *kept]),
        names=", ".join([*DIMENSIONS, "tags"]),
        after=f"${n - 2}::timestamptz, ${n - 1}::text",
    )
    async for record in connection.cursor(sql + f" LIMIT ${n}", *args, prefetch=PREFETCH):
        yield _decoded(dict(record), "tags")


async def unpriced(connection: Connection, query: ExportQuery, *, from_rollups: bool) -> list[dict[str, Any]]:
    """Requests and tokens without a cost by provider and model, the largest first."""
    if not from_rollups:
        where, args = query.where()
        records = await connection.fetch(_SQL["unpriced_postings"].format(where=where), *args)
        return [dict(record) for record in records]
    args = [query.org, query.start, query.end]
    parts = ["org_id = $1", "bucket >= $2", "bucket < $3", *_matching(query.filters, args)]
    records = await connection.fetch(_SQL["unpriced_rollups"].format(where=" AND ".join(parts)), *args)
    return [dict(record) for record in records]


def _decoded(values: dict[str, Any], *columns: str) -> dict[str, Any]:
    for name in columns:
        if values[name] is not None:
            values[name] = json.loads(values[name])
    return values
