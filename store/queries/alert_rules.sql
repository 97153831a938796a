-- name: put
INSERT INTO alert_rule (org_id, rule_id, version, name, kind, scope, parameters, level, channels, actions, renotify_s,
    active, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, $7::text::jsonb, $8, $9, $10::text::jsonb, $11, $12, $13, $14)
ON CONFLICT (org_id, rule_id) DO UPDATE SET version = excluded.version, kind = excluded.kind, scope = excluded.scope,
    parameters = excluded.parameters, level = excluded.level, channels = excluded.channels, actions = excluded.actions,
    renotify_s = excluded.renotify_s, active = excluded.active, updated_at = excluded.updated_at

-- name: delete
DELETE FROM alert_rule WHERE org_id = $1 AND rule_id = $2

-- name: named
SELECT * FROM alert_rule WHERE org_id = $1 AND name = $2

-- name: count
SELECT count(*) FROM alert_rule WHERE org_id = $1

-- name: active
SELECT * FROM alert_rule WHERE org_id = $1 AND active ORDER BY name

-- name: listing
SELECT * FROM alert_rule
WHERE org_id = $1 AND ($2::text IS NULL OR kind = $2) AND ($3::boolean IS NULL OR active = $3) AND name > $4
ORDER BY name LIMIT $5
