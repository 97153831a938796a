-- Adds counts; where there are more than p_most in all, as many of them as fit stay, thinned out evenly from the
-- smallest value up (every d-th one), so that what is old fades and every percentile keeps its place.
CREATE FUNCTION add_fading(p_old integer[], p_new integer[], p_most bigint) RETURNS integer[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    counts integer[] := p_old;
    total bigint := 0;
    step bigint;
    below bigint := 0;
    before bigint := 0;
BEGIN
    FOR i IN 1 .. greatest(cardinality(p_old), cardinality(p_new)) LOOP
        counts[i] := coalesce(counts[i], 0) + coalesce(p_new[i], 0);
        total := total + counts[i];
    END LOOP;
    step := (total + p_most - 1) / p_most;
    IF step <= 1 THEN
        RETURN counts;
    END IF;
    FOR i IN 1 .. cardinality(counts) LOOP
        below := below + counts[i];
        counts[i] := below / step - before;
        before := below / step;
    END LOOP;
    RETURN counts;
END $$;

-- How much of its worst case a call really took, counted in buckets of the ratio (handlers/enforcer/histograms.py).
-- An empty feature or agent stands for any: a call counts in its own key, without its agent, and without its feature.
-- learned and missed: settled reservations that held less than their worst case, and those of them that took more than
-- they held.
CREATE TABLE sizing (
    org_id text NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    feature text NOT NULL,
    agent_id text NOT NULL,
    cost_counts integer[] NOT NULL,
    token_counts integer[] NOT NULL,
    learned bigint NOT NULL,
    missed bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, provider, model, feature, agent_id)
) WITH (fillfactor = 50);

-- What earlier parts of a call (final: false) took, so that the ratio is that of the whole call. Null: not known, since
-- a part had no price, or the estimate changed in between.
ALTER TABLE reservation ADD COLUMN used_cost bigint DEFAULT 0;
ALTER TABLE reservation ADD COLUMN used_tokens bigint DEFAULT 0;

-- What found no room under a limit, over all windows, by the day it was booked (UTC) and why it was not reserved:
-- learned (held less than the worst case), estimate (took more than the worst case), unreserved, correction.
CREATE TABLE overrun_cause (
    org_id text NOT NULL,
    day date NOT NULL,
    cause text NOT NULL CHECK (cause IN ('learned', 'estimate', 'unreserved', 'correction')),
    unit text NOT NULL,
    amount bigint NOT NULL,
    charges bigint NOT NULL,
    PRIMARY KEY (org_id, day, cause, unit)
);
