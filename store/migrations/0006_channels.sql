-- Where alerts go. "sealed" holds the URL (and a webhook's signing secret), encrypted with the agents' secret key;
-- "shown" is the URL as it may be shown, without anything secret.
CREATE TABLE channel (
    org_id text NOT NULL,
    name text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('apprise', 'webhook')),
    sealed bytea NOT NULL,
    shown text NOT NULL,
    min_level text NOT NULL CHECK (min_level IN ('info', 'warning', 'critical', 'exceeded')),
    quiet_hours jsonb,
    messages_per_hour_max integer NOT NULL CHECK (messages_per_hour_max > 0),
    active boolean NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, name)
);

-- One alert on its way to one channel. There is no foreign key: a name that no channel has ends as dead and says so.
-- Deliveries that share a message_id went, or go, out as one message; it is set when a message is first tried and kept,
-- so that a message that is tried again is the same message. claimed_until is the lease of the agent that sends it.
CREATE TABLE delivery (
    org_id text NOT NULL,
    delivery_id uuid NOT NULL,
    alert_id uuid,
    channel text NOT NULL,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'sent', 'skipped', 'dead')),
    attempts integer NOT NULL DEFAULT 0,
    not_before timestamptz NOT NULL,
    postponed text CHECK (postponed IN ('quiet_hours', 'flood')),
    message_id uuid,
    claim_id uuid,
    claimed_until timestamptz,
    last_error text,
    payload jsonb,
    created_at timestamptz NOT NULL DEFAULT ledger_clock(),
    sent_at timestamptz,
    PRIMARY KEY (org_id, delivery_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX delivery_due ON delivery (not_before) WHERE status = 'pending';
CREATE INDEX delivery_waiting ON delivery (org_id, channel, not_before) WHERE status = 'pending';
CREATE INDEX delivery_message ON delivery (org_id, message_id);
CREATE INDEX delivery_sent ON delivery (org_id, channel, sent_at) WHERE status = 'sent';
CREATE INDEX delivery_listing ON delivery (org_id, created_at, delivery_id);
