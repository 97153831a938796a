"""Rows of ``usage_id`` (the dedup authority, R10) and ``usage_event`` (append-only)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from fractions import Fraction
from typing import Any

import msgspec

from store.exchange import rate_columns
from store.pool import Connection
from store.sql import queries

_SQL = queries("usage")
MEASURES = (
    "requests",
    "errors",
    "prompt_tokens",
    "completion_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "unpriced_requests",
    "reserved_requests",
    "latency_count",
    "latency_us_sum",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """A half-open range of usage, by attributes; ``filters`` maps columns to LIKE patterns."""

    org: str
    start: datetime | None
    end: datetime | None
    filters: dict[str, str]


async def claim_ids(
    connection: Connection, org: str, *, ids: Sequence[str], hashes: Sequence[bytes], arrived_at: datetime
) -> set[str]:
    """Claim event ids (with their 16-byte hashes); returns those nobody had. Only these may have any effect."""
    named = msgspec.json.encode(ids).decode()
    records = await connection.fetch(_SQL["claim_ids"], org, named, b"".join(hashes), arrived_at)
    return {record["id"] for record in records}


async def hashes_of(connection: Connection, org: str, ids: Sequence[str]) -> dict[str, bytes]:
    """Payload hashes of claimed ids."""
    records = await connection.fetch(_SQL["hashes_of"], org, ids)
    return {record["id"]: record["payload_hash"] for record in records}


async def insert_events(connection: Connection, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """Append events."""
    await connection.copy_records_to_table("usage_event", records=rows, columns=list(columns))


async def first_unpriced(
    connection: Connection, org: str, models: Sequence[tuple[str, str, date, str]]
) -> set[tuple[str, str]]:
    """Remember models without a price (provider, model, day, usage id); returns those new for their day."""
    providers, names, days, ids = (list(column) for column in zip(*models, strict=True))
    records = await connection.fetch(_SQL["first_unpriced"], org, providers, names, days, ids)
    return {(record["provider"], record["model"]) for record in records}


async def page(
    connection: Connection, query: UsageQuery, *, before: tuple[datetime, str] | None, limit: int
) -> list[dict[str, Any]]:
    """Raw events, newest first, before a (timestamp, id)."""
    where, args = _where(query)
    if before is not None:
        args += list(before)
        where += f' AND ("timestamp", id) < (${len(args) - 1}, ${len(args)})'
    args.append(limit)
    sql = f'SELECT * FROM usage_event WHERE {where} ORDER BY "timestamp" DESC, id DESC LIMIT ${len(args)}'
    records = await connection.fetch(sql, *args)
    return [_decode(dict(record)) for record in records]


@dataclass(frozen=True, slots=True)
class Looked:
    """Of ``looked_at`` events those that were looked for, JSON columns as text; ``last`` is where to go on."""

    rows: list[dict[str, Any]]
    looked_at: int
    last: tuple[datetime, str] | None


async def look(
    connection: Connection, query: UsageQuery, *, unpriced: bool, after: tuple[datetime, str] | None, limit: int
) -> Looked:
    """The next ``limit`` events after a (timestamp, id), oldest first: all of them or, with ``unpriced``, those that
    may lack a cost: unpriced ones, those whose currency had no rate, and those adjusted since.
    """
    where, args = _where(query)
    if after is not None:
        args += list(after)
        where += f' AND ("timestamp", id) > (${len(args) - 1}, ${len(args)})'
    args += [limit, unpriced]
    sql = _SQL["look"].format(where=where, limit=len(args) - 1, unpriced=len(args))
    records = await connection.fetch(sql, *args)
    if not records:
        return Looked([], 0, None)
    rows = [dict(record) for record in records]
    last = (rows[-1]["timestamp"], rows[-1]["id"])
    return Looked([row for row in rows if row["wanted"]], rows[-1]["n"], last)


def _decode(values: dict[str, Any]) -> dict[str, Any]:
    for name in ("line_items", "tags", "metadata"):
        values[name] = json.loads(values[name]) if values[name] is not None else None
    if values["reservation_id"] is not None:
        values["reservation_id"] = str(values["reservation_id"])
    return values


def _where(query: UsageQuery, time_column: str = '"timestamp"') -> tuple[str, list[Any]]:
    """Column names come from the contract's own field names, never from a payload."""
    parts = ["org_id = $1"]
    args: list[Any] = [query.org]
    for operator, bound in ((">=", query.start), ("<", query.end)):
        if bound is not None:
            args.append(bound)
            parts.append(f"{time_column} {operator} ${len(args)}")
    for column, pattern in sorted(query.filters.items()):
        args.append(pattern)
        parts.append(f"{column} LIKE ${len(args)}")
    return " AND ".join(parts), args


@dataclass(frozen=True, slots=True)
class Sums:
    """The largest groups by cost, and the sums over every group. ``costs`` of each are nanos by currency."""

    rows: list[dict[str, Any]]
    totals: dict[str, Any]


async def sums(
    connection: Connection,
    query: UsageQuery,
    *,
    table: str,
    bucket: str,
    timezone: str,
    group_by: Sequence[str],
    rates: Mapping[str, Fraction],
    limit: int,
) -> Sums:
    """Sums by calendar bucket (a ``date_trunc`` unit, or ``total``) and dimensions, from rollups or raw events.

    ``rates`` say which groups are the largest: what each currency is in one of them; costs in others count nothing.
    Raises asyncpg.InvalidParameterValueError where PostgreSQL does not know the time zone.
    """
    time_column = "bucket" if table == "usage_rollup" else '"timestamp"'
    where, args = _where(query, time_column)
    window = "NULL::timestamptz"
    if bucket != "total":
        args += [bucket, timezone]
        window = f"date_trunc(${len(args) - 1}, {time_column}, ${len(args)})"
    keys = ["bucket_start", *group_by]
    measures = _SQL["rollup_measures" if table == "usage_rollup" else "posting_measures"]
    every = ", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in MEASURES)
    nothing = ", ".join(["NULL::timestamptz AS bucket_start", *[f"NULL::text AS {name}" for name in group_by]])
    args += [*rate_columns(rates), limit]
    codes, numerators, denominators, most = (f"${n}" for n in range(len(args) - 3, len(args) + 1))
    costs = "coalesce(jsonb_object_agg(currency, cost) FILTER (WHERE cost <> 0), '{}') AS costs"
    # One statement, so that rows and totals are of one snapshot; every currency is summed by itself.
    sql = f"""
        WITH grouped AS MATERIALIZED (
            SELECT {", ".join([f"{window} AS bucket_start", *group_by])}, currency, {measures} FROM {table}
            WHERE {where} GROUP BY {", ".join(["1", *group_by, "currency"])}
        ), merged AS (
            SELECT {", ".join(keys)}, {every}, {costs},
                sum(half_even(cost * r.numerator, r.denominator)) AS worth
            FROM grouped LEFT JOIN unnest({codes}::text[], {numerators}::numeric[], {denominators}::numeric[])
                AS r (code, numerator, denominator) ON r.code = currency
            GROUP BY {", ".join(keys)}
        ), top AS (
            SELECT * FROM merged
            ORDER BY worth DESC NULLS LAST, prompt_tokens + completion_tokens DESC, {", ".join(keys)} LIMIT {most}
        ), totals AS (
            SELECT currency, {every}, sum(cost) AS cost FROM grouped GROUP BY currency
        )
        SELECT true AS is_total, {nothing}, {every}, {costs} FROM totals
        UNION ALL
        SELECT false, {", ".join([*keys, *MEASURES, "costs"])} FROM top"""
    names = ("is_total", *keys, *MEASURES, "costs")
    records = [dict(zip(names, record, strict=True)) for record in await connection.fetch(sql, *args)]
    for record in records:
        record["costs"] = json.loads(record["costs"])
    rows = [record for record in records if not record["is_total"]]
    (totals,) = (record for record in records if record["is_total"])
    return Sums(rows, totals)
