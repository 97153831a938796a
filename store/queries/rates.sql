-- name: weighted
-- The first quarter hour lies only partly in the span: that part of it counts.
SELECT entity_id, amount FROM (
    SELECT entity_id, (coalesce(sum(amount) FILTER (WHERE NOT first), 0)
        + coalesce(div(sum(amount) FILTER (WHERE first) * $11::bigint, $12::bigint), 0))::numeric AS amount
    FROM (
    SELECT CASE $2 WHEN 'global' THEN '*' WHEN 'team' THEN team_id WHEN 'user' THEN user_id
            WHEN 'project' THEN project_id WHEN 'feature' THEN feature WHEN 'agent' THEN agent_id
            WHEN 'environment' THEN environment WHEN 'cost_center' THEN cost_center END AS entity_id,
        bucket = $10 AS first, CASE $4 WHEN 'cost' THEN CASE WHEN r.numerator = r.denominator THEN cost ELSE half_even(cost * r.numerator, r.denominator) END
            WHEN 'tokens' THEN prompt_tokens + completion_tokens ELSE requests END
            AS amount
    FROM usage_rollup
    LEFT JOIN unnest($15::text[], $16::numeric[], $17::numeric[]) AS r (code, numerator, denominator)
        ON r.code = currency
    WHERE org_id = $1 AND bucket >= $10
      AND ($5::text IS NULL OR provider LIKE $5) AND ($6::text IS NULL OR model LIKE $6)
      AND ($7::text IS NULL OR feature LIKE $7) AND ($8::text IS NULL OR environment LIKE $8)
      AND ($9::text IS NULL OR agent_id LIKE $9)
    ) r
    WHERE entity_id IS NOT NULL AND ($3 = '*' OR entity_id = $3)
    GROUP BY entity_id
) sums
WHERE amount >= $13
ORDER BY amount DESC, entity_id LIMIT $14

-- name: between
SELECT entity_id, coalesce(sum(amount), 0)::numeric AS amount
FROM (
    SELECT CASE $2 WHEN 'global' THEN '*' WHEN 'team' THEN team_id WHEN 'user' THEN user_id
            WHEN 'project' THEN project_id WHEN 'feature' THEN feature WHEN 'agent' THEN agent_id
            WHEN 'environment' THEN environment WHEN 'cost_center' THEN cost_center END AS entity_id,
        CASE $4 WHEN 'cost' THEN CASE WHEN r.numerator = r.denominator THEN cost ELSE half_even(cost * r.numerator, r.denominator) END
            WHEN 'tokens' THEN prompt_tokens + completion_tokens ELSE requests END
            AS amount
    FROM usage_rollup
    LEFT JOIN unnest($13::text[], $14::numeric[], $15::numeric[]) AS r (code, numerator, denominator)
        ON r.code = currency
    WHERE org_id = $1 AND bucket >= $10 AND ($11::timestamptz IS NULL OR bucket < $11)
      AND ($5::text IS NULL OR provider LIKE $5) AND ($6::text IS NULL OR model LIKE $6)
      AND ($7::text IS NULL OR feature LIKE $7) AND ($8::text IS NULL OR environment LIKE $8)
      AND ($9::text IS NULL OR agent_id LIKE $9)
) r
WHERE entity_id IS NOT NULL AND ($3 = '*' OR entity_id = $3)
GROUP BY entity_id
ORDER BY 2 DESC, entity_id LIMIT $12

-- name: by_day
SELECT day, coalesce(sum(amount), 0)::numeric AS amount
FROM (
    SELECT CASE $2 WHEN 'global' THEN '*' WHEN 'team' THEN team_id WHEN 'user' THEN user_id
            WHEN 'project' THEN project_id WHEN 'feature' THEN feature WHEN 'agent' THEN agent_id
            WHEN 'environment' THEN environment WHEN 'cost_center' THEN cost_center END AS entity_id,
        (bucket AT TIME ZONE $12)::date AS day, CASE $4 WHEN 'cost' THEN CASE WHEN r.numerator = r.denominator THEN cost ELSE half_even(cost * r.numerator, r.denominator) END
            WHEN 'tokens' THEN prompt_tokens + completion_tokens ELSE requests END
            AS amount
    FROM usage_rollup
    LEFT JOIN unnest($13::text[], $14::numeric[], $15::numeric[]) AS r (code, numerator, denominator)
        ON r.code = currency
    WHERE org_id = $1 AND bucket >= $10 AND bucket < $11
      AND ($5::text IS NULL OR provider LIKE $5) AND ($6::text IS NULL OR model LIKE $6)
      AND ($7::text IS NULL OR feature LIKE $7) AND ($8::text IS NULL OR environment LIKE $8)
      AND ($9::text IS NULL OR agent_id LIKE $9)
) r
WHERE entity_id IS NOT NULL AND ($3 = '*' OR entity_id = $3)
GROUP BY day

-- name: windows_ahead
SELECT w.window_id FROM budget_window w
WHERE w.org_id = $1 AND w.budget_id = $2 AND w.starts_at = $3 AND w.spent > 0
  AND NOT EXISTS (
      SELECT FROM alert a WHERE a.org_id = $1 AND a.dedup_key = 'pacing:' || $4::text || ':' || w.window_id::text)
  AND ($5::bigint IS NULL OR w.spent::numeric * $6::bigint > ($7::numeric + w.carry) * $5::bigint)
ORDER BY w.entity_id LIMIT $8
