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
-- A damaged time that Python cannot express is shown as the end of all times instead of failing the whole reading.
SELECT org_id, seq, CASE WHEN at >= '0002-01-01' AND at < '9999-01-01' THEN at ELSE 'infinity' END AS at,
    actor, action, entity, entity_id, content, previous_hash, hash
FROM (SELECT *, sum(octet_length(content)) OVER (ORDER BY seq DESC) - octet_length(content) AS bytes_before
      FROM (SELECT * FROM audit
            WHERE org_id = $1 AND seq < $2 AND ($3::text IS NULL OR entity = $3)
              AND ($4::text[] IS NULL OR entity_id = ANY ($4)) AND ($5::text[] IS NULL OR actor = ANY ($5))
              AND ($6::text IS NULL OR action = $6) AND ($7::timestamptz IS NULL OR at >= $7)
              AND ($8::timestamptz IS NULL OR at < $8)
            ORDER BY seq DESC LIMIT $9) AS found) AS measured
WHERE bytes_before <= $10 ORDER BY seq DESC

-- name: chain
SELECT org_id, seq, CASE WHEN at >= '0002-01-01' AND at < '9999-01-01' THEN at ELSE 'infinity' END AS at,
    actor, action, entity, entity_id, content, previous_hash, hash
FROM (SELECT *, sum(octet_length(content)) OVER (ORDER BY seq) - octet_length(content) AS bytes_before
      FROM (SELECT * FROM audit WHERE org_id = $1 AND seq > $2 ORDER BY seq LIMIT $3) AS found) AS measured
WHERE bytes_before <= $4 ORDER BY seq

-- name: hash_at
SELECT hash FROM audit WHERE org_id = $1 AND seq = $2
