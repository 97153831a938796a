-- What an org says its models take and give, in tokens; provider and model may hold '*'. NULL: what is known of the model.
CREATE TABLE model_limit (
    org_id text NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    context_window bigint CHECK (context_window > 0),
    max_input_tokens bigint CHECK (max_input_tokens > 0),
    max_output_tokens bigint CHECK (max_output_tokens > 0),
    set_by text NOT NULL,
    set_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, provider, model),
    CHECK (context_window IS NOT NULL OR max_input_tokens IS NOT NULL OR max_output_tokens IS NOT NULL)
);
