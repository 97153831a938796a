-- name: open
INSERT INTO bill (org_id, bill_id, provider, settings, imported_at, imported_by)
VALUES ($1, $2, $3, $4::text::jsonb, ledger_clock(), $5)
ON CONFLICT (org_id, bill_id) DO NOTHING

-- name: lock
SELECT * FROM bill WHERE org_id = $1 AND bill_id = $2 FOR UPDATE

-- name: find
SELECT b.*, (SELECT count(*) FROM bill_part p WHERE p.org_id = b.org_id AND p.bill_id = b.bill_id)::integer AS parts,
    (SELECT array_agg(DISTINCT p.format ORDER BY p.format) FROM bill_part p
      WHERE p.org_id = b.org_id AND p.bill_id = b.bill_id) AS formats,
    coalesce((SELECT sum(p.lines) FROM bill_part p WHERE p.org_id = b.org_id AND p.bill_id = b.bill_id), 0)::integer
        AS lines
FROM bill b WHERE {where} ORDER BY b.imported_at DESC, b.bill_id DESC

-- name: count
SELECT count(*)::integer FROM bill WHERE org_id = $1

-- name: part
SELECT content_hash FROM bill_part WHERE org_id = $1 AND bill_id = $2 AND part = $3

-- name: parts
SELECT part FROM bill_part WHERE org_id = $1 AND bill_id = $2 ORDER BY part

-- name: put_part
INSERT INTO bill_part (org_id, bill_id, part, content_hash, format, lines) VALUES ($1, $2, $3, $4, $5, $6)

-- name: reset
DELETE FROM bill WHERE org_id = $1 AND bill_id = $2

-- name: complete
UPDATE bill SET status = 'complete' WHERE org_id = $1 AND bill_id = $2

-- name: line_count
SELECT coalesce(sum(lines), 0)::integer FROM bill_part WHERE org_id = $1 AND bill_id = $2

-- name: lines
SELECT l.*, p.format FROM bill_line l
JOIN bill_part p ON p.org_id = l.org_id AND p.bill_id = l.bill_id AND p.part = l.part
WHERE l.org_id = $1 AND l.bill_id = $2 ORDER BY l.day, l.model, l.tier, l.kind, l.part

-- name: settings
UPDATE bill SET settings = $3::text::jsonb WHERE org_id = $1 AND bill_id = $2

-- name: forget_rows
DELETE FROM bill_row WHERE org_id = $1 AND bill_id = $2

-- name: result
UPDATE bill SET compared_at = ledger_clock(), summary = $3::text::jsonb WHERE org_id = $1 AND bill_id = $2

-- name: rows
SELECT position, content FROM bill_row WHERE org_id = $1 AND bill_id = $2 AND position > $3 ORDER BY position LIMIT $4

-- name: our_calls
SELECT ("timestamp" AT TIME ZONE 'UTC')::date AS day, model, currency,
    sum(requests)::bigint AS calls, coalesce(sum(cost), 0)::bigint AS cost,
    coalesce(sum(coalesce(list_cost, cost)), 0)::bigint AS list_cost,
    coalesce(sum(requests) FILTER (WHERE cost IS NULL), 0)::bigint AS unpriced,
    coalesce(sum(cost) FILTER (WHERE adjustment_id IS NULL), 0)::bigint AS recorded_cost,
    coalesce(sum(requests) FILTER (WHERE adjustment_id IS NULL), 0)::bigint AS recorded_calls,
    count(DISTINCT adjustment_id)::integer AS adjustments
FROM usage_posting WHERE {where} GROUP BY 1, 2, 3

-- name: our_kinds
-- Tokens of a call that has no line items (nothing prices its model), or one for its reported cost, are its counts.
SELECT (p."timestamp" AT TIME ZONE 'UTC')::date AS day, p.model, p.currency,
    CASE WHEN p.batch THEN 'batch' ELSE lower(coalesce(p.service_tier, 'standard')) END AS tier, i.kind,
    sum(p.sign * i.quantity)::bigint AS quantity, sum(p.sign * i.nanos)::bigint AS cost,
    sum(p.sign * coalesce(i.list_nanos, i.nanos))::bigint AS list_cost
FROM usage_posting p CROSS JOIN LATERAL (
    SELECT e ->> 0 AS kind, (e ->> 1)::bigint AS quantity, (e ->> 3)::bigint AS nanos, (e ->> 5)::bigint AS list_nanos
    FROM jsonb_array_elements(p.line_items) AS e WHERE e ->> 0 <> 'reported'
    UNION ALL
    SELECT k.kind, p.sign * k.quantity, NULL, NULL
    FROM (VALUES ('input', p.prompt_tokens - p.cache_read_tokens - p.cache_write_tokens),
        ('cache_read', p.cache_read_tokens), ('cache_write', p.cache_write_tokens),
        ('output', p.completion_tokens)) AS k (kind, quantity)
    WHERE k.quantity <> 0 AND (p.line_items = '[]'::jsonb OR p.line_items -> 0 ->> 0 = 'reported')
) AS i
WHERE {where} GROUP BY 1, 2, 3, 4, 5

-- name: our_events
-- Calls of one day and model that still count for something, to be named one by one.
SELECT usage_id, sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
    sum(cost)::bigint AS cost
FROM usage_posting WHERE {where} GROUP BY usage_id HAVING sum(requests) > 0 ORDER BY usage_id
