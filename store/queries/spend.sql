-- name: by_feature
-- What was spent on each feature and model since a bucket, the costliest first, each sum in one currency; costs in a
-- currency without a rate are left out.
SELECT feature, provider, model, sum(requests)::bigint AS requests, sum(prompt_tokens)::bigint AS prompt_tokens,
    sum(completion_tokens)::bigint AS completion_tokens, sum(cache_read_tokens)::bigint AS cache_read_tokens,
    sum(cache_write_tokens)::bigint AS cache_write_tokens, sum(reasoning_tokens)::bigint AS reasoning_tokens,
    sum(half_even(cost * r.numerator, r.denominator)) AS cost,
    coalesce(sum(half_even(cost * r.numerator, r.denominator)) FILTER (WHERE NOT reserved), 0) AS unreserved_cost
FROM usage_rollup
JOIN unnest($12::text[], $13::numeric[], $14::numeric[]) AS r (code, numerator, denominator) ON r.code = currency
WHERE org_id = $1 AND bucket >= $4 AND ($5::timestamptz IS NULL OR bucket < $5)
  AND ($2 = 'global' OR $3 = '*' OR $3 = CASE $2 WHEN 'team' THEN team_id WHEN 'user' THEN user_id
        WHEN 'project' THEN project_id WHEN 'feature' THEN feature WHEN 'agent' THEN agent_id
        WHEN 'environment' THEN environment WHEN 'cost_center' THEN cost_center END)
  AND ($6::text IS NULL OR provider LIKE $6) AND ($7::text IS NULL OR model LIKE $7)
  AND ($8::text IS NULL OR feature LIKE $8) AND ($9::text IS NULL OR environment LIKE $9)
  AND ($10::text IS NULL OR agent_id LIKE $10)
GROUP BY feature, provider, model ORDER BY cost DESC, feature, provider, model LIMIT $11
