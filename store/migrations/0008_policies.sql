-- A deleted budget stays: the ledger refers to it, and its live reservations settle. Only its name becomes free.
-- "managed" budgets belong to the org's policies; those made by hand are nobody's but their maker's.
ALTER TABLE budget ADD COLUMN deleted_at timestamptz;
ALTER TABLE budget ADD COLUMN managed boolean NOT NULL DEFAULT false;
ALTER TABLE budget DROP CONSTRAINT budget_org_id_name_key;
CREATE UNIQUE INDEX budget_name ON budget (org_id, name) WHERE deleted_at IS NULL;
CREATE INDEX budget_listing ON budget (org_id, name, budget_id);
CREATE INDEX budget_gate ON budget (org_id, gate_id) WHERE gate_id IS NOT NULL;

-- Every policy document that changed anything, as it was given.
CREATE TABLE policy_document (
    org_id text NOT NULL,
    version integer NOT NULL,
    document text NOT NULL,
    sha256 text NOT NULL,
    applied_by text NOT NULL,
    applied_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, version)
);
CREATE TRIGGER policy_document_append_only BEFORE UPDATE OR DELETE ON policy_document
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
