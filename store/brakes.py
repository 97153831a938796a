"""Rows of ``brake``: kill switches that are on. What they were is in the audit trail."""

from dataclasses import dataclass
from datetime import datetime

from store.pool import Connection
from store.sql import queries

_SQL = queries("brakes")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakeRow:
    """A kill switch that is on; ``scope`` is org, team, model or provider, ``entity_id`` of the org is ``*``."""

    org_id: str
    scope: str
    entity_id: str
    reason: str
    set_by: str
    set_at: datetime


async def find(connection: Connection, org: str, scope: str, entity_id: str) -> BrakeRow | None:
    """One kill switch, None where it is off."""
    record = await connection.fetchrow(_SQL["find"], org, scope, entity_id)
    return None if record is None else BrakeRow(**dict(record))


async def put(connection: Connection, row: BrakeRow) -> None:
    """Switch on, or change who and why. The exclusive catalogue lock is held."""
    await connection.execute(
        _SQL["put"], row.org_id, row.scope, row.entity_id, row.reason, row.set_by, row.set_at
    )  # fmt: skip


async def remove(connection: Connection, org: str, scope: str, entity_id: str) -> None:
    """Switch off. The exclusive catalogue lock is held."""
    await connection.execute(_SQL["remove"], org, scope, entity_id)


async def count(connection: Connection, org: str) -> int:
    """How many are on."""
    return await connection.fetchval(_SQL["count"], org)


async def listing(
    connection: Connection, org: str, *, scope: str | None, after: tuple[str, str], limit: int
) -> list[BrakeRow]:
    """Kill switches that are on, by scope and entity, after a (scope, entity)."""
    records = await connection.fetch(_SQL["listing"], org, scope, *after, limit)
    return [BrakeRow(**dict(record)) for record in records]
