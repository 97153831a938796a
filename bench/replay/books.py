"""The books, added up anew from PostgreSQL by plain SQL, without the service: what must be equal, and by how much not.

Reads only. Must never ask the service: a mistake in its own sums would go unseen.
"""

from dataclasses import dataclass
from typing import Any

import asyncpg

RUN = """
SELECT count(*) AS events, count(DISTINCT id) AS ids, coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
       coalesce(sum(completion_tokens), 0)::bigint AS completion_tokens, coalesce(sum(cost), 0)::bigint AS cost,
       count(*) FILTER (WHERE cost IS NULL) AS unpriced, count(*) FILTER (WHERE status <> 'ok') AS errors,
       count(*) FILTER (WHERE reserved) AS reserved_events
FROM usage_event WHERE org_id = $1 AND session_id = $2
"""
EVENTS = """
SELECT count(*) AS requests, coalesce(sum(cost), 0)::bigint AS cost,
       coalesce(sum(prompt_tokens + completion_tokens), 0)::bigint AS tokens
FROM usage_event WHERE org_id = $1
"""
ROLLUPS = """
SELECT coalesce(sum(requests), 0)::bigint AS requests, coalesce(sum(cost), 0)::bigint AS cost,
       coalesce(sum(prompt_tokens + completion_tokens), 0)::bigint AS tokens
FROM usage_rollup WHERE org_id = $1
"""
# What a window must hold: the charges stored with the events, what was presumed of expired reservations, what a
# backfill brought; and what the live reservations hold in it.
WINDOWS = """
WITH charged AS (
    SELECT w AS window_id, sum(a)::bigint AS amount
    FROM usage_event e, unnest(e.charge_windows, e.charge_amounts) AS c (w, a) WHERE e.org_id = $1 GROUP BY w
), held AS (
    SELECT w AS window_id, coalesce(sum(a) FILTER (WHERE r.status = 'live'), 0)::bigint AS live,
           coalesce(sum(a) FILTER (WHERE r.presumed), 0)::bigint AS presumed
    FROM reservation r, unnest(r.window_ids, r.held) AS c (w, a)
    WHERE r.org_id = $1 AND (r.status = 'live' OR r.presumed) GROUP BY w
)
SELECT b.name, b.unit, w.entity_id, w.starts_at, w.spent, w.reserved, w.overrun, w.high_limit,
       w.backfilled + coalesce(charged.amount, 0) + coalesce(held.presumed, 0) AS spent_by_events,
       coalesce(held.live, 0) AS reserved_by_reservations
FROM budget_window w
JOIN budget b USING (org_id, budget_id)
LEFT JOIN charged USING (window_id)
LEFT JOIN held USING (window_id)
WHERE w.org_id = $1 ORDER BY b.name, w.starts_at, w.entity_id
"""


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Requests, cost in nanos and tokens, added up one way."""

    requests: int
    cost: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """What PostgreSQL holds of one run; cost in nanos."""

    events: int
    ids: int
    prompt_tokens: int
    completion_tokens: int
    cost: int
    unpriced: int
    errors: int
    reserved_events: int


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window and what it should hold, in its budget's own unit (nanos for cost)."""

    name: str
    unit: str
    entity_id: str
    spent: int
    reserved: int
    overrun: int
    high_limit: int | None
    spent_by_events: int
    reserved_by_reservations: int

    @property
    def equal(self) -> bool:
        """Whether its sums are those of the rows they stand for, and P1 holds."""
        within = self.high_limit is None or self.spent - self.overrun + self.reserved <= self.high_limit
        return within and self.spent == self.spent_by_events and self.reserved == self.reserved_by_reservations


@dataclass(frozen=True, kw_only=True)
class Books:
    """One consistent look at the whole org and at one run of it."""

    run: Run
    events: Sums
    rollups: Sums
    windows: tuple[Window, ...]

    @property
    def equal(self) -> bool:
        """Whether events = rollups = windows, to the nano."""
        return self.events == self.rollups and all(window.equal for window in self.windows)


async def read_books(database_url: str, *, org: str, run_id: str) -> Books:
    """Add up everything in one read-only snapshot. Raises what asyncpg raises."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return Books(
                run=Run(**await _one(connection, RUN, org, run_id)),
                events=Sums(**await _one(connection, EVENTS, org)),
                rollups=Sums(**await _one(connection, ROLLUPS, org)),
                windows=tuple([_window(row) for row in await connection.fetch(WINDOWS, org)]),
            )
    finally:
        await connection.close()


async def _one(connection: Any, query: str, *arguments: str) -> dict[str, int]:
    return dict(await connection.fetchrow(query, *arguments))


def _window(row: Any) -> Window:
    fields: dict[str, Any] = dict(row)
    fields.pop("starts_at")
    return Window(**fields)
