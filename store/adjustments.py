"""Rows of ``adjustment`` (later corrections of an event's charge) and of ``adjustment_entry`` (what they post).

Both are append-only. The reversal of what an event counted for is entry 0, what it counts for now entry 1.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

from store.pool import Connection
from store.sql import queries

_SQL = queries("adjustments")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustmentRow:
    """One adjustment. ``before`` and ``after`` are JSON text; charges are signed, in each budget's unit, by window."""

    org_id: str
    adjustment_id: str
    usage_id: str
    sequence: int
    kind: str
    reason: str
    made_by: str
    made_at: datetime
    body_hash: bytes
    before: str
    after: str
    charge_windows: list[int]
    charge_amounts: list[int]
    charge_overruns: list[int]
    windows_gone: int


_COLUMNS: Final = tuple(field.name for field in fields(AdjustmentRow))
_values = attrgetter(*_COLUMNS)


async def lock_claims(connection: Connection, org: str, ids: Sequence[str]) -> dict[str, datetime]:
    """Lock the claims of events in the order of their ids, so that one at a time adjusts an event; with their arrival.

    Claims are kept for weeks, events for months: of those without one the sequence number is what only one can have.
    """
    records = await connection.fetch(_SQL["lock_claims"], org, ids)
    return {record["id"]: record["arrived_at"] for record in records}


async def events(
    connection: Connection, org: str, ids: Sequence[str], arrived: dict[str, datetime]
) -> dict[str, dict[str, Any]]:
    """Stored events by id, JSON columns as text; ``arrived`` says when those arrived whose claim is still there."""
    near = [i for i in ids if i in arrived]
    records = await connection.fetch(_SQL["near"], org, near, [arrived[i] for i in near]) if near else []
    found = {record["id"]: dict(record) for record in records}
    if others := [i for i in ids if i not in found]:
        found |= {record["id"]: dict(record) for record in await connection.fetch(_SQL["anywhere"], org, others)}
    return found


async def of_events(connection: Connection, org: str, ids: Sequence[str]) -> dict[str, list[AdjustmentRow]]:
    """Every adjustment of events, in order, by event."""
    found: dict[str, list[AdjustmentRow]] = {}
    for record in await connection.fetch(_SQL["of_events"], org, ids):
        found.setdefault(record["usage_id"], []).append(AdjustmentRow(**dict(record)))
    return found


async def by_ids(connection: Connection, org: str, adjustment_ids: Sequence[str]) -> dict[str, AdjustmentRow]:
    """Adjustments by their own id."""
    records = await connection.fetch(_SQL["by_ids"], org, adjustment_ids)
    return {record["adjustment_id"]: AdjustmentRow(**dict(record)) for record in records}


@dataclass(frozen=True, slots=True)
class Stands:
    """What an adjusted event stands for: cost in nanos, after so many adjustments."""

    usage_id: str
    sequence: int
    cost: int | None
    void: bool
    currency: str


async def standing(connection: Connection, org: str, ids: Sequence[str]) -> dict[str, Stands]:
    """Those of the events that were adjusted, with what they stand for."""
    records = await connection.fetch(_SQL["standing"], org, ids)
    return {record["usage_id"]: Stands(**dict(record)) for record in records}


async def page(
    connection: Connection,
    org: str,
    *,
    usage_id: str | None,
    kind: str | None,
    start: datetime | None,
    end: datetime | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[AdjustmentRow]:
    """Adjustments made in [``start``, ``end``), newest first, before a (made_at, adjustment_id)."""
    at, last = before or (None, None)
    records = await connection.fetch(_SQL["page"], org, usage_id, kind, start, end, at, last, limit)
    return [AdjustmentRow(**dict(record)) for record in records]


async def append(connection: Connection, rows: Sequence[AdjustmentRow]) -> None:
    """Append adjustments. Raises asyncpg.UniqueViolationError where another one came first."""
    ordered = sorted(rows, key=lambda row: (row.usage_id, row.sequence))
    await connection.copy_records_to_table("adjustment", records=map(_values, ordered), columns=list(_COLUMNS))


async def append_entries(connection: Connection, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """Append what adjustments post."""
    await connection.copy_records_to_table("adjustment_entry", records=rows, columns=list(columns))


def state(text: str) -> dict[str, Any]:
    """What ``before`` or ``after`` holds."""
    return json.loads(text)
