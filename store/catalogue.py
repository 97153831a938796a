"""What else an org's decisions are made from besides its budgets: approved overrides, brakes, the directory.

Whoever changes any of these holds the exclusive catalogue lock and bumps the version (R1, R2).
"""

from dataclasses import dataclass
from datetime import datetime

from store.pool import Connection
from store.sql import queries

_SQL = queries("catalogue")


@dataclass(frozen=True, slots=True)
class Raise:
    """An approved override: ``amount`` more, in the budget's unit, in [``starts_at``, ``ends_at``)."""

    override_id: str
    budget_id: str
    entity_id: str
    amount: int
    starts_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class Brake:
    """A kill switch that is on; ``scope`` is org, team, model or provider."""

    scope: str
    entity_id: str
    reason: str


async def load_raises(connection: Connection, org: str) -> list[Raise]:
    """Approved overrides that have not ended."""
    return [Raise(str(r[0]), str(r[1]), *r[2:]) for r in map(tuple, await connection.fetch(_SQL["overrides"], org))]


async def load_brakes(connection: Connection, org: str) -> list[Brake]:
    """Every brake that is on."""
    return [Brake(*record) for record in await connection.fetch(_SQL["brakes"], org)]


async def load_members(connection: Connection, org: str) -> dict[str, tuple[str, ...]]:
    """The teams of each user in the directory."""
    return {r["user_id"]: tuple(r["teams"]) for r in await connection.fetch(_SQL["members"], org)}
