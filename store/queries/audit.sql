-- name: lock_head
-- The head is the last lock of every transaction (R1): entries of one org are chained one after the other.
INSERT INTO audit_head (org_id, seq, hash) VALUES ($1, 0, '')
ON CONFLICT (org_id) DO UPDATE SET seq = audit_head.seq RETURNING seq, hash

-- name: append
INSERT INTO audit (org_id, seq, at, actor, action, entity, entity_id, content, previous_hash, hash)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

-- name: move_head
UPDATE audit_head SET seq = $2, hash = $3 WHERE org_id = $1

-- name: head
SELECT seq, hash FROM audit_head WHERE org_id = $1

-- name: listing
SELECT * FROM audit
WHERE org_id = $1 AND seq < $2 AND ($3::text IS NULL OR entity = $3) AND ($4::text IS NULL OR entity_id = $4)
  AND ($5::text IS NULL OR actor = $5) AND ($6::text IS NULL OR action = $6)
  AND ($7::timestamptz IS NULL OR at >= $7) AND ($8::timestamptz IS NULL OR at < $8)
ORDER BY seq DESC LIMIT $9

-- name: chain
SELECT * FROM audit WHERE org_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
