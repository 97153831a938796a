-- Every version of every price rule an org has set. A version holds from its valid_from on (NULL: always) until a later
-- version of the same name does; one without a definition says that the rule ends. Never edited: what a call cost can be
-- computed again from the version stored with it.
CREATE TABLE price_rule (
    org_id text NOT NULL,
    name text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    rule_id text NOT NULL,
    layer text NOT NULL CHECK (layer IN ('contract', 'operator')),
    definition jsonb,
    valid_from timestamptz,
    valid_to timestamptz,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    reason text,
    PRIMARY KEY (org_id, name, version),
    UNIQUE (org_id, rule_id)
);
CREATE TRIGGER price_rule_append_only BEFORE UPDATE OR DELETE ON price_rule
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What an org calls a model: provider and alias may hold '*'. Versions as of price rules, by (provider, alias); one
-- without a model says that the alias ends.
CREATE TABLE model_alias (
    org_id text NOT NULL,
    provider text NOT NULL,
    alias text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    to_provider text,
    to_model text,
    valid_from timestamptz,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    reason text,
    PRIMARY KEY (org_id, provider, alias, version)
);
CREATE TRIGGER model_alias_append_only BEFORE UPDATE OR DELETE ON model_alias
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- How often an org's rules and aliases have changed: whoever adds a version adds one here.
CREATE TABLE price_book (
    org_id text PRIMARY KEY,
    revision bigint NOT NULL CHECK (revision > 0)
);

-- What a rule with volume tiers, or a commitment, has seen of a calendar month (UTC): tokens, or nanos of list cost.
CREATE TABLE price_volume (
    org_id text NOT NULL,
    name text NOT NULL,
    month date NOT NULL,
    used bigint NOT NULL DEFAULT 0 CHECK (used >= 0),
    PRIMARY KEY (org_id, name, month)
);
