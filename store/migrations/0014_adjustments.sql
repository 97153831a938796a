-- The ledger's clock as of the statement, which PostgreSQL may ask once for a whole COPY.
CREATE FUNCTION ledger_statement_clock() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT statement_timestamp()
        + coalesce(nullif(current_setting('token_manager.clock_offset', true), '')::interval, '0')
$$;

-- When an event was counted, under the catalogue lock: a budget created later, with backfill, has counted it already, one
-- created earlier has not. Null: counted by the release before.
ALTER TABLE usage_event ADD COLUMN applied_at timestamptz;
ALTER TABLE usage_event ALTER COLUMN applied_at SET DEFAULT ledger_statement_clock();

-- What an adjustment booked as overrun in each of its windows, and in how many windows it could not be booked because
-- they are gone.
ALTER TABLE adjustment
    ADD COLUMN charge_overruns bigint[] NOT NULL DEFAULT '{}',
    ADD COLUMN windows_gone integer NOT NULL DEFAULT 0;

-- Latency moves with the rest where a correction changes the model; charged_at is the event's, for budgets to come.
ALTER TABLE adjustment_entry
    ADD COLUMN charged_at timestamptz NOT NULL,
    ADD COLUMN latency_ms double precision;
CREATE INDEX adjustment_entry_charged ON adjustment_entry (org_id, charged_at);

CREATE OR REPLACE VIEW usage_posting AS
SELECT org_id, id AS usage_id, NULL::text AS adjustment_id, 1 AS sign, "timestamp", arrived_at AS posted_at, provider,
    model, user_id, team_id, project_id, feature, agent_id, session_id, task_id, environment, cost_center, tags,
    service_tier, region, batch, status, cost_status, price_source, price_version, line_items, currency, reserved,
    final::integer::bigint AS requests, prompt_tokens, completion_tokens, cache_read_tokens, cache_write_tokens,
    reasoning_tokens, cost, list_cost, latency_ms, charged_at
FROM usage_event
UNION ALL
SELECT org_id, usage_id, adjustment_id, CASE position WHEN 0 THEN -1 ELSE 1 END, "timestamp", posted_at, provider,
    model, user_id, team_id, project_id, feature, agent_id, session_id, task_id, environment, cost_center, tags,
    service_tier, region, batch, status, cost_status, price_source, price_version, line_items, currency, reserved,
    requests, prompt_tokens, completion_tokens, cache_read_tokens, cache_write_tokens,
    reasoning_tokens, cost, list_cost, latency_ms, charged_at
FROM adjustment_entry;
