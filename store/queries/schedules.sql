-- name: find
SELECT * FROM schedule WHERE org_id = $1 AND name = $2

-- name: put
INSERT INTO schedule (org_id, name, cron, timezone, signal, request, channels, active, created_by, created_at,
    updated_at, next_run_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (org_id, name) DO UPDATE SET cron = excluded.cron, timezone = excluded.timezone, signal = excluded.signal,
    request = excluded.request, channels = excluded.channels, active = excluded.active,
    created_by = excluded.created_by, updated_at = excluded.updated_at, next_run_at = excluded.next_run_at

-- name: delete
DELETE FROM schedule WHERE org_id = $1 AND name = $2

-- name: count
SELECT count(*) FROM schedule WHERE org_id = $1

-- name: listing
SELECT * FROM schedule WHERE org_id = $1 AND name > $2 ORDER BY name LIMIT $3

-- name: due
SELECT * FROM schedule WHERE active AND next_run_at <= ledger_clock() ORDER BY next_run_at LIMIT $1

-- name: ran
-- A schedule that was set anew while it ran keeps the time it was set to.
UPDATE schedule SET next_run_at = CASE WHEN next_run_at = $3 THEN $4 ELSE next_run_at END,
    last_run_at = coalesce($5, last_run_at), last_error = CASE WHEN $5::timestamptz IS NULL THEN last_error ELSE $6 END
WHERE org_id = $1 AND name = $2
