-- name: lock_shared
SELECT pg_advisory_xact_lock_shared(catalogue_key($1))

-- name: lock_exclusive
SELECT pg_advisory_xact_lock(catalogue_key($1))

-- name: version
SELECT version FROM org_catalogue WHERE org_id = $1

-- name: orgs
SELECT org_id FROM org_catalogue ORDER BY version DESC, org_id LIMIT $1

-- name: bump
INSERT INTO org_catalogue (org_id, version) VALUES ($1, 1)
ON CONFLICT (org_id) DO UPDATE SET version = org_catalogue.version + 1 RETURNING version

-- name: load
SELECT * FROM budget WHERE org_id = $1 ORDER BY name

-- name: load_settings
SELECT key, value FROM setting WHERE org_id = $1

-- name: put_setting
INSERT INTO setting (org_id, key, value) VALUES ($1, $2, $3::text::jsonb)
ON CONFLICT (org_id, key) DO UPDATE SET value = excluded.value, updated_at = clock_timestamp()

-- name: find
SELECT * FROM budget WHERE org_id = $1 AND budget_id = $2

-- name: some
SELECT * FROM budget WHERE org_id = $1 AND budget_id = ANY ($2::uuid[])

-- name: insert
INSERT INTO budget (org_id, budget_id, version, name, type, entity_id, filters, unit, currency, period, timezone,
    base_limit, overage_percent, enforcement, alert_thresholds, rollover_policy, rollover_percent, override_policy,
    on_expiry, preferred_models, fallback_model, active, counting_since, created_at, updated_at, gate_id,
    deleted_at, managed)
VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18::text::jsonb,
    $19, $20, $21, $22, $23, $24, $25, $26, $27, $28)

-- name: update
UPDATE budget SET version = $3, name = $4, base_limit = $12, overage_percent = $13, enforcement = $14,
    alert_thresholds = $15, rollover_policy = $16, rollover_percent = $17, override_policy = $18::text::jsonb,
    on_expiry = $19, preferred_models = $20, fallback_model = $21, active = $22, updated_at = $25,
    deleted_at = $27, managed = $28,
    -- The identity of a budget never changes (R4); naming the parameters keeps one list of values for both statements.
    type = $5, entity_id = $6, filters = $7::text::jsonb, unit = $8, currency = $9, period = $10, timezone = $11,
    counting_since = $23, created_at = $24, gate_id = $26
WHERE org_id = $1 AND budget_id = $2

-- name: listing
SELECT * FROM budget
WHERE org_id = $1 AND ($2::text IS NULL OR type = $2) AND ($3::text[] IS NULL OR entity_id = ANY ($3))
  AND ($4::boolean IS NULL OR active = $4) AND ($5 OR deleted_at IS NULL)
  AND (name, budget_id) > ($6::text, $7::uuid)
ORDER BY name, budget_id LIMIT $8

-- name: rates_of
SELECT * FROM budget WHERE org_id = $1 AND gate_id = ANY ($2::uuid[]) ORDER BY created_at, budget_id

-- name: managed
SELECT * FROM budget WHERE org_id = $1 AND managed AND deleted_at IS NULL ORDER BY name

-- name: named
SELECT * FROM budget WHERE org_id = $1 AND name = ANY ($2::text[]) AND deleted_at IS NULL ORDER BY name
