"""Rows of ``delivery``: alerts on their way to channels, and the leases of the agents that send them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from store.pool import Connection
from store.sql import queries

_SQL = queries("deliveries")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDelivery:
    """One alert for one channel, not to be sent before ``not_before``. ``payload`` stands in where there is no alert.

    A channel that does not exist is no error here: the delivery ends as dead and says so.
    """

    delivery_id: str
    alert_id: str | None
    channel: str
    not_before: datetime
    payload: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRow:
    """A delivery as stored."""

    org_id: str
    delivery_id: str
    alert_id: str | None
    channel: str
    status: str
    attempts: int
    not_before: datetime
    postponed: str | None
    message_id: str | None
    claim_id: str | None
    claimed_until: datetime | None
    last_error: str | None
    payload: dict[str, Any] | None
    created_at: datetime
    sent_at: datetime | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """Messages of the last hour, those on their way included; ``oldest`` is when the first of them was sent."""

    messages: int
    oldest: datetime | None


def _row(record: Any) -> DeliveryRow:
    values = dict(record)
    for name in ("delivery_id", "alert_id", "message_id", "claim_id"):
        values[name] = None if values[name] is None else str(values[name])
    if values["payload"] is not None:
        values["payload"] = json.loads(values["payload"])
    return DeliveryRow(**values)


async def enqueue(connection: Connection, org: str, rows: Sequence[NewDelivery]) -> None:
    """Put deliveries in the queue, beside what caused them; a known id is left alone.

    Set ``services.delivery_ready`` once the transaction is committed.
    """
    if rows:
        await connection.execute(
            _SQL["enqueue"],
            org,
            [r.delivery_id for r in rows],
            [r.alert_id for r in rows],
            [r.channel for r in rows],
            [r.not_before for r in rows],
            [None if r.payload is None else json.dumps(r.payload) for r in rows],
        )


async def due_channels(
    connection: Connection, *, except_for: Sequence[tuple[str, str]], limit: int
) -> list[tuple[str, str]]:
    """Channels (org, name) with something to send now, the longest waiting first."""
    orgs, names = [org for org, _ in except_for], [name for _, name in except_for]
    return [(r["org_id"], r["channel"]) for r in await connection.fetch(_SQL["due_channels"], orgs, names, limit)]


async def lock_due(connection: Connection, org: str, channel: str, limit: int) -> list[DeliveryRow]:
    """Deliveries of a channel that are due and that nobody sends, locked; messages tried before are whole."""
    found = [_row(record) for record in await connection.fetch(_SQL["lock_due"], org, channel, limit)]
    tried = sorted({row.message_id for row in found if row.message_id is not None})
    if not tried:
        return found
    rest = [_row(record) for record in await connection.fetch(_SQL["lock_messages"], org, tried)]
    return [*rest, *(row for row in found if row.message_id is None)]


async def traffic(connection: Connection, org: str, channel: str) -> Traffic:
    """What a channel has sent within an hour."""
    record = await connection.fetchrow(_SQL["traffic"], org, channel)
    assert record is not None
    return Traffic(record["messages"], record["oldest"])


async def claim(
    connection: Connection, org: str, messages: Mapping[str, str], *, claim_id: str, lease: timedelta
) -> None:
    """Lease locked deliveries to one agent; ``messages`` gives each delivery's message. Counts the attempt."""
    if messages:
        await connection.execute(_SQL["claim"], org, list(messages), list(messages.values()), claim_id, lease)


async def postpone(connection: Connection, org: str, rows: Sequence[tuple[str, datetime, str]]) -> None:
    """Let locked deliveries (id, until when, why) wait."""
    if rows:
        ids, until, why = ([row[i] for row in rows] for i in range(3))
        await connection.execute(_SQL["postpone"], org, ids, until, why)


async def finish(connection: Connection, org: str, delivery_ids: Sequence[str], *, status: str, reason: str) -> None:
    """End pending deliveries as ``dead`` or ``skipped``."""
    if delivery_ids:
        await connection.execute(_SQL["finish"], org, list(delivery_ids), status, reason)


async def mark_sent(connection: Connection, org: str, message_id: str, claim_id: str, *, note: str | None) -> int:
    """A message arrived; returns how many deliveries it was. Nought: the lease had gone to somebody else."""
    return len(await connection.fetch(_SQL["mark_sent"], org, message_id, claim_id, note))


async def mark_failed(
    connection: Connection,
    org: str,
    message_id: str,
    claim_id: str,
    *,
    reason: str,
    wait: timedelta,
    attempts_max: int,
) -> str | None:
    """A message did not arrive; it is tried again after ``wait``, or dead. Returns the status, None as above."""
    rows = await connection.fetch(_SQL["mark_failed"], org, message_id, claim_id, reason, wait, attempts_max)
    return rows[0]["status"] if rows else None


async def count_pending(connection: Connection, org: str, channel: str) -> int:
    """How many deliveries wait for a channel."""
    return await connection.fetchval(_SQL["count_pending"], org, channel)


async def listing(
    connection: Connection,
    org: str,
    *,
    status: str | None,
    channel: str | None,
    alert_id: str | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[DeliveryRow]:
    """Deliveries, newest first, before a (creation, id)."""
    at, delivery_id = before if before is not None else (None, None)
    values = (org, status, channel, alert_id, at, delivery_id, limit)
    return [_row(record) for record in await connection.fetch(_SQL["listing"], *values)]


async def lock(connection: Connection, org: str, delivery_id: str) -> DeliveryRow | None:
    """One delivery, locked."""
    record = await connection.fetchrow(_SQL["lock"], org, delivery_id)
    return _row(record) if record else None


async def revive(connection: Connection, org: str, delivery_id: str) -> DeliveryRow:
    """Make a locked, dead delivery pending again, as a message of its own."""
    record = await connection.fetchrow(_SQL["revive"], org, delivery_id)
    assert record is not None
    return _row(record)
