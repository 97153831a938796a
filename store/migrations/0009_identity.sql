-- The names behind surrogates. Every other table knows a user by the surrogate alone, so deleting a name here makes all
-- history anonymous and changes no sum. An anonymised surrogate keeps its row, without the name: it is never named again.
CREATE TABLE identity (
    org_id text NOT NULL,
    user_key text NOT NULL,
    user_name text,
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    anonymized_at timestamptz,
    PRIMARY KEY (org_id, user_key),
    CHECK (user_name IS NULL OR anonymized_at IS NULL)
);
