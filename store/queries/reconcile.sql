-- name: events
-- Everything that was ever counted, by currency: events, and what adjustments posted.
SELECT currency, count(*) FILTER (WHERE adjustment_id IS NULL) AS events, count(DISTINCT adjustment_id) AS adjustments,
    coalesce(sum(requests), 0)::bigint AS requests,
    coalesce(sum(prompt_tokens + completion_tokens), 0)::bigint AS tokens, coalesce(sum(cost), 0)::bigint AS cost,
    coalesce(sum(coalesce(list_cost, cost)), 0)::bigint AS list_cost
FROM usage_posting WHERE org_id = $1 GROUP BY currency ORDER BY currency

-- name: rollups
SELECT currency, 0::bigint AS events, 0::bigint AS adjustments, sum(requests)::bigint AS requests,
    sum(prompt_tokens + completion_tokens)::bigint AS tokens, sum(cost)::bigint AS cost,
    sum(list_cost)::bigint AS list_cost
FROM usage_rollup WHERE org_id = $1 GROUP BY currency ORDER BY currency

-- name: windows
-- What windows say beside what their events, adjustments and reservations add up to. Charges to a window that is gone differ, too.
WITH parts AS (
    SELECT window_id, spent, backfilled AS charged, reserved, 0::bigint AS held FROM budget_window WHERE org_id = $1
    UNION ALL
    SELECT c.window_id, 0, c.amount, 0, 0
    FROM usage_event e, unnest(e.charge_windows, e.charge_amounts) AS c (window_id, amount) WHERE e.org_id = $1
    UNION ALL
    SELECT c.window_id, 0, c.amount, 0, 0
    FROM adjustment a, unnest(a.charge_windows, a.charge_amounts) AS c (window_id, amount) WHERE a.org_id = $1
    UNION ALL
    SELECT c.window_id, 0, c.amount, 0, 0
    FROM reservation r, unnest(r.window_ids, r.held) AS c (window_id, amount) WHERE r.org_id = $1 AND r.presumed
    UNION ALL
    SELECT c.window_id, 0, 0, 0, c.amount
    FROM reservation r, unnest(r.window_ids, r.held) AS c (window_id, amount)
    WHERE r.org_id = $1 AND r.status = 'live'
), summed AS (
    SELECT window_id, sum(spent) AS spent, sum(charged) AS charged, sum(reserved) AS reserved, sum(held) AS held
    FROM parts GROUP BY window_id
)
SELECT count(w.window_id) AS checked,
    count(*) FILTER (WHERE s.spent <> s.charged OR s.reserved <> s.held) AS differing,
    coalesce(sum(s.spent) FILTER (WHERE b.unit = 'cost' AND b.currency = 'USD'), 0) AS spent,
    coalesce(sum(s.charged) FILTER (WHERE b.unit = 'cost' AND b.currency = 'USD'), 0) AS charged,
    coalesce(sum(s.reserved) FILTER (WHERE b.unit = 'cost' AND b.currency = 'USD'), 0) AS reserved,
    coalesce(sum(s.held) FILTER (WHERE b.unit = 'cost' AND b.currency = 'USD'), 0) AS held
FROM summed s
LEFT JOIN budget_window w ON w.org_id = $1 AND w.window_id = s.window_id
LEFT JOIN budget b ON b.org_id = $1 AND b.budget_id = w.budget_id
