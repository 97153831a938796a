-- name: enqueue
INSERT INTO delivery (org_id, delivery_id, alert_id, channel, not_before, payload)
SELECT $1, n.delivery_id, n.alert_id, n.channel, n.not_before, n.payload
FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::timestamptz[], $6::jsonb[])
    AS n (delivery_id, alert_id, channel, not_before, payload)
ON CONFLICT (org_id, delivery_id) DO NOTHING

-- name: due_channels
-- The clock stands in a subquery, so that it is read once and an index may be asked for what is before it.
SELECT org_id, channel FROM delivery
WHERE status = 'pending' AND not_before <= (SELECT ledger_clock())
  AND (claimed_until IS NULL OR claimed_until <= (SELECT ledger_clock()))
  AND (org_id, channel) NOT IN (SELECT * FROM unnest($1::text[], $2::text[]))
GROUP BY org_id, channel ORDER BY min(not_before) LIMIT $3

-- name: lock_due
-- A message that was tried before comes whole, or not at all: its deliveries share one lease and one time.
SELECT * FROM delivery
WHERE org_id = $1 AND channel = $2 AND status = 'pending' AND not_before <= (SELECT ledger_clock())
  AND (claimed_until IS NULL OR claimed_until <= (SELECT ledger_clock()))
ORDER BY not_before, message_id, delivery_id LIMIT $3 FOR UPDATE SKIP LOCKED

-- name: lock_messages
SELECT * FROM delivery WHERE org_id = $1 AND message_id = ANY ($2::uuid[]) AND status = 'pending'
ORDER BY delivery_id FOR UPDATE

-- name: traffic
-- Messages that count against the hour's bound: sent in it, or on their way; and when the oldest was sent.
SELECT count(*) AS messages, min(sent_at) AS oldest FROM (
    SELECT message_id, min(sent_at) AS sent_at FROM delivery
    WHERE org_id = $1 AND channel = $2 AND status = 'sent' AND sent_at > (SELECT ledger_clock()) - interval '1 hour'
    GROUP BY message_id
    UNION ALL
    SELECT message_id, NULL FROM delivery
    WHERE org_id = $1 AND channel = $2 AND status = 'pending' AND claimed_until > (SELECT ledger_clock())
    GROUP BY message_id
) m

-- name: claim
UPDATE delivery d
SET message_id = n.message_id, claim_id = $4, claimed_until = ledger_clock() + $5::interval, attempts = d.attempts + 1
FROM unnest($2::uuid[], $3::uuid[]) AS n (delivery_id, message_id)
WHERE d.org_id = $1 AND d.delivery_id = n.delivery_id

-- name: postpone
UPDATE delivery d SET not_before = n.not_before, postponed = n.why
FROM unnest($2::uuid[], $3::timestamptz[], $4::text[]) AS n (delivery_id, not_before, why)
WHERE d.org_id = $1 AND d.delivery_id = n.delivery_id

-- name: finish
UPDATE delivery SET status = $3, last_error = $4, claim_id = NULL, claimed_until = NULL
WHERE org_id = $1 AND delivery_id = ANY ($2::uuid[]) AND status = 'pending'

-- name: mark_sent
UPDATE delivery
SET status = 'sent', sent_at = ledger_clock(), last_error = $4, claim_id = NULL, claimed_until = NULL
WHERE org_id = $1 AND message_id = $2 AND claim_id = $3 AND status = 'pending' RETURNING delivery_id

-- name: mark_failed
UPDATE delivery
SET status = CASE WHEN attempts >= $6 THEN 'dead' ELSE status END, last_error = $4, claim_id = NULL,
    claimed_until = NULL, not_before = ledger_clock() + $5::interval
WHERE org_id = $1 AND message_id = $2 AND claim_id = $3 AND status = 'pending' RETURNING status

-- name: count_pending
SELECT count(*) FROM delivery WHERE org_id = $1 AND channel = $2 AND status = 'pending'

-- name: listing
SELECT * FROM delivery
WHERE org_id = $1 AND ($2::text IS NULL OR status = $2) AND ($3::text IS NULL OR channel = $3)
  AND ($4::uuid IS NULL OR alert_id = $4)
  AND ($5::timestamptz IS NULL OR (created_at, delivery_id) < ($5, $6::uuid))
ORDER BY created_at DESC, delivery_id DESC LIMIT $7

-- name: lock
SELECT * FROM delivery WHERE org_id = $1 AND delivery_id = $2 FOR UPDATE

-- name: revive
UPDATE delivery
SET status = 'pending', attempts = 0, not_before = ledger_clock(), postponed = NULL, message_id = NULL, claim_id = NULL,
    claimed_until = NULL
WHERE org_id = $1 AND delivery_id = $2 RETURNING *
