"""Rows of ``price_snapshot`` and ``price_snapshot_use``: public list prices an org used, with the files themselves.

Whoever applies a snapshot holds the exclusive catalogue lock (R2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from store.pool import Connection
from store.sql import queries

_SQL = queries("price_snapshots")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotUse:
    """What an org's list prices come from: ``digest`` None, and nothing of a file, for those bundled with the agent."""

    sequence: int
    digest: str | None
    approved: Sequence[str]
    applied_at: datetime
    applied_by: str
    source: str | None = None
    stated_until: date | None = None
    models: int | None = None
    stored_at: datetime | None = None


async def in_use(connection: Connection, org: str) -> SnapshotUse | None:
    """What the org uses; None if nobody ever applied anything."""
    record = await connection.fetchrow(_SQL["in_use"], org)
    return None if record is None else SnapshotUse(**dict(record))


async def data_of(connection: Connection, org: str, digest: str) -> bytes | None:
    """The compressed bytes of a snapshot the org has used."""
    return await connection.fetchval(_SQL["data"], org, digest)


async def keep(
    connection: Connection,
    org: str,
    *,
    digest: str,
    source: str,
    stated_until: date | None,
    models: int,
    stored_at: datetime,
    data: bytes,
) -> None:
    """Store a file's compressed bytes, unless the org has them."""
    await connection.execute(_SQL["keep"], org, digest, source, stated_until, models, stored_at, data)


async def use(connection: Connection, org: str, row: SnapshotUse, *, reason: str | None) -> None:
    """Use a stored snapshot, or with no digest the bundled one, from now on."""
    await connection.execute(
        _SQL["use"], org, row.sequence, row.digest, list(row.approved), row.applied_at, row.applied_by, reason
    )


async def used_models(connection: Connection, org: str, *, since: datetime, limit: int) -> list[tuple[str, str]]:
    """Providers and models in usage since ``since``, the dearest first."""
    records = await connection.fetch(_SQL["used_models"], org, since, limit)
    return [(record["provider"], record["model"]) for record in records]
