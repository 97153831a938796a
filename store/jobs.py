"""Rows of ``job_run``: a job that must run once, runs once, whichever agent comes first."""

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime

from store.pool import Database
from store.sql import queries

_SQL = queries("jobs")


async def once_a_day(
    database: Database, job: str, day: date, instance: str, work: Callable[[], Awaitable[str]]
) -> bool:
    """Run ``work`` unless some agent has finished it for ``day``; returns whether this one did.

    The row is held locked meanwhile, so a second agent waits or finds it done; an agent that dies leaves it undone.
    """
    planned_at = datetime(day.year, day.month, day.day, tzinfo=UTC)
    async with database.transaction() as connection:
        await connection.execute(_SQL["plan"], job, planned_at, instance)
        if await connection.fetchval(_SQL["lock"], job, planned_at) is None:
            return False
        result = await work()
        await connection.execute(_SQL["finish"], job, planned_at, instance, result)
    return True
