-- By which rules shared cost is split, for each way of allocating (team, project, ..., or tag:<name>).
CREATE TABLE allocation_rules (
    org_id text NOT NULL,
    allocated_by text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    rules jsonb NOT NULL,
    updated_at timestamptz NOT NULL,
    updated_by text NOT NULL,
    PRIMARY KEY (org_id, allocated_by)
);

-- The last number of each series and year: whoever issues a document holds its row until the commit, so none is missing.
CREATE TABLE invoice_number (
    org_id text NOT NULL,
    series text NOT NULL CHECK (series IN ('INV', 'CN')),
    year integer NOT NULL,
    last integer NOT NULL CHECK (last > 0),
    PRIMARY KEY (org_id, series, year)
);

-- Invoices and the credit notes that take them back, as they were issued. payer_id is empty for the org itself.
-- document holds everything but the lines; net and due are nanos of the currency.
CREATE TABLE invoice (
    org_id text NOT NULL,
    invoice_id uuid NOT NULL,
    series text NOT NULL CHECK (series IN ('INV', 'CN')),
    year integer NOT NULL,
    sequence integer NOT NULL,
    number text NOT NULL,
    payer_type text NOT NULL,
    payer_id text NOT NULL,
    allocated boolean NOT NULL,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    currency text NOT NULL,
    net bigint NOT NULL,
    due bigint NOT NULL,
    issued_at timestamptz NOT NULL,
    issued_by text NOT NULL,
    request_id text,
    body_hash bytea,
    corrects uuid,
    reason text,
    document jsonb NOT NULL,
    PRIMARY KEY (org_id, invoice_id),
    UNIQUE (org_id, series, year, sequence),
    UNIQUE (org_id, number),
    UNIQUE (org_id, request_id),
    UNIQUE (org_id, corrects),
    CHECK ((series = 'CN') = (corrects IS NOT NULL))
);
CREATE INDEX invoice_listing ON invoice (org_id, issued_at, invoice_id);
CREATE INDEX invoice_of_payer ON invoice (org_id, payer_type, payer_id, allocated, period_start);
CREATE TRIGGER invoice_append_only BEFORE UPDATE OR DELETE ON invoice
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What was billed, line by line: what a payer still owes for a period is what it used less the sum of these. A credit
-- note has the lines of its invoice with the signs turned. cost and list_cost are nanos of the line's own currency, net
-- and list_net of the invoice's.
CREATE TABLE invoice_line (
    org_id text NOT NULL,
    invoice_id uuid NOT NULL,
    position integer NOT NULL,
    section text NOT NULL,
    kind text NOT NULL,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    provider text,
    model text,
    project_id text,
    rule text,
    corrects text,
    currency text NOT NULL,
    requests bigint NOT NULL,
    unpriced_requests bigint NOT NULL,
    unpriced_tokens bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    cost bigint NOT NULL,
    list_cost bigint NOT NULL,
    net bigint NOT NULL,
    list_net bigint NOT NULL,
    PRIMARY KEY (org_id, invoice_id, position)
);
CREATE TRIGGER invoice_line_append_only BEFORE UPDATE OR DELETE ON invoice_line
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
