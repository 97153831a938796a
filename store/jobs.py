"""Rows of ``job_run``: a job that must run once, runs once, whichever agent comes first."""

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime

from store.pool import Connection, Database
from store.sql import queries

_SQL = queries("jobs")


async def once_a_day(
    database: Database, job: str, day: date, instance: str, work: Callable[[], Awaitable[str]]
) -> bool:
    """Run ``work`` unless some agent has finished it for ``day``; returns whether this one did."""
    return await once(database, job, datetime(day.year, day.month, day.day, tzinfo=UTC), instance, work)


async def once(
    database: Database, job: str, planned_at: datetime, instance: str, work: Callable[[], Awaitable[str]]
) -> bool:
    """Run ``work`` unless some agent has finished it for that time; returns whether this one did.

    The row is held locked meanwhile, so a second agent finds it busy or done; an agent that dies leaves it undone.
    """
    async with database.transaction() as connection:
        await plan(connection, job, planned_at, instance)
        if not await lock(connection, job, planned_at):
            return False
        result = await work()
        await finish(connection, job, planned_at, instance, result)
    return True


async def plan(connection: Connection, job: str, planned_at: datetime, instance: str) -> None:
    """Make the row of one planned time, unless there is one. Waits for a transaction that is making it."""
    await connection.execute(_SQL["plan"], job, planned_at, instance)


async def lock(connection: Connection, job: str, planned_at: datetime) -> bool:
    """Whether this transaction may run a planned job: nobody has finished it or is running it. Does not wait."""
    return await connection.fetchval(_SQL["lock"], job, planned_at) is not None


async def is_finished(connection: Connection, job: str, planned_at: datetime) -> bool:
    """Whether a planned job was run."""
    return bool(await connection.fetchval(_SQL["is_finished"], job, planned_at))


async def forget(connection: Connection, job: str, before: datetime) -> None:
    """Remove the runs of a job that were planned before."""
    await connection.execute(_SQL["forget"], job, before)


async def finish(connection: Connection, job: str, planned_at: datetime, instance: str, result: str) -> None:
    """Note that a locked job was run; the transaction makes it true."""
    await connection.execute(_SQL["finish"], job, planned_at, instance, result)
