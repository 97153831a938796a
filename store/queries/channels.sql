-- name: find
SELECT * FROM channel WHERE org_id = $1 AND name = $2

-- name: lock
SELECT * FROM channel WHERE org_id = $1 AND name = $2 FOR UPDATE

-- name: listing
SELECT * FROM channel WHERE org_id = $1 AND ($2::text IS NULL OR name > $2) ORDER BY name LIMIT $3

-- name: count
SELECT count(*) FROM channel WHERE org_id = $1

-- name: put
INSERT INTO channel (org_id, name, kind, sealed, shown, min_level, quiet_hours, messages_per_hour_max, active,
    created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (org_id, name) DO UPDATE SET kind = excluded.kind, sealed = excluded.sealed, shown = excluded.shown,
    min_level = excluded.min_level, quiet_hours = excluded.quiet_hours,
    messages_per_hour_max = excluded.messages_per_hour_max, active = excluded.active, updated_at = excluded.updated_at

-- name: delete
DELETE FROM channel WHERE org_id = $1 AND name = $2
