-- What a cost is made of beyond the counts that have columns: list_cost is what it would be without the org's own
-- contracts, other_counts the kinds without a column of their own, the context what the model's window held.
ALTER TABLE usage_event
    ADD COLUMN list_cost bigint,
    ADD COLUMN other_counts jsonb,
    ADD COLUMN context_used bigint,
    ADD COLUMN context_limit bigint;
ALTER TABLE usage_rollup ADD COLUMN list_cost bigint NOT NULL DEFAULT 0;

-- A correction of one event's charge (R15), numbered from 1 for each event; before and after say what the event counts
-- for. charge_amounts are signed, in the budget's unit, by window. Never edited, like the event itself.
CREATE TABLE adjustment (
    org_id text NOT NULL,
    adjustment_id text NOT NULL,
    usage_id text NOT NULL,
    sequence integer NOT NULL CHECK (sequence > 0),
    kind text NOT NULL CHECK (kind IN ('void', 'correct', 'refund', 'reprice')),
    reason text NOT NULL,
    made_by text NOT NULL,
    made_at timestamptz NOT NULL,
    body_hash bytea NOT NULL,
    before jsonb NOT NULL,
    after jsonb NOT NULL,
    charge_windows bigint[] NOT NULL,
    charge_amounts bigint[] NOT NULL,
    PRIMARY KEY (org_id, adjustment_id),
    UNIQUE (org_id, usage_id, sequence)
);
CREATE INDEX adjustment_made ON adjustment (org_id, made_at, adjustment_id);
CREATE TRIGGER adjustment_append_only BEFORE UPDATE OR DELETE ON adjustment
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What an adjustment posts: first the reversal of what the event counted for, then what it counts for now. Measures are
-- signed; dimensions are the event's own.
CREATE TABLE adjustment_entry (
    org_id text NOT NULL,
    adjustment_id text NOT NULL,
    position smallint NOT NULL,
    usage_id text NOT NULL,
    "timestamp" timestamptz NOT NULL,
    posted_at timestamptz NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    user_id text,
    team_id text,
    project_id text,
    feature text,
    agent_id text,
    session_id text,
    task_id text,
    environment text,
    cost_center text,
    tags jsonb,
    service_tier text,
    region text,
    batch boolean NOT NULL,
    status text NOT NULL,
    cost_status text NOT NULL,
    price_source text,
    price_version text,
    line_items jsonb NOT NULL,
    currency text NOT NULL,
    reserved boolean NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    cost bigint,
    list_cost bigint,
    PRIMARY KEY (org_id, adjustment_id, position)
);
CREATE INDEX adjustment_entry_time ON adjustment_entry (org_id, "timestamp");
CREATE INDEX adjustment_entry_posted ON adjustment_entry (org_id, posted_at);
CREATE TRIGGER adjustment_entry_append_only BEFORE UPDATE OR DELETE ON adjustment_entry
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Everything that was ever counted: events, and what adjustments posted. Sums over it are what rollups say.
-- The line items of a reversal (sign -1) count negatively.
CREATE VIEW usage_posting AS
SELECT org_id, id AS usage_id, NULL::text AS adjustment_id, 1 AS sign, "timestamp", arrived_at AS posted_at, provider,
    model, user_id, team_id, project_id, feature, agent_id, session_id, task_id, environment, cost_center, tags,
    service_tier, region, batch, status, cost_status, price_source, price_version, line_items, currency, reserved,
    final::integer::bigint AS requests, prompt_tokens, completion_tokens, cache_read_tokens, cache_write_tokens,
    reasoning_tokens, cost, list_cost, latency_ms
FROM usage_event
UNION ALL
SELECT org_id, usage_id, adjustment_id, CASE position WHEN 0 THEN -1 ELSE 1 END, "timestamp", posted_at, provider,
    model, user_id, team_id, project_id, feature, agent_id, session_id, task_id, environment, cost_center, tags,
    service_tier, region, batch, status, cost_status, price_source, price_version, line_items, currency, reserved,
    requests, prompt_tokens, completion_tokens, cache_read_tokens, cache_write_tokens,
    reasoning_tokens, cost, list_cost, NULL::double precision
FROM adjustment_entry;
