-- name: add
INSERT INTO usage_rollup AS r (org_id, bucket, dimension_key, provider, model, user_id, team_id, project_id, feature,
    agent_id, environment, cost_center, service_tier, status, cost_status, currency, reserved, requests, prompt_tokens,
    completion_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, cost, latency_count, latency_us_sum,
    list_cost, latency_histogram, size_histogram)
SELECT $1, n.bucket, n.dimension_key, n.provider, n.model, n.user_id, n.team_id, n.project_id, n.feature, n.agent_id,
    n.environment, n.cost_center, n.service_tier, n.status, n.cost_status, n.currency, n.reserved, n.requests,
    n.prompt_tokens, n.completion_tokens, n.cache_read_tokens, n.cache_write_tokens, n.reasoning_tokens, n.cost,
    n.latency_count, n.latency_us_sum, n.list_cost, n.latency_histogram::bigint[], n.size_histogram::bigint[]
FROM unnest($2::timestamptz[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::boolean[],
    $18::bigint[], $19::bigint[], $20::bigint[], $21::bigint[], $22::bigint[], $23::bigint[], $24::bigint[],
    $25::bigint[], $26::bigint[], $27::bigint[], $28::text[], $29::text[])
    AS n (bucket, dimension_key, provider, model, user_id, team_id, project_id, feature, agent_id, environment,
    cost_center, service_tier, status, cost_status, currency, reserved, requests, prompt_tokens, completion_tokens,
    cache_read_tokens, cache_write_tokens, reasoning_tokens, cost, latency_count, latency_us_sum, list_cost,
    latency_histogram, size_histogram)
ON CONFLICT (org_id, bucket, dimension_key) DO UPDATE SET
    requests = r.requests + excluded.requests,
    prompt_tokens = r.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = r.completion_tokens + excluded.completion_tokens,
    cache_read_tokens = r.cache_read_tokens + excluded.cache_read_tokens,
    cache_write_tokens = r.cache_write_tokens + excluded.cache_write_tokens,
    reasoning_tokens = r.reasoning_tokens + excluded.reasoning_tokens,
    cost = r.cost + excluded.cost,
    list_cost = r.list_cost + excluded.list_cost,
    latency_count = r.latency_count + excluded.latency_count,
    latency_us_sum = r.latency_us_sum + excluded.latency_us_sum,
    latency_histogram = add_counts(r.latency_histogram, excluded.latency_histogram),
    size_histogram = add_counts(r.size_histogram, excluded.size_histogram)
