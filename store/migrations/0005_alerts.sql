-- What somebody wants to be told about, and what is to happen then.
CREATE TABLE alert_rule (
    org_id text NOT NULL,
    rule_id uuid NOT NULL,
    version integer NOT NULL DEFAULT 1,
    name text NOT NULL,
    kind text NOT NULL,
    scope jsonb NOT NULL,
    parameters jsonb NOT NULL,
    level text CHECK (level IN ('info', 'warning', 'critical', 'exceeded')),
    channels text[] NOT NULL,
    actions jsonb NOT NULL,
    renotify_s integer CHECK (renotify_s > 0),
    active boolean NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, rule_id),
    UNIQUE (org_id, name)
);
-- What is evaluated again and again, across all orgs; an org without such rules costs nothing.
CREATE INDEX alert_rule_periodic ON alert_rule (org_id)
    WHERE active AND kind IN ('hourly_rate', 'absolute_tokens', 'pacing');

-- Raised once: dedup_key names the fact (a threshold of a window, an episode of a rate). rule_ids are the rules that
-- wanted it, rule the name of the first of them. renotify_at is null where nobody is told again. ended_at is when it
-- was no longer true.
CREATE TABLE alert (
    org_id text NOT NULL,
    alert_id uuid NOT NULL,
    dedup_key text NOT NULL,
    kind text NOT NULL,
    level text NOT NULL CHECK (level IN ('info', 'warning', 'critical', 'exceeded')),
    title text NOT NULL,
    message text NOT NULL,
    rule text,
    rule_ids uuid[] NOT NULL,
    budget_id uuid,
    window_id bigint,
    entity_id text,
    details jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    notified_at timestamptz,
    renotify_at timestamptz,
    ended_at timestamptz,
    acknowledged_by text,
    acknowledged_at timestamptz,
    comment text,
    PRIMARY KEY (org_id, alert_id),
    UNIQUE (org_id, dedup_key)
);
CREATE INDEX alert_listing ON alert (org_id, created_at, alert_id);
CREATE INDEX alert_renotify ON alert (org_id, renotify_at) WHERE renotify_at IS NOT NULL;
-- Episodes that are not over, by rule: a rate that stays high is one alert.
CREATE INDEX alert_open ON alert USING gin (rule_ids) WHERE ended_at IS NULL;

-- What an alert set off, written with it and run once, after it is committed. An active one is a temporary change that
-- ends at ends_at; undo says how.
CREATE TABLE alert_action (
    org_id text NOT NULL,
    alert_id uuid NOT NULL,
    rule_id uuid NOT NULL,
    position integer NOT NULL,
    rule text NOT NULL,
    action jsonb NOT NULL,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'active', 'done', 'failed')),
    ends_at timestamptz,
    undo jsonb,
    result text,
    created_at timestamptz NOT NULL,
    done_at timestamptz,
    PRIMARY KEY (org_id, alert_id, rule_id, position)
);
CREATE INDEX alert_action_due ON alert_action (org_id) WHERE status IN ('pending', 'active');

-- The windows of one period of a budget with one for each entity, without those of all periods before.
CREATE INDEX budget_window_period ON budget_window (org_id, budget_id, starts_at);
