-- Dated exchange rates: ``rate`` units of the quote are worth one unit of the base. Org '' is what every org has; what an
-- org gave itself comes first. Never edited: a newer row of the same day corrects an older one. Revisions grow in the
-- order of commits (advisory lock 'exchange_rate'), so whoever knows one knows everything before it.
CREATE TABLE exchange_rate (
    org_id text NOT NULL,
    revision bigint NOT NULL,
    base text NOT NULL,
    quote text NOT NULL CHECK (quote <> base),
    as_of date NOT NULL,
    rate numeric NOT NULL CHECK (rate > 0),
    source text NOT NULL,
    recorded_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, revision, base, quote, as_of)
);
CREATE INDEX exchange_rate_revision ON exchange_rate (revision);
CREATE TRIGGER exchange_rate_append_only BEFORE UPDATE OR DELETE ON exchange_rate
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What reported_cost is in; currency is that of cost. Null: none is reported, or in dollars.
ALTER TABLE usage_event ADD COLUMN reported_currency text;

-- The quotient as a whole number, halves to the even neighbour: the one rounding of a conversion.
CREATE FUNCTION half_even(numerator numeric, denominator numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN denominator = 1 THEN numerator ELSE sign(numerator) * (div(abs(numerator), denominator)
        + CASE WHEN 2 * mod(abs(numerator), denominator) > denominator
                 OR 2 * mod(abs(numerator), denominator) = denominator
                AND mod(div(abs(numerator), denominator), 2) = 1 THEN 1 ELSE 0 END) END
$$;

-- The newest revision that was visible when the window was created: its rates are those of that revision. Null: older
-- than exchange rates.
ALTER TABLE budget_window ADD COLUMN fx_revision bigint;

-- The currency of estimated_cost and used_cost; what is held is in each window's own.
ALTER TABLE reservation ADD COLUMN currency text NOT NULL DEFAULT 'USD';

-- As before, with the currency of each kind of call. Agents of the release before go on calling the older one.
CREATE FUNCTION admission_commit(
    p_org text, p_version bigint, p_since timestamptz, p_until timestamptz, p_windows bigint[], p_spent bigint[],
    p_reserved bigint[], p_overrun bigint[], p_add bigint[], p_limits bigint[],
    p_providers text[], p_models text[], p_attributions text[], p_window_arrays text[], p_callers text[],
    p_currencies text[], p_kinds integer[], p_ids uuid[], p_request_ids text[], p_body_hashes bytea[],
    p_ttls integer[], p_costs bigint[], p_tokens bigint[], p_held text[]
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
               k.caller, k.currency
          FROM unnest(p_providers, p_models, p_attributions, p_window_arrays, p_callers, p_currencies)
               WITH ORDINALITY AS k (provider, model, attribution, window_ids, caller, currency, i)
    )
    INSERT INTO reservation (org_id, reservation_id, request_id, body_hash, decided_at, expires_at, provider, model,
        attribution, estimated_cost, estimated_tokens, window_ids, held, caller, currency)
    SELECT p_org, n.id, n.request_id, n.body_hash, decided_at, decided_at + n.ttl_s * interval '1 second',
        k.provider, k.model, k.attribution, n.cost, n.tokens, k.window_ids, n.held::bigint[], k.caller, k.currency
    FROM unnest(p_kinds, p_ids, p_request_ids, p_body_hashes, p_ttls, p_costs, p_tokens, p_held)
        AS n (kind, id, request_id, body_hash, ttl_s, cost, tokens, held)
    JOIN kind k ON k.i = n.kind;
    RETURN decided_at;
END $$;

-- What is counted of costs by currency.
ALTER TABLE overrun_cause ADD COLUMN currency text NOT NULL DEFAULT 'USD';
ALTER TABLE overrun_cause DROP CONSTRAINT overrun_cause_pkey;
ALTER TABLE overrun_cause ADD PRIMARY KEY (org_id, day, cause, unit, currency);
ALTER TABLE unsettled_count ADD COLUMN currency text NOT NULL DEFAULT 'USD';
ALTER TABLE unsettled_count DROP CONSTRAINT unsettled_count_pkey;
ALTER TABLE unsettled_count ADD PRIMARY KEY (org_id, day, caller, currency);
