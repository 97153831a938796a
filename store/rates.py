"""Sums of ``usage_rollup`` by entity, for rules about how fast something is used. Reads no single event."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from fractions import Fraction

from store.exchange import rate_columns
from store.pool import Connection
from store.sql import like_pattern, queries
from store.windows import FILTER_FIELDS

_SQL = queries("rates")
# A rollup knows every attribute but these.
NOT_ROLLED_UP = ("session", "task")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Calls of one entity of a type (``*``: each for itself) that match filters, summed in ``cost`` or ``tokens``.

    ``rates`` is what one unit of each currency is in that of the sum; costs in others do not count.
    """

    org_id: str
    type: str
    entity_id: str
    filters: dict[str, str]
    unit: str
    rates: Mapping[str, Fraction]

    def args(self) -> list[str | None]:
        """What every statement begins with."""
        patterns = {name: like_pattern(pattern) for name, pattern in self.filters.items()}
        return [self.org_id, self.type, self.entity_id, self.unit, *[patterns.get(name) for name in FILTER_FIELDS]]

    def converting(self) -> list[list[object]]:
        """What every statement ends with."""
        return rate_columns(self.rates)


async def weighted(
    connection: Connection, scope: Scope, *, first: datetime, weight_us: int, of_us: int, least: int, limit: int
) -> dict[str, int]:
    """Sums since the bucket ``first``, of which only ``weight_us / of_us`` counts, by entity: the largest ``limit``
    of those that reach ``least``.
    """
    records = await connection.fetch(
        _SQL["weighted"], *scope.args(), first, weight_us, of_us, least, limit, *scope.converting()
    )
    return {record["entity_id"]: int(record["amount"]) for record in records}


async def between(
    connection: Connection, scope: Scope, *, start: datetime, end: datetime | None, limit: int
) -> dict[str, int]:
    """Sums of the buckets in [start, end) by entity: the largest ``limit``."""
    records = await connection.fetch(_SQL["between"], *scope.args(), start, end, limit, *scope.converting())
    return {record["entity_id"]: int(record["amount"]) for record in records}


async def by_day(
    connection: Connection, scope: Scope, *, start: datetime, end: datetime, timezone: str
) -> dict[date, int]:
    """Sums of the buckets in [start, end) by local day, of all entities of the scope together."""
    records = await connection.fetch(_SQL["by_day"], *scope.args(), start, end, timezone, *scope.converting())
    return {record["day"]: int(record["amount"]) for record in records}


async def windows_ahead(
    connection: Connection,
    org: str,
    budget_id: str,
    *,
    starts_at: datetime,
    rule_id: str,
    elapsed_us: int | None,
    total_us: int,
    base_limit: int,
    limit: int,
) -> list[int]:
    """Ids of the windows of one period of a budget about which ``rule_id`` has raised no pacing alert yet, by entity.

    With ``elapsed_us`` only those that have spent more than the passed part of ``total_us`` allows, linearly.
    """
    args = (org, budget_id, starts_at, rule_id, elapsed_us, total_us, base_limit, limit)
    return [record["window_id"] for record in await connection.fetch(_SQL["windows_ahead"], *args)]
