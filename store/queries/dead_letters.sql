-- name: keep
INSERT INTO dead_letter (org_id, dead_letter_id, reason, message, field, subject, source_key, usage_id, payload,
    arrived_at)
SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
    $9::bytea[], $10::timestamptz[])
ON CONFLICT (org_id, source_key) DO NOTHING RETURNING source_key

-- name: listing
SELECT org_id, dead_letter_id, status, reason, message, field, subject, source_key, usage_id, payload, arrived_at,
    retried_at
FROM dead_letter
WHERE org_id = $1 AND ($2::text IS NULL OR status = $2) AND ($3::text IS NULL OR reason = $3)
  AND ($4::timestamptz IS NULL OR (arrived_at, dead_letter_id) < ($4, $5::uuid))
ORDER BY arrived_at DESC, dead_letter_id DESC LIMIT $6

-- name: lock
SELECT org_id, dead_letter_id, status, reason, message, field, subject, source_key, usage_id, payload, arrived_at,
    retried_at
FROM dead_letter WHERE org_id = $1 AND dead_letter_id = $2 FOR UPDATE

-- name: mark_retried
UPDATE dead_letter SET status = 'retried', retried_at = clock_timestamp() WHERE org_id = $1 AND dead_letter_id = $2

-- name: count_open
SELECT count(*) FROM dead_letter WHERE org_id = $1 AND status = 'open'

-- name: naming
-- JSON writes most names in several ways, all but one of them with a backslash.
SELECT dead_letter_id, payload FROM dead_letter
WHERE org_id = $1 AND (position($2::bytea in payload) > 0 OR position('\x5c'::bytea in payload) > 0) AND ($3::uuid IS NULL OR dead_letter_id > $3)
ORDER BY dead_letter_id LIMIT $4 FOR UPDATE

-- name: replace_payload
UPDATE dead_letter SET payload = $3 WHERE org_id = $1 AND dead_letter_id = $2
