-- name: remember
INSERT INTO identity (org_id, user_key, user_name)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
ON CONFLICT (org_id, user_key) DO NOTHING

-- name: find
SELECT i.org_id, i.user_key, i.user_name FROM identity i
JOIN unnest($1::text[], $2::text[]) AS k (org_id, user_key) ON i.org_id = k.org_id AND i.user_key = k.user_key

-- name: anonymize
INSERT INTO identity (org_id, user_key, user_name, anonymized_at) VALUES ($1, $2, NULL, $3)
ON CONFLICT (org_id, user_key) DO UPDATE SET
    user_name = NULL, anonymized_at = coalesce(identity.anonymized_at, excluded.anonymized_at)
RETURNING anonymized_at

-- name: known
SELECT anonymized_at IS NOT NULL AS anonymized FROM identity WHERE org_id = $1 AND user_key = $2 FOR UPDATE
