-- name: lock_revision
SELECT pg_advisory_xact_lock(hashtextextended('exchange_rate', 0))

-- name: next_revision
SELECT coalesce(max(revision), 0) + 1 FROM exchange_rate

-- name: add
INSERT INTO exchange_rate (org_id, revision, base, quote, as_of, rate, source, recorded_at)
SELECT $1, $2, n.base, n.quote, n.as_of, n.rate, $3, $4
FROM unnest($5::text[], $6::text[], $7::date[], $8::numeric[]) AS n (base, quote, as_of, rate)
ORDER BY n.base, n.quote, n.as_of

-- name: add_new
INSERT INTO exchange_rate (org_id, revision, base, quote, as_of, rate, source, recorded_at)
SELECT $1, $2, n.base, n.quote, n.as_of, n.rate, $3, $4
FROM unnest($5::text[], $6::text[], $7::date[], $8::numeric[]) AS n (base, quote, as_of, rate)
WHERE NOT EXISTS (SELECT FROM exchange_rate e
    WHERE e.org_id = $1 AND e.base = n.base AND e.quote = n.quote AND e.as_of = n.as_of)
ORDER BY n.base, n.quote, n.as_of

-- name: newest
SELECT coalesce(max(revision), 0) FROM exchange_rate WHERE org_id IN ('', $1)

-- name: since
SELECT org_id, revision, base, quote, as_of, rate, source FROM exchange_rate
WHERE org_id = $1 AND revision > $2 OR org_id = '' AND revision > $3
ORDER BY revision, base, quote, as_of

-- name: count
SELECT count(*) FROM exchange_rate WHERE org_id = $1

-- name: days
SELECT DISTINCT quote, as_of FROM exchange_rate WHERE org_id = $1

-- name: known
SELECT EXISTS (SELECT FROM exchange_rate WHERE org_id = $1 AND base = $2 AND quote = $3 AND as_of = $4)
