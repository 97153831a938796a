-- name: borne
SELECT /*entity*/ AS entity, /*rule*/ AS rule, currency, sum(cost)::bigint,
    sum(list_cost)::bigint, sum(requests)::bigint,
    sum(prompt_tokens + completion_tokens)::bigint,
    coalesce(sum(requests) FILTER (WHERE cost_status = 'unpriced'), 0)::bigint
FROM usage_rollup WHERE org_id = $1 AND bucket >= $2 AND bucket < $3
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 LIMIT $4

-- name: borne_by_tag
SELECT /*entity*/ AS entity, /*rule*/ AS rule, currency, coalesce(sum(cost), 0)::bigint,
    coalesce(sum(coalesce(list_cost, cost)), 0)::bigint, sum(requests)::bigint,
    sum(prompt_tokens + completion_tokens)::bigint,
    coalesce(sum(requests) FILTER (WHERE cost_status = 'unpriced'), 0)::bigint
FROM usage_posting WHERE org_id = $1 AND "timestamp" >= $2 AND "timestamp" < $3
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 LIMIT $4

-- name: rules
SELECT allocated_by, version, rules, updated_at, updated_by FROM allocation_rules
WHERE org_id = $1 AND allocated_by = $2

-- name: lock_rules
SELECT allocated_by, version, rules, updated_at, updated_by FROM allocation_rules
WHERE org_id = $1 AND allocated_by = $2 FOR UPDATE

-- name: put_rules
INSERT INTO allocation_rules AS a (org_id, allocated_by, version, rules, updated_at, updated_by)
VALUES ($1, $2, $3, $4::text::jsonb, $5, $6)
ON CONFLICT (org_id, allocated_by) DO UPDATE
SET version = excluded.version, rules = excluded.rules, updated_at = excluded.updated_at,
    updated_by = excluded.updated_by
WHERE a.version = excluded.version - 1 RETURNING version

-- name: list_rules
SELECT allocated_by, version, rules, updated_at, updated_by FROM allocation_rules
WHERE org_id = $1 AND allocated_by > $2 ORDER BY allocated_by LIMIT $3

-- name: observed_tokens
SELECT count(*) AS calls,
    avg(prompt_tokens) AS mean_prompt, avg(completion_tokens) AS mean_completion, avg(cache_read_tokens) AS mean_cached,
    avg(reasoning_tokens) AS mean_reasoning,
    percentile_disc($4) WITHIN GROUP (ORDER BY prompt_tokens) AS high_prompt,
    percentile_disc($4) WITHIN GROUP (ORDER BY completion_tokens) AS high_completion,
    coalesce(sum(cache_read_tokens), 0)::bigint AS cached, coalesce(sum(prompt_tokens), 0)::bigint AS prompts
FROM usage_event WHERE org_id = $1 AND "timestamp" >= $2 AND "timestamp" < $3 AND final/*filters*/
