-- name: insert
INSERT INTO api_key (org_id, key_id, name, user_name, secret_hash, shown_prefix, roles, created_by, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

-- name: find
SELECT * FROM api_key WHERE org_id = $1 AND key_id = $2

-- name: live
SELECT count(*) FROM api_key
WHERE org_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ledger_clock())

-- name: revoke
UPDATE api_key SET revoked_at = $3 WHERE org_id = $1 AND key_id = $2 AND revoked_at IS NULL

-- name: revoke_all
UPDATE api_key SET revoked_at = $3 WHERE org_id = $1 AND user_name = $2 AND revoked_at IS NULL RETURNING key_id

-- name: listing
SELECT * FROM api_key
WHERE org_id = $1 AND key_id < $2 AND ($3::text IS NULL OR user_name = $3) AND ($4::boolean OR revoked_at IS NULL)
ORDER BY key_id DESC LIMIT $5

-- name: everything
SELECT * FROM api_key WHERE revoked_at IS NULL ORDER BY org_id, key_id LIMIT $1

-- name: some
SELECT k.* FROM api_key k JOIN unnest($1::text[], $2::text[]) AS n (org_id, key_id) USING (org_id, key_id)

-- name: used
UPDATE api_key k SET last_used_at = clock_timestamp()
FROM unnest($1::text[], $2::text[]) AS n (org_id, key_id)
WHERE k.org_id = n.org_id AND k.key_id = n.key_id
