-- name: lock
SELECT pg_advisory_xact_lock(hashtextextended('invoices:' || $1, 0))

-- name: next_sequence
INSERT INTO invoice_number AS n (org_id, series, year, last) VALUES ($1, $2, $3, 1)
ON CONFLICT (org_id, series, year) DO UPDATE SET last = n.last + 1 RETURNING last

-- name: used_sums
-- What was counted when it arrived is what rollups say less what adjustments posted. Before list costs were kept they
-- were what was paid.
WITH adjusted AS (
    SELECT a.kind, e.provider, e.model, e.project_id, e.currency, e.requests,
        CASE WHEN e.cost_status = 'unpriced' THEN e.requests ELSE 0 END AS unpriced_requests,
        CASE WHEN e.cost_status = 'unpriced' THEN e.prompt_tokens + e.completion_tokens ELSE 0 END AS unpriced_tokens,
        e.prompt_tokens, e.completion_tokens, e.cache_read_tokens, e.cache_write_tokens, e.reasoning_tokens,
        coalesce(e.cost, 0) AS cost, coalesce(e.list_cost, e.cost, 0) AS list_cost
    FROM (SELECT * FROM adjustment_entry
        WHERE org_id = $1 AND "timestamp" >= $2 AND "timestamp" < $3/*payer*/) AS e
    JOIN adjustment a ON a.org_id = e.org_id AND a.adjustment_id = e.adjustment_id
), counted AS (
    SELECT 'usage' AS kind, provider, model, project_id, currency, requests,
        CASE WHEN cost_status = 'unpriced' THEN requests ELSE 0 END AS unpriced_requests,
        CASE WHEN cost_status = 'unpriced' THEN prompt_tokens + completion_tokens ELSE 0 END AS unpriced_tokens,
        prompt_tokens, completion_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, cost,
        list_cost
    FROM usage_rollup WHERE org_id = $1 AND bucket >= $2 AND bucket < $3/*payer*/
    UNION ALL
    SELECT 'usage', provider, model, project_id, currency, -requests, -unpriced_requests, -unpriced_tokens, -prompt_tokens,
        -completion_tokens, -cache_read_tokens, -cache_write_tokens, -reasoning_tokens, -cost, -list_cost FROM adjusted
    UNION ALL
    SELECT * FROM adjusted
)
SELECT kind, provider, model, project_id, NULL::text, currency, sum(requests)::bigint, sum(unpriced_requests)::bigint,
    sum(unpriced_tokens)::bigint,
    sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint, sum(cache_read_tokens)::bigint,
    sum(cache_write_tokens)::bigint, sum(reasoning_tokens)::bigint, sum(cost)::bigint, sum(list_cost)::bigint
FROM counted GROUP BY 1, 2, 3, 4, 6 ORDER BY 1, 2, 3, 4, 6 LIMIT $4

-- name: price_sums
-- A cost that somebody stated has no rate; of a call without a cost the parts do not count either.
SELECT p.provider, p.model, i.item ->> 0 AS kind, p.currency,
    CASE WHEN i.item ->> 0 NOT IN ('reported', 'stated', 'refund') THEN (i.item ->> 2)::bigint END AS rate,
    CASE WHEN i.item ->> 0 NOT IN ('reported', 'stated', 'refund') THEN coalesce((i.item ->> 4)::bigint, (i.item ->> 2)::bigint) END AS list_rate,
    sum(p.sign * (i.item ->> 1)::bigint)::bigint AS quantity, sum(p.sign * (i.item ->> 3)::bigint)::bigint AS cost
FROM (SELECT * FROM usage_posting
    WHERE org_id = $1 AND "timestamp" >= $2 AND "timestamp" < $3 AND cost IS NOT NULL/*payer*/) AS p
CROSS JOIN LATERAL jsonb_array_elements(p.line_items) AS i (item)
GROUP BY 1, 2, 3, 4, 5, 6 HAVING sum(p.sign * (i.item ->> 1)::bigint) <> 0 OR sum(p.sign * (i.item ->> 3)::bigint) <> 0
ORDER BY cost DESC, 1, 2, 3, 4, 5, 6 LIMIT $4

-- name: billed_sums
SELECT l.kind, l.provider, l.model, l.project_id, l.rule, l.currency, sum(l.requests)::bigint,
    sum(l.unpriced_requests)::bigint, sum(l.unpriced_tokens)::bigint, sum(l.prompt_tokens)::bigint, sum(l.completion_tokens)::bigint,
    sum(l.cache_read_tokens)::bigint, sum(l.cache_write_tokens)::bigint, sum(l.reasoning_tokens)::bigint,
    sum(l.cost)::bigint, sum(l.list_cost)::bigint
FROM invoice i JOIN invoice_line l ON l.org_id = i.org_id AND l.invoice_id = i.invoice_id
WHERE i.org_id = $1 AND i.payer_type = $2 AND i.payer_id = $3 AND i.allocated = $4
    AND l.period_start >= $5 AND l.period_end <= $6
GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6

-- name: standing
SELECT i.invoice_id, i.series, i.year, i.sequence, i.number, i.payer_type, i.payer_id, i.allocated, i.period_start,
    i.period_end, i.currency, i.net, i.due, i.issued_at, i.issued_by, i.request_id, i.body_hash, i.corrects, i.reason,
    i.document
FROM invoice i
WHERE i.org_id = $1 AND i.payer_type = $2 AND i.payer_id = $3 AND i.allocated = $4 AND i.series = 'INV'
    AND NOT EXISTS (SELECT FROM invoice c WHERE c.org_id = i.org_id AND c.corrects = i.invoice_id)
ORDER BY i.period_start DESC LIMIT $5

-- name: overlapping
SELECT i.number FROM invoice i
WHERE i.org_id = $1 AND i.payer_type = $2 AND i.payer_id = $3 AND i.allocated = $4 AND i.series = 'INV'
    AND i.period_start < $6 AND i.period_end > $5
    AND NOT EXISTS (SELECT FROM invoice c WHERE c.org_id = i.org_id AND c.corrects = i.invoice_id)
ORDER BY i.period_start LIMIT 1

-- name: billed_across
SELECT period_start, period_end FROM (
    SELECT l.period_start, l.period_end, sum(l.cost) AS cost, sum(l.requests) AS requests
    FROM invoice i JOIN invoice_line l ON l.org_id = i.org_id AND l.invoice_id = i.invoice_id
    WHERE i.org_id = $1 AND i.payer_type = $2 AND i.payer_id = $3 AND i.allocated = $4
        AND l.period_start < $6 AND l.period_end > $5 AND NOT (l.period_start >= $5 AND l.period_end <= $6)
    GROUP BY l.period_start, l.period_end, l.kind, l.provider, l.model, l.project_id, l.rule, l.currency
) AS billed WHERE cost <> 0 OR requests <> 0 ORDER BY 1 LIMIT 1

-- name: overlapping_payers
SELECT i.number FROM invoice i
WHERE i.org_id = $1 AND (i.payer_type, i.payer_id, i.allocated) <> ($2, $3, $4) AND i.series = 'INV'
    AND i.period_start < $6 AND i.period_end > $5
    AND NOT EXISTS (SELECT FROM invoice c WHERE c.org_id = i.org_id AND c.corrects = i.invoice_id)
ORDER BY i.issued_at DESC LIMIT 10

-- name: by_request
SELECT i.invoice_id, i.series, i.year, i.sequence, i.number, i.payer_type, i.payer_id, i.allocated, i.period_start,
    i.period_end, i.currency, i.net, i.due, i.issued_at, i.issued_by, i.request_id, i.body_hash, i.corrects, i.reason,
    i.document, NULL::text AS corrects_number, c.number AS credited_by
FROM invoice i LEFT JOIN invoice c ON c.org_id = i.org_id AND c.corrects = i.invoice_id
WHERE i.org_id = $1 AND i.request_id = $2

-- name: find
SELECT i.invoice_id, i.series, i.year, i.sequence, i.number, i.payer_type, i.payer_id, i.allocated, i.period_start,
    i.period_end, i.currency, i.net, i.due, i.issued_at, i.issued_by, i.request_id, i.body_hash, i.corrects, i.reason,
    i.document, o.number AS corrects_number, c.number AS credited_by
FROM invoice i
LEFT JOIN invoice c ON c.org_id = i.org_id AND c.corrects = i.invoice_id
LEFT JOIN invoice o ON o.org_id = i.org_id AND o.invoice_id = i.corrects
WHERE i.org_id = $1 AND (i.number = $2 OR i.invoice_id::text = lower($2))

-- name: listing
SELECT i.invoice_id, i.series, i.year, i.sequence, i.number, i.payer_type, i.payer_id, i.allocated, i.period_start,
    i.period_end, i.currency, i.net, i.due, i.issued_at, i.issued_by, i.request_id, i.body_hash, i.corrects, i.reason,
    NULL::jsonb AS document, o.number AS corrects_number, c.number AS credited_by
FROM invoice i
LEFT JOIN invoice c ON c.org_id = i.org_id AND c.corrects = i.invoice_id
LEFT JOIN invoice o ON o.org_id = i.org_id AND o.invoice_id = i.corrects
WHERE i.org_id = $1 AND ($2::text IS NULL OR i.series = $2) AND ($3::text IS NULL OR i.payer_type = $3)
    AND ($4::text[] IS NULL OR i.payer_id = ANY ($4)) AND ($5::integer IS NULL OR i.year = $5)
    AND ($6::timestamptz IS NULL OR (i.issued_at, i.invoice_id) < ($6, $7::text::uuid))
ORDER BY i.issued_at DESC, i.invoice_id DESC LIMIT $8

-- name: insert
INSERT INTO invoice (org_id, invoice_id, series, year, sequence, number, payer_type, payer_id, allocated, period_start,
    period_end, currency, net, due, issued_at, issued_by, request_id, body_hash, corrects, reason, document)
VALUES ($1, $2::text::uuid, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19::text::uuid, $20,
    $21::text::jsonb)

-- name: lines
SELECT section, kind, period_start, period_end, provider, model, project_id, rule, corrects, currency, requests,
    unpriced_requests, unpriced_tokens, prompt_tokens, completion_tokens, cache_read_tokens, cache_write_tokens,
    reasoning_tokens, cost, list_cost, net, list_net
FROM invoice_line WHERE org_id = $1 AND invoice_id = $2::text::uuid AND position > $3 ORDER BY position LIMIT $4

-- name: count_lines
SELECT count(*) FROM invoice_line WHERE org_id = $1 AND invoice_id = $2::text::uuid
