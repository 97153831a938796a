-- name: count_decisions
INSERT INTO decision_count (org_id, day, code, count)
SELECT n.org_id, (ledger_clock() AT TIME ZONE 'UTC')::date, n.code, n.count
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (org_id, code, count)
ORDER BY n.org_id, n.code
ON CONFLICT (org_id, day, code) DO UPDATE SET count = decision_count.count + excluded.count

-- name: count_unsettled
INSERT INTO unsettled_count (org_id, day, caller, count, cost, currency)
SELECT $1, ($2::timestamptz AT TIME ZONE 'UTC')::date, n.caller, n.count, n.cost, n.currency
FROM unnest($3::text[], $4::bigint[], $5::bigint[], $6::text[]) AS n (caller, count, cost, currency)
ORDER BY n.caller, n.currency
ON CONFLICT (org_id, day, caller, currency) DO UPDATE SET
    count = unsettled_count.count + excluded.count, cost = unsettled_count.cost + excluded.cost

-- name: decisions
SELECT code, sum(count)::bigint AS count FROM decision_count
WHERE org_id = $1 AND day >= $2 GROUP BY code ORDER BY code

-- name: unsettled
-- Of the callers with the most, by currency.
SELECT caller, sum(count)::bigint AS count, sum(cost)::bigint AS cost, currency FROM unsettled_count
WHERE org_id = $1 AND day >= $2 AND caller IN (SELECT caller FROM unsettled_count WHERE org_id = $1 AND day >= $2
    GROUP BY caller ORDER BY sum(count) DESC, caller LIMIT $3)
GROUP BY caller, currency ORDER BY caller, currency

-- name: reserved
SELECT coalesce(sum(requests), 0)::bigint AS requests,
    coalesce(sum(requests) FILTER (WHERE reserved), 0)::bigint AS reserved
FROM usage_rollup WHERE org_id = $1 AND bucket >= $2
