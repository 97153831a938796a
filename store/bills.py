"""Rows of ``bill``, its parts, lines and comparison, and what usage says of the same days. No rule lives here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import asyncpg

from store.pool import Connection
from store.sql import queries

_SQL = queries("bills")
LINE_COLUMNS = (
    *("org_id", "bill_id", "part", "day", "model", "tier", "kind", "currency", "quantity", "cost", "cells"),
    "decimals",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BillRecord:
    """A bill with what its parts come to. ``settings`` and ``summary`` are plain JSON."""

    bill_id: str
    provider: str
    status: str
    settings: dict[str, Any]
    imported_at: datetime
    imported_by: str
    compared_at: datetime | None
    summary: dict[str, Any] | None
    parts: int
    formats: tuple[str, ...]
    lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRecord:
    """A line; costs in nanos of ``currency``."""

    day: date
    model: str
    tier: str
    kind: str
    currency: str
    quantity: int | None
    cost: int | None
    cells: int
    decimals: int
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageScope:
    """Which usage a bill is for: half-open in time, of one provider; ``filters`` maps columns to LIKE patterns."""

    org: str
    start: datetime
    end: datetime
    provider: str
    filters: dict[str, str]

    def where(self, **more: str) -> tuple[str, list[Any]]:
        """A condition on usage_posting and its arguments; ``more`` are columns that must equal a text."""
        args: list[Any] = [self.org, self.start, self.end, self.provider]
        parts = ["org_id = $1", '"timestamp" >= $2', '"timestamp" < $3', "provider = $4"]
        for column, pattern in sorted(self.filters.items()):
            args.append(pattern)
            parts.append(f"{column} LIKE ${len(args)}")
        for column, text in sorted(more.items()):
            args.append(text)
            parts.append(f"{column} = ${len(args)}")
        return " AND ".join(parts), args


def _record(row: asyncpg.Record) -> BillRecord:
    values = dict(row)
    values.pop("org_id")
    for name in ("settings", "summary"):
        values[name] = json.loads(values[name]) if values[name] is not None else None
    values["formats"] = tuple(values["formats"] or ())
    return BillRecord(**values)


async def open_bill(
    connection: Connection, org: str, bill_id: str, *, provider: str, settings: dict[str, Any], by: str
) -> None:
    """Create an open bill, unless there is one of this id."""
    await connection.execute(_SQL["open"], org, bill_id, provider, json.dumps(settings), by)


async def lock(connection: Connection, org: str, bill_id: str) -> tuple[str, str] | None:
    """Provider and status of a bill, held until the transaction ends."""
    row = await connection.fetchrow(_SQL["lock"], org, bill_id)
    return None if row is None else (row["provider"], row["status"])


async def find(connection: Connection, org: str, bill_id: str) -> BillRecord | None:
    """A bill by its id."""
    row = await connection.fetchrow(_SQL["find"].format(where="b.org_id = $1 AND b.bill_id = $2"), org, bill_id)
    return None if row is None else _record(row)


async def listing(
    connection: Connection,
    org: str,
    *,
    provider: str | None,
    status: str | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[BillRecord]:
    """Bills, newest first, before a (time, id)."""
    where = "b.org_id = $1 AND ($2::text IS NULL OR b.provider = $2) AND ($3::text IS NULL OR b.status = $3)"
    args: list[Any] = [org, provider, status, *(before or (None, None)), limit]
    where += " AND ($4::timestamptz IS NULL OR (b.imported_at, b.bill_id) < ($4, $5::text))"
    rows = await connection.fetch(_SQL["find"].format(where=where) + " LIMIT $6", *args)
    return [_record(row) for row in rows]


async def count(connection: Connection, org: str) -> int:
    """How many bills an org has."""
    return await connection.fetchval(_SQL["count"], org)


async def part_hash(connection: Connection, org: str, bill_id: str, part: int) -> bytes | None:
    """What a part that has come is known by."""
    return await connection.fetchval(_SQL["part"], org, bill_id, part)


async def parts(connection: Connection, org: str, bill_id: str) -> list[int]:
    """The numbers of the parts that have come."""
    return [row["part"] for row in await connection.fetch(_SQL["parts"], org, bill_id)]


async def put_part(
    connection: Connection,
    org: str,
    bill_id: str,
    *,
    part: int,
    content_hash: bytes,
    format_: str,
    lines: Sequence[tuple[Any, ...]],
) -> None:
    """Store a part with its lines (the columns from ``day`` on)."""
    await connection.execute(_SQL["put_part"], org, bill_id, part, content_hash, format_, len(lines))
    rows = [(org, bill_id, part, *line) for line in lines]
    await connection.copy_records_to_table("bill_line", records=rows, columns=list(LINE_COLUMNS))


async def reset(connection: Connection, org: str, bill_id: str) -> None:
    """Forget a bill with everything of it."""
    await connection.execute(_SQL["reset"], org, bill_id)


async def complete(connection: Connection, org: str, bill_id: str) -> None:
    """Every part has come."""
    await connection.execute(_SQL["complete"], org, bill_id)


async def choose(connection: Connection, org: str, bill_id: str, settings: dict[str, Any]) -> None:
    """How the bill is compared from now on."""
    await connection.execute(_SQL["settings"], org, bill_id, json.dumps(settings))


async def line_count(connection: Connection, org: str, bill_id: str) -> int:
    """How many lines have come."""
    return await connection.fetchval(_SQL["line_count"], org, bill_id)


async def lines(connection: Connection, org: str, bill_id: str) -> list[LineRecord]:
    """Every line of a bill by day and model."""
    rows = await connection.fetch(_SQL["lines"], org, bill_id)
    return [LineRecord(**{name: row[name] for name in LineRecord.__dataclass_fields__}) for row in rows]


async def put_result(
    connection: Connection, org: str, bill_id: str, *, summary: dict[str, Any], rows: Sequence[bytes]
) -> None:
    """Store a comparison in the place of the one before; ``rows`` are JSON, in order."""
    await connection.execute(_SQL["forget_rows"], org, bill_id)
    records = [(org, bill_id, position, row.decode()) for position, row in enumerate(rows, 1)]
    await connection.copy_records_to_table(
        "bill_row", records=records, columns=["org_id", "bill_id", "position", "content"]
    )
    await connection.execute(_SQL["result"], org, bill_id, json.dumps(summary))


async def result_rows(
    connection: Connection, org: str, bill_id: str, *, after: int, limit: int
) -> list[tuple[int, str]]:
    """Position and JSON of compared rows after a position."""
    rows = await connection.fetch(_SQL["rows"], org, bill_id, after, limit)
    return [(row["position"], row["content"]) for row in rows]


async def our_calls(connection: Connection, scope: UsageScope) -> list[dict[str, Any]]:
    """Calls and costs by day, model and currency."""
    where, args = scope.where()
    return [dict(row) for row in await connection.fetch(_SQL["our_calls"].format(where=where), *args)]


async def our_kinds(connection: Connection, scope: UsageScope) -> list[dict[str, Any]]:
    """Quantities and costs by day, model, currency, tier and kind."""
    where, args = scope.where()
    return [dict(row) for row in await connection.fetch(_SQL["our_kinds"].format(where=where), *args)]


async def our_events(connection: Connection, scope: UsageScope, model: str, *, limit: int) -> list[dict[str, Any]]:
    """Calls of one model, at most so many."""
    where, args = scope.where(model=model)
    args.append(limit)
    sql = _SQL["our_events"].format(where=where) + f" LIMIT ${len(args)}"
    return [dict(row) for row in await connection.fetch(sql, *args)]
