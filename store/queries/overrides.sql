-- name: insert
INSERT INTO override (org_id, override_id, budget_id, entity_id, status, amount, percent, reason, requested_by,
    requested_at, starts_at, ends_at, reviewed_by, reviewed_at, comment)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)

-- name: lock
SELECT o.*, b.unit, b.currency FROM override o JOIN budget b USING (org_id, budget_id)
WHERE org_id = $1 AND override_id = $2 FOR UPDATE OF o

-- name: decide
UPDATE override SET status = $3, starts_at = $4, reviewed_by = $5, reviewed_at = $6, comment = $7
WHERE org_id = $1 AND override_id = $2

-- name: standing
-- Only a policy approves in the moment of asking, so these two times tell what was approved by one, also once revoked.
SELECT coalesce(sum(amount) FILTER (WHERE status = 'approved' AND ends_at > $4), 0) AS raised,
       coalesce(sum(amount) FILTER (WHERE starts_at = requested_at AND ends_at > $5), 0) AS automatic
FROM override WHERE org_id = $1 AND budget_id = $2 AND entity_id = $3

-- name: open
SELECT count(*) AS everybodys, count(*) FILTER (WHERE requested_by = $3) AS own
FROM override WHERE org_id = $1 AND status IN ('pending', 'approved') AND ends_at > $2

-- name: asked_before
SELECT EXISTS (SELECT FROM override
    WHERE org_id = $1 AND budget_id = $2 AND entity_id = $3 AND amount = $4 AND requested_by = $5 AND ends_at > $7
      AND (status = 'pending' OR (status = 'approved' AND ends_at = $6)))

-- name: orgs_with_ended
SELECT DISTINCT org_id FROM override WHERE status IN ('pending', 'approved') AND ends_at <= ledger_clock()

-- name: lock_ended
-- What another agent has locked is being expired there.
SELECT o.*, b.unit, b.currency FROM override o JOIN budget b USING (org_id, budget_id)
WHERE org_id = $1 AND o.status IN ('pending', 'approved') AND o.ends_at <= $2
ORDER BY o.ends_at, o.override_id LIMIT $3 FOR UPDATE OF o SKIP LOCKED

-- name: expire
UPDATE override SET status = 'expired' WHERE org_id = $1 AND override_id = ANY ($2::uuid[])

-- name: listing
SELECT o.*, b.unit, b.currency FROM override o JOIN budget b USING (org_id, budget_id)
WHERE org_id = $1 AND ($2::uuid IS NULL OR o.budget_id = $2) AND ($3::text[] IS NULL OR o.entity_id = ANY ($3))
  AND ($4::text IS NULL OR o.status = $4) AND o.override_id < $5
ORDER BY o.override_id DESC LIMIT $6

-- name: history
SELECT entity_id, at, actor, action, content::jsonb ->> 'reason' AS reason FROM audit
WHERE org_id = $1 AND entity = 'override' AND entity_id = ANY ($2::text[]) ORDER BY seq
