-- People and programs of an org, by the name under which they connect to the bus. A row is kept when its user goes.
CREATE TABLE app_user (
    org_id text NOT NULL,
    name text NOT NULL,
    display_name text NOT NULL,
    roles text[] NOT NULL,
    teams text[] NOT NULL,
    public_key text,
    active boolean NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, name)
);
-- A server stamps the requests of a user who connects by key with the key.
CREATE UNIQUE INDEX app_user_key ON app_user (org_id, public_key) WHERE public_key IS NOT NULL;

-- secret_hash is the SHA-256 of 256 random bits, so it needs no salt and tells nothing. shown_prefix is what a person
-- recognises a key by.
CREATE TABLE api_key (
    org_id text NOT NULL,
    key_id text NOT NULL,
    name text NOT NULL,
    user_name text NOT NULL,
    secret_hash bytea NOT NULL CHECK (length(secret_hash) = 32),
    shown_prefix text NOT NULL,
    roles text[] NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    PRIMARY KEY (org_id, key_id),
    FOREIGN KEY (org_id, user_name) REFERENCES app_user (org_id, name)
);
CREATE INDEX api_key_user ON api_key (org_id, user_name);

-- A signed request counts once on all agents together: its nonce is written here before it is handled.
CREATE TABLE used_nonce (
    org_id text NOT NULL,
    user_name text NOT NULL,
    nonce text NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, user_name, nonce)
);
CREATE INDEX used_nonce_expiry ON used_nonce (expires_at);

-- request is the JSON of the signal's request. next_run_at is the planned time that is due next; null: never again.
CREATE TABLE schedule (
    org_id text NOT NULL,
    name text NOT NULL,
    cron text NOT NULL,
    timezone text NOT NULL,
    signal text NOT NULL,
    request text NOT NULL,
    channels text[] NOT NULL,
    active boolean NOT NULL,
    created_by text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    next_run_at timestamptz,
    last_run_at timestamptz,
    last_error text,
    PRIMARY KEY (org_id, name)
);
CREATE INDEX schedule_due ON schedule (next_run_at) WHERE active AND next_run_at IS NOT NULL;

-- Tells every agent which user or key to read again, at the commit that changed it. The argument is the id's column.
CREATE FUNCTION tell_access() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed jsonb := to_jsonb(CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END);
BEGIN
    PERFORM pg_notify('token_manager_access',
        json_build_array(TG_TABLE_NAME, changed ->> 'org_id', changed ->> TG_ARGV[0])::text);
    RETURN NULL;
END $$;

CREATE TRIGGER app_user_told AFTER INSERT OR UPDATE OR DELETE ON app_user
    FOR EACH ROW EXECUTE FUNCTION tell_access('name');
-- Not for last_used_at, which decides nothing.
CREATE TRIGGER api_key_told AFTER INSERT OR DELETE OR UPDATE OF secret_hash, user_name, roles, expires_at, revoked_at
    ON api_key FOR EACH ROW EXECUTE FUNCTION tell_access('key_id');
