"""Daily partitions of ``usage_event`` (R12): attached ahead of time, detached concurrently before they are dropped."""

import contextlib
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Final

import asyncpg

from store.pool import Connection, Database

HISTORY: Final = "usage_event_history"
_ATTACHED_MEANWHILE: Final = (
    asyncpg.DuplicateTableError,
    asyncpg.DuplicateObjectError,
    asyncpg.UniqueViolationError,
    asyncpg.InvalidObjectDefinitionError,
    asyncpg.WrongObjectTypeError,
)
_EXISTS: Final = """
SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bound, i.inhdetachpending AS pending
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'usage_event'::regclass"""
_DETACHED: Final = """
SELECT c.relname AS name FROM pg_class c JOIN pg_class parent ON parent.relnamespace = c.relnamespace
WHERE parent.oid = 'usage_event'::regclass AND c.relkind = 'r' AND NOT c.relispartition
  AND c.relname ~ '^usage_event_[0-9]{8}$'"""


def name_of(day: date) -> str:
    """Table name of a day's partition."""
    return f"usage_event_{day:%Y%m%d}"


async def create_history(connection: Connection, first_day: date) -> None:
    """The one static partition that holds everything before ``first_day`` (the day of installation)."""
    await connection.execute(
        f"CREATE TABLE {HISTORY} PARTITION OF usage_event FOR VALUES FROM (MINVALUE) TO ('{first_day.isoformat()}')"
    )


async def present(database: Database) -> set[str]:
    """Names of the attached partitions."""
    return {row["name"] for row in await database.fetch(_EXISTS) if not row["pending"]}


async def first_day(database: Database) -> date:
    """The day of installation: where the history partition ends and daily partitions begin."""
    for row in await database.fetch(_EXISTS):
        if row["name"] == HISTORY:
            return date.fromisoformat(row["bound"].split("TO ('", 1)[1][:10])
    raise LookupError("the usage_event table has no history partition")


async def ensure(database: Database, days: Iterable[date]) -> list[date]:
    """Attach partitions for ``days`` where missing; returns those created. Reads and writes go on meanwhile."""
    have, begin = await present(database), await first_day(database)
    missing = sorted({day for day in days if day >= begin and name_of(day) not in have})
    if missing:
        await _finish_detaching(database)
    created: list[date] = []
    for day in missing:
        try:
            await _attach(database, day)
        except _ATTACHED_MEANWHILE:
            continue  # Another agent attached the same day first.
        created.append(day)
    return created


async def _attach(database: Database, day: date) -> None:
    """Create beside and attach: this takes no lock that a reader or a writer of the parent would wait for.

    A day that was detached but not dropped, because somebody was killed between, is attached as it is.
    """
    name, following = name_of(day), day + timedelta(days=1)
    async with database.transaction() as connection:
        columns = "LIKE usage_event INCLUDING DEFAULTS INCLUDING CONSTRAINTS"
        await connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")
        await connection.execute(
            f"ALTER TABLE usage_event ATTACH PARTITION {name} "
            f"FOR VALUES FROM ('{day.isoformat()}') TO ('{following.isoformat()}')"
        )


async def drop_before(database: Database, day: date) -> list[str]:
    """Detach concurrently, then drop, the daily partitions that end at or before ``day``; returns their names.

    Also those that somebody who was killed meanwhile left half detached, or detached and not dropped.
    """
    await _finish_detaching(database)
    detached = {row["name"] for row in await database.fetch(_DETACHED)}
    old = sorted(n for n in await present(database) | detached if n != HISTORY and n < name_of(day))
    for name in old:
        if name not in detached:
            await database.execute(f"ALTER TABLE usage_event DETACH PARTITION {name} CONCURRENTLY")
        await database.execute(f"DROP TABLE IF EXISTS {name}")
    return old


async def _finish_detaching(database: Database) -> None:
    """A concurrent detach that was interrupted stays pending, and stands in the way of every later one."""
    for row in await database.fetch(_EXISTS):
        if row["pending"]:
            with contextlib.suppress(asyncpg.ObjectNotInPrerequisiteStateError, asyncpg.UndefinedTableError):
                await database.execute(f"ALTER TABLE usage_event DETACH PARTITION {row['name']} FINALIZE")
