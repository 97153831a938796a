-- What providers billed, as their exports said it: lines summed by day, model and kind, and what a comparison with the
-- org's own usage found. A bill is open until its last part has come; only a complete one is compared.
CREATE TABLE bill (
    org_id text NOT NULL,
    bill_id text NOT NULL,
    provider text NOT NULL,
    status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'complete')),
    settings jsonb NOT NULL,
    imported_at timestamptz NOT NULL,
    imported_by text NOT NULL,
    compared_at timestamptz,
    summary jsonb,
    PRIMARY KEY (org_id, bill_id)
);
CREATE INDEX bill_listing ON bill (org_id, imported_at DESC, bill_id DESC);

CREATE TABLE bill_part (
    org_id text NOT NULL,
    bill_id text NOT NULL,
    part integer NOT NULL CHECK (part > 0),
    content_hash bytea NOT NULL,
    format text NOT NULL,
    lines integer NOT NULL,
    PRIMARY KEY (org_id, bill_id, part),
    FOREIGN KEY (org_id, bill_id) REFERENCES bill (org_id, bill_id) ON DELETE CASCADE
);

-- model is empty where the bill does not tell models apart, kind where it does not tell kinds apart; cells counts the
-- amounts that were added, each rounded to so many decimals. quantity and cost (nanos) are null where not stated.
CREATE TABLE bill_line (
    org_id text NOT NULL,
    bill_id text NOT NULL,
    part integer NOT NULL,
    day date NOT NULL,
    model text NOT NULL,
    tier text NOT NULL,
    kind text NOT NULL,
    currency text NOT NULL,
    quantity bigint,
    cost bigint,
    cells integer NOT NULL,
    decimals integer NOT NULL,
    PRIMARY KEY (org_id, bill_id, part, day, model, tier, kind, currency),
    FOREIGN KEY (org_id, bill_id, part) REFERENCES bill_part (org_id, bill_id, part) ON DELETE CASCADE
);

-- The comparison, the largest differences first.
CREATE TABLE bill_row (
    org_id text NOT NULL,
    bill_id text NOT NULL,
    position integer NOT NULL,
    content jsonb NOT NULL,
    PRIMARY KEY (org_id, bill_id, position),
    FOREIGN KEY (org_id, bill_id) REFERENCES bill (org_id, bill_id) ON DELETE CASCADE
);
