"""Rows of ``dead_letter``: messages that could not be applied, kept with their reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from store.pool import Connection
from store.sql import queries

_SQL = queries("dead_letters")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterRow:
    """``source_key`` makes keeping it idempotent: the same message is one row, however often it is delivered."""

    org_id: str
    dead_letter_id: str
    reason: str
    message: str
    field: str | None
    subject: str
    source_key: str
    usage_id: str | None
    payload: bytes
    arrived_at: datetime
    status: str = "open"
    retried_at: datetime | None = None


def _row(record: Any) -> DeadLetterRow:
    values = dict(record)
    values["dead_letter_id"] = str(values["dead_letter_id"])
    return DeadLetterRow(**values)


async def keep(connection: Connection, rows: Sequence[DeadLetterRow]) -> set[str]:
    """Store dead letters; returns the source keys that were new."""
    columns = (
        [r.org_id for r in rows],
        [r.dead_letter_id for r in rows],
        [r.reason for r in rows],
        [r.message for r in rows],
        [r.field for r in rows],
        [r.subject for r in rows],
        [r.source_key for r in rows],
        [r.usage_id for r in rows],
        [r.payload for r in rows],
        [r.arrived_at for r in rows],
    )
    return {r["source_key"] for r in await connection.fetch(_SQL["keep"], *columns)}


async def listing(
    connection: Connection,
    org: str,
    *,
    status: str | None,
    reason: str | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[DeadLetterRow]:
    """Dead letters, newest first, before an (arrival, id)."""
    at, letter_id = before if before is not None else (None, None)
    return [_row(r) for r in await connection.fetch(_SQL["listing"], org, status, reason, at, letter_id, limit)]


async def lock(connection: Connection, org: str, dead_letter_id: str) -> DeadLetterRow | None:
    """One dead letter, locked."""
    record = await connection.fetchrow(_SQL["lock"], org, dead_letter_id)
    return _row(record) if record else None


async def mark_retried(connection: Connection, org: str, dead_letter_id: str) -> None:
    """Its message is in the stream again."""
    await connection.execute(_SQL["mark_retried"], org, dead_letter_id)


async def count_open(connection: Connection, org: str) -> int:
    """How many are open."""
    return await connection.fetchval(_SQL["count_open"], org)


async def naming(
    connection: Connection, org: str, name: str, *, after: str | None, limit: int
) -> list[tuple[str, bytes]]:
    """Ids and payloads of dead letters in which ``name`` may occur, locked, by id."""
    records = await connection.fetch(_SQL["naming"], org, name.encode(), after, limit)
    return [(str(record["dead_letter_id"]), record["payload"]) for record in records]


async def replace_payload(connection: Connection, org: str, dead_letter_id: str, payload: bytes) -> None:
    """Put another payload in the place of what was sent."""
    await connection.execute(_SQL["replace_payload"], org, dead_letter_id, payload)
