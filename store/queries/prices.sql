-- name: revision
SELECT revision FROM price_book WHERE org_id = $1

-- name: history_since
SELECT ledger_clock() - make_interval(days => $1)

-- name: bump
INSERT INTO price_book (org_id, revision) VALUES ($1, 1)
ON CONFLICT (org_id) DO UPDATE SET revision = price_book.revision + 1 RETURNING revision

-- name: load_rules
SELECT * FROM price_rule AS old WHERE org_id = $1 AND NOT EXISTS (
    SELECT 1 FROM price_rule AS new WHERE new.org_id = old.org_id AND new.name = old.name AND new.version > old.version
        AND coalesce(new.valid_from, '-infinity') <= greatest(coalesce(old.valid_from, '-infinity'), $2))
ORDER BY name, version

-- name: load_aliases
SELECT * FROM model_alias AS old WHERE org_id = $1 AND NOT EXISTS (
    SELECT 1 FROM model_alias AS new WHERE new.org_id = old.org_id AND new.provider = old.provider
        AND new.alias = old.alias AND new.version > old.version
        AND coalesce(new.valid_from, '-infinity') <= greatest(coalesce(old.valid_from, '-infinity'), $2))
ORDER BY provider, alias, version

-- name: add_rule
INSERT INTO price_rule (org_id, name, version, rule_id, layer, definition, valid_from, valid_to, created_at, created_by,
    reason)
VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, $7, $8, $9, $10, $11)

-- name: add_alias
INSERT INTO model_alias (org_id, provider, alias, version, to_provider, to_model, valid_from, created_at, created_by,
    reason)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

-- name: open_volumes
INSERT INTO price_volume (org_id, name, month) SELECT $1, * FROM unnest($2::text[], $3::date[])
ON CONFLICT DO NOTHING

-- name: lock_volumes
SELECT name, month, used FROM price_volume WHERE org_id = $1
    AND (name, month) IN (SELECT * FROM unnest($2::text[], $3::date[]))
ORDER BY name, month FOR UPDATE

-- name: write_volumes
UPDATE price_volume SET used = new.used FROM unnest($2::text[], $3::date[], $4::bigint[]) AS new (name, month, used)
WHERE price_volume.org_id = $1 AND price_volume.name = new.name AND price_volume.month = new.month

-- name: volumes
SELECT name, month, used FROM price_volume WHERE org_id = $1
    AND (name, month) IN (SELECT * FROM unnest($2::text[], $3::date[]))
