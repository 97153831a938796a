-- name: find
SELECT org_id, provider, model, context_window, max_input_tokens, max_output_tokens, set_by, set_at FROM model_limit
WHERE org_id = $1 AND provider = $2 AND model = $3

-- name: put
INSERT INTO model_limit (org_id, provider, model, context_window, max_input_tokens, max_output_tokens, set_by, set_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (org_id, provider, model) DO UPDATE SET context_window = excluded.context_window,
    max_input_tokens = excluded.max_input_tokens, max_output_tokens = excluded.max_output_tokens,
    set_by = excluded.set_by, set_at = excluded.set_at

-- name: remove
DELETE FROM model_limit WHERE org_id = $1 AND provider = $2 AND model = $3

-- name: count
SELECT count(*) FROM model_limit WHERE org_id = $1

-- name: listing
SELECT org_id, provider, model, context_window, max_input_tokens, max_output_tokens, set_by, set_at FROM model_limit
WHERE org_id = $1 AND ($2::text IS NULL OR provider = $2) AND (provider, model) > ($3, $4)
ORDER BY provider, model LIMIT $5

-- name: load
SELECT provider, model, context_window, max_input_tokens, max_output_tokens FROM model_limit WHERE org_id = $1
