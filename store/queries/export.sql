-- name: next_posting
-- The first posting at or after a time; placeholders are filled by store/export.py.
SELECT "timestamp" FROM usage_posting WHERE {where} ORDER BY "timestamp" LIMIT 1

-- name: postings
SELECT "timestamp", posted_at, usage_id, adjustment_id, sign, provider, model, service_tier, region, batch, status,
    user_id, team_id, project_id, feature, agent_id, session_id, task_id, environment, cost_center, tags,
    requests, prompt_tokens, completion_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
    cost, list_cost, currency, cost_status, price_source, price_version, line_items
FROM usage_posting WHERE {where}
ORDER BY "timestamp", usage_id, coalesce(adjustment_id, ''), sign

-- name: charges
-- Line items summed by charge period, price and dimensions. What a cost is beyond its line items (a refund) is an item
-- without a kind, so that sums are those of the postings, to the nano.
WITH item AS (
    SELECT p.*, i.kind, i.quantity, i.rate, i.nanos, i.list_rate,
        p.adjustment_id IS NOT NULL AND date_trunc('month', p.posted_at, 'UTC')
            > date_trunc('month', p."timestamp", 'UTC') AS late
    FROM usage_posting p CROSS JOIN LATERAL (
        SELECT e ->> 0 AS kind, (e ->> 1)::numeric AS quantity, (e ->> 2)::numeric AS rate, (e ->> 3)::numeric AS nanos,
            coalesce(e ->> 4, e ->> 2)::numeric AS list_rate
        FROM jsonb_array_elements(p.line_items) AS e WHERE e ->> 3 IS NOT NULL
        UNION ALL
        SELECT NULL, 1, NULL, p.sign * p.cost - coalesce(sum((e ->> 3)::numeric), 0), NULL
        FROM jsonb_array_elements(p.line_items) AS e
        HAVING p.sign * p.cost <> coalesce(sum((e ->> 3)::numeric), 0)
    ) AS i
    WHERE {where} AND p.cost IS NOT NULL
), charge AS (
    SELECT date_trunc('{bucket}', "timestamp", 'UTC') AS charged_from,
        date_trunc('month', CASE WHEN late THEN posted_at ELSE "timestamp" END, 'UTC') AS billed_from,
        late, adjustment_id, sign, provider, model, service_tier, region, batch, currency, kind, rate, list_rate,
        price_source, price_version, {dimensions},
        sum(sign * quantity)::numeric AS quantity, sum(sign * nanos)::numeric AS nanos, sum(requests)::bigint AS requests
    FROM item
    GROUP BY {groups}
), keyed AS (
    SELECT *, md5(jsonb_build_array(billed_from, adjustment_id, sign, provider, model, service_tier, region, batch,
        currency, kind, rate, list_rate, price_source, price_version, {names})::text) AS row_key
    FROM charge
)
SELECT * FROM keyed WHERE (charged_from, row_key) > ({after})
ORDER BY charged_from, row_key

-- name: unpriced_rollups
SELECT provider, model, sum(requests)::bigint AS requests,
    sum(prompt_tokens + completion_tokens)::bigint AS total_tokens
FROM usage_rollup WHERE {where} AND cost_status = 'unpriced'
GROUP BY provider, model HAVING sum(requests) <> 0 OR sum(prompt_tokens + completion_tokens) <> 0
ORDER BY total_tokens DESC, provider, model

-- name: unpriced_postings
SELECT provider, model, sum(requests)::bigint AS requests,
    sum(prompt_tokens + completion_tokens)::bigint AS total_tokens
FROM usage_posting WHERE {where} AND cost IS NULL
GROUP BY provider, model HAVING sum(requests) <> 0 OR sum(prompt_tokens + completion_tokens) <> 0
ORDER BY total_tokens DESC, provider, model
