-- name: insert
INSERT INTO alert (org_id, alert_id, dedup_key, kind, level, title, message, rule, rule_ids, budget_id, window_id,
    entity_id, details, created_at, notified_at, renotify_at, ended_at)
SELECT $1, n.alert_id, n.dedup_key, n.kind, n.level, n.title, n.message, n.rule, n.rule_ids::uuid[], n.budget_id,
    n.window_id, n.entity_id, n.details::jsonb, n.created_at, n.notified_at, n.renotify_at, n.ended_at
FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::uuid[], $11::bigint[], $12::text[], $13::text[], $14::timestamptz[], $15::timestamptz[], $16::timestamptz[],
    $17::timestamptz[]) WITH ORDINALITY
    AS n (alert_id, dedup_key, kind, level, title, message, rule, rule_ids, budget_id, window_id, entity_id, details,
    created_at, notified_at, renotify_at, ended_at, i)
ORDER BY n.i
ON CONFLICT (org_id, dedup_key) DO NOTHING
RETURNING alert_id

-- name: find
SELECT * FROM alert WHERE org_id = $1 AND alert_id = $2

-- name: lock
SELECT * FROM alert WHERE org_id = $1 AND alert_id = $2 FOR UPDATE

-- name: acknowledge
UPDATE alert SET acknowledged_by = $3, acknowledged_at = $4, comment = $5, renotify_at = NULL
WHERE org_id = $1 AND alert_id = $2

-- name: listing
SELECT * FROM alert
WHERE org_id = $1 AND ($2::text IS NULL OR level = $2) AND ($3::text IS NULL OR kind = $3)
  AND ($4::uuid IS NULL OR budget_id = $4) AND ($5::boolean IS NULL OR (acknowledged_at IS NOT NULL) = $5)
  AND ($6::timestamptz IS NULL OR (created_at, alert_id) < ($6, $7::uuid))
ORDER BY created_at DESC, alert_id DESC LIMIT $8

-- name: orgs_with_work
SELECT org_id FROM (
    SELECT org_id FROM alert_rule WHERE active AND kind IN ('hourly_rate', 'absolute_tokens', 'pacing')
    UNION SELECT org_id FROM alert WHERE renotify_at IS NOT NULL AND renotify_at <= ledger_clock()
    UNION SELECT org_id FROM alert_action
        WHERE status IN ('pending', 'active') AND (status = 'pending' OR ends_at <= ledger_clock())
) work WHERE org_id > $1 ORDER BY org_id LIMIT $2

-- name: try_lock
SELECT pg_try_advisory_xact_lock(hashtextextended('alerts:' || $1::text, 0))

-- name: open_of
SELECT * FROM alert WHERE org_id = $1 AND rule_ids @> ARRAY[$2::uuid] AND ended_at IS NULL ORDER BY created_at

-- name: end
UPDATE alert SET ended_at = $3, renotify_at = NULL WHERE org_id = $1 AND alert_id = ANY ($2::uuid[])

-- name: end_watched
UPDATE alert SET ended_at = $3, renotify_at = NULL
WHERE org_id = $1 AND rule_ids @> ARRAY[$2::uuid] AND ended_at IS NULL AND window_id IS NULL

-- name: due_again
SELECT * FROM alert WHERE org_id = $1 AND renotify_at <= $2 AND acknowledged_at IS NULL
ORDER BY renotify_at LIMIT $3 FOR UPDATE SKIP LOCKED

-- name: told_again
UPDATE alert SET notified_at = $3, renotify_at = $4 WHERE org_id = $1 AND alert_id = $2
