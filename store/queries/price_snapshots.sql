-- name: in_use
SELECT u.sequence, u.digest, u.approved, u.applied_at, u.applied_by, s.source, s.stated_until, s.models, s.stored_at
FROM price_snapshot_use AS u LEFT JOIN price_snapshot AS s ON s.org_id = u.org_id AND s.digest = u.digest
WHERE u.org_id = $1 ORDER BY u.sequence DESC LIMIT 1

-- name: data
SELECT data FROM price_snapshot WHERE org_id = $1 AND digest = $2

-- name: keep
INSERT INTO price_snapshot (org_id, digest, source, stated_until, models, stored_at, data)
VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (org_id, digest) DO NOTHING

-- name: use
INSERT INTO price_snapshot_use (org_id, sequence, digest, approved, applied_at, applied_by, reason)
VALUES ($1, $2, $3, $4, $5, $6, $7)

-- name: used_models
-- The names that prices were looked up by, those that cost most first.
SELECT provider, model FROM usage_rollup WHERE org_id = $1 AND bucket >= $2
GROUP BY provider, model ORDER BY sum(cost) DESC NULLS LAST, provider, model LIMIT $3
