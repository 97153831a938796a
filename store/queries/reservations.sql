-- name: admit
-- Calls repeat one another: what a kind of call has in common is sent and parsed once, in the arrays of "kind".
WITH sums AS (
    UPDATE budget_window w SET reserved = n.reserved, high_limit = n.high_limit
    FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS n (window_id, reserved, high_limit)
    WHERE w.org_id = $1 AND w.window_id = n.window_id
), kind AS MATERIALIZED (
    SELECT k.i, k.provider, k.model, k.attribution::jsonb AS attribution, k.window_ids::bigint[] AS window_ids,
        k.caller, k.currency
    FROM unnest($6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[])
        WITH ORDINALITY AS k (provider, model, attribution, window_ids, caller, currency, i)
)
INSERT INTO reservation (org_id, reservation_id, request_id, body_hash, decided_at, expires_at, provider, model,
    attribution, estimated_cost, estimated_tokens, window_ids, held, caller, currency)
SELECT $1, n.id, n.request_id, n.body_hash, $5::timestamptz, $5::timestamptz + n.ttl_s * interval '1 second',
    k.provider, k.model, k.attribution, n.cost, n.tokens, k.window_ids, n.held::bigint[], k.caller, k.currency
FROM unnest($12::integer[], $13::uuid[], $14::text[], $15::bytea[], $16::integer[], $17::bigint[], $18::bigint[],
    $19::text[]) AS n (kind, id, request_id, body_hash, ttl_s, cost, tokens, held)
JOIN kind k ON k.i = n.kind

-- name: commit_admission
SELECT admission_commit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
    $22, $23, $24)

-- name: lock_requests
SELECT * FROM reservation WHERE org_id = $1 AND request_id = ANY ($2::text[]) AND NOT superseded
ORDER BY reservation_id FOR UPDATE

-- name: any_request
SELECT EXISTS (SELECT FROM reservation WHERE org_id = $1 AND request_id = ANY ($2::text[]) AND NOT superseded)

-- name: supersede
UPDATE reservation SET superseded = true
WHERE org_id = $1 AND reservation_id = ANY ($2::uuid[]) AND status IN ('released', 'expired')

-- name: find_ids
SELECT * FROM reservation WHERE org_id = $1 AND reservation_id = ANY ($2::uuid[])
UNION
SELECT * FROM reservation WHERE org_id = $1 AND request_id = ANY ($3::text[]) AND NOT superseded

-- name: lock
SELECT * FROM reservation WHERE org_id = $1 AND reservation_id = ANY ($2::uuid[]) ORDER BY reservation_id FOR UPDATE

-- name: close
UPDATE reservation SET status = $3, closed_at = $4
WHERE org_id = $1 AND reservation_id = ANY ($2::uuid[]) AND status = 'live'
RETURNING reservation_id

-- name: expire
UPDATE reservation r SET status = 'expired', closed_at = $5, presumed = n.presumed, held = n.held::bigint[]
FROM unnest($2::uuid[], $3::boolean[], $4::text[]) AS n (reservation_id, presumed, held)
WHERE r.org_id = $1 AND r.reservation_id = n.reservation_id AND r.status = 'live'

-- name: settle_presumed
UPDATE reservation SET presumed = false, status = 'settled'
WHERE org_id = $1 AND reservation_id = ANY ($2::uuid[]) AND status = 'expired' AND presumed

-- name: write_held
UPDATE reservation r SET held = n.held::bigint[], used_cost = n.used_cost, used_tokens = n.used_tokens
FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::bigint[]) AS n (reservation_id, held, used_cost, used_tokens)
WHERE r.org_id = $1 AND r.reservation_id = n.reservation_id AND r.status = 'live'

-- name: extend
UPDATE reservation SET expires_at = $3, provider = $4, model = $5, estimated_cost = $6, estimated_tokens = $7,
    window_ids = $8, held = $9, currency = $10,
    -- Parts that were used under another estimate cannot be compared with this one.
    used_cost = CASE WHEN used_tokens = 0 OR (estimated_cost, estimated_tokens, currency)
        IS NOT DISTINCT FROM ($6, $7, $10) THEN used_cost END,
    used_tokens = CASE WHEN used_tokens = 0 OR (estimated_cost, estimated_tokens, currency)
        IS NOT DISTINCT FROM ($6, $7, $10) THEN used_tokens END
WHERE org_id = $1 AND reservation_id = $2 AND status = 'live'

-- name: expired
SELECT reservation_id FROM reservation
WHERE org_id = $1 AND status = 'live' AND expires_at < $2 ORDER BY expires_at LIMIT $3

-- name: orgs_with_expired
SELECT DISTINCT org_id FROM reservation WHERE status = 'live' AND expires_at < $1 ORDER BY org_id

-- name: listing
SELECT * FROM reservation
WHERE org_id = $1 AND ($2::text IS NULL OR status = $2) AND ($3::text IS NULL OR request_id = $3)
  AND ($4::uuid IS NULL OR window_ids && ARRAY(
        SELECT window_id FROM budget_window WHERE org_id = $1 AND budget_id = $4))
  AND reservation_id < $5
ORDER BY reservation_id DESC LIMIT $6

-- name: live_counts
SELECT count(*) AS live, min(expires_at) AS oldest FROM reservation WHERE org_id = $1 AND status = 'live'
