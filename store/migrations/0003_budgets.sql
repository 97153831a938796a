-- A budget with a gate binds only while the window of its gate is full: the rate at which calls go on beyond a limit.
ALTER TABLE budget ADD COLUMN gate_id uuid;
-- How often a budget in shadow enforcement would have denied.
ALTER TABLE budget_window ADD COLUMN shadow_denied bigint NOT NULL DEFAULT 0;

-- A temporary raise of a budget that somebody asked for and somebody else (or the budget's own policy) approved. It
-- counts in [starts_at, ends_at) while it is approved; rows are kept as the history.
CREATE TABLE override (
    org_id text NOT NULL,
    override_id uuid NOT NULL,
    budget_id uuid NOT NULL,
    entity_id text NOT NULL,
    status text NOT NULL CHECK (status IN ('pending', 'approved', 'denied', 'expired', 'revoked')),
    amount bigint NOT NULL CHECK (amount > 0),
    percent integer,
    reason text NOT NULL,
    requested_by text NOT NULL,
    requested_at timestamptz NOT NULL,
    starts_at timestamptz,
    ends_at timestamptz NOT NULL,
    reviewed_by text,
    reviewed_at timestamptz,
    comment text,
    PRIMARY KEY (org_id, override_id)
);
CREATE INDEX override_open ON override (org_id, ends_at) WHERE status IN ('pending', 'approved');
CREATE INDEX override_budget ON override (org_id, budget_id, override_id);

-- The kill switch: calls of this scope are denied at once, whatever their budgets say.
CREATE TABLE brake (
    org_id text NOT NULL,
    scope text NOT NULL CHECK (scope IN ('org', 'team', 'model', 'provider')),
    entity_id text NOT NULL,
    reason text NOT NULL,
    set_by text NOT NULL,
    set_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, scope, entity_id)
);

-- The directory: which teams the users named in calls belong to. It fills a team that a call leaves out, and
-- contradicts one that is not the user's.
CREATE TABLE team_member (
    org_id text NOT NULL,
    user_id text NOT NULL,
    team_id text NOT NULL,
    PRIMARY KEY (org_id, user_id, team_id)
);
CREATE INDEX team_member_team ON team_member (org_id, team_id);

-- What must be the same for every agent of this database: the fingerprint of the secret key.
CREATE TABLE installation (
    key text PRIMARY KEY,
    value text NOT NULL
);

-- How many entities the org's "*" budgets have met for the first time in this hour (R16).
CREATE TABLE new_entity (
    org_id text PRIMARY KEY,
    hour timestamptz NOT NULL,
    count bigint NOT NULL
);
