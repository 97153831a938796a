"""Rows of ``alert_rule``: what an org wants to be told about. They change under the catalogue lock."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from store.pool import Connection
from store.sql import queries

_SQL = queries("alert_rules")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRuleRow:
    """A rule. ``scope``, ``parameters`` and ``actions`` are plain JSON in the form of the contract."""

    org_id: str
    rule_id: str
    version: int
    name: str
    kind: str
    scope: dict[str, Any]
    parameters: dict[str, Any]
    level: str | None
    channels: tuple[str, ...]
    actions: tuple[dict[str, Any], ...]
    renotify_s: int | None
    active: bool
    created_at: datetime
    updated_at: datetime


def _row(record: asyncpg.Record) -> AlertRuleRow:
    values = dict(record)
    values["rule_id"] = str(values["rule_id"])
    for name in ("scope", "parameters", "actions"):
        values[name] = json.loads(values[name])
    for name in ("channels", "actions"):
        values[name] = tuple(values[name])
    return AlertRuleRow(**values)


async def put(connection: Connection, row: AlertRuleRow) -> None:
    """Store a rule, or what a rule of the same id has become."""
    await connection.execute(
        _SQL["put"],
        row.org_id,
        row.rule_id,
        row.version,
        row.name,
        row.kind,
        json.dumps(row.scope),
        json.dumps(row.parameters),
        row.level,
        list(row.channels),
        json.dumps(row.actions),
        row.renotify_s,
        row.active,
        row.created_at,
        row.updated_at,
    )


async def delete(connection: Connection, org: str, rule_id: str) -> None:
    """Take a rule away."""
    await connection.execute(_SQL["delete"], org, rule_id)


async def named(connection: Connection, org: str, name: str) -> AlertRuleRow | None:
    """The rule of a name."""
    record = await connection.fetchrow(_SQL["named"], org, name)
    return _row(record) if record else None


async def count(connection: Connection, org: str) -> int:
    """How many rules an org has."""
    return await connection.fetchval(_SQL["count"], org)


async def active(connection: Connection, org: str) -> list[AlertRuleRow]:
    """The rules in force, by name."""
    return [_row(record) for record in await connection.fetch(_SQL["active"], org)]


async def listing(
    connection: Connection, org: str, *, kind: str | None, active: bool | None, after_name: str, limit: int
) -> list[AlertRuleRow]:
    """Rules by name, after ``after_name``."""
    return [_row(r) for r in await connection.fetch(_SQL["listing"], org, kind, active, after_name, limit)]
