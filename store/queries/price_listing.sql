-- name: newest_rules
SELECT DISTINCT ON (name) * FROM price_rule WHERE org_id = $1 AND name = ANY ($2::text[])
ORDER BY name, version DESC

-- name: rules_from
SELECT old.*, (
    SELECT min(new.valid_from) FROM price_rule AS new
    WHERE new.org_id = old.org_id AND new.name = old.name AND new.version > old.version
) AS replaced_at
FROM price_rule AS old
WHERE org_id = $1 AND definition IS NOT NULL AND coalesce(valid_to, 'infinity') > $2 AND NOT EXISTS (
    SELECT 1 FROM price_rule AS new WHERE new.org_id = old.org_id AND new.name = old.name AND new.version > old.version
        AND coalesce(new.valid_from, '-infinity') <= greatest(coalesce(old.valid_from, '-infinity'), $2))
ORDER BY name, version LIMIT $3

-- name: count_rules
SELECT count(DISTINCT name) FROM price_rule WHERE org_id = $1

-- name: page_rules
SELECT old.*, (
    SELECT min(new.valid_from) FROM price_rule AS new
    WHERE new.org_id = old.org_id AND new.name = old.name AND new.version > old.version
) AS replaced_at
FROM price_rule AS old
WHERE org_id = $1 AND ($2::text IS NULL OR name = $2) AND ($3::text IS NULL OR layer = $3)
    AND (name, version) > ($4, $5)
    AND ($6 OR (coalesce(valid_to, 'infinity') > $7 AND (definition IS NOT NULL OR valid_from > $7)
        AND ($8 OR coalesce(valid_from, '-infinity') <= $7)
        AND NOT EXISTS (
            SELECT 1 FROM price_rule AS new WHERE new.org_id = old.org_id AND new.name = old.name
                AND new.version > old.version
                AND coalesce(new.valid_from, '-infinity') <= greatest(coalesce(old.valid_from, '-infinity'), $7))))
ORDER BY name, version LIMIT $9

-- name: newest_alias
SELECT * FROM model_alias WHERE org_id = $1 AND provider = $2 AND alias = $3 ORDER BY version DESC LIMIT 1

-- name: count_aliases
SELECT count(*) FROM (SELECT DISTINCT provider, alias FROM model_alias WHERE org_id = $1) AS named

-- name: page_aliases
SELECT old.*, (
    SELECT min(new.valid_from) FROM model_alias AS new
    WHERE new.org_id = old.org_id AND new.provider = old.provider AND new.alias = old.alias AND new.version > old.version
) AS replaced_at
FROM model_alias AS old
WHERE org_id = $1 AND ($2::text IS NULL OR provider = $2) AND (provider, alias, version) > ($3, $4, $5)
    AND ($6 OR ((to_model IS NOT NULL OR valid_from > $7) AND NOT EXISTS (
        SELECT 1 FROM model_alias AS new WHERE new.org_id = old.org_id AND new.provider = old.provider
            AND new.alias = old.alias AND new.version > old.version
            AND coalesce(new.valid_from, '-infinity') <= greatest(coalesce(old.valid_from, '-infinity'), $7))))
ORDER BY provider, alias, version LIMIT $8
