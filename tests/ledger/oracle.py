"""The promises as SQL over the whole ledger of an org, knowing nothing of the code that keeps it.

Each query returns the rows that break its promise. All run in one snapshot, so they may run while agents work.
"""

from collections.abc import Mapping
from typing import Any, Final

import asyncpg

from store.pool import Connection

_DIMENSIONS: Final = """provider, model, user_id, team_id, project_id, feature, agent_id, environment, cost_center,
    service_tier, status, cost_status, currency, reserved"""

# What an event takes from a budget, in its unit.
_AMOUNT: Final = """CASE b.unit WHEN 'cost' THEN coalesce(e.cost, 0)
    WHEN 'tokens' THEN e.prompt_tokens + e.completion_tokens ELSE e.final::integer END"""

_ENTITY: Final = """CASE b.type WHEN 'global' THEN '*' WHEN 'team' THEN e.team_id WHEN 'user' THEN e.user_id
    WHEN 'project' THEN e.project_id WHEN 'feature' THEN e.feature WHEN 'agent' THEN e.agent_id
    WHEN 'session' THEN e.session_id WHEN 'task' THEN e.task_id WHEN 'environment' THEN e.environment
    WHEN 'cost_center' THEN e.cost_center END"""

_CHARGES: Final = """usage_event e
    CROSS JOIN LATERAL unnest(e.charge_windows, e.charge_amounts) AS c (window_id, amount)"""

_TOLD: Final = """(SELECT org_id, event, convert_from(payload, 'UTF8')::jsonb -> 'data' AS data FROM outbox) o
    JOIN budget_window w ON w.org_id = o.org_id AND w.budget_id = (o.data #>> '{window,budget_id}')::uuid
     AND w.entity_id = o.data #>> '{window,entity_id}'
     AND w.starts_at = (o.data #>> '{window,window_start}')::timestamptz"""

# Holds only where every budget was active all the time; budgets with filters are left out.
COMPLETE: Final = "P4 every budget that matches an event is charged"

PROMISES: Final[dict[str, str]] = {
    COMPLETE: f"""
    SELECT e.id, b.name FROM usage_event e JOIN budget b ON b.org_id = e.org_id
    WHERE e.org_id = $1 AND b.active AND b.filters = '{{}}' AND e.charged_at >= b.counting_since AND {_AMOUNT} > 0
      AND {_ENTITY} IS NOT NULL AND (b.entity_id = '*' OR b.entity_id = {_ENTITY})
      AND NOT EXISTS (SELECT FROM budget_window w WHERE w.org_id = e.org_id AND w.budget_id = b.budget_id
                      AND w.window_id = ANY (e.charge_windows))""",
    "P1 a blocking window never holds more than its highest limit, except what is booked as overrun": """
        SELECT w.* FROM budget_window w JOIN budget b USING (org_id, budget_id)
        WHERE w.org_id = $1 AND b.enforcement = 'block'
          AND (w.high_limit IS NULL OR w.spent - w.overrun + w.reserved > w.high_limit)""",
    "P1 no sum is negative, no overrun larger than what was spent": """
        SELECT * FROM budget_window
        WHERE org_id = $1 AND (least(spent, reserved, overrun, carry) < 0 OR overrun > spent)""",
    "told: every overrun": f"""
        SELECT w.window_id, w.overrun, t.told FROM budget_window w LEFT JOIN (
            SELECT w.window_id, sum((o.data ->> 'amount')::numeric
                * CASE WHEN o.data #>> '{{window,unit}}' = 'cost' THEN 1000000000 ELSE 1 END) AS told
            FROM {_TOLD} WHERE o.org_id = $1 AND o.event = 'budget.overrun' GROUP BY 1) t USING (window_id)
        WHERE w.org_id = $1 AND w.backfilled = 0 AND w.overrun > coalesce(t.told, 0)""",
    "P2 every id that was taken has its one event, and every event its id": """
        SELECT i.id, count(e.id) FROM usage_id i FULL JOIN usage_event e USING (org_id, id)
        WHERE org_id = $1 GROUP BY i.id HAVING i.id IS NULL OR count(e.id) <> 1""",
    "P3 reserved is the sum of what live reservations hold": """
        SELECT w.window_id, w.reserved, l.held FROM budget_window w LEFT JOIN (
            SELECT r.org_id, h.window_id, sum(h.held) AS held FROM reservation r
            CROSS JOIN LATERAL unnest(r.window_ids, r.held) AS h (window_id, held)
            WHERE r.org_id = $1 AND r.status = 'live' GROUP BY 1, 2) l USING (org_id, window_id)
        WHERE w.org_id = $1 AND w.reserved <> coalesce(l.held, 0)""",
    "P3 a reservation is open or closed, and names each window once": """
        SELECT * FROM reservation r WHERE org_id = $1 AND (
            (status = 'live') <> (closed_at IS NULL) OR (presumed AND status <> 'expired') OR expires_at <= decided_at
            OR (superseded AND status NOT IN ('released', 'expired'))
            OR cardinality(window_ids) <> cardinality(held)
            OR cardinality(window_ids) <> (SELECT count(DISTINCT x) FROM unnest(window_ids) x)
            OR EXISTS (SELECT FROM unnest(held) h WHERE h < 0))""",
    "P3 a hold lies in the window of its decision": """
        SELECT r.reservation_id, w.* FROM reservation r CROSS JOIN LATERAL unnest(r.window_ids) AS h (window_id)
        LEFT JOIN budget_window w ON w.org_id = r.org_id AND w.window_id = h.window_id
        WHERE r.org_id = $1 AND (w.window_id IS NULL OR r.decided_at < w.starts_at OR r.decided_at >= w.ends_at)""",
    "P4 spent is what was backfilled, charged by events, and presumed": f"""
        SELECT w.window_id, w.spent, w.backfilled, c.charged, p.presumed FROM budget_window w
        LEFT JOIN (SELECT c.window_id, sum(c.amount) AS charged FROM {_CHARGES} WHERE e.org_id = $1 GROUP BY 1) c
            USING (window_id)
        LEFT JOIN (SELECT h.window_id, sum(h.held) AS presumed FROM reservation r
                JOIN LATERAL unnest(r.window_ids, r.held) AS h (window_id, held) ON true
                WHERE r.org_id = $1 AND r.status = 'expired' AND r.presumed GROUP BY 1) p USING (window_id)
        WHERE w.org_id = $1 AND w.spent <> w.backfilled + coalesce(c.charged, 0) + coalesce(p.presumed, 0)""",
    "P4 a charge is the event's amount in the budget's unit, in the window of its time and entity": f"""
        SELECT e.id, c.*, w.starts_at, b.name FROM {_CHARGES}
        LEFT JOIN budget_window w ON w.org_id = e.org_id AND w.window_id = c.window_id
        LEFT JOIN budget b ON b.org_id = w.org_id AND b.budget_id = w.budget_id
        WHERE e.org_id = $1 AND (b.name IS NULL OR c.amount <> {_AMOUNT} OR e.charged_at < w.starts_at
            OR e.charged_at >= w.ends_at OR e.charged_at < b.counting_since
            OR w.entity_id IS DISTINCT FROM {_ENTITY} OR b.entity_id NOT IN ('*', w.entity_id))""",
    "P4 an event is charged at its reservation's decision, else at its own time, else at its arrival": """
        SELECT e.id, e.charged_at, r.decided_at FROM usage_event e
        LEFT JOIN reservation r ON r.org_id = e.org_id AND r.reservation_id = e.reservation_id
        WHERE e.org_id = $1 AND e.charged_at IS DISTINCT FROM CASE WHEN e.reserved THEN r.decided_at
            WHEN e.timestamp >= e.arrived_at - interval '35 days' THEN e.timestamp ELSE e.arrived_at END""",
    "P4 a cost is its line items, and they are tokens times their rates, rounded once": """
        SELECT e.id, e.cost, s.* FROM usage_event e CROSS JOIN LATERAL (
            SELECT coalesce(sum((i ->> 3)::numeric), 0) AS cost,
                   coalesce(sum((i ->> 1)::numeric * (i ->> 2)::numeric), 0) AS scaled,
                   coalesce(sum((i ->> 1)::numeric) FILTER (WHERE i ->> 0 NOT IN ('web_search', 'request')), 0) AS n
            FROM jsonb_array_elements(e.line_items) i) s
        WHERE e.org_id = $1 AND ((e.cost_status = 'priced') <> (e.cost IS NOT NULL) OR e.cost IS NOT NULL AND (
            e.cost <> s.cost OR s.n <> e.prompt_tokens + e.completion_tokens
            OR abs(e.cost::numeric * 1000000 - s.scaled) > 500000
            OR abs(e.cost::numeric * 1000000 - s.scaled) = 500000 AND e.cost % 2 = 1))""",
    "P4 rollups are the sums of events": f"""
        WITH event AS (
            SELECT date_bin('15 minutes', "timestamp", '2000-01-01T00:00Z') AS bucket, {_DIMENSIONS},
                sum(final::integer)::bigint, sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint,
                sum(cache_read_tokens)::bigint, sum(cache_write_tokens)::bigint, sum(reasoning_tokens)::bigint,
                coalesce(sum(cost), 0)::bigint, count(latency_ms),
                coalesce(sum(round(latency_ms * 1000)), 0)::bigint, count(*)::numeric
            FROM usage_event WHERE org_id = $1 GROUP BY bucket, {_DIMENSIONS}),
        rolled AS (
            SELECT bucket, {_DIMENSIONS}, requests, prompt_tokens, completion_tokens, cache_read_tokens,
                cache_write_tokens, reasoning_tokens, cost, latency_count, latency_us_sum,
                (SELECT sum(n) FROM unnest(size_histogram) n)
            FROM usage_rollup WHERE org_id = $1)
        (SELECT 'only in events' AS lies, * FROM (TABLE event EXCEPT ALL TABLE rolled) x) UNION ALL
        (SELECT 'only in rollups', * FROM (TABLE rolled EXCEPT ALL TABLE event) x)""",
    "told: a threshold once per window, and it is remembered": f"""
        SELECT coalesce(t.window_id, f.window_id), t.threshold, f.threshold, t.told, f.fired FROM
            (SELECT w.window_id, (o.data ->> 'threshold')::integer AS threshold, count(*) AS told
             FROM {_TOLD} WHERE o.org_id = $1 AND o.event = 'budget.threshold' GROUP BY 1, 2) t
        FULL JOIN (SELECT window_id, threshold, count(*) AS fired
             FROM budget_window, unnest(thresholds_fired) AS threshold WHERE org_id = $1 GROUP BY 1, 2) f
            USING (window_id, threshold)
        WHERE (t.told, f.fired) IS DISTINCT FROM (1, 1)""",
    "told: exceeded once per window": f"""
        SELECT w.window_id, w.exceeded_at, t.told FROM budget_window w LEFT JOIN (
            SELECT w.window_id, count(*) AS told FROM {_TOLD}
            WHERE o.org_id = $1 AND o.event = 'budget.exceeded' GROUP BY 1) t USING (window_id)
        WHERE w.org_id = $1 AND coalesce(t.told, 0) <> (w.exceeded_at IS NOT NULL)::integer""",
}


async def violations(
    connection: Connection, org: str, *, complete: bool = True, told: bool = True
) -> dict[str, list[Mapping[str, Any]]]:
    """The promises that do not hold, with the rows that break them, in one snapshot.

    ``complete``: no budget was ever inactive. ``told``: the outbox is the whole history, no relay ran.
    """
    promises = {name: sql for name, sql in PROMISES.items() if told or not name.startswith("told")}
    if not complete:
        del promises[COMPLETE]
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await broken(connection, org, promises)


async def broken(
    connection: Connection, org: str, promises: Mapping[str, str] = PROMISES
) -> dict[str, list[Mapping[str, Any]]]:
    """The same inside a transaction that is open already."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for promise, sql in promises.items():
        try:
            rows = await connection.fetch(sql, org)
        except asyncpg.PostgresError as error:
            raise AssertionError(f"{promise}: {error}") from error
        if rows:
            found[promise] = [dict(row) for row in rows]
    return found
