-- How checks were decided, by day (UTC): approved, or the code of the denial. Counted in memory and added now and then.
CREATE TABLE decision_count (
    org_id text NOT NULL,
    day date NOT NULL,
    code text NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (org_id, day, code)
);

-- Reservations that ended without anybody saying what their calls took, by the day they expired (UTC) and by caller.
CREATE TABLE unsettled_count (
    org_id text NOT NULL,
    day date NOT NULL,
    caller text NOT NULL,
    count bigint NOT NULL,
    cost bigint NOT NULL,
    PRIMARY KEY (org_id, day, caller)
);
