"""Sums of ``usage_rollup`` by feature and model: what the money of one window went to. Reads no single event."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any, Final

import asyncpg

from store.budgets import BudgetRow
from store.exchange import rate_columns
from store.pool import Connection
from store.sql import like_pattern, queries
from store.windows import FILTER_FIELDS

_SQL = queries("spend")
# A rollup knows every attribute but these.
_NOT_ROLLED_UP: Final = ("session", "task")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpend:
    """Tokens (inclusive totals) and cost in nanos of one feature on one model."""

    feature: str | None
    provider: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: int
    unreserved_cost: int


async def by_feature(
    connection: Connection,
    budget: BudgetRow,
    *,
    entity_id: str,
    starts_at: datetime,
    ends_at: datetime | None,
    rates: Mapping[str, Fraction],
    limit: int,
) -> list[FeatureSpend]:
    """What calls that a budget counts for an entity cost in [starts_at, ends_at), the costliest ``limit`` sums.

    ``rates`` is what one unit of each currency is in that of the sums; costs in others are left out.

    Nothing for budgets of sessions and tasks, which rollups do not know. Quarter hours are counted whole.
    """
    if budget.type in _NOT_ROLLED_UP:
        return []
    patterns = {name: like_pattern(pattern) for name, pattern in budget.filters.items()}
    records = await connection.fetch(
        _SQL["by_feature"],
        *(budget.org_id, budget.type, entity_id, starts_at, ends_at),
        *[patterns.get(name) for name in FILTER_FIELDS],
        limit,
        *rate_columns(rates),
    )
    return [_row(record) for record in records]


def _row(record: asyncpg.Record) -> FeatureSpend:
    values: dict[str, Any] = dict(record)
    for name in ("cost", "unreserved_cost"):
        values[name] = int(values[name])
    return FeatureSpend(**values)
