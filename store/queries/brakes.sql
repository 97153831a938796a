-- name: find
SELECT org_id, scope, entity_id, reason, set_by, set_at FROM brake
WHERE org_id = $1 AND scope = $2 AND entity_id = $3

-- name: put
INSERT INTO brake (org_id, scope, entity_id, reason, set_by, set_at) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (org_id, scope, entity_id)
DO UPDATE SET reason = excluded.reason, set_by = excluded.set_by, set_at = excluded.set_at

-- name: remove
DELETE FROM brake WHERE org_id = $1 AND scope = $2 AND entity_id = $3

-- name: count
SELECT count(*) FROM brake WHERE org_id = $1

-- name: listing
SELECT org_id, scope, entity_id, reason, set_by, set_at FROM brake
WHERE org_id = $1 AND ($2::text IS NULL OR scope = $2) AND (scope, entity_id) > ($3, $4)
ORDER BY scope, entity_id LIMIT $5
