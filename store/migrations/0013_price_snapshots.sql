-- Public list prices from the operator's file or mirror, as the org used them: the bytes of the file, compressed, kept
-- for good, so that every cost computed with them can be computed again.
CREATE TABLE price_snapshot (
    org_id text NOT NULL,
    digest text NOT NULL CHECK (length(digest) = 64),
    source text NOT NULL,
    stated_until date,
    models integer NOT NULL,
    stored_at timestamptz NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (org_id, digest)
);
CREATE TRIGGER price_snapshot_append_only BEFORE UPDATE OR DELETE ON price_snapshot
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Which list prices an org used from when on: the newest row is in use; without a digest, those that came with the
-- agent. approved lists what was suspicious and was approved by whoever applied them.
CREATE TABLE price_snapshot_use (
    org_id text NOT NULL,
    sequence integer NOT NULL CHECK (sequence > 0),
    digest text,
    approved text[] NOT NULL,
    applied_at timestamptz NOT NULL,
    applied_by text NOT NULL,
    reason text,
    PRIMARY KEY (org_id, sequence),
    FOREIGN KEY (org_id, digest) REFERENCES price_snapshot (org_id, digest)
);
CREATE TRIGGER price_snapshot_use_append_only BEFORE UPDATE OR DELETE ON price_snapshot_use
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
