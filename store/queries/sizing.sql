-- name: add
-- In the order given, which is that of the key. A key that is not there is added only while the org may have more.
INSERT INTO sizing AS s (org_id, provider, model, feature, agent_id, cost_counts, token_counts, learned, missed,
    updated_at)
SELECT $1, n.provider, n.model, n.feature, n.agent_id, n.cost_counts::integer[], n.token_counts::integer[],
    n.learned, n.missed, clock_timestamp()
FROM (
    SELECT g.*, k.org_id IS NOT NULL AS known, count(*) FILTER (WHERE k.org_id IS NULL) OVER (ORDER BY g.i) AS added
    FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $10::bigint[], $11::bigint[])
        WITH ORDINALITY AS g (provider, model, feature, agent_id, cost_counts, token_counts, learned, missed, i)
    LEFT JOIN sizing k ON k.org_id = $1 AND k.provider = g.provider AND k.model = g.model AND k.feature = g.feature
        AND k.agent_id = g.agent_id) n
WHERE n.known OR n.added + (SELECT count(*) FROM sizing WHERE org_id = $1) <= $8
ORDER BY n.i
ON CONFLICT (org_id, provider, model, feature, agent_id) DO UPDATE SET
    cost_counts = add_fading(s.cost_counts, excluded.cost_counts, $9),
    token_counts = add_fading(s.token_counts, excluded.token_counts, $9),
    learned = s.learned + excluded.learned,
    missed = s.missed + excluded.missed,
    updated_at = clock_timestamp()

-- name: changed
SELECT provider, model, feature, agent_id, cost_counts, token_counts, learned, missed, updated_at
FROM sizing WHERE org_id = $1 AND ($2::timestamptz IS NULL OR updated_at > $2 - interval '1 minute')
ORDER BY updated_at DESC LIMIT $3

-- name: forget
DELETE FROM sizing s USING (
    SELECT provider, model, feature, agent_id FROM sizing
    WHERE org_id = $1 AND (SELECT count(*) FROM sizing WHERE org_id = $1) >= $3
    ORDER BY updated_at DESC OFFSET $2 FOR UPDATE SKIP LOCKED) old
WHERE s.org_id = $1 AND s.provider = old.provider AND s.model = old.model AND s.feature = old.feature
    AND s.agent_id = old.agent_id

-- name: listing
SELECT provider, model, feature, agent_id, cost_counts, token_counts, learned, missed, updated_at
FROM sizing WHERE org_id = $1 AND (provider, model, feature, agent_id) > ($2, $3, $4, $5)
ORDER BY provider, model, feature, agent_id LIMIT $6

-- name: count_overrun
INSERT INTO overrun_cause AS o (org_id, day, cause, unit, amount, charges, currency)
SELECT $1, (ledger_clock() AT TIME ZONE 'UTC')::date, n.cause, n.unit, n.amount, n.charges, n.currency
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[])
    WITH ORDINALITY AS n (cause, unit, amount, charges, currency, i)
ORDER BY n.i
ON CONFLICT (org_id, day, cause, unit, currency) DO UPDATE SET
    amount = least(o.amount::numeric + excluded.amount, 9000000000000000000)::bigint, charges = o.charges + excluded.charges

-- name: overruns
SELECT cause, unit, least(sum(amount), 9000000000000000000)::bigint AS amount, sum(charges)::bigint AS charges, currency FROM overrun_cause
WHERE org_id = $1 AND day >= $2 AND day < $3 GROUP BY cause, unit, currency ORDER BY cause, unit, currency
