-- name: add
INSERT INTO outbox (org_id, event, payload) SELECT $1, n.event, n.payload
FROM unnest($2::text[], $3::bytea[]) WITH ORDINALITY AS n (event, payload, i) ORDER BY i

-- name: take
SELECT outbox_id, org_id, event, payload FROM outbox ORDER BY outbox_id LIMIT $1 FOR UPDATE SKIP LOCKED

-- name: delete
DELETE FROM outbox WHERE outbox_id = ANY ($1::bigint[])

-- name: pending
SELECT count(*) FROM outbox WHERE org_id = $1
