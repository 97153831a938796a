-- name: lock
-- One change of an org's users and keys at a time: what a change is audited against is what it changes.
SELECT pg_advisory_xact_lock(hashtextextended('access:' || $1, 0))

-- name: find
SELECT * FROM app_user WHERE org_id = $1 AND name = $2

-- name: put
INSERT INTO app_user (org_id, name, display_name, roles, teams, public_key, active, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (org_id, name) DO UPDATE SET display_name = excluded.display_name, roles = excluded.roles,
    teams = excluded.teams, public_key = excluded.public_key, active = excluded.active, updated_at = excluded.updated_at

-- name: listing
SELECT * FROM app_user
WHERE org_id = $1 AND name > $2 AND ($3::boolean IS NULL OR active = $3) AND ($4::text IS NULL OR $4 = ANY (roles))
ORDER BY name LIMIT $5

-- name: everyone
SELECT * FROM app_user ORDER BY org_id, name LIMIT $1

-- name: some
SELECT u.* FROM app_user u JOIN unnest($1::text[], $2::text[]) AS n (org_id, name) USING (org_id, name)

-- name: teams
SELECT team_id, array_agg(user_id ORDER BY user_id) AS members FROM team_member
WHERE org_id = $1 AND team_id > $2 AND ($3::text IS NULL OR team_id = $3)
GROUP BY team_id ORDER BY team_id LIMIT $4

-- name: empty_team
DELETE FROM team_member WHERE org_id = $1 AND team_id = $2

-- name: fill_team
INSERT INTO team_member (org_id, user_id, team_id) SELECT $1, unnest($3::text[]), $2

-- name: claim_nonce
INSERT INTO used_nonce (org_id, user_name, nonce, expires_at)
VALUES ($1, $2, $3, clock_timestamp() + $4 * interval '1 second') ON CONFLICT DO NOTHING RETURNING nonce

-- name: forget_nonces
DELETE FROM used_nonce WHERE (org_id, user_name, nonce) IN (
    SELECT org_id, user_name, nonce FROM used_nonce WHERE expires_at < clock_timestamp() LIMIT $1)

-- name: remove
WITH keys AS (DELETE FROM api_key WHERE org_id = $1 AND user_name = $2),
schedules AS (UPDATE schedule SET active = false, created_by = NULL WHERE org_id = $1 AND created_by = $2)
DELETE FROM app_user WHERE org_id = $1 AND name = $2 AND NOT active
