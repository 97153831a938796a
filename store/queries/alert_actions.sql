-- name: add
INSERT INTO alert_action (org_id, alert_id, rule_id, position, rule, action, created_at)
SELECT $1, n.alert_id, n.rule_id, n.position, n.rule, n.action::jsonb, n.created_at
FROM unnest($2::uuid[], $3::uuid[], $4::integer[], $5::text[], $6::text[], $7::timestamptz[])
    AS n (alert_id, rule_id, position, rule, action, created_at)

-- name: due
SELECT * FROM alert_action
WHERE org_id = $1 AND status IN ('pending', 'active') AND (status = 'pending' OR ends_at <= $2)
ORDER BY created_at, alert_id, rule_id, position LIMIT $3

-- name: claim
SELECT position FROM alert_action
WHERE org_id = $1 AND alert_id = $2 AND rule_id = $3 AND position = $4 AND status = $5 FOR UPDATE SKIP LOCKED

-- name: finish
UPDATE alert_action SET status = $5, done_at = $6, result = $7, ends_at = $8, undo = $9::text::jsonb
WHERE org_id = $1 AND alert_id = $2 AND rule_id = $3 AND position = $4

-- name: outlasted
SELECT EXISTS (
    SELECT FROM alert_action a
    JOIN alert_action me ON me.org_id = $1 AND me.alert_id = $2 AND me.rule_id = $3 AND me.position = $4
    WHERE a.org_id = $1 AND a.status = 'active' AND a.ends_at > me.ends_at AND a.undo ->> 'budget_id' = $5
        AND a.action ->> 'do' = me.action ->> 'do'
)
