"""Counts by day of what became of checks and reservations, and of how much usage was reserved first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from store.pool import Connection
from store.sql import queries

_SQL = queries("compliance")


@dataclass(frozen=True, slots=True)
class Unsettled:
    """Reservations of one caller that expired; ``cost`` is what their calls might have cost at most, in nanos."""

    caller: str
    count: int
    cost: int
    currency: str


async def count_decisions(connection: Connection, counts: Mapping[tuple[str, str], int]) -> None:
    """Add decisions of today by (org, code)."""
    orgs, codes = [org for org, _ in counts], [code for _, code in counts]
    await connection.execute(_SQL["count_decisions"], orgs, codes, list(counts.values()))


async def count_unsettled(connection: Connection, org: str, at: datetime, rows: Sequence[Unsettled]) -> None:
    """Add reservations that expired at ``at``."""
    columns = [r.caller for r in rows], [r.count for r in rows], [r.cost for r in rows], [r.currency for r in rows]
    await connection.execute(_SQL["count_unsettled"], org, at, *columns)


async def decisions(connection: Connection, org: str, since: date) -> dict[str, int]:
    """Decisions since a day (UTC) by code."""
    return {r["code"]: r["count"] for r in await connection.fetch(_SQL["decisions"], org, since)}


async def unsettled(connection: Connection, org: str, since: date, limit: int) -> list[Unsettled]:
    """Expired reservations since a day (UTC) of the ``limit`` callers with the most, by caller and currency."""
    return [Unsettled(*record) for record in await connection.fetch(_SQL["unsettled"], org, since, limit)]


async def reserved_requests(connection: Connection, org: str, since: datetime) -> tuple[int, int]:
    """Requests used since a time, and how many of them were reserved first; from rollups."""
    record = await connection.fetchrow(_SQL["reserved"], org, since)
    assert record is not None
    return record["requests"], record["reserved"]
