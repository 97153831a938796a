-- name: count_decisions
INSERT INTO decision_count (org_id, day, code, count)
SELECT n.org_id, (ledger_clock() AT TIME ZONE 'UTC')::date, n.code, n.count
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (org_id, code, count)
ORDER BY n.org_id, n.code
ON CONFLICT (org_id, day, code) DO UPDATE SET count = decision_count.count + excluded.count

-- name: count_unsettled
INSERT INTO unsettled_count (org_id, day, caller, count, cost)
SELECT $1, ($2::timestamptz AT TIME ZONE 'UTC')::date, n.caller, n.count, n.cost
FROM unnest($3::text[], $4::bigint[], $5::bigint[]) AS n (caller, count, cost)
ORDER BY n.caller
ON CONFLICT (org_id, day, caller) DO UPDATE SET
    count = unsettled_count.count + excluded.count, cost = unsettled_count.cost + excluded.cost

-- name: decisions
SELECT code, sum(count)::bigint AS count FROM decision_count
WHERE org_id = $1 AND day >= $2 GROUP BY code ORDER BY code

-- name: unsettled
SELECT caller, sum(count)::bigint AS count, sum(cost)::bigint AS cost FROM unsettled_count
WHERE org_id = $1 AND day >= $2 GROUP BY caller ORDER BY count DESC, caller LIMIT $3

-- name: reserved
SELECT coalesce(sum(requests), 0)::bigint AS requests,
    coalesce(sum(requests) FILTER (WHERE reserved), 0)::bigint AS reserved
FROM usage_rollup WHERE org_id = $1 AND bucket >= $2
