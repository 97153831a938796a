-- The ledger. Every key begins with org_id, so that the schema can be distributed by it.
-- Amounts are integers: nanos of the currency for cost, plain counts for tokens and requests.

CREATE FUNCTION catalogue_key(org text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT hashtextextended('catalogue:' || org, 0) $$;

-- The one clock that decides, expires and rolls (R3). The offset is set only where time itself is under test.
CREATE FUNCTION ledger_clock() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
    SELECT clock_timestamp() + coalesce(nullif(current_setting('token_manager.clock_offset', true), '')::interval, '0')
$$;

CREATE FUNCTION add_counts(a bigint[], b bigint[]) RETURNS bigint[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg(coalesce(x, 0) + coalesce(y, 0) ORDER BY i) FROM unnest(a, b) WITH ORDINALITY AS t (x, y, i)
$$;

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;

CREATE TABLE org_catalogue (
    org_id text PRIMARY KEY,
    version bigint NOT NULL
);

CREATE TABLE setting (
    org_id text NOT NULL,
    key text NOT NULL,
    value jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (org_id, key)
);

CREATE TABLE budget (
    org_id text NOT NULL,
    budget_id uuid NOT NULL,
    version integer NOT NULL DEFAULT 1,
    name text NOT NULL,
    type text NOT NULL,
    entity_id text NOT NULL,
    filters jsonb NOT NULL,
    unit text NOT NULL CHECK (unit IN ('cost', 'tokens', 'requests')),
    currency text,
    period text NOT NULL,
    timezone text NOT NULL,
    base_limit bigint NOT NULL CHECK (base_limit >= 0),
    overage_percent integer NOT NULL,
    enforcement text NOT NULL,
    alert_thresholds integer[] NOT NULL,
    rollover_policy text NOT NULL,
    rollover_percent integer NOT NULL,
    override_policy jsonb NOT NULL,
    on_expiry text NOT NULL,
    preferred_models text[] NOT NULL,
    fallback_model text,
    active boolean NOT NULL,
    counting_since timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, budget_id),
    UNIQUE (org_id, name)
);

-- Sums of one period of one budget for one entity. high_limit is the highest effective limit so far, overage included;
-- it is null where the budget only warns, and the CHECK is the database's own hold on promise P1.
CREATE TABLE budget_window (
    org_id text NOT NULL,
    window_id bigint GENERATED ALWAYS AS IDENTITY,
    budget_id uuid NOT NULL,
    entity_id text NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz,
    carry bigint NOT NULL DEFAULT 0 CHECK (carry >= 0),
    backfilled bigint NOT NULL DEFAULT 0,
    spent bigint NOT NULL DEFAULT 0,
    reserved bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    overrun bigint NOT NULL DEFAULT 0 CHECK (overrun >= 0),
    high_limit bigint,
    thresholds_fired integer[] NOT NULL DEFAULT '{}',
    exceeded_at timestamptz,
    PRIMARY KEY (org_id, window_id),
    UNIQUE (org_id, budget_id, entity_id, starts_at),
    CONSTRAINT never_over CHECK (spent - overrun + reserved <= high_limit)
) WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);

-- held lists the amount in each of window_ids. After expiry under on_expiry settle it lists what was presumed spent.
CREATE TABLE reservation (
    org_id text NOT NULL,
    reservation_id uuid NOT NULL,
    request_id text NOT NULL,
    body_hash bytea NOT NULL,
    status text NOT NULL DEFAULT 'live' CHECK (status IN ('live', 'settled', 'released', 'expired')),
    superseded boolean NOT NULL DEFAULT false,
    presumed boolean NOT NULL DEFAULT false,
    decided_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    closed_at timestamptz,
    provider text,
    model text,
    attribution jsonb NOT NULL,
    estimated_cost bigint,
    estimated_tokens bigint NOT NULL,
    window_ids bigint[] NOT NULL,
    held bigint[] NOT NULL,
    caller text,
    PRIMARY KEY (org_id, reservation_id)
) WITH (fillfactor = 85);
CREATE UNIQUE INDEX reservation_request ON reservation (org_id, request_id) WHERE NOT superseded;
CREATE INDEX reservation_live ON reservation (org_id, expires_at) WHERE status = 'live';

-- The authority on "have we seen this event": kept longer than any retry can take, whatever happens to the event itself.
CREATE TABLE usage_id (
    org_id text NOT NULL,
    id text NOT NULL,
    payload_hash bytea NOT NULL,
    arrived_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, id)
);
CREATE INDEX usage_id_arrived ON usage_id USING brin (arrived_at);

CREATE TABLE usage_event (
    org_id text NOT NULL,
    id text NOT NULL,
    "timestamp" timestamptz NOT NULL,
    arrived_at timestamptz NOT NULL,
    charged_at timestamptz NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    cache_write_1h_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    system_tokens bigint NOT NULL,
    audio_input_tokens bigint NOT NULL,
    audio_output_tokens bigint NOT NULL,
    web_searches bigint NOT NULL,
    service_tier text,
    region text,
    batch boolean NOT NULL,
    count_method text NOT NULL,
    cost bigint,
    currency text NOT NULL,
    cost_status text NOT NULL,
    price_source text,
    price_version text,
    line_items jsonb NOT NULL,
    reported_cost bigint,
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
    request_id text,
    reservation_id uuid,
    trace_id text,
    latency_ms double precision,
    status text NOT NULL,
    error_code text,
    final boolean NOT NULL,
    prefix_hashes text[],
    parent_id text,
    task_status text,
    metadata jsonb,
    flags text[] NOT NULL,
    reserved boolean NOT NULL,
    charge_windows bigint[] NOT NULL,
    charge_amounts bigint[] NOT NULL
) PARTITION BY RANGE ("timestamp");
CREATE INDEX usage_event_time ON usage_event (org_id, "timestamp", id);
CREATE INDEX usage_event_charged ON usage_event USING brin (charged_at);
CREATE TRIGGER usage_event_append_only BEFORE UPDATE OR DELETE ON usage_event
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- 15-minute sums, so that every time zone adds up. dimension_key is a 128-bit hash of all dimensions.
CREATE TABLE usage_rollup (
    org_id text NOT NULL,
    bucket timestamptz NOT NULL,
    dimension_key uuid NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    user_id text,
    team_id text,
    project_id text,
    feature text,
    agent_id text,
    environment text,
    cost_center text,
    service_tier text,
    status text NOT NULL,
    cost_status text NOT NULL,
    currency text NOT NULL,
    reserved boolean NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    cost bigint NOT NULL,
    latency_count bigint NOT NULL,
    latency_us_sum bigint NOT NULL,
    latency_histogram bigint[] NOT NULL,
    size_histogram bigint[] NOT NULL,
    PRIMARY KEY (org_id, bucket, dimension_key)
) WITH (fillfactor = 70);

CREATE TABLE unpriced_model (
    org_id text NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    day date NOT NULL,
    usage_id text NOT NULL,
    PRIMARY KEY (org_id, day, provider, model)
);

CREATE TABLE dead_letter (
    org_id text NOT NULL,
    dead_letter_id uuid NOT NULL,
    status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'retried')),
    reason text NOT NULL,
    message text NOT NULL,
    field text,
    subject text NOT NULL,
    source_key text NOT NULL,
    usage_id text,
    payload bytea NOT NULL,
    arrived_at timestamptz NOT NULL,
    retried_at timestamptz,
    PRIMARY KEY (org_id, dead_letter_id),
    UNIQUE (org_id, source_key)
);
CREATE INDEX dead_letter_listing ON dead_letter (org_id, status, arrived_at, dead_letter_id);

CREATE TABLE outbox (
    outbox_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id text NOT NULL,
    event text NOT NULL,
    payload bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000);

CREATE TABLE job_run (
    job text NOT NULL,
    planned_at timestamptz NOT NULL,
    instance text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    result text,
    PRIMARY KEY (job, planned_at)
);

-- Takes the org's catalogue lock, then reads its version under a fresh snapshot and, where the caller's catalogue is
-- current, locks the windows in key order. One round trip. The clock is read last, so it is never before a lock wait.
CREATE FUNCTION admission_open(p_org text, p_version bigint, p_windows bigint[])
RETURNS TABLE (
    decided_at timestamptz, version bigint, window_ids bigint[], spent bigint[], reserved bigint[], overrun bigint[],
    high_limits bigint[], carries bigint[], exceeded boolean[]
) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(catalogue_key(p_org));
    SELECT coalesce((SELECT c.version FROM org_catalogue c WHERE c.org_id = p_org), 0) INTO version;
    IF version = p_version THEN
        SELECT array_agg(w.window_id), array_agg(w.spent), array_agg(w.reserved), array_agg(w.overrun),
               array_agg(w.high_limit), array_agg(w.carry), array_agg(w.exceeded_at IS NOT NULL)
          INTO window_ids, spent, reserved, overrun, high_limits, carries, exceeded
          FROM (SELECT b.* FROM budget_window b
                 WHERE b.org_id = p_org AND b.window_id = ANY (p_windows) ORDER BY b.window_id FOR UPDATE) w;
    END IF;
    decided_at := ledger_clock();
    RETURN NEXT;
END $$;

-- A whole admission in one round trip, for an agent that believes it knows the windows: writes the decision only if the
-- catalogue, the clock and every sum are what it was made from, under the same locks in the same order; else null, and
-- nothing has happened. The rule itself (what fits) is not here: the decision was made from these very sums.
CREATE FUNCTION admission_commit(
    p_org text, p_version bigint, p_since timestamptz, p_until timestamptz, p_windows bigint[], p_spent bigint[],
    p_reserved bigint[], p_overrun bigint[], p_add bigint[], p_limits bigint[],
    p_providers text[], p_models text[], p_attributions text[], p_window_arrays text[], p_callers text[],
    p_kinds integer[], p_ids uuid[], p_request_ids text[], p_body_hashes bytea[], p_ttls integer[], p_costs bigint[],
    p_tokens bigint[], p_held text[]
) RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
    decided_at timestamptz;
    same boolean;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(catalogue_key(p_org));
    IF coalesce((SELECT c.version FROM org_catalogue c WHERE c.org_id = p_org), 0) <> p_version THEN
        RETURN NULL;
    END IF;
    IF cardinality(p_windows) > 0 THEN
        SELECT array_agg(w.spent) = p_spent AND array_agg(w.reserved) = p_reserved AND array_agg(w.overrun) = p_overrun
          INTO same
          FROM (SELECT b.spent, b.reserved, b.overrun FROM budget_window b
                 WHERE b.org_id = p_org AND b.window_id = ANY (p_windows) ORDER BY b.window_id FOR UPDATE) w;
        IF same IS NOT TRUE THEN
            RETURN NULL;
        END IF;
    END IF;
    decided_at := ledger_clock();
    IF decided_at < p_since OR decided_at >= p_until THEN
        RETURN NULL;
    END IF;
    UPDATE budget_window w
       SET reserved = w.reserved + n.more,
           high_limit = CASE WHEN w.high_limit IS NOT NULL THEN greatest(w.high_limit, n.high) END
      FROM unnest(p_windows, p_add, p_limits) AS n (window_id, more, high)
     WHERE w.org_id = p_org AND w.window_id = n.window_id;
    WITH kind AS MATERIALIZED (
        SELECT k.i, k.provider, k.model, k.attribution::jsonb AS attribution, k.window_ids::bigint[] AS window_ids,
               k.caller
          FROM unnest(p_providers, p_models, p_attributions, p_window_arrays, p_callers)
               WITH ORDINALITY AS k (provider, model, attribution, window_ids, caller, i)
    )
    INSERT INTO reservation (org_id, reservation_id, request_id, body_hash, decided_at, expires_at, provider, model,
        attribution, estimated_cost, estimated_tokens, window_ids, held, caller)
    SELECT p_org, n.id, n.request_id, n.body_hash, decided_at, decided_at + n.ttl_s * interval '1 second',
        k.provider, k.model, k.attribution, n.cost, n.tokens, k.window_ids, n.held::bigint[], k.caller
    FROM unnest(p_kinds, p_ids, p_request_ids, p_body_hashes, p_ttls, p_costs, p_tokens, p_held)
        AS n (kind, id, request_id, body_hash, ttl_s, cost, tokens, held)
    JOIN kind k ON k.i = n.kind;
    RETURN decided_at;
END $$;
