-- name: overrides
SELECT override_id, budget_id, entity_id, amount, starts_at, ends_at FROM override
WHERE org_id = $1 AND status = 'approved' AND ends_at > ledger_clock()

-- name: brakes
SELECT scope, entity_id, reason FROM brake WHERE org_id = $1

-- name: members
SELECT user_id, array_agg(team_id ORDER BY team_id) AS teams FROM team_member WHERE org_id = $1 GROUP BY user_id
