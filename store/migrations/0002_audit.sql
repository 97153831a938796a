-- The audit trail of each org: a hash chain. Every entry's hash covers its content and the hash before it, so that
-- nothing can be changed, removed or put in between without all later hashes telling.
-- "content" is the canonical JSON that was hashed, kept as text: what was hashed can be hashed again, to the byte.
CREATE TABLE audit_head (
    org_id text PRIMARY KEY,
    seq bigint NOT NULL,
    hash bytea NOT NULL
);

CREATE TABLE audit (
    org_id text NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    entity text NOT NULL,
    entity_id text NOT NULL,
    content text NOT NULL,
    previous_hash bytea NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (org_id, seq)
);
CREATE INDEX audit_entity ON audit (org_id, entity, entity_id, seq);
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_never_emptied BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
