-- name: named_users
-- Users whose names an earlier schema kept where surrogates stand now: budgets, their windows, open reservations.
SELECT org_id, entity_id AS name FROM budget
WHERE type = 'user' AND entity_id <> '*' AND entity_id !~ '^uk_[a-z2-7]{26}$'
UNION
SELECT w.org_id, w.entity_id FROM budget_window w JOIN budget b ON b.org_id = w.org_id AND b.budget_id = w.budget_id
WHERE b.type = 'user' AND w.entity_id <> '*' AND w.entity_id !~ '^uk_[a-z2-7]{26}$'
UNION
SELECT org_id, attribution ->> 'user_id' FROM reservation
WHERE (status = 'live' OR presumed) AND attribution ->> 'user_id' !~ '^uk_[a-z2-7]{26}$'
ORDER BY 1, 2

-- name: rename_reservations
UPDATE reservation r SET attribution = jsonb_set(r.attribution, '{user_id}', to_jsonb(n.key))
FROM unnest($2::text[], $3::text[]) AS n (name, key)
WHERE r.org_id = $1 AND (r.status = 'live' OR r.presumed) AND r.attribution ->> 'user_id' = n.name

-- name: rename_windows
UPDATE budget_window w SET entity_id = n.key
FROM unnest($2::text[], $3::text[]) AS n (name, key), budget b
WHERE w.org_id = $1 AND b.org_id = $1 AND b.budget_id = w.budget_id AND b.type = 'user' AND w.entity_id = n.name

-- name: rename_budgets
UPDATE budget b SET entity_id = n.key
FROM unnest($2::text[], $3::text[]) AS n (name, key)
WHERE b.org_id = $1 AND b.type = 'user' AND b.entity_id = n.name
