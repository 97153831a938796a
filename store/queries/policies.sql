-- name: latest
SELECT * FROM policy_document WHERE org_id = $1 ORDER BY version DESC LIMIT 1

-- name: add
INSERT INTO policy_document (org_id, version, document, sha256, applied_by, applied_at)
SELECT $1, coalesce(max(version), 0) + 1, $2, $3, $4, $5 FROM policy_document WHERE org_id = $1
RETURNING version
