"""Rows of ``budget`` and the catalogue lock. A catalogue is everything of an org that decisions are made from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg

from store.pool import Connection
from store.sql import queries

_SQL = queries("budgets")
BLOCKING: Final = ("block", "downgrade")
# A throttle over one of these periods is the rate itself; over a longer one its rate is a budget of its own.
RATE_PERIODS: Final = ("minute", "hourly")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """A budget as stored. ``base_limit`` is in the unit's integer measure; ``filters`` and policies are plain JSON."""

    org_id: str
    budget_id: str
    version: int
    name: str
    type: str
    entity_id: str
    filters: dict[str, str]
    unit: str
    currency: str | None
    period: str
    timezone: str
    base_limit: int
    overage_percent: int
    enforcement: str
    alert_thresholds: tuple[int, ...]
    rollover_policy: str
    rollover_percent: int
    override_policy: dict[str, Any]
    on_expiry: str
    preferred_models: tuple[str, ...]
    fallback_model: str | None
    active: bool
    counting_since: datetime
    created_at: datetime
    updated_at: datetime
    gate_id: str | None = None
    deleted_at: datetime | None = None
    managed: bool = False

    @property
    def blocking(self) -> bool:
        """Whether its windows never hold more than their limit: it refuses whatever does not fit.

        A throttle over a longer period is only the gate of its rate, and what has a gate binds now and then.
        """
        if self.enforcement == "throttle":
            return self.period in RATE_PERIODS and self.gate_id is None
        return self.enforcement in BLOCKING and self.gate_id is None


def _row(record: asyncpg.Record) -> BudgetRow:
    values = dict(record)
    values["budget_id"] = str(values["budget_id"])
    values["gate_id"] = None if values["gate_id"] is None else str(values["gate_id"])
    for name in ("filters", "override_policy"):
        values[name] = json.loads(values[name])
    for name in ("alert_thresholds", "preferred_models"):
        values[name] = tuple(values[name])
    return BudgetRow(**values)


async def lock_shared(connection: Connection, org: str) -> int:
    """Take the org's catalogue lock as a reader; returns the catalogue version (R1, R2)."""
    await connection.execute(_SQL["lock_shared"], org)
    return await version(connection, org)


async def lock_exclusive(connection: Connection, org: str) -> None:
    """Take the org's catalogue lock as a changer: no decision runs until this transaction ends."""
    await connection.execute(_SQL["lock_exclusive"], org)


async def version(connection: Connection, org: str) -> int:
    """The catalogue's version; 0 before the first change."""
    return await connection.fetchval(_SQL["version"], org) or 0


async def bump(connection: Connection, org: str) -> int:
    """Mark the catalogue as changed. The exclusive lock is held."""
    return await connection.fetchval(_SQL["bump"], org)


async def orgs(connection: Connection, limit: int) -> list[str]:
    """Orgs that have anything to decide from, those that changed most often first."""
    return [record["org_id"] for record in await connection.fetch(_SQL["orgs"], limit)]


async def clock(connection: Connection) -> datetime:
    """PostgreSQL's clock, the only one that decides (R3)."""
    return await connection.fetchval("SELECT ledger_clock()")


async def load(connection: Connection, org: str) -> list[BudgetRow]:
    """Every budget of the org, inactive and deleted ones included."""
    return [_row(record) for record in await connection.fetch(_SQL["load"], org)]


async def load_settings(connection: Connection, org: str) -> dict[str, Any]:
    """The org's settings by key."""
    return {row["key"]: json.loads(row["value"]) for row in await connection.fetch(_SQL["load_settings"], org)}


async def put_setting(connection: Connection, org: str, key: str, value: Any) -> None:
    """Store one setting. The exclusive lock is held and the catalogue bumped by the caller."""
    await connection.execute(_SQL["put_setting"], org, key, json.dumps(value))


async def find(connection: Connection, org: str, budget_id: str) -> BudgetRow | None:
    """One budget."""
    record = await connection.fetchrow(_SQL["find"], org, budget_id)
    return _row(record) if record else None


async def some(connection: Connection, org: str, budget_ids: Sequence[str]) -> list[BudgetRow]:
    """Those of these budgets that there are."""
    return [_row(record) for record in await connection.fetch(_SQL["some"], org, budget_ids)]


async def insert(connection: Connection, row: BudgetRow) -> None:
    """Store a new budget. Raises asyncpg.UniqueViolationError where the name is taken."""
    await connection.execute(_SQL["insert"], *_values(row))


async def update(connection: Connection, row: BudgetRow) -> None:
    """Store the changeable fields of a budget, with its new version."""
    values = _values(row)
    await connection.execute(_SQL["update"], *values)


def _values(row: BudgetRow) -> list[Any]:
    return [
        row.org_id,
        row.budget_id,
        row.version,
        row.name,
        row.type,
        row.entity_id,
        json.dumps(row.filters),
        row.unit,
        row.currency,
        row.period,
        row.timezone,
        row.base_limit,
        row.overage_percent,
        row.enforcement,
        list(row.alert_thresholds),
        row.rollover_policy,
        row.rollover_percent,
        json.dumps(row.override_policy),
        row.on_expiry,
        list(row.preferred_models),
        row.fallback_model,
        row.active,
        row.counting_since,
        row.created_at,
        row.updated_at,
        row.gate_id,
        row.deleted_at,
        row.managed,
    ]


async def listing(
    connection: Connection,
    org: str,
    *,
    type_: str | None,
    entity_ids: Sequence[str] | None,
    active: bool | None,
    deleted: bool,
    after: tuple[str, str],
    limit: int,
) -> list[BudgetRow]:
    """Budgets by name and id, after that name and id; with ``deleted`` also those that were deleted."""
    records = await connection.fetch(_SQL["listing"], org, type_, entity_ids, active, deleted, *after, limit)
    return [_row(record) for record in records]


async def rates_of(connection: Connection, org: str, budget_ids: Sequence[str]) -> list[BudgetRow]:
    """The budgets whose gate is one of these, deleted ones included, oldest first."""
    return [_row(record) for record in await connection.fetch(_SQL["rates_of"], org, budget_ids)]


async def managed(connection: Connection, org: str) -> list[BudgetRow]:
    """The budgets of the org's policies that are not deleted, with their rates, by name."""
    return [_row(record) for record in await connection.fetch(_SQL["managed"], org)]


async def named(connection: Connection, org: str, names: Sequence[str]) -> list[BudgetRow]:
    """The budgets with these names that are not deleted."""
    return [_row(record) for record in await connection.fetch(_SQL["named"], org, names)]
