"""Rows of ``override``: temporary raises, asked for, decided and ended. Rows stay: they are the history."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from store.pool import Connection
from store.sql import queries

_SQL = queries("overrides")


@dataclass(frozen=True, slots=True, kw_only=True)
class OverrideRow:
    """An override as stored, with the unit and currency of its budget; ``amount`` in the unit's integer measure."""

    org_id: str
    override_id: str
    budget_id: str
    entity_id: str
    unit: str
    currency: str | None
    status: str
    amount: int
    percent: int | None
    reason: str
    requested_by: str
    requested_at: datetime
    starts_at: datetime | None
    ends_at: datetime
    reviewed_by: str | None = None
    reviewed_at: datetime | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What a budget's entity was given: live raises, and those a policy approved and that reach into this window."""

    raised: int
    automatic: int


@dataclass(frozen=True, slots=True)
class StepRow:
    """One entry of the audit trail about an override."""

    override_id: str
    at: datetime
    actor: str
    action: str
    reason: str | None


def _row(record: Any) -> OverrideRow:
    values = dict(record)
    for name in ("override_id", "budget_id"):
        values[name] = str(values[name])
    return OverrideRow(**values)


async def insert(connection: Connection, row: OverrideRow) -> None:
    """Store a new override."""
    await connection.execute(
        _SQL["insert"],
        row.org_id,
        row.override_id,
        row.budget_id,
        row.entity_id,
        row.status,
        row.amount,
        row.percent,
        row.reason,
        row.requested_by,
        row.requested_at,
        row.starts_at,
        row.ends_at,
        row.reviewed_by,
        row.reviewed_at,
        row.comment,
    )


async def lock(connection: Connection, org: str, override_id: str) -> OverrideRow | None:
    """One override, locked."""
    record = await connection.fetchrow(_SQL["lock"], org, override_id)
    return _row(record) if record else None


async def decide(connection: Connection, row: OverrideRow) -> None:
    """Store what a review has decided. The row is locked."""
    values = (row.status, row.starts_at, row.reviewed_by, row.reviewed_at, row.comment)
    await connection.execute(_SQL["decide"], row.org_id, row.override_id, *values)


async def standing(
    connection: Connection, org: str, budget_id: str, entity_id: str, *, now: datetime, window_start: datetime
) -> Standing:
    """What this entity of this budget was given already."""
    record = await connection.fetchrow(_SQL["standing"], org, budget_id, entity_id, now, window_start)
    assert record is not None
    return Standing(int(record["raised"]), int(record["automatic"]))


async def open_counts(connection: Connection, org: str, *, now: datetime, requester: str) -> tuple[int, int]:
    """How many overrides are pending or live: everybody's, and those of one requester."""
    record = await connection.fetchrow(_SQL["open"], org, now, requester)
    assert record is not None
    return record["everybodys"], record["own"]


async def asked_before(connection: Connection, row: OverrideRow) -> bool:
    """Whether its requester waits for the same raise already, or was given it until the same time."""
    values = (row.org_id, row.budget_id, row.entity_id, row.amount, row.requested_by, row.ends_at, row.requested_at)
    return await connection.fetchval(_SQL["asked_before"], *values)


async def orgs_with_ended(connection: Connection) -> list[str]:
    """Orgs with overrides that have ended and do not say so yet."""
    return [record["org_id"] for record in await connection.fetch(_SQL["orgs_with_ended"])]


async def lock_ended(connection: Connection, org: str, now: datetime, limit: int) -> list[OverrideRow]:
    """Pending and approved overrides whose end has come, locked; none that another agent has locked."""
    return [_row(record) for record in await connection.fetch(_SQL["lock_ended"], org, now, limit)]


async def expire(connection: Connection, org: str, override_ids: Sequence[str]) -> None:
    """Mark as expired. The rows are locked."""
    await connection.execute(_SQL["expire"], org, override_ids)


async def listing(
    connection: Connection,
    org: str,
    *,
    budget_id: str | None,
    entity_ids: Sequence[str] | None,
    status: str | None,
    before_id: str,
    limit: int,
) -> list[OverrideRow]:
    """Overrides, newest first, before ``before_id``."""
    records = await connection.fetch(_SQL["listing"], org, budget_id, entity_ids, status, before_id, limit)
    return [_row(record) for record in records]


async def history(connection: Connection, org: str, override_ids: Sequence[str]) -> dict[str, list[StepRow]]:
    """What the audit trail says of each override, oldest first."""
    found: dict[str, list[StepRow]] = {}
    for record in await connection.fetch(_SQL["history"], org, override_ids):
        step = StepRow(*record)
        found.setdefault(step.override_id, []).append(step)
    return found
