"""Daily partitions of ``usage_event`` (R12): attached ahead of time, detached concurrently before they are dropped."""

from collections.abc import Iterable
from datetime import date, timedelta
from typing import Final

import asyncpg

from store.pool import Connection, Database

HISTORY: Final = "usage_event_history"
_EXISTS: Final = """
SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'usage_event'::regclass"""


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
    return {row["name"] for row in await database.fetch(_EXISTS)}


async def first_day(database: Database) -> date:
    """The day of installation: where the history partition ends and daily partitions begin."""
    for row in await database.fetch(_EXISTS):
        if row["name"] == HISTORY:
            return date.fromisoformat(row["bound"].split("TO ('", 1)[1][:10])
    raise LookupError("the usage_event table has no history partition")


async def ensure(database: Database, days: Iterable[date]) -> list[date]:
    """Attach partitions for ``days`` where missing; returns those created. Reads and writes go on meanwhile."""
    have, begin = await present(database), await first_day(database)
    created: list[date] = []
    for day in sorted({day for day in days if day >= begin and name_of(day) not in have}):
        try:
            await _attach(database, day)
        except (asyncpg.DuplicateTableError, asyncpg.UniqueViolationError, asyncpg.InvalidObjectDefinitionError):
            continue  # Another agent attached the same day first.
        created.append(day)
    return created


async def _attach(database: Database, day: date) -> None:
    """Create beside and attach: this takes no lock that a reader or a writer of the parent would wait for."""
    name, following = name_of(day), day + timedelta(days=1)
    async with database.transaction() as connection:
        await connection.execute(f"CREATE TABLE {name} (LIKE usage_event INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        await connection.execute(
            f"ALTER TABLE usage_event ATTACH PARTITION {name} "
            f"FOR VALUES FROM ('{day.isoformat()}') TO ('{following.isoformat()}')"
        )


async def drop_before(database: Database, day: date) -> list[str]:
    """Detach concurrently, then drop, the daily partitions that end at or before ``day``; returns their names."""
    old = sorted(n for n in await present(database) if n != HISTORY and n < name_of(day))
    for name in old:
        await database.execute(f"ALTER TABLE usage_event DETACH PARTITION {name} CONCURRENTLY")
        await database.execute(f"DROP TABLE {name}")
    return old
