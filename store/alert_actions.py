"""Rows of ``alert_action``: what alerts set off. A row is claimed in the transaction that does what it says."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from store.pool import Connection
from store.sql import queries

_SQL = queries("alert_actions")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertActionRow:
    """One action of one alert. ``undo`` says how an active one ends at ``ends_at``."""

    org_id: str
    alert_id: str
    rule_id: str
    position: int
    rule: str
    action: dict[str, Any]
    status: str = "pending"
    ends_at: datetime | None = None
    undo: dict[str, Any] | None = None
    result: str | None = None
    created_at: datetime
    done_at: datetime | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What identifies it."""
        return self.org_id, self.alert_id, self.rule_id, self.position


def _row(record: asyncpg.Record) -> AlertActionRow:
    values = dict(record)
    for name in ("alert_id", "rule_id"):
        values[name] = str(values[name])
    values["action"] = json.loads(values["action"])
    values["undo"] = None if values["undo"] is None else json.loads(values["undo"])
    return AlertActionRow(**values)


async def add(connection: Connection, rows: Sequence[AlertActionRow]) -> None:
    """Store what new alerts of one org set off."""
    if rows:
        await connection.execute(
            _SQL["add"],
            rows[0].org_id,
            [row.alert_id for row in rows],
            [row.rule_id for row in rows],
            [row.position for row in rows],
            [row.rule for row in rows],
            [json.dumps(row.action) for row in rows],
            [row.created_at for row in rows],
        )


async def due(connection: Connection, org: str, at: datetime, limit: int) -> list[AlertActionRow]:
    """Actions to run, and active ones to end, oldest first; not locked."""
    return [_row(record) for record in await connection.fetch(_SQL["due"], org, at, limit)]


async def claim(connection: Connection, row: AlertActionRow) -> bool:
    """Lock an action until the transaction ends; False where it is no longer what it was, or somebody else's."""
    return await connection.fetchval(_SQL["claim"], *row.key, row.status) is not None


async def finish(
    connection: Connection,
    row: AlertActionRow,
    *,
    status: str,
    at: datetime,
    result: str,
    ends_at: datetime | None = None,
    undo: dict[str, Any] | None = None,
) -> None:
    """Write what has become of a claimed action."""
    text = None if undo is None else json.dumps(undo)
    await connection.execute(_SQL["finish"], *row.key, status, at, result, ends_at, text)


async def outlasted(connection: Connection, row: AlertActionRow, budget_id: str) -> bool:
    """Whether another active action keeps the same budget changed for longer."""
    return await connection.fetchval(_SQL["outlasted"], *row.key, budget_id)
