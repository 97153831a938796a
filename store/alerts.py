"""Rows of ``alert``: what was raised, once each, and what people and re-notification did with it since."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from store.pool import Connection
from store.sql import queries

_SQL = queries("alerts")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRow:
    """An alert. ``details`` is plain JSON whose amounts are decimal strings; ``rule`` is a rule's name."""

    org_id: str
    alert_id: str
    dedup_key: str
    kind: str
    level: str
    title: str
    message: str
    rule: str | None
    rule_ids: tuple[str, ...]
    budget_id: str | None
    window_id: int | None
    entity_id: str | None
    details: dict[str, Any]
    created_at: datetime
    notified_at: datetime | None = None
    renotify_at: datetime | None = None
    ended_at: datetime | None = None
    acknowledged_by: str | None = None
    acknowledged_at: datetime | None = None
    comment: str | None = None


def _row(record: asyncpg.Record) -> AlertRow:
    values = dict(record)
    for name in ("alert_id", "budget_id"):
        values[name] = None if values[name] is None else str(values[name])
    values["rule_ids"] = tuple(str(rule_id) for rule_id in values["rule_ids"])
    values["details"] = json.loads(values["details"])
    return AlertRow(**values)


async def insert(connection: Connection, rows: Sequence[AlertRow]) -> set[str]:
    """Store alerts of one org whose ``dedup_key`` is new; returns the ids of those."""
    if not rows:
        return set()
    ordered = sorted(rows, key=lambda row: row.dedup_key)
    columns = [
        [row.alert_id for row in ordered],
        [row.dedup_key for row in ordered],
        [row.kind for row in ordered],
        [row.level for row in ordered],
        [row.title for row in ordered],
        [row.message for row in ordered],
        [row.rule for row in ordered],
        ["{" + ",".join(row.rule_ids) + "}" for row in ordered],
        [row.budget_id for row in ordered],
        [row.window_id for row in ordered],
        [row.entity_id for row in ordered],
        [json.dumps(row.details) for row in ordered],
        [row.created_at for row in ordered],
        [row.notified_at for row in ordered],
        [row.renotify_at for row in ordered],
        [row.ended_at for row in ordered],
    ]
    records = await connection.fetch(_SQL["insert"], rows[0].org_id, *columns)
    return {str(record["alert_id"]) for record in records}


async def find(connection: Connection, org: str, alert_id: str) -> AlertRow | None:
    """One alert."""
    record = await connection.fetchrow(_SQL["find"], org, alert_id)
    return _row(record) if record else None


async def lock(connection: Connection, org: str, alert_id: str) -> AlertRow | None:
    """One alert, locked until the transaction ends."""
    record = await connection.fetchrow(_SQL["lock"], org, alert_id)
    return _row(record) if record else None


async def acknowledge(
    connection: Connection, org: str, alert_id: str, *, by: str, at: datetime, comment: str | None
) -> None:
    """Somebody has seen it: nobody is told again."""
    await connection.execute(_SQL["acknowledge"], org, alert_id, by, at, comment)


async def listing(
    connection: Connection,
    org: str,
    *,
    level: str | None,
    kind: str | None,
    budget_id: str | None,
    acknowledged: bool | None,
    before: tuple[datetime, str] | None,
    limit: int,
) -> list[AlertRow]:
    """Alerts, newest first, before the position (created_at, alert_id)."""
    created_at, alert_id = before if before is not None else (None, None)
    records = await connection.fetch(
        _SQL["listing"], org, level, kind, budget_id, acknowledged, created_at, alert_id, limit
    )
    return [_row(record) for record in records]


async def orgs_with_work(connection: Connection, *, after: str, limit: int) -> list[str]:
    """Orgs with a rule to evaluate, somebody to tell again, or an action to run or to end; by name, after ``after``."""
    return [record["org_id"] for record in await connection.fetch(_SQL["orgs_with_work"], after, limit)]


async def try_lock(connection: Connection, org: str) -> bool:
    """Be the one who evaluates an org's rules until the transaction ends."""
    return await connection.fetchval(_SQL["try_lock"], org)


async def open_of(connection: Connection, org: str, rule_id: str) -> list[AlertRow]:
    """Alerts of a rule that have not ended."""
    return [_row(record) for record in await connection.fetch(_SQL["open_of"], org, rule_id)]


async def end(connection: Connection, org: str, alert_ids: Sequence[str], at: datetime) -> None:
    """What these alerts said is no longer true."""
    if alert_ids:
        await connection.execute(_SQL["end"], org, list(alert_ids), at)


async def end_watched(connection: Connection, org: str, rule_id: str, at: datetime) -> None:
    """End what only this rule's evaluation could end: nobody watches it any longer."""
    await connection.execute(_SQL["end_watched"], org, rule_id, at)


async def due_again(connection: Connection, org: str, at: datetime, limit: int) -> list[AlertRow]:
    """Alerts about which somebody is to be told again, locked."""
    return [_row(record) for record in await connection.fetch(_SQL["due_again"], org, at, limit)]


async def told_again(
    connection: Connection, org: str, alert_id: str, *, at: datetime | None, renotify_at: datetime | None
) -> None:
    """Remember that somebody was told again, and when next; None where never again."""
    await connection.execute(_SQL["told_again"], org, alert_id, at, renotify_at)
