"""Rows of ``outbox``: events written in the transaction that made them true, published after it committed (R17)."""

from collections.abc import Sequence
from dataclasses import dataclass

from store.pool import Connection
from store.sql import queries

_SQL = queries("outbox")


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """An event to publish; ``payload`` is the CloudEvent as JSON."""

    outbox_id: int
    org_id: str
    event: str
    payload: bytes


async def add(connection: Connection, org: str, events: Sequence[tuple[str, bytes]]) -> None:
    """Write events (name, CloudEvent JSON) beside the change that caused them."""
    if events:
        await connection.execute(_SQL["add"], org, [name for name, _ in events], [body for _, body in events])


async def take(connection: Connection, limit: int) -> list[OutboxRow]:
    """Lock the oldest events that no other relay has locked."""
    return [OutboxRow(*record) for record in await connection.fetch(_SQL["take"], limit)]


async def delete(connection: Connection, outbox_ids: Sequence[int]) -> None:
    """Remove published events."""
    await connection.execute(_SQL["delete"], outbox_ids)


async def pending(connection: Connection, org: str) -> int:
    """How many events of an org wait."""
    return await connection.fetchval(_SQL["pending"], org)
