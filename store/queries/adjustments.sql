-- name: lock_claims
SELECT id, arrived_at FROM usage_id WHERE org_id = $1 AND id = ANY ($2::text[]) ORDER BY id FOR UPDATE

-- name: near
-- Most calls arrive soon after they were made: those are found without looking through the org's whole history.
SELECT e.* FROM unnest($2::text[], $3::timestamptz[]) AS k (id, arrived_at)
JOIN usage_event e ON e.org_id = $1 AND e.id = k.id
    AND e."timestamp" BETWEEN k.arrived_at - interval '15 minutes' AND k.arrived_at + interval '10 minutes'

-- name: anywhere
SELECT * FROM usage_event WHERE org_id = $1 AND id = ANY ($2::text[])

-- name: of_events
SELECT * FROM adjustment WHERE org_id = $1 AND usage_id = ANY ($2::text[]) ORDER BY usage_id, sequence

-- name: by_ids
SELECT * FROM adjustment WHERE org_id = $1 AND adjustment_id = ANY ($2::text[])

-- name: standing
SELECT DISTINCT ON (usage_id) usage_id, sequence, (after ->> 'cost')::bigint AS cost, (after ->> 'void')::boolean AS void,
    after ->> 'currency' AS currency
FROM adjustment WHERE org_id = $1 AND usage_id = ANY ($2::text[]) ORDER BY usage_id, sequence DESC

-- name: page
SELECT * FROM adjustment
WHERE org_id = $1 AND ($2::text IS NULL OR usage_id = $2) AND ($3::text IS NULL OR kind = $3)
  AND ($4::timestamptz IS NULL OR made_at >= $4) AND ($5::timestamptz IS NULL OR made_at < $5)
  AND ($6::timestamptz IS NULL OR (made_at, adjustment_id) < ($6, $7::text))
ORDER BY made_at DESC, adjustment_id DESC LIMIT $8
