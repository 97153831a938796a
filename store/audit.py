"""Rows of ``audit``: an org's hash chain of everything a person or a policy changed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from store.pool import Connection
from store.sql import queries

_SQL = queries("audit")
HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One entry. ``content`` is the JSON text that ``hash`` covers, together with the hash before it."""

    org_id: str
    seq: int
    at: datetime
    actor: str
    action: str
    entity: str
    entity_id: str
    content: str
    previous_hash: bytes
    hash: bytes


def chained(previous_hash: bytes, content: str) -> bytes:
    """The hash of an entry: SHA-256 over the previous hash and the content's UTF-8 bytes."""
    return hashlib.sha256(previous_hash + content.encode()).digest()


async def lock_head(connection: Connection, org: str) -> tuple[int, bytes]:
    """The org's newest sequence number and hash, locked until the transaction ends; the last lock of all (R1)."""
    record = await connection.fetchrow(_SQL["lock_head"], org)
    assert record is not None
    return record["seq"], record["hash"]


async def append(connection: Connection, row: AuditRow) -> None:
    """Append an entry whose head is locked, and move the head."""
    values = (row.org_id, row.seq, row.at, row.actor, row.action, row.entity, row.entity_id, row.content)
    await connection.execute(_SQL["append"], *values, row.previous_hash, row.hash)
    await connection.execute(_SQL["move_head"], row.org_id, row.seq, row.hash)


async def head(connection: Connection, org: str) -> tuple[int, bytes]:
    """The newest sequence number and hash, not locked; 0 and no bytes before the first entry."""
    record = await connection.fetchrow(_SQL["head"], org)
    return (0, b"") if record is None else (record["seq"], record["hash"])


async def listing(
    connection: Connection,
    org: str,
    *,
    before_seq: int,
    entity: str | None,
    entity_ids: Sequence[str] | None,
    actors: Sequence[str] | None,
    action: str | None,
    start: datetime | None,
    end: datetime | None,
    limit: int,
    bytes_max: int,
) -> list[AuditRow]:
    """Entries, newest first, before ``before_seq``; fewer where their contents exceed ``bytes_max``, at least one."""
    records = await connection.fetch(
        _SQL["listing"], org, before_seq, entity, entity_ids, actors, action, start, end, limit, bytes_max
    )
    return [_row(record) for record in records]


async def chain(connection: Connection, org: str, *, after_seq: int, limit: int, bytes_max: int) -> list[AuditRow]:
    """Entries in the order of the chain, after ``after_seq``; bounded as ``listing``."""
    return [_row(record) for record in await connection.fetch(_SQL["chain"], org, after_seq, limit, bytes_max)]


async def hash_at(connection: Connection, org: str, seq: int) -> bytes:
    """The stored hash of one entry; no bytes where it is not there."""
    return await connection.fetchval(_SQL["hash_at"], org, seq) or b""


def _row(record: Any) -> AuditRow:
    return AuditRow(**dict(record))
