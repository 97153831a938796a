"""Rows of ``schedule``: which signal is asked when. ``job_run`` keeps one row for each planned time that was run."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from store.pool import Connection
from store.sql import queries

_SQL = queries("schedules")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRow:
    """A schedule. ``request`` is JSON text; ``next_run_at`` is the planned time that is due next, None: never again."""

    org_id: str
    name: str
    cron: str
    timezone: str
    signal: str
    request: str
    channels: tuple[str, ...]
    active: bool
    created_by: str | None
    created_at: datetime
    updated_at: datetime
    next_run_at: datetime | None
    last_run_at: datetime | None = None
    last_error: str | None = None

    @property
    def job(self) -> str:
        """Its name among the jobs of all orgs."""
        return f"schedule:{self.org_id}/{self.name}"


async def find(connection: Connection, org: str, name: str) -> ScheduleRow | None:
    """One schedule."""
    record = await connection.fetchrow(_SQL["find"], org, name)
    return None if record is None else _row(record)


async def put(connection: Connection, row: ScheduleRow) -> None:
    """Store a schedule as ``row`` says; what its runs left stays."""
    values = (row.cron, row.timezone, row.signal, row.request, list(row.channels), row.active, row.created_by)
    await connection.execute(
        _SQL["put"], row.org_id, row.name, *values, row.created_at, row.updated_at, row.next_run_at
    )


async def delete(connection: Connection, org: str, name: str) -> None:
    """Remove a schedule."""
    await connection.execute(_SQL["delete"], org, name)


async def count(connection: Connection, org: str) -> int:
    """How many schedules the org has."""
    return await connection.fetchval(_SQL["count"], org)


async def listing(connection: Connection, org: str, *, after_name: str, limit: int) -> list[ScheduleRow]:
    """Schedules by name after ``after_name``."""
    return [_row(record) for record in await connection.fetch(_SQL["listing"], org, after_name, limit)]


async def due(connection: Connection, limit: int) -> list[ScheduleRow]:
    """What is due by the ledger's clock, longest first, at most ``limit``."""
    return [_row(record) for record in await connection.fetch(_SQL["due"], limit)]


async def ran(
    connection: Connection, row: ScheduleRow, *, at: datetime | None, error: str | None, next_run_at: datetime | None
) -> None:
    """Plan the next run; note this one and its error unless ``at`` is None."""
    await connection.execute(_SQL["ran"], row.org_id, row.name, row.next_run_at, next_run_at, at, error)


def _row(record: Any) -> ScheduleRow:
    values: dict[str, Any] = dict(record)
    values["channels"] = tuple(values["channels"])
    return ScheduleRow(**values)
