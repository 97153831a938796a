"""The promises as SQL over the whole ledger of an org, knowing nothing of the code that keeps it.

Each query returns the rows that break its promise. All run in one snapshot, so they may run while agents work.
``PROMISES`` need nothing but the ledger. ``JOURNALED`` are about each single write, and need ``JOURNAL``: triggers that
note every write with the limits of its moment, in the same transaction, under the same locks.
"""

from collections.abc import Mapping
from typing import Any, Final

import asyncpg

from store.pool import Connection
from tests.ledger import conversions

_DIMENSIONS: Final = """provider, model, user_id, team_id, project_id, feature, agent_id, environment, cost_center,
    service_tier, status, cost_status, currency, reserved"""

# What an event takes from a budget, in its unit.
_AMOUNT: Final = """CASE b.unit WHEN 'cost' THEN coalesce(e.cost, 0)
    WHEN 'tokens' THEN e.prompt_tokens + e.completion_tokens ELSE e.final::integer END"""

# Charges in another currency than the cost's are worked out in tests/ledger/conversions.py.
_FOREIGN: Final = "(b.unit = 'cost' AND b.currency <> e.currency)"

_ENTITY: Final = """CASE b.type WHEN 'global' THEN '*' WHEN 'team' THEN e.team_id WHEN 'user' THEN e.user_id
    WHEN 'project' THEN e.project_id WHEN 'feature' THEN e.feature WHEN 'agent' THEN e.agent_id
    WHEN 'session' THEN e.session_id WHEN 'task' THEN e.task_id WHEN 'environment' THEN e.environment
    WHEN 'cost_center' THEN e.cost_center END"""

# What refuses whatever does not fit: also a rate, unless it waits behind the gate of another budget.
_BLOCKING: Final = """(b.enforcement IN ('block', 'downgrade')
    OR b.enforcement = 'throttle' AND b.period IN ('minute', 'hourly')) AND b.gate_id IS NULL"""

_CHARGES: Final = """usage_event e
    CROSS JOIN LATERAL unnest(e.charge_windows, e.charge_amounts) AS c (window_id, amount)"""

# What an adjusted event takes: of a state of it (``before`` or ``after``) that a budget's filters match, in its unit.
_OF_STATE: Final = """CASE WHEN ({state} ->> 'void')::boolean
    OR ({state} ->> 'model') NOT LIKE coalesce(replace(b.filters::jsonb ->> 'model', '*', '%'), '%')
    OR ({state} ->> 'provider') NOT LIKE coalesce(replace(b.filters::jsonb ->> 'provider', '*', '%'), '%') THEN 0
    ELSE CASE b.unit WHEN 'cost' THEN coalesce(({state} ->> 'cost')::bigint, 0)
        WHEN 'tokens' THEN ({state} ->> 'prompt_tokens')::bigint + ({state} ->> 'completion_tokens')::bigint
        ELSE ({state} ->> 'requests')::bigint END END"""

# An adjusted event with what it stands for now.
_STANDING: Final = """usage_event e JOIN LATERAL (SELECT a.after FROM adjustment a
        WHERE a.org_id = e.org_id AND a.usage_id = e.id ORDER BY a.sequence DESC LIMIT 1) s ON true"""

# Budgets created after an event was counted, with backfill, hold what it stood for then.
_BACKFILLS: Final = """b.counting_since < b.created_at AND e.applied_at < b.created_at
    AND b.counting_since <= e.charged_at"""

_TOLD: Final = """(SELECT org_id, event, convert_from(payload, 'UTF8')::jsonb -> 'data' AS data FROM outbox) o
    JOIN budget_window w ON w.org_id = o.org_id AND w.budget_id = (o.data #>> '{window,budget_id}')::uuid
     AND w.entity_id = o.data #>> '{window,entity_id}'
     AND w.starts_at = (o.data #>> '{window,window_start}')::timestamptz"""

# Holds only where every budget was active all the time; budgets with filters are left out.
COMPLETE: Final = "P4 every budget that matches an event is charged"

PROMISES: Final[dict[str, str]] = {
    COMPLETE: f"""
    SELECT e.id, b.name FROM usage_event e JOIN budget b ON b.org_id = e.org_id
    WHERE e.org_id = $1 AND b.active AND b.filters = '{{}}' AND e.charged_at >= b.counting_since AND {_AMOUNT} > 0
      AND NOT {_FOREIGN}
      AND {_ENTITY} IS NOT NULL AND (b.entity_id = '*' OR b.entity_id = {_ENTITY})
      AND NOT EXISTS (SELECT FROM budget_window w WHERE w.org_id = e.org_id AND w.budget_id = b.budget_id
                      AND w.window_id = ANY (e.charge_windows))
    UNION ALL
    SELECT e.id, b.name FROM {_STANDING} JOIN budget b ON b.org_id = e.org_id
    WHERE e.org_id = $1 AND b.active AND e.charged_at >= b.counting_since AND {_OF_STATE.format(state="s.after")} > 0
      AND NOT (b.filters::jsonb ?| ARRAY['feature', 'environment', 'agent_id']) AND NOT ({_BACKFILLS})
      AND {_ENTITY} IS NOT NULL AND (b.entity_id = '*' OR b.entity_id = {_ENTITY})
      AND NOT EXISTS (SELECT FROM budget_window w WHERE w.org_id = e.org_id AND w.budget_id = b.budget_id
            AND w.window_id = ANY (e.charge_windows || ARRAY(SELECT unnest(a.charge_windows) FROM adjustment a
                WHERE a.org_id = e.org_id AND a.usage_id = e.id)))""",
    "P1 a blocking window never holds more than its highest limit, except what is booked as overrun": f"""
        SELECT w.* FROM budget_window w JOIN budget b USING (org_id, budget_id)
        WHERE w.org_id = $1 AND {_BLOCKING}
          AND (w.high_limit IS NULL OR w.spent - w.overrun + w.reserved > w.high_limit)""",
    "P1 a window that does not block has no highest limit": f"""
        SELECT w.* FROM budget_window w JOIN budget b USING (org_id, budget_id)
        WHERE w.org_id = $1 AND NOT ({_BLOCKING}) AND w.high_limit IS NOT NULL""",
    "P1 no sum is negative, no overrun larger than what was spent": """
        SELECT * FROM budget_window
        WHERE org_id = $1 AND (least(spent, reserved, overrun, carry, shadow_denied) < 0 OR overrun > spent)""",
    "R19 a shadow denial exceeds its window": """
        SELECT * FROM budget_window WHERE org_id = $1 AND shadow_denied > 0 AND exceeded_at IS NULL""",
    "told: every overrun": f"""
        SELECT w.window_id, w.overrun, t.told FROM budget_window w LEFT JOIN (
            SELECT w.window_id, sum((o.data ->> 'amount')::numeric
                * CASE WHEN o.data #>> '{{window,unit}}' = 'cost' THEN 1000000000 ELSE 1 END) AS told
            FROM {_TOLD} WHERE o.org_id = $1 AND o.event = 'budget.overrun' GROUP BY 1) t USING (window_id)
        WHERE w.org_id = $1 AND w.backfilled = 0 AND w.overrun > coalesce(t.told, 0)""",
    "P2 every id that was taken has its one event, and every event its id": """
        SELECT i.id, count(e.id) FROM usage_id i FULL JOIN usage_event e USING (org_id, id)
        WHERE org_id = $1 GROUP BY i.id HAVING i.id IS NULL OR count(e.id) <> 1""",
    "P3 reserved is the sum of what live reservations hold": """
        SELECT w.window_id, w.reserved, l.held FROM budget_window w LEFT JOIN (
            SELECT r.org_id, h.window_id, sum(h.held) AS held FROM reservation r
            CROSS JOIN LATERAL unnest(r.window_ids, r.held) AS h (window_id, held)
            WHERE r.org_id = $1 AND r.status = 'live' GROUP BY 1, 2) l USING (org_id, window_id)
        WHERE w.org_id = $1 AND w.reserved <> coalesce(l.held, 0)""",
    "P3 a reservation is open or closed, and names each window once": """
        SELECT * FROM reservation r WHERE org_id = $1 AND (
            (status = 'live') <> (closed_at IS NULL) OR (presumed AND status <> 'expired') OR expires_at <= decided_at
            OR (superseded AND status NOT IN ('released', 'expired'))
            OR cardinality(window_ids) <> cardinality(held)
            OR cardinality(window_ids) <> (SELECT count(DISTINCT x) FROM unnest(window_ids) x)
            OR EXISTS (SELECT FROM unnest(held) h WHERE h < 0))""",
    "P3 a hold lies in the window of its decision": """
        SELECT r.reservation_id, w.* FROM reservation r CROSS JOIN LATERAL unnest(r.window_ids) AS h (window_id)
        LEFT JOIN budget_window w ON w.org_id = r.org_id AND w.window_id = h.window_id
        WHERE r.org_id = $1 AND (w.window_id IS NULL OR r.decided_at < w.starts_at OR r.decided_at >= w.ends_at)""",
    "P4 spent is what was backfilled, charged by events and adjustments, and presumed": f"""
        SELECT w.window_id, w.spent, w.backfilled, c.charged, a.adjusted, p.presumed FROM budget_window w
        LEFT JOIN (SELECT c.window_id, sum(c.amount) AS charged FROM {_CHARGES} WHERE e.org_id = $1 GROUP BY 1) c
            USING (window_id)
        LEFT JOIN (SELECT c.window_id, sum(c.amount) AS adjusted FROM adjustment a
                CROSS JOIN LATERAL unnest(a.charge_windows, a.charge_amounts) AS c (window_id, amount)
                WHERE a.org_id = $1 GROUP BY 1) a USING (window_id)
        LEFT JOIN (SELECT h.window_id, sum(h.held) AS presumed FROM reservation r
                JOIN LATERAL unnest(r.window_ids, r.held) AS h (window_id, held) ON true
                WHERE r.org_id = $1 AND r.status = 'expired' AND r.presumed GROUP BY 1) p USING (window_id)
        WHERE w.org_id = $1 AND w.spent
            <> w.backfilled + coalesce(c.charged, 0) + coalesce(a.adjusted, 0) + coalesce(p.presumed, 0)""",
    "P4 a charge is the event's amount in the budget's unit, in the window of its time and entity": f"""
        SELECT e.id, c.*, w.starts_at, b.name FROM {_CHARGES}
        LEFT JOIN budget_window w ON w.org_id = e.org_id AND w.window_id = c.window_id
        LEFT JOIN budget b ON b.org_id = w.org_id AND b.budget_id = w.budget_id
        WHERE e.org_id = $1 AND (b.name IS NULL OR NOT {_FOREIGN} AND c.amount <> {_AMOUNT}
            OR e.charged_at < w.starts_at OR e.charged_at >= w.ends_at OR e.charged_at < b.counting_since
            OR w.entity_id IS DISTINCT FROM {_ENTITY} OR b.entity_id NOT IN ('*', w.entity_id))""",
    "P4 an event is charged at its reservation's decision, else at its own time, else at its arrival": """
        SELECT e.id, e.charged_at, r.decided_at FROM usage_event e
        LEFT JOIN reservation r ON r.org_id = e.org_id AND r.reservation_id = e.reservation_id
        WHERE e.org_id = $1 AND e.charged_at IS DISTINCT FROM CASE WHEN e.reserved THEN r.decided_at
            WHEN e.timestamp BETWEEN e.arrived_at - interval '35 days' AND e.arrived_at THEN e.timestamp
            ELSE e.arrived_at END""",
    "P4 a cost is its line items, and they are tokens times their rates, rounded once": """
        SELECT e.id, e.cost, s.* FROM usage_event e CROSS JOIN LATERAL (
            SELECT coalesce(sum((i ->> 3)::numeric), 0) AS cost,
                   coalesce(sum(coalesce((i ->> 5)::numeric, (i ->> 3)::numeric)), 0) AS listed,
                   coalesce(sum((i ->> 1)::numeric * (i ->> 2)::numeric), 0) AS scaled,
                   coalesce(sum((i ->> 1)::numeric) FILTER (WHERE i ->> 0 NOT IN ('web_search', 'request')), 0) AS n
            FROM jsonb_array_elements(e.line_items) i) s
        WHERE e.org_id = $1 AND ((e.cost_status = 'priced') <> (e.cost IS NOT NULL) OR e.cost IS NOT NULL AND (
            e.cost <> s.cost OR coalesce(e.list_cost, e.cost) <> s.listed
            OR s.n <> e.prompt_tokens + e.completion_tokens AND e.price_source IS DISTINCT FROM 'reported'
            OR abs(e.cost::numeric * 1000000 - s.scaled) > 500000
            OR abs(e.cost::numeric * 1000000 - s.scaled) = 500000 AND e.cost % 2 = 1))""",
    "P4 rollups are the sums of events and adjustments": f"""
        WITH event AS (
            SELECT date_bin('15 minutes', "timestamp", '2000-01-01T00:00Z') AS bucket, {_DIMENSIONS},
                sum(requests)::bigint, sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint,
                sum(cache_read_tokens)::bigint, sum(cache_write_tokens)::bigint, sum(reasoning_tokens)::bigint,
                coalesce(sum(cost), 0)::bigint, coalesce(sum(coalesce(list_cost, cost)), 0)::bigint,
                coalesce(sum(sign) FILTER (WHERE latency_ms IS NOT NULL), 0)::bigint,
                coalesce(sum(sign * round(latency_ms * 1000)), 0)::bigint, sum(sign)::numeric
            FROM usage_posting WHERE org_id = $1 GROUP BY bucket, {_DIMENSIONS}),
        rolled AS (
            SELECT bucket, {_DIMENSIONS}, requests, prompt_tokens, completion_tokens, cache_read_tokens,
                cache_write_tokens, reasoning_tokens, cost, list_cost, latency_count, latency_us_sum,
                (SELECT sum(n) FROM unnest(size_histogram) n)
            FROM usage_rollup WHERE org_id = $1)
        (SELECT 'only in events' AS lies, * FROM (TABLE event EXCEPT ALL TABLE rolled) x) UNION ALL
        (SELECT 'only in rollups', * FROM (TABLE rolled EXCEPT ALL TABLE event) x)""",
    "P4 no rollup and no size is below nought": """
        SELECT * FROM usage_rollup WHERE org_id = $1 AND (
            least(requests, prompt_tokens, completion_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens,
                cost, list_cost, latency_count, latency_us_sum) < 0
            OR 0 > ANY (size_histogram) OR 0 > ANY (latency_histogram))""",
    "R15 windows hold what an adjusted event stands for": f"""
        SELECT e.id, b.name, w.window_id, c.charged, s.after FROM {_STANDING}
        CROSS JOIN LATERAL (SELECT x.window_id, sum(x.amount) AS charged FROM (
            SELECT * FROM unnest(e.charge_windows, e.charge_amounts) AS c (window_id, amount) UNION ALL
            SELECT c.* FROM adjustment a, unnest(a.charge_windows, a.charge_amounts) AS c (window_id, amount)
            WHERE a.org_id = e.org_id AND a.usage_id = e.id) x GROUP BY 1) c
        JOIN budget_window w ON w.org_id = e.org_id AND w.window_id = c.window_id
        JOIN budget b ON b.org_id = w.org_id AND b.budget_id = w.budget_id
        CROSS JOIN LATERAL (SELECT coalesce(
            (SELECT a.after FROM adjustment a WHERE a.org_id = e.org_id AND a.usage_id = e.id
                AND a.made_at < b.created_at ORDER BY a.sequence DESC LIMIT 1),
            (SELECT a.before FROM adjustment a WHERE a.org_id = e.org_id AND a.usage_id = e.id AND a.sequence = 1)
            ) AS state) then_
        WHERE e.org_id = $1 AND (b.unit <> 'cost' OR s.after ->> 'currency' = b.currency)
          AND c.charged + CASE WHEN {_BACKFILLS} THEN {_OF_STATE.format(state="then_.state")} ELSE 0 END
              <> {_OF_STATE.format(state="s.after")}""",
    "R15 adjustments of an event are numbered, and each begins where the one before ended": """
        SELECT a.* FROM (SELECT *, lag(sequence, 1, 0) OVER o AS number, lag(after) OVER o AS ended FROM adjustment
            WINDOW o AS (PARTITION BY org_id, usage_id ORDER BY sequence)) a
        LEFT JOIN usage_event e ON e.org_id = a.org_id AND e.id = a.usage_id
        WHERE a.org_id = $1 AND (a.sequence <> a.number + 1 OR a.before <> a.ended OR a.before = a.after
                AND a.charge_windows = '{}' OR a.ended IS NULL
            AND ((a.before ->> 'cost')::bigint, (a.before ->> 'prompt_tokens')::bigint, a.before ->> 'model',
                 (a.before ->> 'completion_tokens')::bigint, a.before ->> 'void')
            IS DISTINCT FROM (e.cost, e.prompt_tokens, e.model, e.completion_tokens, 'false'))""",
    "R15 an adjustment posts what the event counted for, reversed, and what it counts for now": """
        WITH state AS (
            SELECT org_id, adjustment_id, usage_id, 0 AS position, -1 AS sign, before AS s FROM adjustment
            UNION ALL SELECT org_id, adjustment_id, usage_id, 1, 1, after FROM adjustment)
        SELECT * FROM (SELECT * FROM state WHERE org_id = $1 AND NOT (s ->> 'void')::boolean) s
        FULL JOIN (SELECT * FROM adjustment_entry WHERE org_id = $1) n USING (org_id, adjustment_id, usage_id, position)
        LEFT JOIN usage_event e USING (org_id)
        WHERE e.id = usage_id AND (
            n.provider, n.model, n.cost, n.list_cost, n.requests, n.prompt_tokens, n.completion_tokens,
            n.cache_read_tokens, n.cache_write_tokens, n.reasoning_tokens, n.currency, n.cost_status, n.line_items
        ) IS DISTINCT FROM (
            s ->> 'provider', s ->> 'model', sign * (s ->> 'cost')::bigint, sign * (s ->> 'list_cost')::bigint,
            sign * (s ->> 'requests')::bigint, sign * (s ->> 'prompt_tokens')::bigint,
            sign * (s ->> 'completion_tokens')::bigint, sign * (s ->> 'cache_read_tokens')::bigint,
            sign * (s ->> 'cache_write_tokens')::bigint, sign * (s ->> 'reasoning_tokens')::bigint,
            s ->> 'currency', s ->> 'cost_status', s -> 'line_items')
          OR e.id = usage_id AND (n."timestamp", n.charged_at, n.user_id, n.team_id, n.project_id, n.feature,
            n.agent_id, n.session_id, n.task_id, n.environment, n.cost_center, n.tags, n.status, n.reserved,
            n.latency_ms) IS DISTINCT FROM (e."timestamp", e.charged_at, e.user_id, e.team_id, e.project_id, e.feature,
            e.agent_id, e.session_id, e.task_id, e.environment, e.cost_center, e.tags, e.status, e.reserved,
            e.latency_ms)""",
    "R15 an adjusted cost is its line items, rounded once, and never below nought": """
        SELECT a.usage_id, a.after, s.* FROM adjustment a CROSS JOIN LATERAL (
            SELECT coalesce(sum((i ->> 3)::numeric), 0) AS cost,
                   coalesce(sum(coalesce((i ->> 5)::numeric, (i ->> 3)::numeric)), 0) AS listed,
                   coalesce(sum((i ->> 1)::numeric * (i ->> 2)::numeric), 0) AS scaled
            FROM jsonb_array_elements(a.after -> 'line_items') i) s
        WHERE a.org_id = $1 AND ((a.after ->> 'cost_status' = 'priced') <> (a.after ->> 'cost' IS NOT NULL)
            OR (a.after ->> 'cost')::bigint < 0 OR (a.after ->> 'cost')::bigint <> s.cost
            OR coalesce(a.after ->> 'list_cost', a.after ->> 'cost')::bigint <> s.listed
            OR abs((a.after ->> 'cost')::numeric * 1000000 - s.scaled) > 500000)""",
    "told: every adjustment once": """
        SELECT adjustment_id, o.told FROM (SELECT * FROM adjustment WHERE org_id = $1) a FULL JOIN (
            SELECT convert_from(payload, 'UTF8')::jsonb #>> '{data,adjustment_id}' AS adjustment_id, count(*) AS told
            FROM outbox WHERE org_id = $1 AND event = 'usage.adjusted' GROUP BY 1) o USING (adjustment_id)
        WHERE a.org_id IS NULL OR o.told IS DISTINCT FROM 1""",
    "told: a threshold once per window, and it is remembered": f"""
        SELECT coalesce(t.window_id, f.window_id), t.threshold, f.threshold, t.told, f.fired FROM
            (SELECT w.window_id, (o.data ->> 'threshold')::integer AS threshold, count(*) AS told
             FROM {_TOLD} WHERE o.org_id = $1 AND o.event = 'budget.threshold' GROUP BY 1, 2) t
        FULL JOIN (SELECT window_id, threshold, count(*) AS fired
             FROM budget_window, unnest(thresholds_fired) AS threshold WHERE org_id = $1 GROUP BY 1, 2) f
            USING (window_id, threshold)
        WHERE (t.told, f.fired) IS DISTINCT FROM (1, 1)""",
    "told: exceeded once per window": f"""
        SELECT w.window_id, w.exceeded_at, t.told FROM budget_window w LEFT JOIN (
            SELECT w.window_id, count(*) AS told FROM {_TOLD}
            WHERE o.org_id = $1 AND o.event = 'budget.exceeded' GROUP BY 1) t USING (window_id)
        WHERE w.org_id = $1 AND coalesce(t.told, 0) <> (w.exceeded_at IS NOT NULL)::integer""",
}


# The journal ------------------------------------------------------------------------------------------------------

_JOURNAL_TABLE: Final = """
CREATE TABLE journal (
    n bigint GENERATED ALWAYS AS IDENTITY, org_id text NOT NULL, kind text NOT NULL, tx bigint NOT NULL,
    window_id bigint, b budget, was budget_window, now budget_window, before budget_window,
    limits bigint[], reservation_id uuid, held bigint, refused text
);
CREATE INDEX ON journal (org_id, window_id);
CREATE FUNCTION oracle_limit(b budget, w budget_window, at timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT b.base_limit + b.base_limit * b.overage_percent / 100 + w.carry + coalesce(sum(o.amount), 0)::bigint
    FROM override o WHERE o.org_id = b.org_id AND o.budget_id = b.budget_id AND o.entity_id = w.entity_id
        AND o.status = 'approved' AND o.starts_at <= at AND at < o.ends_at
$$;
-- Every limit that held at some time of this transaction: two or more where an override begins or ends within it.
CREATE FUNCTION oracle_limits(b budget, w budget_window) RETURNS bigint[] LANGUAGE sql VOLATILE AS $$
    WITH span AS (SELECT transaction_timestamp() + (ledger_clock() - clock_timestamp()) - interval '1 ms' AS since,
                         ledger_clock() AS until),
    edge AS (SELECT since AS at FROM span UNION SELECT until FROM span
        UNION SELECT x FROM override o, unnest(ARRAY[o.starts_at, o.ends_at]) x, span
        WHERE o.org_id = b.org_id AND o.budget_id = b.budget_id AND x BETWEEN since AND until)
    SELECT array_agg(DISTINCT oracle_limit(b, w, at)) FROM edge
$$;
"""

_JOURNAL_WINDOWS: Final = """
CREATE FUNCTION journal_window() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    b budget;
    last budget_window;
BEGIN
    SELECT * INTO b FROM budget WHERE org_id = NEW.org_id AND budget_id = NEW.budget_id;
    IF TG_OP = 'INSERT' THEN
        SELECT * INTO last FROM budget_window w WHERE w.org_id = NEW.org_id AND w.budget_id = NEW.budget_id
            AND w.entity_id = NEW.entity_id AND w.starts_at < NEW.starts_at ORDER BY w.starts_at DESC LIMIT 1;
        INSERT INTO journal (org_id, kind, tx, window_id, b, now, before)
        VALUES (NEW.org_id, 'opened', txid_current(), NEW.window_id, b, NEW, last);
    ELSE
        INSERT INTO journal (org_id, kind, tx, window_id, b, was, now, limits)
        VALUES (NEW.org_id, 'written', txid_current(), NEW.window_id, b, OLD, NEW, oracle_limits(b, NEW));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER journal AFTER INSERT OR UPDATE ON budget_window FOR EACH ROW EXECUTE FUNCTION journal_window();
"""

# A call that a brake or the directory should have stopped is noted as such; on_mismatch is its default, reject.
_JOURNAL_RESERVATIONS: Final = """
CREATE FUNCTION journal_reservation() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    teams text[];
    team text := NEW.attribution ->> 'team_id';
    refused text;
BEGIN
    SELECT array_agg(team_id) INTO teams FROM team_member
        WHERE org_id = NEW.org_id AND user_id = NEW.attribution ->> 'user_id';
    SELECT string_agg(scope || ' ' || entity_id, ', ') INTO refused FROM brake k WHERE k.org_id = NEW.org_id AND (
        k.scope = 'org' OR k.scope = 'team' AND k.entity_id = team
        OR k.scope = 'provider' AND k.entity_id = NEW.provider
        OR k.scope = 'model' AND (NEW.model LIKE replace(k.entity_id, '*', '%')
            OR NEW.provider || '/' || NEW.model LIKE replace(k.entity_id, '*', '%')));
    IF refused IS NULL AND cardinality(teams) > 0 AND team <> ALL (teams) THEN
        refused := 'not a member';
    ELSIF refused IS NULL AND cardinality(teams) = 1 AND team IS NULL THEN
        refused := 'the team was not filled';
    END IF;
    INSERT INTO journal (org_id, kind, tx, reservation_id, refused)
    VALUES (NEW.org_id, 'admitted', txid_current(), NEW.reservation_id, refused);
    INSERT INTO journal (org_id, kind, tx, window_id, b, now, limits, reservation_id, held)
    SELECT NEW.org_id, 'reserved', txid_current(), w.window_id, b, w,
        ARRAY[oracle_limit(b, w, NEW.decided_at)], NEW.reservation_id, h.held
    FROM unnest(NEW.window_ids, NEW.held) AS h (window_id, held)
    JOIN budget_window w ON w.org_id = NEW.org_id AND w.window_id = h.window_id
    JOIN budget b ON b.org_id = w.org_id AND b.budget_id = w.budget_id;
    RETURN NULL;
END $$;
CREATE TRIGGER journal AFTER INSERT ON reservation FOR EACH ROW EXECUTE FUNCTION journal_reservation();
"""

JOURNAL: Final = _JOURNAL_TABLE + _JOURNAL_WINDOWS + _JOURNAL_RESERVATIONS

_PLAIN: Final = "(j.b).base_limit + (j.b).base_limit * (j.b).overage_percent / 100 + (j.now).carry"
_J_BLOCKING: Final = _BLOCKING.replace("b.", "(j.b).")
_TAKEN: Final = "(j.now).spent - (j.now).overrun + (j.now).reserved"
_WAS_TAKEN: Final = _TAKEN.replace("j.now", "j.was")
_CHANGED: Final = """((j.was).spent, (j.was).reserved, (j.was).overrun)
    IS DISTINCT FROM ((j.now).spent, (j.now).reserved, (j.now).overrun)"""
# How many periods lie between two windows, counted on PostgreSQL's own wall clock.
_PERIODS: Final = """CASE (j.b).period
    WHEN 'minute' THEN round(extract(epoch FROM (j.now).starts_at - p.starts_at) / 60)
    WHEN 'hourly' THEN round(extract(epoch FROM (j.now).starts_at - p.starts_at) / 3600)
    WHEN 'daily' THEN l.d - l.e WHEN 'weekly' THEN (l.d - l.e) / 7
    WHEN 'monthly' THEN (extract(year FROM l.d) - extract(year FROM l.e)) * 12
        + extract(month FROM l.d) - extract(month FROM l.e)
    ELSE extract(year FROM l.d) - extract(year FROM l.e) END"""
_UNIT: Final = """CASE (j.b).period WHEN 'minute' THEN 'minute' WHEN 'hourly' THEN 'hour' WHEN 'daily' THEN 'day'
    WHEN 'weekly' THEN 'week' WHEN 'monthly' THEN 'month' ELSE 'year' END"""

JOURNALED: Final[dict[str, str]] = {
    "P1 whatever grows finds its room under the limit of its moment": f"""
        SELECT j.* FROM journal j WHERE j.org_id = $1 AND j.kind = 'written' AND {_J_BLOCKING}
          AND {_TAKEN} > {_WAS_TAKEN} AND {_TAKEN} > (SELECT max(x) FROM unnest(j.limits) x)""",
    "P1 the highest limit is the highest effective limit so far, exactly": f"""
        SELECT j.* FROM journal j WHERE j.org_id = $1 AND j.kind IN ('opened', 'written') AND NOT CASE
            WHEN NOT ({_J_BLOCKING}) THEN (j.now).high_limit IS NULL
            WHEN (j.now).high_limit IS NULL THEN false
            WHEN j.kind = 'opened' THEN (j.now).high_limit = {_PLAIN}
            WHEN (j.was).high_limit IS NULL THEN (j.now).high_limit = greatest({_PLAIN}, {_TAKEN})
            ELSE (j.now).high_limit = ANY (SELECT greatest((j.was).high_limit, x) FROM unnest(j.limits) x)
                OR NOT ({_CHANGED}) AND (j.now).high_limit = (j.was).high_limit END""",
    "P1 what was approved fitted under the limit of its decision": f"""
        SELECT j.* FROM journal j WHERE j.org_id = $1 AND j.kind = 'reserved' AND {_J_BLOCKING} AND j.held > 0
          AND (j.now).spent + (j.now).reserved > j.limits[1]""",
    "R19 beyond its gate a rate holds": """
        SELECT j.*, g.* FROM journal j JOIN journal g ON g.org_id = j.org_id AND g.kind = 'reserved'
            AND g.reservation_id = j.reservation_id AND (g.b).budget_id = (j.b).gate_id
            AND (g.now).entity_id = (j.now).entity_id
        WHERE j.org_id = $1 AND j.kind = 'reserved' AND j.held > 0 AND (j.now).spent + (j.now).reserved > j.limits[1]
          AND (g.now).spent + (g.now).reserved > g.limits[1]""",
    "R19 nothing is admitted against a brake or the directory": """
        SELECT * FROM journal WHERE org_id = $1 AND kind = 'admitted' AND refused IS NOT NULL""",
    # What a later call of the same batch holds was not held yet when an earlier one was decided.
    "R19 shadow denials are the approvals beyond a shadow's limit": """
        SELECT w.window_id, w.shadow_denied, d.denied FROM budget_window w LEFT JOIN (
            SELECT window_id, count(*) AS denied FROM (
                SELECT j.window_id, (j.b).enforcement, (j.now).spent + (j.now).reserved - coalesce(sum(j.held) OVER (
                        PARTITION BY j.tx, j.window_id ORDER BY j.reservation_id
                        ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING), 0) > j.limits[1] AS beyond
                FROM journal j WHERE j.org_id = $1 AND j.kind = 'reserved') x
            WHERE beyond AND enforcement = 'shadow' GROUP BY 1) d USING (window_id)
        WHERE w.org_id = $1 AND w.shadow_denied <> coalesce(d.denied, 0)""",
    "R14 a carry is what its predecessor had left when the window was created": f"""
        SELECT j.now, j.before, c.* FROM journal j
        CROSS JOIN LATERAL (SELECT coalesce((j.before).starts_at, date_trunc({_UNIT}, (j.b).counting_since,
            (j.b).timezone)) AS starts_at) p
        CROSS JOIN LATERAL (SELECT ((j.now).starts_at AT TIME ZONE (j.b).timezone)::date AS d,
                                   (p.starts_at AT TIME ZONE (j.b).timezone)::date AS e) l
        CROSS JOIN LATERAL (SELECT greatest(0, {_PERIODS} - ((j.before).window_id IS NOT NULL)::integer) AS idle) i
        CROSS JOIN LATERAL (SELECT CASE WHEN (j.before).window_id IS NULL THEN 0 ELSE greatest(0,
            (j.b).base_limit + (j.before).carry - (j.before).spent - (j.before).reserved) END AS remaining) r
        CROSS JOIN LATERAL (SELECT idle, remaining, CASE (j.b).rollover_policy WHEN 'none' THEN 0
            WHEN 'full' THEN least(4000000000000000000, remaining + idle * (j.b).base_limit)
            ELSE CASE WHEN idle > 0 THEN (j.b).base_limit * (j.b).rollover_percent / 100
                 ELSE least(remaining, (j.b).base_limit * (j.b).rollover_percent / 100) END END AS expected) c
        WHERE j.org_id = $1 AND j.kind = 'opened' AND (j.now).carry <> CASE (j.b).period WHEN 'total' THEN 0
            ELSE c.expected END""",
    "R14 a carry never changes": """
        SELECT * FROM journal WHERE org_id = $1 AND kind = 'written' AND (was).carry <> (now).carry""",
}


async def violations(
    connection: Connection, org: str, *, complete: bool = True, told: bool = True, journaled: bool = False
) -> dict[str, list[Mapping[str, Any]]]:
    """The promises that do not hold, with the rows that break them, in one snapshot.

    ``complete``: no budget was ever inactive. ``told``: the outbox is the whole history, no relay ran.
    ``journaled``: the journal was there from the first window on.
    """
    promises = {name: sql for name, sql in PROMISES.items() if told or not name.startswith("told")}
    if not complete:
        del promises[COMPLETE]
    if journaled:
        promises |= JOURNALED
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found = await broken(connection, org, promises)
        if wrong := await conversions.violations(connection, org):
            found[conversions.RULE] = wrong
        return found


async def broken(
    connection: Connection, org: str, promises: Mapping[str, str] = PROMISES
) -> dict[str, list[Mapping[str, Any]]]:
    """The same inside a transaction that is open already."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for promise, sql in promises.items():
        try:
            rows = await connection.fetch(sql, org)
        except asyncpg.PostgresError as error:
            raise AssertionError(f"{promise}: {error}") from error
        if rows:
            found[promise] = [dict(row) for row in rows]
    return found
