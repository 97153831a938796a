-- name: open_admission
SELECT * FROM admission_open($1, $2, $3)

-- name: lock
SELECT * FROM budget_window WHERE org_id = $1 AND window_id = ANY ($2::bigint[]) ORDER BY window_id FOR UPDATE

-- name: by_id
SELECT * FROM budget_window WHERE org_id = $1 AND window_id = ANY ($2::bigint[])

-- name: write_sums
UPDATE budget_window w
SET spent = n.spent, reserved = n.reserved, overrun = n.overrun, high_limit = n.high_limit
FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
    AS n (window_id, spent, reserved, overrun, high_limit)
WHERE w.org_id = $1 AND w.window_id = n.window_id

-- name: mark_fired
UPDATE budget_window SET thresholds_fired = thresholds_fired || $3::integer[] WHERE org_id = $1 AND window_id = $2

-- name: mark_exceeded
UPDATE budget_window SET exceeded_at = ledger_clock()
WHERE org_id = $1 AND window_id = ANY ($2::bigint[]) AND exceeded_at IS NULL
RETURNING window_id

-- name: add_shadow_denied
UPDATE budget_window w SET shadow_denied = w.shadow_denied + n.more
FROM unnest($2::bigint[], $3::bigint[]) AS n (window_id, more)
WHERE w.org_id = $1 AND w.window_id = n.window_id

-- name: find
SELECT w.* FROM budget_window w
JOIN unnest($2::uuid[], $3::text[], $4::timestamptz[]) AS k (budget_id, entity_id, starts_at)
  ON w.budget_id = k.budget_id AND w.entity_id = k.entity_id AND w.starts_at = k.starts_at
WHERE w.org_id = $1

-- name: lock_before
SELECT w.*, k.starts_at AS before FROM unnest($2::uuid[], $3::text[], $4::timestamptz[]) AS k (budget_id, entity_id, starts_at)
CROSS JOIN LATERAL (
    SELECT l.window_id FROM budget_window l
    WHERE l.org_id = $1 AND l.budget_id = k.budget_id AND l.entity_id = k.entity_id AND l.starts_at < k.starts_at
    ORDER BY l.starts_at DESC LIMIT 1) last
JOIN budget_window w ON w.org_id = $1 AND w.window_id = last.window_id
ORDER BY w.window_id FOR UPDATE OF w

-- name: latest_before
SELECT * FROM budget_window
WHERE org_id = $1 AND budget_id = $2 AND entity_id = $3 AND starts_at < $4
ORDER BY starts_at DESC LIMIT 1

-- name: create
INSERT INTO budget_window (org_id, budget_id, entity_id, starts_at, ends_at, carry, high_limit, backfilled, spent, overrun,
    fx_revision)
SELECT $1, n.budget_id, n.entity_id, n.starts_at, n.ends_at, n.carry, n.high_limit, n.backfilled, n.backfilled, n.overrun,
    coalesce(n.fx_revision, (SELECT max(revision) FROM exchange_rate WHERE org_id IN ('', $1)), 0)
FROM unnest($2::uuid[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::bigint[], $7::bigint[], $8::bigint[],
    $9::bigint[], $10::bigint[]) AS n (budget_id, entity_id, starts_at, ends_at, carry, high_limit, backfilled, overrun,
    fx_revision)
ORDER BY n.budget_id, n.entity_id, n.starts_at
ON CONFLICT (org_id, budget_id, entity_id, starts_at) DO NOTHING
RETURNING *

-- name: analyze
ANALYZE (SKIP_LOCKED) budget_window

-- name: known_entities
SELECT k.budget_id, k.entity_id FROM unnest($2::uuid[], $3::text[]) AS k (budget_id, entity_id)
WHERE EXISTS (SELECT FROM budget_window w
    WHERE w.org_id = $1 AND w.budget_id = k.budget_id AND w.entity_id = k.entity_id)

-- name: lock_new_entities
INSERT INTO new_entity (org_id, hour, count) VALUES ($1, date_trunc('hour', ledger_clock()), 0)
ON CONFLICT (org_id) DO UPDATE SET
    count = CASE WHEN new_entity.hour = excluded.hour THEN new_entity.count ELSE 0 END, hour = excluded.hour
RETURNING count

-- name: add_new_entities
UPDATE new_entity SET count = count + $2 WHERE org_id = $1

-- name: of_budget
SELECT * FROM budget_window
WHERE org_id = $1 AND budget_id = $2 AND starts_at <= $3 AND (ends_at IS NULL OR ends_at > $3)
ORDER BY entity_id LIMIT $4

-- name: set_blocking
UPDATE budget_window
SET high_limit = CASE WHEN $3::bigint IS NULL THEN NULL ELSE greatest($3 + carry, spent - overrun + reserved) END
WHERE org_id = $1 AND budget_id = $2

-- name: charged
-- What applied events of a window took, adjustments included, by entity; those after its end (at most minutes ahead) by minute.
-- A cost is converted by itself and rounded once, as it would have been when it was charged.
SELECT entity_id, later_at, coalesce(sum(amount), 0) AS amount,
    coalesce(array_agg(DISTINCT currency) FILTER (WHERE amount IS NULL), '{}') AS lacking
FROM (
    SELECT CASE $2 WHEN 'global' THEN '*' WHEN 'team' THEN team_id WHEN 'user' THEN user_id
            WHEN 'project' THEN project_id WHEN 'feature' THEN feature WHEN 'agent' THEN agent_id
            WHEN 'session' THEN session_id WHEN 'task' THEN task_id WHEN 'environment' THEN environment
            WHEN 'cost_center' THEN cost_center END AS entity_id,
        CASE $4 WHEN 'cost' THEN CASE WHEN coalesce(cost, 0) = 0 THEN 0::numeric
                ELSE half_even(cost * r.numerator, r.denominator) END
            WHEN 'tokens' THEN prompt_tokens + completion_tokens
            ELSE requests END AS amount,
        CASE WHEN charged_at >= $6 THEN date_trunc('minute', charged_at) END AS later_at, currency
    FROM usage_posting
    LEFT JOIN unnest($12::text[], $13::numeric[], $14::numeric[]) AS r (code, numerator, denominator)
        ON r.code = currency
    WHERE org_id = $1 AND charged_at >= $5
      AND ($7::text IS NULL OR provider LIKE $7) AND ($8::text IS NULL OR model LIKE $8)
      AND ($9::text IS NULL OR feature LIKE $9) AND ($10::text IS NULL OR environment LIKE $10)
      AND ($11::text IS NULL OR agent_id LIKE $11)
) e
WHERE entity_id IS NOT NULL AND ($3 = '*' OR entity_id = $3)
GROUP BY entity_id, later_at HAVING sum(amount) > 0 OR bool_or(amount IS NULL)
ORDER BY entity_id, later_at
