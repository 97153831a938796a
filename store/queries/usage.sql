-- name: claim_ids
-- Ids as a JSON list and hashes as one string of 16 bytes each: asyncpg looks at every element of an array several times.
INSERT INTO usage_id (org_id, id, payload_hash, arrived_at)
SELECT $1, n.id, substring($3::bytea FROM (16 * n.i - 15)::integer FOR 16), $4
FROM json_array_elements_text($2::text::json) WITH ORDINALITY AS n (id, i)
ON CONFLICT (org_id, id) DO NOTHING RETURNING id

-- name: hashes_of
SELECT id, payload_hash FROM usage_id WHERE org_id = $1 AND id = ANY ($2::text[])

-- name: first_unpriced
INSERT INTO unpriced_model (org_id, provider, model, day, usage_id)
SELECT $1, n.provider, n.model, n.day, n.usage_id
FROM unnest($2::text[], $3::text[], $4::date[], $5::text[]) AS n (provider, model, day, usage_id)
ORDER BY n.day, n.provider, n.model
ON CONFLICT DO NOTHING RETURNING provider, model

-- name: rollup_measures
sum(requests) AS requests,
sum(requests) FILTER (WHERE status <> 'ok') AS errors,
sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
sum(cache_read_tokens) AS cache_read_tokens, sum(cache_write_tokens) AS cache_write_tokens,
sum(reasoning_tokens) AS reasoning_tokens,
sum(requests) FILTER (WHERE cost_status = 'unpriced') AS unpriced_requests,
sum(requests) FILTER (WHERE reserved) AS reserved_requests,
sum(cost) AS cost, sum(latency_count) AS latency_count, sum(latency_us_sum) AS latency_us_sum

-- name: posting_measures
-- Of events, and of what adjustments posted: reversals count negatively.
sum(requests) AS requests,
sum(requests) FILTER (WHERE status <> 'ok') AS errors,
sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
sum(cache_read_tokens) AS cache_read_tokens, sum(cache_write_tokens) AS cache_write_tokens,
sum(reasoning_tokens) AS reasoning_tokens,
sum(requests) FILTER (WHERE cost_status = 'unpriced') AS unpriced_requests,
sum(requests) FILTER (WHERE reserved) AS reserved_requests,
sum(cost) AS cost, sum(sign) FILTER (WHERE latency_ms IS NOT NULL) AS latency_count,
sum(sign * round(latency_ms * 1000)::bigint) AS latency_us_sum

-- name: look
-- Bounded by what is looked at, not by what is found; the last row looked at always comes back, numbered.
SELECT * FROM (
    SELECT *, row_number() OVER (ORDER BY "timestamp", id) AS n, count(*) OVER () AS looked_at,
        NOT ${unpriced}::boolean OR cost_status = 'unpriced' OR EXISTS (SELECT FROM unnest(flags) f WHERE f LIKE 'no_exchange_rate%')
            OR EXISTS (SELECT FROM adjustment a WHERE a.org_id = e.org_id AND a.usage_id = e.id) AS wanted
    FROM (SELECT * FROM usage_event WHERE {where} ORDER BY "timestamp", id LIMIT ${limit}) e
) numbered
WHERE wanted OR n = looked_at
ORDER BY n
