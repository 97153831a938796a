"""Sums of a period for whoever bears them, and rows of ``allocation_rules``. Costs in nanos of each currency."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import asyncpg

from store.pool import Connection
from store.sql import queries

_SQL = queries("finance")
# The column that names who bears cost, for each way of allocating but by tag.
ENTITY_COLUMN: Final = {
    "team": "team_id",
    "project": "project_id",
    "cost_center": "cost_center",
    "user": "user_id",
    "feature": "feature",
    "environment": "environment",
}
# Columns of shared usage with LIKE patterns; None: the column is empty.
Condition = Mapping[str, str | None]


class BorneSum(NamedTuple):
    """What one entity (None: nobody) used in one currency; ``rule``: the first shared cost it belongs to, from 0."""

    entity: str | None
    rule: int | None
    currency: str
    cost: int
    list_cost: int
    requests: int
    tokens: int
    unpriced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRulesRow:
    """A set of rules as stored; ``rules`` is plain JSON."""

    allocated_by: str
    version: int
    rules: list[dict[str, Any]]
    updated_at: datetime
    updated_by: str


def excluded(conditions: Sequence[Condition], args: list[Any]) -> list[str]:
    """SQL of each condition; patterns go to ``args``. Columns are the contract's own names, never a payload's."""
    found: list[str] = []
    for condition in conditions:
        parts: list[str] = []
        for column, pattern in sorted(condition.items()):
            if pattern is None:
                parts.append(f"{column} IS NULL")
            else:
                args.append(pattern)
                parts.append(f"{column} LIKE ${len(args)}")
        found.append(f"coalesce({' AND '.join(parts)}, false)")
    return found


async def borne(
    connection: Connection,
    org: str,
    *,
    start: datetime,
    end: datetime,
    by: str,
    tag: str | None,
    shared: Sequence[Condition],
    limit: int,
) -> list[BorneSum]:
    """Sums of a half-open period by entity, shared cost and currency; one more than ``limit`` tells there are more.

    From rollups, or, as tags are kept with usage only, from postings; both hold what was adjusted.
    """
    args: list[Any] = [org, start, end, limit + 1]
    entity = ENTITY_COLUMN.get(by, "")
    if by == "tag":
        args.append(tag)
        entity = f"tags ->> ${len(args)}"
    cases = [f"WHEN {sql} THEN {i}" for i, sql in enumerate(excluded(shared, args))]
    rule = f"CASE {' '.join(cases)} END" if cases else "NULL::integer"
    source = _SQL["borne_by_tag" if by == "tag" else "borne"]
    records = await connection.fetch(source.replace("/*entity*/", entity).replace("/*rule*/", rule), *args)
    return [BorneSum(*record) for record in records]


async def rules(
    connection: Connection, org: str, allocated_by: str, *, lock: bool = False
) -> AllocationRulesRow | None:
    """The rules for one way of allocating, locked until the transaction ends where ``lock`` says so."""
    record = await connection.fetchrow(_SQL["lock_rules" if lock else "rules"], org, allocated_by)
    return None if record is None else _rules_row(record)


async def put_rules(connection: Connection, org: str, row: AllocationRulesRow) -> bool:
    """Store rules of version ``row.version``, one above the locked row's; whether nobody else was first."""
    values = (org, row.allocated_by, row.version, json.dumps(row.rules), row.updated_at, row.updated_by)
    return await connection.fetchval(_SQL["put_rules"], *values) is not None


async def list_rules(connection: Connection, org: str, *, after: str, limit: int) -> list[AllocationRulesRow]:
    """Sets of rules, after that way of allocating."""
    return [_rules_row(record) for record in await connection.fetch(_SQL["list_rules"], org, after, limit)]


async def observed_tokens(
    connection: Connection, org: str, *, start: datetime, end: datetime, filters: Mapping[str, str], percentile: float
) -> dict[str, Any]:
    """How many tokens calls had: ``calls`` and, of each count, ``mean_*`` and ``high_*`` at ``percentile`` (0 to 1)."""
    args: list[Any] = [org, start, end, percentile]
    parts: list[str] = []
    for column, pattern in sorted(filters.items()):
        args.append(pattern)
        parts.append(f" AND {column} LIKE ${len(args)}")
    record = await connection.fetchrow(_SQL["observed_tokens"].replace("/*filters*/", "".join(parts)), *args)
    assert record is not None
    return dict(record)


def _rules_row(record: asyncpg.Record) -> AllocationRulesRow:
    values = dict(record)
    return AllocationRulesRow(**{**values, "rules": json.loads(values["rules"])})
