"""Rows of ``channel``: where alerts go. What is sealed stays sealed here."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from store.pool import Connection
from store.sql import queries

_SQL = queries("channels")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRow:
    """A channel as stored; ``quiet_hours`` is plain JSON, ``shown`` the URL without anything secret."""

    org_id: str
    name: str
    kind: str
    sealed: bytes
    shown: str
    min_level: str
    quiet_hours: dict[str, Any] | None
    messages_per_hour_max: int
    active: bool
    created_at: datetime
    updated_at: datetime


def _row(record: Any) -> ChannelRow:
    values = dict(record)
    if values["quiet_hours"] is not None:
        values["quiet_hours"] = json.loads(values["quiet_hours"])
    return ChannelRow(**values)


async def find(connection: Connection, org: str, name: str) -> ChannelRow | None:
    """One channel."""
    record = await connection.fetchrow(_SQL["find"], org, name)
    return _row(record) if record else None


async def lock(connection: Connection, org: str, name: str) -> ChannelRow | None:
    """One channel, locked: whoever decides what it sends next, or changes it, is alone with it."""
    record = await connection.fetchrow(_SQL["lock"], org, name)
    return _row(record) if record else None


async def listing(connection: Connection, org: str, *, after: str | None, limit: int) -> list[ChannelRow]:
    """Channels by name, after ``after``."""
    return [_row(record) for record in await connection.fetch(_SQL["listing"], org, after, limit)]


async def count(connection: Connection, org: str) -> int:
    """How many the org has."""
    return await connection.fetchval(_SQL["count"], org)


async def put(connection: Connection, row: ChannelRow) -> None:
    """Create a channel, or replace all of it but its age."""
    quiet_hours = None if row.quiet_hours is None else json.dumps(row.quiet_hours)
    values = (row.org_id, row.name, row.kind, row.sealed, row.shown, row.min_level, quiet_hours)
    await connection.execute(
        _SQL["put"], *values, row.messages_per_hour_max, row.active, row.created_at, row.updated_at
    )


async def delete(connection: Connection, org: str, name: str) -> None:
    """Remove a channel."""
    await connection.execute(_SQL["delete"], org, name)
